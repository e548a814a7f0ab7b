"""GRPO and its named relatives: several answers to each question are judged against each other.

Run it:    python grpo.py
Notebook:  grpo.ipynb
Source:    arXiv:2412.19437, Eqs. (26) to (28); a token at a time: arXiv:2402.03300, Eq. (3). Dr. GRPO 2503.20783,
           DAPO 2503.14476, GSPO 2507.18071, CISPO 2506.13585 (MiniMax-M1).
Letters:   P questions, M answers to each (the report's G), B = P M answers, S rows that predict.

Every loss here is a pair x_forward(logp_BS, batch, ...) -> (loss, cache) and x_backward(dloss, cache) -> dlogp_BS. It
is a function of log pi of the tokens that were written, and gives back one weight for each of them; the rest of the
backward pass (`score_answers_backward`) is the same for all. Advantages, the writer's log-probabilities and those of
the reference are numbers, not functions of the weights: no gradient passes through them.
"""

from typing import NamedTuple

import numpy as np
from supervised_fine_tuning import warm_start
from token_policy import (
    Adam,
    PolicyWeights,
    check_answers,
    measure_accuracy,
    score_answers_backward,
    score_answers_forward,
    sorting_problems,
    write_answers,
)


class Batch(NamedTuple):
    """What the losses know of the answers, besides today's log-probabilities of their tokens."""

    old_BS: np.ndarray  # log pi_old: by the weights that wrote, not those of the step before, not the reference's
    written_BS: np.ndarray  # True where a token of the answer was chosen
    advantage_B: np.ndarray
    reference_BS: np.ndarray | None = None  # log pi_ref, for the losses that use a reference model


def group_advantages(reward_PM: np.ndarray) -> np.ndarray:
    """Judge every answer against the others of its group: A = (R - mean) / std, 0 where all rewards are equal.

    The standard deviation is that of the group itself (divided by M); the papers do not say.
    Source: arXiv:2412.19437, Eq. (28).
    """
    centered_PM = centered_advantages(reward_PM)
    std_P1 = reward_PM.std(axis=1, keepdims=True)
    return np.where(std_P1 > 0, centered_PM / np.where(std_P1 > 0, std_P1, 1), 0.0)  # V3 Eq. (28)


def centered_advantages(reward_PM: np.ndarray) -> np.ndarray:
    """Subtract the mean of the group and no more, as Dr. GRPO does: A = R - mean."""
    return reward_PM - reward_PM.mean(axis=1, keepdims=True)


def informative_groups(reward_PM: np.ndarray) -> np.ndarray:
    """Say which groups teach anything, DAPO's dynamic sampling: those whose rewards are not all equal."""
    return reward_PM.max(axis=1) > reward_PM.min(axis=1)


def clipped_forward(ratio: np.ndarray, advantage: np.ndarray, low: float = 0.2, high: float = 0.2) -> tuple:
    """Compute min(r A, clip(r, 1 - low, 1 + high) A): no gain beyond the edge, full loss on the way back."""
    kept = np.where(advantage >= 0, ratio <= 1 + high, ratio >= 1 - low)
    value = np.where(kept, ratio, ratio.clip(1 - low, 1 + high)) * advantage
    return value, (kept, advantage)


def clipped_backward(dvalue: np.ndarray, cache: tuple) -> np.ndarray:
    """d(min)/dr is A where the plain term counts and 0 where the clipped one does."""
    kept, advantage = cache
    return dvalue * advantage * kept


