# %% [markdown]
# # May a scale come from the past?
#
# Finding the maximum of a tensor costs a pass over it. *Delayed* scaling saves the pass: it takes the scale from the
# maxima of the last few steps. DeepSeek-V3 pays for the pass, *online*, for every tile. What does it get for that?
# And what happens when tiles made for the forward pass are needed the other way round in the backward pass?

# %%
import matplotlib.pyplot as plt
import numpy as np
from fine_grained_quantization import dequantize, quantize
from float_formats import E4M3, E5M6, decode
from online_quantization import (
    DelayedScale,
    quantize_online,
    report_on,
    spread_activations,
    stream_with_spike,
    turn_tiles,
    turning_error,
)

from utils.whiteboard import COLORS, arrow, board, box, matrix, note, use_style

use_style()

# %% [markdown]
# ## The whiteboard: two ways to get a scale

# %%
fig, ax = board(13, 4.4)
past = [box(ax, 1.5 + 1.5 * i, 3.3, f"max {i - 3}", "ink", width=1.3) for i in range(3)]
now = box(ax, 6.6, 3.3, "tensor now", "content", width=2.0)
delayed = box(ax, 3.0, 1.0, "delayed scale", "shared", width=2.2)
online = box(ax, 9.6, 1.0, "online scales", "shared", width=2.2)
for source in past:
    arrow(ax, source, delayed)
arrow(ax, now, online, "max of each tile")
arrow(ax, delayed, (5.9, 2.85), "divide", dashed=True)
note(ax, 8.0, 3.3, "read twice: for the max,\nthen to divide", "ink", align="left")
note(ax, 1.5, 4.1, "steps before", "ink")
plt.show()

# %% [markdown]
# ## What a spike does, in five steps
#
# 1. Let the numbers be of size 1 and let one element of one tensor be $A \gg 448$ times larger.
# 2. **Delayed, at the spike:** the scale is still about $1/448$ of the usual maximum. The spike is clipped to that
#    maximum; the others are unharmed. The tensor is wrong exactly where it was unusual.
# 3. **Delayed, afterwards:** the scale is $A/448$ for as long as the spike is in the history of length $H$. Numbers of
#    size 1 become $448/A$; below $2^{-10}$ that rounds to zero. For $H$ steps nearly everything is lost.
# 4. **Online, at the spike:** the same loss, but in the 128 numbers of one tile.
# 5. **Online, afterwards:** nothing. There is no memory.
#
# ## Five lines to check it

# %%
delayed = DelayedScale(history=16)
for largest in (1.0, 1e6, 1.0):
    q = delayed.quantize(np.array([[0.5, largest]]))
    print(f"tensor [0.5, {largest:g}]   scale {q.scales[0, 0]:.3g}   read back {dequantize(q)[0]}")

# %% [markdown]
# ## A spike in a stream of forty tensors

# %%
stream, delayed = stream_with_spike(n_steps=40, spike_at=12, size=1e6), DelayedScale(history=16)
past, now = [], []
for x, ordinary in stream:
    past.append(report_on(x, delayed.quantize(x), ordinary))
    now.append(report_on(x, quantize_online(x), ordinary))
blind = sum(report.error > 0.5 for report in past)

# %%
fig, ax = plt.subplots(figsize=(9.5, 4.2))
for reports, kind, name in ((past, "draft", "delayed, last 16 maxima"), (now, "content", "online, 1 x 128")):
    ax.plot([r.error for r in reports], color=COLORS[kind], marker="o", markersize=4, label=name)
ax.axvline(12, color=COLORS["ink"], linestyle="--", linewidth=1)
ax.text(11.7, 0.3, "the spike", ha="right", color=COLORS["ink"])
ax.set(yscale="log", xlabel="step", ylabel="relative error, the spike itself left out")
ax.set_title(f"One element out of 8,192 blinds the delayed scale for {blind} steps")
ax.legend()
plt.show()

# %% [markdown]
# The online curve rises once, to the loss of a single tile. The spike here is huge, a million times; E4M3's own range
# absorbs anything below about ten thousand (see `fine_grained_quantization.ipynb`), for both kinds of scale.
#
# ## Turning the tiles
#
# The weight gradient $dW = dY^\top X$ sums over tokens, so $X$ is needed in tiles of 128 x 1. What was kept are codes
# in tiles of 1 x 128.

