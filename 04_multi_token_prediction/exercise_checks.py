"""Grade exercises.py: each check recognises the usual wrong answers and says what they are."""

from collections.abc import Callable

import numpy as np
from cross_entropy import head_loss_backward, head_loss_forward
from exercise_words_04 import expect_parts, expect_same, expect_shape, same
from mtp_module import MtpWeights, combine_backward, combine_forward, mtp_backward, mtp_forward, swap_order
from mtp_pretraining import Depth, mtp_loss_forward, scatter_rows

SEED = 4
NAMES = ("enorm", "hnorm", "eh_proj", "shared_head.norm")


def unit(x: np.ndarray) -> np.ndarray:
    """RMSNorm without a weight."""
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-6)


def draw_module(rng: np.random.Generator, D: int) -> MtpWeights:
    """A module whose norms have weights that are not one."""
    return MtpWeights(1 + rng.random(D), 1 + rng.random(D), rng.standard_normal((D, 2 * D)), 1 + rng.random(D))


def check_further_targets(answer: Callable) -> None:
    """Targets of a depth in packed windows."""
    tokens = np.random.default_rng(SEED).integers(0, 97, (3, 11))
    document = np.array([[0] * 11, [0] * 5 + [1] * 6, [0] * 2 + [1] * 2 + [2] * 7])
    for k in (1, 0, 2):
        got, n = np.asarray(answer(tokens.copy(), k, document.copy())), 10 - k
        ends = document[:, :n] == document[:, k + 1 :]
        assert got.shape == (3, n), (
            f"depth {k} of 11 tokens has {n} rows, one for each target; yours has shape {got.shape}"
        )
        if k:
            assert not same(got, np.where(ends, tokens[:, k : k + n], -100)), (
                f"your row i is trained on token i + {k}, the very token that it reads: it will learn to copy"
            )
        assert not same(got, tokens[:, k + 1 :]), "rows that reach into the next document count; mark them with -100"
        near = document[:, :n] == document[:, 1 : n + 1]
        assert k == 0 or not same(got, np.where(near, tokens[:, k + 1 :], -100)), (
            f"you compare tokens i and i + 1; at depth {k} the row reaches to i + {k + 1}, which may lie elsewhere"
        )
        want = np.where(ends, tokens[:, k + 1 :], -100)
        assert same(got, want), f"depth {k}: expected {want.tolist()}, got {got.tolist()}"


def check_loss_gradient(answer: Callable) -> None:
    """Probability minus one-hot."""
    rng = np.random.default_rng(SEED)
    logits, target = rng.standard_normal((5, 7)), np.array([3, -100, 0, 6, -100])
    prob = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    counted = (target >= 0)[:, None]
    every = (prob - np.eye(7)[target % 7]) / 5
    usual = {
        "the one-hot of the target is missing: this pushes every logit down": prob * counted / 5,
        "the sign is turned: a step against the gradient must raise the target's logit": -every * counted,
        "you divide by the rows that count; the divisor was given (Eq. 24 divides by T)": every * counted * 5 / 3,
        "the divisor is missing": every * counted * 5,
        "rows with target -100 do not count, and must have a gradient of exactly zero": every,
        "target -100 has been read as a place counted from the end; such rows do not count": (
            (prob - np.eye(7)[np.maximum(target, 0)]) / 5
        ),
    }
    expect_same(answer(logits.copy(), target.copy(), 5.0), every * counted, usual, "loss_gradient")
    large = np.asarray(answer(logits + 1000, target, 5.0))
    assert np.isfinite(large).all(), "logits near 1000 overflow exp; subtract each row's maximum first"


def check_head_backward(answer: Callable) -> None:
    """Logits are a product; some rows do not count."""
    rng = np.random.default_rng(SEED + 5)
    hidden, head, target = rng.standard_normal((6, 3)), rng.standard_normal((7, 3)), np.array([2, -100, 0, 6, -100, 2])
    dhidden, dhead = head_loss_backward(1.0, head_loss_forward(hidden, head, target, 5)[1])
    logits = hidden @ head.T
    prob = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    dlogits = (target >= 0)[:, None] * (prob - np.eye(7)[target % 7]) / 5
    usual = {
        "dhidden": {
            "that is the gradient of the logits; go through the head as well": dlogits,
            "rows that do not count must have a gradient of zero": (prob - np.eye(7)[target % 7]) / 5 @ head,
            "only the target's row of the head pulls at your hidden row; all V logits do": (target >= 0)[:, None]
            * (-head[target % 7] / 5),
        },
        "dlm_head": {
            "the axes are turned around: the head is [V, D]": dhead.T,
            "all rows share the head: sum over them, do not average": dhead / 6,
        },
    }
    got = answer(hidden.copy(), head.copy(), target.copy(), 5.0)
    expect_parts(got, {"dhidden": dhidden, "dlm_head": dhead}, usual)


