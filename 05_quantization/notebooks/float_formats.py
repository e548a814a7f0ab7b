# %% [markdown]
# # Which 256 numbers can eight bits say?
#
# DeepSeek-V3 multiplies numbers of eight bits. Eight bits make 256 codes, and a *format* decides which numbers they
# stand for. This notebook builds any such format from two widths, and rounds to it with integer arithmetic alone.
#
# In this chapter's drawings **blue** is what an FP8 code says, **gold** a scale or an exponent, **grey** what is kept
# exact, **crimson** what goes wrong.

# %%
import matplotlib.pyplot as plt
import numpy as np
from float_formats import BF16, E4M3, E5M2, FORMATS, FP16, OVERFLOW_TO_NAN, SATURATE, decode, encode, round_to

from utils.whiteboard import COLORS, arrow, board, box, note, use_style

use_style()

# %% [markdown]
# ## The whiteboard: 0.3 on its way into eight bits

# %%
fig, ax = board(12, 3.5)
for i, (bit, kind) in enumerate(zip("00101010", ["ink"] + ["shared"] * 4 + ["content"] * 3)):
    box(ax, 1.4 + 1.05 * i, 1.9, bit, kind, width=0.9, height=0.9, size=16)
note(ax, 1.4, 0.95, "sign", "ink")
note(ax, 4.02, 0.95, "exponent field 5, so $2^{5-7} = 1/4$", "shared")
note(ax, 7.7, 0.95, "mantissa field 2: $1 + 2/8$", "content")
note(ax, 5, 3.05, "$0.3 = 1.2 \\cdot 2^{-2}$, and 1.2 lies between $1 + 1/8$ and $1 + 2/8$", size=12)
note(ax, 10.9, 1.9, "= 0.3125", "content", size=14)
plt.show()

# %% [markdown]
# ## The rule, in five steps
#
# Let the format have $E$ exponent bits and $M$ mantissa bits, and let $e$ and $m$ be the two fields.
#
# 1. **Normal numbers** ($e > 0$): $(-1)^s\, 2^{\,e-b}\,(1 + m/2^M)$ with the bias $b = 2^{E-1}-1$. The leading 1 costs
#    no bit, because it is always there.
# 2. **Subnormal numbers** ($e = 0$): $(-1)^s\, 2^{\,1-b}\, m/2^M$. Without a leading 1 the last steps down to zero are
#    even; without these there would be a hole around zero.
# 3. **The top.** IEEE layouts (E5M2, BF16, FP16) give the whole last exponent to infinity and NaN. E4M3 gives up a
#    single code for NaN and none for infinity: its largest value is $1.75 \cdot 2^8 = 448$ and not 240.
# 4. **Codes are in order.** $e$ stands left of $m$, so of two positive numbers the larger has the larger code. Rounding
#    up past $1.111_2$ therefore carries into the next exponent by itself.
# 5. **Rounding.** Drop $k$ bits of a significand $\sigma$: $\lfloor(\sigma + 2^{k-1} - 1 + \text{odd})/2^k\rfloor$,
#    where odd is the last bit that stays. That is nearest, with ties to the even code. Below the smallest normal, $k$
#    grows by one for each missing power of two, and the same line makes the subnormals.

# %%
print(f"{'format':8}{'bits':>5}{'bias':>6}{'largest':>13}{'smallest normal':>17}{'smallest':>12}")
for fmt in FORMATS:
    print(f"{fmt.name:8}{fmt.bits:5}{fmt.bias:6}{fmt.largest:13.5g}{fmt.smallest_normal:17.3g}{fmt.smallest:12.3g}")

# %% [markdown]
# ## Five lines to check it
#
# NumPy has one small float of its own, FP16. Every one of its 65,536 codes must decode to NumPy's value, and every
# value must come back to its code. (The tests do this for E4M3, E5M2, BF16 and UE8M0 against `ml_dtypes`, and against
# PyTorch.)

# %%
codes = np.arange(65536, dtype=np.uint16)
theirs = codes.view(np.float16).astype(np.float32)
finite = np.isfinite(theirs)
print("values that differ:", int((decode(codes[finite], FP16) != theirs[finite]).sum()))
print("codes that differ: ", int((encode(theirs[finite], FP16) != codes[finite]).sum()))

