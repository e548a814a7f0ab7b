"""The text of events: whole, in order, and never a part of a stop text, with and without drafts."""

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_v3.engine.engine import Engine
from deepseek_v3.engine.request import EngineOptions, Request
from deepseek_v3.engine.stop import StopGate
from deepseek_v3.model.transformer import DeepseekV3
from tests.tiny import tiny_config

TINY = tiny_config(vocab_size=29, num_hidden_layers=2, max_position_embeddings=97, num_nextn_predict_layers=2)
PIECES = ["a", "b", "ab", "ba", "é"[:1], "\n", "aab"] * 4 + ["b"]  # few letters, so that stop texts come


class Letters:
    """Token to text; holds back every second token until the next comes, as a character in two bytes would."""

    def __init__(self) -> None:
        self.held = ""

    def push(self, token: int) -> str:
        text, self.held = (self.held + PIECES[token], "") if token % 2 else ("", self.held + PIECES[token])
        return text

    def finish(self) -> str:
        return self.held


@cache
def make_model() -> DeepseekV3:
    torch.manual_seed(14)
    return DeepseekV3(TINY)


def listen(request: Request) -> tuple[list[str], str, list[int]]:
    """Serve one request; return what its events showed, why it ended, and its tokens."""
    engine = Engine(make_model(), EngineOptions(n_blocks=13, block_size=8), stream=Letters)
    sequence, shown = engine.admit(request), []
    while not sequence.finish:
        shown += [event.shown for event in engine.step()]
        engine.check_integrity()
    return shown, sequence.finish, sequence.text


@cache
def whole_text(prompt: int) -> tuple[str, list[int]]:
    shown, finish, tokens = listen(Request([prompt], max_new_tokens=31))
    assert finish == "length"
    return "".join(shown), tokens


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 28), st.lists(st.text("ab\né", min_size=1, max_size=4), max_size=3), st.sampled_from([0, 1, 3]))
def test_the_text_ends_before_the_first_stop_text_and_nothing_of_it_is_ever_shown(prompt, stops, drafts):
    whole, tokens = whole_text(prompt)
    assert whole == "".join(PIECES[token] for token in tokens)
    shown, finish, text = listen(Request([prompt], max_new_tokens=31, drafts=drafts, stop=tuple(stops)))
    ends = [whole.find(stop) for stop in stops if stop in whole]
    assert "".join(shown) == whole[: min(ends, default=len(whole))]
    assert text == tokens[: len(text)]
    if not ends:
        assert (finish, text) == ("length", tokens)
    elif "".join(PIECES[token] for token in text) != whole:  # the last token may have been held back
        assert finish == "stop"


def test_what_may_become_a_stop_text_waits_until_it_does_or_cannot():
    gate = StopGate(("abc",))
    assert [gate.push(text) for text in ("xa", "b", "d", "ya", "b", "c", "z")] == ["x", "", "abd", "y", "", "", ""]
    assert gate.stopped


def test_the_token_that_completes_a_stop_text_is_the_last_with_drafts_too():
    whole, tokens = whole_text(3)
    stop = whole[9:12]
    results = [listen(Request([3], max_new_tokens=31, drafts=drafts, stop=(stop,))) for drafts in (0, 1, 3)]
    assert len({tuple(result[2]) for result in results}) == 1
    assert {result[1] for result in results} == {"stop"}


def test_without_a_stream_there_is_no_text_and_stop_texts_are_refused():
    engine = Engine(make_model(), EngineOptions(n_blocks=13, block_size=8))
    with pytest.raises(ValueError, match="stop texts need an engine that makes text"):
        engine.admit(Request([3], stop=("a",)))
    engine.admit(Request([3], max_new_tokens=2))
    assert [event.shown for event in (*engine.step(), *engine.step())] == ["", ""]
