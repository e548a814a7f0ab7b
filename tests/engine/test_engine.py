"""The engine: a request's tokens depend on nothing but the request, and one that fails takes nobody with it."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepseek_v3.engine.engine import Engine
from deepseek_v3.engine.generate import generate, generate_batch, open_engine
from deepseek_v3.engine.request import EngineOptions, Request
from deepseek_v3.engine.sampler import BrokenLogits, SamplingRule
from deepseek_v3.engine.steering import Steering
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.native.build import have_kernels
from tests.tiny import tiny_config

needs_kernels = pytest.mark.skipif(not have_kernels(), reason="no C++ compiler here")
TINY = tiny_config(vocab_size=29, num_hidden_layers=2, max_position_embeddings=97, num_nextn_predict_layers=2)
DRAWN = SamplingRule(0.9, top_k=20, top_p=0.95)
STEERED = Steering(1.2, 0.3, 0.1, {3: 0.5})


@cache
def make_model(dtype: torch.dtype = torch.float32) -> DeepseekV3:
    torch.manual_seed(14)
    return DeepseekV3(TINY).to(dtype)


def alone(model: DeepseekV3, request: Request) -> tuple[list[int], list, list]:
    """What the request gives in an engine of its own: its text and the scores of text and prompt."""
    engine = open_engine(model, [replace(request, adaptive=False)], None)
    sequence = engine.admit(replace(request, adaptive=False))
    scores = finish(engine)
    return sequence.text, scores.get(sequence.id, []), sequence.prompt_scores


def finish(engine: Engine, scores: dict[int, list] | None = None) -> dict[int, list]:
    """Step until all are done; what the events bring is the text, and no block leaks at any time."""
    told: dict[int, list[int]] = {}
    scores = {} if scores is None else scores
    while engine.sequences:
        for event in engine.step():
            told.setdefault(event.sequence.id, []).extend(event.tokens)
            scores.setdefault(event.sequence.id, []).extend(event.scores)
            assert list(event.tokens[: event.stood]) == list(event.drafts[: event.stood])
            assert (event.finish is None) == (event.sequence.id in engine.sequences)
            if event.finish in ("stop", "length"):
                text = told[event.sequence.id]  # of a sequence that had begun before, the end
                assert text == event.sequence.text[event.sequence.new - len(text) :]
        engine.check_integrity()
    assert len(engine.pool.free) == engine.pool.n_blocks
    return scores


@st.composite
def any_request(draw):
    """A prompt over few tokens, so that beginnings agree; greedy or drawn, steered, scored, with and without drafts."""
    tokens = draw(st.sampled_from([[2, 3, 5, 7] * 9, [2, 3, 5, 7, 11] * 4, [13]]))
    tokens = tokens[: draw(st.integers(1, len(tokens)))] + draw(st.lists(st.integers(0, 28), max_size=3))
    return Request(
        tokens, draw(st.sampled_from([SamplingRule(), DRAWN])), draw(st.integers(1, 17)), draw(st.integers(0, 3)),
        draw(st.integers(0, 4)), draw(st.sampled_from([(), (3, 17)])), adaptive=draw(st.booleans()),
        steering=draw(st.sampled_from([Steering(), STEERED])), logprobs=draw(st.sampled_from([None, 2])),
        prompt_logprobs=draw(st.sampled_from([None, None, 1])),
    )  # fmt: skip


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_tokens_depend_on_nothing_but_the_request(dtype, data):
    """Not on neighbours, the cut of the prompt, the blocks, shared beginnings, or being preempted: bit for bit."""
    model, requests = make_model(dtype), data.draw(st.lists(any_request(), min_size=1, max_size=5))
    size = data.draw(st.integers(2, 7))
    need = max(-(-request.slots(TINY) // size) for request in requests)
    options = EngineOptions(
        n_blocks=need + data.draw(st.integers(0, 8)), block_size=size, step_tokens=data.draw(st.integers(5, 23)),
        max_rows=data.draw(st.integers(1, 4)), short_piece=data.draw(st.integers(1, 19)),
    )  # fmt: skip
    engine, sequences, scores = Engine(model, options), [], {}
    for request in requests:
        sequences.append(engine.admit(request))
        for _ in range(data.draw(st.integers(0, 5))):
            for event in engine.step():
                scores.setdefault(event.sequence.id, []).extend(event.scores)
            engine.check_integrity()
        if data.draw(st.booleans()) and engine.scheduler.running:
            engine.scheduler.preempt(engine.scheduler.running[-1])
    finish(engine, scores)
    for request, sequence in zip(requests, sequences):
        assert (sequence.text, scores.get(sequence.id, []), sequence.prompt_scores) == alone(model, request)


@needs_kernels
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.9, "top_p": 0.95, "seed": 40}], ids=["greedy", "drawn"])
@pytest.mark.parametrize("speculative", [False, 3])
def test_a_row_of_a_batch_is_what_generate_yields_in_bfloat16_too(settings, speculative):
    model, prompts = make_model(torch.bfloat16), [[5], [7, 11, 13] * 23, [2, 3], [19] * 65]
    settings = {**settings, "max_new_tokens": 17, "stop_tokens": (), "speculative": speculative}
    rows = generate_batch(model, prompts, **settings)
    for i, prompt in enumerate(prompts):
        seed = {"seed": 40 + i} if "seed" in settings else {}
        assert rows[i] == list(generate(model, prompt, **{**settings, **seed}))


def test_a_shared_beginning_is_read_once(form):
    engine = Engine(make_model(), EngineOptions(n_blocks=31, block_size=4))
    first = engine.admit(Request([2, 3, 5, 7] * 5, max_new_tokens=3))
    finish(engine)
    for drafts, shared in ((0, 16), (1, 0)):  # what modules have not read does not serve those who draft
        again = engine.admit(Request([2, 3, 5, 7] * 5, max_new_tokens=3, drafts=drafts))
        engine.scheduler.start(again)
        assert again.read == shared
        finish(engine)
        assert again.text == first.text
    drafting = engine.admit(Request([2, 3, 5, 7] * 5 + [11], max_new_tokens=3, drafts=1))
    engine.scheduler.start(drafting)
    assert drafting.read == 16  # five blocks agree; the module's last row of the fifth depends on what comes then
    finish(engine)


def test_when_blocks_run_out_the_youngest_waits_and_nobody_is_lost():
    engine = Engine(make_model(), EngineOptions(n_blocks=9, block_size=4, max_rows=4))
    requests = [Request([3 + i] * 7, max_new_tokens=23) for i in range(4)]
    sequences = [engine.admit(request) for request in requests]
    finish(engine)
    assert engine.scheduler.preemptions > 0
    assert [s.text for s in sequences] == generate_batch(
        make_model(), [r.tokens for r in requests], max_new_tokens=23, stop_tokens=()
    )
    assert [s.finish for s in sequences] == ["length"] * 4


def test_copies_read_their_prompt_once_and_draw_with_seeds_of_their_own():
    engine = Engine(make_model(), EngineOptions(n_blocks=31, block_size=4))
    request = Request([2, 3, 5, 7] * 5, DRAWN, 13, seed=40, drafts=2, prompt_logprobs=0)
    copies = engine.admit_copies(request, 3)
    finish(engine)
    for i, copy in enumerate(copies):
        assert copy.text == alone(make_model(), replace(request, seed=40 + i))[0]
        assert None not in copy.prompt_scores[1:]
    assert [copy.statistics.shared_tokens for copy in copies] == [0, 16, 16]
    assert engine.metrics().prompt_tokens == 20 + 2 * 4


def test_copies_go_on_when_the_first_is_aborted_and_others_pass_while_they_wait():
    engine = Engine(make_model(), EngineOptions(n_blocks=31, block_size=4, short_piece=2))
    first, second = engine.admit_copies(Request([2, 3, 5, 7] * 3, max_new_tokens=5), 2)
    other = engine.admit(Request([11], max_new_tokens=5))
    engine.step()
    assert [s in engine.scheduler.running for s in (first, second, other)] == [True, False, True]
    engine.abort(first.id)
    finish(engine)
    assert (second.finish, second.text) == ("length", alone(make_model(), second.request)[0])
    assert first.finish == "abort"


def test_a_prompt_is_read_in_pieces_beside_a_text_that_goes_on():
    engine = Engine(make_model(), EngineOptions(n_blocks=31, block_size=4, short_piece=5))
    writing = engine.admit(Request([3], max_new_tokens=30))
    engine.step()
    reading = engine.admit(Request([5] * 17, max_new_tokens=2))
    steps = 0
    while not reading.new:
        before = writing.new
        engine.step()
        assert writing.new == before + 1  # nobody waits for the prompt
        steps += 1
    assert steps == 4
    finish(engine)


def test_metrics_and_the_map_of_blocks_say_what_is_there():
    engine = Engine(make_model(), EngineOptions(n_blocks=7, block_size=4, max_rows=1))
    one = engine.admit(Request([2, 3, 5, 7] * 3, max_new_tokens=9, drafts=1))
    engine.admit(Request([2, 3, 5, 7] * 3, max_new_tokens=9, drafts=1))
    engine.step()
    now = engine.metrics()
    assert (now.running, now.waiting, now.blocks, now.blocks_free) == (1, 1, 7, 4)
    assert sorted(engine.block_map()) == [0, 0, 0, 0, 1, 1, 1]
    assert now.prompt_tokens == 12
    finish(engine)
    now = engine.metrics()
    assert now.new_tokens == 18
    assert now.drafted == 2 * sum(one.statistics.drafted)
    assert now.accepted == 2 * sum(one.statistics.accepted)
    assert now.shared_tokens == 8
    assert now.blocks_findable == engine.block_map().count(-1) > 0


def break_token(model: DeepseekV3, token: int) -> DeepseekV3:
    """A copy in which one token's embedding is NaN."""
    broken = DeepseekV3(TINY)
    broken.load_state_dict(model.state_dict())
    broken.embed_tokens.weight.data[token] = float("nan")
    return broken


