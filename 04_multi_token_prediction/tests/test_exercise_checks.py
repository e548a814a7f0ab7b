"""The grader recognises the usual wrong answers by name, and says more than "wrong"."""

from pathlib import Path

import numpy as np
import pytest

from utils.exercises import load_file

CHAPTER = Path(__file__).resolve().parent.parent
CHECKS = load_file(CHAPTER / "exercise_checks.py")
SOLVED = load_file(CHAPTER / "exercises_solved.py")


def residual(p, q):
    return np.maximum(p - q, 0) / np.maximum(p - q, 0).sum()


def rms(x):
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-6)


def softmax(z):
    return np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True)


def add_by_index(dx, token, V):
    d = np.zeros((V, dx.shape[1]))
    d[token] += dx
    return d


def scale_only(dy, h, e, we, wh, m):
    """The norm's root taken for a constant."""
    de, dh = np.split(dy @ m, 2, axis=-1)
    size = [np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-6) for x in (h, e)]
    return dh * wh / size[0], de * we / size[1], SOLVED.join_pair_backward(dy, h, e, we, wh, m)[2]


def raw_rows(dy, h, e, we, wh, m):
    return *SOLVED.join_pair_backward(dy, h, e, we, wh, m)[:2], dy.T @ np.concatenate([e, h], axis=-1)


def halves_crossed(dy, h, e, we, wh, m):
    first, second = np.split(m, 2, axis=1)
    return SOLVED.join_pair_backward(dy, h, e, we, wh, np.concatenate([second, first], axis=1))


def no_last_norm(dout, h, e, w, forward, backward):
    pair = h, e, w["enorm"], w["hnorm"], w["eh_proj"]
    back = backward(dout, forward(SOLVED.join_pair(*pair))[1])
    return *SOLVED.join_pair_backward(back, *pair)[:2], dout.sum(axis=0)


def raw_norm_weight(dout, h, e, w, forward, backward):
    rows, _ = forward(SOLVED.join_pair(h, e, w["enorm"], w["hnorm"], w["eh_proj"]))
    return *SOLVED.module_backward(dout, h, e, w, forward, backward)[:2], (dout * rows).sum(axis=0)


def end_row(d):
    return np.concatenate([d, np.zeros((1, d.shape[1]))])


def deaf_to_depth_2(d1, d2, back_1, back_2):
    dhidden, de1 = back_1(d1)
    return end_row(dhidden), de1, back_2(d2)[1]


def zeros_in_front(d1, d2, back_1, back_2):
    dh2, de2 = back_2(d2)
    dh1, de1 = back_1(d1 + np.concatenate([0 * dh2[:1], dh2]))
    return np.concatenate([0 * dh1[:1], dh1]), de1, de2


def with_change(**change):
    """The whole module with some of its inputs changed."""

    def answer(hidden, token, document, embed, head, w, block):
        arguments = {"hidden": hidden, "token": token, "document": document, "w": w, "block": block}
        arguments |= {name: f(arguments[name]) for name, f in change.items()}
        a = arguments
        return SOLVED.mtp_from_an_empty_file(a["hidden"], a["token"], a["document"], embed, head, a["w"], a["block"])

    return answer


def per_depth_divisor(hidden, token, document, *rest):
    logits, loss = SOLVED.mtp_from_an_empty_file(hidden, token, document, *rest)
    return logits, loss * np.sum(document[:-1] == document[1:]) / np.sum(document[:-2] == document[2:])


def reads_its_target(hidden, token, document, embed, head, w, block):
    """Words shifted by one against the targets."""
    pair = SOLVED.join_pair(hidden[:-1], embed[token[2:]], w["enorm"], w["hnorm"], w["eh_proj"])
    return rms(block(pair, np.arange(9))) * w["shared_head.norm"] @ head.T, 0.0


