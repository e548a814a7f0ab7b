"""A wrong answer is told what is wrong with it."""

import numpy as np
import pytest

from utils.exercises import ROOT, load_file

CHAPTER = ROOT / "03_moe"
checks = load_file(CHAPTER / "exercise_checks.py")
solved = load_file(CHAPTER / "exercises_solved.py")
right_teacher, right_expert = solved.teach_router, solved.gated_expert_backward


def sum_held_constant(dgate, picked):
    return dgate / picked.sum(axis=1, keepdims=True)


def without_the_normalisation(dgate, x, weight, A):
    keep, solved.teach_router = solved.teach_router, sum_held_constant
    try:
        return solved.router_backward(dgate, x, weight, A)
    finally:
        solved.teach_router = keep


def in_the_first_columns(dgate, x, weight, A):
    keep, solved._put = solved._put, lambda value, index, E: np.pad(value, [(0, 0), (0, E - value.shape[1])])
    try:
        return solved.router_backward(dgate, x, weight, A)
    finally:
        solved._put = keep


def only_the_chosen_hear(dgate, x, weight, A):
    score = np.exp(x @ weight.T) / np.exp(x @ weight.T).sum(axis=1, keepdims=True)
    full = solved._put(dgate, solved._best(score, A), len(weight))
    dlogit = np.where(full != 0, score * (full - (score * full).sum(axis=1, keepdims=True)), 0)
    return dlogit @ weight, dlogit.T @ x


def seat_token_by_token(index, n_experts, places):
    flat = index.reshape(-1, 1)
    return solved.seat_choices(flat, n_experts, places).reshape(index.shape)


def last_place_answers(dy, index, place, gate, out):
    _, dout = solved.combine_backward(dy, index, place, gate, out)
    return np.einsum("nad,nd->na", out[index, place], dy), dout


def answers_without_gates(dy, index, place, gate, out):
    dgate, _ = solved.combine_backward(dy, index, place, gate, out)
    return dgate, solved.combine_backward(dy, index, place, np.ones_like(gate), out)[1]


def pooled(score, A, alpha):
    return solved.balance_sequences(score.reshape(1, -1, score.shape[-1]), A, alpha)


def raw_scores(score, A, alpha):
    f = solved._count_chosen(score, A)
    return float(alpha * (f * score.mean(axis=1)).sum(axis=1).mean())


def share_without_a_slope(score, A, alpha):
    f = solved._count_chosen(score, A)[:, None]
    return alpha * f / score.sum(axis=-1, keepdims=True) / score[..., 0].size


def expert_without_its_gate(dy, x, gate, *matrices):
    _, dgate, *_ = right_expert(dy, x, gate, *matrices)
    dx, _, *rest = right_expert(dy, x, np.ones_like(gate), *matrices)
    return dx, dgate, *rest


def bias_in_the_gates(score, bias, G, kept, A, scale):
    index, _ = solved.choose_and_weigh(score, bias, G, kept, A, scale)
    picked = np.take_along_axis(score + bias, index, axis=1)
    return index, scale * picked / picked.sum(axis=1, keepdims=True)


def filled_with_zeros(score, bias, G, kept, A, scale):
    c = (score + bias).reshape(len(score), G, -1)
    out = solved._best(-np.sort(c, axis=-1)[..., -2:].sum(axis=-1), G - kept)
    np.put_along_axis(c, out[..., None], 0.0, axis=1)
    index = solved._best(c.reshape(score.shape), A)
    picked = np.take_along_axis(score, index, axis=1)
    return index, scale * picked / picked.sum(axis=1, keepdims=True)


