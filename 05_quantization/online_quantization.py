"""Scales from the tensor at hand, not from its past; and tiles that turn over for the backward pass.

    online     scale = max |x_now| / 448                          one more pass over the tensor, never surprised
    delayed    scale = max of the last H maxima / 448             no extra pass, wrong for as long as the past differs

A spike overflows a delayed scale once (the spike itself is clipped) and then blinds it for H steps (the small numbers
fall below the subnormals). The online scale only ever sees the spike in its own tile.

The weight gradient sums over tokens, so its operands need tiles of 128 x 1 where the forward pass made 1 x 128:

    x^ = code * scale       turned: max over 128 tokens, new scale, codes rounded again

Rounding twice adds an error, unless both scales are powers of two: then x^ / new scale has the mantissa of the code,
and only what falls among the subnormals is rounded. E5M6 has the exponents to make that rare; see `turn_tiles`.

Run:       python online_quantization.py
Notebook:  online_quantization.ipynb
Source:    arXiv:2412.19437, 3.3.2 "Online Quantization", 3.3.3 "Low-Precision Activation".
Letters:   N tokens, D channels.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np
from fine_grained_quantization import FLOOR, TILE, Quantized, dequantize, quantize, relative_rms
from float_formats import E4M3, E5M6, FloatFormat, decode, encode


class DelayedScale:
    """A scale for whole tensors from the maxima of the last `history` tensors, the present one not among them."""

    def __init__(self, history: int = 16, fmt: FloatFormat = E4M3):
        """Start with no past: the first tensor is scaled by its own maximum."""
        if history < 1:
            raise ValueError(f"history={history} must be at least 1 tensor")
        self.maxima: deque[float] = deque(maxlen=history)
        self.fmt = fmt

    def quantize(self, x: np.ndarray) -> Quantized:
        """Quantize by the past, then remember the present."""
        x = np.asarray(x, np.float32)
        present = float(np.abs(x).max(initial=0))
        past = max(self.maxima, default=present)
        scale = np.float32(max(past, FLOOR)) / np.float32(self.fmt.largest)
        self.maxima.append(present)
        codes = encode(x / scale, self.fmt)  # saturates: nothing promises that the present fits the past
        return Quantized(codes, np.full((1, 1), scale, np.float32), x.shape, self.fmt)


def quantize_online(x: np.ndarray) -> Quantized:
    """Quantize by the present: 1 x 128 tiles, each scaled by its own maximum."""
    return quantize(x, (1, TILE))


@dataclass(frozen=True)
class SpikeReport:
    """What one way of scaling did to one tensor of the stream."""

    error: float  # relative rms over the ordinary elements
    clipped: float  # share of all elements that met the largest value from beyond
    flushed: float  # share of the non-zero elements that became zero


def report_on(x: np.ndarray, q: Quantized, ordinary: np.ndarray) -> SpikeReport:
    """Measure a quantized tensor against the true one; `ordinary` masks what is not the spike."""
    back = dequantize(q)
    clipped = np.abs(x) > np.abs(back) * (1 + 2.0 ** -(q.fmt.mantissa_bits + 1)) + 1e-30
    at_top = np.abs(decode(q.codes, q.fmt)) == q.fmt.largest
    flushed = (back == 0) & (x != 0)
    return SpikeReport(
        relative_rms(x[ordinary], back[ordinary]), float(np.mean(clipped & at_top)), float(flushed.mean())
    )


def stream_with_spike(
    n_steps: int = 40, spike_at: int = 12, size: float = 1e6, seed: int = 0
) -> list[tuple[np.ndarray, np.ndarray]]:
    """A stream of [32, 256] tensors of ordinary size, one of which holds one element `size` times larger.

    Returns:
        (tensor, mask of its ordinary elements) for every step.
    """
    rng, stream = np.random.default_rng(seed), []
    for step in range(n_steps):
        x, ordinary = rng.standard_normal((32, 256)), np.ones((32, 256), dtype=bool)
        if step == spike_at:
            x[7, 100], ordinary[7, 100] = size, False
        stream.append((x.astype(np.float32), ordinary))
    return stream


def turn_tiles(q: Quantized, *, power_of_two: bool) -> Quantized:
    """From 1 x 128 tiles to 128 x 1: read back, and quantize once more along the other axis.

    With powers of two on both sides the change of scale moves the exponent alone. A value is rounded only when its new
    code is subnormal: when it is smaller than its 128-token column maximum by more than the format's normal range.

    Raises:
        ValueError: `q` is not in tiles of one row.
    """
    if q.tile[0] != 1:
        raise ValueError(
            f"turn_tiles takes tiles of one row, got {q.tile}; weights in square blocks turn by themselves"
        )
    turned = (q.tile[1], 1)  # from [1, 128] to [128, 1]
    return quantize(dequantize(q), turned, q.fmt, power_of_two=power_of_two)


def turning_error(x: np.ndarray, fmt: FloatFormat, *, power_of_two: bool) -> tuple[float, float, float]:
    """(share of values that turning changes, mean |error| / |x| before turning, and after).

    The mean over elements, not the rms: a float32 scale maps the largest of each tile to 448 without error, and where a
    few large elements are most of the rms that hides what happens to all the others.
    """
    q = quantize(x, (1, TILE), fmt, power_of_two=power_of_two)
    before, after = dequantize(q), dequantize(turn_tiles(q, power_of_two=power_of_two))
    error_before, error_after = (float(np.mean(np.abs(back - x) / np.abs(x))) for back in (before, after))
    return float(np.mean(before != after)), error_before, error_after


def spread_activations(n_tokens: int = 512, n_channels: int = 512, spread: float = 1.0, seed: int = 3) -> np.ndarray:
    """Normal data whose tokens and channels differ in size by log-normal factors: large ones sit beside small ones."""
    rng = np.random.default_rng(seed)
    token_sizes, channel_sizes = (np.exp(spread * rng.standard_normal(n)) for n in (n_tokens, n_channels))
    return (rng.standard_normal((n_tokens, n_channels)) * token_sizes[:, None] * channel_sizes).astype(np.float32)


def main() -> None:
    """Print a spike's passage under both kinds of scale, and what turning the tiles costs."""
    stream, delayed = stream_with_spike(), DelayedScale(history=16)
    print("one element of tensor 12 is a million times larger; scales from the last 16 maxima, or online per tile")
    print(f"{'tensor':>6}  {'delayed: error':>14} {'clipped':>9} {'flushed':>9}   {'online: error':>13} {'flushed':>9}")
    for step, (x, ordinary) in enumerate(stream):
        past = report_on(x, delayed.quantize(x), ordinary)
        now = report_on(x, quantize_online(x), ordinary)
        if step in (0, 11, 12, 13, 28, 29):
            print(f"{step:6}  {past.error:14.2%} {past.clipped:9.3%} {past.flushed:9.2%}", end="   ")
            print(f"{now.error:13.2%} {now.flushed:9.2%}")
    print("\nturning 1 x 128 tiles to 128 x 1; tokens and channels of very different size")
    print(f"{'format':8} {'scales':14} {'values changed':>15} {'error before':>13} {'after':>9}")
    x = spread_activations()
    for fmt in (E4M3, E5M6):
        for power_of_two in (False, True):
            changed, before, after = turning_error(x, fmt, power_of_two=power_of_two)
            kind = "powers of two" if power_of_two else "any float32"
            print(f"{fmt.name:8} {kind:14} {changed:15.3%} {before:13.3%} {after:9.3%}")


if __name__ == "__main__":
    main()