def check_relu_squared_backward(answer: Callable) -> None:
    """The network of the compact block."""
    rng = np.random.default_rng(SEED + 6)
    dy, x, up, down = (rng.standard_normal(s) for s in ((6, 5), (6, 5), (7, 5), (5, 7)))
    raw = x @ up.T
    inside, dsquare = np.maximum(raw, 0), dy @ down
    usual = {
        "dx": {
            "the slope of the square is missing: 2 relu(...)": (dsquare * (raw > 0)) @ up,
            "the square's slope has a factor 2": (dsquare * inside) @ up,
            "the relu is missing: where it had cut, nothing passes": (2 * raw * dsquare) @ up,
        },
        "dup_proj": {"the square's slope has a factor 2": (dsquare * inside).T @ x},
        "ddown_proj": {
            "down_proj read the SQUARES": dy.T @ inside,
            "down_proj read what the relu let through": dy.T @ raw**2,
        },
    }
    dup = 2 * inside * dsquare
    want = {"dx": dup @ up, "dup_proj": dup.T @ x, "ddown_proj": dy.T @ inside**2}
    expect_parts(answer(dy.copy(), x.copy(), up.copy(), down.copy()), want, usual)


def check_look_up_backward(answer: Callable) -> None:
    """The same token at several places."""
    rng = np.random.default_rng(SEED)
    dx, token = rng.standard_normal((6, 3)), np.array([2, 0, 2, 4, 2, 0])
    want, last = scatter_rows(dx, token, 7), np.zeros((7, 3))
    last[token] = dx
    count = np.maximum(np.bincount(token, minlength=7), 1)[:, None]
    usual = {
        "token 2 stood at three places and you keep the last only, as `d[token] += dx` does; np.add.at adds": last,
        "the slopes of a token's places add up; you took their mean": want / count,
        "a row for each token of the text; the table has a row for each token of the vocabulary": dx,
    }
    expect_same(answer(dx.copy(), token.copy(), 7), want, usual, "look_up_backward")


def check_join_pair(answer: Callable) -> None:
    """The input of the MTP block."""
    rng = np.random.default_rng(SEED)
    hidden, embedding, w = 5 * rng.standard_normal((3, 7)), rng.standard_normal((3, 7)), draw_module(rng, 7)
    join = lambda a, b: np.concatenate([a, b], axis=-1) @ w.eh_proj.T  # noqa: E731
    e, h = unit(embedding) * w.enorm, unit(hidden) * w.hnorm
    both = unit(np.concatenate([embedding, hidden], axis=-1))
    centred = [unit(x - x.mean(axis=-1, keepdims=True)) for x in (embedding, hidden)]
    usual = {
        "that is the order of the paper; the released eh_proj reads e, then h": join(h, e),
        "neither input is normalized; the hidden row is far larger": join(embedding, hidden),
        "the weights of the norms are missing": join(unit(embedding), unit(hidden)),
        "you normalize the joined row: the larger half still drowns the smaller one": join(
            both[:, :7] * w.enorm, both[:, 7:] * w.hnorm
        ),
        "the norm weights are exchanged: enorm belongs to the embedding": join(
            unit(embedding) * w.hnorm, unit(hidden) * w.enorm
        ),
        "that is LayerNorm: RMSNorm does not subtract the mean": join(centred[0] * w.enorm, centred[1] * w.hnorm),
    }
    got = answer(hidden.copy(), embedding.copy(), w.enorm.copy(), w.hnorm.copy(), w.eh_proj.copy())
    expect_same(got, join(e, h), usual, "join_pair")


