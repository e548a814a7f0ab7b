"""The answers to exercises.py, each with the reason; read them after your own attempt."""

import re

import numpy as np


def log_probs_backward(g_N: np.ndarray, logits_NV: np.ndarray, token_N: np.ndarray) -> np.ndarray:
    """What the written token wins, all tokens pay by their probability: a row sums to zero."""
    pi_NV = np.exp(logits_NV - logits_NV.max(axis=1, keepdims=True))
    pi_NV /= pi_NV.sum(axis=1, keepdims=True)
    return g_N[:, None] * (np.eye(logits_NV.shape[1])[token_N] - pi_NV)


def targets_of_answers(token_BT: np.ndarray, answer_BT: np.ndarray) -> np.ndarray:
    """Mark what is not of an answer, then shift: a row is judged by the token *after* it, and so is its mask."""
    return np.where(answer_BT, token_BT, -100)[:, 1:]


def judge_sum(problem: str, text: str) -> float:
    """Look at the letters first: what is not plain digits is wrong, whatever Python would make of it."""
    first, second = problem.rstrip("=").split("+")
    return float(re.fullmatch("[0-9]{1,20}", text) is not None and int(text) == int(first) + int(second))


def advantage_over_others(reward_PM: np.ndarray) -> np.ndarray:
    """The others' mean knows nothing of the own draw, as a baseline must; the own reward is taken out of the sum."""
    M = reward_PM.shape[1]
    return reward_PM - (reward_PM.sum(axis=1, keepdims=True) - reward_PM) / (M - 1)


def group_advantage(reward_PM: np.ndarray) -> np.ndarray:
    """One mean and one deviation a row; a group without a difference has nothing to say, which is 0 and not 0/0."""
    centered = reward_PM - reward_PM.mean(axis=1, keepdims=True)
    std = reward_PM.std(axis=1, keepdims=True)
    return np.where(std > 0, centered / np.where(std > 0, std, 1), 0.0)


def clipped_slope(logp: np.ndarray, old: np.ndarray, advantage: np.ndarray, clip: float) -> np.ndarray:
    """The edge stops only the move that the advantage asks for: up for a good answer, down for a bad one."""
    ratio = np.exp(logp - old)
    kept = np.where(advantage >= 0, ratio <= 1 + clip, ratio >= 1 - clip)
    return -advantage * ratio * kept


def kl_slope(logp: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """d(rho)/dlogp = -rho and d(-log rho)/dlogp = +1."""
    return 1 - np.exp(reference - logp)


def replayed_gates(router_ED: np.ndarray, x_ND: np.ndarray, index_NA: np.ndarray) -> np.ndarray:
    """The choice is the other run's, the scores are this one's: so the router keeps its gradient."""
    score = np.take_along_axis(1 / (1 + np.exp(-x_ND @ router_ED.T)), index_NA, axis=1)
    return score / score.sum(axis=1, keepdims=True)


def replayed_gates_backward(
    dgate_NA: np.ndarray, router_ED: np.ndarray, x_ND: np.ndarray, index_NA: np.ndarray
) -> np.ndarray:
    """Quotient, sigmoid, product, backwards; tokens that share an expert add up in its row, hence np.add.at."""
    s_NA = np.take_along_axis(1 / (1 + np.exp(-x_ND @ router_ED.T)), index_NA, axis=1)
    total_N1 = s_NA.sum(axis=1, keepdims=True)
    ds_NA = (dgate_NA - (dgate_NA * s_NA / total_N1).sum(axis=1, keepdims=True)) / total_N1
    drouter_ED = np.zeros_like(router_ED)
    np.add.at(drouter_ED, index_NA, (ds_NA * s_NA * (1 - s_NA))[..., None] * x_ND[:, None])
    return drouter_ED


def reverse_kl_slope(teacher_NV: np.ndarray, student_NV: np.ndarray) -> np.ndarray:
    """How far a token is off, against how far the row is off on average: only the difference moves probability."""
    logp_NV, logq_NV = (z - np.log(np.exp(z).sum(axis=1, keepdims=True)) for z in (teacher_NV, student_NV))
    q_NV, off_NV = np.exp(logq_NV), logq_NV - logp_NV
    return q_NV * (off_NV - (q_NV * off_NV).sum(axis=1, keepdims=True))


def grpo_from_an_empty_file(
    logp_BS: np.ndarray, old_BS: np.ndarray, written_BS: np.ndarray, reward_PM: np.ndarray, clip: float
) -> tuple[float, np.ndarray]:
    """Advantage, ratio, clip, weight: four lines, and the gradient takes the same weight."""
    advantage = np.broadcast_to(group_advantage(reward_PM).reshape(-1, 1), logp_BS.shape)
    ratio = np.exp(logp_BS - old_BS)
    least = np.minimum(ratio * advantage, ratio.clip(1 - clip, 1 + clip) * advantage)
    weight = written_BS / (len(logp_BS) * written_BS.sum(axis=1, keepdims=True))
    return -float((weight * least).sum()), weight * clipped_slope(logp_BS, old_BS, advantage, clip)
