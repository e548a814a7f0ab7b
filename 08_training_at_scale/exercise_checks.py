"""Grade exercises.py: each check recognises the usual wrong answers and says what they are."""

from pipeline_schedules import Times, gpipe_order, one_f_one_b_order, run_schedule


def check_forwards_ahead(answer):
    """P - 1 - p, at most M."""
    got = [answer(p, 4, 8) for p in range(4)]
    assert got != [4, 3, 2, 1], "you count the forward that the backward in turns follows; those before it are one less"
    assert got != [0, 1, 2, 3], "the other way round: the last rank turns at once, the first has most on the way"
    assert got == [3, 2, 1, 0], f"4 ranks run 3, 2, 1, 0 ahead; you say {got}"
    assert answer(0, 8, 3) == 3, f"of 3 micro-batches no more than 3 can be ahead; you say {answer(0, 8, 3)}"


def check_pipeline_time(answer):
    """Work and bubble."""
    got, want = float(answer(4, 8, 1.5, 2.0)), 11 * 3.5
    assert abs(got - 3 * 3.5) > 1e-9, "that is the bubble alone; a rank works M (F + B) besides"
    assert abs(got - 8 * 3.5) > 1e-9, "that is the work alone; the ranks wait for each other (P - 1)(F + B)"
    assert abs(got - 12 * 3.5) > 1e-9, "P + M counts one too many: with one stage nobody waits"
    assert abs(got - want) < 1e-9, f"with P = 4, M = 8, F = 1.5, B = 2 it is {want}, you say {got}"


def check_crossing_bytes(answer):
    """Three nodes needed, one of them the own one."""
    got, one = int(answer([3, 9, 11, 14, 27], 0, 8, 256)), 256 + 8 + 512
    assert got != 4 * one, "that is a copy for each expert; the three in node 1 share one crossing"
    assert got != 2 * 264, "that is the way out alone; the sums come back as well"
    assert got != 2 * 2 * 512, "on the way out it goes in FP8: a byte a number, and four bytes of scale for each 128"
    assert got != 3 * one, "that counts the own node: expert 3 needs no crossing"
    assert got != 2 * (one - 8), "the scales are missing: four bytes for each 128 numbers on the way out"
    assert got != 2 * 2 * 264, "on the way back the sums go in BF16, two bytes a number and no scales"
    assert got == 2 * one, f"two crossings of {one} bytes there and back are {2 * one}; you say {got}"
    assert int(answer([1, 2], 0, 8, 128)) == 0, "a token whose experts are all at home crosses nowhere"


def check_uncovered_time(answer):
    """Short journeys, a long one each, and both long."""
    assert float(answer(3, 3, 3, 2, 2)) == 0, (
        "journeys of 2 fit: DISPATCH(F) has 6 to hide behind, DISPATCH(B) 6 as well"
    )
    got = float(answer(3, 4, 5, 2, 8))
    assert got != 3, "DISPATCH(B) need not wait for MLP(W): it starts when MLP(B) has ended, and hides behind both"
    assert got == 0, f"DISPATCH(B) runs from 3 to 11, ATTN(B) could start at 12 anyway; you say {got} uncovered"
    got = float(answer(3, 4, 5, 9, 1))
    assert got != 6, "DISPATCH(F) hides behind MLP(B) and MLP(W): only what is beyond 7 shows"
    assert got == 2, f"DISPATCH(F) of 9 outlasts MLP(B) and MLP(W) by 2; you say {got}"
    got = float(answer(3, 4, 5, 6, 8))
    assert got != 0, "the network does one thing at a time: DISPATCH(B) waits for the end of DISPATCH(F) at 6"
    assert got == 2, f"DISPATCH(B) runs from 6 to 14, where ATTN(B) could have started at 12; you say {got}"


def check_training_hours(answer):
    """A model of 7 weights, scores of 2 operations, 3,600 tokens, one operation a second: (42 + 6) hours."""
    got = float(answer(7.0, 2.0, 3600.0, 1.0))
    assert got != 16, "that is the forward pass alone; the backward pass costs twice as much again"
    assert got != 44, "the scores have a backward pass as well: two products for one, like a weight"
    assert got != 27, "a weight costs two operations, a multiplication and an addition"
    assert abs(got - 48 * 3600) > 1e-6, "those are seconds; an hour has 3,600"
    assert abs(got - 48) < 1e-9, (
        f"with N = 7, scores of 2, 3,600 tokens at 1 operation a second: 48 hours; you say {got}"
    )


def check_count_copies(answer):
    """Loads 9, 4, 1, 2 on seven slots, and 9, 4, 3."""
    got = list(answer([9.0, 4.0, 1.0, 2.0], 7))
    assert min(got) > 0, "every expert needs one slot, also the one that is hardly used: a token may choose it"
    assert sum(got) == 7, f"seven slots are to be filled; you fill {sum(got)}"
    assert got != [2, 2, 1, 2], "you copy the heaviest once each; the first's copies still have 4.5, the largest share"
    assert got != [4, 1, 1, 1], "you look at the load of an expert; what a GPU has is its load / copies, which falls"
    assert got == [3, 2, 1, 1], f"the largest share is 9, then 4.5, then 4 of the second: [3, 2, 1, 1]; you say {got}"
    got = list(answer([9.0, 4.0, 3.0], 7))
    assert got == [4, 2, 1], f"loads 9, 4, 3 on seven slots are [4, 2, 1]; you say {got}"


def check_schedule_from_an_empty_file(answer):
    """The simulation of the chapter, task by task."""
    for make in (gpipe_order, one_f_one_b_order):
        tasks = make(3, 5)
        order = [[(t.kind, t.micro) for t in rank] for rank in tasks]
        got = answer(order, 1.5, 2.25)
        slots = run_schedule(tasks, 3, Times(1.5, 2.25, 1.0, 3.75))
        want = {(s.task.kind, s.task.micro, s.task.stage): s.end for rank in slots for s in rank}
        assert isinstance(got, dict), f"a dictionary is wanted: an end for each task; you return {type(got).__name__}"
        strange = sorted(set(got) - set(want), key=str)
        assert not strange, f"the keys are like ('F', 0, 2): kind, micro-batch, rank; yours has {strange[0]!r}"
        assert set(got) == set(want), f"every task ends once: {len(want)} of them, you have {len(got)}"
        for key in sorted(want, key=lambda k: want[k]):
            early = "before what it waits for" if got[key] < want[key] else "later than it must"
            assert abs(got[key] - want[key]) < 1e-9, (
                f"{key[0]} of micro-batch {key[1]} on rank {key[2]} ends at {want[key]}, yours at {got[key]}: {early}"
            )
