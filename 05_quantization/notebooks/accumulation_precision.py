# %% [markdown]
# # Where do two percent go in an exact sum?
#
# The product of two E4M3 numbers has eight bits, so adding them up should lose nothing. Yet DeepSeek-V3's report
# measured errors of nearly 2 % at $K = 4096$ on the H800, and moved the sum out of the tensor core every 128 elements.
# Here is a model of what the hardware does, small enough to follow a single bit.

# %%
import matplotlib.pyplot as plt
import numpy as np
from accumulation_precision import (
    PROMOTE_EVERY,
    accumulation_error,
    add_group,
    gaussian_operands,
    multiply_on_tensor_core,
)

from utils.whiteboard import COLORS, arrow, board, box, note, tint, use_style

use_style()

# %% [markdown]
# ## The whiteboard: aligned to the largest, cut below the unit
#
# Four terms, written in binary. They are shifted until their points stand below each other; what lies right of the line
# is dropped. Six bits are kept here, 14 on the H800.

# %%
terms = [("sum so far", "1011010"), ("product 1", "  10110"), ("product 2", "    1101"), ("product 3", "      11011")]
fig, ax = board(13, 4.6)
for row, (name, bits) in enumerate(terms):
    y = 3.9 - 0.85 * row
    note(ax, 1.9, y, name, align="right")
    for column, bit in enumerate(bits):
        if bit != " ":
            box(ax, 2.7 + 0.7 * column, y, bit, "content" if column < 6 else "draft", width=0.6, height=0.6)
ax.plot([6.55, 6.55], [0.8, 4.4], color=COLORS["draft"], linewidth=2.5)
note(ax, 6.55, 0.45, "the unit: bits to the right are cut, not rounded", "draft")
note(ax, 11.2, 2.9, "the larger the sum,\nthe further right\nthe products start,\nthe less of them stays")
plt.show()

# %% [markdown]
# ## Derivation
#
# 1. For each group of 32 products and the sum so far, let $2^p$ be the largest power of two not above the largest
#    magnitude. With 14 bits the unit is $u = 2^{p-13}$.
# 2. Every term is cut to a multiple of $u$, towards zero. Each loses between 0 and $u$, on average $u/2$.
# 3. As long as the sum is small, $u$ is that of the largest product and harmless. A sum of $k$ zero-mean products grows
#    like $\sqrt k$, and $u$ grows with it.
# 4. The cuts always take from the magnitude. Those of the products have both signs and partly cancel; but the sum
#    itself is cut in every group too, always towards zero, and that pull adds up.
# 5. So each group adds an error of the order of $u \propto \sqrt k$. If these were independent, after $K$ elements they
#    would add up to about $\sqrt K \cdot \sqrt K = K$; the result is about $\sqrt K$. The relative error grows at least
#    like $\sqrt K$, and with the pull of step 4 somewhat faster.
# 6. **The cure:** after every $N_C = 128$ elements add the sum to an FP32 register and start again from zero. Then $u$
#    stays what it was in the first 128 elements. What remains of the error averages out over the parts.
#
# ## Five lines to check it

# %%
terms = np.array([[64.0], [1.99], [-1.99], [0.5]], np.float32)
for kept_bits in (6, 7, 8, 14):
    got = add_group(np.zeros(1, np.float32), terms.copy(), kept_bits)[0]
    print(f"{kept_bits:2} bits: unit {64 / 2 ** (kept_bits - 1):.4g}, sum {got}   (exact: 64.5)")

# %% [markdown]
# ## Which error?
#
# With zero-mean data some outputs are nearly zero, and $|\text{error}|/|\text{output}|$ is then anything at all. We
# divide by the root mean square of all outputs instead. Here is why:

# %%
a, b = gaussian_operands(96, 4096)
exact = a.astype(np.float64) @ b.T.astype(np.float64)
error = np.abs(multiply_on_tensor_core(a, b) - exact)
print(f"max |error| / |output|       {np.max(error / np.abs(exact)):8.1%}   (decided by the smallest output)")
print(f"max |error| / rms of outputs {np.max(error) / np.sqrt(np.mean(exact**2)):8.2%}")