def kl_estimate_forward(logp: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Estimate the divergence KL(pi || pi_ref) from one drawn token: rho - log rho - 1 with rho = pi_ref / pi.

    Never negative, and right on average over draws from pi. Its *gradient* on average is another one's: that of
    KL(pi_ref || pi); `corrected_kl_forward` has the one that was meant.
    Source: arXiv:2412.19437, Eq. (27).
    """
    rho = np.exp(reference - logp)
    return rho - (reference - logp) - 1, rho  # V3 Eq. (27)


def kl_estimate_backward(dkl: np.ndarray, rho: np.ndarray) -> np.ndarray:
    """d(rho - log rho - 1)/d log pi = 1 - rho."""
    return dkl * (1 - rho)


def corrected_kl_forward(logp: np.ndarray, old: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, tuple]:
    """Weigh the estimate by pi / pi_old: the draw came from pi_old, and the draw itself depends on the weights."""
    ratio, (kl, rho) = np.exp(logp - old), kl_estimate_forward(logp, reference)
    return ratio * kl, (ratio, kl, rho)


def corrected_kl_backward(dkl: np.ndarray, cache: tuple) -> np.ndarray:
    """d(r k)/d log pi = r k + r (1 - rho) = -r log rho: on average the gradient of KL(pi || pi_ref)."""
    ratio, kl, rho = cache
    return dkl * ratio * (kl + 1 - rho)


def grpo_forward(logp_BS: np.ndarray, batch: Batch, clip: float = 0.2, beta: float = 0.0) -> tuple[float, tuple]:
    """GRPO a token at a time: the mean over answers of each answer's own mean over its tokens.

        L = -1/B sum_b 1/|o_b| sum_s ( min(r A_b, clip(r, 1 - eps, 1 + eps) A_b) - beta (rho - log rho - 1) )
        r = pi / pi_old of token s,   rho = pi_ref / pi of token s

    Raises:
        ValueError: beta asks for a reference that the batch lacks, or an answer has no token.
    Source: arXiv:2402.03300, Eq. (3); Eq. (26) of arXiv:2412.19437 has whole answers for o (`report_grpo_forward`).
    """
    weight_BS = batch.written_BS / (len(logp_BS) * answer_lengths(batch)[:, None])
    return _token_loss(logp_BS, batch, weight_BS, (clip, clip), beta)


def dr_grpo_forward(
    logp_BS: np.ndarray, batch: Batch, max_length: int, clip: float = 0.2, beta: float = 0.0
) -> tuple[float, tuple]:
    """Dr. GRPO: a sum over tokens, divided by a constant: L = -1/(B L_max) sum_b sum_s min(...).

    A mean over |o_b| lets a long wrong answer pay less for each token than a short one; a constant does not. Comes
    with `centered_advantages`, without a standard deviation.
    Source: arXiv:2503.20783; the constant only scales the rate, the longest answer allowed is ours.
    """
    weight_BS = batch.written_BS / (len(logp_BS) * float(max_length))
    return _token_loss(logp_BS, batch, weight_BS, (clip, clip), beta)


def dapo_forward(logp_BS: np.ndarray, batch: Batch, low: float = 0.2, high: float = 0.28) -> tuple[float, tuple]:
    """DAPO: every written token of the batch weighs the same, and the upper edge is further away than the lower.

        L = -1/(sum_b |o_b|) sum_b sum_s min(r A_b, clip(r, 1 - low, 1 + high) A_b)

    Comes with `group_advantages` on `informative_groups`; no reference model.
    Source: arXiv:2503.14476.
    """
    answer_lengths(batch)
    return _token_loss(logp_BS, batch, batch.written_BS / batch.written_BS.sum(), (low, high), 0.0)


def _subtract_kl(gain: np.ndarray, logp: np.ndarray, reference, beta: float) -> tuple[np.ndarray, np.ndarray]:
    """Return gain - beta KL and rho; with beta = 0 no reference is asked for."""
    if not beta:
        return gain, np.ones_like(logp)
    if reference is None:
        raise ValueError(f"beta={beta} needs reference_BS, the log-probabilities of the reference model")
    kl, rho = kl_estimate_forward(logp, reference)
    return gain - beta * kl, rho


def _token_loss(
    logp_BS: np.ndarray, batch: Batch, weight_BS: np.ndarray, edges: tuple[float, float], beta: float
) -> tuple[float, tuple]:
    """Sum -weight (clipped term - beta KL) over tokens; the three losses above differ in the weight."""
    ratio_BS = np.exp(logp_BS - batch.old_BS)
    gain_BS, clip_cache = clipped_forward(ratio_BS, batch.advantage_B[:, None], *edges)
    gain_BS, rho_BS = _subtract_kl(gain_BS, logp_BS, batch.reference_BS, beta)
    return -float((weight_BS * gain_BS).sum()), (weight_BS, ratio_BS, clip_cache, beta, rho_BS)


def token_loss_backward(dloss: float, cache: tuple) -> np.ndarray:
    """Return dlogp_BS of `grpo`, `dr_grpo` and `dapo`: -w (r A [not clipped] - beta (1 - rho))."""
    weight_BS, ratio_BS, clip_cache, beta, rho_BS = cache
    dgain_BS = -dloss * weight_BS
    dlogp_BS = clipped_backward(dgain_BS, clip_cache) * ratio_BS  # dr/d log pi = r
    return dlogp_BS + kl_estimate_backward(-beta * dgain_BS, rho_BS)


grpo_backward = dr_grpo_backward = dapo_backward = token_loss_backward


def answer_lengths(batch: Batch) -> np.ndarray:
    """Count the written tokens of every answer, |o_b|.

    Raises:
        ValueError: an answer has no token.
    """
    length_B = batch.written_BS.sum(axis=1)
    if not length_B.all():
        raise ValueError(f"answer {int(length_B.argmin())} has no written token: nothing to divide by; leave it out")
    return length_B.astype(float)


def gspo_forward(logp_BS: np.ndarray, batch: Batch, low: float = 3e-4, high: float = 4e-4) -> tuple[float, tuple]:
    """GSPO: one ratio an answer, the geometric mean of its tokens' ratios, clipped as a whole.

        s_b = (pi(o_b) / pi_old(o_b))^(1/|o_b|),   L = -1/B sum_b min(s_b A_b, clip(s_b, 1 - low, 1 + high) A_b)

    Edges are a thousand times nearer than GRPO's, because a mean over many tokens moves that much less.
    Source: arXiv:2507.18071.
    """
    share_BS = batch.written_BS / answer_lengths(batch)[:, None]
    ratio_B = np.exp(((logp_BS - batch.old_BS) * share_BS).sum(axis=1))
    gain_B, clip_cache = clipped_forward(ratio_B, batch.advantage_B, low, high)
    return -float(gain_B.mean()), (share_BS, ratio_B, clip_cache)


def gspo_backward(dloss: float, cache: tuple) -> np.ndarray:
    """Return dlogp_BS = -A s [not clipped] / (B |o_b|): all tokens of an answer get the same."""
    share_BS, ratio_B, clip_cache = cache
    dratio_B = clipped_backward(np.full(len(ratio_B), -dloss / len(ratio_B)), clip_cache)
    return (dratio_B * ratio_B)[:, None] * share_BS


def cispo_forward(logp_BS: np.ndarray, batch: Batch, low: float = 1.0, high: float = 0.28) -> tuple[float, tuple]:
    """CISPO: the clipped ratio is a constant weight of log pi, so that no token ever falls silent.

        L = -1/(sum_b |o_b|) sum_b sum_s stop(clip(r, 1 - low, 1 + high)) A_b log pi

    The value depends on where the constant was taken; only the gradient is of use. low = 1 is no lower edge.
    Source: arXiv:2506.13585, section 3; it names no number for the upper edge, 0.28 is DAPO's.
    """
    answer_lengths(batch)
    ratio_BS = np.exp(logp_BS - batch.old_BS).clip(1 - low, 1 + high)
    weight_BS = ratio_BS * batch.advantage_B[:, None] * batch.written_BS / batch.written_BS.sum()
    return -float((weight_BS * logp_BS).sum()), (weight_BS,)


def cispo_backward(dloss: float, cache: tuple) -> np.ndarray:
    """Return dlogp_BS = -clip(r) A / sum |o|: the weight that the forward pass held fast."""
    return -dloss * cache[0]


def report_grpo_forward(logp_BS: np.ndarray, batch: Batch, clip: float = 0.2, beta: float = 0.0) -> tuple[float, tuple]:
    """GRPO as the report prints it: o_b is a whole answer, and so are the ratio and the divergence.

        L = -1/B sum_b ( min(r_b A_b, clip(r_b, 1 - eps, 1 + eps) A_b) - beta (rho_b - log rho_b - 1) )
        r_b = pi(o_b) / pi_old(o_b) = exp(sum_s (log pi - log pi_old))

    Source: arXiv:2412.19437, Eq. (26).
    """
    logp_B, old_B = ((x_BS * batch.written_BS).sum(axis=1) for x_BS in (logp_BS, batch.old_BS))
    reference_B = None if batch.reference_BS is None else (batch.reference_BS * batch.written_BS).sum(axis=1)
    ratio_B = np.exp(logp_B - old_B)
    gain_B, clip_cache = clipped_forward(ratio_B, batch.advantage_B, clip, clip)
    gain_B, rho_B = _subtract_kl(gain_B, logp_B, reference_B, beta)
    return -float(gain_B.mean()), (batch.written_BS, ratio_B, clip_cache, beta, rho_B)  # V3 Eq. (26)


def report_grpo_backward(dloss: float, cache: tuple) -> np.ndarray:
    """Return dlogp_BS = -(r_b A_b [not clipped] - beta (1 - rho_b)) / B for every written token."""
    written_BS, ratio_B, clip_cache, beta, rho_B = cache
    dgain_B = np.full(len(ratio_B), -dloss / len(ratio_B))
    dlogp_B = clipped_backward(dgain_B, clip_cache) * ratio_B + kl_estimate_backward(-beta * dgain_B, rho_B)
    return dlogp_B[:, None] * written_BS


LOSSES = {
    "grpo": (grpo_forward, grpo_backward, group_advantages),
    "dr_grpo": (lambda logp, batch: dr_grpo_forward(logp, batch, max_length=4), dr_grpo_backward, centered_advantages),
    "dapo": (dapo_forward, dapo_backward, group_advantages),
    "gspo": (gspo_forward, gspo_backward, group_advantages),
    "cispo": (cispo_forward, cispo_backward, group_advantages),
}


def grpo_step(
    weights: PolicyWeights,
    adam: Adam,
    prompt_PT: np.ndarray,
    rng: np.random.Generator,
    loss: str = "grpo",
    n_answers: int = 16,
    n_updates: int = 1,
) -> tuple[PolicyWeights, np.ndarray]:
    """Write M answers to each question, judge them, take `n_updates` steps on them; return weights and reward_PM."""
    forward, backward, judge = LOSSES[loss]
    answers = write_answers(weights, np.repeat(prompt_PT, n_answers, axis=0), rng)
    reward_PM = check_answers(answers.token_BT).astype(float).reshape(-1, n_answers)
    batch = Batch(answers.logp_BS, answers.written_BS, judge(reward_PM).ravel())
    for _ in range(n_updates):
        logp_BS, cache = score_answers_forward(weights, answers.token_BT)
        _, loss_cache = forward(logp_BS, batch)
        weights = adam.step(weights, score_answers_backward(backward(1.0, loss_cache), cache))
    return weights, reward_PM


def main() -> None:
    """Print one group with its advantages, then let the policy learn from nothing but right and wrong."""
    reward = np.array([[1.0, 0, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]])
    print("rewards of three groups of four, and their advantages (mean 0, spread 1; all equal: nothing):")
    for row, advantage in zip(reward, group_advantages(reward)):
        print(f"  {row}  ->  {advantage.round(3)}")
    for ratio, advantage in ((1.5, 1.0), (0.5, 1.0), (1.5, -1.0), (0.5, -1.0)):
        value, cache = clipped_forward(np.array(ratio), np.array(advantage))
        slope = clipped_backward(np.array(1.0), cache)
        print(f"ratio {ratio}, advantage {advantage:+.0f}: counts as {value:+.2f}, slope {slope + 0.0:+.0f}")
    rng = np.random.default_rng(0)
    weights, (train, held_out) = warm_start(rng), sorting_problems()
    adam = Adam(weights, rate=5e-3)
    for step in range(61):
        if step % 20 == 0:
            right = [measure_accuracy(weights, p) for p in (train, held_out)]
            print(f"step {step:>3}: greedy right {right[0]:.0%} of the questions trained on, {right[1]:.0%} held out")
        weights, _ = grpo_step(weights, adam, train[rng.integers(0, len(train), 16)], rng)


if __name__ == "__main__":
    main()
