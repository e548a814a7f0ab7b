# %% [markdown]
# # Which 256 numbers can eight bits say?
#
# **The question.** DeepSeek-V3 multiplies numbers of eight bits. Eight bits make 256 codes, and somebody has to decide
# which number each of them stands for. And then: given a number, which code is nearest, and how is it found without
# trying all 256?
#
# A telegraph line has 256 signals and no others. So there is a **code book**, one number beside each signal. Whoever
# reads looks a signal up: that is easy. Whoever sends must find, for 0.3, the signal whose number lies nearest. A new
# clerk leafs through the whole book for every number. An old clerk never opens it. He has noticed that the book is in
# *order*: write 0.3 as a long row of digits, drop the last ones, round, and what is left **is** the signal. (Chapter 00
# asked what is lost in few bits, and rounded by multiplying and dividing. Here we become the old clerk.)
#
# A float format is such a book, made from two widths. At the end of this notebook one pair of functions reads and
# writes every format of the report, to the bit.

# %%
import numpy as np
from float_formats import (
    BF16,
    E4M3,
    E5M2,
    FORMATS,
    FP16,
    OVERFLOW_TO_NAN,
    SATURATE,
    decode,
    encode,
    round_to,
)

# %%
from utils.drawings_05 import draw_code
from utils.plots_02 import plot_lines
from utils.plots_05 import draw_ruler

# %% [markdown]
# ## Numbers to follow with a pencil
#
# E4M3: one bit of sign, four of exponent, three of mantissa. The exponent field $e$ means $2^{e - 7}$, the mantissa
# field $m$ means $1 + m/8$.
#
# 1. $0.3 = 1.2 \cdot 2^{-2}$. Exponent field $-2 + 7 = 5$. In eighths $1.2$ is $1 + 1.6/8$; the nearest is $m = 2$. So
#    the code is `0 0101 010`, and it says $2^{-2} \cdot 1.25 = 0.3125$.
# 2. Between 16 and 32 the marks are 2 apart. $17$ lies in the middle between $16$ ($m = 0$) and $18$ ($m = 1$): a tie
#    goes to the **even** code, 16. $19$ lies between 18 ($m = 1$) and 20 ($m = 2$): to 20.
# 3. With $e = 0$ there is no leading 1: the numbers are $m/8 \cdot 2^{-6}$, in even steps of $2^{-9} = 0.00195$ down to
#    zero. $0.001$ is half a step and a little more: it becomes $0.00195$. $0.0009$ becomes 0.
# 4. The largest exponent field, 15, is not kept for infinity: $2^8 \cdot 1.75 = 448$ is the largest number. One code of
#    each sign, `1111 111`, is *no number*, NaN.

# %%
for x in (0.3, 17, 19, 0.001, 0.0009, 449):
    code = encode(np.array([float(x)]), E4M3)[0]
    print(f"{x:<7g} -> {code >> 7:b} {code >> 3 & 15:04b} {code & 7:03b} -> {decode(code, E4M3):g}")
draw_code("00101010", "0.3 = 1.2 · 2⁻² becomes 1.25 · 2⁻² = 0.3125")

# %% [markdown]
# ## Build it
#
# The new clerk. Let the format have $E$ exponent bits and $M$ mantissa bits.


# %%
def read_code(code, E=4, M=3):
    """What a code stands for: the rule of the pencil, for any widths (the top code is left out of the account)."""
    sign, e, m = code >> (E + M), code >> M & (2**E - 1), code & (2**M - 1)
    bias = 2 ** (E - 1) - 1
    size = 2.0 ** (e - bias) * (1 + m / 2**M) if e > 0 else 2.0 ** (1 - bias) * (m / 2**M)
    return -size if sign else size


# %%
BOOK = np.array([read_code(code) for code in range(127)])  # 0x7F is NaN; the other half are the negatives


def leaf_through(x):
    """The nearest code of the book; of two equally near ones the even one."""
    gap = np.abs(BOOK - x)
    near = np.flatnonzero(gap == gap.min())
    return int(near[near % 2 == 0][0] if len(near) > 1 else near[0])


# %%
rng = np.random.default_rng(0)
x = np.concatenate([np.exp(rng.uniform(-9, 7, 2000)), (BOOK[1:] + BOOK[:-1]) / 2])  # and every tie
assert np.array_equal(decode(np.arange(127), E4M3), BOOK)
assert np.array_equal(encode(x, E4M3), [leaf_through(v) for v in x])
print("naive and module agree:", len(x), "numbers, all ties among them")

