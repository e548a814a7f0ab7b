"""Grade exercises.py: each check recognises the usual wrong answers and says what they are."""

import numpy as np

RNG_SEED = 7


def close(a, b) -> bool:
    """Equal in shape and to rounding."""
    return np.shape(a) == np.shape(b) and bool(np.allclose(a, b, rtol=1e-9, atol=1e-12))


def refuse(got, usual: dict[str, np.ndarray]) -> None:
    """Name the usual mistake that an answer equals."""
    for words, wrong in usual.items():
        assert not close(got, wrong), words


def where_off(got, want) -> str:
    """Say where an answer is furthest from the right one, and what stands there."""
    worst = np.unravel_index(np.argmax(np.abs(np.asarray(got, float) - want)), np.shape(want))
    place = [int(i) for i in worst]
    return f"at {place} there is {float(np.asarray(got)[worst]):.5g}, should be {float(want[worst]):.5g}"


def softmax(z):
    """Probabilities over the last axis."""
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def check_log_probs_backward(answer):
    """g times (one-hot - probability)."""
    rng = np.random.default_rng(RNG_SEED)
    z, token, g = rng.standard_normal((11, 5)), rng.integers(0, 5, 11), rng.standard_normal(11)
    got, hot, pi = np.asarray(answer(g.copy(), z.copy(), token.copy())), np.eye(5)[token], softmax(z)
    assert got.shape == (11, 5), f"every logit of every row has a slope: (11, 5), not {got.shape}"
    mistakes = {
        "the sign is turned: the written token's own logit makes it likelier": pi - hot,
        "only the written token's logit is there; the others stand in the sum under the logarithm": hot,
        "the one-hot of the written token is missing": -pi,
        "that is the slope of the probability, not of its logarithm": (hot - pi) * pi[hot > 0][:, None],
    }
    refuse(got, {words: g[:, None] * wrong for words, wrong in mistakes.items()})
    refuse(got, {"g is missing: each row's slope is weighed by what the loss makes of its log-probability": hot - pi})
    want = g[:, None] * (hot - pi)
    assert close(got, want), where_off(got, want)


def check_targets_of_answers(answer):
    """The mask moves with the targets."""
    token = np.random.default_rng(RNG_SEED).integers(0, 97, (2, 7))
    mask = np.array([[0, 0, 0, 1, 1, 1, 0], [0, 1, 1, 0, 0, 1, 1]], dtype=bool)
    got = np.asarray(answer(token.copy(), mask.copy()))
    want = np.where(mask, token, -100)[:, 1:]
    assert got.shape == (2, 6), f"7 tokens have 6 next tokens: shape (2, 6), not {got.shape}"
    assert not close(got, np.where(mask[:, :-1], token[:, 1:], -100)), (
        "your mask looks at the token that is read: the first token of the answer is never learned, and the first one "
        "after the answer is"
    )
    assert not close(got, np.where(mask, token, -100)[:, :-1]), "row i is trained on token i, which it reads: it copies"
    assert not close(got, token[:, 1:]), "the tokens of the question count too; mark them with -100"
    assert close(got, want), f"expected {want.tolist()}, got {got.tolist()}"


def check_judge_sum(answer):
    """Plain digits and nothing else."""
    attacks = {
        " 46": "a space",
        "46, I think": "more than the sum (fullmatch, not match)",
        "46\n": "a line break",
        "+46": "a sign",
        "4_6": "an underscore",
        "٤٦": "digits of another script",
    }
    assert float(answer("12+34=", "46")) == 1.0, "46 is the sum of 12 and 34 and gets 1.0"
    assert float(answer("12+34=", "47")) == 0.0, "47 is not the sum of 12 and 34"
    for text in ("[0, 46][1]", "(lambda: 46)()", "x", "", "12+34", "4.6e1", *attacks, "46\u00b2", "9" * 5000):
        try:
            verdict = float(answer("12+34=", text))
        except NotImplementedError:
            raise
        except Exception as error:
            short = repr(text) if len(text) < 99 else "of 5,000 digits"
            raise AssertionError(
                f"the text {short} made your rule raise {type(error).__name__}; a wrong answer gets 0.0"
            ) from None
        assert not verdict or text not in attacks, f"{text!r} holds {attacks[text]}: int() may take it, a judge may not"
        assert verdict == 0.0, f"{text!r} got {verdict}: it looks as if the text were calculated; compare plain digits"


