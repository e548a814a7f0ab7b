"""Grade exercises.py: each check recognises the usual wrong answers and says what they mean."""

import numpy as np
import text_tokens
from bigram_model import bigram_backward, bigram_forward
from context_model import ContextWeights, context_backward, context_forward
from exercise_words_00 import expect_parts, expect_same, expect_shape, same
from number_formats import FORMATS, round_number
from surprise import softmax_forward, surprise_backward, surprise_forward


def check_merge_pair(answer) -> None:
    """Pairs, runs of one token, nothing at all."""
    given = [1, 2, 1, 2, 3]
    got = answer(given, (1, 2), 9)
    assert isinstance(got, list), f"return a list, not {type(got).__name__}"
    assert given == [1, 2, 1, 2, 3], "you changed the list that was given; build a new one"
    assert got != [9, 1, 2, 3], "only the first place was merged; go on behind it"
    assert got == [9, 9, 3], f"(1, 2) as 9 in 1 2 1 2 3 is 9 9 3; you return {got}"
    run = answer([7, 7, 7], (7, 7), 9)
    assert run != [9, 9], "7 7 7 holds the pair once: the middle 7 is used up by the first pair"
    assert run != [7, 9], "you merge from the right; from the left, 7 7 7 becomes 9 7"
    assert run == [9, 7], f"(7, 7) as 9 in 7 7 7 is 9 7; you return {run}"
    assert answer([3, 1], (1, 2), 9) == [3, 1], "the last token of the list was lost, or taken for half a pair"
    assert answer([], (1, 2), 9) == [], "nothing in, nothing out: an empty list stays empty"
    assert answer([2, 1], (1, 2), 9) == [2, 1], "2 1 is not the pair 1 2: order counts"


def check_embed_backward(answer) -> None:
    """Tokens that occur twice, and some that do not occur."""
    rng = np.random.default_rng(0)
    dx, token = rng.standard_normal((5, 3)), np.array([2, 0, 2, 6, 2])
    want = text_tokens.embed_backward(dx, (token, 7))
    last = np.zeros((7, 3))
    last[token] += dx
    usual = {
        "equal tokens keep only their last gradient: `d[token] += dx` writes each row once; use np.add.at": last,
        "a token that occurs twice gets the SUM of its gradients, not their mean": want
        / np.maximum(np.bincount(token, minlength=7), 1)[:, None],
        "that is dx itself; the table has a row for each token of the vocabulary": dx,
    }
    expect_same(answer(dx.copy(), token.copy(), 7), want, usual, "dtable")


def check_surprise(answer) -> None:
    """A mean in nats, and logits that overflow."""
    rng = np.random.default_rng(1)
    logits, target = rng.standard_normal((5, 7)), rng.integers(7, size=5)
    got, want = answer(logits.copy(), target.copy()), surprise_forward(logits, target)[0]
    prob = softmax_forward(logits)[0]
    expect_shape(np.asarray(got), (), "your loss")
    usual = {
        "the sign is turned: a surprise is -log p, never negative": -want,
        "you return the sum over the tokens; the mean was asked for": 5 * want,
        "that is in bits (log2); in nats it is the natural logarithm": want / np.log(2),
        "you averaged over the whole vocabulary; only the token that came counts": -np.log(prob).mean(),
        "you return a probability, not its surprise": prob[np.arange(5), target].mean(),
        "the logarithm of the mean is not the mean of the logarithms": -np.log(prob[np.arange(5), target].mean()),
    }
    expect_same(np.float64(got), np.float64(want), usual, "your loss")
    with np.errstate(all="ignore"):
        large = answer(np.array([[1000.0, 0.0]]), np.array([1]))
    assert np.isfinite(large), (
        "with logits 1000 and 0 you return NaN or infinity: subtract the largest logit before exp"
    )
    assert np.isclose(large, 1000.0), (
        f"logits 1000 and 0, the second comes: the surprise is 1000, you return {large:.4g}"
    )


