# %% [markdown]
# # Number formats on one page
#
# **The question.** A weight is stored in 32, 16 or 8 bits. What exactly is lost, and when does it matter?
#
# A surveyor has two instruments. One is a long tape with coarse marks, the other a short ruler with fine ones. With a
# fixed number of marks he can have reach or fineness, not both. A **float** is the same bargain, made cleverly: the
# marks are fine near zero and grow coarser outwards, always with the same *relative* fineness. Its bits are divided
# between two fields: the **exponent** says how far out (the reach), the **mantissa** which mark (the fineness). One
# more bit is the sign.

# %%
import numpy as np
from number_formats import FORMATS, add_steps, round_number, split_float, step_near

from utils.drawings_00 import draw_bits
from utils.plots_00 import draw_rulers
from utils.plots_02 import plot_lines

# %%
draw_bits({name: (f.exponent_bits, f.mantissa_bits) for name, f in FORMATS.items()})

# %% [markdown]
# FP32 is what programs compute in by default. BF16 is its first half: the same reach, but two to three decimal digits
# instead of seven. FP16 spends its 16 bits the other way, and ends at 65,504. The two last have 8 bits; DeepSeek-V3
# multiplies in E4M3 (four exponent bits, three mantissa bits).
#
# ## Numbers to follow with a pencil
#
# $6.5 = 4 \cdot 1.625 = 2^2 \cdot (1 + \tfrac12 + \tfrac18)$. The exponent is 2, the mantissa's bits are $101$: a half,
# no quarter, an eighth. It fits three mantissa bits exactly.
#
# Now $6.6 = 2^2 \cdot 1.65$. With three bits the mantissa moves in steps of $\tfrac18$: $1.625$ or $1.75$. The nearer
# is $1.625$, so 6.6 becomes 6.5. Between 4 and 8 the marks are $2^2 \cdot \tfrac18 = 0.5$ apart, between 8 and 16 a
# whole 1.

# %%
print("6.5 =", split_float(6.5), " (sign, exponent, mantissa)")
e4m3 = FORMATS["E4M3"]
for x in (6.5, 6.6, 6.8, 13.4, 0.1, 500.0):
    print(f"{x:g} becomes {round_number(np.array(x), e4m3):g}; marks are {step_near(np.array(x), e4m3):g} apart here")

# %% [markdown]
# 500 becomes infinite: the longest reach of E4M3 is 448. (Hardware can also be told to stop there.)
#
# ## Build it
#
# 1. Find the exponent: the largest power of two not above $|x|$.
# 2. The marks are $2^{\text{exponent} - \text{mantissa bits}}$ apart.
# 3. Divide by that step, round to a whole number, multiply again. (Halves go to the even neighbour, so that errors do
#    not all go one way.)
# 4. Below the smallest exponent the marks stay as far apart as there, evenly down to zero.


# %%
def round_to_float(x, exponent_bits, mantissa_bits):
    """Round one number to the nearest mark of a float format, as if its reach had no upper end."""
    if x == 0:
        return 0.0
    lowest = 2 - 2 ** (exponent_bits - 1)
    exponent = max(int(np.floor(np.log2(abs(x)))), lowest)
    step = 2.0 ** (exponent - mantissa_bits)
    return round(x / step) * step  # Python's round sends halves to even


# %%
rng = np.random.default_rng(0)
numbers = rng.standard_normal(2000) * 10.0 ** rng.integers(-6, 3, size=2000)
for name in ("BF16", "FP16", "E5M2"):
    fmt = FORMATS[name]
    naive = np.array([round_to_float(x, fmt.exponent_bits, fmt.mantissa_bits) for x in numbers])
    assert np.array_equal(naive, round_number(numbers, fmt))
assert np.array_equal(round_number(numbers, FORMATS["FP32"]), numbers.astype(np.float32))
assert np.array_equal(round_number(numbers, FORMATS["FP16"]), numbers.astype(np.float16))
print("naive and module agree; FP32 and FP16 are those of NumPy")

# %%
marks = {name: np.unique(round_number(np.linspace(0, 4, 4001), FORMATS[name])) for name in ("E5M2", "E4M3", "BF16")}
draw_rulers(marks, "From each power of two to the next the marks are twice as far apart")

# %% [markdown]
# The **relative** error is the same everywhere: at most half a step, which is $2^{-(\text{mantissa bits} + 1)}$ of the
# number: 6 % in E4M3, 0.4 % in BF16, 0.000006 % in FP32.
#
# ## The experiment: a weight that cannot move
#
# Half a step: that has a consequence which is easily overlooked. Near 1, the marks of BF16 are $2^{-7} = 0.0078$ apart.
# Add 0.001, and the nearest mark is the one you came from. Add it again: the same. We let a weight of 1 take a thousand
# steps of 0.001, as training would, and round after each.

# %%
names, kinds = ["FP32", "FP16", "BF16", "E4M3"], ["content", "ink", "wrong", "wrong"]
walks = {name: (range(1001), add_steps(1.0, 0.001, 1000, FORMATS[name])) for name in names[:3]}
ends = {name: values[-1] for name, (_, values) in walks.items()}
assert ends["BF16"] == 1.0
assert abs(ends["FP32"] - 2) < 1e-4
title = f"1,000 steps of 0.001: FP32 arrives at {ends['FP32']:.2f}, BF16 stays at 1"
plot_lines(walks, kinds, title, "step", "weight")

# %% [markdown]
# So a model may *compute* in few bits and must *remember its weights* in many. DeepSeek-V3 multiplies in FP8, keeps
# most other numbers in BF16, and steps on a master copy of the weights in FP32 (report, section 3.3). How 8 bits can be
# enough for a product is chapter 05.
#
# ## Change this, predict, run
#
# At which size does a step of 0.001 begin to move a BF16 weight? Predict from the distance of the marks, then run. Then
# try FP16, whose marks near 1 are $2^{-10} = 0.00098$ apart.
#
# <details><summary>Afterwards</summary>
#
# The step must be more than half the distance. Between 0.125 and 0.25 the marks of BF16 are $2^{-10}$ apart: 0.001
# moves a weight below 0.25 by one mark (and the marks between 0.25 and 0.5, $2^{-9} = 0.00195$ apart, need a step over
# 0.00098: just enough). From 0.5 on, nothing moves.
#
# </details>

# %%
for start in (0.2, 0.3, 0.5, 1.0):
    start = float(round_number(np.array(start), FORMATS["BF16"]))
    print(f"from {start:g}: {add_steps(start, 0.001, 100, FORMATS['BF16'])[-1]:g} after 100 steps of 0.001")

# %% [markdown]
# ## What you can now do
#
# Say what a format can hold from its two widths; round a number to it by hand; recognise the two ways to fail, out of
# reach and between the marks.
#
# ## Exercises
#
# Graded: `round_to_bf16` (`make check CH=00`). By thought alone:
#
# 1. Why is every BF16 number an FP32 number, and how is one cut from the other?
#
# <details><summary>Solution</summary>
#
# Same sign, same exponent, and the first 7 of 23 mantissa bits: drop 16 bits (rounding up where they are more than
# half).
#
# </details>
#
# 2. In which order should $10^4$ numbers of about 1 be added up in FP16?
#
# <details><summary>Solution</summary>
#
# Not one after the other: from 2,048 on the marks are 2 apart, and adding 1 stands still (ties go to even). Add pairs,
# then pairs of pairs, or keep the sum in FP32. Chapter 05 has the same question for products.
#
# </details>
