# %% [markdown]
# # Range or accuracy: how should seven bits be shared?
#
# One of eight bits is the sign. The usual recipe before DeepSeek-V3 was a compromise by direction: E4M3 for weights and
# activations, E5M2 for gradients, which spread wider. V3 takes E4M3 for everything. When is that allowed? We measure it
# on the activations, weights and gradients of a small network that has learned some English from Python's own manual.

# %%
import matplotlib.pyplot as plt
import numpy as np
from float_formats import E4M3, E5M2
from mantissa_exponent import CANDIDATES, collect_tensors, compare_formats, flushed_share, train_exactly

from utils.whiteboard import COLORS, arrow, board, box, note, use_style

use_style()

# %% [markdown]
# ## The whiteboard: four ways to spend the bits

# %%
fig, ax = board(13, 4.6)
for row, fmt in enumerate(CANDIDATES):
    y = 3.6 - row
    note(ax, 1.5, y, fmt.name, size=13, align="right")
    kinds = ["ink"] + ["shared"] * fmt.exponent_bits + ["content"] * fmt.mantissa_bits
    for column, kind in enumerate(kinds):
        box(ax, 2.2 + 0.75 * column, y, "", kind, width=0.65, height=0.65)
    powers = np.log2(fmt.largest / fmt.smallest_normal)
    note(ax, 8.5, y, f"{powers:.1f} powers of two, gap 1/{2**fmt.mantissa_bits}", align="left", size=11)
note(ax, 2.2, 4.3, "sign", "ink")
note(ax, 3.6, 4.3, "exponent: range", "shared")
note(ax, 6.6, 4.3, "mantissa: accuracy", "content")
plt.show()

# %% [markdown]
# ## Derivation
#
# 1. A normal number $x = 2^p(1+f)$ is rounded on steps of $2^{p-M}$. The error is spread evenly over one step, so its
#    root mean square is $2^{p-M}/\sqrt{12}$.
# 2. With $1+f$ spread over $[1,2)$ the rms of $x$ is $2^p\sqrt{7/3}$, and the relative error is
#    $2^{-M}/\sqrt{28} = 0.19 \cdot 2^{-M}$: 2.4 % for $M = 3$, 4.7 % for $M = 2$. **One mantissa bit halves it.**
# 3. Normal numbers reach over $2^E - 2$ powers of two or so. **One exponent bit doubles that count.**
# 4. The range a tensor *needs* is that within one scale. With a scale for each 128 numbers that is the spread within
#    128 numbers, and not that between tokens, layers or steps. The scale, a float itself, brings the rest.
#
# ## Five lines to check step 2

# %%
x = np.random.default_rng(0).uniform(1, 2, (64, 128)).astype(np.float32)
for name, error in compare_formats({"x": x}, "no scale")["x"].items():
    predicted = 2.0 ** -int(name[-1]) / np.sqrt(28)
    print(f"{name}: measured {error:.3%}, predicted {predicted:.3%}")

# %% [markdown]
# ## Real tensors
#
# The network: eight characters in, a SwiGLU block, the next character out; trained for 150 steps in float32.

# %%
weights, losses = train_exactly()
tensors = collect_tensors(weights)
print(f"loss {losses[0]:.2f} -> {np.mean(losses[-10:]):.2f} nats a character")
for name, tensor in tensors.items():
    print(f"{name:28} {tensor.shape!s:11} largest {np.abs(tensor).max():.1e}")


# %%
def draw_spans(axis):
    """Bars over the normal numbers of the two formats, above whatever the axis shows."""
    axis.set_ylim(0, 1.5 * axis.get_ylim()[1])
    for height, fmt, kind in ((0.92, E4M3, "content"), (0.78, E5M2, "shared")):
        span, y = np.log2([fmt.smallest_normal, fmt.largest]), axis.get_ylim()[1] * height
        axis.plot(span, [y, y], color=COLORS[kind], linewidth=5, solid_capstyle="butt")
        axis.text(span[0] - 0.4, y, fmt.name, ha="right", va="center", color=COLORS[kind], fontsize=9)


gradient = np.abs(tensors["gradient: of the gate"])
inside = [np.mean(gradient >= fmt.smallest_normal) for fmt in (E4M3, E5M2)]