# %% [markdown]
# ## The derivation: the old clerk
#
# 1. **Codes are in order.** $e$ stands left of $m$, so of two positive numbers the larger one has the larger code, and
#    the next code is the next number. After $1.111_2$ comes the next power of two: the carry goes into the exponent by
#    itself.
# 2. **A float is already such a row of digits.** FP32 keeps $x = 1.f \cdot 2^p$ as an integer: sign, $p$, and 23 bits
#    of $f$. To write it in $M$ bits, drop $k = 23 - M$ of them.
# 3. **Nearest, ties to even, by whole numbers.** Let $\sigma$ be the significand, the integer $2^{23} \cdot 1.f$, and
#    odd the last bit that stays. Then $\lfloor(\sigma + 2^{k-1} - 1 + \text{odd}) / 2^k\rfloor$: below half nothing
#    reaches the next integer, above half everything does, and exactly half reaches it only if odd is 1.
# 4. **Near zero** the steps stop shrinking. For each power of two that $x$ lies below the smallest normal number, one
#    more bit is dropped, and the same line makes the subnormal numbers.
# 5. **The top.** The layouts of the IEEE standard (FP16, and likewise E5M2 and BF16) give the whole last exponent to
#    infinity and NaN. E4M3 gives up one code of each sign; otherwise it would end at 240.


# %%
def old_clerk(x, E=4, M=3):
    """A positive float32, below the top, to its code: shifts and sums of integers, no book."""
    bits = int(np.float32(x).view(np.uint32))
    p, significand = (bits >> 23) - 127, (bits & (2**23 - 1)) | 2**23
    lowest = 2 - 2 ** (E - 1)  # the exponent of the smallest normal number
    k = 23 - M + max(0, lowest - p)
    if k > 24:
        return 0  # not even half of the first step
    odd = significand >> k & 1
    rounded = (significand + 2 ** (k - 1) - 1 + odd) >> k
    return ((max(p, lowest) - lowest) << M) + rounded


# %%
small = np.float32(x[x < 448])  # below the top
assert [old_clerk(v) for v in small] == encode(small, E4M3).tolist()
assert [old_clerk(v, 5, 2) for v in small] == encode(small, E5M2).tolist()
print("old clerk, new clerk and module agree")

# %% [markdown]
# NumPy has one small float of its own, FP16. Each of its 65,536 codes must be read as NumPy reads it, and every number
# must come back to its code. (The tests do this for E4M3, E5M2, BF16 and UE8M0, which is all exponent, against
# `ml_dtypes`, and against PyTorch.)

# %%
codes = np.arange(65536, dtype=np.uint16)
theirs = codes.view(np.float16).astype(np.float32)
finite = np.isfinite(theirs)
assert np.array_equal(decode(codes[finite], FP16), theirs[finite])
assert np.array_equal(encode(theirs[finite], FP16), codes[finite])
print(f"{'format':8}{'bits':>5}{'bias':>6}{'largest':>13}{'smallest normal':>17}{'smallest':>12}")
for fmt in FORMATS:
    print(f"{fmt.name:8}{fmt.bits:5}{fmt.bias:6}{fmt.largest:13.5g}{fmt.smallest_normal:17.3g}{fmt.smallest:12.3g}")

# %% [markdown]
# ## The experiment: where are the marks?

