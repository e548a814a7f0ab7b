"""Experts on many ranks give what one machine gives; every copy travels once; the bytes are those of the report."""

import numpy as np
import pytest
from expert_parallelism import (
    Cluster,
    Experts,
    bf16_token_bytes,
    choose_within_nodes,
    combine,
    count_traffic,
    dispatch,
    expected_crossings,
    expert_parallel_forward,
    fp8_token_bytes,
    free_experts_per_node,
    one_machine_forward,
    plan_route,
    round_to_bf16,
    round_to_fp8,
)

SMALL = Cluster(n_nodes=3, gpus_per_node=2, n_experts=30)
COUNTS = [5, 0, 7, 1, 3, 2]  # ranks have different numbers of tokens, one has none
D, F, A = 11, 13, 7


def make_batch(rng, cluster=SMALL, counts=COUNTS, width=D, n_kept=2):
    x = [rng.normal(size=(n, width)) for n in counts]
    chosen = [choose_within_nodes(rng.normal(size=(n, cluster.n_experts)), cluster, A, n_kept) for n in counts]
    gate = [rng.random((n, A)) for n in counts]
    shape = {"gate_EFD": (F, width), "up_EFD": (F, width), "down_EDF": (width, F)}
    experts = Experts(**{name: rng.normal(size=(cluster.n_experts, *s)) for name, s in shape.items()})
    return x, chosen, gate, experts


def test_many_ranks_compute_what_one_machine_computes(rng):
    x, chosen, gate, experts = make_batch(rng)
    y, _ = expert_parallel_forward(x, chosen, gate, experts, SMALL)
    assert [len(rank) for rank in y] == COUNTS
    want = one_machine_forward(np.concatenate(x), np.concatenate(chosen), np.concatenate(gate), experts)
    np.testing.assert_allclose(np.concatenate(y), want, rtol=1e-12, atol=1e-10)  # sums in another order


def test_a_token_crosses_once_for_each_node_and_arrives_once_at_each_rank_it_needs(rng):
    _, chosen, _, _ = make_batch(rng)
    route = plan_route(chosen, SMALL)
    for source, chosen_NA in enumerate(chosen):
        for token, experts in enumerate(chosen_NA):
            rows = np.flatnonzero((route.cross[:, :2] == (source, token)).all(axis=1))
            targets = route.copy[np.isin(route.copy[:, 0], rows), 1]
            assert sorted(targets) == sorted(set(experts // 5))
            assert sorted(route.cross[rows, 2] // 2) == sorted(set(experts // 10))
    assert (route.cross[:, 2] % 2 == route.cross[:, 0] % 2).all()  # to the GPU of the same number
    assert (route.cross[route.copy[:, 0], 2] // 2 == route.copy[:, 1] // 2).all()  # and on inside the node


def test_dispatch_and_combine_are_transposes_of_each_other(rng):
    x, chosen, _, _ = make_batch(rng)
    route = plan_route(chosen, SMALL)
    copy_XD = dispatch(x, route)
    y_XD = rng.normal(size=copy_XD.shape)
    back = combine(y_XD, route, COUNTS)
    there = (copy_XD * y_XD).sum()
    assert there == pytest.approx(sum((a * b).sum() for a, b in zip(x, back)), rel=1e-12)


def test_what_is_sent_out_comes_back_along_the_same_links(rng):
    _, chosen, _, _ = make_batch(rng)
    traffic = count_traffic(plan_route(chosen, SMALL), SMALL, 1, 1)
    assert traffic.ib_out.sum() == traffic.ib_back.sum() > 0
    assert traffic.nvlink_out.sum() == traffic.nvlink_back.sum() > 0


def test_no_token_is_chosen_beyond_its_nodes_and_the_limit_of_all_nodes_is_none(rng):
    score = rng.normal(size=(201, 30))
    limited = choose_within_nodes(score, SMALL, 5, 2)
    assert max(len(set(row // 10)) for row in limited) == 2
    np.testing.assert_array_equal(choose_within_nodes(score, SMALL, 5, 3), np.argsort(-score, axis=1)[:, :5])
    with pytest.raises(ValueError, match="keep more nodes"):
        choose_within_nodes(score, SMALL, 11, 1)


def test_the_best_node_is_the_one_with_the_best_pair_not_with_the_best_single_one():
    score = np.full((1, 30), -9.0)
    score[0, [3, 12, 13]] = 5.0, 4.0, 4.0
    assert sorted(choose_within_nodes(score, SMALL, 2, 1)[0]) == [12, 13]


@pytest.mark.parametrize(("kept", "want"), [(None, 4.63), (4, 3.5)])
def test_crossings_counted_are_those_expected(kept, want, rng):
    cluster = Cluster(gpus_per_node=1)
    assert expected_crossings(cluster, 8, kept) == pytest.approx(want, abs=0.005)
    chosen = [choose_within_nodes(rng.normal(size=(200, 256)), cluster, 8, kept or 8) for _ in range(8)]
    counted = count_traffic(plan_route(chosen, cluster), cluster, 1, 1).ib_out.sum() / 1600
    assert counted == pytest.approx(want, rel=0.02)  # 1,600 tokens; the spread of the mean is under 0.02
    assert counted <= 4 or kept is None


def test_the_bytes_and_the_free_experts_are_those_of_the_report():
    assert (fp8_token_bytes(7168), bf16_token_bytes(7168)) == (7392, 14336)
    assert fp8_token_bytes(130) == 138  # the short tile has a scale as well
    assert free_experts_per_node() == 3.2
    assert round(4 * free_experts_per_node()) == 13


def test_fp8_values_are_those_of_ml_dtypes(rng):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = rng.normal(size=(7, 128)) * 10.0 ** rng.integers(-6, 3, (7, 1)) * 10.0 ** rng.integers(-4, 1, (7, 128))
    scale = 2.0 ** np.ceil(np.log2(np.abs(x).max(axis=1, keepdims=True) / 448))
    want = (x / scale).astype(ml_dtypes.float8_e4m3fn).astype(float) * scale
    np.testing.assert_array_equal(round_to_fp8(x), want)
    np.testing.assert_array_equal(round_to_bf16(x), x.astype(ml_dtypes.bfloat16).astype(float))


def test_eight_bits_on_the_way_back_add_to_the_error_of_the_way_there(rng):
    x, chosen, gate, experts = make_batch(rng, width=128)
    exact = np.concatenate(expert_parallel_forward(x, chosen, gate, experts, SMALL)[0])
    error = []
    for back in (round_to_bf16, round_to_fp8):
        y, _ = expert_parallel_forward(x, chosen, gate, experts, SMALL, round_to_fp8, back)
        error.append(np.linalg.norm(np.concatenate(y) - exact) / np.linalg.norm(exact))
    assert error[0] < 0.05  # 3 bits behind the leading one, 2^-4 at worst
    assert error[1] > 1.15 * error[0]


def test_lists_that_do_not_fit_the_ranks_are_refused(rng):
    with pytest.raises(ValueError, match="do not fit 6 ranks"):
        plan_route([np.zeros((1, 2), int)] * 5, SMALL)
    with pytest.raises(ValueError, match="31 experts do not fit"):
        plan_route([np.zeros((1, 2), int)] * 6, SMALL._replace(n_experts=31))
