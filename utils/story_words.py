"""The words of the stories (story_book.py): who, what, where, and what is done."""

# ruff: noqa: SIM905   (a list of words is read more easily as words)

PRONOUNS = {
    "she": "Anna Dora Emma Ida Lena Mara Nora Rosa Tilda Vera".split(),
    "he": "Ben Carl Emil Finn Hugo Jan Leo Otto Paul Tom".split(),
}
PRONOUN = {name: pronoun for pronoun, names in PRONOUNS.items() for name in names}
ANIMALS = "cat dog owl fox hen horse mouse frog duck goat".split()
THINGS = "ball book key lamp apple cup drum kite coat rope stone coin cake boat".split()
COLOURS = "red blue green white old small big new".split()
PLACES = {
    **dict.fromkeys("garden kitchen park forest barn".split(), "in"),
    **dict.fromkeys("school lake market river gate".split(), "at"),
    **dict.fromkeys("bridge hill beach roof".split(), "on"),
}
PAST = "sat ran sang slept ate hid laughed jumped waited smiled danced cried".split()
ACTS = dict(zip(PAST, "sit run sing sleep eat hide laugh jump wait smile dance cry".split()))
REASONS = {
    "tired": "slept sat".split(),
    "happy": "sang danced laughed smiled".split(),
    "sad": "cried waited".split(),
    "hungry": ["ate"],
    "afraid": "hid ran".split(),
    "bored": "jumped waited slept".split(),
}
HOW = "for a while/all day/until the evening/under a tree/near the door/with joy/in the sun/in the rain".split("/")
OPENINGS = "One morning/One evening/One day/In winter/In summer/After the rain/Before supper/On Sunday".split("/")
LINKS = "Then/After that/Later/Soon/At last/A little later".split("/")
WEATHER = (
    "It was a cold day./The sun was warm./It had rained all night./The wind was strong./Snow fell./"
    "It was very quiet./There were many clouds./It began to rain."
).split("/")
