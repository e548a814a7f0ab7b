"""The cost of training: operations counted, a rate calibrated, hours and money that follow, and what is predicted.

Run it:    python cost_of_training.py
Notebook:  cost_of_training.ipynb
Source:    arXiv:2412.19437, Table 1, sections 1, 4.2 and 4.3; times of a step and MFU: arXiv:2505.09343 (2,048 H800).
Letters:   D width, H heads, K, R, U widths of a head, C and Q latents, E experts, A of them active, F width of an
           expert, V vocabulary, L layers, T length of a sequence; P stages, M micro-batches.

Three kinds of number, never mixed here. *Counted*: follows from the sizes of the model alone. *Calibrated*: a published
time went in, so that its coming out again proves nothing. *Predicted*: comes out of the other two and can be wrong.
"""

from collections import Counter
from typing import NamedTuple

from pipeline_schedules import BACKWARD, FORWARD, INPUTS, PAIR, WEIGHTS, Times, dualpipe_order, run_schedule

PEAK_FLOPS_S = 989.5e12  # H800, BF16 products, dense; FP8 has twice that
DOLLARS_PER_HOUR = 2.0  # the report's assumption for renting an H800
TOKENS, GPUS, SEQUENCES = 14.8e12, 2048, 15360  # pre-training; sequences of 4,096 tokens in a full step
HOURS_PER_TRILLION = 180e3

TABLE_1 = {"pre-training": 2664e3, "context extension": 119e3, "post-training": 5e3}  # GPU hours  # V3 Table 1


class ModelSizes(NamedTuple):
    """What the count needs of a config; the defaults are DeepSeek-V3's."""

    D: int = 7168
    H: int = 128
    K: int = 128
    R: int = 64
    U: int = 128
    C: int = 512
    Q: int = 1536
    E: int = 256
    A: int = 8
    n_shared: int = 1
    F: int = 2048
    F_dense: int = 18432
    V: int = 129280
    L: int = 61
    n_dense: int = 3


class StepParts(NamedTuple):
    """Where the seconds of a training step went, as published: forwards, backwards, weights alone; pairs; the rest."""

    forward: float = 1.13
    backward: float = 1.99
    weights: float = 0.48
    pair: float = 13.95
    bubble: float = 2.06
    optimizer: float = 0.29
    step: float = 19.926


def attention_parameters(s: ModelSizes) -> int:
    """Count the matrices of latent attention in one layer."""
    queries = s.D * s.Q + s.Q * s.H * (s.K + s.R)
    return queries + s.D * (s.C + s.R) + s.C * s.H * (s.K + s.U) + s.H * s.U * s.D


def active_parameters(s: ModelSizes) -> dict[str, int]:
    """Count the weights that one token is multiplied by, by part; the embedding is looked up, not multiplied."""
    n_moe = s.L - s.n_dense
    return {
        "attention": s.L * attention_parameters(s),
        "experts": n_moe * 3 * s.D * s.F * (s.A + s.n_shared),
        "routers": n_moe * s.D * s.E,
        "dense MLPs": s.n_dense * 3 * s.D * s.F_dense,
        "head": s.V * s.D,
        "norms and biases": s.L * (2 * s.D + s.C + s.Q) + s.D + n_moe * s.E,
    }


def total_parameters(s: ModelSizes) -> int:
    """Count all weights: those of every expert, and the embedding."""
    idle = (s.L - s.n_dense) * 3 * s.D * s.F * (s.E - s.A)
    return sum(active_parameters(s).values()) + idle + s.V * s.D


def score_flops(s: ModelSizes, T: int, *, causal: bool = True) -> int:
    """Count the forward operations of all layers' scores and means for one token.

    2 T' H (K + R + U) a layer;   T' = T / 2 on average under the causal mask, T if the masked half is counted too
    """
    return s.L * (1 if causal else 2) * T * s.H * (s.K + s.R + s.U)


def flops_per_token(s: ModelSizes, T: int, *, causal: bool = True) -> float:
    """Count the operations of training on one token: 6 N (2 forward, 4 backward) and three times the scores."""
    return 6 * sum(active_parameters(s).values()) + 3 * score_flops(s, T, causal=causal)


def mtp_flops_per_token(s: ModelSizes, T: int) -> float:
    """Count what one MTP module adds: its projection, one layer, and the shared head once more."""
    layer = attention_parameters(s) + 3 * s.D * s.F * (s.A + s.n_shared) + s.D * s.E
    return 6 * (2 * s.D * s.D + layer + s.V * s.D) + 3 * score_flops(s, T) / s.L


