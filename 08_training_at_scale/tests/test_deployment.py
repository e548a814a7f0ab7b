"""Copies and packing: nothing is lost, greedy copies are best, groups stay in their node, the numbers are published."""

from itertools import product

import numpy as np
import pytest
from deployment import (
    DECODE,
    DECODE_2025,
    PREFILL,
    copy_experts,
    exchange_seconds,
    expert_bytes,
    gpu_loads,
    imbalance,
    load_with_shared,
    nodes_reached,
    pack_evenly,
    place_by_groups,
    place_experts,
    place_globally,
    serving_day,
    token_seconds,
)
from expert_parallelism import Cluster, choose_within_nodes


def test_no_other_numbers_of_copies_have_a_smaller_largest_share(rng):
    for _ in range(7):
        load, slots = rng.lognormal(sigma=1.0, size=5), 11
        greedy = copy_experts(load, slots)
        assert (greedy.sum(), greedy.min() >= 1) == (slots, True)
        all_copies = (c for c in product(range(1, 8), repeat=5) if sum(c) == slots)
        assert (load / greedy).max() == min((load / np.array(c)).max() for c in all_copies)


def test_copies_go_where_a_copy_is_loaded_most_not_where_the_expert_is():
    assert copy_experts(np.array([9.0, 4.0, 1.0, 2.0]), 7).tolist() == [3, 2, 1, 1]
    with pytest.raises(ValueError, match="every expert needs one"):
        copy_experts(np.ones(5), 4)


def test_packs_hold_equally_many_items_and_every_item_once(rng):
    packs = pack_evenly(rng.random(35), 5)
    assert [len(pack) for pack in packs] == [7] * 5
    assert sorted(item for pack in packs for item in pack) == list(range(35))
    with pytest.raises(ValueError, match="do not divide over 4 packs"):
        pack_evenly(np.ones(7), 4)


def test_the_heaviest_comes_first_and_goes_where_there_is_least():
    assert pack_evenly(np.array([1.0, 8.0, 2.0, 7.0]), 2) == [[1, 0], [3, 2]]


@pytest.mark.parametrize("place", [place_globally, lambda *a: place_by_groups(*a, 8, 4)])
def test_every_expert_has_a_slot_and_no_load_is_lost(place, rng):
    load = rng.lognormal(size=256)
    placement = place(load, PREFILL.slots, PREFILL.gpus)
    assert {len(gpu) for gpu in placement} == {9}  # V3 3.4.1: 8 and a redundant one
    assert {e for gpu in placement for e in gpu} == set(range(256))
    assert gpu_loads(placement, load).sum() == pytest.approx(load.sum())


def test_the_experts_of_a_group_stay_in_one_node(rng):
    placement = place_by_groups(rng.lognormal(size=256), 288, 32, 8, 4)
    homes = [{gpu // 8 for gpu, slots in enumerate(placement) for e in slots if e // 32 == g} for g in range(8)]
    assert [len(h) for h in homes] == [1] * 8
    assert sorted(h.pop() for h in homes) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_groups_decide_only_if_they_divide_over_the_nodes(rng):
    load = rng.lognormal(size=256)
    assert place_experts(load, 288, 32, 8, 4) == place_by_groups(load, 288, 32, 8, 4)
    assert place_experts(load, 288, 144, 8, 18) == place_globally(load, 288, 144)


def test_the_example_that_deepseek_published_comes_out():
    """Two layers of 12 experts in 4 groups, 16 slots on 2 nodes of 4 GPUs: the readme of deepseek-ai/EPLB."""
    loads = [
        [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
        [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
    ]
    want = [[5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1], [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1]]
    for load, slots in zip(loads, want):
        placement = place_experts(np.array(load, float), 16, 8, 4, 2)
        assert [e for gpu in placement for e in gpu] == slots


def test_copies_and_packing_even_out_the_load(rng):
    load = rng.lognormal(sigma=0.6, size=256)
    in_order = imbalance(gpu_loads([list(range(8 * g, 8 * g + 8)) for g in range(32)], load))
    packed, copied = (imbalance(gpu_loads(place_globally(load, n, 32), load)) for n in (256, 288))
    assert 1 <= copied < packed < in_order
    assert copied < 1.02


def test_tokens_reach_fewer_nodes_if_groups_stay_together(rng):
    load = rng.lognormal(sigma=0.6, size=256)
    chosen = choose_within_nodes(rng.normal(size=(301, 256)), Cluster(), 8, 4)
    grouped, spread = place_by_groups(load, 288, 32, 8, 4), place_globally(load, 288, 32)
    # 4 of 8 groups, two a node: 4 (1 - C(6, 4) / C(8, 4)) = 3.14 nodes if all four groups are used; anywhere: 3.60
    assert nodes_reached(chosen, grouped, 4, rng) == pytest.approx(3.14, rel=0.03)
    assert nodes_reached(chosen, spread, 4, rng) == pytest.approx(4 * (1 - 0.75**8), rel=0.03)


def test_under_even_load_the_shared_expert_takes_half_of_the_slots_that_are_left():
    copies = copy_experts(load_with_shared(np.ones(256), 8), DECODE.slots)
    assert copies[-1] == 32  # its load is that of 32 routed experts
    assert DECODE.slots - 256 - copies[-1] == 32  # what deepseek-ai/open-infra-index says of the unit of 2025


def test_the_units_add_up():
    for unit in (PREFILL, DECODE, DECODE_2025):
        assert unit.nodes * 8 == unit.gpus == unit.attention_tensor_parallel * unit.attention_data_parallel
        assert unit.slots % unit.gpus == 0
    assert [unit.slots // unit.gpus for unit in (PREFILL, DECODE, DECODE_2025)] == [9, 1, 2]


def test_the_published_bounds_and_the_published_day():
    assert exchange_seconds() == pytest.approx(120.96e-6)
    assert token_seconds() == pytest.approx(14.76e-3, abs=0.005e-3)
    assert int(1 / token_seconds()) == 67
    assert token_seconds(bytes_s=900e9) == pytest.approx(0.82e-3, abs=0.005e-3)
    rent, income = serving_day()
    assert rent == 87_072
    assert income == pytest.approx(562_027, rel=1e-3)  # the published tokens are rounded
    assert income / rent - 1 == pytest.approx(5.45, abs=0.01)
    assert expert_bytes(256) == pytest.approx(654e9, rel=0.001)  # nearly all of 671 B
