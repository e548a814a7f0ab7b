"""Seven bits to share: exponent bits buy range, mantissa bits buy accuracy, and a fine scale buys range for nothing.

    relative error of rounded normal numbers     about  2^-M / sqrt(28)          one mantissa bit halves it
    range from largest to smallest normal        about  2^(2^E)                  one exponent bit squares it

Which pair is best depends on how wide the numbers spread, so we look at real ones: activations, weights and gradients
of a small network (a SwiGLU block over the last eight characters) that learns the standard library's own manual here,
in about two seconds. The network takes its linear layers as an argument; mixed_precision.py trains it again in FP8.

Run:       python mantissa_exponent.py
Notebook:  mantissa_exponent.ipynb
Source:    arXiv:2412.19437, 3.3.2 "Mantissa over Exponents".
Letters:   N samples, C characters of context, D width, F hidden width, V characters (NOTATION.md has D, F, V).
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pydoc_data.topics import topics
from typing import NamedTuple

import numpy as np
from fine_grained_quantization import dequantize, quantize, relative_rms
from float_formats import E4M3, E5M2, FloatFormat, round_to

E2M5 = FloatFormat("E2M5", 2, 5, "fn")
E3M4 = FloatFormat("E3M4", 3, 4, "fn")
CANDIDATES = (E2M5, E3M4, E4M3, E5M2)  # eight bits each
CONTEXT, ALPHABET = 8, 128  # characters; ASCII
TINY = 2.0**-100


class Linear(NamedTuple):
    """How a linear layer is computed: forward(x, weight) -> (y, cache), backward(dy, cache) -> (dx, dweight)."""

    forward: Callable
    backward: Callable


def linear_forward(x_ND: np.ndarray, weight_FD: np.ndarray):
    """y = x W^T in the dtype given."""
    return x_ND @ weight_FD.T, (x_ND, weight_FD)


def linear_backward(dy_NF: np.ndarray, cache):
    """dx = dy W and dW = dy^T x."""
    x_ND, weight_FD = cache
    return dy_NF @ weight_FD, dy_NF.T @ x_ND


EXACT = Linear(linear_forward, linear_backward)


@dataclass(frozen=True)
class NetworkWeights:
    """Embedding, norm, one SwiGLU block, head; [out, in]."""

    embed_tokens: np.ndarray  # [V, D / C]
    norm: np.ndarray  # [D]
    gate_proj: np.ndarray  # [F, D]
    up_proj: np.ndarray  # [F, D]
    down_proj: np.ndarray  # [D, F]
    lm_head: np.ndarray  # [V, D]

    @classmethod
    def init(cls, rng: np.random.Generator, width: int = 128, hidden: int = 256, dtype=np.float32):
        """Draw every matrix with variance 1 / in-features."""
        shapes = [(ALPHABET, width // CONTEXT), (hidden, width), (hidden, width), (width, hidden), (ALPHABET, width)]
        drawn = [(rng.standard_normal(s) / np.sqrt(s[1])).astype(dtype) for s in shapes]
        return cls(drawn[0], np.ones(width, dtype), *drawn[1:])


def network_forward(weights: NetworkWeights, context_NC: np.ndarray, linear: Linear = EXACT):
    """Logits of the next character; returns (logits_NV, cache)."""
    x_ND = weights.embed_tokens[context_NC].reshape(len(context_NC), -1)
    inverse_N1 = 1 / np.sqrt(np.mean(x_ND**2, axis=1, keepdims=True) + x_ND.dtype.type(1e-6))
    normed_ND = x_ND * inverse_N1 * weights.norm
    gate_NF, gate_cache = linear.forward(normed_ND, weights.gate_proj)
    up_NF, up_cache = linear.forward(normed_ND, weights.up_proj)
    sigmoid_NF = 1 / (1 + np.exp(-gate_NF))
    down_ND, down_cache = linear.forward(gate_NF * sigmoid_NF * up_NF, weights.down_proj)
    logits_NV, head_cache = linear_forward(x_ND + down_ND, weights.lm_head)  # the head stays exact, as in V3
    saved = (context_NC, x_ND, inverse_N1, gate_NF, up_NF, sigmoid_NF, gate_cache, up_cache, down_cache, head_cache)
    return logits_NV, saved


def network_backward(dlogits_NV: np.ndarray, weights: NetworkWeights, cache, linear: Linear = EXACT) -> NetworkWeights:
    """Gradients of every weight, in a NetworkWeights of their own."""
    context_NC, x_ND, inverse_N1, gate_NF, up_NF, sigmoid_NF, gate_cache, up_cache, down_cache, head_cache = cache
    dx_ND, dlm_head = linear_backward(dlogits_NV, head_cache)  # the residual path keeps this dx
    dact_NF, ddown_proj = linear.backward(dx_ND, down_cache)
    dsilu = sigmoid_NF * (1 + gate_NF * (1 - sigmoid_NF))
    dnormed_gate, dgate_proj = linear.backward(dact_NF * up_NF * dsilu, gate_cache)
    dnormed_up, dup_proj = linear.backward(dact_NF * gate_NF * sigmoid_NF, up_cache)
    dnormed_ND = dnormed_gate + dnormed_up
    unit_ND = x_ND * inverse_N1
    dunit_ND = dnormed_ND * weights.norm
    dx_ND = dx_ND + inverse_N1 * (dunit_ND - unit_ND * np.mean(dunit_ND * unit_ND, axis=1, keepdims=True))
    dembed = np.zeros_like(weights.embed_tokens)
    np.add.at(dembed, context_NC, dx_ND.reshape(*context_NC.shape, -1))
    dnorm = np.sum(dnormed_ND * unit_ND, axis=0)
    return NetworkWeights(dembed, dnorm, dgate_proj, dup_proj, ddown_proj, dlm_head)


def cross_entropy(logits_NV: np.ndarray, target_N: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean loss in nats, and its gradient by the logits."""
    shifted = logits_NV - logits_NV.max(axis=1, keepdims=True)
    log_probability = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    rows = np.arange(len(target_N))
    dlogits = np.exp(log_probability)
    dlogits[rows, target_N] -= 1
    return float(-log_probability[rows, target_N].mean()), dlogits / len(target_N)


