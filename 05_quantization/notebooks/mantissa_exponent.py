# %% [markdown]
# # Range or accuracy: how should seven bits be shared?
#
# **The question.** One of eight bits is the sign. Seven are left for exponent and mantissa. Before DeepSeek-V3 the
# usual recipe was a compromise by direction: E4M3 for weights and activations, E5M2 for gradients, which spread wider.
# V3 takes E4M3 for everything. When is that allowed?
#
# A hiker packs for a week and may carry seven things. Warm clothes or a map? If he must be ready for every mountain of
# the world, he takes clothes for all weathers and a coarse map. But suppose that somebody drives him each morning to
# the foot of the day's mountain. Then one set of clothes will do, and the map may be fine. The driver is the **scale**:
# it brings the numbers of a tile to where the format is good. Whoever has a driver should spend his bits on the map.
#
# So the claim is that a fine scale *buys the range*, and mantissa bits are what is left to wish for. We test it on real
# tensors: activations, weights and gradients of a small network that has learned some English from Python's own manual.

# %%
import numpy as np
from float_formats import E4M3, E5M2, round_to
from mantissa_exponent import CANDIDATES, collect_tensors, compare_formats, flushed_share, round_at, train_exactly

from utils.drawings_05 import draw_widths
from utils.plots_05 import plot_pairs, plot_spans

# %%
rows = {fmt.name: (fmt.exponent_bits, fmt.mantissa_bits) for fmt in CANDIDATES}
reach = {fmt.name: np.log2(fmt.largest / fmt.smallest_normal) for fmt in CANDIDATES}
draw_widths(rows, {n: f"{reach[n]:.1f} powers of two, marks 1/{2 ** rows[n][1]} apart" for n in rows})

# %% [markdown]
# ## Numbers to follow with a pencil
#
# Between 1 and 2 the marks of E4M3 are $\tfrac18$ apart. A number that falls anywhere between two marks is off by at
# most $\tfrac1{16}$, and, since all places are equally likely, by $\tfrac18 / \sqrt{12} = 0.0361$ in the root mean
# square. Numbers evenly spread over $[1, 2)$ have themselves an rms of $\sqrt{7/3} = 1.528$. So the relative error is
# $0.0361 / 1.528 = 2.36\,\%$. E5M2 has marks $\tfrac14$ apart, twice as far: $4.72\,\%$.
#
# And the reach: the normal numbers of E4M3 go from $2^{-6}$ to $448$, a ratio of $28{,}672$, not quite 15 powers of
# two. Those of E5M2 go from $2^{-14}$ to $57{,}344$: not quite 30.

# %%
x = np.random.default_rng(0).uniform(1, 2, (64, 128)).astype(np.float32)
for name, error in compare_formats({"x": x}, "no scale")["x"].items():
    print(f"{name}: measured {error:.3%}, predicted {2.0 ** -rows[name][1] / np.sqrt(28):.3%}")

# %% [markdown]
# ## Build it
#
# A tensor, a format and a driver: none, one for the whole tensor, or one for each 128 numbers of a row.


# %%
def drive(x, fmt, width):
    """Round x [rows, columns] to `fmt` with one scale for each `width` numbers of a row."""
    back = np.zeros_like(x)
    for j in range(0, x.shape[1], width):
        piece = x[:, j : j + width]
        scale = np.maximum(np.abs(piece).max(axis=1, keepdims=True), np.float32(2.0**-100)) / np.float32(fmt.largest)
        back[:, j : j + width] = round_to(piece / scale, fmt) * scale
    return back


def relative(x, back):
    """Root mean square of the error over that of the tensor."""
    return np.linalg.norm(back.astype(float) - x) / np.linalg.norm(x)


# %%
uneven = x * np.exp(4 * np.random.default_rng(1).standard_normal((64, 1))).astype(np.float32)
for fmt in (E4M3, E5M2):
    assert np.allclose(drive(uneven, fmt, 128), round_at(uneven, fmt, "1 x 128"), rtol=1e-6)
    assert np.isclose(
        relative(uneven, drive(uneven, fmt, 128)), compare_formats({"x": uneven}, "1 x 128")["x"][fmt.name]
    )
print("naive and module agree")

# %% [markdown]
# ## The derivation
#
# 1. A normal number $x = 2^p (1 + f)$ is rounded on steps of $2^{p - M}$. The error is spread evenly over one step: rms
#    $2^{p - M} / \sqrt{12}$.
# 2. With $1 + f$ spread over $[1, 2)$ the rms of $x$ is $2^p \sqrt{7/3}$. The relative error is
#    $2^{-M} / \sqrt{28} = 0.19 \cdot 2^{-M}$. **One mantissa bit halves it.**
# 3. The normal numbers reach over about $2^E$ powers of two. **One exponent bit doubles that count.**
# 4. The reach that a tensor *needs* is that within one scale. With a scale for each 128 numbers it is the spread within
#    128 numbers, and not that between tokens, layers, or the beginning and end of training. The scale, a float itself,
#    brings the rest.
#
# ## The experiment: real tensors
#
# The network: eight characters in, a SwiGLU block, the next character out; trained for 150 steps in float32. Its
# tensors are what the FP8 products of one step would read.

