"""Write the six steps that make the expert layer of DeepSeek-V3, and have them graded.

    make check CH=03            (or: python -m utils.exercises 03, from the root)

Fill in the bodies; the letters are those of NOTATION.md. The chapter's own answers are in exercises_solved.py.
"""

import numpy as np


def teach_router(dgate_NA: np.ndarray, picked_NA: np.ndarray) -> np.ndarray:
    """Return the gradient of the chosen scores, given the gradient of the normalised gates.

        g_i = s_i / S,   S = sum of the chosen s        wanted: ds_i

    Args: dgate [N, A], picked (the chosen scores s, before normalising) [N, A]. Returns: [N, A].
    Source: arXiv:2412.19437, Eq. (13); expert_routing.py.

    Hint 1: every s_j is in the denominator of every gate, so ds_i has a term from each dg_j.
    Hint 2: d(s_j / S) / ds_i = [i = j] / S - s_j / S^2.
    Hint 3: ds_i = (dg_i - sum_j g_j dg_j) / S. Sum along the last axis and keep its dimension.
    """
    raise NotImplementedError


def choose_and_weigh(
    score_NE: np.ndarray, bias_E: np.ndarray, n_group: int, topk_group: int, n_activated: int, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the chosen experts [N, A], best first, and their gates [N, A].

        choose by s + b: the best groups (each worth the sum of its two best), then the A best in them
        gates: scale * s_i / sum of the chosen s

    Args: score [N, E], bias [E]; groups are equal runs of neighbours, of two experts or more.
    Source: arXiv:2412.19437, Eqs. (13), (14), (16); deepseek_moe.py.

    Hint 1: the bias appears in one line only. Which of the two results depends on it directly?
    Hint 2: reshape s + b to [N, G, E / G]; np.sort and the last two entries value a group.
    Hint 3: set losing groups to -np.inf (biased scores can be negative), argsort the negative, take s with
        np.take_along_axis, divide by the sum, and multiply by the scale last.
    """
    raise NotImplementedError


def move_bias(bias_E: np.ndarray, load_E: np.ndarray, speed: float) -> np.ndarray:
    """Return the balancing bias after one training step; leave the old one as it is.

        b_i + speed for an underloaded expert, b_i - speed for an overloaded one, b_i at exactly the mean load

    Source: arXiv:2408.15664, Alg. 1; loss_free_balancing.py.

    Hint 1: an expert that is chosen too often should look less attractive.
    Hint 2: only the direction counts, not how large the violation is.
    Hint 3: np.sign(mean - load).
    """
    raise NotImplementedError


def measure_violation(load_E: np.ndarray) -> float:
    """Return MaxVio: how far the busiest expert is above the mean load, relative to the mean.

    Source: arXiv:2408.15664; loss_free_balancing.py.

    Hint 1: it is 0 in balance and has no upper limit but E / A - 1.
    Hint 2: only the busiest counts, because everybody waits for it.
    Hint 3: (max - mean) / mean.
    """
    raise NotImplementedError


def balance_sequences(score_BSE: np.ndarray, n_activated: int, alpha: float) -> float:
    """Return V3's sequence-wise balance loss.

        L = alpha * mean over sequences of sum_i f_i P_i
        f_i = E / (A S) * #{t : s_it is among the A largest of token t}
        P_i = mean over t of s_it / sum_j s_jt

    Args: score [B, S, E], sigmoid scores as they come.
    Source: arXiv:2412.19437, Eqs. (17) to (20); load_balancing.py.

    Hint 1: in perfect balance the result is exactly alpha, for every E and A: use that to find your factors.
    Hint 2: f has one row for each sequence: count along the axis of tokens, not over the batch.
    Hint 3: a 0/1 array of the choices, np.put_along_axis(chosen, top, 1, axis=-1), summed over axis 1.
    """
    raise NotImplementedError


def visit_experts(x_ND: np.ndarray, index_NA: np.ndarray, gate_NA: np.ndarray, experts: list) -> np.ndarray:
    """Return y = sum over a of gate[n, a] * experts[index[n, a]](x[n]), calling each expert at most once.

    Args: x [N, D]; experts is a list of E functions from [M, D] to [M, D]. No call for an expert that has no token.
    Returns: [N, D].
    Source: arXiv:2412.19437, Eq. (12); deepseek_moe.py, routed_experts_forward.

    Hint 1: sort all N * A choices by expert: order = np.argsort(index, axis=None, kind="stable").
    Hint 2: row r of the sorted list belongs to token order[r] // A; the runs end at np.cumsum(np.bincount(...)).
    Hint 3: put the answers back with answer[order] = sorted_answers, reshape to [N, A, D], weigh and sum over A.
    """
    raise NotImplementedError
