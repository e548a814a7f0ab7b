"""What `make check CH=01` asks of exercises.py. Each check knows the usual wrong answers and says which one it sees."""

from collections.abc import Callable

import numpy as np
from causal_attention import attend_causally_backward, attend_causally_forward
from exercise_words_01 import expect_parts, expect_same, expect_shape
from multi_head_attention import AttentionWeights, merge_heads, multi_head_backward, multi_head_forward, split_heads
from self_attention import attend_backward, attend_forward
from swiglu import SwigluWeights, sigmoid, swiglu_backward, swiglu_forward
from transformer_block import BlockSizes, BlockWeights, block_forward, list_arrays


def check_score_keys(score_keys: Callable) -> None:
    """Two axes in front, S and T different, K = 7."""
    rng = np.random.default_rng(1)
    query, key = rng.normal(size=(2, 3, 5, 7)), rng.normal(size=(2, 3, 11, 7))
    plain = np.einsum("bhsk,bhtk->bhst", query, key)
    wrong = {
        "the scores are not scaled; divide by sqrt(K), or a wide query looks at one key only": plain,
        "you divided by K; the spread of the sum grows with its square root only": plain / 7,
        "you multiplied by sqrt(K) instead of dividing": plain * 7**0.5,
        "you divided by the root of the number of keys; the sum runs over the K coordinates": plain / 11**0.5,
        "rows are keys and columns queries; the result is [..., S, T]": np.swapaxes(plain, -1, -2) / 7**0.5,
    }
    expect_same(score_keys(query, key), plain / 7**0.5, wrong, "score_keys")


def check_softmax_backward(softmax_backward: Callable) -> None:
    """Shares of two rows against the full Jacobian."""
    rng = np.random.default_rng(2)
    prob, dprob = rng.dirichlet(np.ones(5), size=(2, 3)), rng.normal(size=(2, 3, 5))
    jacobian = np.einsum("...i,ij->...ij", prob, np.eye(5)) - np.einsum("...i,...j->...ij", prob, prob)
    right = np.einsum("...ij,...j->...i", jacobian, dprob)
    wrong = {
        "the mean is missing: raising one share lowers all others, and that has to be paid": prob * dprob,
        "only the diagonal of the Jacobian is there; every share depends on every score": prob * (1 - prob) * dprob,
        "you took the MEAN of prob * dprob; the shares weigh it already, so it is the SUM": prob
        * (dprob - (prob * dprob).mean(axis=-1, keepdims=True)),
        "the mean must be weighted by the shares": prob * (dprob - dprob.mean(axis=-1, keepdims=True)),
        "you subtracted the mean but did not weigh by the shares": dprob - np.sum(prob * dprob, -1, keepdims=True),
        "the sign is turned: it is dprob minus the mean": -right,
        "the mean runs over the rows; the softmax ran over the last axis": prob
        * (dprob - np.sum(prob * dprob, axis=-2, keepdims=True)),
    }
    expect_same(softmax_backward(dprob, prob), right, wrong, "softmax_backward")


def check_attention_backward(answer: Callable) -> None:
    """Queries, keys and values of different numbers and widths."""
    rng = np.random.default_rng(5)
    q, k, v, do = (rng.normal(size=s) for s in ((3, 5), (7, 5), (7, 2), (3, 2)))
    _, cache = attend_forward(q, k, v)
    share, worth = cache[3], do @ v.T
    dq, dk, dv = attend_backward(do, cache)
    flat, mean = share * worth, share * (worth - (share * worth).mean(axis=1, keepdims=True))
    root = 5**0.5
    no_sum = "the softmax gives prob * (dprob - sum(prob * dprob)); you left the sum out"
    usual = {
        "dquery": {
            no_sum: flat @ k / root,
            "subtract the SUM of prob * dprob over the keys, not its mean: the shares weigh it already": mean
            @ k
            / root,
            "the score was divided by sqrt(K), so its gradient is divided too": root * dq,
            "you divided by K; the score was divided by its root": dq / root,
        },
        "dkey": {no_sum: flat.T @ q / root, "dkey carries the 1 / sqrt(K) of the score as well": root * dk},
        "dvalue": {"each value gets dout in proportion to its share: prob^T dout": np.tile(do.sum(axis=0), (7, 1))},
    }
    want = {"dquery": dq, "dkey": dk, "dvalue": dv}
    expect_parts(answer(do.copy(), q.copy(), k.copy(), v.copy(), share.copy()), want, usual)


