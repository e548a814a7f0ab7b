"""GRPO and what the field argues about, each a function of its own: from log-probabilities of written tokens to a loss.

    grpo       -1/B sum_b 1/|o_b| sum_s min(r A, clip(r) A)        the mean over answers of each one's own mean
    dr_grpo    -1/(B L_max) sum_b sum_s min(r A, clip(r) A)        a constant; advantages without a standard deviation
    dapo       -1/(sum |o|) sum_b sum_s min(r A, clip(r) A)        every token alike; the upper edge is further away
    gspo       -1/B sum_b min(s A, clip(s) A)                      s: one ratio an answer, (pi / pi_old)^(1/|o|)
    cispo      -1/(sum |o|) sum_b sum_s stop(clip(r)) A log pi     the weight is clipped, no token falls silent
    report     -1/B sum_b min(r_b A, clip(r_b) A)                  V3 Eq. (26) as printed: r_b of the whole answer

r = pi / pi_old of a token. Advantages, the log-probabilities of the writer and of the reference, and the importance
weights are numbers: no gradient passes through them. Divisors are those of the whole step: micro-batches add up.

Letters: P questions, M answers to each (the report's G), B = P M answers, S rows that predict.
Source: arXiv:2412.19437, Eqs. (26) to (28); arXiv:2402.03300, Eq. (3); Dr. GRPO 2503.20783; DAPO 2503.14476; GSPO
2507.18071; CISPO 2506.13585. By hand, with gradients: 07_post_training/grpo.py.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Answers:
    """What a loss knows of the answers, besides today's log-probabilities of their tokens.

    Attributes:
        written_BS: True where a token of the answer was drawn.
        advantage_B: how much better than its group.
        old_BS: log pi of the weights that wrote, by the trainer.
        reference_BS: log pi of the reference model, for a divergence.
        importance_BS: of each token, for what sampler and trainer disagree on; None: 1.
        n_answers, n_tokens: of the whole step; those here by default.
    """

    written_BS: Tensor
    advantage_B: Tensor
    old_BS: Tensor
    reference_BS: Tensor | None = None
    importance_BS: Tensor | None = None
    n_answers: int = 0
    n_tokens: int = 0

    def lengths(self) -> Tensor:
        """Count the written tokens of every answer, |o_b|.

        Raises:
            ValueError: an answer has no token.
        """
        length_B = self.written_BS.sum(1)
        if not length_B.all():
            raise ValueError(f"answer {int(length_B.argmin())} has no written token: leave it out")
        return length_B

    @property
    def count(self) -> int:
        """B of the whole step."""
        return self.n_answers or len(self.written_BS)

    @property
    def tokens(self) -> int:
        """The written tokens of the whole step."""
        return self.n_tokens or int(self.written_BS.sum())


Divergence = Callable[[Tensor, Answers], Tensor]


# -- advantages --------------------------------------------------------------------------------------------------------


def group_advantages(reward_PM: Tensor) -> Tensor:
    """Judge every answer against its group: (R - mean) / std, 0 where all rewards are equal; std divides by M."""
    std_P1 = reward_PM.std(1, keepdim=True, correction=0)
    return torch.where(std_P1 > 0, centered_advantages(reward_PM) / std_P1, 0.0)  # V3 Eq. (28)


def centered_advantages(reward_PM: Tensor) -> Tensor:
    """Subtract the mean of the group and no more, as Dr. GRPO does."""
    return reward_PM - reward_PM.mean(1, keepdim=True)


def informative_groups(reward_PM: Tensor) -> Tensor:
    """Say which groups teach anything, DAPO's dynamic sampling: those whose rewards are not all equal."""
    return reward_PM.amax(1) > reward_PM.amin(1)


# -- parts -------------------------------------------------------------------------------------------------------------


