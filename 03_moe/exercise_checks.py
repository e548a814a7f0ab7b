"""Grade exercises.py: each check recognises the usual wrong answers and says what they mean."""

import numpy as np
from deepseek_moe import RouterConfig, keep_best_groups, route_tokens_forward
from expert_routing import choose_top_experts
from load_balancing import sequence_balance_forward


def same(got, want) -> bool:
    """Equal shape and equal to rounding."""
    return np.shape(got) == np.shape(want) and bool(np.allclose(got, want, rtol=1e-9, atol=1e-12))


def expect_shape(got, shape: tuple[int, ...], what: str) -> None:
    """Complain about a wrong shape in words."""
    assert np.shape(got) == shape, f"{what} has shape {np.shape(got)}, expected {shape}"


def check_teach_router(answer) -> None:
    """The Jacobian of the normalisation."""
    rng = np.random.default_rng(0)
    dgate, picked = rng.standard_normal((5, 3)), rng.uniform(0.1, 0.9, (5, 3))
    total = picked.sum(axis=1, keepdims=True)
    gate = picked / total
    got, centred = answer(dgate, picked), dgate - (gate * dgate).sum(axis=1, keepdims=True)
    expect_shape(got, (5, 3), "your gradient")
    assert not same(got, dgate / total), "you hold S constant; every chosen score is also in the denominator"
    assert not same(got, dgate), "the gates were divided by S, so the gradient changes too"
    assert not same(got, centred), "the direction is right; the factor 1/S is missing"
    plain = (dgate - (picked * dgate).sum(axis=1, keepdims=True)) / total
    assert not same(got, plain), "the average is taken with the gates g = s / S, not with the raw scores s"
    mean = (dgate - dgate.mean(axis=1, keepdims=True)) / total
    assert not same(got, mean), "subtract the average weighted by the gates, not the plain mean"
    assert np.allclose((got * picked).sum(axis=1), 0), "scaling all scores of a token must change nothing: sum s ds = 0"
    assert same(got, centred / total), "not the gradient of s_i / S; compare with a central difference"
    assert np.allclose(answer(dgate[:, :1], picked[:, :1]), 0), (
        "with one expert the gate is constant: the gradient is 0"
    )


def check_choose_and_weigh(answer) -> None:
    """The golden gate, and a harder one."""
    score = np.array([[0.10, 0.05, 0.30, 0.20, 0.02, 0.03, 0.25, 0.15]])
    bias = np.array([-0.3, -0.3, -0.5, -0.5, -0.2, -0.2, -0.3, -0.3])
    index, gate = answer(score, bias, 4, 2, 2, 2.5)
    expect_shape(index, (1, 2), "your choice")
    expect_shape(gate, (1, 2), "your gates")
    chosen = np.asarray(index)[0].tolist()
    assert chosen != [0, 1], "masked experts were chosen: 0 beats negative scores; fill losing groups with -inf"
    assert chosen != [2, 6], "you chose by the plain score; the bias must be added to choose"
    assert chosen != [7, 6], "right experts, wrong order: best first"
    assert chosen == [6, 7], (
        f"you chose {chosen}; s + b over groups is [-.45 -.50 -.35 -.20], so groups 3 and 2 stay: 6, 7"
    )
    plain, biased = np.array([[0.25, 0.15]]), np.array([[-0.05, -0.15]])
    assert not same(gate, 2.5 * biased / biased.sum()), "the bias leaked into the gates: weigh by the plain score"
    doubled = answer(score, bias, 4, 2, 2, 2.0)[1]  # with 2.5 two mistakes would look alike, since 2.5 * .40 = 1
    assert not same(doubled, 2.0 * plain), "the chosen scores were not normalised"
    assert not same(doubled, plain / 0.4), "the scale is missing, or it cancelled: normalise first, then scale"
    assert not same(gate, 6.25 * plain / 0.4), "you scaled twice"
    assert not same(gate, 2.5 * plain / score.sum()), "divide by the sum of the chosen scores, not of all"
    assert same(gate, [[1.5625, 0.9375]]), f"expected gates 1.5625 and 0.9375, got {np.asarray(gate)[0].tolist()}"
    _check_pairs(answer)


def _check_pairs(answer) -> None:
    """Groups must be judged by their two best, for many tokens at once."""
    rng = np.random.default_rng(1)
    score, bias = rng.uniform(0.05, 0.95, (31, 12)), rng.standard_normal(12) * 0.2
    index, gate = answer(score, bias, 3, 1, 2, 1.5)
    grouped = (score + bias).reshape(31, 3, 4)
    by_best, by_sum = grouped.max(axis=-1).argmax(axis=1), grouped.sum(axis=-1).argmax(axis=1)
    found = np.asarray(index)[:, 0] // 4
    right = np.isfinite(keep_best_groups(score + bias, 3, 1)[:, ::4]).argmax(axis=1)
    assert (found == right).all() or not (found == by_best).all(), "a group is worth its TWO best, you took the best"
    assert (found == right).all() or not (found == by_sum).all(), "a group is worth its two best, you summed all of it"
    want, _ = route_tokens_forward(score, bias, RouterConfig(12, 2, 3, 1, 1.5))
    assert same(index, want.index_NA), "right for one token, wrong for a batch: sort within each row"
    assert same(gate, want.gate_NA), "right experts, but the gates of some rows are wrong: each row has its own sum"