def check_advantage_over_others(answer):
    """Each reward minus the mean of the others."""
    reward = np.array([[1.0, 0, 0, 1], [1, 0, 0, 0], [2, 5, 3, 11]])
    got, centered = np.asarray(answer(reward.copy())), reward - reward.mean(axis=1, keepdims=True)
    assert got.shape == (3, 4), f"one advantage an answer: (3, 4), not {got.shape}"
    others = reward.sum(axis=1, keepdims=True) - reward
    total = reward.sum() - reward
    mistakes = {
        "that mean holds the own reward: with 4 answers every advantage is shortened to 3/4": centered,
        "the others are one less: divide their sum by M - 1": reward - others / 4,
        "that is the baseline; the advantage is the reward less it": others / 3,
        "the sign is turned: better than the others is positive": others / 3 - reward,
        "you pool all questions; each is its own group": reward - total / 11,
    }
    refuse(got, mistakes)
    assert close(got, reward - others / 3), where_off(got, reward - others / 3)


def check_group_advantage(answer):
    """Mean 0 and spread 1 within a group."""
    reward = np.array([[1.0, 0, 0, 1], [1, 0, 0, 0], [2, 5, 3, 11]])
    got = np.asarray(answer(reward.copy()))
    centered = reward - reward.mean(axis=1, keepdims=True)
    assert got.shape == (3, 4), f"one advantage an answer: (3, 4), not {got.shape}"
    assert not close(got, centered), "the standard deviation is missing: that is Dr. GRPO's advantage"
    assert not close(got, (reward - reward.mean()) / reward.std()), "you pool all questions; each is its own group"
    assert not close(got, centered / reward.std(axis=1, ddof=1, keepdims=True)), "divide by M in the deviation, not M-1"
    assert not close(got, centered / reward.var(axis=1, keepdims=True)), "that is the variance; take its root"
    want = centered / reward.std(axis=1, keepdims=True)
    over = (reward - reward.mean(axis=0)) / reward.std(axis=0)
    assert not close(got, over), "those are the mean and the deviation over questions; a group is a row: axis 1"
    if not close(got, want):
        assert not np.allclose(got, want, rtol=1e-3), (
            "something small is added to the deviation; treat the group without spread by itself, and add nothing"
        )
        raise AssertionError(where_off(got, want))
    with np.errstate(all="ignore"):
        equal = np.asarray(answer(np.array([[1.0, 1, 1], [0, 1, 0]])))
    assert np.isfinite(equal).all(), "a group of equal rewards has deviation 0; its advantages are 0, not NaN"
    assert not equal[0].any(), "a group of equal rewards teaches nothing: 0"


def check_clipped_slope(answer):
    """One edge for each sign."""
    rng = np.random.default_rng(RNG_SEED)
    old, advantage = -rng.random(40), rng.standard_normal(40)
    logp = old + 0.5 * rng.standard_normal(40)
    got, r = np.asarray(answer(logp.copy(), old.copy(), advantage.copy(), 0.2)), np.exp(logp - old)
    inside = (r >= 0.8) & (r <= 1.2)
    kept = np.where(advantage >= 0, r <= 1.2, r >= 0.8)
    assert got.shape == (40,), f"one slope a token: (40,), not {got.shape}"
    assert not close(got, advantage * r * kept), "the sign is turned: the loss is minus the clipped gain"
    assert not close(got, -advantage * r), "nothing is clipped"
    assert not close(got, -advantage * r * inside), (
        "you clip on both sides: an answer that became worse than it was must still be able to come back"
    )
    assert not close(got, -advantage * kept), "the ratio is missing: dr/dlogp = r"
    assert not close(got, -advantage * r.clip(0.8, 1.2)), "beyond the edge the slope is 0, not the clipped ratio"
    other = np.where(advantage >= 0, r >= 0.8, r <= 1.2)
    assert not close(got, -advantage * r * other), (
        "the edges are exchanged (max for min?): a good answer is stopped above 1 + clip, a bad one below 1 - clip"
    )
    assert close(got, -advantage * r * kept), where_off(got, -advantage * r * kept)


