"""Every planted mistake is caught by the test that it names (`make bugs` prints the table)."""

import pytest

from utils.bugs import hunt, load_bugs


@pytest.mark.parametrize("bug", load_bugs(), ids=lambda b: f"{b.folder}-{b.name}".replace(" ", "_"))
def test_the_planted_mistake_is_caught(bug):
    assert hunt(bug), f"no test noticed: {bug.name} ({bug.symptom})"
