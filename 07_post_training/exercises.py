"""Build post-training, from the slope of one token to GRPO, and have every step graded.

    make check CH=07            (or: python -m utils.exercises 07, from the root)

Fill in the bodies, in any order: an exercise that calls another one is graded with the chapter's own version as long
as yours is blank. Everything is float64 NumPy. Letters: B answers, S rows that predict, T = S + 1 tokens, V vocabulary;
P questions, M answers to each (B = P M); N tokens, D width, E experts, A activated.
Hints, folded one by one: hints.md. Answers with their reasons: exercises_solved.py.
"""

import numpy as np


def log_probs_backward(g_N: np.ndarray, logits_NV: np.ndarray, token_N: np.ndarray) -> np.ndarray:
    """Go back from log pi of the written tokens to the logits: g is the slope of a loss by each log-probability.

    Returns: the slope of that loss by every logit, [N, V].
    Notebook: token_policy.
    """
    raise NotImplementedError


def targets_of_answers(token_BT: np.ndarray, answer_BT: np.ndarray) -> np.ndarray:
    """Say what every row is trained on: the next token if that token is of an answer, else -100.

    Args: answer_BT is True where a token belongs to an answer, its end included.
    Returns: [B, T - 1].
    Notebook: supervised_fine_tuning.
    """
    raise NotImplementedError


def judge_sum(problem: str, text: str) -> float:
    """Give 1.0 when `text` is the sum that `problem` (such as "12+34=") asks for, in plain digits 0 to 9; else 0.0.

    The text comes from a model that is paid for what you let through. It must not be run, and must not raise.
    Notebook: rewards.
    """
    raise NotImplementedError


def advantage_over_others(reward_PM: np.ndarray) -> np.ndarray:
    """Judge each answer by the mean reward of the *other* answers to its question: the baseline that shortens nothing.

    Returns: [P, M].
    Notebook: policy_gradient.
    """
    raise NotImplementedError


def group_advantage(reward_PM: np.ndarray) -> np.ndarray:
    """Judge each answer against its group: distance from the mean, in standard deviations (over M); equal rewards: 0.

    Returns: [P, M].
    Notebook: grpo; arXiv:2412.19437, Eq. (28).
    """
    raise NotImplementedError


def clipped_slope(logp: np.ndarray, old: np.ndarray, advantage: np.ndarray, clip: float) -> np.ndarray:
    """Differentiate -min(r A, clip(r, 1 - clip, 1 + clip) A), r = exp(logp - old), by logp. All arrays [N].

    Notebook: grpo; arXiv:2412.19437, Eq. (26).
    """
    raise NotImplementedError


def kl_slope(logp: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Differentiate rho - log rho - 1, rho = exp(reference - logp), by logp. All arrays [N].

    Notebook: grpo; arXiv:2412.19437, Eq. (27).
    """
    raise NotImplementedError


def replayed_gates(router_ED: np.ndarray, x_ND: np.ndarray, index_NA: np.ndarray) -> np.ndarray:
    """Weigh experts that another run chose: g = s / sum of the chosen s, with s = sigmoid(x . router) of *this* run.

    Returns: [N, A].
    Notebook: router_replay.
    """
    raise NotImplementedError


def replayed_gates_backward(
    dgate_NA: np.ndarray, router_ED: np.ndarray, x_ND: np.ndarray, index_NA: np.ndarray
) -> np.ndarray:
    """Go back through replayed_gates to the router: what it still learns when its choice was taken from elsewhere.

    Returns: drouter [E, D], the sum over tokens.
    Notebook: router_replay.
    """
    raise NotImplementedError


def reverse_kl_slope(teacher_NV: np.ndarray, student_NV: np.ndarray) -> np.ndarray:
    """Differentiate KL(q, p) = sum_v q_v (log q_v - log p_v) by the student's logits, row by row.

    Args: logits; p is the softmax of the teacher's, q that of the student's.
    Returns: [N, V].
    Notebook: distillation.
    """
    raise NotImplementedError


def grpo_from_an_empty_file(
    logp_BS: np.ndarray, old_BS: np.ndarray, written_BS: np.ndarray, reward_PM: np.ndarray, clip: float
) -> tuple[float, np.ndarray]:
    """Return GRPO's loss and its gradient by logp_BS, from rewards on, without a reference model.

        L = -1/B sum_b 1/|o_b| sum_s min(r A_b, clip(r, 1 - clip, 1 + clip) A_b)      over written tokens

    Row b of logp_BS is answer b % M to question b // M; |o_b| is the number of its written tokens. Use nothing of the
    chapter's grpo.py.
    Returns: the loss, a number; the gradient [B, S].
    Notebook: grpo; arXiv:2402.03300, Eq. (3).
    """
    raise NotImplementedError
