"""What the engine writes, the trainer finds as likely: log-probabilities, choices of experts, drafts."""

import pytest
import torch

from deepseek_v3.engine.engine import Engine
from deepseek_v3.engine.request import EngineOptions, Request
from deepseek_v3.engine.sampler import SamplingRule
from deepseek_v3.model.choices import routed_layers
from deepseek_v3.model.router import RoutingRecord
from deepseek_v3.post_training.policy import (
    measure_mismatch,
    real_rows,
    replay_record,
    score_in_pieces,
    score_written,
    stack_answers,
)
from deepseek_v3.post_training.rollout import Writer, run_rollouts

STOPS = (7, 11, 13)
PROMPTS = [[0, 6, 50, 51, 9], [0, 6, 77, 9], [0, 6, 60, 61, 62, 63, 64, 65, 66, 67, 68, 69, 70, 71, 72, 73, 74, 9]]


def write(model, *, drafts=0, group=7, temperature=1.0, seed=5, **more):
    writer = Writer(model, stop_tokens=STOPS, max_new_tokens=9, choices=True, drafts=drafts, **more)
    return writer.write(PROMPTS, group, temperature=temperature, seed=seed)


@pytest.mark.parametrize("drafts", [0, 1, 3])
def test_the_trainer_finds_what_was_written_as_likely_as_the_engine(form, model, drafts):
    """FP32 sums in another order: 1e-5. The stop token counts; without replay too, experts do not differ here."""
    rollouts = write(model, drafts=drafts)
    assert len(rollouts) == 21
    assert any(r.ended for r in rollouts)
    assert all((r.tokens[-1] in STOPS) == r.ended for r in rollouts)
    assert {len(r.tokens) for r in rollouts} != {9}
    batch = stack_answers(rollouts, torch.zeros(21), pad=2)
    for replay in (True, False):
        found = score_in_pieces(model, batch, 8, 1.0, replay=replay)
        assert (found - batch.sampler).abs().max() < 1e-5


def test_at_another_temperature_it_is_the_distribution_that_was_drawn_from(model):
    batch = stack_answers(write(model, temperature=0.6), torch.zeros(21), pad=2)
    assert (score_in_pieces(model, batch, 8, 0.6, replay=True) - batch.sampler).abs().max() < 1e-5
    assert (score_in_pieces(model, batch, 8, 1.0, replay=True) - batch.sampler).abs().max() > 1e-2


@pytest.mark.parametrize("drafts", [0, 2])
def test_the_recorded_experts_are_those_of_the_model(form, model, drafts):
    for rollout in write(model, drafts=drafts, group=3):
        tokens = torch.tensor([[*rollout.prompt, *rollout.tokens[:-1]]])
        record = RoutingRecord()
        with torch.no_grad():
            model.hidden_states(tokens, record=record)
        for i, layer in enumerate(routed_layers(model.config)):
            wanted = record.choices[layer].sort(-1).values
            assert torch.equal(rollout.choices[:, i].long().sort(-1).values, wanted)


def test_a_shared_beginning_and_a_preemption_keep_their_choices(model):
    """Few blocks, one prompt: the second sequence reads nothing of it, and some lose their blocks on the way."""
    options = EngineOptions(n_blocks=9, block_size=4, max_rows=4, step_tokens=16, record_choices=True, modules=0)
    engine = Engine(model, options)
    prompt = PROMPTS[2]
    rule = SamplingRule(temperature=1.0)
    first = run_rollouts(engine, [prompt], 1, rule=rule, max_new_tokens=5, stop_tokens=(), seed=1)
    more = run_rollouts(engine, [prompt], 4, rule=rule, max_new_tokens=9, stop_tokens=(), seed=2)
    assert engine.scheduler.preemptions > 0
    batch = stack_answers([*first, *more], torch.zeros(5), pad=2)
    assert (score_in_pieces(model, batch, 5, 1.0, replay=True) - batch.sampler).abs().max() < 1e-5
    assert measure_mismatch(model, batch, 5)["rerouted_tokens"] == 0


def test_the_weights_that_have_moved_are_those_that_write(model):
    writer = Writer(model, stop_tokens=STOPS, max_new_tokens=9)
    before = writer.write(PROMPTS, 2, temperature=1.0, seed=3)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.2)
    after = writer.write(PROMPTS, 2, temperature=1.0, seed=3)
    assert [r.tokens for r in before] != [r.tokens for r in after]
    batch = stack_answers(after, torch.zeros(6), pad=2)
    assert (score_in_pieces(model, batch, 6, 1.0, replay=False) - batch.sampler).abs().max() < 1e-5