def check_three_roles_backward(answer: Callable) -> None:
    """One row, three uses."""
    rng = np.random.default_rng(6)
    dq, dk, dv, x = (rng.normal(size=(7, width)) for width in (3, 3, 2, 5))
    wq, wk, wv = (rng.normal(size=(width, 5)) for width in (3, 3, 2))
    each = [dq @ wq, dk @ wk, dv @ wv]
    want = {"dhidden": sum(each), "dq_proj": dq.T @ x, "dk_proj": dk.T @ x, "dv_proj": dv.T @ x}
    usual = {
        "dhidden": {
            "the row was fetched as a value too: dvalue v_proj is missing": each[0] + each[1],
            "the row was a key too: dkey k_proj is missing": each[0] + each[2],
            "that is the row as a query only; it was key and value as well": each[0],
            "ways that meet add up; you took their mean": sum(each) / 3,
        },
        "dq_proj": {"a weight is [out, in]: dquery^T hidden, not hidden^T dquery": x.T @ dq},
    }
    expect_parts(answer(*(a.copy() for a in (dq, dk, dv, x, wq, wk, wv))), want, usual)


def check_causal_mask(causal_mask: Callable) -> None:
    """Square, with older keys, and a single query."""
    for S, T in ((5, 5), (2, 5), (1, 7)):
        offset = T - S
        what = f"causal_mask({S}, {T})"
        got = causal_mask(S, T)
        assert isinstance(got, np.ndarray), f"{what}: return an array, not {type(got).__name__}"
        assert got.dtype == bool, f"{what}: the dtype is {got.dtype}; return booleans, True where looking is allowed"
        ones, right = np.ones((S, T), dtype=bool), np.tril(np.ones((S, T), dtype=bool), offset)
        wrong = {
            "True stands where looking is forbidden; turn it around": ~right,
            "a query may look at its own token: the comparison is <=, not <": np.tril(ones, offset - 1),
            "a query sees one token of the future": np.tril(ones, offset + 1),
            "the diagonal starts in the first corner; with older keys it must end in the last: add T - S": np.tril(
                ones
            ),
            "this looks ahead instead of back: rows are queries, columns are keys": np.triu(ones, offset),
        }
        expect_same(got, right, wrong, what)


def check_causal_attention_backward(answer: Callable) -> None:
    """Three queries behind four older keys."""
    rng = np.random.default_rng(7)
    q, k, v, do = (rng.normal(size=s) for s in ((3, 5), (7, 5), (7, 2), (3, 2)))
    dq, dk, dv = attend_causally_backward(do, attend_causally_forward(q, k, v)[1])
    leaky = attend_backward(do, attend_forward(q, k, v)[1])
    share = attend_forward(q, k, v)[1][3]
    late = attend_backward(do, (q, k, v, share * np.tri(3, 7, 4)))
    zero = np.where(np.tri(3, 7, 4) > 0, q @ k.T / 5**0.5, 0.0)
    zeroed = np.exp(zero) / np.exp(zero).sum(axis=1, keepdims=True)
    corner = np.where(np.tri(3, 7) > 0, q @ k.T / 5**0.5, -np.inf)
    old = np.exp(corner - corner.max(axis=1, keepdims=True))
    wrong = {
        "nothing is masked: the queries see their future": leaky,
        "the shares were masked AFTER the softmax; mask the scores, or the future stays in its sum": late,
        "masked scores are 0 here, and e^0 = 1: use -inf": attend_backward(do, (q, k, v, zeroed)),
        "the diagonal starts in the first corner; with older keys it must end in the last: add T - S": attend_backward(
            do, (q, k, v, old / old.sum(axis=1, keepdims=True))
        ),
    }
    names = ("dquery", "dkey", "dvalue")
    usual = {name: {words: parts[i] for words, parts in wrong.items()} for i, name in enumerate(names)}
    expect_parts(answer(do.copy(), q.copy(), k.copy(), v.copy()), dict(zip(names, (dq, dk, dv))), usual)