def check_move_bias(answer) -> None:
    """One step of the thermostat."""
    bias, load = np.array([0.5, 0.1, 0.0, -0.2]), np.array([6, 3, 2, 1])
    kept = bias.copy()
    got = answer(bias, load, 0.01)
    assert np.array_equal(bias, kept), "you changed the bias in place; return a new array (evaluation must not move it)"
    expect_shape(got, (4,), "your bias")
    step = np.asarray(got) - kept
    assert not same(step, [0.01, 0, -0.01, -0.01]), "the sign is turned: a busy expert must become LESS attractive"
    assert not same(step, 0.01 * (3 - load)), "the step must not grow with the violation: take its sign"
    assert not same(step, 0.01 * (3 - load) / 3), "this is the proportional variant; Algorithm 1 takes the sign"
    assert not same(step, [-0.01, -0.01, 0.01, 0.01]), "an expert with exactly the mean load stays where it is"
    assert not same(got, [-0.01, 0, 0.01, 0.01]), "you return the step alone; add it to the old bias"
    assert same(step, [-0.01, 0, 0.01, 0.01]), f"loads 6 3 2 1 should move the bias by -.01 0 .01 .01, not by {step}"


def check_measure_violation(answer) -> None:
    """MaxVio."""
    load = np.array([6, 3, 2, 1])
    got = answer(load)
    assert not same(got, 2.0), "this is max / mean; subtract 1, so that balance gives 0"
    assert not same(got, 3.0), "this is max - mean; divide by the mean, so that it does not depend on the batch size"
    assert not same(got, 0.5), "this is relative to the total or to the maximum; divide by the mean"
    assert not same(got, load.std() / load.mean()), (
        "this is the coefficient of variation; MaxVio looks at the maximum only"
    )
    assert same(got, 1.0), f"loads 6 3 2 1 have MaxVio (6 - 3) / 3 = 1, you got {got}"
    assert same(answer(np.array([4, 4, 4])), 0.0), "equal loads must give 0"
    assert same(answer(np.array([5, 4, 0])), 2 / 3), "only the busiest expert counts, not the idlest"


def check_balance_sequences(answer) -> None:
    """The sequence-wise loss."""
    golden = np.array([[[0.9, 0.1, 0.5, 0.5], [0.8, 0.2, 0.6, 0.4]]])
    got = answer(golden, 2, 1.0)
    assert np.ndim(got) == 0, f"the loss is one number, yours has shape {np.shape(got)}"
    halved = answer(golden / 2, 2, 1.0)
    assert same(got, halved), "you used raw scores; divide each token's scores by their sum first (Eq. 19)"
    assert not same(got, 2.8), "your loss doubles with k: divide the counts by A as well"
    assert not same(got, 2.8 * 2), "divide the counts by A and by the length of the sequence"
    assert not same(got, 1.4 / 4), "the factor E is missing: in balance the loss must be alpha"
    assert same(got, 1.4), f"the golden example gives 2 * .425 + 2 * .275 = 1.4, you got {got}"
    halves = np.full((2, 6, 4), 0.1)
    halves[0, :, :2], halves[1, :, 2:] = 0.8, 0.8
    got = answer(halves, 2, 1.0)
    assert not same(got, 1.0), "you pool the batch: here each sequence uses half of the experts, and that must cost"
    assert not same(got, 2 * 1.6 / 0.9), "you sum over sequences; take their mean"
    rng = np.random.default_rng(2)
    score = rng.uniform(0.05, 0.95, (3, 5, 7))
    want = sequence_balance_forward(score, 3, 0.01)[0]
    assert not same(got_all := answer(score, 3, 0.01), want / 0.01), "alpha is missing"
    assert same(got_all, want), "right on the golden example only: f counts the A largest of each token"


def check_visit_experts(answer) -> None:
    """Sorted dispatch with counting experts."""
    rng = np.random.default_rng(3)
    x, score = rng.standard_normal((11, 3)), rng.uniform(size=(11, 7))
    score[:, 4] = -1  # nobody visits expert 4
    index, gate = choose_top_experts(score, 2), rng.uniform(0.1, 0.9, (11, 2))
    matrices, calls = rng.standard_normal((7, 3, 3)), []

    def make_expert(e):
        def run(rows):
            calls.append((e, len(rows)))
            return rows @ matrices[e]

        return run

    got = answer(x, index, gate, [make_expert(e) for e in range(7)])
    outputs = np.einsum("nd,ndf->nf", np.repeat(x, 2, axis=0), matrices[index.ravel()]).reshape(11, 2, 3)
    want = (gate[..., None] * outputs).sum(axis=1)
    expect_shape(got, (11, 3), "your output")
    assert not same(got, outputs.sum(axis=1)), "the gates are missing: each answer counts with its gate"
    assert not same(got, outputs.mean(axis=1)), "the answers are to be weighed by the gates, not averaged"
    assert same(got, want), "wrong sums: are the answers put back in the order of the tokens (answer[order] = ...)?"
    called = [e for e, _ in calls]
    assert 4 not in called, "expert 4 has no token and was called all the same"
    assert len(called) == len(set(called)), (
        f"{len(called)} calls for {len(set(called))} experts: sort, and call each once"
    )
    assert sum(n for _, n in calls) == 22, "experts should see only the tokens that chose them: 22 rows in all"
