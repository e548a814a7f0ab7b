# %% [markdown]
# # How much may one outlier cost?
#
# E4M3 is accurate between $2^{-6}$ and 448. A tensor is moved there by a *scale*: divide, round, and multiply back when
# reading. With one scale for the whole tensor, its largest element decides for all. DeepSeek-V3 gives every token a
# scale for each 128 channels, and every weight matrix one for each 128 x 128 block.

# %%
import matplotlib.pyplot as plt
import numpy as np
from fine_grained_quantization import (
    dequantize,
    multiply_quantized,
    product_bound,
    quantize,
    quantize_activation,
    quantize_weight,
    relative_rms,
)
from float_formats import E4M3, decode
from mantissa_exponent import train_exactly

from utils.whiteboard import COLORS, arrow, board, box, colormap, matrix, note, use_style

use_style()

# %% [markdown]
# ## The whiteboard: who shares a scale
#
# Here a tile is 4 wide, not 128. Each gold cell is the scale of the blue cells that it stands for.

# %%
fig, ax = board(15, 5.2)
rng = np.random.default_rng(3)
x, w = np.abs(rng.standard_normal((4, 8))), np.abs(rng.standard_normal((8, 8)))
matrix(ax, 0.3, 3.9, x, "content", label="X: tokens x channels")
matrix(ax, 5.0, 3.9, x.reshape(4, 2, 4).max(axis=2), "shared", label="scales: 1 x 4")
matrix(ax, 7.6, 4.4, w, "content", label="W: out x in")
matrix(ax, 12.2, 3.9, w.reshape(2, 4, 2, 4).max(axis=(1, 3)), "shared", label="scales: 4 x 4")
note(ax, 3.0, 1.2, "an outlier of a token\ncosts 4 numbers")
note(ax, 13.2, 2.1, "one scale for\n16 numbers,\nnot for 4")
ax.plot([2.3, 2.3], [1.9, 3.9], color=COLORS["ink"], lw=1.5)
for y in (1.9, 2.4, 2.9, 3.4, 3.9):
    ax.plot([0.3, 4.3], [y, y], color=COLORS["ink"], lw=1)
ax.plot([9.6, 9.6], [0.4, 4.4], color=COLORS["ink"], lw=1.5)
ax.plot([7.6, 11.6], [2.4, 2.4], color=COLORS["ink"], lw=1.5)
plt.show()

# %% [markdown]
# ## Derivation
#
# 1. Scale: $s = \max|x| / 448$ over the tile. Code: $q = \mathrm{round}(x/s)$. Value: $\hat x = s\,q$.
# 2. A normal code is off by at most half a gap, $|q|\,2^{-4}$; a subnormal one by half of $2^{-9}$. So
#    $$|\hat x - x| \;\le\; \max\!\big(2^{-4}|x|,\; 2^{-10} s\big).$$
# 3. The second term wins where $|x| < 2^{-6}s$: an element suffers once its tile holds something $448 \cdot 2^6 =
#    28{,}672$ times larger, and vanishes at about sixteen times more. E4M3 forgives much; a single scale forgives a
#    single ratio for the whole tensor.
# 4. Product: $y = \sum_k x_k w_k$. Inside one tile both scales are constants, so
#    $$y = \sum_{t} s^x_t\, s^w_t \sum_{k \in t} q^x_k q^w_k .$$
#    The tensor core sees only 8-bit codes; each tile costs one multiplication and one FP32 addition more.
# 5. With $\delta$ for the bounds of step 2, $|\hat y - y| \le \sum_k |x_k|\delta^w_k + \delta^x_k|w_k| +
#    \delta^x_k\delta^w_k$, plus the FP32 sum over tiles. That is `product_bound`.
# 6. Power-of-two scales: round $s$ **up** to $2^n$ first, then divide. Rounding it after the division would leave the
#    codes wrong by up to a factor of two; rounding down would push the largest element beyond 448.

# %% [markdown]
# ## Five lines to check it
#
# One tile that can be followed by hand, with the scale as it comes and as a power of two.

# %%
tile = np.zeros((1, 128))
tile[0, :4] = [0.001, 0.0025, -0.004, 0.3]
for power_of_two in (False, True):
    q = quantize_activation(tile, power_of_two=power_of_two)
    print(f"scale {q.scales[0, 0]:.6e}   codes say {decode(q.codes[0, :4], E4M3)}   back {dequantize(q)[0, :4]}")

# %% [markdown]
# ## A tile with its outlier, under three granularities
#
# Ordinary numbers, and one that is a million times larger. The colour is each element's own relative error.

# %%
rng = np.random.default_rng(0)
x = rng.standard_normal((256, 512))
x[37, 300] = 1e6
maps = {}
for name, shape in (("one scale", x.shape), ("128 x 128", (128, 128)), ("1 x 128", (1, 128))):
    maps[name] = np.abs(dequantize(quantize(x, shape)) - x) / np.abs(x)

# %%
fig, axes = plt.subplots(1, 3, figsize=(12, 3.2), sharey=True)
for axis, (name, error) in zip(axes, maps.items()):
    picture = axis.imshow(error, vmin=0, vmax=1, cmap=colormap("draft"), aspect="auto", interpolation="nearest")
    axis.set_title(f"{name}: {np.mean(error > 0.5):.2%} lost", fontsize=12)
    axis.set_xlabel("channel")
    axis.grid(visible=False)
