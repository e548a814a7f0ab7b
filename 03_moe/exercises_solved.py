"""The answers to exercises.py, each with its reason; read them after your own attempt.

They use NumPy and each other, not the chapter's modules: what you see is all there is.
"""

import numpy as np


def teach_router(dgate_NA: np.ndarray, picked_NA: np.ndarray) -> np.ndarray:
    """Every chosen score is in the denominator of every gate: only the difference from the average gate gets through.

    The average is weighted by the gates themselves, so that scaling all scores of a token together costs nothing.
    """
    total_N1 = picked_NA.sum(axis=1, keepdims=True)
    gate_NA = picked_NA / total_N1
    return (dgate_NA - (gate_NA * dgate_NA).sum(axis=1, keepdims=True)) / total_N1


def _best(choice_NE: np.ndarray, n: int) -> np.ndarray:
    """The n largest of each row, best first; a stable sort gives a tie to the lower index."""
    return np.argsort(-choice_NE, axis=-1, kind="stable")[..., :n]


def _put(value_NA: np.ndarray, index_NA: np.ndarray, n_experts: int) -> np.ndarray:
    """The way back of picking: each value in the column it was picked from, zeros elsewhere."""
    full_NE = np.zeros((len(index_NA), n_experts))
    np.put_along_axis(full_NE, index_NA, value_NA, axis=1)
    return full_NE


def router_backward(
    dgate_NA: np.ndarray, x_ND: np.ndarray, weight_ED: np.ndarray, n_activated: int
) -> tuple[np.ndarray, np.ndarray]:
    """Normalisation, picking, sigmoid, product: the choice itself is constant, so experts not chosen hear nothing."""
    score_NE = 1 / (1 + np.exp(-x_ND @ weight_ED.T))
    index_NA = _best(score_NE, n_activated)
    dpicked_NA = teach_router(dgate_NA, np.take_along_axis(score_NE, index_NA, axis=1))
    dlogit_NE = _put(dpicked_NA, index_NA, len(weight_ED)) * score_NE * (1 - score_NE)
    return dlogit_NE @ weight_ED, dlogit_NE.T @ x_ND


def softmax_router_backward(
    dgate_NA: np.ndarray, x_ND: np.ndarray, weight_ED: np.ndarray, n_activated: int
) -> tuple[np.ndarray, np.ndarray]:
    """The softmax runs over all experts, so the logits of those that were not chosen get a gradient too."""
    raised_NE = np.exp(x_ND @ weight_ED.T)
    score_NE = raised_NE / raised_NE.sum(axis=1, keepdims=True)
    dscore_NE = _put(dgate_NA, _best(score_NE, n_activated), len(weight_ED))
    dlogit_NE = score_NE * (dscore_NE - (score_NE * dscore_NE).sum(axis=1, keepdims=True))
    return dlogit_NE @ weight_ED, dlogit_NE.T @ x_ND


def seat_choices(index_NA: np.ndarray, n_experts: int, places: int) -> np.ndarray:
    """Walk through the queue in its order; my place is the number of those who came to my expert before me."""
    place_NA, taken = np.full(index_NA.shape, -1), [0] * n_experts
    for a in range(index_NA.shape[1]):
        for n in range(len(index_NA)):
            e = index_NA[n, a]
            place_NA[n, a] = taken[e] if taken[e] < places else -1
            taken[e] += 1
    return place_NA


