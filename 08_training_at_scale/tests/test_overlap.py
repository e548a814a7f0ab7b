"""The simulated pair of chunks takes what the closed form says; nothing starts early; what hides where Fig. 4 says."""

from itertools import pairwise

import numpy as np
import pytest
from expert_parallelism import IB_BYTES_S
from overlap import (
    BlockTimes,
    Piece,
    apart_seconds,
    block_period,
    chunk_times,
    count_block_times,
    duration_of,
    lend_multiprocessors,
    pair_order,
    pair_seconds,
    run_streams,
    scale_sending,
)

EVEN = BlockTimes(3.0, 3.0, 3.0, 5.0, 5.0, 5.0, 2.0, 2.0, 2.0, 2.0)


def test_the_simulated_block_takes_what_the_closed_form_says(rng):
    for _ in range(101):
        times = BlockTimes(*(rng.random(10) ** 2).tolist())
        ends = run_streams(pair_order(11), times)
        blocks = [b - a for a, b in pairwise(ends["ATTN(F)", k][1] for k in range(3, 11))]
        assert blocks == pytest.approx([block_period(times)] * 7)  # V3 Fig. 4


def test_a_pair_that_hides_everything_takes_its_computing_and_no_more():
    assert pair_seconds(7, EVEN) == 7 * EVEN.computing
    assert block_period(EVEN) == EVEN.computing


@pytest.mark.parametrize(
    ("field", "covered", "beside"),
    [
        ("dispatch_f", 10.0, {}),  # MLP(B), MLP(W)
        ("dispatch_b", 6.0, {"dispatch_f": 9.0}),  # the one unit of MLP(W) that DISPATCH(F) leaves, and MLP(F)
        ("combine_f", 6.0, {}),  # ATTN(B), ATTN(W)
        ("combine_b", 4.0, {"combine_f": 5.0}),  # the one unit of ATTN(W) that COMBINE(F) leaves, and ATTN(F)
    ],
)
def test_each_journey_hides_behind_what_fig_4_puts_beside_it(field, covered, beside):
    fits = EVEN._replace(**beside, **{field: covered})
    assert block_period(fits) == EVEN.computing
    assert block_period(fits._replace(**{field: covered + 1.5})) == EVEN.computing + 1.5


def test_nothing_starts_before_what_it_reads_and_no_stream_does_two_things(rng):
    times = BlockTimes(*rng.random(10).tolist())
    streams = pair_order(5)
    done = run_streams(streams, times)
    for stream in streams:
        slots = [done[p.name, p.block] for p in stream]
        assert all(a[1] <= b[0] for a, b in pairwise(slots))
        assert all(done[n][1] <= done[p.name, p.block][0] for p in stream for n in p.waits_for)


def test_every_piece_of_both_chunks_runs_once_in_every_block():
    pieces = [(p.name, p.block) for stream in pair_order(7) for p in stream]
    assert len(pieces) == len(set(pieces)) == 10 * 7
    lengths = [sum(duration_of(p, EVEN) for p in stream) for stream in pair_order(7)]
    assert lengths == [7 * EVEN.computing, 7 * EVEN.sending]
    assert apart_seconds(7, EVEN) == sum(lengths)


def test_the_counted_block_is_that_of_the_model():
    times = count_block_times(tokens=1, flops_s=1.0)
    matrices = times.attention_w * 61 + times.mlp_w * 58
    dense_and_head = 2 * (3 * 3 * 7168 * 18432 + 129280 * 7168)
    assert (matrices + dense_and_head) / 2 == pytest.approx(36.62e9, rel=1e-3)  # parameters that a token meets
    assert times.attention_b - times.attention_w == 2 * (times.attention_f - times.attention_w)
    assert times.dispatch_f * IB_BYTES_S == pytest.approx(3.5 * 7392)
    assert times.combine_f * IB_BYTES_S == pytest.approx(3.5 * 14336)
    assert (times.combine_b, times.dispatch_b) == (times.dispatch_f, times.combine_f)  # out FP8, back BF16


def test_at_one_to_one_nearly_half_of_the_time_is_saved_and_not_all_hides():
    times = scale_sending(count_block_times(), 1.0)
    assert times.sending == pytest.approx(times.computing)
    assert 0.50 * apart_seconds(16, times) < pair_seconds(16, times) < 0.56 * apart_seconds(16, times)
    assert block_period(times) > times.computing


def test_lent_multiprocessors_slow_the_computing_alone():
    lent = lend_multiprocessors(EVEN)
    assert lent.computing == pytest.approx(EVEN.computing * 132 / 112)
    assert lent.sending == EVEN.sending


def test_the_chunks_handed_to_the_pipeline_keep_the_time_of_the_parts():
    times = chunk_times(3, EVEN, overlapped=False)
    assert times.forward + times.backward == times.pair == apart_seconds(3, EVEN)
    assert chunk_times(3, EVEN, overlapped=True).pair == pair_seconds(3, EVEN) < times.pair


def test_streams_that_wait_for_each_other_are_told_and_not_waited_for():
    first, second = Piece("ATTN(F)", 0, (("COMBINE(F)", 0),)), Piece("COMBINE(F)", 0, (("ATTN(F)", 0),))
    with pytest.raises(ValueError, match="wait for each other"):
        run_streams(([first], [second]), EVEN)
    assert np.isfinite(pair_seconds(1, EVEN))