# %%
weights, losses = train_exactly()
tensors = collect_tensors(weights)
print(f"loss {losses[0]:.2f} -> {np.mean(losses[-10:]):.2f} nats a character")
for name, tensor in tensors.items():
    print(f"{name:28} {tensor.shape!s:11} largest {np.abs(tensor).max():.1e}")

# %%
gradient = np.abs(tensors["gradient: of the gate"])
inside = {fmt.name: np.mean(gradient >= fmt.smallest_normal) for fmt in (E4M3, E5M2)}
shown = {name: tensors[name] for name in ("activation: SwiGLU product", "weight: down_proj", "gradient: of the gate")}
spans = {fmt.name: np.log2([fmt.smallest_normal, fmt.largest]) for fmt in (E4M3, E5M2)}
title = (
    f"With no scale E4M3 is accurate for {inside['E4M3']:.1%} of the gate's gradients, E5M2 for {inside['E5M2']:.1%}"
)
plot_spans(shown, spans, ["content", "ink"], title)

# %%
table = {g: compare_formats(tensors, g) for g in ("no scale", "per tensor", "1 x 128")}
wins = {g: sum(row["E4M3"] < row["E5M2"] for row in rows_.values()) for g, rows_ in table.items()}
assert wins["1 x 128"] == wins["per tensor"] == len(tensors)
title = f"Without a scale E4M3 wins on {wins['no scale']} of {len(tensors)} tensors, with any scale on all"
plot_pairs(table, ["E4M3", "E5M2"], ["content", "ink"], title)

# %% [markdown]
# Without a driver E5M2 is right for the gradients: they are around $10^{-5}$, and E4M3 has nothing there. Any scale
# brings them into reach, and then E4M3 is twice as accurate on everything.
#
# What does a *fine* scale add, if one per tensor does as well by this measure? The tails. The share of numbers that
# become zero in E4M3:

# %%
print(f"{'becomes zero in E4M3':28} {'per tensor':>11} {'1 x 128':>9}")
for name, tensor in tensors.items():
    share = [flushed_share(tensor, E4M3, g) for g in ("per tensor", "1 x 128")]
    print(f"{name:28} {share[0]:11.3%} {share[1]:9.3%}")

# %% [markdown]
# ## Change this, predict, run
#
# If mantissa is all, why stop at three bits? E3M4 and E2M5 share eight bits differently again. Under 1 x 128 scales,
# predict for E2M5, with marks four times finer than E4M3's: is its relative error larger or smaller? And how many
# numbers does it turn into zero?
#
# <details><summary>Afterwards</summary>
#
# Smaller: by the root mean square E3M4 and E2M5 beat E4M3 here. But the measure flatters them. A few large numbers
# decide it, while the small ones vanish, and up to one number in nine does. Whether a network minds is not a question
# that this table can answer. No GPU of the time multiplied these formats.
#
# </details>

# %%
for fmt in CANDIDATES:
    worst = max(flushed_share(t, fmt, "1 x 128") for t in tensors.values())
    error = max(row[fmt.name] for row in table["1 x 128"].values())
    print(f"{fmt.name}: largest relative error {error:.2%}, largest share turned into zero {worst:.2%}")

# %% [markdown]
# This network is small, and its gradients come from one loss at one time. That E4M3 suffices for a model of 671 billion
# weights in all of its training is the report's finding. Here the mechanism can be seen, the scale cannot be repeated.
#
# ## What you can now do
#
# Predict the relative error of any float format from its mantissa bits; say which range a scale has to bring, and which
# the format; choose a format for a tensor by measuring it, and distrust a measure that large numbers decide.
#
# ## Exercises
#
# By thought alone:
#
# 1. Which relative error does step 2 predict for BF16?
#
# <details><summary>Solution</summary>
#
# $M = 7$: $0.19 / 128 = 0.15\,\%$.
#
# </details>
#
# 2. Multiply the loss by 1024 before the backward pass ("loss scaling"). Which of the three columns of the figure (no
#    scale, per tensor, 1 x 128) changes?
#
# <details><summary>Solution</summary>
#
# Only "no scale": all gradients move up ten powers of two. Formats with a scale see the same codes, because the scale
# moves along, and by a power of two, so that not a single code changes.
#
# </details>
#
# 3. One scale per tensor did as well as 1 x 128 in that figure. Which tensor would show the difference at once?
#
# <details><summary>Solution</summary>
#
# One whose rows differ in size by more than the reach, $28{,}672$: gradients of tokens with very different losses (the
# last experiment of `mixed_precision`), or the outlier of `fine_grained_quantization`.
#
# </details>