# %% [markdown]
# ## Error against K, with and without promotion

# %%
lengths = [128, 256, 512, 1024, 2048, 4096]
plain = np.array([accumulation_error(a[:, :k], b[:, :k]) for k in lengths])
cured = np.array([accumulation_error(a[:, :k], b[:, :k], promote_every=PROMOTE_EVERY) for k in lengths])
assert plain[-1, 1] > 9 * cured[-1, 1]

# %%
fig, ax = plt.subplots(figsize=(9, 4.6))
for errors, kind, name in ((plain, "draft", "14 bits all the way"), (cured, "content", "to FP32 every 128")):
    ax.plot(lengths, errors[:, 0], color=COLORS[kind], marker="o", label=f"{name}: max")
    ax.plot(lengths, errors[:, 1], color=COLORS[kind], marker="o", linestyle="--", label=f"{name}: rms")
ax.set(xscale="log", yscale="log", xlabel="K, elements in the sum", ylabel="error / rms of the outputs")
ax.set_xticks(lengths, lengths)
ax.minorticks_off()
ax.set_title(f"At K = 4096 promotion cuts the rms error {plain[-1, 1] / cured[-1, 1]:.0f}-fold, to {cured[-1, 1]:.3%}")
ax.legend(ncol=2)
plt.show()

# %% [markdown]
# The maximum depends on how many outputs there are to be unlucky. Over 1024 x 1024 outputs this model gives **2.0 %**
# without promotion and **0.08 %** with it (`python accumulation_precision.py --paper`): the report's "nearly 2 %". The
# report gives neither its matrix sizes nor its metric, so the agreement is with our reading of it. The rms does not
# depend on the number of outputs.
#
# ## How often to promote

# %%
a, b = gaussian_operands(64, 4096)
intervals = [32, 64, 128, 256, 512, 1024, 2048, 4096]
curve = [accumulation_error(a, b, promote_every=n)[1] for n in intervals]
fig, ax = plt.subplots(figsize=(8.5, 3.8))
ax.plot(intervals, curve, color=COLORS["content"], marker="o")
ax.scatter([128], [curve[2]], s=160, facecolor="none", edgecolor=COLORS["shared"], linewidth=2.5, zorder=3)
ax.set(xscale="log", yscale="log", xlabel="$N_C$, elements between promotions", ylabel="rms error / rms of outputs")
ax.set_xticks(intervals, intervals)
ax.minorticks_off()
ax.set_title(f"From 128 on, doubling $N_C$ costs up to {max(np.array(curve[3:]) / curve[2:-1]):.1f} times the error")
plt.show()

# %% [markdown]
# 128 is also the width of a tile, at whose end the partial sum leaves the tensor core anyway to be multiplied by its
# scales. The promotion comes almost for free.
#
# ## What we have, and what comes next
#
# A product whose only noticeable error is that of its operands. So which format should the operands have?
# `mantissa_exponent.ipynb`.
#
# ## Exercises
#
# **1.** All products positive (say, after a ReLU): is the drift better or worse?
#
# <details><summary>Solution</summary>
#
# Far worse, even relative to the larger result: every cut points the same way, so nothing cancels, and the sum, and
# with it the unit, grows like $K$ and not like $\sqrt K$. The next cell measures it. Promotion cures it all the same.
#
# </details>
#
# **2.** Why must the model's integers stay below $2^{24}$?
#
# <details><summary>Solution</summary>
#
# The model adds them in float32, which holds integers exactly up to $2^{24}$. 33 terms below $2^{14}$ stay below
# $2^{19.1}$, so the model itself adds no error.
#
# </details>

# %%
for every in (None, 128):
    largest, rms = accumulation_error(np.abs(a), np.abs(b), promote_every=every)
    print(f"all positive, promotion every {every}: max {largest:.2%}, rms {rms:.2%} of the outputs' rms")
