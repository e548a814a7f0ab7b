"""What `make check CH=03` asks of exercises.py. Each check knows the usual wrong answers and says which one it sees."""

from collections.abc import Callable

import numpy as np
from classic_moe import ClassicMoE, assign_places, relu_experts_backward, relu_experts_forward
from deepseek_moe import (
    DeepseekMoE,
    GateWeights,
    RouterConfig,
    deepseek_moe_backward,
    deepseek_moe_forward,
    keep_best_groups,
    route_tokens_forward,
    swiglu_slice_backward,
    swiglu_slice_forward,
)
from exercise_words_03 import expect_parts, expect_same, expect_shape, same
from expert_routing import (
    choose_top_experts,
    scatter_to_experts,
    sigmoid,
    sigmoid_gate_backward,
    sigmoid_gate_forward,
    softmax_gate_backward,
    softmax_gate_forward,
)
from load_balancing import (
    expert_balance_backward,
    expert_balance_forward,
    sequence_balance_backward,
    sequence_balance_forward,
)


def check_teach_router(answer: Callable) -> None:
    """The Jacobian of the normalisation."""
    rng = np.random.default_rng(0)
    dgate, picked = rng.standard_normal((5, 3)), rng.uniform(0.1, 0.9, (5, 3))
    total = picked.sum(axis=1, keepdims=True)
    gate = picked / total
    centred = dgate - (gate * dgate).sum(axis=1, keepdims=True)
    wrong = {
        "you hold the sum constant; every chosen score is also in the denominator": dgate / total,
        "the gates were divided by the sum, so the gradient changes too": dgate,
        "the direction is right; the factor 1 / sum is missing": centred,
        "the average is taken with the gates, not with the scores before the division": (
            dgate - (picked * dgate).sum(axis=1, keepdims=True)
        )
        / total,
        "subtract the average weighted by the gates, not the plain mean": (dgate - dgate.mean(axis=1, keepdims=True))
        / total,
        "the sign is turned: it is dgate minus the average": -centred / total,
        "the sums run over the tokens; a gate is divided by the sum of its own token": (
            dgate - (picked / picked.sum(axis=0) * dgate).sum(axis=0)
        )
        / picked.sum(axis=0),
    }
    expect_same(answer(dgate.copy(), picked.copy()), centred / total, wrong, "teach_router")
    alone = answer(dgate[:, :1].copy(), picked[:, :1].copy())
    assert np.allclose(alone, 0), "teach_router: with one expert the gate is constant, so its gradient is 0"


def _through(dlogit: np.ndarray, x: np.ndarray, weight: np.ndarray, part: str) -> np.ndarray:
    return dlogit @ weight if part == "dx" else dlogit.T @ x


def check_router_backward(answer: Callable) -> None:
    """Five tokens, seven experts, three chosen."""
    rng = np.random.default_rng(1)
    x, weight, dgate = rng.standard_normal((5, 4)), rng.standard_normal((7, 4)), rng.standard_normal((5, 3))
    _, cache = sigmoid_gate_forward(x, weight, 3)
    dx, dweight = sigmoid_gate_backward(dgate, cache)
    score, index = sigmoid(x @ weight.T), cache[2]
    picked = np.take_along_axis(score, index, axis=1)
    total, slope = picked.sum(axis=1, keepdims=True), score * (1 - score)
    centred = (dgate - (picked / total * dgate).sum(axis=1, keepdims=True)) / total
    full, flat = scatter_to_experts(centred, index, 7), scatter_to_experts(dgate / total, index, 7)
    misplaced = np.zeros_like(score)
    misplaced[:, :3] = centred
    sorted_up = scatter_to_experts(centred, index[:, ::-1].copy(), 7)
    mistakes = {
        "the slope of the sigmoid is missing: s (1 - s)": full,
        "the division by the sum has a gradient of its own: use teach_router": flat * slope,
        "the gates are normalised here, so dgate is not the gradient of the scores": scatter_to_experts(dgate, index, 7)
        * slope,
        "the gradient of the chosen lies in the first columns; put it at the experts that were chosen": misplaced
        * slope,
        "the order is turned: dgate comes best expert first": sorted_up * slope,
        "that is the slope of a softmax; the scores are sigmoids, each on its own": score
        * (full - (score * full).sum(axis=1, keepdims=True)),
    }
    usual = {part: {words: _through(d, x, weight, part) for words, d in mistakes.items()} for part in ("dx", "dweight")}
    usual["dweight"]["a weight is [out, in]: dlogit^T x, not x^T dlogit"] = dweight.T
    expect_parts(answer(dgate.copy(), x.copy(), weight.copy(), 3), {"dx": dx, "dweight": dweight}, usual)