def clipped_gain(ratio: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    """Compute min(r A, clip(r, 1 - low, 1 + high) A): no gain beyond the edge, full loss on the way back."""
    return torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


def beyond_the_edge(ratio: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    """Say where the clip has taken the gradient away."""
    return torch.where(advantage >= 0, ratio > 1 + high, ratio < 1 - low) & (advantage != 0)


def kl_estimate(logp_BS: Tensor, answers: Answers) -> Tensor:
    """Estimate KL(pi || pi_ref) from the drawn token: rho - log rho - 1 with rho = pi_ref / pi.

    Right as a number; its gradient on average is that of KL(pi_ref || pi).
    Source: arXiv:2412.19437, Eq. (27).
    """
    gap_BS = _reference(answers) - logp_BS
    return gap_BS.exp() - gap_BS - 1  # V3 Eq. (27)


def corrected_kl(logp_BS: Tensor, answers: Answers) -> Tensor:
    """Weigh the estimate by pi / pi_old: unbiased, and so is its gradient, which is that of KL(pi || pi_ref)."""
    return (logp_BS - answers.old_BS).exp() * kl_estimate(logp_BS, answers)


def truncated_importance(trainer_BS: Tensor, sampler_BS: Tensor, most: float = 2.0) -> Tensor:
    """Weigh tokens for what sampler and trainer disagree on at the same weights: constants for the gradient."""
    return truncated_weights((trainer_BS - sampler_BS).exp(), most)


def truncated_weights(ratio: Tensor, most: float = 2.0) -> Tensor:
    """Cut the ratios pi_trainer / pi_sampler at `most`."""
    return ratio.detach().clamp(max=most)


def _reference(answers: Answers) -> Tensor:
    if answers.reference_BS is None:
        raise ValueError("a divergence needs reference_BS, the log-probabilities of the reference model")
    return answers.reference_BS


def _weighed(gain: Tensor, weight: Tensor | None) -> Tensor:
    return gain if weight is None else gain * weight


# -- losses ------------------------------------------------------------------------------------------------------------


def grpo_loss(
    logp_BS: Tensor, answers: Answers, clip: float = 0.2, beta: float = 0.0, divergence: Divergence = corrected_kl
) -> Tensor:
    """GRPO a token at a time, each answer by its own mean."""
    share_BS = answers.written_BS.to(logp_BS.dtype) / (answers.count * answers.lengths()[:, None])
    return _token_loss(logp_BS, answers, share_BS, (clip, clip), beta, divergence)


def dr_grpo_loss(
    logp_BS: Tensor,
    answers: Answers,
    max_length: int,
    clip: float = 0.2,
    beta: float = 0.0,
    divergence: Divergence = corrected_kl,
) -> Tensor:
    """Dr. GRPO: long wrong answers pay for every token; comes with `centered_advantages`."""
    share_BS = answers.written_BS.to(logp_BS.dtype) / (answers.count * float(max_length))
    return _token_loss(logp_BS, answers, share_BS, (clip, clip), beta, divergence)


def dapo_loss(
    logp_BS: Tensor,
    answers: Answers,
    low: float = 0.2,
    high: float = 0.28,
    beta: float = 0.0,
    divergence: Divergence = corrected_kl,
) -> Tensor:
    """DAPO: every written token of the step weighs the same; comes with `informative_groups`."""
    answers.lengths()
    share_BS = answers.written_BS.to(logp_BS.dtype) / answers.tokens
    return _token_loss(logp_BS, answers, share_BS, (low, high), beta, divergence)


def _token_loss(
    logp_BS: Tensor,
    answers: Answers,
    share_BS: Tensor,
    edges: tuple[float, float],
    beta: float,
    divergence: Divergence,
) -> Tensor:
    """Sum -share (clipped gain - beta KL) over tokens; the three losses above differ in the share."""
    ratio_BS = (logp_BS - answers.old_BS).exp()
    gain_BS = clipped_gain(ratio_BS, answers.advantage_B[:, None], *edges)
    if beta:
        gain_BS = gain_BS - beta * divergence(logp_BS, answers)
    return -(share_BS * _weighed(gain_BS, answers.importance_BS)).sum()


def sequence_ratio(logp_BS: Tensor, answers: Answers) -> Tensor:
    """Return the geometric mean of an answer's ratios, (pi(o) / pi_old(o))^(1/|o|)."""
    share_BS = answers.written_BS.to(logp_BS.dtype) / answers.lengths()[:, None]
    return ((logp_BS - answers.old_BS) * share_BS).sum(1).exp()


def gspo_loss(
    logp_BS: Tensor,
    answers: Answers,
    low: float = 3e-4,
    high: float = 4e-4,
    beta: float = 0.0,
    divergence: Divergence = corrected_kl,
) -> Tensor:
    """GSPO: an answer is clipped as a whole, and so is its importance weight the mean of its tokens' ones."""
    gain_B = clipped_gain(sequence_ratio(logp_BS, answers), answers.advantage_B, low, high)
    share_BS = answers.written_BS.to(logp_BS.dtype) / answers.lengths()[:, None]
    weight_B = None if answers.importance_BS is None else (answers.importance_BS * share_BS).sum(1)
    gain_B = _weighed(gain_B, weight_B)
    if beta:
        gain_B = gain_B - beta * (divergence(logp_BS, answers) * share_BS).sum(1)
    return -gain_B.sum() / answers.count


def cispo_loss(
    logp_BS: Tensor,
    answers: Answers,
    low: float = 1.0,
    high: float = 0.28,
    beta: float = 0.0,
    divergence: Divergence = corrected_kl,
) -> Tensor:
    """CISPO: the clipped ratio is a constant weight of log pi; low = 1 is no lower edge."""
    answers.lengths()
    ratio_BS = (logp_BS - answers.old_BS).detach().exp().clamp(1 - low, 1 + high)
    gain_BS = ratio_BS * answers.advantage_B[:, None] * logp_BS
    if beta:
        gain_BS = gain_BS - beta * divergence(logp_BS, answers)
    return -(answers.written_BS * _weighed(gain_BS, answers.importance_BS)).sum() / answers.tokens


def report_grpo_loss(
    logp_BS: Tensor, answers: Answers, clip: float = 0.2, beta: float = 0.0, divergence: Divergence = kl_estimate
) -> Tensor:
    """GRPO as the report prints it: ratio and divergence of whole answers."""

    def whole(x_BS: Tensor) -> Tensor:
        return (x_BS * answers.written_BS).sum(1, keepdim=True)

    reference_B1 = None if answers.reference_BS is None else whole(answers.reference_BS)
    one_B1 = torch.ones_like(answers.written_BS[:, :1])
    sums = Answers(one_B1, answers.advantage_B, whole(answers.old_BS), reference_B1, n_answers=answers.count)
    gain_B1 = clipped_gain((whole(logp_BS) - sums.old_BS).exp(), answers.advantage_B[:, None], clip, clip)
    if beta:
        gain_B1 = gain_B1 - beta * divergence(whole(logp_BS), sums)
    return -gain_B1.sum() / answers.count  # V3 Eq. (26)
