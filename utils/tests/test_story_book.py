"""The stories of the book: told twice they are the same, and whoever reads the sentences alone finds the same truth."""

import re
from collections import Counter

import pytest

from utils.story_book import tell_story, write_book
from utils.story_words import ACTS, PLACES, PRONOUN, THINGS

STORIES = [tell_story(5, number) for number in range(300)]
NAME = rf"(?:{'|'.join(PRONOUN)}|the [a-z]+)"


def test_a_story_depends_on_its_seed_and_number_alone():
    again = [tell_story(5, number).text for number in reversed(range(300))][::-1]
    assert again == [story.text for story in STORIES]
    assert tell_story(6, 0).text != STORIES[0].text
    assert len(set(again)) == 300
    assert list(write_book(5, 2)) == list(write_book(5, 300))[:2]


def test_sentences_begin_large_and_end_with_a_stop():
    for story in STORIES:
        for sentence in story.sentences:
            assert re.fullmatch(r'[A-Z"][A-Za-z ,"]*\.', sentence), sentence
            assert "  " not in sentence


def test_a_pronoun_means_the_one_of_the_sentence_before():
    for story in STORIES:
        for number, actor in story.meant.items():
            assert story.sentences[number].split()[0].lower() == PRONOUN.get(actor, "it")
            assert (
                actor in story.sentences[number - 1].lower() + story.sentences[number - 1] or number - 1 in story.meant
            )


def read_again(text: str) -> tuple[dict[str, str], dict[str, str], list[tuple[str, str]]]:
    """Another reader: regular expressions over the sentences; where everybody is, who has what, who did what."""
    where: dict[str, str] = {}
    holder: dict[str, str] = {}
    did: list[tuple[str, str]] = []
    last, here = "", ""
    for raw in re.findall(r"[^.]+\.", text.split("\n")[0]):
        raw = raw.strip()
        sentence = raw[0].lower() + raw[1:] if re.search(r"\w+", raw)[0] not in PRONOUN else raw
        sentence = re.sub(r"^(then|after that|later|soon|at last|a little later) ", "", sentence)
        sentence = re.sub(r"^(she|he|it) (?!was a cold|was very quiet|had rained|began to)", f"{last} ", sentence)
        sentence = re.sub(r", so (she|he|it) ", " and ", sentence)
        last = ""
        if found := re.search(rf"({NAME}) and ({NAME}) were \w+ the (\w+)", sentence):
            here = found[3]
            where |= {found[1]: here, found[2]: here}
        elif found := re.search(rf"({NAME}) was \w+ the (\w+)( too)?\.", sentence):
            here, last = found[2], found[1]
            where[last] = here
        elif found := re.search(rf"({NAME}) was (?:there too|with them|nearby)\.", sentence):
            last = found[1]
            where[last] = here
        elif found := re.fullmatch(rf"({NAME}) (?:went|walked|came) to the (\w+)\.", sentence):
            last = found[1]
            where[last] = found[2]
        elif found := re.fullmatch(rf"({NAME}) (?:found|took|picked up) .*?(\w+)\.", sentence):
            last = holder[found[2]] = found[1]
        elif found := re.fullmatch(rf"({NAME}) dropped .*?(\w+)\.", sentence):
            last, holder[found[2]] = found[1], ""
        elif found := re.fullmatch(rf"the (?:\w+ )?(\w+) was given to ({NAME}) by {NAME}\.", sentence):
            holder[found[1]] = found[2]
        elif found := re.fullmatch(
            rf"({NAME}) gave (?:a|an|the)(?: \w+)? ({'|'.join(THINGS)}) to ({NAME})\.", sentence
        ):
            last, holder[found[2]] = found[1], found[3]
        elif found := re.fullmatch(rf"({NAME}) gave ({NAME}) .*?(\w+)\.", sentence):
            last, holder[found[3]] = found[1], found[2]
        elif found := re.fullmatch(rf'"[tT]hank you," said ({NAME})\.', sentence):
            last = found[1]
        elif found := re.fullmatch(rf"({NAME}),? (?:that|who) saw {NAME},? (\w+)\.", sentence):
            last = found[1]
            did.append((last, found[2]))
        elif found := re.fullmatch(rf"{NAME} saw ({NAME}),? (?:that|who) (\w+)\.", sentence):
            did.append((found[1], found[2]))
        elif found := re.fullmatch(rf"({NAME}) (?:was \w+ and )?({'|'.join(ACTS)})( .*)?\.", sentence):
            last = found[1]
            did.append((last, found[2]))
    return where, holder, did


@pytest.mark.parametrize("story", STORIES, ids=range(300))
def test_whoever_reads_the_sentences_finds_what_the_story_knows(story):
    where, holder, did = read_again(story.text)
    assert where == story.where, story.text
    assert holder == story.holder, story.text
    assert did == [(event.actor, event.act) for event in story.events if event.act in ACTS], story.text


def test_answers_are_true():
    """By the other reader's account, not by the teller's."""
    kinds = Counter()
    for story in STORIES:
        where, holder, did = read_again(story.text)
        for question in story.questions:
            kinds[question.kind] += 1
            words = question.text.rstrip("?").split()
            if question.kind == "who":
                assert {actor for actor, act in did if act == words[1]} == {question.key}
            elif question.kind == "where":
                assert where[" ".join(words[2:])] == question.key
                assert f"{PLACES[question.key]} the {question.key}." in question.answer
            elif question.kind == "has":
                assert holder[words[-1]] == question.key
            elif question.kind == "whether":
                act = next(past for past, base in ACTS.items() if base == words[-1])
                assert ((" ".join(words[1:-1]), act) in did) == (question.key == "yes")
    assert min(kinds[kind] for kind in ("who", "where", "has", "gave", "whether")) > 20, kinds
