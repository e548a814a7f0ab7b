"""Your turn: seven functions of post-training. Fill in the bodies, then run `make check CH=07`.

Everything is float64 NumPy. Letters: B answers, S rows that predict, T = S + 1 tokens, V vocabulary; P questions, M
answers to each (B = P M); N tokens, D width, E experts, A activated.
"""

import numpy as np


def targets_of_answers(token_BT: np.ndarray, answer_BT: np.ndarray) -> np.ndarray:
    """Say what every row is trained on: the next token if that token is of an answer, else -100. Shape [B, T - 1].

    Module supervised_fine_tuning.py.
    Hint 1: which row must learn to write the *first* token of an answer? It reads a token of the question.
    Hint 2: so the mask moves together with the targets, not with the tokens that are read.
    Hint 3: mark first, then cut off the first column of the marked tokens.
    """
    raise NotImplementedError


def judge_sum(problem: str, text: str) -> float:
    """Give 1.0 when `text` is the sum that `problem` (such as "12+34=") asks for, in plain digits 0 to 9; else 0.0.

    The text comes from a model that is paid for what you let through. It must not be run, and must not raise.
    Module rewards.py.
    Hint 1: eval("46") is 46, and eval("__import__('os').system(...)") is whatever the model wants.
    Hint 2: int() runs nothing, but raises on "x" and takes " 46", "4_6" and "+46".
    Hint 3: re.fullmatch("[0-9]+", text), and only then int(text).
    """
    raise NotImplementedError


def group_advantage(reward_PM: np.ndarray) -> np.ndarray:
    """Judge each answer against its group: (reward - mean) / standard deviation (over M), 0 where all are equal.

    Source: arXiv:2412.19437, Eq. (28); module grpo.py.
    Hint 1: one mean and one deviation for each question: which axis, and must it be kept?
    Hint 2: equal rewards have deviation 0; what should a group teach in which nobody was better?
    Hint 3: np.where(std > 0, centered / np.where(std > 0, std, 1), 0)
    """
    raise NotImplementedError


def clipped_slope(logp: np.ndarray, old: np.ndarray, advantage: np.ndarray, clip: float) -> np.ndarray:
    """Differentiate -min(r A, clip(r, 1 - clip, 1 + clip) A), r = exp(logp - old), by logp. All arrays [N].

    Source: arXiv:2412.19437, Eq. (26); module grpo.py.
    Hint 1: where the plain term is the smaller one, d(r A)/dlogp = A r.
    Hint 2: where the clipped one is, the slope is 0. With A > 0 that is r > 1 + clip; and with A < 0?
    Hint 3: kept = np.where(advantage >= 0, r <= 1 + clip, r >= 1 - clip)
    """
    raise NotImplementedError


def kl_slope(logp: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Differentiate rho - log rho - 1, rho = exp(reference - logp), by logp.

    Source: arXiv:2412.19437, Eq. (27); module grpo.py.
    Hint 1: drho/dlogp = -rho, because logp stands with a minus in the exponent.
    Hint 2: d(log rho)/dlogp = -1.
    Hint 3: put both together: zero when both models agree, positive when this one finds the token likelier.
    """
    raise NotImplementedError


def replayed_gates(router_ED: np.ndarray, x_ND: np.ndarray, index_NA: np.ndarray) -> np.ndarray:
    """Weigh experts that another run chose: g = s / sum of the chosen s, with s = sigmoid(x . router) of *this* run.

    Module router_replay.py.
    Hint 1: all scores are sigmoid(x_ND @ router_ED.T), [N, E]; only those in index_NA count.
    Hint 2: np.take_along_axis picks columns by index.
    Hint 3: divide by the sum over the chosen, not over all experts.
    """
    raise NotImplementedError


def grpo_from_an_empty_file(
    logp_BS: np.ndarray, old_BS: np.ndarray, written_BS: np.ndarray, reward_PM: np.ndarray, clip: float
) -> tuple[float, np.ndarray]:
    """Return GRPO's loss and its gradient by logp_BS, from rewards on, without a reference model.

        L = -1/B sum_b 1/|o_b| sum_s min(r A_b, clip(r, 1 - clip, 1 + clip) A_b)      over written tokens

    Row b of logp_BS is answer b % M to question b // M. Use nothing of the chapter's grpo.py.
    Source: arXiv:2402.03300, Eq. (3).
    Hint 1: you have two of its parts already: group_advantage and clipped_slope.
    Hint 2: the weight of a token is written / (B |o_b|), with |o_b| the number of written tokens of its answer.
    Hint 3: loss = -(weight * minimum).sum(); gradient = weight * clipped_slope, token by token.
    """
    raise NotImplementedError
