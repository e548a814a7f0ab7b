"""What `make check CH=01` asks of exercises.py. Each check knows the usual wrong answers and says which one it sees."""

from collections.abc import Callable

import numpy as np


def say_which(got: object, right: np.ndarray, wrong: dict[str, np.ndarray], what: str) -> None:
    """Pass when `got` is right; else name the known mistake that it equals.

    Raises:
        AssertionError: with the sentence that explains the difference.
    """
    assert isinstance(got, np.ndarray), f"{what}: return an array, not {type(got).__name__}"
    if got.shape == right.shape and np.allclose(got, right, rtol=1e-9, atol=1e-12):
        return
    for sentence, value in wrong.items():
        if got.shape == value.shape and np.allclose(got, value, rtol=1e-9, atol=1e-12, equal_nan=True):
            raise AssertionError(f"{what}: {sentence}")
    assert got.shape == right.shape, f"{what}: the shape is {got.shape}, should be {right.shape}"
    worst = np.unravel_index(np.argmax(np.abs(got.astype(float) - right)), right.shape)
    place = tuple(int(i) for i in worst)
    raise AssertionError(f"{what}: at {place} there is {got[worst]:.6g}, should be {right[worst]:.6g}")


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
    say_which(score_keys(query, key), plain / 7**0.5, wrong, "score_keys")


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
        say_which(got, right, wrong, what)


def check_softmax_backward(softmax_backward: Callable) -> None:
    """Shares of two rows against the full Jacobian."""
    rng = np.random.default_rng(2)
    prob, dprob = rng.dirichlet(np.ones(5), size=(2, 3)), rng.normal(size=(2, 3, 5))
    jacobian = np.einsum("...i,ij->...ij", prob, np.eye(5)) - np.einsum("...i,...j->...ij", prob, prob)
    right = np.einsum("...ij,...j->...i", jacobian, dprob)
    wrong = {
        "the mean is missing: raising one share lowers all others, and that has to be paid": prob * dprob,
        "only the diagonal of the Jacobian is there; every share depends on every score": prob * (1 - prob) * dprob,
        "the mean must be weighted by the shares": prob * (dprob - dprob.mean(axis=-1, keepdims=True)),
        "you subtracted the mean but did not weigh by the shares": dprob - np.sum(prob * dprob, -1, keepdims=True),
        "the sign is turned: it is dprob minus the mean": -right,
        "the mean runs over the rows; the softmax ran over the last axis": prob
        * (dprob - np.sum(prob * dprob, axis=-2, keepdims=True)),
    }
    say_which(softmax_backward(dprob, prob), right, wrong, "softmax_backward")


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
    say_which(split_heads(joined, H), right, wrong, "split_heads")


def check_rms_norm_backward(rms_norm_backward: Callable) -> None:
    """A weight that is not one, two axes in front, an eps large enough to matter."""
    rng = np.random.default_rng(3)
    dy, x, weight, eps = rng.normal(size=(2, 3, 5)), rng.normal(size=(2, 3, 5)), rng.normal(size=5), 0.1
    rms = np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps)
    x_hat, g = x / rms, weight * dy
    along = np.mean(g * x_hat, axis=-1, keepdims=True)
    answer = rms_norm_backward(dy, x, weight, eps)
    assert isinstance(answer, tuple) and len(answer) == 2, "rms_norm_backward: return two arrays, dx and dweight"  # noqa: PT018
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
    say_which(answer[0], (g - x_hat * along) / rms, wrong, "rms_norm_backward, dx")
    per_token = dy * x_hat
    wrong = {
        "not summed: all tokens share one weight, so their gradients add up": per_token,
        "averaged over the tokens; gradients of a shared parameter are summed": per_token.mean(axis=(0, 1)),
        "summed over the batch only": per_token.sum(axis=0),
        "the weight does not appear in its own gradient": (per_token * weight).sum(axis=(0, 1)),
        "x stands where x_hat belongs": (dy * x).sum(axis=(0, 1)),
    }
    say_which(answer[1], per_token.sum(axis=(0, 1)), wrong, "rms_norm_backward, dweight")


def _dx_without_eps(x: np.ndarray, g: np.ndarray) -> np.ndarray:
    rms = np.sqrt(np.mean(x**2, axis=-1, keepdims=True))
    return (g - x / rms * np.mean(g * x / rms, axis=-1, keepdims=True)) / rms


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
    say_which(got, right, wrong, "block_forward")


def _norm_outside(x: np.ndarray, norm_1: Callable, norm_2: Callable, attention: Callable, mlp: Callable) -> np.ndarray:
    normed = norm_1(x)
    normed = norm_2(normed + attention(normed))
    return normed + mlp(normed)