def check_softmax_router_backward(answer: Callable) -> None:
    """Who was not chosen hears of it too."""
    rng = np.random.default_rng(2)
    x, weight, dgate = rng.standard_normal((5, 4)), rng.standard_normal((7, 4)), rng.standard_normal((5, 3))
    _, cache = softmax_gate_forward(x, weight, 3)
    dx, dweight = softmax_gate_backward(dgate, cache)
    index, score = cache[2:]
    full, picked = scatter_to_experts(dgate, index, 7), np.take_along_axis(score, index, axis=1)
    right = score * (full - (score * full).sum(axis=1, keepdims=True))
    total = picked.sum(axis=1, keepdims=True)
    normed = scatter_to_experts((dgate - (picked / total * dgate).sum(axis=1, keepdims=True)) / total, index, 7)
    mistakes = {
        "only the chosen logits get a gradient; in a softmax all others are in the denominator": np.where(
            full != 0, right, 0
        ),
        "only the diagonal of the softmax is there, s (1 - s); every score depends on every logit": score
        * (1 - score)
        * full,
        "the sum of s ds is missing": score * full,
        "these gates are not normalised: V2 takes the probabilities as they are": score
        * (normed - (score * normed).sum(axis=1, keepdims=True)),
    }
    usual = {part: {words: _through(d, x, weight, part) for words, d in mistakes.items()} for part in ("dx", "dweight")}
    expect_parts(answer(dgate.copy(), x.copy(), weight.copy(), 3), {"dx": dx, "dweight": dweight}, usual)


def check_seat_choices(answer: Callable) -> None:
    """Six tokens on four places, then many."""
    index = np.array([[0, 1], [0, 2], [0, 1], [1, 0], [0, 2], [2, 0]])
    got = answer(index.copy(), 3, 4)
    by_token = _seat_in_order(index, 4, [(n, a) for n in range(6) for a in range(2)])
    late_first = _seat_in_order(index, 4, [(n, a) for a in range(2) for n in reversed(range(6))])
    wrong = {
        "you seat token by token; all first choices come before any second choice": by_token,
        "within a round the tokens come in their order, the first one first": late_first,
        "places count from 0": np.where(assign_places(index, 3, 4) >= 0, assign_places(index, 3, 4) + 1, -1),
        "whoever comes to a full expert has no place: -1": assign_places(index, 3, 99),
        "an expert seats `places` tokens, not one more": assign_places(index, 3, 5),
        "an expert seats `places` tokens, not one less": assign_places(index, 3, 3),
    }
    expect_same(np.asarray(got), assign_places(index, 3, 4), wrong, "seat_choices")
    many = np.random.default_rng(3).permuted(np.tile(np.arange(5), (40, 1)), axis=1)[:, :3]
    expect_same(np.asarray(answer(many.copy(), 5, 11)), assign_places(many, 5, 11), {}, "seat_choices, three choices")


def _seat_in_order(index: np.ndarray, places: int, order: list) -> np.ndarray:
    place, taken = np.full(index.shape, -1), {}
    for n, a in order:
        e = int(index[n, a])
        place[n, a] = taken.get(e, 0) if taken.get(e, 0) < places else -1
        taken[e] = taken.get(e, 0) + 1
    return place


