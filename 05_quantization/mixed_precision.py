"""The whole framework: three FP8 products in a linear layer, and everything that must not be FP8.

    Fprop   Y  = X  W^T      X in 1 x 128 along D,       W in 128 x 128        sums over in-features
    Dgrad   dX = dY W        dY in 1 x 128 along F,      W the same codes      sums over out-features
    Wgrad   dW = dY^T X      dY and X in 128 x 1 along N (turned tiles)        sums over tokens

Tiles lie along the summed axis, so the scales leave the inner sum. W's square blocks serve Fprop and Dgrad alike. All
operands are E4M3, gradients too: the tile brings the range. Sums are FP32; dW is added up over micro-batches in FP32;
the master weights are FP32 and the two moments of AdamW BF16.

Run:       python mixed_precision.py            one seed, FP32 against FP8       ... --seeds     three seeds, longer
Notebook:  mixed_precision.ipynb
Source:    arXiv:2412.19437, 3.3.1 and Fig. 6, 3.3.3; the failing variant of `BLOCK_GRADIENTS`: appendix B.2.
Letters:   N tokens, D in-features, F out-features.
"""

import sys
from dataclasses import dataclass, fields

import numpy as np
from fine_grained_quantization import (
    GRADIENT_FLOOR,
    TILE,
    Quantized,
    dequantize,
    multiply_quantized,
    quantize,
    quantize_activation,
    quantize_weight,
)
from float_formats import BF16, round_to
from mantissa_exponent import (
    EXACT,
    Linear,
    NetworkWeights,
    adam_step,
    cross_entropy,
    draw_batch,
    network_backward,
    network_forward,
)
from online_quantization import turn_tiles

# what each tensor of training is kept in, and why
FLOW = (  # V3 Fig. 6
    ("X, input of a linear layer", "E4M3", "1 x 128", "half the bytes to cache and to send, and FP8 products"),
    ("W, for the products", "E4M3", "128 x 128", "cast anew from the master after each step"),
    ("dY, gradient of the output", "E4M3", "1 x 128 and 128 x 1", "E4M3 too: the tile brings the range"),
    ("Y and dX", "BF16", "-", "what the residual stream and the next operator read"),
    ("sums inside the products", "FP32", "promoted every 128", "14 bits drift (accumulation_precision.py)"),
    ("dW, over micro-batches", "FP32", "-", "many small terms; BF16 would lose the last of them"),
    ("master weights", "FP32", "-", "an update of 1e-4 of a weight is below half a BF16 step"),
    ("AdamW's two moments", "BF16", "-", "smoothed and divided by each other: range matters, digits hardly"),
    ("embedding, head, router, norms", "BF16 / FP32", "-", "cheap, and every token's error passes through them"),
    ("attention core", "BF16 / FP32", "-", "a softmax turns an absolute error into a factor"),
    ("input of the Linear after attention", "E5M6", "1 x 128, 2^n scales", "read again by attention's backward pass"),
)


@dataclass(frozen=True)
class Recipe:
    """How the gradient of the output is cut into tiles for Dgrad, and whether scales are powers of two."""

    gradient_tile: tuple[int, int] = (1, TILE)
    power_of_two: bool = False


V3_RECIPE = Recipe()
BLOCK_GRADIENTS = Recipe(gradient_tile=(TILE, TILE))  # the report saw this one diverge on a 16B model


def transpose(q: Quantized) -> Quantized:
    """The same codes and scales read the other way round; nothing is rounded."""
    return Quantized(q.codes.T, q.scales.T, q.tile[::-1], q.fmt)


def keep_in_bf16(x: np.ndarray) -> np.ndarray:
    """What is left of a tensor after it was put away in BF16."""
    return round_to(x, BF16)


def fp8_forward(x_ND: np.ndarray, weight_FD: np.ndarray, recipe: Recipe = V3_RECIPE):
    """Fprop; the cache holds the codes, a quarter of the bytes of float32.

    Returns:
        y_NF: float32 that holds BF16 values; and (codes of x, codes of the weight).
    """
    x_q = quantize_activation(x_ND, power_of_two=recipe.power_of_two)
    weight_q = quantize_weight(weight_FD, power_of_two=recipe.power_of_two)
    y_NF = multiply_quantized(x_q, weight_q)  # V3 Fig. 6
    return keep_in_bf16(y_NF), (x_q, weight_q)


