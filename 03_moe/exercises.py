"""Build the expert layer of DeepSeek-V3, forward and backward, and have every step graded.

    make check CH=03            (or: python -m utils.exercises 03, from the root)

Fill in the bodies, in any order: an exercise that calls another one is graded with the chapter's own version as long
as yours is blank. Letters are those of NOTATION.md; tokens are rows, so there is no batch axis where none is named.
Everything is float64 NumPy. Hints, folded one by one: hints.md. Answers with their reasons: exercises_solved.py.
"""

import numpy as np


def teach_router(dgate_NA: np.ndarray, picked_NA: np.ndarray) -> np.ndarray:
    """Go back through the normalisation of the gates: each chosen score divided by the sum of the token's chosen ones.

    Args: dgate is the gradient of the gates; picked are the chosen scores, before the division.
    Returns: dpicked [N, A].
    Notebook: expert_routing; arXiv:2412.19437, Eq. (13).
    """
    raise NotImplementedError


def router_backward(
    dgate_NA: np.ndarray, x_ND: np.ndarray, weight_ED: np.ndarray, n_activated: int
) -> tuple[np.ndarray, np.ndarray]:
    """Go back through V3's router: logits x weight^T, sigmoid, the n_activated best of each token, normalised.

    Args: dgate is in the order of the choice, best first. Nothing was kept: start again.
    Returns: dx [N, D], dweight [E, D].
    Notebook: expert_routing; arXiv:2412.19437, Eqs. (13) to (15).
    """
    raise NotImplementedError


def softmax_router_backward(
    dgate_NA: np.ndarray, x_ND: np.ndarray, weight_ED: np.ndarray, n_activated: int
) -> tuple[np.ndarray, np.ndarray]:
    """Go back through V2's router: a softmax over all experts, the best ones chosen, their gates not normalised.

    Args: dgate is in the order of the choice, best first.
    Returns: dx [N, D], dweight [E, D].
    Notebook: expert_routing; arXiv:2405.04434, section 2.2.1.
    """
    raise NotImplementedError


def seat_choices(index_NA: np.ndarray, n_experts: int, places: int) -> np.ndarray:
    """Seat the tokens before their experts: all first choices in the order of the tokens, then all second ones, ...

    Returns: int [N, A], the place of each choice at its expert, 0 to places - 1; -1 where the expert was full.
    Notebook: classic_moe; arXiv:2006.16668.
    """
    raise NotImplementedError