def gpu_hours(flops: float, flops_s: float) -> float:
    """How many hours of one GPU an amount of operations takes at a rate."""
    return flops / flops_s / 3600


def rate_from_hours(flops: float, hours: float) -> float:
    """Calibrate: the operations a second that a published number of GPU hours implies."""
    return flops / hours / 3600


def dollars(hours: float, price: float = DOLLARS_PER_HOUR) -> float:
    """What hours cost at a rent for each GPU and hour; research, trials, people and buildings are not in it."""
    return hours * price


def count_tasks(P: int, M: int) -> Counter:
    """Count what a rank of DualPipe does alone and in pairs, as a mean over the ranks."""
    counts = Counter(task.kind for rank in dualpipe_order(P, M) for task in rank)
    return Counter({kind: n / P for kind, n in counts.items()})


def calibrate_chunks(parts: StepParts, P: int, M: int) -> Times:
    """Derive the times of one chunk from the seconds that a step spends on each kind of task.

        F = forward / n_F,   W = weights / n_W,   FB = pair / n_pairs,   backward = n_O O + n_B (O + W)  ->  O

    That the published "1B" holds whole backwards and those of inputs is our reading.
    """
    n = count_tasks(P, M)
    W = parts.weights / n[WEIGHTS]
    inputs = (parts.backward - n[BACKWARD] * W) / (n[INPUTS] + n[BACKWARD])
    return Times(parts.forward / n[FORWARD], inputs + W, W, parts.pair / n[PAIR])


def predict_step(times: Times, P: int, M: int, optimizer: float) -> tuple[float, float]:
    """Simulate a step of DualPipe; return its seconds with the optimizer's, and the bubble, a mean over the ranks."""
    slots = run_schedule(dualpipe_order(P, M), P, times)
    end = max(rank[-1].end for rank in slots)
    busy = sum(slot.end - slot.start for rank in slots for slot in rank) / P
    return end + optimizer, end - busy


def predict_extension(s: ModelSizes, flops_s: float) -> float:
    """Predict the GPU hours of the context extension: 1,000 steps at 32K, 1,000 at 128K, at the rate of pre-training.

    Source: arXiv:2412.19437, section 4.3: batches of 1,920 and 480 sequences.
    """
    phases = ((1920, 32 * 1024), (480, 128 * 1024))
    return sum(gpu_hours(1000 * n * T * flops_per_token(s, T), flops_s) for n, T in phases)


def main() -> None:
    """Count V3, calibrate on its hours, and say what the calibrated numbers predict rightly and wrongly."""
    s = ModelSizes()
    active, flops = active_parameters(s), flops_per_token(s, 4096)
    print("counted:")
    print(f"  {total_parameters(s) / 1e9:.2f} B parameters, a token meets {sum(active.values()) / 1e9:.2f} B")
    print(
        f"  {flops / 1e9:.1f} GFLOP a token at 4,096 ({flops_per_token(s, 4096, causal=False) / 1e9:.1f} unmasked);",
        end="",
    )
    print(f" the MTP module adds {mtp_flops_per_token(s, 4096) / 1e9:.1f}")
    rate = rate_from_hours(flops * 1e12, HOURS_PER_TRILLION)
    print("calibrated on the report's 180K GPU hours a trillion tokens:")
    print(f"  {rate / 1e12:.1f} TFLOP/s, {rate / PEAK_FLOPS_S:.2%} of the BF16 peak (published: 38.94 %)")
    hours = gpu_hours(flops * TOKENS, rate)
    print(
        f"  14.8 T tokens: {hours / 1e3:,.0f}K hours, {hours / GPUS / 24:.1f} days on 2,048 GPUs (180 x 14.8, no more)"
    )
    everything = sum(TABLE_1.values())
    print(f"  Table 1: {everything / 1e3:,.0f}K hours, ${dollars(everything) / 1e6:.3f} M at $2")
    print("predicted:")
    step = SEQUENCES * 4096 * flops / rate / GPUS
    print(f"  a step of {SEQUENCES:,} sequences: {step:.2f} s (published elsewhere: {StepParts().step})")
    times = calibrate_chunks(StepParts(), 16, 120)
    seconds, bubble = predict_step(times, 16, 120, StepParts().optimizer)
    print(f"  the same from times of single chunks: {seconds:.2f} s,", end=" ")
    print(f"bubble {bubble:.2f} s (published: {StepParts().bubble})")
    extension = predict_extension(s, rate)
    print(f"  context extension: {extension / 1e3:.0f}K hours (Table 1: {TABLE_1['context extension'] / 1e3:.0f}K)")


if __name__ == "__main__":
    main()