def check_relu_expert_backward(answer: Callable) -> None:
    """The classic expert."""
    rng = np.random.default_rng(21)
    dy, x, up, down = (rng.standard_normal(s) for s in ((7, 5), (7, 5), (11, 5), (5, 11)))
    dx, dup, ddown = relu_experts_backward(
        dy[None], relu_experts_forward(x[None], ClassicMoE(up[:1], up[None], down[None]))[1]
    )
    raw = x @ up.T
    linear, hidden = dy @ down, np.maximum(raw, 0)
    usual = {
        "dx": {
            "the relu is missing on the way back: nothing passes where it had cut to zero": linear @ up,
            "the relu's slope is 1 or 0, not the number itself": (linear * hidden) @ up,
            "that is dhidden's gate turned round: it passes where the number was POSITIVE": (linear * (raw <= 0)) @ up,
        },
        "dup_proj": {"the relu is missing on the way back": linear.T @ x},
        "ddown_proj": {"down_proj read the hidden numbers AFTER the relu": dy.T @ raw},
    }
    want = {"dx": dx[0], "dup_proj": dup[0], "ddown_proj": ddown[0]}
    expect_parts(answer(dy.copy(), x.copy(), up.copy(), down.copy()), want, usual)


def check_combine_backward(answer: Callable) -> None:
    """With choices that were turned away."""
    rng = np.random.default_rng(4)
    index = rng.permuted(np.tile(np.arange(3), (8, 1)), axis=1)[:, :2]
    place, gate = assign_places(index, 3, 4), rng.uniform(0.1, 0.9, (8, 2))
    dy, out = rng.standard_normal((8, 5)), rng.standard_normal((3, 4, 5))
    kept = place >= 0
    assert not kept.all()
    answers = out[index, place]
    everyone = np.einsum("nad,nd->na", answers, dy)
    dout, no_gate, last = np.zeros_like(out), np.zeros_like(out), np.zeros_like(out)
    for n, a in zip(*np.nonzero(kept)):
        dout[index[n, a], place[n, a]] = gate[n, a] * dy[n]
        no_gate[index[n, a], place[n, a]] = dy[n]
    last += dout
    np.add.at(last, (index[~kept], place[~kept]), (gate[..., None] * dy[:, None])[~kept])
    usual = {
        "dgate": {
            "a choice that was turned away has place -1, and out[e, -1] is somebody else's answer; its gradient is 0": (
                everyone
            ),
            "each gate hears of its own expert's answer, not of the sum of all": np.tile(
                (everyone * kept).sum(1, keepdims=True), (1, 2)
            ),
        },
        "dout": {
            "the answer counted with its gate: dout = gate * dy": no_gate,
            "choices that were turned away ended up in the last place of their expert": last,
        },
    }
    got = answer(dy.copy(), index.copy(), place.copy(), gate.copy(), out.copy())
    expect_parts(got, {"dgate": everyone * kept, "dout": dout}, usual)


def check_expert_choice_backward(answer: Callable) -> None:
    """A token that two experts took, and one that nobody took."""
    rng = np.random.default_rng(22)
    token = np.array([[4, 0, 2], [2, 5, 4]])
    dy, gate, out = rng.standard_normal((7, 5)), rng.uniform(0.1, 0.9, (2, 3)), rng.standard_normal((2, 3, 5))
    taken = dy[token]
    usual = {
        "dgate": {
            "each place serves token[e, p]; you used the tokens in their own order": (
                dy[:6].reshape(2, 3, 5) * out
            ).sum(-1),
            "the gate's slope is the answer times dy, without the gate": gate * (taken * out).sum(-1),
            "a gate is one number for a place: sum over D": taken * out,
        },
        "dout": {
            "the answer counted with its gate: dout = gate * dy": taken,
            "each place serves token[e, p]; you used the tokens in their own order": gate[..., None]
            * dy[:6].reshape(2, 3, 5),
        },
    }
    want = {"dgate": (taken * out).sum(-1), "dout": gate[..., None] * taken}
    expect_parts(answer(dy.copy(), token.copy(), gate.copy(), out.copy()), want, usual)


