"""Stop texts: found however the text is cut, and nothing of them shown."""

import pytest

from deepseek_v3.engine.stop import StopGate


@pytest.mark.parametrize("size", [1, 2, 5, 99])
def test_a_stop_text_is_found_however_the_text_is_cut(size):
    text, gate = "one tw two three", StopGate(("two", "never"))
    shown = "".join(gate.push(text[i : i + size]) for i in range(0, len(text), size)) + gate.finish()
    assert shown == "one tw "
    assert gate.stopped


def test_a_beginning_of_a_stop_text_is_shown_once_it_cannot_become_one():
    gate = StopGate(("\n\n",))
    assert [gate.push(c) for c in ("a", "\n", "b", "\n")] == ["a", "", "\nb", ""]
    assert gate.finish() == "\n"
