"""The report's schedules, at the report's proportions and at their edges."""

import random

import pytest
import torch

from deepseek_v3.training.optimizer import AveragedWeights, build_optimizer
from deepseek_v3.training.options import TrainOptions
from deepseek_v3.training.schedule import learning_rate, move_end, rows_at, settings_at

REPORT = TrainOptions(
    steps=14800, lr=2.2e-4, warmup_steps=20, batch_size=15360, batch_size_start=3072, micro_batch=8, bias_speed=1e-3
)


def test_the_rate_of_the_report_is_met_at_its_milestones():
    assert learning_rate(0, REPORT) == pytest.approx(2.2e-4 / 20)
    assert learning_rate(20, REPORT) == learning_rate(9999, REPORT) == 2.2e-4
    assert learning_rate(12150, REPORT) == pytest.approx((2.2e-4 + 2.2e-5) / 2)  # half-way down the cosine
    assert learning_rate(14299, REPORT) == pytest.approx(2.2e-5, rel=1e-4)
    assert learning_rate(14500, REPORT) == pytest.approx(2.2e-5)
    assert learning_rate(14700, REPORT) == pytest.approx(7.3e-6)


def test_the_rate_never_rises_after_the_warm_up_and_never_reaches_zero():
    rates = [learning_rate(step, REPORT) for step in range(REPORT.steps)]
    assert rates[:20] == sorted(rates[:20])
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert min(rates) > 0


def test_the_batch_grows_to_its_size_over_the_first_469_of_14800_billion_tokens():
    rows = [rows_at(step, REPORT) for step in range(600)]
    assert rows[0] == 3072
    assert rows == sorted(rows)
    assert rows[468] < 15360 == rows[469]
    assert rows_at(0, TrainOptions(batch_size=7)) == 7


def test_lambda_and_gamma_step_down_where_the_report_says():
    assert [settings_at(s, REPORT).mtp_weight for s in (0, 9999, 10000, 14799)] == [0.3, 0.3, 0.1, 0.1]
    assert [settings_at(s, REPORT).bias_speed for s in (0, 14299, 14300, 14799)] == [1e-3, 1e-3, 0.0, 0.0]


def test_a_moved_end_never_raises_the_rate_and_the_schedule_still_comes_to_its_end():
    rng, earlier, later = random.Random(3), 0, 0
    for _ in range(50):
        options, step, rates = REPORT.replace(steps=300), 0, []
        while step < options.steps:
            rates.append(learning_rate(step, options))
            step += 1
            wish = options.steps + rng.randint(-5, 5)
            moved = move_end(step, wish, options)
            assert moved.steps == max(step, wish) or (wish > options.steps == moved.steps)
            earlier, later = earlier + (moved.steps < options.steps), later + (moved.steps > options.steps)
            options = moved
        assert rates[20:] == sorted(rates[20:], reverse=True)
        assert rates[-1] <= 2.3e-5  # a tenth of the peak, where the cosine ends
    assert min(earlier, later) > 1000


def test_matrices_decay_and_gains_do_not(tiny_model):

    model = tiny_model()
    optimizer = build_optimizer(model, TrainOptions())
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(decays) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        assert decays[id(parameter)] == (0.0 if "norm" in name else 0.1), name
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.95)}


def test_averaged_weights_are_lent_and_given_back():
    model = torch.nn.Linear(3, 2, bias=False)
    averaged = AveragedWeights(model, 0.75)
    start = model.weight.detach().clone()
    with torch.no_grad():
        model.weight += 1
    averaged.update(model)
    with averaged.applied_to(model):
        assert torch.allclose(model.weight, start + 0.25)
    assert torch.allclose(model.weight, start + 1)