def in_the_order_of_the_experts(x, index, gate, experts):
    order = np.argsort(index, axis=None, kind="stable")
    answer = [experts[index.ravel()[v]](x[v // index.shape[1]][None])[0] for v in order]
    return np.einsum("na,nad->nd", gate, np.array(answer).reshape(*index.shape, -1))


def token_by_token(x, index, gate, experts):
    return np.array([sum(g * experts[e](x[n : n + 1])[0] for e, g in zip(index[n], gate[n])) for n in range(len(x))])


def backward_with(**changes):
    """moe_backward, with some of what it calls exchanged."""

    def run(*arguments):
        kept = {name: getattr(solved, name) for name in changes}
        vars(solved).update(changes)
        try:
            return solved.moe_backward(*arguments)
        finally:
            vars(solved).update(kept)

    return run


def with_a_gradient_of_the_bias(*arguments):
    dx, grads = solved.moe_backward(*arguments)
    return dx, {**grads, "gate.e_score_correction_bias": np.zeros(12)}


def layer_with(**changes):
    """The layer from an empty file, with other arguments or weights."""

    def run(x, weights, n_group, topk_group, A, scale):
        weights = {name: changes.get(name, lambda a: a)(array) for name, array in weights.items()}
        n_group, topk_group = changes.get("groups", (n_group, topk_group))
        return solved.moe_from_an_empty_file(x, weights, n_group, topk_group, A, changes.get("scale", scale))

    return run


WITHOUT_SHARED = layer_with(**{"shared_experts.down_proj": lambda a: 0 * a})
WITHOUT_BIAS = layer_with(**{"gate.e_score_correction_bias": lambda a: 0 * a})

WRONG = [
    ("teach_router", sum_held_constant, "you hold the sum constant"),
    ("teach_router", lambda d, p: -solved.teach_router(d, p), "the sign is turned"),
    ("router_backward", without_the_normalisation, "use teach_router"),
    ("router_backward", in_the_first_columns, "lies in the first columns"),
    ("router_backward", lambda *a: solved.router_backward(*a)[0], "return 2 results, in this order: dx, dweight"),
    ("softmax_router_backward", only_the_chosen_hear, "all others are in the denominator"),
    ("softmax_router_backward", solved.router_backward, "dx"),
    ("seat_choices", seat_token_by_token, "before any second choice"),
    ("seat_choices", lambda i, E, P: solved.seat_choices(i, E, 99), "has no place: -1"),
    ("combine_backward", last_place_answers, "is somebody else's answer"),
    ("combine_backward", answers_without_gates, r"dout = gate \* dy"),
    (
        "relu_expert_backward",
        lambda d, x, u, w: (d @ w @ u, (d @ w).T @ x, d.T @ np.maximum(x @ u.T, 0)),
        "relu is mis",
    ),
    (
        "relu_expert_backward",
        lambda *a: (*solved.relu_expert_backward(*a)[:2], a[0].T @ (a[1] @ a[2].T)),
        "AFTER the r",
    ),
    ("expert_choice_backward", lambda d, t, g, o: ((d[t] * o).sum(-1), d[t]), r"dout = gate \* dy"),
    ("expert_choice_backward", lambda d, t, g, o: (d[t] * o, g[..., None] * d[t]), "sum over D"),
    ("balance_batch_backward", lambda s, i, a: len(s) * solved.balance_batch_backward(s, i, a), "a share of 1/N"),
    ("balance_batch_backward", lambda s, i, a: solved.balance_batch_backward(s, i, a)[0], "you return one row"),
    ("balance_batch_backward", lambda s, i, a: solved.balance_batch_backward(s, i, 1), "alpha is missing"),
    ("balance_sequences", pooled, "you pool the batch"),
    ("balance_sequences", raw_scores, "you used raw scores"),
    ("balance_sequences", lambda s, A, a: A * solved.balance_sequences(s, A, a), "doubles with the number"),
    ("balance_sequences_backward", share_without_a_slope, "every score is in the denominator"),
    ("balance_sequences_backward", lambda s, A, a: 3 * solved.balance_sequences_backward(s, A, a), "mean over the seq"),
    ("move_bias", lambda b, c, v: b + v * np.sign(c - c.mean()), "the sign is turned"),
    ("move_bias", lambda b, c, v: b + v * (c.mean() - c), "take its sign"),
    ("measure_violation", lambda c: c.max() / c.mean(), "subtract 1"),
    ("gated_expert_backward", expert_without_its_gate, r"receives gate \* dy, not dy"),
    ("choose_and_weigh", bias_in_the_gates, "leaked into the gates"),
    ("choose_and_weigh", filled_with_zeros, "fill losing groups with -inf"),
    ("choose_and_weigh", lambda s, b, *rest: solved.choose_and_weigh(s, 0 * b, *rest), "must be added to choose"),
    ("visit_experts", in_the_order_of_the_experts, "put them back"),
    ("visit_experts", token_by_token, "sort, and call each once"),
    ("moe_backward", backward_with(teach_router=lambda d, p: right_teacher(d / 1.7, p)), "scaled too"),
    ("moe_backward", backward_with(gated_expert_backward=expert_without_its_gate), r"it receives gate \* dy"),
    ("moe_backward", with_a_gradient_of_the_bias, "or it will be trained"),
    ("moe_backward", lambda *a: solved.moe_backward(*a)[0], "a dict of gradients"),
    ("moe_from_an_empty_file", WITHOUT_SHARED, "the shared expert is missing"),
    ("moe_from_an_empty_file", WITHOUT_BIAS, "the bias is missing"),
    ("moe_from_an_empty_file", layer_with(scale=1.0), "the scale is missing"),
    ("moe_from_an_empty_file", layer_with(groups=(1, 1)), "the groups are missing"),
]


@pytest.mark.parametrize(("name", "answer", "words"), WRONG, ids=[f"{w[0]}-{i}" for i, w in enumerate(WRONG)])
def test_a_usual_mistake_is_named(name, answer, words):
    with pytest.raises(AssertionError, match=words):
        vars(checks)[f"check_{name}"](answer)


def test_a_gradient_of_the_right_direction_and_the_wrong_size_is_told_the_factor():
    with pytest.raises(AssertionError, match="right direction, 2 times the right size"):
        checks.check_gated_expert_backward(lambda *a: tuple(2 * g for g in solved.gated_expert_backward(*a)))


def test_every_exercise_has_three_folded_hints():
    hints = (CHAPTER / "hints.md").read_text(encoding="utf-8").split("## `")[1:]
    names = [n.removeprefix("check_") for n in vars(checks) if n.startswith("check_")]
    assert [h.split("`")[0] for h in hints] == names
    assert all(h.count("<details><summary>Hint") == 3 for h in hints)