def check_kl_slope(answer):
    """1 - rho."""
    rng = np.random.default_rng(RNG_SEED)
    logp, reference = -rng.random(11), -rng.random(11)
    got, rho = np.asarray(answer(logp.copy(), reference.copy())), np.exp(reference - logp)
    assert not close(got, rho - 1), "the sign is turned: a token likelier than in the reference is pulled down"
    assert not close(got, 1 - 1 / rho), "rho is pi_ref / pi, the reference above; yours is the other way up"
    assert not close(got, rho - (reference - logp) - 1), "that is the estimate itself, not its slope"
    assert not close(got, -rho), "the logarithm has a slope too: +1"
    assert not close(got, -rho - 1), "log rho falls by 1 where logp rises by 1, and it stands with a minus: +1"
    assert close(got, 1 - rho), where_off(got, 1 - rho)


def check_replayed_gates(answer):
    """Another run's choice, this run's scores."""
    rng = np.random.default_rng(RNG_SEED)
    router, x = rng.standard_normal((5, 7)), rng.standard_normal((11, 7))
    index = np.array([rng.permutation(5)[:2] for _ in range(11)])
    got, score = np.asarray(answer(router.copy(), x.copy(), index.copy())), 1 / (1 + np.exp(-x @ router.T))
    picked = np.take_along_axis(score, index, axis=1)
    own = np.argsort(-score, axis=1)[:, :2]
    best = np.take_along_axis(score, own, axis=1)
    assert got.shape == (11, 2), f"one gate for each chosen expert: (11, 2), not {got.shape}"
    assert not close(got, best / best.sum(axis=1, keepdims=True)), "you choose anew; the choice was handed in"
    assert not close(got, picked), "the gates of a token must sum to one"
    assert not close(got, picked / score.sum(axis=1, keepdims=True)), "divide by the sum over the chosen, not over all"
    raised = np.exp(np.take_along_axis(x @ router.T, index, axis=1))
    assert not close(got, raised / raised.sum(axis=1, keepdims=True)), "that is a softmax; V3's scores are sigmoids"
    plain = np.take_along_axis(x @ router.T, index, axis=1)
    assert not close(got, plain / plain.sum(axis=1, keepdims=True)), "those are logits; a score is their sigmoid"
    want = picked / picked.sum(axis=1, keepdims=True)
    assert close(got, want), where_off(got, want)


def check_replayed_gates_backward(answer):
    """Quotient, sigmoid, product; rows of the router add up over tokens."""
    rng = np.random.default_rng(RNG_SEED)
    router, x, dgate = rng.standard_normal((5, 7)), rng.standard_normal((11, 7)), rng.standard_normal((11, 2))
    index = np.array([rng.permutation(5)[:2] for _ in range(11)])
    got = np.asarray(answer(dgate.copy(), router.copy(), x.copy(), index.copy()))
    assert got.shape == (5, 7), f"the router has a row for each expert: (5, 7), not {got.shape}"
    s = np.take_along_axis(1 / (1 + np.exp(-x @ router.T)), index, axis=1)
    total = s.sum(axis=1, keepdims=True)
    ds = (dgate - (dgate * s / total).sum(axis=1, keepdims=True)) / total

    def rows(dlogit):
        out = np.zeros_like(router)
        np.add.at(out, index, dlogit[..., None] * x[:, None])
        return out

    last = np.zeros_like(router)
    last[index] = (ds * s * (1 - s))[..., None] * x[:, None]
    mistakes = {
        "it is zero: the gates are numbers of *this* run and have a slope; only the choice has none": 0 * last,
        "the total has a slope too: every chosen score stands in it": rows(dgate / total * s * (1 - s)),
        "the sigmoid's slope s (1 - s) is missing": rows(ds),
        "the division by the total is missing": rows(ds * total * s * (1 - s)),
        "each expert keeps its last token only: d[index] = ... overwrites, np.add.at adds": last,
    }
    refuse(got, mistakes)
    want = rows(ds * s * (1 - s))
    assert close(got, want), where_off(got, want)


