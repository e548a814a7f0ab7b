"""The chapter's own answers pass its exercises, and a blank file fails with a friendly word."""

import pytest

from utils.exercises import ROOT, grade

CHAPTERS = [p.parent for p in sorted(ROOT.glob("0[0-8]_*/exercises.py"))]


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda p: p.name)
def test_the_solutions_pass(chapter):
    assert not [v for v in grade(chapter, solved=True) if v[1]]


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda p: p.name)
def test_the_blank_file_is_told_what_to_do(chapter):
    verdicts = grade(chapter)
    assert verdicts
    assert all("still blank" in verdict for _, verdict in verdicts)