WRONG = [
    ("head_backward", lambda h, w, t, n: (SOLVED.loss_gradient(h @ w.T, t, n), w), "go through the head as well"),
    ("head_backward", lambda *a: (SOLVED.head_backward(*a)[0], SOLVED.head_backward(*a)[1].T), "the head is"),
    (
        "relu_squared_backward",
        lambda d, x, u, w: (d @ w * (x @ u.T > 0) @ u, u, w),
        "the slope of the square is missing",
    ),
    ("relu_squared_backward", lambda *a: tuple(g / 2 for g in SOLVED.relu_squared_backward(*a)), "has a factor 2"),
    (
        "relu_squared_backward",
        lambda *a: (*SOLVED.relu_squared_backward(*a)[:2], a[0].T @ np.maximum(a[1] @ a[2].T, 0)),
        "read the SQUARES",
    ),
    ("parallel_backward", lambda d, b: b[0](d[0] + np.pad(b[1](d[1]), ((0, 1), (0, 0)))), "dhidden has 5 rows"),
    (
        "parallel_backward",
        lambda d, b: np.pad(b[0](d[0] + np.pad(b[1](d[1]), ((0, 1), (0, 0)))), ((0, 1), (0, 0))),
        "that is DeepSeek's chain",
    ),
    ("parallel_backward", lambda d, b: SOLVED.parallel_backward(d, b) / 2, "adds up"),
    ("further_targets", lambda t, k, d: np.where(d[:, : 10 - k] == d[:, k + 1 :], t[:, k:10], -100), "learn to copy"),
    ("further_targets", lambda t, k, d: np.where(d[:, : 10 - k] == d[:, 1 : 11 - k], t[:, k + 1 :], -100), "i and i"),
    ("further_targets", lambda t, k, d: t[:, k + 1 :], "next document count"),
    ("further_targets", lambda t, k, d: t, "one for each target"),
    ("loss_gradient", lambda z, t, n: (softmax(z) - np.eye(7)[t % 7]) * (t >= 0)[:, None], "divisor is missing"),
    ("loss_gradient", lambda z, t, n: softmax(z) * (t >= 0)[:, None] / n, "one-hot of the target is missing"),
    ("loss_gradient", lambda z, t, n: (np.eye(7)[t % 7] - softmax(z)) * (t >= 0)[:, None] / n, "sign is turned"),
    ("loss_gradient", lambda z, t, n: (softmax(z) - np.eye(7)[t % 7]) / n, "gradient of exactly zero"),
    ("look_up_backward", add_by_index, "keep the last only"),
    ("look_up_backward", lambda dx, t, V: dx, "each token of the vocabulary"),
    ("join_pair", lambda h, e, we, wh, m: np.concatenate([rms(h) * wh, rms(e) * we], -1) @ m.T, "order of the paper"),
    ("join_pair", lambda h, e, we, wh, m: np.concatenate([e, h], -1) @ m.T, "neither input is normalized"),
    ("join_pair", lambda h, e, we, wh, m: np.concatenate([rms(e) * wh, rms(h) * we], -1) @ m.T, "exchanged"),
    ("join_pair", lambda h, e, we, wh, m: np.concatenate([rms(e), rms(h)], -1) @ m.T, "weights of the norms"),
    ("join_pair_backward", scale_only, "root depends on the row as well"),
    ("join_pair_backward", raw_rows, "normed rows, not the raw ones .right so far: dhidden, dembedding"),
    ("join_pair_backward", halves_crossed, "the hidden row is the second"),
    ("module_backward", no_last_norm, "norm behind the block is missing"),
    ("module_backward", raw_norm_weight, "NORMED row"),
    ("module_backward", lambda *a: SOLVED.module_backward(*a)[:2], "you return 2 results, expected 3"),
    ("chain_backward", deaf_to_depth_2, "depth 2 is forgotten"),
    ("chain_backward", lambda d1, d2, b1, b2: (b1(d1)[0], *b1(d1)[1:], b2(d2)[1]), "give it zeros"),
    ("chain_backward", zeros_in_front, "it is the LAST row"),
    ("check_draft", lambda rng, d, q, p: d, "without a check"),
    ("check_draft", lambda rng, d, q, p: d if rng.random() < p[d] / q[d] else rng.choice(3, p=p), "draw from p"),
    ("check_draft", lambda rng, d, q, p: d if rng.random() < p[d] else rng.choice(3, p=residual(p, q)), "with prob"),
    ("check_draft", lambda rng, d, q, p: rng.choice(3, p=p), "must always pass"),
    ("tokens_per_step", lambda a, k: 1 + k * a, "thrown away"),
    ("tokens_per_step", lambda a, k: sum(a**i for i in range(1, k + 1)), "own token is missing"),
    ("rows_to_keep", lambda n, m: (n + m, n), "one row more"),
    ("rows_to_keep", lambda n, m: (n + m + 1, n + m + 1), "redone with real rows"),
    ("mtp_from_an_empty_file", reads_its_target, "its own target"),
    ("mtp_from_an_empty_file", with_change(hidden=lambda h: np.roll(h, -1, axis=0)), "drop the LAST hidden row"),
    ("mtp_from_an_empty_file", with_change(block=lambda b: lambda x, at: b(x, at + 1)), "where its hidden row stands"),
    ("mtp_from_an_empty_file", with_change(w=lambda w: {**w, "shared_head.norm": np.ones(5)}), "has a weight"),
    ("mtp_from_an_empty_file", with_change(document=lambda d: 0 * d), "nor in the divisor"),
    ("mtp_from_an_empty_file", per_depth_divisor, "divides by the main model's"),
]


@pytest.mark.parametrize(("exercise", "wrong", "says"), WRONG)
def test_a_wrong_answer_is_told_what_is_wrong_with_it(exercise, wrong, says):
    with pytest.raises(AssertionError, match=says):
        getattr(CHECKS, f"check_{exercise}")(wrong)


def test_every_exercise_has_three_folded_hints():
    hints = (CHAPTER / "hints.md").read_text(encoding="utf-8").split("## `")[1:]
    names = [n.removeprefix("check_") for n in vars(CHECKS) if n.startswith("check_")]
    assert [h.split("`")[0] for h in hints] == names
    assert all(h.count("<details><summary>Hint") == 3 for h in hints)