def check_surprise_backward(answer) -> None:
    """Probability minus one-hot over N."""
    rng = np.random.default_rng(2)
    logits, target = rng.standard_normal((5, 7)), rng.integers(7, size=5)
    kept = logits.copy()
    got, want = answer(logits, target), surprise_backward(surprise_forward(logits, target)[1])
    assert np.array_equal(logits, kept), "you changed the logits in place; copy before you subtract"
    one_hot = np.eye(7)[target]
    usual = {
        "the loss is a MEAN over the tokens, so its gradient is divided by N": 5 * want,
        "divide by N only; the sum over the vocabulary is no mean": want / 7,
        "the sign is turned: probability minus one-hot": -want,
        "the one-hot is missing: the token that came must be pushed up": (want + one_hot / 5),
        "softmax first: it is the PROBABILITY minus one-hot, not the logit": (logits - one_hot) / 5,
        "only the token that came has a slope here; all others are pushed down": want * one_hot,
    }
    expect_same(got, want, usual, "dlogits")


def check_adam_step(answer) -> None:
    """The third step of a run."""
    rng = np.random.default_rng(3)
    w, dw, m, v = rng.standard_normal(7), rng.standard_normal(7), rng.standard_normal(7), rng.random(7) + 0.1
    kept = [a.copy() for a in (w, dw, m, v)]
    got = answer(w, dw, m, v, 3, 0.1)
    assert all(np.array_equal(a, b) for a, b in zip((w, dw, m, v), kept)), "you changed an array that was given to you"
    first, second = 0.9 * m + 0.1 * dw, 0.95 * v + 0.05 * dw**2
    mean, square = first / (1 - 0.9**3), second / (1 - 0.95**3)

    def moved(a, b):
        return w - 0.1 * a / (np.sqrt(b) + 1e-8)

    usual = {
        "w": {
            "the correction of the start is missing: divide m by 1 - 0.9^step and v by 1 - 0.95^step": moved(
                first, second
            ),
            "only the mean is corrected; v needs its 1 - 0.95^step too": moved(mean, second),
            "step counts from 1: the correction is 1 - beta^step, not 1 - beta^(step - 1)": moved(
                first / (1 - 0.9**2), second / (1 - 0.95**2)
            ),
            "you divide by v, not by its root: the step must not depend on the size of the slopes": w
            - 0.1 * mean / (square + 1e-8),
            "the sign is turned: this climbs": w + 0.1 * mean / (np.sqrt(square) + 1e-8),
            "you step by this gradient alone; it is its running mean m that steps": moved(dw, square),
        },
        "m": {"the running mean keeps 0.9 of the OLD one and takes 0.1 of the new gradient": 0.1 * m + 0.9 * dw},
        "v": {
            "v is the running mean of the SQUARES": 0.95 * v + 0.05 * dw,
            "v keeps 0.95, not 0.9": 0.9 * v + 0.1 * dw**2,
        },
    }
    expect_parts(got, {"w": moved(mean, square), "m": first, "v": second}, usual)


def check_bigram_backward(answer) -> None:
    """A short text in which pairs repeat and one token is missing."""
    rng = np.random.default_rng(4)
    token, logits = rng.integers(4, size=23), rng.standard_normal((5, 5))
    want = bigram_backward(bigram_forward(logits, token)[1])
    rows = surprise_backward(surprise_forward(logits[token[:-1]], token[1:])[1])
    last, by_target = np.zeros((5, 5)), np.zeros((5, 5))
    last[token[:-1]] += rows
    np.add.at(by_target, token[1:], rows)
    usual = {
        "equal first tokens overwrite each other: their slopes add up (np.add.at)": last,
        "the slope goes to the row that was looked up, that of the FIRST token": by_target,
        "the loss is a mean over the N - 1 pairs: divide": 22 * want,
        "there are N - 1 pairs, not N": want * 22 / 23,
        "rows are the first token, columns what follows": want.T,
    }
    expect_same(answer(token.copy(), logits.copy()), want, usual, "dlogits")


def _draw_model(seed: int):
    rng = np.random.default_rng(seed)
    weights = ContextWeights.init(rng, V=5, T=3, D=2, F=7)
    weights.lm_head[:] *= 10
    return weights, rng.integers(5, size=(11, 3)), rng.integers(5, size=11), rng.standard_normal((11, 5))