def check_join_pair_backward(answer: Callable) -> None:
    """Back through two norms and one matrix."""
    rng = np.random.default_rng(SEED + 1)
    dy, hidden, embedding, w = *rng.standard_normal((3, 3, 7)), draw_module(rng, 7)
    dhidden, dembedding, named = combine_backward(dy, combine_forward(w, hidden, embedding)[1])
    first, second = np.split(dy @ w.eh_proj, 2, axis=-1)
    size_h, size_e = (np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-6) for x in (hidden, embedding))
    crossed = combine_backward(dy, combine_forward(w, hidden, embedding, "paper")[1])
    late = np.concatenate([embedding, hidden], axis=-1)
    usual = {
        "dhidden": {
            "that is the slope at the embedding; return the hidden row's first": dembedding,
            "you took the first half of the joined row; the hidden row is the second": crossed[0],
            "the norm's root depends on the row as well: subtract unit * mean(g * unit)": second * w.hnorm / size_h,
            "the norm is missing on the way back": second,
            "the weight hnorm is missing on the way back": combine_backward(
                dy, combine_forward(MtpWeights(w.enorm, 0 * w.hnorm + 1, w.eh_proj, w.enorm), hidden, embedding)[1]
            )[0],
        },
        "dembedding": {
            "you took the second half of the joined row; the embedding is the first": crossed[1],
            "the norm's root depends on the row as well: subtract unit * mean(g * unit)": first * w.enorm / size_e,
        },
        "deh_proj": {
            "eh_proj met the normed rows, not the raw ones": dy.T @ late,
            "the halves are exchanged": swap_order(named["eh_proj"]),
        },
    }
    want = {"dhidden": dhidden, "dembedding": dembedding, "deh_proj": named["eh_proj"]}
    arrays = (dy, hidden, embedding, w.enorm, w.hnorm, w.eh_proj)
    expect_parts(answer(*(a.copy() for a in arrays)), want, usual)


def _mix(x: np.ndarray, position=None) -> tuple[np.ndarray, np.ndarray]:
    """A causal block with a square in it, so that its way back needs what came in."""
    mean = x.cumsum(axis=-2) / np.arange(1, x.shape[-2] + 1)[:, None]
    return x + mean**2, mean


def _mix_back(dy: np.ndarray, mean: np.ndarray) -> np.ndarray:
    share = 2 * mean * dy / np.arange(1, dy.shape[-2] + 1)[:, None]
    return dy + share[..., ::-1, :].cumsum(axis=-2)[..., ::-1, :]


def check_module_backward(answer: Callable) -> None:
    """Norm, block, pair."""
    rng = np.random.default_rng(SEED + 2)
    dout, hidden, embedding, w = *rng.standard_normal((3, 4, 5)), draw_module(rng, 5)
    _, cache = mtp_forward(w, hidden, embedding, np.arange(4), _mix)
    dhidden, dembedding, dw, _ = mtp_backward(dout, cache, lambda dy, kept: (_mix_back(dy, kept), None))
    pair, pair_cache = combine_forward(w, hidden, embedding)
    rows, kept = _mix(pair)
    straight = combine_backward(dout, pair_cache)
    without_norm = combine_backward(_mix_back(dout, kept), pair_cache)
    size = np.sqrt(np.mean(rows**2, axis=-1, keepdims=True) + 1e-6)
    usual = {
        "dhidden": {
            "the norm behind the block is missing on the way back": without_norm[0],
            "norm and block are missing: that is the way back of the pair alone": straight[0],
            "that is the slope at the embedding; return the hidden row's first": dembedding,
        },
        "dshared_head_norm": {
            "the norm's weight hears dout times the NORMED row": (dout * rows).sum(axis=0),
            "all rows share the weight: sum over them, do not average": (dout * rows / size).mean(axis=0),
        },
    }
    weights = dict(zip(NAMES, (w.enorm.copy(), w.hnorm.copy(), w.eh_proj.copy(), w.shared_head_norm.copy())))
    want = {"dhidden": dhidden, "dembedding": dembedding, "dshared_head_norm": dw.shared_head_norm}
    expect_parts(answer(dout.copy(), hidden.copy(), embedding.copy(), weights, _mix, _mix_back), want, usual)