# %%
fig, axes = plt.subplots(3, 1, figsize=(10, 6.6), sharex=True)
for axis, name in zip(axes, ["activation: SwiGLU product", "weight: down_proj", "gradient: of the gate"]):
    x = tensors[name][tensors[name] != 0]
    axis.hist(np.log2(np.abs(x)), bins=np.arange(-40, 8, 0.5), density=True, color=COLORS["ink"], alpha=0.5)
    draw_spans(axis)
    axis.set_yticks([])
    axis.set_title(name, fontsize=11)
axes[-1].set(xlabel="$\\log_2 |x|$; bars: the normal numbers of each format, no scale", xlim=(-40, 17))
title = f"Normal without a scale: {inside[0]:.1%} of the gate's gradients in E4M3, {inside[1]:.1%} in E5M2"
fig.suptitle(title, weight="bold")
fig.tight_layout()
plt.show()

# %% [markdown]
# ## Who wins where

# %%
table = {g: compare_formats(tensors, g) for g in ("no scale", "per tensor", "1 x 128")}
places = np.arange(len(tensors))[::-1]

# %%
fig, axes = plt.subplots(1, 3, figsize=(12, 4), sharey=True)
for axis, (granularity, rows) in zip(axes, table.items()):
    for shift, fmt, kind in ((-0.2, "E4M3", "content"), (0.2, "E5M2", "shared")):
        errors = [row[fmt] for row in rows.values()]
        axis.barh(places - shift, errors, 0.38, color=COLORS[kind], label=fmt)
    wins = sum(row["E4M3"] < row["E5M2"] for row in rows.values())
    axis.set_title(f"{granularity}: E4M3 wins {wins} of {len(rows)}", fontsize=12)
    axis.set(xscale="log", xlim=(0.01, 1.5), xlabel="relative error")
    axis.grid(axis="y", visible=False)
axes[0].set_yticks(places, list(tensors), fontsize=9)
axes[1].legend(loc="center right")
fig.tight_layout()
plt.show()

# %% [markdown]
# Without a scale E5M2 is right for gradients: they are around $10^{-5}$, and E4M3 has nothing there. Any scale brings
# them into reach, and then E4M3 is twice as accurate on everything.
#
# What a *fine* scale adds is in the tails. Below is the share of non-zero elements that become zero in E4M3.

# %%
print(f"{'flushed to zero in E4M3':28} {'per tensor':>11} {'1 x 128':>9}")
for name, tensor in tensors.items():
    share = [flushed_share(tensor, E4M3, g) for g in ("per tensor", "1 x 128")]
    print(f"{name:28} {share[0]:11.3%} {share[1]:9.3%}")

# %% [markdown]
# ## An honest look at the other two
#
# By the root mean square even E3M4 and E2M5 beat E4M3 under tile scales. No GPU of that time multiplied them, and the
# measure flatters them: the few large elements decide it, while the small ones vanish.

# %%
for fmt in CANDIDATES:
    worst = max(flushed_share(t, fmt, "1 x 128") for t in tensors.values())
    error = max(row[fmt.name] for row in table["1 x 128"].values())
    print(f"{fmt.name}: largest relative error {error:.2%}, largest share flushed to zero {worst:.2%}")

# %% [markdown]
# This network is small and its gradients come from one loss at one time. That E4M3 suffices for a 671B model in all of
# training is the report's finding; here we can see the mechanism, not repeat the scale.
#
# ## What we have, and what comes next
#
# The scale must follow the tensor. The report computes it from the tensor at hand and not from history:
# `online_quantization.ipynb`.
#
# ## Exercises
#
# **1.** What relative error does step 2 predict for BF16?
#
# <details><summary>Solution</summary>
#
# $M = 7$: $0.19/128 = 0.15\,\%$.
#
# </details>
#
# **2.** Multiply the loss by 1024 before the backward pass ("loss scaling"). Which column of bars changes?
#
# <details><summary>Solution</summary>
#
# Only "no scale": all gradients move up ten powers of two. Scaled formats see the same codes, because the scale moves
# along (by a power of two, so not a single code changes).
#
# </details>