axes[0].set_ylabel("token")
fig.colorbar(picture, ax=axes, label="relative error")
assert np.mean(maps["1 x 128"] > 0.5) < 0.005 < 0.1 < np.mean(maps["128 x 128"] > 0.5)
plt.show()

# %% [markdown]
# ## How large must an outlier be?
#
# Not every outlier hurts: step 3 says where the trouble starts. That is worth knowing before blaming FP8 for anything.

# %%
sizes = 10.0 ** np.arange(0, 8.1, 0.5)
curves = {"one scale": [], "128 x 128": [], "1 x 128": []}
quiet = np.arange(256) != 37
for size in sizes:
    x[37, 300] = size
    for curve, shape in zip(curves.values(), (x.shape, (128, 128), (1, 128))):
        curve.append(relative_rms(x[quiet], dequantize(quantize(x, shape))[quiet]))

# %%
fig, ax = plt.subplots(figsize=(8.5, 4))
for (name, curve), kind in zip(curves.items(), ("draft", "shared", "content")):
    ax.plot(sizes, curve, color=COLORS[kind], marker="o", markersize=4, label=name)
ax.axvline(448 * 64, color=COLORS["ink"], linestyle="--", linewidth=1)
ax.text(448 * 64 * 0.8, 0.9, "$448 \\cdot 2^6$", ha="right", color=COLORS["ink"])
ax.set(xscale="log", xlabel="size of the outlier (the rest is of size 1)", ylabel="relative error of the other tokens")
assert max(curves["1 x 128"]) < 1.05 * min(curves["1 x 128"])
ax.set_title(f"Tokens in tiles of their own stay at {max(curves['1 x 128']):.1%}, whatever happens elsewhere")
ax.legend(loc="center left")
plt.show()

# %% [markdown]
# ## The error map of a weight matrix
#
# A matrix of the small trained network of `mantissa_exponent.py`, and what E4M3 in 128 x 128 blocks does to it.

# %%
weight = train_exactly()[0].gate_proj.T  # turned for the page
error = np.abs(dequantize(quantize_weight(weight)) - weight)
seen = (weight != 0) & (error > 0)
correlation = np.corrcoef(np.log(np.abs(weight[seen])), np.log(error[seen]))[0, 1]

# %%
fig, axes = plt.subplots(2, 1, figsize=(10, 6.4), sharex=True)
for axis, shown, kind, name in zip(axes, (np.abs(weight), error), ("content", "draft"), ("|weight|", "|error|")):
    picture = axis.imshow(
        shown, cmap=colormap(kind), vmax=np.quantile(shown, 0.99), aspect="auto", interpolation="nearest"
    )
    axis.axvline(127.5, color=COLORS["shared"], linewidth=1.5)
    axis.grid(visible=False)
    fig.colorbar(picture, ax=axis, label=name)
axes[1].set_xlabel("hidden unit; gold: the border of two blocks")
axes[0].set_title(
    f"The error follows the weight: {relative_rms(weight, weight + error):.2%} of it, correlation {correlation:.2f}"
)
plt.show()

# %% [markdown]
# A large weight has a large error and a small weight a small one. An integer format would spread one error over all,
# and drown the small weights.
#
# ## The product, held to its bound

# %%
rng = np.random.default_rng(1)
a, b = rng.standard_normal((64, 1024)), 0.02 * rng.standard_normal((96, 1024))
a_q, b_q = quantize_activation(a), quantize_weight(b)
error = np.abs(multiply_quantized(a_q, b_q) - a @ b.T)
bound = product_bound(a, b, a_q, b_q)
print(f"largest error / bound {np.max(error / bound):.3f}; typical {np.median(error / bound):.4f}")
print(f"relative error of the product {relative_rms(a @ b.T, a @ b.T + error):.2%}")

# %% [markdown]
# The bound assumes that all errors point the same way; in 1,024 terms they do not, so that even the worst output is far
# inside it. The relative error of a product does **not** shrink with more terms: error and result both grow as
# $\sqrt K$.
#
# ## What we have, and what comes next
#
# Operands are now good to 2.6 % each, whatever their neighbours. The sum of their products was exact here. On the H800
# it was not: `accumulation_precision.ipynb`.
#
# ## Exercises
#
# **1.** The matrix `kv_a_proj_with_mqa` is [576, 7168]. How many scales does it have?
#
# <details><summary>Solution</summary>
#
# $\lceil 576/128\rceil \times 7168/128 = 5 \times 56$. The last row of blocks has only 64 rows of weights. Code that
# divides 576 by 128 and drops the rest loses them.
#
# </details>
#
# **2.** A token of padding is all zeros. What is its scale, and what would it be without the floor of $10^{-4}$?
#
# <details><summary>Solution</summary>
#
# $10^{-4}/448 = 2.2 \cdot 10^{-7}$, and the codes are 0. Without the floor $s = 0$, and $0/0$ is NaN.
#
# </details>
#
# **3.** Why not 1 x 128 tiles for the weights too?
#
# <details><summary>Solution</summary>
#
# It would be more accurate, but Dgrad sums over the *out*-features, where such tiles lie across the sum, so a second
# copy of the codes in 128 x 1 tiles would be needed. Square blocks serve both (`mixed_precision.ipynb`).
#
# </details>