def check_balance_batch_backward(answer: Callable) -> None:
    """Counts are constants."""
    rng = np.random.default_rng(23)
    score = rng.random((7, 5))
    score /= score.sum(axis=1, keepdims=True)
    index, alpha = choose_top_experts(score, 2), 0.3
    want = expert_balance_backward(1.0, expert_balance_forward(score, index, alpha)[1])
    usual = {
        "alpha is missing": want / alpha,
        "P is a mean over the tokens, so each score gets a share of 1/N": want * 7,
        "f counts choices, A for each token: divide by A N, not by N": want * 2,
        "in perfect balance f is 1: multiply the share of the choices by E": want / 5,
        "you return one row; every token's scores have this gradient, [N, E]": want[0],
        "scores of experts that a token did not choose get the gradient as well: P is a mean over ALL tokens": want
        * scatter_to_experts(np.ones_like(index, dtype=float), index, 5),
        "you differentiate the count; it has no slope": want + alpha * score.mean(axis=0) * 5 / 14,
    }
    expect_same(answer(score.copy(), index.copy(), alpha), np.array(want), usual, "balance_batch_backward")


def check_balance_sequences(answer: Callable) -> None:
    """The golden example, a batch of skewed sequences, and another number of experts."""
    golden = np.array([[[0.9, 0.1, 0.5, 0.5], [0.8, 0.2, 0.6, 0.4]]])
    got = answer(golden.copy(), 2, 1.0)
    assert np.ndim(got) == 0, f"balance_sequences: the loss is one number, yours has shape {np.shape(got)}"
    halved = answer(golden / 2, 2, 1.0)
    assert same(got, halved), "balance_sequences: you used raw scores; divide each token's by their sum first (Eq. 19)"
    wrong = {
        "your loss doubles with the number of activated experts: divide the counts by it": np.float64(2.8),
        "divide the counts by the number of activated experts and by the length of the sequence": np.float64(5.6),
        "the factor E is missing: in balance the loss must be alpha": np.float64(0.35),
    }
    expect_same(float(got), np.float64(1.4), wrong, "balance_sequences, the golden example")
    halves = np.full((2, 6, 4), 0.1)
    halves[0, :, :2], halves[1, :, 2:] = 0.8, 0.8
    right = np.float64(1.6 / 0.9)
    wrong = {
        "you pool the batch: here each sequence uses half of the experts, and that must cost": np.float64(1.0),
        "you sum over the sequences; take their mean": 2 * right,
    }
    expect_same(float(answer(halves, 2, 1.0)), right, wrong, "balance_sequences, two sequences")
    score = np.random.default_rng(2).uniform(0.05, 0.95, (3, 5, 7))
    want = np.float64(sequence_balance_forward(score, 3, 0.01)[0])
    expect_same(float(answer(score, 3, 0.01)), want, {"alpha is missing": want / 0.01}, "balance_sequences")


def check_balance_sequences_backward(answer: Callable) -> None:
    """Three sequences of different skew."""
    rng = np.random.default_rng(5)
    score = rng.uniform(0.05, 0.95, (3, 5, 7)) + np.linspace(0.4, 0, 7)
    slope, share, total = sequence_balance_forward(score, 2, 0.3)[1]
    right = sequence_balance_backward(1.0, (slope, share, total))
    pooled = sequence_balance_backward(1.0, sequence_balance_forward(score.reshape(1, 15, 7), 2, 0.3)[1])
    push = np.broadcast_to(slope[:, None], score.shape)
    wrong = {
        "the share has a gradient of its own: every score is in the denominator of all shares of its token": push
        / total,
        "you stopped at the share; the scores were divided by their sum": push,
        "the direction is right; the division by the token's sum of scores is missing": right * total,
        "you pool the batch: each sequence has its own counts": pooled.reshape(score.shape),
        "the mean over the sequences is missing": 3 * right,
        "the mean over the tokens is missing": 5 * right,
        "the average is weighted by the shares, not by the raw scores": (
            push - (score * push).sum(axis=-1, keepdims=True)
        )
        / total,
        "the sign is turned: busy experts get a positive slope, so that descent lowers them": -right,
    }
    expect_same(answer(score.copy(), 2, 0.3), right, wrong, "balance_sequences_backward")


