"""Drafting stops where it does not pay by measured times, is never a loss, and changes no token."""

import random

import pytest
import torch

from deepseek_v3.engine import engine as engine_module
from deepseek_v3.engine.draft_costs import COLD, ENOUGH, StepCosts
from deepseek_v3.engine.engine import Engine
from deepseek_v3.engine.request import EngineOptions, Request
from deepseek_v3.engine.sampler import SamplingRule
from deepseek_v3.engine.sequence import PATIENCE, Sequence
from tests.engine.test_speculative import count_on, make_model

LONG = {"max_position_embeddings": 499}


class Meter:
    """A clock that reading alone drives: so many tokens cost so much, by the main model and by a module."""

    def __init__(self, engine: Engine, main, module) -> None:
        self.now, self.main, self.module, self.read_really = 0.0, main, module, engine.runner.read
        self.at_once = [0]  # tokens that a module read of one sequence
        engine.clock, engine.runner.read = lambda: self.now, self.read

    def read(self, readings, *, depth: int = -1):
        if readings:
            self.now += (self.main if depth < 0 else self.module)(sum(len(r.tokens) for r in readings))
            self.at_once += [len(r.tokens) for r in readings if depth >= 0]
        return self.read_really(readings, depth=depth)


def serve(model, main, module, rows: int = 1, **options) -> tuple[float, list[Sequence]]:
    """Serve so many requests side by side by a clock of ours; return its time and the sequences."""
    engine = Engine(model, EngineOptions(n_blocks=16 * rows, block_size=32, max_rows=rows))
    meter = Meter(engine, main, module)
    request = Request([5], **{"max_new_tokens": 400, "adaptive": True, **options})
    sequences = [engine.admit(request) for _ in range(rows)]
    while engine.sequences:
        engine.step()
    engine.check_integrity()
    return meter.now, sequences


COSTS = {  # of the main model: what it reads at once is nearly free, costs half as much, as much
    "nearly free": lambda n: 4 + 0.1 * n,
    "half": lambda n: 1 + 0.5 * n,
    "linear": lambda n: float(n),
}


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("main", COSTS)
@pytest.mark.parametrize("wrong", [0, 1], ids=["drafts stand", "drafts fall"])
def test_it_is_never_a_loss_and_a_gain_where_there_is_one(rows, main, wrong):
    model, costs = count_on(1, wrong, **LONG), (COSTS[main], lambda n: 0.05 + 0.05 * n)
    plain, _ = serve(model, *costs, rows, drafts=0)
    always, _ = serve(model, *costs, rows, drafts=1, adaptive=False)
    adaptive, sequences = serve(model, *costs, rows, drafts=1)
    assert adaptive < 1.03 * plain
    assert adaptive < 0.05 * plain + always
    assert all(s.text == [(6 + i) % 29 for i in range(400)] for s in sequences)


def test_an_engine_that_begins_slowly_is_no_reason_to_draft():
    def serve_slowly(drafts: int) -> tuple[float, list[int]]:
        engine = Engine(count_on(1, 0, **LONG), EngineOptions(n_blocks=16, block_size=32))
        slow = iter([8.0, 4.0, 3.0, 2.5, 2.0, 1.8, 1.6, 1.4])
        meter = Meter(engine, lambda n: n * next(slow, 1.0), lambda n: 0.6 * n)
        sequence = engine.admit(Request([5], max_new_tokens=400, adaptive=True, drafts=drafts))
        while engine.sequences:
            engine.step()
        return meter.now, sequence.statistics.drafted

    plain, _ = serve_slowly(0)
    adaptive, drafted = serve_slowly(1)
    assert sum(drafted) < 16
    assert adaptive < 1.1 * plain


def test_drafts_are_as_deep_as_each_one_pays_but_every_module_reads_or_none():
    _, (deep,) = serve(count_on(1, 0, **LONG), lambda n: 4 + 0.1 * n, lambda n: 0.05 * n, drafts=3)
    assert deep.statistics.tokens_per_step > 3.5  # one module, from its own output on
    costs = StepCosts()
    costs.now = (1, 0)
    for seconds in [90.0] * COLD + [4.0] * ENOUGH:
        costs.observe(1, 0, seconds)
    for seconds in [6.0] * ENOUGH:
        costs.observe(1, 1, seconds)  # a draft must become text every other time
    for modules, chances, count in (
        (1, [0.9, 0.6, 0.4], 2), (1, [0.9, 0.6, 0.6], 3), (1, [0.5, 0.6, 0.6], 0), (2, [0.9, 0.4, 0.4], 0),
        (2, [0.9, 0.6, 0.4], 2), (3, [0.9, 0.6, 0.4], 0),
    ):  # fmt: skip
        model = make_model(modules, 0)
        sequence = Sequence(0, Request([5], max_new_tokens=40, drafts=3, adaptive=True), model, modules)
        sequence.chances = chances
        assert costs.drafts_of(sequence) == count


