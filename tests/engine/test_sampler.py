"""Temperature, top-k, top-p and min-p do what they say, in that order."""

import itertools
import math

import pytest
import torch

from deepseek_v3.engine.sampler import SamplingRule, draw_token, make_generator

LOGITS = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64).log()


def test_temperature_is_an_exponent_of_the_probabilities():
    want = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64) ** (1 / 0.7)
    assert torch.allclose(SamplingRule(0.7).probabilities(LOGITS), want / want.sum())
    assert torch.allclose(SamplingRule(1.0).probabilities(LOGITS), LOGITS.exp())


def test_zero_temperature_is_the_likeliest_token_and_a_tiny_one_tends_to_it():
    for temperature in (0.0, 1e-30):
        assert SamplingRule(temperature).probabilities(LOGITS.float()).tolist() == [1, 0, 0, 0]


def test_top_k_keeps_exactly_k_also_among_equals():
    assert torch.allclose(SamplingRule(1.0, top_k=2).probabilities(LOGITS), torch.tensor([5, 3, 0, 0]).double() / 8)
    assert int((SamplingRule(1.0, top_k=3).probabilities(torch.zeros(7)) > 0).sum()) == 3
    assert torch.allclose(SamplingRule(1.0, top_k=99).probabilities(LOGITS), LOGITS.exp())


@pytest.mark.parametrize(
    ("top_p", "kept"), [(1e-9, 1), (0.49, 1), (0.51, 2), (0.79, 2), (0.81, 3), (0.96, 4), (1.0, 4)]
)
def test_top_p_keeps_the_fewest_tokens_that_reach_it(top_p, kept):
    probability = SamplingRule(1.0, top_p=top_p).probabilities(LOGITS)
    assert int((probability > 0).sum()) == kept
    assert probability.sum() == pytest.approx(1)


def test_top_p_counts_what_top_k_left():
    # of [.5 .3 .15 .05], top-3 leaves [.526 .316 .158]: 0.8 needs two of them, while 0.81 of all four would need three
    assert int((SamplingRule(1.0, top_k=3, top_p=0.81).probabilities(LOGITS) > 0).sum()) == 2


def test_the_chain_of_rules_is_that_of_transformers_warpers():
    warpers = pytest.importorskip("transformers.generation.logits_process")
    generator = torch.Generator().manual_seed(3)
    for temperature, top_k, top_p, min_p in itertools.product((0.7, 1.6), (0, 3, 9), (0.6, 1.0), (0.0, 0.05, 0.4)):
        logits_SV = torch.randn(5, 13, generator=generator) * 2
        want_SV = warpers.TemperatureLogitsWarper(temperature)(None, logits_SV)
        want_SV = warpers.TopKLogitsWarper(top_k)(None, want_SV) if top_k else want_SV
        want_SV = warpers.TopPLogitsWarper(top_p)(None, want_SV)
        want_SV = warpers.MinPLogitsWarper(min_p)(None, want_SV)
        ours_SV = SamplingRule(temperature, top_k, top_p, min_p).probabilities(logits_SV)
        torch.testing.assert_close(ours_SV, want_SV.softmax(-1))


def test_min_p_keeps_what_is_near_the_likeliest():
    for min_p, kept in ((0.0, 4), (0.11, 3), (0.5, 2), (1.0, 1)):  # of [.5 .3 .15 .05]
        assert int((SamplingRule(1.0, min_p=min_p).probabilities(LOGITS) > 0).sum()) == kept


def test_rows_are_independent_and_order_is_kept():
    rows = torch.stack((LOGITS, LOGITS.flip(0)))
    both = SamplingRule(0.9, top_k=3, top_p=0.9).probabilities(rows)
    assert torch.allclose(both[0], both[1].flip(0))


def test_bfloat16_logits_give_float32_probabilities():
    assert SamplingRule(1.0, top_p=0.9).probabilities(LOGITS.bfloat16()).dtype == torch.float32


def test_the_same_seed_draws_the_same():
    draws = [
        [draw_token(LOGITS.exp(), g) for _ in range(50)]
        for g in (make_generator(3), make_generator(3), make_generator(4))
    ]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize("wrong", [{"temperature": -0.1}, {"temperature": math.nan}, {"temperature": math.inf},
                                   {"top_k": -1}, {"min_p": -0.1}, {"min_p": 1.1}, {"min_p": math.nan},
                                   {"top_p": 0.0}, {"top_p": 1.1}, {"top_p": math.nan}])  # fmt: skip
def test_a_rule_that_cannot_work_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SamplingRule(**wrong)


@pytest.mark.parametrize(
    "rule", [{"temperature": 1e-46}, {"temperature": 1.0, "top_p": 1e-46}, {"temperature": 1e-46, "top_p": 1e-46}]
)
def test_the_smallest_temperature_and_share_take_the_likeliest_token(rule):
    probability = SamplingRule(**rule, top_k=10**20).probabilities(torch.tensor([[1.0, 7.0, 3.0]]))
    assert probability.tolist() == [[0, 1, 0]]
