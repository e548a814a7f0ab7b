"""The grader of the exercises names the usual wrong answers for what they are."""

from pathlib import Path

import numpy as np
import pytest

from utils.exercises import load_file

CHAPTER = Path(__file__).resolve().parent.parent
CHECKS = load_file(CHAPTER / "exercise_checks.py")
SOLVED = load_file(CHAPTER / "exercises_solved.py")


def forget_projection(dy, x, weight, eps):
    rms = np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps)
    return weight * dy / rms, (dy * x / rms).reshape(-1, x.shape[-1]).sum(axis=0)


def post_norm(x, norms, attention, mlp):
    x = norms[0](x + attention(x))
    return norms[1](x + mlp(x))


def change_in_place(x, norms, attention, mlp):
    x += attention(norms[0](x))
    return x + mlp(norms[1](x))


def mean_divided_by_the_keys(dprob, prob):
    return prob * (dprob - (prob * dprob).mean(axis=-1, keepdims=True))


def without_the_sum(do, q, k, v, share):
    dscore = share * (do @ v.T) / np.sqrt(q.shape[1])
    return dscore @ k, dscore.T @ q, share.T @ do


def without_a_mask(do, q, k, v):
    score = q @ k.T / np.sqrt(q.shape[1])
    share = np.exp(score) / np.exp(score).sum(axis=1, keepdims=True)
    return SOLVED.attention_backward(do, q, k, v, share)


def masked_too_late(do, q, k, v):
    score = q @ k.T / np.sqrt(q.shape[1])
    share = np.exp(score) / np.exp(score).sum(axis=1, keepdims=True)
    return SOLVED.attention_backward(do, q, k, v, share * SOLVED.causal_mask(len(q), len(k)))


def output_from_the_input(do, x, *weights_and_heads):
    *rest, _ = SOLVED.multi_head_backward(do, x, *weights_and_heads)
    return *rest, do.T @ np.tile(x, (1, 3))[:, :15]


def one_wide_head(do, x, wq, wk, wv, wo, H):
    return SOLVED.multi_head_backward(do, x, wq, wk, wv, wo, 1)


def slope_of_the_sigmoid(dy, x, gate_proj, up_proj, down_proj):
    gate, up = x @ gate_proj.T, x @ up_proj.T
    s, dh = 1 / (1 + np.exp(-gate)), dy @ down_proj
    dgate, dup = dh * up * s * (1 - s), dh * gate * s
    return dgate @ gate_proj + dup @ up_proj, dgate.T @ x, dup.T @ x, dy.T @ (gate * s * up)


def only_through_up(dy, x, gate_proj, up_proj, down_proj):
    _, *rest = SOLVED.swiglu_backward(dy, x, gate_proj, up_proj, down_proj)
    gate = x @ gate_proj.T
    return dy @ down_proj * gate / (1 + np.exp(-gate)) @ up_proj, *rest


def branches_apart(dout, norms_back, attention_back, mlp_back):
    return dout + norms_back[1](mlp_back(dout)) + norms_back[0](attention_back(dout))


def block_with_gate_and_up_exchanged(x, w, H):
    return SOLVED.block_from_an_empty_file(
        x, {**w, "mlp.gate_proj": w["mlp.up_proj"], "mlp.up_proj": w["mlp.gate_proj"]}, H
    )


def block_without_a_mask(x, w, H):
    keep, SOLVED.causal_mask = SOLVED.causal_mask, lambda S, T: np.ones((S, T), dtype=bool)
    try:
        return SOLVED.block_from_an_empty_file(x, w, H)
    finally:
        SOLVED.causal_mask = keep


WRONG = [
    ("score_keys", lambda q, k: q @ np.swapaxes(k, -1, -2), "not scaled"),
    ("score_keys", lambda q, k: q @ np.swapaxes(k, -1, -2) / q.shape[-1], "square root only"),
    ("causal_mask", lambda S, T: np.tril(np.ones((S, T), dtype=bool)), "add T - S"),
    ("causal_mask", lambda S, T: np.tril(np.ones((S, T))), "return booleans"),
    ("causal_mask", lambda S, T: np.tril(np.ones((S, T), dtype=bool), T - S - 1), "<=, not <"),
    ("causal_mask", lambda S, T: np.tril(np.ones((S, T), dtype=bool), 3), "should be"),
    ("softmax_backward", lambda dprob, prob: prob * dprob, "the mean is missing"),
    ("softmax_backward", lambda dprob, prob: prob * (1 - prob) * dprob, "only the diagonal"),
    ("split_heads", lambda x, H: x.reshape(len(x), H, x.shape[1], -1), "pieces of several tokens"),
    ("split_heads", lambda x, H: x.reshape(*x.shape[:2], H, -1), "exchange S and H"),
    ("softmax_backward", mean_divided_by_the_keys, "it is the SUM"),
    ("attention_backward", without_the_sum, "you left the sum out"),
    ("attention_backward", lambda *a: SOLVED.attention_backward(*a)[:2], "you return 2 results, expected 3"),
    ("three_roles_backward", lambda *a: (a[0] @ a[4], *SOLVED.three_roles_backward(*a)[1:]), "as a query only"),
    ("causal_attention_backward", without_a_mask, "nothing is masked"),
    ("causal_attention_backward", masked_too_late, "masked AFTER the softmax"),
    ("multi_head_backward", one_wide_head, "one wide head"),
    ("multi_head_backward", output_from_the_input, r"do_proj: .*right so far: dhidden, dq_proj"),
    ("swiglu_backward", slope_of_the_sigmoid, "silu is not the sigmoid"),
    ("swiglu_backward", only_through_up, "the gate's part is missing"),
    ("block_backward", branches_apart, "must start from what has passed"),
    ("block_backward", lambda d, n, a, m: n[0](a(n[1](m(d)))), "the straight way is missing"),
    ("block_from_an_empty_file", block_with_gate_and_up_exchanged, "gate and up are exchanged"),
    ("block_from_an_empty_file", block_without_a_mask, "they see their future"),
    ("split_heads", lambda x, H: x.tolist(), "return an array"),
    ("rms_norm_backward", forget_projection, "second term is missing"),
    ("block_forward", post_norm, "post-norm"),
    ("block_forward", change_in_place, "changed in place"),
]


@pytest.mark.parametrize(("exercise", "answer", "sentence"), WRONG)
def test_a_usual_wrong_answer_is_recognised(exercise, answer, sentence):
    with pytest.raises(AssertionError, match=sentence):
        getattr(CHECKS, f"check_{exercise}")(answer)


def test_every_exercise_has_three_folded_hints():
    hints = (CHAPTER / "hints.md").read_text(encoding="utf-8").split("## `")[1:]
    names = [n.removeprefix("check_") for n in vars(CHECKS) if n.startswith("check_")]
    assert [h.split("`")[0] for h in hints] == names
    assert all(h.count("<details><summary>Hint") == 3 for h in hints)