def test_the_same_seed_writes_the_same(model):
    one, again, other = (write(model, seed=seed) for seed in (4, 4, 5))
    assert [r.tokens for r in one] == [r.tokens for r in again]
    assert [r.tokens for r in one] != [r.tokens for r in other]


def test_padding_and_prompts_are_not_written(model):
    rollouts = write(model)
    batch = stack_answers(rollouts, torch.zeros(21), pad=2)
    for b, rollout in enumerate(rollouts):
        assert batch.tokens[b, 1:][batch.written[b]].tolist() == rollout.tokens
        assert int(real_rows(batch)[b].sum()) == len(rollout.prompt) + len(rollout.tokens) - 1


@pytest.mark.parametrize("number_format", ["bf16", "fp8"])
def test_a_sampler_in_another_format_writes_and_its_choices_can_be_replayed(model, number_format):
    batch = stack_answers(write(model, number_format=number_format, group=20), torch.zeros(60), pad=2)
    found = measure_mismatch(model, batch, 30)
    assert 0 < found["gap_replayed"] < 0.5
    assert found["gap_replayed"] <= found["gap_own"]
    assert 0 <= found["rerouted"] <= found["rerouted_tokens"] < 0.6


def test_the_router_learns_from_a_replayed_choice_and_its_gates_are_todays(model):
    """Two models with the same choices: the gates follow each one's own router, and have a gradient."""
    batch = stack_answers(write(model, group=2), torch.zeros(6), pad=2)
    with torch.no_grad():
        for layer in model.layers[1:]:
            layer.mlp.gate.weight.mul_(1.7)
    record = replay_record(model, batch, replay=True, record=RoutingRecord())
    logp, _ = score_written(model, batch, record, 1.0)
    assert (logp - batch.sampler).abs().max() > 1e-4
    real_N = real_rows(batch).flatten()
    for i, layer in enumerate(routed_layers(model.config)):
        assert torch.equal(record.choices[layer][real_N], batch.choices[:, :, i].flatten(0, 1).long()[real_N])
    logp.sum().backward()
    assert all(layer.mlp.gate.weight.grad.abs().max() > 0 for layer in model.layers[1:])


def test_a_greedy_request_is_traced_by_the_models_own_distribution(model):
    engine = Engine(model, EngineOptions(n_blocks=4, block_size=8))
    sequence = engine.admit(Request(PROMPTS[0], max_new_tokens=5, trace=True))
    while engine.sequences:
        engine.step()
    assert sequence.trace.tokens == sequence.text
    with torch.no_grad():
        logp = model(torch.tensor([sequence.tokens[:-1]])).log_softmax(-1)[0, len(PROMPTS[0]) - 1 :]
    assert torch.allclose(torch.tensor(sequence.trace.logprobs), logp.max(-1).values, atol=1e-5)
    assert sequence.trace.choices is None


@pytest.mark.slow
@pytest.mark.parametrize("drafts", [1, 3])
def test_drafting_does_not_change_what_is_written(build_model, drafts):
    """Chi-squared over the first two tokens of 12,000 rollouts with and without drafts, small vocabulary."""
    model = build_model(vocab_size=17, initializer_range=0.3)
    counts = {}
    for made in (0, drafts):
        writer = Writer(model, stop_tokens=(), max_new_tokens=4, drafts=made)
        rollouts = writer.write([[3, 5, 8]], 12_000, temperature=1.0, seed=11 + made)
        pairs = torch.tensor([r.tokens[2:4] for r in rollouts])
        counts[made] = torch.bincount(pairs[:, 0] * 17 + pairs[:, 1], minlength=289).double()
    a, b = counts[0], counts[drafts]
    often = a + b >= 10
    rest = torch.stack([a[~often].sum(), b[~often].sum()])
    a, b = torch.cat([a[often], rest[:1]]), torch.cat([b[often], rest[1:]])
    chi = float(((a - b) ** 2 / (a + b).clamp(min=1)).sum())
    free = len(a) - 1
    assert chi < free + 4 * (2 * free) ** 0.5