# %%
fig, ax = board(13, 4.6)
x = np.abs(np.random.default_rng(5).standard_normal((4, 4)))
a = matrix(ax, 0.6, 3.6, x, "content", cell=0.6, label="codes in 1 x 4")
matrix(ax, 3.3, 3.6, x.max(axis=1, keepdims=True), "shared", cell=0.6)
b = matrix(ax, 8.4, 3.6, x, "content", cell=0.6, label="codes in 4 x 1")
matrix(ax, 8.4, 0.9, x.max(axis=0, keepdims=True), "shared", cell=0.6)
for i in range(5):
    ax.plot([0.6, 3.0], [3.6 - 0.6 * i] * 2, color=COLORS["ink"], lw=1.5)
    ax.plot([8.4 + 0.6 * i] * 2, [1.2, 3.6], color=COLORS["ink"], lw=1.5)
arrow(ax, (4.3, 2.4), (8.2, 2.4))
note(ax, 6.2, 2.9, "read back, scale anew,\nround again")
note(ax, 11.9, 2.4, "rounded twice,\nunless both scales\nare powers of two", "draft")
plt.show()

# %% [markdown]
# With scales $s$ and $s'$ the new code is $\mathrm{round}(q\,s/s')$. If $s/s' = 2^n$, the mantissa of $q$ stays as it
# is, and rounding does nothing, unless the new code is subnormal. That needs an element smaller than its column's
# maximum by more than the format's normal range: $2^{15}$ in E4M3, but $2^{30}$ in E5M6.

# %%
x, rows = spread_activations(spread=1.5), {}
for fmt in (E4M3, E5M6):
    for power_of_two in (False, True):
        name = f"{fmt.name}, {'2^n' if power_of_two else 'float32'} scales"
        rows[name] = turning_error(x, fmt, power_of_two=power_of_two)
        print(f"{name:22} values changed {rows[name][0]:8.4%}   error {rows[name][1]:.3%} -> {rows[name][2]:.3%}")

# %%
places, e5m6 = np.arange(len(rows))[::-1], rows["E5M6, 2^n scales"]
assert e5m6[0] == 0
assert e5m6[1] == e5m6[2]

# %%
fig, ax = plt.subplots(figsize=(9, 3.8))
for shift, column, kind, label in ((0.2, 1, "content", "rounded once"), (-0.2, 2, "draft", "after turning")):
    ax.barh(places + shift, [row[column] for row in rows.values()], 0.38, color=COLORS[kind], label=label)
for place, row in zip(places, rows.values()):
    ax.text(max(row[1:]) * 1.05, place, f"{row[0]:.1%} of the values changed", va="center", fontsize=10)
ax.set_yticks(places, list(rows))
ax.set(xscale="log", xlabel="mean |error| / |x|", xlim=(1e-3, 0.3))
ax.grid(axis="y", visible=False)
ax.set_title("E5M6 with powers of two turns without changing a value")
ax.legend(loc="lower right")
plt.show()

# %% [markdown]
# The same holds for E4M3 but for its subnormals, which this data, with tokens and channels of very different size, was
# made to provoke. The report uses E5M6 for one tensor, the input of the linear layer after attention, because
# attention's own backward pass reads it too and is sensitive. It gives only the widths of the format; the layout of its
# top (infinity and NaN as in IEEE) is our assumption, and plays no role here.
#
# A power-of-two scale is up to twice too large and wastes up to one binade at the top. It costs no accuracy for normal
# numbers: dividing by it changes exponents only.
#
# ## What we have, and what comes next
#
# All the parts. Next: one linear layer with three FP8 products, and a network trained with it:
# `mixed_precision.ipynb`.
#
# ## Exercises
#
# **1.** Delayed scaling with a margin: take four times the largest maximum of the past. What gets better, what worse?
#
# <details><summary>Solution</summary>
#
# Growth up to 4 is no longer clipped, and two binades at the bottom are given up for it: elements 7,168 times smaller
# than the maximum become subnormal, not 28,672 times. A spike of a million is clipped as before.
#
# </details>
#
# **2.** Why do weights not need to be turned?
#
# <details><summary>Solution</summary>
#
# A 128 x 128 block is square: read the other way round it is a 128 x 128 block with the same maximum, so the same scale
# and the same codes.
#
# </details>
