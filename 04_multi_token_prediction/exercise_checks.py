"""Grade exercises.py: each check recognises the usual wrong answers and says what they are."""

import numpy as np

RNG_SEED = 4


def close(a, b) -> bool:
    """Equal in shape and to rounding."""
    return np.shape(a) == np.shape(b) and bool(np.allclose(a, b, rtol=1e-10, atol=1e-12))


def check_further_targets(answer):
    """Targets of a depth in packed windows."""
    tokens = np.random.default_rng(RNG_SEED).integers(0, 97, (3, 11))
    document = np.array([[0] * 11, [0] * 5 + [1] * 6, [0] * 2 + [1] * 2 + [2] * 7])
    for k in (1, 0, 2):
        got, n = np.asarray(answer(tokens.copy(), k, document.copy())), 10 - k
        ends = document[:, :n] == document[:, k + 1 :]
        want = np.where(ends, tokens[:, k + 1 :], -100)
        assert got.shape == (3, n), (
            f"depth {k} of 11 tokens has {n} rows, one for each target; yours has shape {got.shape}"
        )
        if k:
            assert not close(got, np.where(ends, tokens[:, k : k + n], -100)), (
                f"your row i is trained on token i + {k}, the very token that it reads: it will learn to copy"
            )
        assert not close(got, tokens[:, k + 1 :]), "rows that reach into the next document count; mark them with -100"
        near = document[:, :n] == document[:, 1 : n + 1]
        assert k == 0 or not close(got, np.where(near, tokens[:, k + 1 :], -100)), (
            f"you compare tokens i and i + 1; at depth {k} the row reaches to i + {k + 1}, which may lie elsewhere"
        )
        assert close(got, want), f"depth {k}: expected {want.tolist()}, got {got.tolist()}"


def check_join_pair(answer):
    """The input of the MTP block."""
    rng = np.random.default_rng(RNG_SEED)
    hidden, embedding = 5 * rng.standard_normal((2, 3, 7)), rng.standard_normal((2, 3, 7))
    enorm, hnorm, proj = 1 + rng.random(7), 1 + rng.random(7), rng.standard_normal((7, 14))
    got = np.asarray(answer(hidden.copy(), embedding.copy(), enorm, hnorm, proj))
    unit = lambda x: x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-6)  # noqa: E731
    join = lambda a, b: np.concatenate([a, b], axis=-1)  # noqa: E731
    e, h = unit(embedding) * enorm, unit(hidden) * hnorm
    assert got.shape == (2, 3, 7), f"the pair is projected back to the model width: (2, 3, 7), not {got.shape}"
    assert not close(got, join(h, e) @ proj.T), "that is the order of the paper; the released eh_proj reads e, then h"
    assert not close(got, join(embedding, hidden) @ proj.T), "neither input is normalized; the hidden row is far larger"
    both = unit(join(embedding, hidden)) * join(enorm, hnorm)
    assert not close(got, both @ proj.T), "you normalize the joined row: the larger half still drowns the smaller one"
    crossed = join(unit(embedding) * hnorm, unit(hidden) * enorm)
    assert not close(got, crossed @ proj.T), "the norm weights are exchanged: enorm belongs to the embedding"
    centred = join(*(unit(x - x.mean(axis=-1, keepdims=True)) * w for x, w in ((embedding, enorm), (hidden, hnorm))))
    assert not close(got, centred @ proj.T), "that is LayerNorm: RMSNorm does not subtract the mean"
    assert close(got, join(e, h) @ proj.T), (
        "the values differ: norm each input over its last axis, weigh, join, project"
    )


def check_loss_gradient(answer):
    """Probability minus one-hot."""
    rng = np.random.default_rng(RNG_SEED)
    logits, target = rng.standard_normal((5, 7)), np.array([3, -100, 0, 6, -100])
    got = np.asarray(answer(logits.copy(), target.copy(), 5.0))
    prob = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    counted = (target >= 0)[:, None]
    full = (prob - np.eye(7)[target % 7]) * counted
    assert got.shape == (5, 7), f"one value for each logit: (5, 7), not {got.shape}"
    assert not close(got, prob * counted / 5), "the one-hot of the target is missing: this pushes every logit down"
    assert not close(got, -full / 5), "the sign is turned: a step against the gradient must raise the target's logit"
    assert not close(got, full / 3), "you divide by the rows that count; the divisor was given (Eq. 24 divides by T)"
    assert not close(got, full), "the divisor is missing"
    assert not got[[1, 4]].any(), "rows with target -100 do not count, and must have a gradient of exactly zero"
    assert close(got, full / 5), "the values differ from (probability - one-hot) / divisor"
    large = np.asarray(answer(logits + 1000, target, 5.0))
    assert np.isfinite(large).all(), "logits near 1000 overflow exp; subtract each row's maximum first"


def check_check_draft(answer):
    """The rejection rule, by what comes out."""
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.6, 0.2])
    rng, n = np.random.default_rng(RNG_SEED), 20_000
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


def check_tokens_per_step(answer):
    """The geometric sum."""
    got = [float(answer(a, k)) for a, k in ((0.85, 1), (0.7, 3), (0.0, 2), (1.0, 4))]
    want = [1.85, 1 + 0.7 + 0.49 + 0.343, 1.0, 5.0]
    assert not close(got, [1.85, 1 + 3 * 0.7, 1.0, 5.0]), (
        "1 + K a counts drafts after a rejection; those are thrown away"
    )
    assert not close(got, [w - 1 for w in want]), "the main model's own token is missing: a step gives at least one"
    assert close(got, want), f"for a = 0.85, K = 1 and a = 0.7, K = 3 expected {want[:2]}, got {got[:2]}"


def check_rows_to_keep(answer):
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
