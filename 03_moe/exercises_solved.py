"""The chapter's own answers to exercises.py."""

import numpy as np
from deepseek_moe import RouterConfig, route_tokens_forward, sort_by_expert
from expert_routing import normalize_gates_backward, normalize_gates_forward
from load_balancing import sequence_balance_forward
from loss_free_balancing import max_violation, update_bias


def teach_router(dgate_NA: np.ndarray, picked_NA: np.ndarray) -> np.ndarray:
    """The chapter's own Jacobian."""
    return normalize_gates_backward(dgate_NA, normalize_gates_forward(picked_NA)[1])


def choose_and_weigh(
    score_NE: np.ndarray, bias_E: np.ndarray, n_group: int, topk_group: int, n_activated: int, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """The chapter's own router."""
    config = RouterConfig(score_NE.shape[1], n_activated, n_group, topk_group, scale)
    routing, _ = route_tokens_forward(score_NE, bias_E, config)
    return routing.index_NA, routing.gate_NA


def move_bias(bias_E: np.ndarray, load_E: np.ndarray, speed: float) -> np.ndarray:
    """The chapter's own thermostat."""
    return update_bias(bias_E, load_E, speed)


def measure_violation(load_E: np.ndarray) -> float:
    """The chapter's own measure."""
    return max_violation(load_E)


def balance_sequences(score_BSE: np.ndarray, n_activated: int, alpha: float) -> float:
    """The chapter's own loss, without its cache."""
    return sequence_balance_forward(score_BSE, n_activated, alpha)[0]


def visit_experts(x_ND: np.ndarray, index_NA: np.ndarray, gate_NA: np.ndarray, experts: list) -> np.ndarray:
    """Sort, run each expert on its slice, put back, weigh."""
    order, runs = sort_by_expert(index_NA, len(experts))
    x_sorted = x_ND[order // index_NA.shape[1]]
    answer = np.empty_like(x_sorted)
    for e, run in runs:
        answer[order[run]] = experts[e](x_sorted[run])
    return np.einsum("na,nad->nd", gate_NA, answer.reshape(*index_NA.shape, -1))