def check_move_bias(answer: Callable) -> None:
    """One step of the thermostat."""
    bias, load = np.array([0.5, 0.1, 0.0, -0.2]), np.array([6, 3, 2, 1])
    kept = bias.copy()
    got = answer(bias, load, 0.01)
    assert np.array_equal(bias, kept), "move_bias: you changed the bias in place; evaluation must not move it"
    expect_shape(np.asarray(got), (4,), "your bias")
    step = np.asarray(got) - kept
    wrong = {
        "the sign is turned: a busy expert must become LESS attractive": np.array([0.01, 0, -0.01, -0.01]),
        "the step must not grow with the violation: take its sign": 0.01 * (3 - load),
        "this is the proportional variant; Algorithm 1 takes the sign": 0.01 * (3 - load) / 3,
        "an expert with exactly the mean load stays where it is": np.array([-0.01, -0.01, 0.01, 0.01]),
        "an expert with exactly the mean load stays; it does not rise": np.array([-0.01, 0.01, 0.01, 0.01]),
        "you return the step alone; add it to the old bias": np.array([-0.01, 0, 0.01, 0.01]) - kept,
    }
    expect_same(step, np.array([-0.01, 0, 0.01, 0.01]), wrong, "move_bias")


def check_measure_violation(answer: Callable) -> None:
    """MaxVio."""
    load = np.array([6, 3, 2, 1])
    wrong = {
        "this is max / mean; subtract 1, so that balance gives 0": np.float64(2.0),
        "this is max - mean; divide by the mean, so that it does not depend on the batch size": np.float64(3.0),
        "this is relative to the total or to the maximum; divide by the mean": np.float64(0.5),
        "this is the coefficient of variation; MaxVio looks at the maximum only": np.float64(load.std() / load.mean()),
        "this compares the busiest with the idlest; compare it with the mean": np.float64(5 / 3),
    }
    expect_same(float(answer(load)), np.float64(1.0), wrong, "measure_violation")
    assert same(answer(np.array([4, 4, 4])), 0.0), "measure_violation: equal loads must give 0"
    assert same(answer(np.array([5, 4, 0])), 2 / 3), "measure_violation: only the busiest expert counts, not the idlest"


def check_gated_expert_backward(answer: Callable) -> None:
    """Five tokens, seven hidden units, gates that are not one."""
    rng = np.random.default_rng(6)
    x, dy, gate = rng.standard_normal((5, 3)), rng.standard_normal((5, 3)), rng.uniform(0.2, 0.9, 5)
    matrices = [rng.standard_normal(shape) / 2 for shape in ((7, 3), (7, 3), (3, 7))]
    plain, cache = swiglu_slice_forward(x, *matrices)
    dx, *dmatrices = swiglu_slice_backward(gate[:, None] * dy, cache)
    bare_dx, *bare = swiglu_slice_backward(dy, cache)
    names = ("dgate_proj", "dup_proj", "ddown_proj")
    want = {"dx": dx, "dgate": (plain * dy).sum(axis=1), **dict(zip(names, dmatrices))}
    a, u, s = x @ matrices[0].T, x @ matrices[1].T, sigmoid(x @ matrices[0].T)
    dh = (gate[:, None] * dy) @ matrices[2]
    half, up = dh * u * s, dh * a * s
    no_gate = "the expert's answer counted with its gate: it receives gate * dy, not dy"
    no_slope = "silu's slope has two terms, s + a s (1 - s); you have the first only"
    usual = {
        "dx": {
            no_gate: bare_dx,
            no_slope: half @ matrices[0] + up @ matrices[1],
            "x went both ways: the part through up_proj is missing": dx - up @ matrices[1],
            "x went both ways: the part through gate_proj is missing": up @ matrices[1],
        },
        "dgate": {
            "the gate hears of the answer before it was multiplied by the gate": (gate[:, None] * plain * dy).sum(1),
            "the gate is one number a token: add up over the width": plain * dy,
        },
        "dgate_proj": {no_gate: bare[0], no_slope: half.T @ x},
        "dup_proj": {no_gate: bare[1]},
        "ddown_proj": {
            no_gate: bare[2],
            "down_proj read silu(a) * u, not a * u": (gate[:, None] * dy).T @ (a * u),
        },
    }
    expect_parts(answer(dy.copy(), x.copy(), gate.copy(), *(m.copy() for m in matrices)), want, usual)


