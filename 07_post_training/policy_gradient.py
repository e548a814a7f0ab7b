"""REINFORCE: how to climb a reward that cannot be differentiated, and why a baseline makes it bearable.

Run it:    python policy_gradient.py
Notebook:  policy_gradient.ipynb
Source:    Williams 1992 (REINFORCE); leave-one-out: Kool et al. 2019; in language models: arXiv:2402.14740.
Letters:   V actions, M answers to one question (a group), B answers, S rows that predict.

    J = E_pi[R] = sum_v pi_v R_v
    dJ/dtheta = sum_v R_v dpi_v/dtheta = sum_v pi_v R_v dlog pi_v/dtheta = E_pi[R dlog pi/dtheta]

The reward is a number, asked for and never differentiated. For a softmax dlog pi_a/dz = one-hot(a) - pi, and the whole
expectation can be written down: dJ/dz_v = pi_v (R_v - J). That makes it possible to say how good an estimate is.
"""

from collections.abc import Callable

import numpy as np
from token_policy import (
    Adam,
    log_softmax,
    measure_accuracy,
    read_answers,
    score_answers_backward,
    score_answers_forward,
    sorting_problems,
    write_answers,
)

Baseline = Callable[[np.ndarray], np.ndarray]


def exact_gradient(logits_V: np.ndarray, reward_V: np.ndarray) -> np.ndarray:
    """Differentiate the expected reward of one choice: dJ/dz_v = pi_v (R_v - J)."""
    prob_V = np.exp(log_softmax(logits_V))
    return prob_V * (reward_V - prob_V @ reward_V)


def no_baseline(reward_PM: np.ndarray) -> np.ndarray:
    """Weigh every answer by its reward: right on average, and loud."""
    return reward_PM


def mean_baseline(reward_PM: np.ndarray) -> np.ndarray:
    """Subtract the group's mean, own reward included: quieter, and too short by the factor 1 - 1/M."""
    return reward_PM - reward_PM.mean(axis=1, keepdims=True)


def leave_one_out(reward_PM: np.ndarray) -> np.ndarray:
    """Subtract the mean of the *other* answers: as quiet, and right on average; M/(M - 1) times `mean_baseline`.

    Raises:
        ValueError: a group of one has no others.
    """
    M = reward_PM.shape[1]
    if M < 2:
        raise ValueError("one answer to a question has no others to be compared with; draw at least 2")
    return mean_baseline(reward_PM) * M / (M - 1)


def reinforce_forward(logp_BS: np.ndarray, advantage_B: np.ndarray, written_BS: np.ndarray) -> tuple[float, tuple]:
    """Average -A log pi over whole answers: L = -1/B sum_b A_b sum_s log pi(token s).

    The value means nothing (it is no expected reward); its gradient is minus the estimate of dJ/dtheta.
    """
    weight_BS = -advantage_B[:, None] * written_BS / len(logp_BS)
    return float((weight_BS * logp_BS).sum()), (weight_BS,)


def reinforce_backward(dloss: float, cache: tuple) -> np.ndarray:
    """Return dlogp_BS = -A_b / B for every written token; the advantage is a number and gets no gradient."""
    return dloss * cache[0]


def estimate_gradients(
    rng: np.random.Generator, logits_V: np.ndarray, reward_V: np.ndarray, baseline: Baseline, n_groups: int, M: int
) -> np.ndarray:
    """Estimate dJ/dz from `n_groups` groups of M drawn actions each: one estimate [V] a row."""
    logp_V = log_softmax(logits_V)
    action_PM = (logp_V + rng.gumbel(size=(n_groups, M, len(logp_V)))).argmax(axis=-1)
    weight_PM = baseline(reward_V[action_PM])
    score_PMV = np.eye(len(logp_V))[action_PM] - np.exp(logp_V)
    return (weight_PM[..., None] * score_PMV).mean(axis=1)


def measure_noise(estimate_PV: np.ndarray, exact_V: np.ndarray) -> tuple[float, float]:
    """Return how far the mean estimate is from the truth, in standard errors, and the variance of one estimate."""
    error_V = estimate_PV.std(axis=0, ddof=1) / np.sqrt(len(estimate_PV))
    off = np.abs(estimate_PV.mean(axis=0) - exact_V) / np.where(error_V > 0, error_V, 1)
    return float(off.max()), float(estimate_PV.var(axis=0, ddof=1).sum())


def reinforce_step(
    weights, adam: Adam, prompt_PT: np.ndarray, rng: np.random.Generator, rule, baseline: Baseline, n_answers: int = 8
):
    """Let the policy answer, ask rule(question, answer) for rewards, take one step; returns (weights, reward_PM)."""
    answers = write_answers(weights, np.repeat(prompt_PT, n_answers, axis=0), rng)
    questions = ["".join(map(str, row[:3] - 3)) + ">" for row in answers.token_BT]  # digit 0 is token 3
    reward_B = np.array([rule(q, text) for q, text in zip(questions, read_answers(answers))])
    reward_PM = reward_B.reshape(-1, n_answers)
    logp_BS, cache = score_answers_forward(weights, answers.token_BT)
    _, loss_cache = reinforce_forward(logp_BS, baseline(reward_PM).ravel(), answers.written_BS)
    return adam.step(weights, score_answers_backward(reinforce_backward(1.0, loss_cache), cache)), reward_PM


def main() -> None:
    """Estimate a known gradient with three baselines; then climb a rule that has a hole."""
    rng = np.random.default_rng(0)
    logits, reward = np.log([0.5, 0.25, 0.125, 0.125]), np.array([11.0, 10.0, 10.0, 14.0])
    exact = exact_gradient(logits, reward)
    print(f"four actions, rewards {reward}: expected {np.exp(logits) @ reward}, exact gradient {exact}")
    for baseline in (no_baseline, mean_baseline, leave_one_out):
        estimate = estimate_gradients(rng, logits, reward, baseline, 20_000, 4)
        off, variance = measure_noise(estimate, exact)
        print(
            f"  {baseline.__name__:<14} mean {estimate.mean(axis=0).round(3)}, "
            f"{off:4.1f} standard errors off, variance {variance:7.3f}"
        )
    from rewards import ordered_reward
    from supervised_fine_tuning import warm_start

    weights, (train, held_out) = warm_start(rng), sorting_problems()
    adam = Adam(weights, 5e-3)
    print("REINFORCE on a rule that asks for rising digits and forgets to ask whose:")
    for step in range(41):
        if step % 20 == 0:
            texts = read_answers(write_answers(weights, held_out[:6], rng))
            right = measure_accuracy(weights, held_out)
            print(f"  step {step:>2}: sorted rightly {right:4.0%}, it writes {' '.join(texts)}")
        questions = train[rng.integers(0, len(train), 16)]
        weights, _ = reinforce_step(weights, adam, questions, rng, ordered_reward, leave_one_out)


if __name__ == "__main__":
    main()
