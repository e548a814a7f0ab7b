"""How can a loss persuade the router to use all its experts, and what does that persuasion cost?

Run:       python load_balancing.py
Notebook:  load_balancing.ipynb
Source:    DeepSeek-V2 (arXiv:2405.04434) section 2.2.3; DeepSeek-V3 (arXiv:2412.19437) Eqs. (17) to (20)
Letters:   B sequences, S tokens of each, N tokens, E routed experts, A activated per token

Every auxiliary loss here is alpha * sum_i f_i P_i: f counts choices (flat, no gradient), P averages scores (smooth).
The gradient flows through P alone and weighs it with f: the busier an expert, the harder its scores are pushed down.
With loads that are all equal the sum is 1 and the loss is alpha, whatever E and A: that is what the factors are for.
"""

import numpy as np
from expert_routing import choose_top_experts, count_load, numeric_gradient, softmax_scores_forward


def expert_balance_forward(score_NE: np.ndarray, index_NA: np.ndarray, alpha: float) -> tuple[float, tuple]:
    """Ask that all experts be equally busy.

        L = alpha sum_i f_i P_i,   f_i = E/(A N) * #{tokens that chose i},   P_i = mean over tokens of s_i

    Args:
        score_NE: softmax scores, rows sum to one, of one sequence (or of whatever set is to be balanced).
        index_NA: the experts that were chosen.
    Source: arXiv:2405.04434, section 2.2.3, expert-level balance loss.
    """
    n_tokens, n_experts = score_NE.shape
    frequency_E = count_load(index_NA, n_experts) * n_experts / index_NA.size
    return float(alpha * (frequency_E * score_NE.mean(axis=0)).sum()), (alpha * frequency_E / n_tokens, score_NE)


def expert_balance_backward(dloss: float, cache: tuple) -> np.ndarray:
    """ds_ti = alpha f_i / N: the same push on every token's score of a busy expert."""
    slope_E, score_NE = cache
    return dloss * np.broadcast_to(slope_E, score_NE.shape).astype(score_NE.dtype)


def device_balance_forward(score_NE, index_NA, n_devices: int, alpha: float) -> tuple[float, tuple]:
    """Ask that all devices be equally busy, and leave the experts on one device alone.

        L = alpha sum_d f'_d P'_d,   f'_d = mean of f_i on d,   P'_d = sum of P_i on d

    Args:
        n_devices: experts lie on devices in equal, contiguous runs.
    Raises:
        ValueError: the experts do not divide evenly over the devices.
    Source: arXiv:2405.04434, section 2.2.3, device-level balance loss.
    """
    n_tokens, n_experts = score_NE.shape
    per_device = experts_per_device(n_experts, n_devices)
    frequency_E = count_load(index_NA, n_experts) * n_experts / index_NA.size
    device_frequency = frequency_E.reshape(n_devices, per_device).mean(axis=1)
    device_score = score_NE.mean(axis=0).reshape(n_devices, per_device).sum(axis=1)
    slope_E = np.repeat(alpha * device_frequency / n_tokens, per_device)
    return float(alpha * (device_frequency * device_score).sum()), (slope_E, score_NE)