def check_chain_backward(answer: Callable) -> None:
    """Two depths whose ways back are matrices."""
    rng = np.random.default_rng(SEED + 3)
    dout_1, dout_2 = rng.standard_normal((5, 3)), rng.standard_normal((4, 3))
    h1, e1, h2, e2 = rng.standard_normal((4, 3, 3))
    grow = lambda d, front=0: np.pad(d, ((front, 1 - front), (0, 0)))  # noqa: E731
    handed = dout_1 + grow(dout_2 @ h2)
    early = dout_1 + grow(dout_2 @ h2, 1)
    want = {"dhidden": grow(handed @ h1), "dembedding_1": handed @ e1, "dembedding_2": dout_2 @ e2}
    usual = {
        "dhidden": {
            "depth 2 is forgotten: its dhidden belongs to depth 1's rows, and adds to dout_1": grow(dout_1 @ h1),
            "dout_1 is forgotten: depth 1's rows went to the head too": grow(grow(dout_2 @ h2) @ h1),
            "the missing row was put in front; it is the LAST row that a depth leaves out": grow(early @ h1, 1),
            "inside the chain the missing row was put in front; it is the last": grow(early @ h1),
            "depth 2 stands on depth 1's rows, not on the main model's": grow(dout_1 @ h1)
            + np.pad(dout_2 @ h2, ((0, 2), (0, 0))),
        },
        "dembedding_1": {"depth 1 must start from dout_1 plus what depth 2 hands down": dout_1 @ e1},
    }
    got = answer(dout_1.copy(), dout_2.copy(), lambda d: (d @ h1, d @ e1), lambda d: (d @ h2, d @ e2))
    if isinstance(got, tuple | list) and len(got) == 3 and np.shape(got[0]) == (5, 3):
        raise AssertionError("dhidden has 5 rows; the main model has 6, and depth 1 left out the last: give it zeros")
    expect_parts(got, want, usual)


def check_parallel_backward(answer: Callable) -> None:
    """Two heads on the same rows."""
    rng = np.random.default_rng(SEED + 7)
    dout = [rng.standard_normal((5, 3)), rng.standard_normal((4, 3))]
    w1, w2 = rng.standard_normal((2, 3, 3))
    grow = lambda d, n, front=0: np.pad(d, ((front, n - front), (0, 0)))  # noqa: E731
    first, second = grow(dout[0] @ w1, 1), grow(dout[1] @ w2, 2)
    chained = grow((dout[0] + grow(dout[1] @ w2, 1)) @ w1, 1)
    usual = {
        "that is DeepSeek's chain: parallel heads all stand on the main model's rows, none on another head": chained,
        "head 2 is forgotten": first,
        "head 1 is forgotten": second,
        "you took the mean of the heads; what shared rows hear adds up": (first + second) / 2,
        "the missing rows were put in front; a head leaves out the LAST rows": grow(dout[0] @ w1, 1, 1)
        + grow(dout[1] @ w2, 2, 2),
        "the heads' own ways back are missing": grow(dout[0], 1) + grow(dout[1], 2),
    }
    got = answer([d.copy() for d in dout], [lambda d: d @ w1, lambda d: d @ w2])
    assert np.shape(got) != (5, 3), (
        "dhidden has 5 rows; the main model has 6, and head 1 left out the last: zeros there"
    )
    expect_same(got, first + second, usual, "dhidden")


def check_check_draft(answer: Callable) -> None:
    """The rejection rule, by what comes out."""
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.6, 0.2])
    rng, n = np.random.default_rng(SEED), 20_000
    out = np.array([int(answer(rng, int(d), q.copy(), p.copy())) for d in rng.choice(3, n, p=q)])
    share = np.bincount(out, minlength=3) / n
    passed, residual = np.minimum(p, q), np.array([1.0, 0.0, 0.0])
    suspects = {
        "that is q: every draft is accepted without a check": q,
        "after a rejection you draw from p; the draft's favourites then come out too often": passed + 0.3 * p,
        "after a rejection you draw from q again": passed + 0.3 * q,
        "you accept with probability p, not min(1, p/q)": q * p + (1 - (q * p).sum()) * residual,
        "you accept exactly when p >= q": q * (p >= q) + (q * (p < q)).sum() * residual,
    }
    if np.abs(share - p).max() > 0.02:
        near = min(suspects, key=lambda s: np.abs(share - suspects[s]).max())
        why = near if np.abs(share - suspects[near]).max() < 0.02 else "neither p nor a mistake that this check knows"
        raise AssertionError(f"drafts from q = {q} come out as {share.round(3)}, and p is {p}: {why}")
    kept = np.mean([int(answer(rng, 0, q, p)) == 0 for _ in range(200)])
    assert kept == 1, "a draft with p > q must always pass; yours is sometimes replaced: correct, but slow for nothing"


def check_tokens_per_step(answer: Callable) -> None:
    """The geometric sum."""
    got = [float(answer(a, k)) for a, k in ((0.85, 1), (0.7, 3), (0.0, 2), (1.0, 4))]
    want = [1.85, 1 + 0.7 + 0.49 + 0.343, 1.0, 5.0]
    assert not same(got, [1.85, 1 + 3 * 0.7, 1.0, 5.0]), (
        "1 + K a counts drafts after a rejection; those are thrown away"
    )
    assert not same(got, [w - 1 for w in want]), "the main model's own token is missing: a step gives at least one"
    assert same(got, want), f"for a = 0.85, K = 1 and a = 0.7, K = 3 expected {want[:2]}, got {got[:2]}"