def check_split_heads(split_heads: Callable) -> None:
    """Counted numbers, so that every misplaced one shows."""
    B, S, H, K = 2, 5, 3, 7
    joined = np.arange(B * S * H * K, dtype=float).reshape(B, S, H * K)
    right = np.stack([joined[:, :, h * K : (h + 1) * K] for h in range(H)], axis=1)
    wrong = {
        "reshaped straight to [B, H, S, K]: the shape is right, but a head now holds pieces of several tokens; "
        "cut the last axis first, then exchange axes": joined.reshape(B, H, S, K),
        "the heads are interleaved (every third number); a head is K neighbouring numbers: the head axis comes first "
        "when you cut": joined.reshape(B, S, K, H).transpose(0, 3, 1, 2),
        "cut, but not moved: this is [B, S, H, K]; exchange S and H": joined.reshape(B, S, H, K),
        "moved one axis too many: this is [B, H, K, S]": np.swapaxes(right, -1, -2),
    }
    expect_same(split_heads(joined, H), right, wrong, "split_heads")


def check_multi_head_backward(answer: Callable) -> None:
    """Three heads whose widths no other axis has."""
    rng = np.random.default_rng(8)
    weights, x, do = AttentionWeights.init(rng, 7, 3, 2, 5), rng.normal(size=(1, 4, 7)), rng.normal(size=(1, 4, 7))
    _, cache = multi_head_forward(x, weights, 3)
    dx, gradients = multi_head_backward(do, cache)
    want = {"dhidden": dx[0], **{f"d{name}": g for name, g in vars(gradients).items()}}
    mixed = np.ascontiguousarray(split_heads(do @ weights.o_proj, 3)).reshape(1, 4, 15)  # merged without exchanging
    wrong_cut = attend_causally_backward((do @ weights.o_proj).reshape(1, 3, 4, 5), cache[1])
    roles = [merge_heads(d)[0] for d in wrong_cut]
    swapped = sum(d @ w for d, w in zip(roles, (weights.q_proj, weights.k_proj, weights.v_proj)))
    one_head = multi_head_backward(do, multi_head_forward(x, weights, 1)[1])
    leaky = attend_backward(split_heads(do @ weights.o_proj, 3), attend_forward(*cache[1][:3])[1])
    seen = sum(merge_heads(d)[0] @ w for d, w in zip(leaky, (weights.q_proj, weights.k_proj, weights.v_proj)))
    usual = {
        "dhidden": {
            "the gradient was cut into heads without exchanging axes: a head got pieces of several tokens": swapped,
            "that is one wide head; cut queries, keys and values into n_heads first": one_head[0][0],
            "nothing is masked: each token sees its future": seen,
        },
        "do_proj": {
            "o_proj read the heads laid end to end, not the layer's input": do[0].T @ x[0],
            "the heads were laid end to end without exchanging axes": do[0].T @ mixed[0],
        },
    }
    expect_parts(answer(do[0].copy(), x[0].copy(), *(w.copy() for w in vars(weights).values()), 3), want, usual)


def check_rms_norm_backward(rms_norm_backward: Callable) -> None:
    """A weight that is not one, two axes in front, an eps large enough to matter."""
    rng = np.random.default_rng(3)
    dy, x, weight, eps = rng.normal(size=(2, 3, 5)), rng.normal(size=(2, 3, 5)), rng.normal(size=5), 0.1
    rms = np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps)
    x_hat, g = x / rms, weight * dy
    along = np.mean(g * x_hat, axis=-1, keepdims=True)
    answer = rms_norm_backward(dy, x, weight, eps)
    expect_two = "return two arrays, dx and dweight"
    assert isinstance(answer, tuple), expect_two
    assert len(answer) == 2, expect_two
    wrong = {
        "the second term is missing: x also stands inside the root": g / rms,
        "the weight is missing: g is weight * dy": (dy - x_hat * np.mean(dy * x_hat, -1, keepdims=True)) / rms,
        "the mean is taken of dy, not of g = weight * dy": (g - x_hat * np.mean(dy * x_hat, -1, keepdims=True)) / rms,
        "a sum where a mean belongs": (g - x_hat * np.sum(g * x_hat, -1, keepdims=True)) / rms,
        "the division by rms is missing": g - x_hat * along,
        "the sign of the second term is turned": (g + x_hat * along) / rms,
        "x stands where x_hat belongs": (g - x * np.mean(g * x, -1, keepdims=True)) / rms,
        "eps is not inside the root": _dx_without_eps(x, g),
    }
    expect_same(answer[0], (g - x_hat * along) / rms, wrong, "rms_norm_backward, dx")
    per_token = dy * x_hat
    wrong = {
        "not summed: all tokens share one weight, so their gradients add up": per_token,
        "averaged over the tokens; gradients of a shared parameter are summed": per_token.mean(axis=(0, 1)),
        "summed over the batch only": per_token.sum(axis=0),
        "the weight does not appear in its own gradient": (per_token * weight).sum(axis=(0, 1)),
        "x stands where x_hat belongs": (dy * x).sum(axis=(0, 1)),
    }
    expect_same(answer[1], per_token.sum(axis=(0, 1)), wrong, "rms_norm_backward, dweight")