def communication_balance_forward(score_NE, index_NA, n_devices, device_limit, alpha) -> tuple[float, tuple]:
    """Ask that all devices *receive* equally many tokens; a token sent for two experts of a device travels once.

        L = alpha sum_d f''_d P''_d,   P''_d = sum of P_i on d
        f''_d = n_devices / (device_limit N) * #{tokens sent to d}

    Args:
        device_limit: the most devices that one token may be sent to.
    Source: arXiv:2405.04434, section 2.2.3, communication balance loss.
    """
    n_tokens, n_experts = score_NE.shape
    per_device = experts_per_device(n_experts, n_devices)
    sent_to = (index_NA[..., None] // per_device == np.arange(n_devices)).any(axis=1)  # one copy for each device
    received = sent_to.sum(axis=0) * n_devices / (device_limit * n_tokens)
    device_score = score_NE.mean(axis=0).reshape(n_devices, per_device).sum(axis=1)
    slope_E = np.repeat(alpha * received / n_tokens, per_device)
    return float(alpha * (received * device_score).sum()), (slope_E, score_NE)


device_balance_backward = expert_balance_backward  # the three differ in what they count, not in how they push
communication_balance_backward = expert_balance_backward


def experts_per_device(n_experts: int, n_devices: int) -> int:
    """Divide, or say why not."""
    if n_devices < 1 or n_experts % n_devices:
        raise ValueError(f"{n_experts} experts do not divide over {n_devices} devices; choose a divisor")
    return n_experts // n_devices


def sequence_balance_forward(score_BSE: np.ndarray, n_activated: int, alpha: float) -> tuple[float, tuple]:
    """Ask that experts be equally busy *within each sequence*: V3's small complement to the bias.

        L = alpha sum_i f_i P_i, averaged over sequences
        f_i = E/(A S) * #{t : s_it is among the A largest of token t}
        P_i = mean over t of s'_it,   s'_it = s_it / sum_j s_jt

    Args:
        score_BSE: sigmoid scores as they come; they are made to sum to one here.
        n_activated: A. The choice is read off the raw scores: no bias, no groups, as the report writes it.
        alpha: 1e-4 in V3.
    Source: arXiv:2412.19437, Eqs. (17) to (20).
    """
    batch, length, n_experts = score_BSE.shape
    index_BSA = choose_top_experts(score_BSE, n_activated)
    chosen_BSE = np.zeros_like(score_BSE)
    np.put_along_axis(chosen_BSE, index_BSA, 1, axis=-1)
    frequency_BE = chosen_BSE.sum(axis=1) * n_experts / (n_activated * length)  # V3 Eq. (18)
    total_BS1 = score_BSE.sum(axis=-1, keepdims=True) + 1e-20
    share_BSE = score_BSE / total_BS1  # V3 Eq. (19)
    mean_share_BE = share_BSE.mean(axis=1)  # V3 Eq. (20)
    loss = float(alpha * (frequency_BE * mean_share_BE).sum() / batch)  # V3 Eq. (17)
    return loss, (frequency_BE * (alpha / (batch * length)), share_BSE, total_BS1)


def sequence_balance_backward(dloss: float, cache: tuple) -> np.ndarray:
    """ds_it = (slope_i - sum_j s'_jt slope_j) / sum_j s_jt,  slope_i = alpha f_i / (B S); the count f is a constant."""
    slope_BE, share_BSE, total_BS1 = cache
    slope_B1E = slope_BE[:, None, :]
    return dloss * (slope_B1E - (share_BSE * slope_B1E).sum(axis=-1, keepdims=True)) / total_BS1


def main() -> None:
    """Compute the golden example of Eqs. (17) to (20) by hand, compare the levels, check the gradients."""
    score = np.array([[[0.9, 0.1, 0.5, 0.5], [0.8, 0.2, 0.6, 0.4]]])
    loss, (slope, share, _) = sequence_balance_forward(score, 2, 1.0)
    print("one sequence of two tokens, four experts, two activated; scores", score[0].tolist())
    print("  f =", (slope[0] * 2).tolist(), "  P =", share[0].mean(axis=0).round(3).tolist(), f"  L/alpha = {loss:.4g}")
    print("  by hand: 4/(2*2) * [2 0 2 0] and [.425 .075 .275 .225], so 2 * .425 + 2 * .275 = 1.4")

    for story, index in (
        ("all tokens to experts 0, 2", [[0, 2]] * 4),
        ("all tokens to experts 0, 1", [[0, 1]] * 4),
        ("dealt out evenly", [[0, 1], [2, 3], [0, 1], [2, 3]]),
    ):
        skewed = np.full((4, 4), 0.1)
        np.put_along_axis(skewed, np.array(index), 0.4, axis=1)
        losses = [
            expert_balance_forward(skewed, np.array(index), 1.0)[0],
            device_balance_forward(skewed, np.array(index), 2, 1.0)[0],
            communication_balance_forward(skewed, np.array(index), 2, 2, 1.0)[0],
        ]
        print(f"  {story:<27} expert {losses[0]:.2f}  device {losses[1]:.2f}  communication {losses[2]:.2f}")

    rng = np.random.default_rng(0)
    raw = rng.uniform(0.1, 0.9, size=(2, 5, 7))
    got = sequence_balance_backward(1.0, sequence_balance_forward(raw, 3, 1.0)[1])
    want = numeric_gradient(lambda: sequence_balance_forward(raw, 3, 1.0)[0], raw)
    print(f"sequence-wise: largest error of d(score) {np.abs(got - want).max() / np.abs(want).max():.0e}")
    soft = softmax_scores_forward(rng.normal(size=(5, 6)))[0]
    index = choose_top_experts(soft, 2)
    got = device_balance_backward(1.0, device_balance_forward(soft, index, 3, 1.0)[1])
    want = numeric_gradient(lambda: device_balance_forward(soft, index, 3, 1.0)[0], soft)
    print(f"device level:  largest error of d(score) {np.abs(got - want).max() / np.abs(want).max():.0e}")


if __name__ == "__main__":
    main()
