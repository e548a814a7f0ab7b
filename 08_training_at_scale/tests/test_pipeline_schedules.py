"""Simulated bubbles equal the closed forms, everything runs exactly once, memory is what Table 2 says."""

from collections import Counter
from itertools import pairwise

import pytest
from pipeline_schedules import (
    BACKWARD,
    FORWARD,
    INPUTS,
    PAIR,
    SCHEDULES,
    WEIGHTS,
    Task,
    Times,
    bubble_formula,
    draw_text,
    dualpipe_order,
    dualpipe_v_order,
    gives,
    measure_bubbles,
    measure_memory,
    needs,
    one_f_one_b_order,
    run_schedule,
)

EVEN = Times(forward=3, backward=5, weights=2, pair=8)  # F = O = 3: what Table 2's form for DualPipe takes for granted


@pytest.mark.parametrize("P", [2, 4, 6, 10])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_simulated_bubble_is_the_closed_form_on_every_rank(name, P):
    for times in (Times(), EVEN):
        slots = run_schedule(SCHEDULES[name](P, 2 * P + 4), P, times)
        assert measure_bubbles(slots) == [bubble_formula(name, P, times)] * len(slots)  # V3 Table 2


@pytest.mark.parametrize("name", ["GPipe", "1F1B", "ZB1P"])
@pytest.mark.parametrize("times", [Times(3, 5, 1, 8), Times(1.5, 4, 1, 5), Times(2, 6, 2, 8)])
def test_without_pairs_the_closed_form_holds_for_uneven_times_too(name, times):
    slots = run_schedule(SCHEDULES[name](5, 13), 5, times)
    assert measure_bubbles(slots) == pytest.approx([bubble_formula(name, 5, times)] * 5)


@pytest.mark.parametrize("name", ["DualPipe", "DualPipeV"])
def test_a_forward_that_is_shorter_than_the_backward_of_inputs_waits_less_than_table_2_says(name):
    times = Times(forward=3, backward=5, weights=1, pair=8)  # O - F = 1
    slots = run_schedule(SCHEDULES[name](8, 24), 8, times)
    assert measure_bubbles(slots) == [bubble_formula(name, 8, times) - 3] * len(slots)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_stage_sees_every_micro_batch_once_in_every_direction(name):
    P, M = 6, 14
    tasks = [t for rank in SCHEDULES[name](P, M) for task in rank for t in (task.parts or (task,))]
    streams = [(0, M)] if name != "DualPipe" else [(0, M // 2), (1, M // 2)]
    want = {(m, p, s) for s, count in streams for m in range(count) for p in range(P)}
    for kinds in ({FORWARD}, {BACKWARD, INPUTS}, {BACKWARD, WEIGHTS}):
        assert Counter(t[1:4] for t in tasks if t.kind in kinds) == Counter(want)


@pytest.mark.parametrize("name", SCHEDULES)
def test_nothing_starts_before_what_it_reads_and_no_rank_does_two_things(name):
    slots = run_schedule(SCHEDULES[name](4, 12), 4, Times(1.3, 2.9, 1.1, 3.7))
    ends = {g: slot.end for rank in slots for slot in rank for g in gives(slot.task)}
    for rank in slots:
        assert all(a.end <= b.start for a, b in pairwise(rank))
        assert all(ends[n] <= slot.start for slot in rank for n in needs(slot.task, 4))


@pytest.mark.parametrize(
    ("name", "want"), [("GPipe", [13] * 4), ("1F1B", [4, 3, 2, 1]), ("ZB1P", [4] * 4), ("DualPipeV", [5, 5])]
)
def test_the_activations_held_at_once_are_those_of_table_2(name, want):
    assert measure_memory(run_schedule(SCHEDULES[name](4, 13), 4, Times())) == want


def test_dualpipe_holds_one_more_than_its_stages_and_is_its_own_mirror():
    slots = run_schedule(dualpipe_order(8, 20), 8, Times())  # V3 Fig. 5
    assert measure_memory(slots) == [9] * 8
    assert draw_text(slots) == draw_text(slots)[::-1]


def test_in_dualpipe_v_the_first_and_the_last_stage_share_a_rank():
    stages = {t.stage for task in dualpipe_v_order(8, 12)[0] for t in (task.parts or (task,))}
    assert stages == {0, 7}


def test_1f1b_is_drawn_as_in_every_paper():
    slots = run_schedule(one_f_one_b_order(3, 4), 3, Times())
    assert draw_text(slots) == ["FFF····BBFBB·BB·BB", "·FF··BBFBBFBB·BB··", "··FBBFBBFBBFBB····"]


def test_a_pair_that_hides_communication_makes_dualpipe_faster():
    ends = [
        max(rank[-1].end for rank in run_schedule(dualpipe_order(8, 32), 8, Times(pair=pair))) for pair in (3.0, 2.5)
    ]
    assert ends[1] < 0.9 * ends[0]


def test_an_order_with_a_circle_is_told_and_not_waited_for():
    first, second = [Task(BACKWARD, 0, 0), Task(FORWARD, 0, 0)], [Task(FORWARD, 0, 1), Task(BACKWARD, 0, 1)]
    with pytest.raises(ValueError, match="wait for each other"):
        run_schedule([first, second], 2, Times())


def test_what_cannot_be_scheduled_is_refused():
    for P, M in ((3, 12), (4, 13), (4, 6)):
        with pytest.raises(ValueError, match="DualPipe needs even P and M"):
            dualpipe_order(P, M)
    with pytest.raises(ValueError, match="DualPipeV needs even P"):
        dualpipe_v_order(4, 3)
    assert PAIR in {t.kind for t in dualpipe_order(4, 8)[0]}
