"""Promises of docs/ and the tests that hold them (promises.txt): the sentence stands there still, the test too."""

import re
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
LINES = [line for line in (HERE / "promises.txt").read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
PROMISES = [tuple(part.strip() for part in re.split(r" \| | :: ?", line)) for line in LINES]


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: " ".join(promise[:2])[:60])
def test_a_promise_and_its_test_stand_side_by_side(promise):
    document, words, file, test = promise
    text = (HERE.parent / "docs" / f"{document}.md").read_text(encoding="utf-8")
    assert words.lower() in " ".join(text.replace("**", "").split()).lower()
    assert f"def test_{test}" in (HERE / file).read_text(encoding="utf-8")