def test_when_neighbours_leave_it_drafts_again_and_after_too_long_no_more():
    for waited, again in ((PATIENCE // 2, True), (PATIENCE + 9, False)):
        engine = Engine(count_on(1, 0, **LONG), EngineOptions(n_blocks=128, block_size=32))
        meter = Meter(engine, lambda n: max(4.0, n), lambda n: 0.1 * n)
        first, *others = [engine.admit(Request([5], max_new_tokens=300, drafts=1, adaptive=True)) for _ in range(8)]
        while first.idle < waited and not first.gave_up:
            engine.step()
        assert first.gave_up is not again
        for sequence in others:
            engine.abort(sequence.id)
        before = sum(first.statistics.drafted)
        while engine.sequences:
            engine.step()
        assert (sum(first.statistics.drafted) > before + 50) is again
        assert first.text == [(6 + i) % 29 for i in range(300)]
        assert max(meter.at_once) <= 17


@pytest.mark.parametrize(("depths", "drafts"), [(1, 2), (2, 2), (2, 3)])
@pytest.mark.parametrize("seed", range(3))
def test_by_a_clock_that_lies_the_modules_still_read_what_they_read_in_training(depths, drafts, seed, monkeypatch):
    """Whenever drafting stops and goes on: the drafts are the argmax of model(tokens, mtp=True), the text is plain."""
    model, luck, seen = make_model(depths, seed), random.Random(seed), []
    judge = engine_module.judge_drafts
    monkeypatch.setattr(
        engine_module,
        "judge_drafts",
        lambda logits, drafts, *rest: seen.append(list(drafts)) or judge(logits, drafts, *rest),
    )
    engine = Engine(model, EngineOptions(n_blocks=13, block_size=8))
    monkeypatch.setattr(StepCosts, "break_even", lambda costs: luck.choice([-1.0, -1.0, 2.0]))
    prompt = torch.randint(0, 29, (1 + 5 * seed,), generator=torch.Generator().manual_seed(seed)).tolist()
    sequence = engine.admit(Request(prompt, max_new_tokens=80, drafts=drafts, adaptive=True))
    while engine.sequences:
        engine.step()
        engine.check_integrity()
    plain = engine.admit(Request(prompt, max_new_tokens=80))
    calls = len(seen)
    while engine.sequences:
        engine.step()
    tokens, known = plain.tokens, len(prompt)
    assert sequence.tokens == tokens
    assert sum(map(bool, seen[:calls])) > 9
    assert sum(not made for made in seen[:calls]) > 9
    for made in seen[:calls]:
        with torch.no_grad():
            _, logits = model(torch.tensor([tokens[:known] + made]), mtp=True)
        want = [int(logits[depth][0, known - 2].argmax()) for depth in range(min(len(made), depths))]
        assert made[:depths] == want
        known += 1 + next((j for j, d in enumerate(made) if d != tokens[known + j]), len(made))


def test_a_drawn_request_with_a_seed_does_not_depend_on_the_clock():
    rule = SamplingRule(0.9)
    texts = []
    for main in COSTS.values():
        _, (sequence,) = serve(count_on(1, 1), main, main, max_new_tokens=80, rule=rule, seed=3, drafts=1)
        assert sum(sequence.statistics.drafted) >= sequence.statistics.steps - 1
        texts.append(sequence.text)
    assert texts[0] == texts[1] == texts[2]


def test_the_break_even_acceptance_is_the_time_of_a_draft_in_tokens():
    costs = StepCosts()
    costs.now = (8, 0)
    for seconds in [90.0] * COLD + [4.0] * ENOUGH:
        costs.observe(8, 0, seconds)
    for _ in range(ENOUGH):
        costs.observe(8, 8, 6.0)  # a draft costs 1/4 s, in which 1/2 token would have come
    costs.observe(7, 7, 600.0)  # another kind of step
    assert costs.break_even() == 0.5
