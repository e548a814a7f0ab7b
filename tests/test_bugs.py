"""Planted mistakes are caught by the tests that they name: here one a file, all of them by `make bugs` or -m slow."""

import dataclasses

import pytest

from utils.bugs import hunt, load_bugs

BUGS = load_bugs()
HARMLESS = {(bug.folder, bug.tests): dataclasses.replace(bug, plant=bug.find) for bug in reversed(BUGS)}
ONE_A_FOLDER = {bug.folder: bug for bug in HARMLESS.values()}
ONE_A_FILE = {(bug.folder, bug.file): bug for bug in reversed(BUGS)}
HUNTED = [pytest.param(b, marks=() if ONE_A_FILE[b.folder, b.file] is b else pytest.mark.slow) for b in BUGS]


@pytest.mark.parametrize("bug", HUNTED, ids=lambda b: f"{b.folder}-{b.name}".replace(" ", "_"))
def test_the_planted_mistake_is_caught(bug):
    assert hunt(bug), f"no test noticed: {bug.name} ({bug.symptom})"


@pytest.mark.parametrize("bug", ONE_A_FOLDER.values(), ids=lambda b: b.folder)
def test_a_copy_without_a_mistake_passes(bug):
    """Else the hunt would call its own accident a catch."""
    assert not hunt(bug)


@pytest.mark.slow
@pytest.mark.parametrize("bug", HARMLESS.values(), ids=lambda b: f"{b.folder}-{'+'.join(b.tests)}".replace("/", "_"))
def test_every_copy_without_a_mistake_passes(bug):
    assert not hunt(bug)