def _dx_without_eps(x: np.ndarray, g: np.ndarray) -> np.ndarray:
    rms = np.sqrt(np.mean(x**2, axis=-1, keepdims=True))
    return (g - x / rms * np.mean(g * x / rms, axis=-1, keepdims=True)) / rms


def check_swiglu_backward(answer: Callable) -> None:
    """Five tokens, seven pipes, gates on both sides of zero."""
    rng = np.random.default_rng(9)
    weights, x, dy = SwigluWeights.init(rng, 3, 7), rng.normal(size=(5, 3)), rng.normal(size=(5, 3))
    dx, gradients = swiglu_backward(dy, swiglu_forward(x, weights)[1])
    w, gate, up = weights, x @ weights.gate_proj.T, x @ weights.up_proj.T
    s, dh = sigmoid(gate), dy @ weights.down_proj
    right, dup = dh * up * (s + gate * s * (1 - s)), dh * gate * s
    wrong = {
        "silu is not the sigmoid: its slope is s + a s (1 - s), not s (1 - s)": dh * up * s * (1 - s),
        "silu's slope has two terms, s + a s (1 - s); you have the first only": dh * up * s,
        "the gate's gradient is missing its factor up": dh * (s + gate * s * (1 - s)),
    }
    usual = {
        "dx": {
            "x went both ways: the gate's part is missing": dup @ w.up_proj,
            "x went both ways: the part through up is missing": right @ w.gate_proj,
            **{words: d @ w.gate_proj + dup @ w.up_proj for words, d in wrong.items()},
        },
        "dgate_proj": {words: d.T @ x for words, d in wrong.items()},
        "dup_proj": {"up is multiplied by silu(gate), not by the sigmoid alone": (dh * s).T @ x},
        "ddown_proj": {
            "down_proj read silu(gate) * up, not gate * up": dy.T @ (gate * up),
            "down_proj read the product of both branches": dy.T @ (gate * s),
        },
    }
    want = {"dx": dx, **{f"d{name}": g for name, g in vars(gradients).items()}}
    expect_parts(answer(dy.copy(), x.copy(), *(a.copy() for a in vars(w).values())), want, usual)


def check_block_forward(block_forward: Callable) -> None:
    """Four simple functions that do not commute."""
    x = np.random.default_rng(4).normal(size=(2, 3, 5))
    kept = x.copy()

    def norm_1(a):
        return a / np.sqrt(np.mean(a**2, axis=-1, keepdims=True))

    def norm_2(a):
        return 2 * norm_1(a)

    def attention(a):
        return np.cumsum(a, axis=-2)

    mlp = np.tanh
    between = x + attention(norm_1(x))
    right = between + mlp(norm_2(between))
    post = norm_1(x + attention(x))
    wrong = {
        "this is post-norm: the sum is normed, so the stream is rescaled at every layer": norm_2(post + mlp(post)),
        "the stream is lost: the parts' answers are added to it, they do not replace it": mlp(
            norm_2(attention(norm_1(x)))
        ),
        "the second part reads x, not what the first line made of it": between + mlp(norm_2(x)),
        "the second addition starts from x again; the attention's answer is lost": x + mlp(norm_2(between)),
        "the second addition is missing": mlp(norm_2(between)),
        "the first addition is missing": attention(norm_1(x)) + mlp(norm_2(attention(norm_1(x)))),
        "the same norm is used twice; each reader has its own": between + mlp(norm_1(between)),
        "the norms are exchanged": x + attention(norm_2(x)) + mlp(norm_1(x + attention(norm_2(x)))),
        "the attention reads the stream without its norm": x + attention(x) + mlp(norm_2(x + attention(x))),
        "the MLP reads the stream without its norm": between + mlp(between),
        "the branches start from the normed stream, not from the stream": _norm_outside(
            x, norm_1, norm_2, attention, mlp
        ),
    }
    got = block_forward(x, (norm_1, norm_2), attention, mlp)
    assert np.array_equal(x, kept), "block_forward: x was changed in place; write x = x + ..., not x += ..."
    expect_same(got, right, wrong, "block_forward")