def check_choose_and_weigh(answer: Callable) -> None:
    """The golden gate, and a harder one."""
    score = np.array([[0.10, 0.05, 0.30, 0.20, 0.02, 0.03, 0.25, 0.15]])
    bias = np.array([-0.3, -0.3, -0.5, -0.5, -0.2, -0.2, -0.3, -0.3])
    index, gate = answer(score.copy(), bias.copy(), 4, 2, 2, 2.5)
    expect_shape(np.asarray(index), (1, 2), "your choice")
    expect_shape(np.asarray(gate), (1, 2), "your gates")
    chosen = np.asarray(index)[0].tolist()
    assert chosen != [0, 1], "masked experts were chosen: 0 beats negative scores; fill losing groups with -inf"
    assert chosen != [2, 6], "you chose by the plain score; the bias must be added to choose"
    assert chosen != [7, 6], "right experts, wrong order: best first"
    assert chosen == [6, 7], (
        f"you chose {chosen}; s + b over groups is [-.45 -.50 -.35 -.20], so groups 3 and 2 stay: 6, 7"
    )
    plain, biased = np.array([[0.25, 0.15]]), np.array([[-0.05, -0.15]])
    assert not same(gate, 2.5 * biased / biased.sum()), "the bias leaked into the gates: weigh by the plain score"
    doubled = answer(score.copy(), bias.copy(), 4, 2, 2, 2.0)[1]  # with 2.5 two mistakes look alike: 2.5 * .40 = 1
    assert not same(doubled, 2.0 * plain), "the chosen scores were not normalised"
    assert not same(doubled, plain / 0.4), "the scale is missing, or it cancelled: normalise first, then scale"
    assert not same(gate, 6.25 * plain / 0.4), "you scaled twice"
    assert not same(gate, 2.5 * plain / score.sum()), "divide by the sum of the chosen scores, not of all"
    assert same(gate, [[1.5625, 0.9375]]), f"expected gates 1.5625 and 0.9375, got {np.asarray(gate)[0].tolist()}"
    _check_pairs(answer)


def _check_pairs(answer: Callable) -> None:
    """Groups must be judged by their two best, for many tokens at once."""
    rng = np.random.default_rng(1)
    score, bias = rng.uniform(0.05, 0.95, (31, 12)), rng.standard_normal(12) * 0.2
    index, gate = answer(score.copy(), bias.copy(), 3, 1, 2, 1.5)
    grouped = (score + bias).reshape(31, 3, 4)
    by_best, by_sum = grouped.max(axis=-1).argmax(axis=1), grouped.sum(axis=-1).argmax(axis=1)
    found = np.asarray(index)[:, 0] // 4
    right = np.isfinite(keep_best_groups(score + bias, 3, 1)[:, ::4]).argmax(axis=1)
    assert (found == right).all() or not (found == by_best).all(), "a group is worth its TWO best, you took the best"
    assert (found == right).all() or not (found == by_sum).all(), "a group is worth its two best, you summed all of it"
    want, _ = route_tokens_forward(score, bias, RouterConfig(12, 2, 3, 1, 1.5))
    assert same(index, want.index_NA), "right for one token, wrong for a batch: sort within each row"
    assert same(gate, want.gate_NA), "right experts, but the gates of some rows are wrong: each row has its own sum"


