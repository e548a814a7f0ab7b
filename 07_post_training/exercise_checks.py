"""Grade exercises.py: each check recognises the usual wrong answers and says what they are."""

import numpy as np

RNG_SEED = 7


def close(a, b) -> bool:
    """Equal in shape and to rounding."""
    return np.shape(a) == np.shape(b) and bool(np.allclose(a, b, rtol=1e-9, atol=1e-12))


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
    attacks = {" 46": "a space", "+46": "a sign", "4_6": "an underscore", "٤٦": "digits of another script"}
    assert float(answer("12+34=", "46")) == 1.0, "46 is the sum of 12 and 34 and gets 1.0"
    assert float(answer("12+34=", "47")) == 0.0, "47 is not the sum of 12 and 34"
    for text in ("x", "", "12+34", "4.6e1", "[0, 46][1]", "(lambda: 46)()"):
        try:
            verdict = float(answer("12+34=", text))
        except Exception as error:
            raise AssertionError(
                f"the text {text!r} made your rule raise {type(error).__name__}; a wrong answer gets 0.0"
            ) from None
        assert verdict == 0.0, f"{text!r} got {verdict}: it looks as if the text were calculated; compare plain digits"
    for text, what in attacks.items():
        assert float(answer("12+34=", text)) == 0.0, f"{text!r} holds {what}: int() takes it, a judge should not"


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
    assert close(got, centered / reward.std(axis=1, keepdims=True)), "the values differ from (reward - mean) / std"
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
    assert close(got, -advantage * r * kept), "the values differ from -A r where the plain term is the smaller one"


def check_kl_slope(answer):
    """1 - rho."""
    rng = np.random.default_rng(RNG_SEED)
    logp, reference = -rng.random(11), -rng.random(11)
    got, rho = np.asarray(answer(logp.copy(), reference.copy())), np.exp(reference - logp)
    assert not close(got, rho - 1), "the sign is turned: a token likelier than in the reference is pulled down"
    assert not close(got, 1 - 1 / rho), "rho is pi_ref / pi, the reference above; yours is the other way up"
    assert not close(got, rho - (reference - logp) - 1), "that is the estimate itself, not its slope"
    assert not close(got, -rho), "the logarithm has a slope too: +1"
    assert close(got, 1 - rho), "the values differ from 1 - rho"


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
    assert close(got, picked / picked.sum(axis=1, keepdims=True)), "the values differ from s / sum of the chosen s"


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
    assert close(loss, want), f"the loss should be {want:.6f}, yours is {loss:.6f}"
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