@pytest.mark.parametrize("rule", [SamplingRule(), DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("drafts", [0, 2])
def test_a_request_whose_logits_are_nan_fails_alone(form, rule, drafts):
    model = break_token(make_model(), 23)
    engine = Engine(model, EngineOptions(n_blocks=31, block_size=4))
    good = Request([5, 7, 11], rule, 13, 1, drafts, (23,))
    want = engine.admit(good)
    finish(engine)
    sick = engine.admit(Request([5, 23, 11], rule, 13, 1, drafts))
    well = engine.admit(good)
    finish(engine)
    assert (sick.finish, sick.text) == ("error", [])
    assert "the logits behind token 2 are nan" in sick.error
    if 23 not in want.text:
        assert well.text == want.text
    later = engine.admit(good)  # in the blocks that held NaN
    finish(engine)
    assert later.text == well.text


def test_blocks_that_held_nan_serve_others(form):
    """A row that is padded to its longer neighbour's length reads slots of its block that it has not written."""
    engine = Engine(break_token(make_model(), 23), EngineOptions(n_blocks=4, block_size=8))
    sick = engine.admit(Request([23] * 30, max_new_tokens=1))
    finish(engine)
    rows = [engine.admit(Request(tokens, max_new_tokens=1)) for tokens in ([5] * 13, [7])]
    finish(engine)
    assert [sick.finish, *(row.finish for row in rows)] == ["error", "length", "length"]


def test_generate_says_that_logits_are_nan_and_where(form):
    model = break_token(make_model(), 23)
    for options in ({}, {"temperature": 1.0, "seed": 3}, {"speculative": 2}):
        with pytest.raises(BrokenLogits, match="the logits behind token 1 are nan, so no token can be chosen"):
            list(generate(model, [5, 23], max_new_tokens=5, **options))
        with pytest.raises(BrokenLogits, match="the logits behind token 1 are nan"):
            generate_batch(model, [[5], [5, 23]], max_new_tokens=5)


def test_a_module_whose_logits_are_nan_fails_its_request():
    model = break_token(make_model(), 0)
    model.embed_tokens.weight.data[0] = 0
    model.mtp[0].eh_proj.weight.data[:] = float("nan")
    assert len(list(generate(model, [5, 7], max_new_tokens=5, stop_tokens=()))) == 5
    with pytest.raises(BrokenLogits, match="the logits of draft 1 are nan"):
        list(generate(model, [5, 7], max_new_tokens=5, stop_tokens=(), speculative=1))


def test_an_aborted_request_frees_its_blocks_wherever_it_is():
    engine = Engine(make_model(), EngineOptions(n_blocks=31, block_size=4, max_rows=1))
    running, waiting = (engine.admit(Request([3 + i] * 7, max_new_tokens=23)) for i in range(2))
    engine.step()
    for sequence in (waiting, running):
        engine.abort(sequence.id)
        engine.abort(sequence.id)  # once more is nothing
        engine.check_integrity()
        assert sequence.finish == "abort"
    assert engine.step() == []
    assert len(engine.pool.free) == 31


def test_refreshed_weights_serve_what_is_running(form):
    model = break_token(make_model(), 0)
    model.embed_tokens.weight.data[0] = 0
    engine = Engine(model, EngineOptions(n_blocks=31, block_size=4))
    sequence = engine.admit(Request([2, 3, 5, 7] * 3, max_new_tokens=9))
    while sequence.new < 4:
        engine.step()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.data = parameter.data * 1.1
    engine.refresh()
    finish(engine)
    assert sequence.text[4:] == list(generate(model, sequence.tokens[:16], max_new_tokens=5, stop_tokens=()))
    again = engine.admit(Request([2, 3, 5, 7] * 3, max_new_tokens=9))
    finish(engine)
    assert again.text == list(generate(model, [2, 3, 5, 7] * 3, max_new_tokens=9, stop_tokens=()))


@pytest.mark.parametrize(
    ("request_", "word"),
    [
        (Request([]), "empty"),
        (Request([29]), "token 29 is outside"),
        (Request([3], max_new_tokens=0), "max_new_tokens=0 must be at least 1"),
        (Request([3] * 45, max_new_tokens=0, prompt_logprobs=0), "45 tokens are more than the engine's 44"),
        (Request([3], drafts=-1), "drafts=-1"),
        (Request([3], drafts=5), "drafts=5 must be less than step_tokens=5"),
        (Request([3] * 20, max_new_tokens=30), "49 tokens are more than the engine's 44"),
    ],
)
def test_what_an_engine_cannot_serve_is_refused_when_it_comes(request_, word):
    with pytest.raises(ValueError, match=word):
        Engine(make_model(), EngineOptions(n_blocks=11, block_size=4, step_tokens=5)).admit(request_)


def test_options_that_cannot_work_are_refused():
    for wrong in ({"n_blocks": 0}, {"block_size": 0}, {"max_rows": 0}, {"cache_dtype": torch.int8}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            EngineOptions(**{"n_blocks": 3, **wrong})
    with pytest.raises(ValueError, match="drafts=1 need MTP modules"):
        Engine(make_model(), EngineOptions(n_blocks=3, modules=0)).admit(Request([3], drafts=1))
    with pytest.raises(ValueError, match=r"cache_dtype=torch\.int8 must be one of"):
        generate(make_model(), [3], cache_dtype=torch.int8)