def check_visit_experts(answer: Callable) -> None:
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

    got = answer(x.copy(), index.copy(), gate.copy(), [make_expert(e) for e in range(7)])
    outputs = np.einsum("nd,ndf->nf", np.repeat(x, 2, axis=0), matrices[index.ravel()]).reshape(11, 2, 3)
    order = np.argsort(index, axis=None, kind="stable")
    unsorted = (gate[..., None] * outputs.reshape(22, 3)[order].reshape(11, 2, 3)).sum(axis=1)
    wrong = {
        "the gates are missing: each answer counts with its gate": outputs.sum(axis=1),
        "the answers are to be weighed by the gates, not averaged": outputs.mean(axis=1),
        "the answers lie in the order of the experts; put them back: answer[order] = sorted answers": unsorted,
        "only the first choice of each token is answered": gate[:, :1] * outputs[:, 0],
    }
    expect_same(got, (gate[..., None] * outputs).sum(axis=1), wrong, "visit_experts")
    called = [e for e, _ in calls]
    assert 4 not in called, "expert 4 has no token and was called all the same"
    assert len(called) == len(set(called)), (
        f"{len(called)} calls for {len(set(called))} experts: sort, and call each once"
    )
    assert sum(n for _, n in calls) == 22, "experts should see only the tokens that chose them: 22 rows in all"