def check_rows_to_keep(answer: Callable) -> None:
    """Cache lengths after a step."""
    for n_read, n_accepted in ((10, 0), (10, 2), (1, 1)):
        target, draft = answer(n_read, n_accepted)
        assert target != n_read + n_accepted, "the last token of the text was certain and has been read: one row more"
        assert target == n_read + 1 + n_accepted, (
            f"{n_read} rows, one certain token, {n_accepted} accepted: the main cache keeps {n_read + 1 + n_accepted}, "
            f"you say {target}; a rejected row that stays is attended to for ever"
        )
        assert draft != target, "the module's later rows were built on its own output; they are redone with real rows"
        assert draft == n_read, (
            f"the module has {n_read} rows whose hidden part came from the main model, you say {draft}"
        )


def _placed_mix(x: np.ndarray, position: np.ndarray) -> np.ndarray:
    """A causal block that shows which positions it was given, unlike rotary attention."""
    return _mix(x)[0] + 0.1 * np.asarray(position)[..., None]


def check_mtp_from_an_empty_file(answer: Callable) -> None:
    """One depth at sizes that no two axes share, in a window of two documents."""
    rng = np.random.default_rng(SEED + 4)
    w, V, D = draw_module(rng, 5), 7, 5
    embed, head, hidden = rng.standard_normal((V, D)), rng.standard_normal((V, D)), 3 * rng.standard_normal((10, D))
    token, document = rng.integers(0, V, 11), np.array([0] * 6 + [1] * 5)

    places = np.arange(9)

    def run(words=token[1:-1], rows=hidden[:-1], module=w, at=places, order="released"):
        x = combine_forward(module, rows, embed[words], order)[0]
        return _placed_mix(x, at), module.shared_head_norm

    def logits_of(rows, weight):
        return unit(rows) * weight @ head.T

    want = logits_of(*run())
    depth = Depth(w, lambda x, at: (_placed_mix(x[0], at[0])[None], None), lambda dy, cache: (dy, None))
    loss = mtp_loss_forward([depth], embed, head, hidden[None], token[None], document[None], 1.0)[0]
    pieces = (hidden, token, document, embed, head)
    weights = dict(zip(NAMES, (w.enorm.copy(), w.hnorm.copy(), w.eh_proj.copy(), w.shared_head_norm.copy())))
    got = answer(*(a.copy() for a in pieces), weights, _placed_mix)
    assert isinstance(got, tuple | list), "return two results: logits, loss"
    assert len(got) == 2, "return two results: logits, loss"
    expect_shape(got[0], (9, V), "logits")
    usual = {
        "row i reads token i + 2, its own target: it will learn to copy": logits_of(*run(token[2:])),
        "row i reads token i, which its hidden row knows already; it needs token i + 1": logits_of(*run(token[:-2])),
        "hidden row i + 1 has been joined with token i + 1; drop the LAST hidden row": logits_of(*run(rows=hidden[1:])),
        "the halves are in the report's order; the released eh_proj reads the embedding first": logits_of(
            *run(order="paper")
        ),
        "the positions are those of the tokens, i + 1; row i stands where its hidden row stands": logits_of(
            *run(at=np.arange(1, 10))
        ),
        "the norm behind the block, shared_head.norm, is missing": run()[0] @ head.T,
        "shared_head.norm has a weight": logits_of(run()[0], np.ones(D)),
        "the block is missing": logits_of(combine_forward(w, hidden[:-1], embed[token[1:-1]])[0], w.shared_head_norm),
    }
    expect_same(got[0], want, usual, "logits")
    log_prob = want - np.log(np.exp(want).sum(axis=1, keepdims=True))
    paid, counted = -log_prob[np.arange(9), token[2:]], document[:-2] == document[2:]
    n_main = np.sum(document[:-1] == document[1:])
    usual_loss = {
        "rows that reach into the next document do not count": paid.sum() / n_main,
        "rows that reach into the next document do not count, neither here nor in the divisor": paid.sum() / 10,
        "you divide by this depth's rows; Eq. (24) divides by the main model's that count": paid[counted].mean(),
        "the divisor is the main model's rows that COUNT, without those at a border": paid[counted].sum() / 10,
        "the loss of a single depth is asked, not weighed by lambda": 0.3 * loss,
    }
    expect_same(float(got[1]), loss, usual_loss, "loss")
