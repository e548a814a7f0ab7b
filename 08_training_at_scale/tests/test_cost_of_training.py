"""Counts are the released ones, Table 1 adds up, calibration gives back what went in, and predictions say how wrong."""

import pytest
from cost_of_training import (
    GPUS,
    HOURS_PER_TRILLION,
    PEAK_FLOPS_S,
    SEQUENCES,
    TABLE_1,
    TOKENS,
    ModelSizes,
    StepParts,
    active_parameters,
    calibrate_chunks,
    count_tasks,
    dollars,
    flops_per_token,
    gpu_hours,
    mtp_flops_per_token,
    predict_extension,
    predict_step,
    rate_from_hours,
    score_flops,
    total_parameters,
)
from pipeline_schedules import BACKWARD, FORWARD, INPUTS, PAIR, WEIGHTS, Times

V3 = ModelSizes()


def test_the_counted_weights_are_those_of_the_released_checkpoint():
    assert sum(active_parameters(V3).values()) == 36_625_618_432  # 37,552,297,472 with the embedding
    assert total_parameters(V3) == 671_026_419_200


def test_a_token_costs_what_the_report_and_its_successor_say():
    assert flops_per_token(V3, 4096) == pytest.approx(250.5e9, abs=0.05e9)
    assert flops_per_token(V3, 4096, causal=False) == pytest.approx(281.2e9, abs=0.05e9)
    assert mtp_flops_per_token(V3, 4096) == pytest.approx(10.2e9, abs=0.05e9)


def test_scores_grow_with_the_context_and_weights_do_not():
    without = flops_per_token(V3, 0)
    assert without == 6 * sum(active_parameters(V3).values())
    assert flops_per_token(V3, 7000) - without == 3 * score_flops(V3, 7000) == 7 * 3 * score_flops(V3, 1000)
    assert score_flops(V3, 13, causal=False) == 2 * score_flops(V3, 13)


def test_the_scores_of_a_causal_mask_are_half_of_all_pairs():
    """Row t sees t keys; a product is two operations; K + R for a score, U for its part of the mean."""
    s, T = ModelSizes(H=3, K=5, R=2, U=7, L=11), 101
    exact = sum(2 * t * s.H * (s.K + s.R + s.U) for t in range(1, T + 1)) / T * s.L
    assert score_flops(s, T) == pytest.approx(exact, rel=1.01 / T)  # the diagonal is left out: T / 2 for (T + 1) / 2


def test_table_1_adds_up():
    assert sum(TABLE_1.values()) == 2788e3  # V3 Table 1
    assert dollars(sum(TABLE_1.values())) == 5.576e6
    assert [dollars(hours) for hours in TABLE_1.values()] == [5.328e6, 0.238e6, 0.010e6]
    assert pytest.approx(TABLE_1["pre-training"]) == HOURS_PER_TRILLION * TOKENS / 1e12
    assert pytest.approx(3.7, abs=0.05) == HOURS_PER_TRILLION / GPUS / 24  # days a trillion tokens


def test_calibration_gives_back_what_went_in_and_agrees_with_the_other_publication():
    flops = flops_per_token(V3, 4096)
    rate = rate_from_hours(flops * 1e12, HOURS_PER_TRILLION)
    assert gpu_hours(flops * 1e12, rate) == pytest.approx(HOURS_PER_TRILLION)
    assert rate / PEAK_FLOPS_S == pytest.approx(0.3894, abs=0.002)  # arXiv:2505.09343
    assert SEQUENCES * 4096 * flops / rate / GPUS == pytest.approx(StepParts().step, rel=2e-3)


def test_calibrated_chunks_fill_the_published_seconds():
    times, n, parts = calibrate_chunks(StepParts(), 16, 120), count_tasks(16, 120), StepParts()
    assert n[FORWARD] * times.forward == pytest.approx(parts.forward)
    assert n[WEIGHTS] * times.weights == pytest.approx(parts.weights)
    inputs = times.backward - times.weights
    assert n[BACKWARD] * times.backward + n[INPUTS] * inputs == pytest.approx(parts.backward)
    assert n[PAIR] * times.pair == pytest.approx(parts.pair)
    assert times.pair < times.forward + times.backward  # the pair hides something
    assert n[FORWARD] + n[PAIR] == 120  # half of 120 from each end, two stages a rank


def test_the_predicted_step_is_the_work_and_the_bubble_and_short_of_the_measured_one():
    times = calibrate_chunks(StepParts(), 16, 120)
    seconds, bubble = predict_step(times, 16, 120, 0.29)
    assert seconds == pytest.approx(sum(StepParts()[:4]) + bubble + 0.29)
    assert bubble < 0.5 * StepParts().bubble  # what is measured holds imbalance too, which is not simulated
    assert 0.92 < seconds / StepParts().step < 0.95


def test_with_even_times_the_predicted_bubble_is_that_of_table_2():
    assert predict_step(Times(), 8, 20, 0.0)[1] == 3 * (3 + 2 - 3)


def test_the_extension_is_predicted_from_the_rate_and_falls_short_of_table_1():
    rate = rate_from_hours(flops_per_token(V3, 4096) * 1e12, HOURS_PER_TRILLION)
    assert 0.6 < predict_extension(V3, rate) / TABLE_1["context extension"] < 0.66