def fp8_backward(dy_NF: np.ndarray, cache, recipe: Recipe = V3_RECIPE) -> tuple[np.ndarray, np.ndarray]:
    """Dgrad and Wgrad, each with tiles along the axis that it sums over.

    dY is at hand in float32, so its 128 x 1 tiles are made from it directly; X is only there in codes, and is turned.

    Returns:
        dx_ND, float32 that holds BF16 values, and dweight_FD, float32 in full.
    """
    x_q, weight_q = cache
    options = {"power_of_two": recipe.power_of_two, "floor": GRADIENT_FLOOR}
    dy_q = quantize(dy_NF, recipe.gradient_tile, **options)
    dx_ND = multiply_quantized(dy_q, transpose(weight_q))  # V3 Fig. 6
    dy_tall = quantize(dy_NF, (TILE, recipe.gradient_tile[0]), **options)  # 128 x 1, or the block of the variant
    x_tall = turn_tiles(x_q, power_of_two=recipe.power_of_two)
    dweight_FD = multiply_quantized(transpose(dy_tall), transpose(x_tall))  # V3 Fig. 6
    return keep_in_bf16(dx_ND), dweight_FD


def fp8_linear(recipe: Recipe = V3_RECIPE) -> Linear:
    """The pair above as an argument for `network_forward`."""
    return Linear(
        lambda x, weight: fp8_forward(x, weight, recipe),
        lambda dy, cache: fp8_backward(dy, cache, recipe),
    )


