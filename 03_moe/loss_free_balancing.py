"""Can experts be kept equally busy without any loss that pulls on the router?

Run:       python loss_free_balancing.py
Notebook:  loss_free_balancing.ipynb, with the balancing laboratory
Source:    DeepSeek-V3 (arXiv:2412.19437) Eq. (16) and section 2.1.2; Loss-free balancing (arXiv:2408.15664) Alg. 1
Letters:   N tokens, D model width, E routed experts, A activated per token

A thermostat instead of a loss. Every expert has a bias that is added to its score *when experts are chosen* and never
when they are weighed. After each training step the bias of an underloaded expert goes up by a fixed speed, that of an
overloaded one down. No term of the objective knows of it, so no gradient does.
"""

import numpy as np
from expert_routing import (
    Routing,
    choose_top_experts,
    count_load,
    normalize_gates_backward,
    normalize_gates_forward,
    numeric_gradient,
    scatter_to_experts,
    sigmoid,
)


def loss_free_gate_forward(score_NE: np.ndarray, bias_E: np.ndarray, n_activated: int) -> tuple[Routing, tuple]:
    """Choose by score + bias, weigh by score alone.

        chosen = the A largest of s_i + b_i;   g_i = s_i / sum of the chosen s

    Args:
        bias_E: `e_score_correction_bias`; only read here, in training as in use.
    Source: arXiv:2412.19437, Eqs. (13) and (16).
    """
    index_NA = choose_top_experts(score_NE + bias_E, n_activated)  # V3 Eq. (16)
    gate_NA, gate_cache = normalize_gates_forward(np.take_along_axis(score_NE, index_NA, axis=-1))
    return Routing(index_NA, gate_NA), (index_NA, score_NE.shape[-1], gate_cache)


def loss_free_gate_backward(dgate_NA: np.ndarray, cache: tuple) -> np.ndarray:
    """Return dscore_NE. There is no dbias: moving b a little moves no output, except where a choice flips."""
    index_NA, n_experts, gate_cache = cache
    return scatter_to_experts(normalize_gates_backward(dgate_NA, gate_cache), index_NA, n_experts)


def update_bias(bias_E: np.ndarray, load_E: np.ndarray, speed: float) -> np.ndarray:
    """Move every bias one step towards balance: b_i + speed * sign(mean load - load_i).

    Call it once per training step, after the step, never in evaluation, with the counts of the *whole* batch: all
    micro-batches and all ranks added up. The bias is to be kept in FP32 at least: from 0.5 on, BF16 numbers lie 0.004
    apart and a step of 0.001 would vanish.

    Args:
        load_E: tokens that chose each expert (`count_load`), before anything is dropped.
        speed: gamma; V3 uses 0.001, and 0 for the last 500 billion tokens.
    Returns:
        the new bias, in the dtype of the old; the old is left as it was.
    Source: arXiv:2408.15664, Alg. 1.
    """
    shortfall_E = load_E.mean() - load_E
    return (bias_E + speed * np.sign(shortfall_E)).astype(bias_E.dtype)


def update_bias_in_proportion(bias_E: np.ndarray, load_E: np.ndarray, speed: float) -> np.ndarray:
    """The variant that arXiv:2408.15664 tried and left: the step is the shortfall itself, relative to the mean load."""
    relative_E = (load_E.mean() - load_E) / load_E.mean()
    return (bias_E + speed * relative_E).astype(bias_E.dtype)


def max_violation(load_E: np.ndarray) -> float:
    """MaxVio = (largest load - mean load) / mean load: 0 when balanced, E/A - 1 when A experts take all.

    The slowest expert sets the pace of a step: 1 + MaxVio is how much longer everyone waits.
    """
    return float(load_E.max() / load_E.mean() - 1)


def settle_bias(score_NE, bias_E, n_activated: int, speed: float, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Run the thermostat alone on fixed scores; return (bias, load) of every step, the first before any update."""
    biases, loads = [], []
    for _ in range(steps):
        load_E = count_load(loss_free_gate_forward(score_NE, bias_E, n_activated)[0].index_NA, len(bias_E))
        biases.append(bias_E)
        loads.append(load_E)
        bias_E = update_bias(bias_E, load_E, speed)
    return np.array(biases), np.array(loads)


def main() -> None:
    """Move a bias by hand, watch it settle, and see that the gates never hear of it."""
    load = np.array([6, 3, 2, 1])
    print("loads 6 3 2 1, mean 3: MaxVio =", max_violation(load))
    print("  one step of 0.1:", update_bias(np.zeros(4), load, 0.1), "(the expert with the mean load stays)")

    score = np.array([[0.9, 0.6, 0.2], [0.8, 0.7, 0.1]])
    for bias in ([0.0, 0.0, 0.0], [-0.05, 0.05, 0.0], [-0.5, 0.0, 0.5]):
        routing, _ = loss_free_gate_forward(score, np.array(bias), 2)
        print(f"  bias {bias!s:<20} experts {routing.index_NA.tolist()}  gates {routing.gate_NA.round(3).tolist()}")
    print("  the second bias changes no choice, so it changes no gate; the third changes the choice")

    rng = np.random.default_rng(0)
    score = sigmoid(rng.normal(size=(512, 8)) + np.linspace(1.5, -1.5, 8))
    _, loads = settle_bias(score, np.zeros(8), 2, 0.01, 120)
    print("a router that prefers the first experts: MaxVio", [round(max_violation(row), 2) for row in loads[::20]])

    pull = rng.normal(size=(5, 2))
    score, bias = rng.uniform(0.1, 0.9, size=(5, 7)), rng.normal(size=7) * 0.2
    got = loss_free_gate_backward(pull, loss_free_gate_forward(score, bias, 2)[1])
    want = numeric_gradient(lambda: float((loss_free_gate_forward(score, bias, 2)[0].gate_NA * pull).sum()), score)
    print(f"largest error of d(score) {np.abs(got - want).max() / np.abs(want).max():.0e}")
    want = numeric_gradient(lambda: float((loss_free_gate_forward(score, bias, 2)[0].gate_NA * pull).sum()), bias)
    print(f"the numeric gradient of the bias: {want.tolist()}")


if __name__ == "__main__":
    main()