def check_reverse_kl_slope(answer):
    """q (off - mean off)."""
    rng = np.random.default_rng(RNG_SEED)
    teacher, student = rng.standard_normal((2, 7, 5))
    got, p, q = np.asarray(answer(teacher.copy(), student.copy())), softmax(teacher), softmax(student)
    assert got.shape == (7, 5), f"one slope a logit of the student: (7, 5), not {got.shape}"
    off = np.log(q) - np.log(p)
    want = q * (off - (q * off).sum(axis=1, keepdims=True))
    mistakes = {
        "that is the slope of the forward divergence, KL(p, q)": q - p,
        "the sign is turned: what the student says too often must come down, so its slope is positive": -want,
        "the row's mean is missing: a logit also lowers all other probabilities": q * off,
        "the weights q are missing in front": off - (q * off).sum(axis=1, keepdims=True),
        "each row has its own loss: do not divide by the number of rows": want / 7,
    }
    refuse(got, mistakes)
    assert close(got, want), where_off(got, want)


def check_grpo_from_an_empty_file(answer):
    """Loss and gradient, against differences of your own loss and against the formula."""
    rng = np.random.default_rng(RNG_SEED)
    written = np.arange(5) < np.array([5, 2, 3, 1, 4, 5])[:, None]
    old, reward = -rng.random((6, 5)), np.array([[1.0, 0, 0], [0, 2, 1]])
    logp = old + 0.3 * rng.standard_normal((6, 5))
    loss, gradient = answer(logp.copy(), old.copy(), written.copy(), reward.copy(), 0.2)
    centered = reward - reward.mean(axis=1, keepdims=True)
    a = (centered / reward.std(axis=1, keepdims=True)).reshape(-1, 1)
    r = np.exp(logp - old)
    least = np.minimum(r * a, r.clip(0.8, 1.2) * a) * written
    want = -(least.sum(axis=1) / written.sum(axis=1)).mean()
    assert not close(loss, -want), "the loss has the wrong sign: minus the gain"
    assert not close(loss, -least.sum() / written.sum()), (
        "that is DAPO's mean over all tokens; every answer has its own"
    )
    assert not close(loss, -(least.sum(axis=1)).mean()), "each answer is divided by the number of its own tokens"

    def loss_of(gain):
        return -((gain * written).sum(axis=1) / written.sum(axis=1)).mean()

    turned = (centered / reward.std(axis=1, keepdims=True)).T.reshape(-1, 1)
    c, over = r.clip(0.8, 1.2), np.exp(old - logp)
    raw = centered.reshape(-1, 1)
    mistakes = {
        "nothing is clipped": loss_of(r * a),
        "the larger of the two gains is taken: it is min, also for bad answers": loss_of(np.maximum(r * a, c * a)),
        "the ratio is the wrong way up: it is new over old": loss_of(np.minimum(over * a, over.clip(0.8, 1.2) * a)),
        "the advantages are dealt out by columns: rows 0 to M - 1 of logp belong to question 0": loss_of(
            np.minimum(r * turned, c * turned)
        ),
        "the standard deviation is missing: that is Dr. GRPO's advantage": loss_of(np.minimum(r * raw, c * raw)),
        "all rows are divided by S; each answer by the number of its own written tokens": -(least.sum(1) / 5).mean(),
        "tokens that were not written count in it": -np.minimum(r * a, c * a).mean(),
    }
    refuse(loss, mistakes)
    assert close(loss, want), f"the loss should be {want:.6f}, yours is {float(loss):.6f}"
    gradient = np.asarray(gradient)
    assert gradient.shape == (6, 5), f"one number for each token: (6, 5), not {gradient.shape}"
    assert not gradient[~written].any(), "tokens that were not written must have a gradient of exactly 0"
    numeric, h = np.zeros_like(logp), 6e-6
    for place in np.ndindex(logp.shape):
        up, down = logp.copy(), logp.copy()
        up[place], down[place] = up[place] + h, down[place] - h
        sides = [answer(x, old, written, reward, 0.2)[0] for x in (up, down)]
        numeric[place] = (sides[0] - sides[1]) / (2 * h)
    worst = np.unravel_index(np.abs(gradient - numeric).argmax(), numeric.shape)
    assert np.allclose(gradient, numeric, rtol=1e-5, atol=1e-8), (
        f"your gradient is not the slope of your loss: answer {worst[0]}, token {worst[1]} has "
        f"{gradient[worst]:.5f}, the difference quotient says {numeric[worst]:.5f}"
    )