def gate_hidden(gate_NF: np.ndarray, up_NF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """h = silu(g) * u in float32, and the sigmoid, taken in float64 and rounded once: the same number everywhere."""
    sigmoid_NF = (1 / (1 + np.exp(-gate_NF.astype(np.float64)))).astype(np.float32)
    return gate_NF * sigmoid_NF * up_NF, sigmoid_NF


def fp8_swiglu_forward(x_ND: np.ndarray, gate_FD: np.ndarray, up_FD: np.ndarray, down_DF: np.ndarray):
    """down(silu(gate x) * up x): of its middle only g and u are kept, in FP8; h is made again when it is needed.

    Returns:
        y_ND: float32 that holds BF16 values; and the cache, codes alone: of x, g, u and the three weights.
    """
    x_q = quantize_activation(x_ND)
    gate_q, up_q, down_q = (quantize_weight(weight) for weight in (gate_FD, up_FD, down_DF))
    gate_NF, up_NF = (keep_in_bf16(multiply_quantized(x_q, weight_q)) for weight_q in (gate_q, up_q))
    hidden_q = quantize_activation(gate_hidden(gate_NF, up_NF)[0])
    y_ND = keep_in_bf16(multiply_quantized(hidden_q, down_q))
    return y_ND, (x_q, quantize_activation(gate_NF), quantize_activation(up_NF), gate_q, up_q, down_q)


def fp8_swiglu_backward(dy_ND: np.ndarray, cache) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of x and of the three weights; h and silu'(g) from the g and u that were kept.

    Returns:
        dx_ND, the sum of two BF16 parts; dgate_FD, dup_FD, ddown_DF, float32 in full.
    """
    x_q, kept_gate, kept_up, gate_q, up_q, down_q = cache
    gate_NF, up_NF = dequantize(kept_gate), dequantize(kept_up)
    hidden_NF, sigmoid_NF = gate_hidden(gate_NF, up_NF)
    dy_q, dy_tall = (quantize(dy_ND, tile, floor=GRADIENT_FLOOR) for tile in ((1, TILE), (TILE, 1)))
    dhidden_NF = keep_in_bf16(multiply_quantized(dy_q, transpose(down_q)))
    ddown_DF = multiply_quantized(transpose(dy_tall), transpose(quantize(hidden_NF, (TILE, 1))))
    dsilu_NF = sigmoid_NF * (1 + gate_NF * (1 - sigmoid_NF))
    dx_gate, dgate_FD = fp8_backward(dhidden_NF * up_NF * dsilu_NF, (x_q, gate_q))
    dx_up, dup_FD = fp8_backward(dhidden_NF * gate_NF * sigmoid_NF, (x_q, up_q))
    return dx_gate + dx_up, dgate_FD, dup_FD, ddown_DF


def accumulate(total: NetworkWeights | None, part: NetworkWeights, share: float) -> NetworkWeights:
    """Add one micro-batch's gradients to the sum, in float32."""
    names = [f.name for f in fields(part)]
    start = {n: 0 if total is None else getattr(total, n) for n in names}
    return NetworkWeights(**{n: (start[n] + share * getattr(part, n)).astype(np.float32) for n in names})


def train(
    linear: Linear = EXACT,
    *,
    steps: int,
    seed: int = 0,
    micro_batches: int = 2,
    batch: int = 128,
    low_moments: bool = False,
) -> tuple[NetworkWeights, np.ndarray]:
    """Train the small network; same seed, same data and same start, whatever the linear layers are made of."""
    rng = np.random.default_rng(seed)
    weights, moments, losses = NetworkWeights.init(rng), {}, []
    for step in range(1, steps + 1):
        total, step_loss = None, 0.0
        for _ in range(micro_batches):
            context, target = draw_batch(rng, batch)
            logits, cache = network_forward(weights, context, linear)
            loss, dlogits = cross_entropy(logits, target)
            total = accumulate(total, network_backward(dlogits, weights, cache, linear), 1 / micro_batches)
            step_loss += loss / micro_batches
        store = keep_in_bf16 if low_moments else lambda moment: moment
        rate = 3e-3 * min(1.0, 2.0 * (1 - (step - 1) / steps))  # constant, then down to 0 over the second half
        weights, moments = adam_step(weights, total, moments, step, rate, store)
        losses.append(step_loss)
    return weights, np.array(losses)


def held_out_loss(weights: NetworkWeights, linear: Linear = EXACT, size: int = 4096) -> float:
    """The loss on the tenth of the manual that was not trained on, in the arithmetic given."""
    context, target = draw_batch(np.random.default_rng(99), size, held_out=True)
    return cross_entropy(network_forward(weights, context, linear)[0], target)[0]


def compare_training(steps: int, seeds: tuple[int, ...] = (0, 1, 2), recipe: Recipe = V3_RECIPE) -> dict[int, tuple]:
    """Train each seed in FP32 and in FP8; {seed: (FP32 held-out loss, FP8 held-out loss)}, each in its arithmetic."""
    results = {}
    for seed in seeds:
        exact, _ = train(steps=steps, seed=seed)
        low, _ = train(fp8_linear(recipe), steps=steps, seed=seed, low_moments=True)
        results[seed] = held_out_loss(exact), held_out_loss(low, fp8_linear(recipe))
    return results


def main(*, seeds: tuple[int, ...] = (0,), steps: int = 40) -> None:
    """Print the flow of formats, the error of the three products, and both trainings."""
    for what, kept, granularity, why in FLOW:
        print(f"{what:36} {kept:12} {granularity:20} {why}")
    rng = np.random.default_rng(0)
    x, weight, dy = (rng.standard_normal(s).astype(np.float32) for s in ((256, 256), (384, 256), (256, 384)))
    y, cache = fp8_forward(x, weight)
    dx, dweight = fp8_backward(dy, cache)
    print("\nrelative error of the products on normal data:", end=" ")
    for name, got, want in (("Fprop", y, x @ weight.T), ("Dgrad", dx, dy @ weight), ("Wgrad", dweight, dy.T @ x)):
        print(f"{name} {np.linalg.norm(got - want) / np.linalg.norm(want):.2%}", end="  ")
    print(f"\n\n{steps} steps of 2 x 128 samples; held-out loss in nats")
    gaps = []
    for seed, (exact, low) in compare_training(steps, seeds).items():
        gaps.append(low / exact - 1)
        print(f"  seed {seed}   FP32 {exact:.4f}   FP8 {low:.4f}   relative difference {gaps[-1]:+.2%}")
    if len(gaps) > 1:
        print(f"  mean {np.mean(gaps):+.2%}, from {min(gaps):+.2%} to {max(gaps):+.2%}")


if __name__ == "__main__":
    if "--seeds" in sys.argv:
        main(seeds=(0, 1, 2), steps=400)
    else:
        main()