# %%
values = decode(np.arange(E4M3.largest_code + 1), E4M3)
half = values[len(values) // 2]
draw_ruler(
    values, values < E4M3.smallest_normal, f"Half of E4M3's {len(values)} non-negative numbers lie below {half:g}"
)

# %% [markdown]
# The gap between neighbours doubles at every power of two, so the *relative* gap stays between 1/15 and 1/8. Below the
# smallest normal number it stops shrinking, and the accuracy is lost bit by bit.
#
# Was it worth the trouble? The obvious other book has 127 marks evenly from 0 to 448, as eight-bit integers with a
# scale have. We ask both books for numbers of every size, ten thousand of them.

# %%
x = np.exp(np.random.default_rng(1).uniform(np.log(1e-4), np.log(448), 10_000))
even = np.round(x * 127 / 448) * 448 / 127
books = {"E4M3": round_to(x, E4M3), "E5M2": round_to(x, E5M2), "127 even marks": even}
edges = np.logspace(-4, np.log10(448), 40)
place, middle = np.digitize(x, edges) - 1, np.sqrt(edges[:-1] * edges[1:])
error = {n: [np.mean(np.abs(b - x)[place == i] / x[place == i]) for i in range(39)] for n, b in books.items()}

# %%
lost = {name: np.mean(b == 0) for name, b in books.items()}
title = (
    f"Over 6.7 decades even marks lose {lost['127 even marks']:.0%} of the numbers entirely, E4M3 {lost['E4M3']:.0%}"
)
curves = {name: (middle, e) for name, e in error.items()}
plot_lines(curves, ["content", "#9DB9DC", "ink"], title, "number", "mean relative error", log="xy")

# %% [markdown]
# E4M3 is at 2 to 3 % wherever its normal numbers are; E5M2 is half as accurate and reaches further down; even marks are
# better near the top and useless below it. What none of the books can do is choose where a tensor should lie on it:
# gradients around $10^{-6}$ are all zero in E4M3. That is the next notebook.
#
# ## Beyond the largest: two policies
#
# Libraries disagree about what 1000 becomes in E4M3. `saturate` clamps to 448; `nan` gives NaN from the first number
# that would have rounded to the missing code. (464 is the tie and still goes down to 448.) A NaN in training reaches
# every weight in one step, so whoever casts, clamps first. Here `encode` saturates unless told otherwise.

# %%
beyond = np.array([448, 464, 465, 1000, np.inf])
for policy in (SATURATE, OVERFLOW_TO_NAN):
    print(f"{policy:9}", decode(encode(beyond, E4M3, overflow=policy), E4M3))

# %% [markdown]
# ## Change this, predict, run
#
# Take the subnormal numbers away: the smallest number above zero is then the smallest normal one, $2^{-6}$, and nothing
# lies between it and zero. Predict: does a tensor of normal random numbers get worse, if it is scaled so that its
# largest is 448? And if its largest is 0.4?
#
# <details><summary>Afterwards</summary>
#
# With the largest at 448 there is no difference: nearly all numbers are normal ones. With the largest at 0.4 every
# fourth or so lies below $2^{-6}$. Subnormal numbers carry on for three more powers of two, coarser with each; without
# them the error grows by a third, and nearly eight times as many numbers vanish. So they are a safety net below the
# normal range. But the scale is the better answer: it moves the tensor up to where the net is not needed.
#
# </details>


# %%
def without_subnormals(x):
    """E4M3 with nothing between zero and the smallest normal number."""
    first = E4M3.smallest_normal
    return np.where(np.abs(x) < first, np.round(x / first) * first, round_to(x, E4M3))


x = np.random.default_rng(2).standard_normal(100_000)
for largest in (448, 0.4):
    scaled = x * largest / np.abs(x).max()
    for name, back in {"E4M3": round_to(scaled, E4M3), "no subnormals": without_subnormals(scaled)}.items():
        error = np.linalg.norm(back - scaled) / np.linalg.norm(scaled)
        print(f"largest {largest:<4g} {name:14} relative error {error:.2%}, became zero {np.mean(back == 0):.1%}")

# %% [markdown]
# ## What you can now do
#
# Read and write a code of any small float by hand; round to nearest, ties to even, with shifts and sums alone; say what
# the last code of E4M3 is spent on, and what 1000 becomes.
#
# ## Exercises
#
# Graded: `decode_e4m3`, `round_half_to_even` (`make check CH=05`). By thought alone:
#
# 1. Twice as many mantissa bits as E4M3 and no other change: what would the largest number of an "E4M6 fn" be?
#
# <details><summary>Solution</summary>
#
# The top exponent is $15 - 7 = 8$, and only the all-ones mantissa is lost: $2^8 (1 + 62/64) = 504$.
# `FloatFormat("E4M6", 4, 6, "fn").largest` agrees.
#
# </details>
#
# 2. Rounding twice, float64 to float32 to E4M3, can differ from rounding once. Find a number for which it does.
#
# <details><summary>Solution</summary>
#
# Take a tie of E4M3 whose even neighbour lies below, and go up by less than float32 can see: $17 + 2^{-40}$ lies above
# the tie between 16 and 18, so rounded once it is 18; float32 makes it 17, and the tie goes to the even code, 16. The
# cell below shows it.
#
# </details>

# %%
hair = np.array([17 + 2.0**-40])
print("once:", round_to(hair, E4M3)[0], "  by way of float32:", round_to(hair.astype(np.float32), E4M3)[0])
print("and BF16 keeps", BF16.mantissa_bits + 1, "significant bits: 257 becomes", round_to(np.array([257.0]), BF16)[0])