def relu_expert_backward(
    dy_ND: np.ndarray, x_ND: np.ndarray, up_proj: np.ndarray, down_proj: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The relu lets the gradient through where it let the number through, and nothing where it did not."""
    hidden_NF = np.maximum(x_ND @ up_proj.T, 0)
    dhidden_NF = (dy_ND @ down_proj) * (hidden_NF > 0)
    return dhidden_NF @ up_proj, dhidden_NF.T @ x_ND, dy_ND.T @ hidden_NF


def combine_backward(
    dy_ND: np.ndarray, index_NA: np.ndarray, place_NA: np.ndarray, gate_NA: np.ndarray, out_EPD: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A product hands each factor the other one; a choice that found no place stands in no sum and hears nothing."""
    dgate_NA, dout_EPD = np.zeros_like(gate_NA), np.zeros_like(out_EPD)
    for n, a in zip(*np.nonzero(place_NA >= 0)):
        seat = index_NA[n, a], place_NA[n, a]
        dgate_NA[n, a] = out_EPD[seat] @ dy_ND[n]
        dout_EPD[seat] = gate_NA[n, a] * dy_ND[n]
    return dgate_NA, dout_EPD


def expert_choice_backward(
    dy_ND: np.ndarray, token_EP: np.ndarray, gate_EP: np.ndarray, out_EPD: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Adding up forward is looking up backward: each place reads the gradient of the token that it served."""
    dtaken_EPD = dy_ND[token_EP]
    return (dtaken_EPD * out_EPD).sum(axis=-1), gate_EP[..., None] * dtaken_EPD


def balance_batch_backward(score_NE: np.ndarray, index_NA: np.ndarray, alpha: float) -> np.ndarray:
    """f is a count and has no slope; P is a mean, so each token's score gets a share of 1/N."""
    N, E = score_NE.shape
    f_E = np.bincount(index_NA.ravel(), minlength=E) * E / index_NA.size
    return np.broadcast_to(alpha * f_E / N, (N, E)).copy()


def _count_chosen(score_BSE: np.ndarray, n_activated: int) -> np.ndarray:
    """f [B, E]: how often each expert is chosen in each sequence, 1 in balance; a count, so a constant backwards."""
    _, S, E = score_BSE.shape
    chosen_BSE = np.zeros_like(score_BSE)
    np.put_along_axis(chosen_BSE, _best(score_BSE, n_activated), 1.0, axis=-1)
    return chosen_BSE.sum(axis=1) * E / (n_activated * S)


def balance_sequences(score_BSE: np.ndarray, n_activated: int, alpha: float) -> float:
    """Counts times mean shares, sequence by sequence, then the mean over the sequences."""
    share_BSE = score_BSE / score_BSE.sum(axis=-1, keepdims=True)
    f_BE = _count_chosen(score_BSE, n_activated)
    return float(alpha * (f_BE * share_BSE.mean(axis=1)).sum(axis=1).mean())


def balance_sequences_backward(score_BSE: np.ndarray, n_activated: int, alpha: float) -> np.ndarray:
    """The count is flat; through the share, each score is judged against the token's average count."""
    B, S, _ = score_BSE.shape
    total_BS1 = score_BSE.sum(axis=-1, keepdims=True)
    f_B1E = _count_chosen(score_BSE, n_activated)[:, None]
    average_BS1 = (score_BSE / total_BS1 * f_B1E).sum(axis=-1, keepdims=True)
    return alpha / (B * S) * (f_B1E - average_BS1) / total_BS1


def move_bias(bias_E: np.ndarray, load_E: np.ndarray, speed: float) -> np.ndarray:
    """Too busy: less attractive. Only the side counts, so every step has the same size."""
    return bias_E + speed * np.sign(load_E.mean() - load_E)


def measure_violation(load_E: np.ndarray) -> float:
    """Everybody waits for the busiest; relative to the mean, so that batches of any size compare."""
    return float(load_E.max() / load_E.mean() - 1)


def gated_expert_backward(
    dy_ND: np.ndarray,
    x_ND: np.ndarray,
    gate_N: np.ndarray,
    gate_proj: np.ndarray,
    up_proj: np.ndarray,
    down_proj: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The gate hears what a unit more of the answer was worth; the expert goes back with gate times dy."""
    a_NF, u_NF = x_ND @ gate_proj.T, x_ND @ up_proj.T
    s_NF = 1 / (1 + np.exp(-a_NF))
    hidden_NF = a_NF * s_NF * u_NF
    dgate_N = ((hidden_NF @ down_proj.T) * dy_ND).sum(axis=1)
    danswer_ND = gate_N[:, None] * dy_ND
    dhidden_NF = danswer_ND @ down_proj
    du_NF, da_NF = dhidden_NF * a_NF * s_NF, dhidden_NF * u_NF * (s_NF + a_NF * s_NF * (1 - s_NF))
    dx_ND = da_NF @ gate_proj + du_NF @ up_proj
    return dx_ND, dgate_N, da_NF.T @ x_ND, du_NF.T @ x_ND, danswer_ND.T @ hidden_NF


def choose_and_weigh(
    score_NE: np.ndarray, bias_E: np.ndarray, n_group: int, topk_group: int, n_activated: int, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """The bias is in the first line alone. Losing groups become minus infinity: with 0 they would beat negatives."""
    choice_NGM = (score_NE + bias_E).reshape(len(score_NE), n_group, -1)
    stays_NG = _best(np.sort(choice_NGM, axis=-1)[..., -2:].sum(axis=-1), topk_group)
    masked_NGM = np.full_like(choice_NGM, -np.inf)
    np.put_along_axis(
        masked_NGM, stays_NG[..., None], np.take_along_axis(choice_NGM, stays_NG[..., None], axis=1), axis=1
    )
    index_NA = _best(masked_NGM.reshape(score_NE.shape), n_activated)
    picked_NA = np.take_along_axis(score_NE, index_NA, axis=1)
    return index_NA, scale * picked_NA / picked_NA.sum(axis=1, keepdims=True)


def visit_experts(x_ND: np.ndarray, index_NA: np.ndarray, gate_NA: np.ndarray, experts: list) -> np.ndarray:
    """Sort all visits by expert, answer block by block, put every answer back where its visit stood, then weigh."""
    visits, A = index_NA.ravel(), index_NA.shape[1]
    order = np.argsort(visits, kind="stable")
    answer = np.empty((visits.size, x_ND.shape[1]))
    for e in np.unique(visits):
        mine = order[visits[order] == e]
        answer[mine] = experts[e](x_ND[mine // A])
    return np.einsum("na,nad->nd", gate_NA, answer.reshape(*index_NA.shape, -1))


def moe_backward(
    dy_ND: np.ndarray,
    x_ND: np.ndarray,
    weights: dict[str, np.ndarray],
    n_group: int,
    topk_group: int,
    n_activated: int,
    scale: float,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Three ways meet in x: the shared expert, the chosen experts, and the router, which hears of them by the gates."""
    names, router = ("gate_proj", "up_proj", "down_proj"), weights["gate.weight"]
    score_NE = 1 / (1 + np.exp(-x_ND @ router.T))
    bias_E = weights["gate.e_score_correction_bias"]
    index_NA, gate_NA = choose_and_weigh(score_NE, bias_E, n_group, topk_group, n_activated, scale)
    shared = [weights[f"shared_experts.{name}"] for name in names]
    dx_ND, _, *dshared = gated_expert_backward(dy_ND, x_ND, np.ones(len(x_ND)), *shared)
    grads = {f"shared_experts.{name}": g for name, g in zip(names, dshared)}
    grads |= {f"experts.{name}": np.zeros_like(weights[f"experts.{name}"]) for name in names}
    dgate_NA = np.zeros_like(gate_NA)
    for e in np.unique(index_NA):  # an expert that nobody visited keeps its zeros
        n, a = np.nonzero(index_NA == e)
        matrices = [weights[f"experts.{name}"][e] for name in names]
        dx_part, dgate_NA[n, a], *dexpert = gated_expert_backward(dy_ND[n], x_ND[n], gate_NA[n, a], *matrices)
        dx_ND[n] += dx_part  # a token visits an expert once, so no row is there twice
        for name, g in zip(names, dexpert):
            grads[f"experts.{name}"][e] = g
    dpicked_NA = teach_router(scale * dgate_NA, np.take_along_axis(score_NE, index_NA, axis=1))
    dlogit_NE = _put(dpicked_NA, index_NA, len(router)) * score_NE * (1 - score_NE)
    return dx_ND + dlogit_NE @ router, {"gate.weight": dlogit_NE.T @ x_ND, **grads}


def moe_from_an_empty_file(
    x_ND: np.ndarray, weights: dict[str, np.ndarray], n_group: int, topk_group: int, n_activated: int, scale: float
) -> np.ndarray:
    """Score, choose, weigh, visit; and the shared expert for everybody, without gate and scale."""

    def expert(gate_proj, up_proj, down_proj):
        def answer(x):
            a = x @ gate_proj.T
            return (a / (1 + np.exp(-a)) * (x @ up_proj.T)) @ down_proj.T

        return answer

    names = ("gate_proj", "up_proj", "down_proj")
    score_NE = 1 / (1 + np.exp(-x_ND @ weights["gate.weight"].T))
    bias_E = weights["gate.e_score_correction_bias"]
    index_NA, gate_NA = choose_and_weigh(score_NE, bias_E, n_group, topk_group, n_activated, scale)
    experts = [expert(*matrices) for matrices in zip(*(weights[f"experts.{name}"] for name in names))]
    shared = expert(*(weights[f"shared_experts.{name}"] for name in names))
    return shared(x_ND) + visit_experts(x_ND, index_NA, gate_NA, experts)