@lru_cache(maxsize=1)
def read_manual() -> np.ndarray:
    """The text behind Python's `help()`, as ASCII codes; it differs a little from one Python version to the next."""
    text = "\n".join(topics[name] for name in sorted(topics))
    return np.frombuffer(text.encode("ascii", "replace"), dtype=np.uint8).astype(np.intp)


def draw_batch(rng: np.random.Generator, size: int, *, held_out: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Contexts [size, C] and the character after each; the last tenth of the manual is held out."""
    text = read_manual()
    split = int(0.9 * len(text))
    low, high = (split, len(text)) if held_out else (0, split)
    start = rng.integers(low, high - CONTEXT, size)
    window = text[start[:, None] + np.arange(CONTEXT + 1)]
    return window[:, :-1], window[:, -1]


def adam_step(weights, gradients, moments, step: int, rate: float, store: Callable = lambda m: m):
    """One step of AdamW (no decay) in float32; `store` rounds the two moments as they are put away."""
    updated, kept = {}, {}
    for name in (f.name for f in fields(weights)):
        weight, gradient = getattr(weights, name), getattr(gradients, name)
        first, second = moments.get(name, (np.zeros_like(weight), np.zeros_like(weight)))
        first, second = 0.9 * first + 0.1 * gradient, 0.95 * second + 0.05 * gradient**2
        size = np.sqrt(second / (1 - 0.95**step)) + 1e-8
        updated[name] = (weight - rate * (first / (1 - 0.9**step)) / size).astype(weight.dtype)
        kept[name] = store(first), store(second)
    return replace(weights, **updated), kept


@lru_cache(maxsize=4)
def train_exactly(steps: int = 150, seed: int = 0, batch: int = 256) -> tuple[NetworkWeights, tuple[float, ...]]:
    """Train the network in float32; return its weights and the loss of every step."""
    rng = np.random.default_rng(seed)
    weights, moments, losses = NetworkWeights.init(rng), {}, []
    for step in range(1, steps + 1):
        context, target = draw_batch(rng, batch)
        logits, cache = network_forward(weights, context)
        loss, dlogits = cross_entropy(logits, target)
        weights, moments = adam_step(weights, network_backward(dlogits, weights, cache), moments, step, 3e-3)
        losses.append(loss)
    return weights, tuple(losses)


def collect_tensors(weights: NetworkWeights, n_samples: int = 512, seed: int = 1) -> dict[str, np.ndarray]:
    """What the FP8 products of one step would read: inputs, weights and output gradients, by name."""
    inputs, gradients = [], []

    def forward(x, weight):
        inputs.append(x)
        return linear_forward(x, weight)

    def backward(dy, cache):
        gradients.append(dy)
        return linear_backward(dy, cache)

    context, target = draw_batch(np.random.default_rng(seed), n_samples)
    logits, cache = network_forward(weights, context, Linear(forward, backward))
    network_backward(cross_entropy(logits, target)[1], weights, cache, Linear(forward, backward))
    return {
        "activation: normed input": inputs[0],
        "activation: SwiGLU product": inputs[2],
        "weight: gate_proj": weights.gate_proj,
        "weight: down_proj": weights.down_proj,
        "gradient: of the block": gradients[0],
        "gradient: of the gate": gradients[1],
    }


def round_at(x: np.ndarray, fmt: FloatFormat, granularity: str) -> np.ndarray:
    """Round a matrix to `fmt` under "no scale", "per tensor" or "1 x 128" scales.

    Raises:
        ValueError: an unknown granularity.
    """
    if granularity == "no scale":
        return round_to(x, fmt)
    tiles = {"per tensor": x.shape, "1 x 128": (1, 128)}
    if granularity not in tiles:
        raise ValueError(f"granularity={granularity!r}; choose 'no scale' or one of {sorted(tiles)}")
    return dequantize(quantize(x, tiles[granularity], fmt, floor=TINY))


def compare_formats(tensors: dict[str, np.ndarray], granularity: str) -> dict[str, dict[str, float]]:
    """Relative error of every candidate on every tensor, as {tensor: {format: error}}."""
    return {
        name: {fmt.name: relative_rms(x, round_at(x, fmt, granularity)) for fmt in CANDIDATES}
        for name, x in tensors.items()
    }


def flushed_share(x: np.ndarray, fmt: FloatFormat, granularity: str) -> float:
    """The share of the non-zero elements that become zero."""
    nonzero = x != 0
    return float(np.mean(round_at(x, fmt, granularity)[nonzero] == 0)) if nonzero.any() else 0.0


def main() -> None:
    """Train, then print who wins on what under which scaling, and check one gradient."""
    weights, losses = train_exactly()
    print(f"trained {len(losses)} steps on Python's manual: loss {losses[0]:.2f} -> {np.mean(losses[-10:]):.2f} nats")
    tensors = collect_tensors(weights)
    for granularity in ("no scale", "per tensor", "1 x 128"):
        print(f"\n{granularity:28}" + "".join(f"{fmt.name:>9}" for fmt in CANDIDATES) + "   flushed to 0 in E4M3")
        for name, row in compare_formats(tensors, granularity).items():
            best = min(row, key=row.get)
            cells = "".join(f"{error:8.2%}{'*' if key == best else ' '}" for key, error in row.items())
            print(f"  {name:26}{cells}   {flushed_share(tensors[name], E4M3, granularity):.2%}")
    print("  (* smallest error)")

    exact = NetworkWeights.init(np.random.default_rng(0), 16, 12, np.float64)
    context, target = draw_batch(np.random.default_rng(2), 5)
    logits, cache = network_forward(exact, context)
    analytic = network_backward(cross_entropy(logits, target)[1], exact, cache).down_proj[3, 4]
    ends = []
    for h in (6e-6, -6e-6):
        moved = exact.down_proj.copy()
        moved[3, 4] += h
        ends.append(cross_entropy(network_forward(replace(exact, down_proj=moved), context)[0], target)[0])
    print(f"\ngradient of one weight: by hand {analytic:.9f}, by differences {(ends[0] - ends[1]) / 1.2e-5:.9f}")


if __name__ == "__main__":
    main()
