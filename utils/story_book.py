"""Small English stories with known actors and actions: what the model that runs through the book learns from.

    python -m utils.story_book          three stories, and what is known of each

    Dora was in the garden. The owl was there too. Dora found a red ball. She gave the ball to the owl.
    Who has the ball? The owl has the ball.

Everything that happens is kept beside the text as events, so what a model says of a story can be held to the truth. A
pronoun always means the one who did something in the sentence before. All names, words and sentences are ours.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from utils.story_words import ACTS, ANIMALS, COLOURS, HOW, LINKS, OPENINGS, PLACES, PRONOUN, REASONS, THINGS, WEATHER


class Event(NamedTuple):
    """One thing that happened; actors are written as in the middle of a sentence ("the owl", "Anna").

    `act` is a past tense of ACTS, or "was" and "went" (with a place), "saw" (with an other one), "found", "dropped",
    "gave" (with a thing, of "gave" with an other one too).
    """

    actor: str
    act: str
    thing: str = ""
    other: str = ""
    place: str = ""


class Question(NamedTuple):
    """What is asked at the end: its kind, the sentence, the answer behind it, and the word of it that decides."""

    kind: str
    text: str
    answer: str
    key: str


@dataclass
class Story:
    """A story under way, and then told: its sentences, what happened, what is asked; who is where and has what."""

    sentences: list[str] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    where: dict[str, str] = field(default_factory=dict)
    holder: dict[str, str] = field(default_factory=dict)  # of a thing; "" if it lies somewhere
    colour: dict[str, str] = field(default_factory=dict)
    meant: dict[int, str] = field(default_factory=dict)  # sentence that begins with she, he or it -> who that is
    last: str = ""  # who did something in the sentence before

    @property
    def text(self) -> str:
        """The story as it is read, questions and answers in a line of their own each."""
        asked = [f"{question.text} {question.answer}" for question in self.questions]
        return "\n".join([" ".join(self.sentences), *asked])


def capital(words: str) -> str:
    """The words as a sentence begins."""
    return words[:1].upper() + words[1:]


def pronoun_of(actor: str) -> str:
    """She, he, or it for an animal."""
    return PRONOUN.get(actor, "it")


def at_place(place: str) -> str:
    """A place with its preposition."""
    return f"{PLACES[place]} the {place}"


class Teller:
    """Draws stories; each depends on the seed and on its number alone."""

    def __init__(self, seed: str) -> None:
        self.rng = random.Random(seed)
        self.story = Story()

    def tell(self) -> Story:
        """Open, let things happen, ask."""
        rng, story = self.rng, self.story
        people = rng.sample(sorted(PRONOUN), rng.randint(1, 2))
        actors = people + [f"the {animal}" for animal in rng.sample(ANIMALS, rng.randint(1, 2))]
        rng.shuffle(actors)
        self.places = rng.sample(sorted(PLACES), 2)
        self.things = rng.sample(THINGS, 2)
        self.open_scene(actors)
        kinds = [self.do_act, self.do_act, self.see_other, self.see_other, self.feel_and_act, self.go_somewhere]
        kinds += [self.find_thing, self.give_thing, self.give_thing]
        for _ in range(rng.randint(3, 6)):
            rng.choice(kinds)()
            if self.rng.random() < 0.08:
                self.say(rng.choice(WEATHER), "")
        asks = [
            self.ask_who,
            self.ask_who,
            self.ask_where,
            self.ask_where,
            self.ask_holder,
            self.ask_gift,
            self.ask_whether,
        ]
        for ask in rng.sample(asks, rng.randint(1, 5)):
            ask()
        return story

    def say(self, sentence: str, actor: str, *events: Event) -> None:
        """Write a sentence down with what happened in it."""
        self.story.sentences.append(sentence)
        self.story.events.extend(events)
        self.story.last = actor

    def subject(self, actor: str) -> str:
        """Name the actor; she, he or it at times, if the sentence before was about the same; at times after "Then"."""
        same = actor == self.story.last
        name = pronoun_of(actor) if same and self.rng.random() < 0.7 else actor
        if name != actor:
            self.story.meant[len(self.story.sentences)] = actor
        return f"{self.rng.choice(LINKS)} {name}" if not same and self.rng.random() < 0.25 else capital(name)

    def choose_actor(self) -> str:
        """The one of the sentence before, at times, so that pronouns are seen; else anybody."""
        if self.story.last and self.rng.random() < 0.4:
            return self.story.last
        return self.rng.choice(sorted(self.story.where))

    def name_thing(self, thing: str) -> str:
        """A red ball when it is new, the ball or the red ball afterwards."""
        known = self.story.colour.get(thing)
        if known:
            return f"the {known} {thing}" if self.rng.random() < 0.3 else f"the {thing}"
        colour = self.story.colour[thing] = self.rng.choice(COLOURS)
        return f"a{'n' if colour == 'old' else ''} {colour} {thing}"

    def open_scene(self, actors: list[str]) -> None:
        """Say who is where."""
        rng, place = self.rng, self.places[0]
        first, *others = actors
        opening = f"{rng.choice(OPENINGS)} {first}" if rng.random() < 0.6 else capital(first)
        together = others[:1] if rng.random() < 0.5 else []
        names = " and ".join([opening, *together])
        story, at = self.story, at_place(place)
        self.say(f"{names} {'were' if together else 'was'} {at}.", "" if together else first)
        for other in others[len(together) :]:
            how = rng.choice(("there too", f"{at} too", "with them" if together else "nearby"))
            self.say(f"{capital(other)} was {how}.", other)
        story.where = dict.fromkeys(actors, place)
        story.events.extend(Event(actor, "was", place=place) for actor in actors)
        if rng.random() < 0.3:
            self.say(rng.choice(WEATHER), "")

    def do_act(self) -> None:
        """Somebody sat, ran, sang."""
        actor, act = self.choose_actor(), self.rng.choice(sorted(ACTS))
        how = f" {self.rng.choice(HOW)}" if self.rng.random() < 0.35 else ""
        self.say(f"{self.subject(actor)} {act}{how}.", actor, Event(actor, act))

    def see_other(self) -> None:
        """Two forms, in which the one who does it stands in another place: the cat that saw the dog sat."""
        rng, here = self.rng, self.story.where
        actor = self.choose_actor()
        others = [other for other in sorted(here) if other != actor and here[other] == here[actor]]
        if not others:
            return self.do_act()
        other, act = rng.choice(others), rng.choice(sorted(ACTS))
        saw, did = Event(actor, "saw", other=other), rng.random() < 0.5
        if did:
            clause = f" that saw {other} " if pronoun_of(actor) == "it" else f", who saw {other}, "
            return self.say(f"{capital(actor)}{clause}{act}.", actor, saw, Event(actor, act))
        clause = f" that {act}" if pronoun_of(other) == "it" else f", who {act}"
        self.say(f"{self.subject(actor)} saw {other}{clause}.", "", saw, Event(other, act))

    def feel_and_act(self) -> None:
        """Somebody was tired, so she slept."""
        actor, feeling = self.choose_actor(), self.rng.choice(sorted(REASONS))
        act = self.rng.choice(REASONS[feeling])
        self.say(f"{self.subject(actor)} was {feeling}, so {pronoun_of(actor)} {act}.", actor, Event(actor, act))

    def go_somewhere(self) -> None:
        """Somebody changes the place."""
        actor = self.choose_actor()
        place = self.places[self.story.where[actor] == self.places[0]]
        self.story.where[actor] = place
        verb = self.rng.choice(("went", "walked", "came"))
        self.say(f"{self.subject(actor)} {verb} to the {place}.", actor, Event(actor, "went", place=place))

    def find_thing(self) -> None:
        """Something is found, or taken up again, or put down."""
        actor, story = self.choose_actor(), self.story
        held = [thing for thing in self.things if story.holder.get(thing) == actor]
        if held and self.rng.random() < 0.4:
            thing = self.rng.choice(held)
            story.holder[thing] = ""
            return self.say(
                f"{self.subject(actor)} dropped {self.name_thing(thing)}.", actor, Event(actor, "dropped", thing)
            )
        free = [thing for thing in self.things if not story.holder.get(thing)]
        if not free:
            return self.do_act()
        thing = self.rng.choice(free)
        verb = self.rng.choice(("found", "took", "picked up"))
        sentence = f"{self.subject(actor)} {verb} {self.name_thing(thing)}."
        story.holder[thing] = actor
        self.say(sentence, actor, Event(actor, "found", thing))

    def give_thing(self) -> None:
        """Who has something gives it to somebody who is there, in one of three forms."""
        story = self.story
        held, where = [(thing, giver) for thing, giver in sorted(story.holder.items()) if giver], story.where
        pairs = [(*h, other) for h in held for other in sorted(where) if other != h[1] and where[other] == where[h[1]]]
        if not pairs:
            return self.find_thing()
        thing, giver, other = self.rng.choice(pairs)
        story.holder[thing] = other
        event, what, form = Event(giver, "gave", thing, other), self.name_thing(thing), self.rng.random()
        if form < 0.15:
            return self.say(f"{capital(what)} was given to {other} by {giver}.", "", event)
        gift = f"{what} to {other}" if form < 0.6 else f"{other} {what}"
        self.say(f"{self.subject(giver)} gave {gift}.", giver, event)
        if self.rng.random() < 0.3:
            self.say(f'"Thank you," said {other}.', other)

    def ask(self, kind: str, text: str, answer: str, key: str) -> None:
        """Write a question down with its answer, unless it stands there."""
        if all(asked.text != text for asked in self.story.questions):
            self.story.questions.append(Question(kind, text, capital(answer), key))

    def ask_who(self) -> None:
        """Who sat? Asked only if one alone did."""
        does: dict[str, set[str]] = {}
        for event in self.story.events:
            if event.act in ACTS:
                does.setdefault(event.act, set()).add(event.actor)
        alone = sorted(act for act, actors in does.items() if len(actors) == 1)
        if alone:
            act = self.rng.choice(alone)
            (actor,) = does[act]
            self.ask("who", f"Who {act}?", f"{actor} {act}.", actor)

    def ask_where(self) -> None:
        """Where is somebody at the end?"""
        actor = self.rng.choice(sorted(self.story.where))
        place = at_place(self.story.where[actor])
        self.ask("where", f"Where is {actor}?", f"{actor} is {place}.", self.story.where[actor])

    def ask_holder(self) -> None:
        """Who has the thing at the end?"""
        held = sorted(thing for thing, holder in self.story.holder.items() if holder)
        if held:
            thing = self.rng.choice(held)
            holder = self.story.holder[thing]
            self.ask("has", f"Who has the {thing}?", f"{holder} has the {thing}.", holder)

    def ask_gift(self) -> None:
        """Who gave it, and to whom? Of a thing that was given once."""
        gifts = [event for event in self.story.events if event.act == "gave"]
        once = [gift for gift in gifts if sum(other.thing == gift.thing for other in gifts) == 1]
        if once:
            gift = self.rng.choice(once)
            gave = f"gave {gift.other} the {gift.thing}"
            self.ask("gave", f"Who {gave}?", f"{gift.actor} {gave}.", gift.actor)

    def ask_whether(self) -> None:
        """Did somebody sit? Yes or no, as often."""
        actor, act = self.rng.choice(sorted(self.story.where)), self.rng.choice(sorted(ACTS))
        if self.rng.random() < 0.5:
            done = sorted({(event.actor, event.act) for event in self.story.events if event.act in ACTS})
            actor, act = self.rng.choice(done) if done else (actor, act)
        did = any((event.actor, event.act) == (actor, act) for event in self.story.events)
        word = "yes" if did else "no"
        self.ask("whether", f"Did {actor} {ACTS[act]}?", f"{word}.", word)


def tell_story(seed: int, number: int) -> Story:
    """Tell one story of a book."""
    return Teller(f"{seed} {number}").tell()


def write_book(seed: int, n_stories: int) -> Iterator[str]:
    """Yield the stories as lines of JSON, the form in which training reads them."""
    for number in range(n_stories):
        yield json.dumps({"text": tell_story(seed, number).text}, ensure_ascii=False) + "\n"


def main() -> None:
    """Tell three stories."""
    for number in range(3):
        story = tell_story(0, number)
        print(f"{story.text}\n")
        for event in story.events:
            print("   ", *(word for word in event if word))
        print()


if __name__ == "__main__":
    main()