def check_context_backward(answer) -> None:
    """Three matrices, the bend, and tokens that stand at several places."""
    weights, window, _, dlogits = _draw_model(5)
    w = vars(weights)
    cache = context_forward(window, weights)[1]
    looked_up, x, hidden, _ = cache
    want = {f"d{n}": g for n, g in vars(context_backward(dlogits, cache)).items()}
    flat = vars(context_backward(dlogits, (looked_up, x, 0 * hidden, weights)))
    dhidden = dlogits @ w["lm_head"]
    before = vars(context_backward(dlogits, (looked_up, x, x @ w["up_proj"].T, weights)))
    rows = ((dhidden * (1 - hidden**2)) @ w["up_proj"]).reshape(11, 3, 2)
    last = np.zeros((5, 2))
    last[window] += rows
    usual = {
        "dembed_tokens": {
            "the slope of the bend is missing: da = dh (1 - h^2)": flat["embed_tokens"],
            "the slope of tanh is 1 - h^2 with h AFTER the tanh; you took what went in": before["embed_tokens"],
            "equal tokens overwrite each other; they must add up (np.add.at)": last,
        },
        "dup_proj": {
            "the slope of the bend is missing: da = dh (1 - h^2)": flat["up_proj"],
            "the slope of tanh is 1 - h^2 with h AFTER the tanh; you took what went in": before["up_proj"],
        },
        "dlm_head": {"the head read the hidden units AFTER the tanh": dlogits.T @ (x @ w["up_proj"].T)},
    }
    expect_parts(answer(dlogits.copy(), window.copy(), *(a.copy() for a in w.values())), want, usual)


def check_round_to_bf16(answer) -> None:
    """Normal numbers of both signs, halves, zero."""
    rng = np.random.default_rng(6)
    x = np.concatenate([rng.standard_normal(300) * 10.0 ** rng.integers(-20, 20, size=300), [1.0, 0.0, -3.0]])
    got, want = answer(x.copy()), round_number(x, FORMATS["BF16"])
    expect_shape(got, x.shape, "your answer")
    assert np.isfinite(got).all(), "you return NaN or infinity; is it the zero, or its logarithm?"
    _, power = np.frexp(x)
    step = np.ldexp(1.0, power - 8)
    usual = {
        "you cut towards zero; go to the NEAREST mark": np.trunc(x / step) * step,
        "you round downwards; go to the NEAREST mark": np.floor(x / step) * step,
        "your marks are twice as far apart: 7 mantissa bits beside the leading one": np.round(x / (2 * step))
        * 2
        * step,
        "your marks are half as far apart: frexp's fraction starts at a half, so its power is one higher": np.round(
            x / (step / 2)
        )
        * (step / 2),
        "that is FP16's mantissa, 10 bits; BF16 has 7": np.round(x / (step / 8)) * step / 8,
        "nothing was rounded": x,
    }
    expect_same(got, want, usual, "your answer")
    halves = np.array([257.0, 259.0])
    assert not same(answer(halves), np.array([258.0, 260.0])), "halves go to the EVEN neighbour: 257 becomes 256"
    expect_same(answer(halves), np.array([256.0, 260.0]), {}, "halves")


def check_language_model_from_an_empty_file(answer) -> None:
    """The whole model at sizes that no two axes share."""
    weights, window, target, _ = _draw_model(7)
    w = vars(weights)
    logits, cache = context_forward(window, weights)
    loss, surprised = surprise_forward(logits, target)
    want = {"loss": np.float64(loss)}
    want |= {f"d{n}": g for n, g in vars(context_backward(surprise_backward(surprised), cache)).items()}
    looked_up, x, hidden, _ = cache
    flat = vars(context_backward(surprise_backward(surprised), (looked_up, x, 0 * hidden, weights)))
    straight = surprise_forward(x @ w["up_proj"].T @ w["lm_head"].T, target)[0]
    back = w["embed_tokens"][window[:, ::-1]].reshape(11, -1)
    turned = surprise_forward(np.tanh(back @ w["up_proj"].T) @ w["lm_head"].T, target)[0]
    usual = {
        "loss": {
            "the tanh is missing": np.float64(straight),
            "the window is turned around: the oldest token comes first": np.float64(turned),
            "you return the sum over the windows; the mean was asked for": np.float64(11 * loss),
            "the sign is turned: a surprise is -log p": np.float64(-loss),
        },
        "dembed_tokens": {"the slope of the bend is missing: da = dh (1 - h^2)": flat["embed_tokens"]},
        "dup_proj": {"the slope of the bend is missing: da = dh (1 - h^2)": flat["up_proj"]},
    }
    expect_parts(answer(window.copy(), target.copy(), *(a.copy() for a in w.values())), want, usual)