def _norm_outside(x: np.ndarray, norm_1: Callable, norm_2: Callable, attention: Callable, mlp: Callable) -> np.ndarray:
    normed = norm_1(x)
    normed = norm_2(normed + attention(normed))
    return normed + mlp(normed)


def check_block_backward(answer: Callable) -> None:
    """Four linear ways back that do not commute."""
    rng = np.random.default_rng(10)
    dout, (a, b, c, d) = rng.normal(size=(3, 5)), rng.normal(size=(4, 5, 5))
    kept = dout.copy()

    def back(matrix):
        return lambda dy: dy @ matrix

    between = dout + dout @ d @ b  # d: mlp, b: its norm
    right = between + between @ c @ a  # c: attention, a: its norm
    wrong = {
        "the straight way is missing: the gradient arrives twice at each addition": dout @ d @ b @ c @ a,
        "the straight way is missing at the second step": between @ c @ a,
        "the straight way is missing at the first step": dout @ d @ b + dout @ d @ b @ c @ a,
        "the attention's part starts from dout; it must start from what has passed the MLP's addition": between
        + dout @ c @ a,
        "backwards the reader comes before its norm: it came after it forwards": (dout + dout @ b @ d)
        + (dout + dout @ b @ d) @ a @ c,
        "that is the order of the forward pass: the last addition comes first": _forward_order(dout, a, b, c, d),
        "the norms are exchanged": (dout + dout @ d @ a) + (dout + dout @ d @ a) @ c @ b,
    }
    got = answer(dout, (back(a), back(b)), back(c), back(d))
    assert np.array_equal(dout, kept), "block_backward: dout was changed in place; write d = d + ..., not d += ..."
    expect_same(got, right, wrong, "block_backward")


def _forward_order(dout, a, b, c, d):
    first = dout + dout @ c @ a
    return first + first @ d @ b


def check_block_from_an_empty_file(answer: Callable) -> None:
    """A block at sizes that no two axes share, with norm weights that are not one."""
    rng = np.random.default_rng(11)
    weights = BlockWeights.init(rng, BlockSizes(7, 3, 2, 5, 11))
    arrays = list_arrays(weights)
    for name in ("input_layernorm", "post_attention_layernorm"):
        arrays[name][:] = 1 + rng.random(7)
    x = rng.normal(size=(4, 7))
    x[2] *= 1e-3  # a row so small that eps matters

    def run(**changes):
        changed = {**arrays, **{n.replace("__", "."): v for n, v in changes.items()}}
        attention = AttentionWeights(*(changed[f"self_attn.{n}_proj"] for n in "qkvo"))
        mlp = SwigluWeights(*(changed[f"mlp.{n}_proj"] for n in ("gate", "up", "down")))
        block = BlockWeights(changed["input_layernorm"], attention, changed["post_attention_layernorm"], mlp)
        return block_forward(x[None], block, 3)[0][0]

    gate, up, q = arrays["mlp.gate_proj"], arrays["mlp.up_proj"], arrays["self_attn.q_proj"]
    want, wide = run(), block_forward(x[None], weights, 1)[0][0]
    usual = {
        "gate and up are exchanged: silu belongs to the gate": run(mlp__gate_proj=up, mlp__up_proj=gate),
        "the scores are not scaled: divide by the root of the width of ONE head": run(self_attn__q_proj=q * 2**0.5),
        "the root is that of all heads together; take the width of one": run(self_attn__q_proj=q * 3**-0.5),
        "the weights of the norms are missing": run(input_layernorm=np.ones(7), post_attention_layernorm=np.ones(7)),
        "the two norms are exchanged": run(
            input_layernorm=arrays["post_attention_layernorm"], post_attention_layernorm=arrays["input_layernorm"]
        ),
        "that is one wide head; cut the columns into n_heads": wide,
        "the attention's answer is missing in the stream": run(self_attn__o_proj=0 * arrays["self_attn.o_proj"]),
        "the MLP's answer is missing in the stream": run(mlp__down_proj=0 * arrays["mlp.down_proj"]),
        "the stream itself is lost: answers are added to it": want - x,
    }
    got = answer(x.copy(), {n: a.copy() for n, a in arrays.items()}, 3)
    expect_shape(got, (4, 7), "your block")
    future = np.allclose(got[-1], want[-1], rtol=1e-9, atol=1e-12) and not np.allclose(got, want, rtol=1e-9, atol=1e-12)
    assert not future, "your block: the last token is right, earlier ones are not: they see their future, mask it"
    expect_same(got, want, usual, "your block")