def _small_layer() -> tuple[DeepseekMoE, RouterConfig, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """A layer at sizes that no two axes share, with a bias that matters; two experts are visited by nobody."""
    rng, config = np.random.default_rng(11), RouterConfig(12, 3, 4, 2, 1.7)
    layer = DeepseekMoE.init(rng, config, width=5, hidden=7)
    layer.gate.e_score_correction_bias[:] = rng.standard_normal(12) * 0.3 - 0.5
    layer.gate.e_score_correction_bias[-2:] -= 9
    bias = {"gate.e_score_correction_bias": layer.gate.e_score_correction_bias}
    return layer, config, rng.standard_normal((11, 5)), rng.standard_normal((11, 5)), {**layer.trainable(), **bias}


def check_moe_backward(answer: Callable) -> None:
    """The whole layer, gradient by gradient."""
    layer, config, x, dy, arrays = _small_layer()
    _, cache = deepseek_moe_forward(x, layer, config)
    dx, want = deepseek_moe_backward(dy, cache)
    given = {name: array.copy() for name, array in arrays.items()}
    got = answer(dy.copy(), x.copy(), given, 4, 2, 3, 1.7)
    assert isinstance(got, tuple | list), "return 2 results, in this order: dx, a dict of gradients"
    assert len(got) == 2, "return 2 results, in this order: dx, a dict of gradients"
    assert isinstance(got[1], dict), (
        f"your gradients are a {type(got[1]).__name__}; return a dict by the weights' names"
    )
    assert "gate.e_score_correction_bias" not in got[1], "the bias has no gradient: leave it out, or it will be trained"
    missing = sorted(set(want) - set(got[1]))
    assert not missing, f"the gradient of {', '.join(missing)} is missing"
    slopes, outer = cache.score_NE * (1 - cache.score_NE), layer.gate.weight
    no_gate = "an expert's answer counted with its gate: it receives gate * dy"
    mistakes = {name: {no_gate: wrong} for name, wrong in _without_gates(layer, cache, dy).items()}
    mistakes["gate.weight"] = {"the gates were scaled, so their gradient is scaled too": want["gate.weight"] / 1.7}
    for name in want:
        expect_same(got[1][name], want[name], mistakes.get(name, {}), f"d {name}")
    router_way = _router_way(layer, cache, dy, slopes) @ outer
    shared = layer.shared_experts
    shared_way = swiglu_slice_backward(
        dy, swiglu_slice_forward(x, shared.gate_proj, shared.up_proj, shared.down_proj)[1]
    )[0]
    wrong = {
        "x went to the router too: that way back is missing": dx - router_way,
        "x went to the shared expert too: that way back is missing": dx - shared_way,
        "x went to the routed experts too: that way back is missing": router_way + shared_way,
    }
    expect_same(got[0], dx, wrong, "dx (all gradients of the weights are right)")


def _router_way(layer: DeepseekMoE, cache, dy: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    """The gradient of the logits, from the module's own answers."""
    answers, routing = cache.inner[2][3], cache.routing
    dgate, share = np.einsum("nad,nd->na", answers, dy), routing.gate_NA / 1.7
    total = np.take_along_axis(cache.score_NE, routing.index_NA, axis=1).sum(axis=1, keepdims=True)
    centred = 1.7 * (dgate - (share * dgate).sum(axis=1, keepdims=True)) / total
    return scatter_to_experts(centred, routing.index_NA, len(layer.gate.weight)) * slopes


def _without_gates(layer: DeepseekMoE, cache, dy: np.ndarray) -> dict[str, np.ndarray]:
    """The gradients of the experts when everybody forgets the gates."""
    wrong = {f"experts.{name}": np.zeros_like(array) for name, array in vars(layer.experts).items()}
    for e in range(len(layer.gate.weight)):
        n, _ = np.nonzero(cache.routing.index_NA == e)
        matrices = [array[e] for array in vars(layer.experts).values()]
        parts = swiglu_slice_backward(dy[n], swiglu_slice_forward(cache.x_ND[n], *matrices)[1])[1:]
        for array, part in zip(wrong.values(), parts):
            array[e] = part
    return wrong


def check_moe_from_an_empty_file(answer: Callable) -> None:
    """The layer, with every usual wrong line of it beside."""
    layer, config, x, _, arrays = _small_layer()
    want = deepseek_moe_forward(x, layer, config)[0]
    got = answer(x.copy(), {name: array.copy() for name, array in arrays.items()}, 4, 2, 3, 1.7)
    expect_shape(got, (11, 5), "your layer")

    def run(scale: float = 1.7, bias=None, n_group: int = 4, topk_group: int = 2):
        gate = GateWeights(layer.gate.weight, layer.gate.e_score_correction_bias if bias is None else bias)
        changed = DeepseekMoE(gate, layer.experts, layer.shared_experts)
        return deepseek_moe_forward(x, changed, RouterConfig(12, 3, n_group, topk_group, scale))[0]

    shared = run(scale=0.0)
    index, score = deepseek_moe_forward(x, layer, config)[1].routing.index_NA, sigmoid(x @ layer.gate.weight.T)
    answers = deepseek_moe_forward(x, layer, config)[1].inner[2][3]
    biased = np.take_along_axis(score + layer.gate.e_score_correction_bias, index, axis=1)
    raw = np.take_along_axis(score, index, axis=1)
    wrong = {
        "the shared expert is missing": want - shared,
        "the routed experts are missing": shared,
        "the shared expert is scaled; it has neither gate nor scale": want + 0.7 * shared,
        "the scale is missing, or it cancelled: normalise first, then scale": run(scale=1.0),
        "you scaled twice": run(scale=1.7**2),
        "the bias is missing: it is added to choose": run(bias=np.zeros(12)),
        "the bias leaked into the gates: weigh by the plain score": shared
        + np.einsum("na,nad->nd", 1.7 * biased / biased.sum(axis=1, keepdims=True), answers),
        "the chosen scores were not normalised": shared + np.einsum("na,nad->nd", 1.7 * raw, answers),
        "the groups are missing: only experts of the best groups may be chosen": run(n_group=1, topk_group=1),
    }
    expect_same(got, want, wrong, "your layer")