# %% [markdown]
# ## The ruler: every number that E4M3 can say

# %%
values = decode(np.arange(E4M3.largest_code + 1), E4M3)
subnormal = values < E4M3.smallest_normal
half = values[len(values) // 2]

# %%
fig, (top, bottom) = plt.subplots(2, 1, figsize=(10, 3.6))
for axis, start in ((top, 0), (bottom, 1)):
    for mask, kind in ((~subnormal, "content"), (subnormal, "draft")):
        axis.vlines(values[start:][mask[start:]], 0, 1, color=COLORS[kind], linewidth=1)
    axis.set_yticks([])
    axis.spines["left"].set_visible(False)
    axis.grid(visible=False)
top.set_title(f"Half of E4M3's {len(values)} non-negative numbers lie below {half:.3g}; the last is {values[-1]:.0f}")
bottom.set_xscale("log", base=2)
bottom.set_xlabel("the same numbers on a logarithmic ruler; crimson: the seven subnormals")
fig.tight_layout()
plt.show()

# %% [markdown]
# The gap between neighbours doubles at every power of two, so the *relative* gap stays between 1/15 and 1/8. Below the
# smallest normal number the gap stops shrinking and the relative accuracy is lost, bit by bit.

# %%
fig, ax = plt.subplots(figsize=(9, 4.2))
for fmt, kind in ((E4M3, "content"), (E5M2, "shared")):
    v = decode(np.arange(1, fmt.largest_code + 1), fmt)
    ax.step(v[:-1], np.diff(v) / v[:-1], where="post", color=COLORS[kind], label=fmt.name)
normal = values[:-1] >= E4M3.smallest_normal
worst = (np.diff(values)[normal] / values[:-1][normal]).max()
assert worst == 1 / 8
ax.set(xscale="log", yscale="log", xlabel="value", ylabel="gap to the next / value")
ax.set_title(f"Above {E4M3.smallest_normal} E4M3 is never coarser than 1/{1 / worst:.0f}; below it fades out")
ax.legend()
plt.show()

# %% [markdown]
# ## Beyond the largest: two policies
#
# Hardware and libraries disagree about what 1000 becomes in E4M3. `saturate` clamps to 448; `nan` overflows to NaN from
# the first number that would have rounded to the missing code (464 is the tie and still goes down to 448). A NaN in
# training spreads to every weight in one step, so whoever casts, clamps first. Here `encode` saturates unless told
# otherwise.

# %%
beyond = np.array([448, 464, 465, 1000, np.inf])
for policy in (SATURATE, OVERFLOW_TO_NAN):
    print(f"{policy:9}", decode(encode(beyond, E4M3, overflow=policy), E4M3))

# %% [markdown]
# ## What we have, and what comes next
#
# One pair of functions for every format of the report. What they cannot do is choose where on the ruler a tensor should
# lie: numbers around $10^{-6}$ are all zero in E4M3. The next notebook moves each small group of numbers to where the
# ruler is good: `fine_grained_quantization.ipynb`.
#
# ## Exercises
#
# **1.** Twice as many mantissa bits as E4M3, and no other change: what would the largest value of an "E4M6 fn" be?
#
# <details><summary>Solution</summary>
#
# The top exponent is $15 - 7 = 8$, and only the all-ones mantissa is lost: $2^8 (1 + 62/64) = 504$.
# `FloatFormat("E4M6", 4, 6, "fn").largest` agrees.
#
# </details>
#
# **2.** Rounding twice, float64 to float32 to E4M3, can differ from rounding once. Find a number for which it does.
#
# <details><summary>Solution</summary>
#
# Take a tie of E4M3 whose even neighbour is below, and go up by less than float32 can see: `17 + 2**-40` lies above the
# tie between 16 and 18, so once-rounded it is 18; float32 makes it 17, and the tie goes to the even code, 16.
#
# </details>

# %%
hair = np.array([17 + 2.0**-40])
print("once:", round_to(hair, E4M3)[0], "  by way of float32:", round_to(hair.astype(np.float32), E4M3)[0])
print("and BF16 keeps", BF16.mantissa_bits + 1, "significant bits: 257 becomes", round_to(np.array([257.0]), BF16)[0])