def relu_expert_backward(
    dy_ND: np.ndarray, x_ND: np.ndarray, up_proj: np.ndarray, down_proj: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Go back through the classic expert y = relu(x up_proj^T) down_proj^T, up_proj [F, D], down_proj [D, F].

    Returns: dx [N, D], dup_proj, ddown_proj.
    Notebook: classic_moe.
    """
    raise NotImplementedError


def combine_backward(
    dy_ND: np.ndarray, index_NA: np.ndarray, place_NA: np.ndarray, gate_NA: np.ndarray, out_EPD: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Go back through y_n = sum over the choices a of n that found a place of gate[n, a] out[expert, place].

    Args: place is -1 where a choice found none; out is what the experts answered at each of their places.
    Returns: dgate [N, A], dout [E, P, D].
    Notebook: classic_moe.
    """
    raise NotImplementedError


def expert_choice_backward(
    dy_ND: np.ndarray, token_EP: np.ndarray, gate_EP: np.ndarray, out_EPD: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Go back where experts choose tokens: expert e's answer at place p was added to y[token[e, p]], times its gate.

    A token may be taken by several experts, or by none; every place is taken.
    Returns: dgate [E, P], dout [E, P, D].
    Notebook: classic_moe.
    """
    raise NotImplementedError


def balance_batch_backward(score_NE: np.ndarray, index_NA: np.ndarray, alpha: float) -> np.ndarray:
    """Return the gradient of V2's balance loss alpha sum_e f_e P_e by softmax scores.

    f_e is the share of all choices that fell on e, times E; P_e the mean score of e over the tokens.
    Returns: dscore [N, E].
    Notebook: load_balancing; arXiv:2405.04434, section 2.2.3.
    """
    raise NotImplementedError


def balance_sequences(score_BSE: np.ndarray, n_activated: int, alpha: float) -> float:
    """Return V3's sequence-wise balance loss; it is alpha in perfect balance.

    Args: score holds sigmoid scores as they come; what is counted as chosen is read off them alone.
    Notebook: load_balancing; arXiv:2412.19437, Eqs. (17) to (20).
    """
    raise NotImplementedError


def balance_sequences_backward(score_BSE: np.ndarray, n_activated: int, alpha: float) -> np.ndarray:
    """Return the gradient of balance_sequences by the scores.

    Returns: dscore [B, S, E].
    Notebook: load_balancing.
    """
    raise NotImplementedError


def move_bias(bias_E: np.ndarray, load_E: np.ndarray, speed: float) -> np.ndarray:
    """Return the balancing bias after one training step; leave the old one as it is.

    Args: load counts the tokens of each expert in the whole batch.
    Notebook: loss_free_balancing; arXiv:2408.15664, Alg. 1.
    """
    raise NotImplementedError


def measure_violation(load_E: np.ndarray) -> float:
    """Return MaxVio: how far the busiest expert is above the mean load, relative to the mean.

    Notebook: loss_free_balancing; arXiv:2408.15664.
    """
    raise NotImplementedError


def gated_expert_backward(
    dy_ND: np.ndarray,
    x_ND: np.ndarray,
    gate_N: np.ndarray,
    gate_proj: np.ndarray,
    up_proj: np.ndarray,
    down_proj: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Go back through one SwiGLU expert whose answer to each token counts with a gate.

        y_n = gate_n * down_proj (silu(gate_proj x_n) * up_proj x_n)

    Args: gate_proj and up_proj [F, D], down_proj [D, F].
    Returns: dx [N, D], dgate [N], dgate_proj, dup_proj, ddown_proj.
    Notebook: fine_grained_experts.
    """
    raise NotImplementedError


def choose_and_weigh(
    score_NE: np.ndarray, bias_E: np.ndarray, n_group: int, topk_group: int, n_activated: int, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Choose experts as V3 does, within the best groups and with the bias, and weigh them.

    Args: groups are equal runs of neighbours, of two experts or more; topk_group of them stay; scale multiplies the
        gates of a token, which sum to it.
    Returns: the chosen experts [N, A], best first, and their gates [N, A].
    Notebook: deepseek_moe; arXiv:2412.19437, Eqs. (13), (14), (16).
    """
    raise NotImplementedError


def visit_experts(x_ND: np.ndarray, index_NA: np.ndarray, gate_NA: np.ndarray, experts: list) -> np.ndarray:
    """Return y = sum over a of gate[n, a] * experts[index[n, a]](x[n]), calling each expert at most once.

    Args: experts is a list of E functions, each from rows [any number, D] to as many rows. No call for an expert that
        has no token.
    Returns: [N, D].
    Notebook: deepseek_moe; arXiv:2412.19437, Eq. (12).
    """
    raise NotImplementedError


def moe_backward(
    dy_ND: np.ndarray,
    x_ND: np.ndarray,
    weights: dict[str, np.ndarray],
    n_group: int,
    topk_group: int,
    n_activated: int,
    scale: float,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Go back through V3's whole expert layer, from its input and weights alone; no balance loss.

    Args: weights as in moe_from_an_empty_file.
    Returns: dx [N, D], and the gradients under the same names; one for every weight that is trained, none for the bias.
    Notebook: deepseek_moe.
    """
    raise NotImplementedError


def moe_from_an_empty_file(
    x_ND: np.ndarray, weights: dict[str, np.ndarray], n_group: int, topk_group: int, n_activated: int, scale: float
) -> np.ndarray:
    """Compute V3's whole expert layer, from nothing but NumPy; the residual is the caller's.

    Args:
        weights: the released names, experts stacked. gate.weight [E, D], gate.e_score_correction_bias [E],
            experts.gate_proj and .up_proj [E, F, D], .down_proj [E, D, F], shared_experts.gate_proj and .up_proj
            [F, D], .down_proj [D, F].
    Returns: [N, D].
    Notebook: deepseek_moe; arXiv:2412.19437, Eqs. (12) to (16).
    """
    raise NotImplementedError
