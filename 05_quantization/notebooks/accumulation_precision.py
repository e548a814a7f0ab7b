# %% [markdown]
# # Where do two percent go in an exact sum?
#
# **The question.** The product of two E4M3 numbers has eight bits. Adding up such products in 32 bits should lose
# nothing worth mentioning. Yet DeepSeek-V3's report measured errors of nearly 2 % at sums of 4,096 terms on the H800,
# and moved the sum out of the tensor core every 128 terms. Where do two percent go?
#
# A market stall has a till with a display of only four digits. In the morning it adds cents: 0.45, 3.20, 12.75. At noon
# it shows 812.3, and a customer pays 0.45. The till can show 812.7 or 812.8, never 812.75: a few cents fall off. In the
# evening it shows 9,214, and everything below a whole coin is lost, customer after customer, *always to the same side*,
# for the till cuts and does not round. The stall-holder's cure costs nothing: every 128 customers she carries the day's
# takings to the safe, writes them in a book with room for all digits, and starts the till again at zero.
#
# The till is the tensor core, the part of a GPU (V3's is the H800) that multiplies small matrices and adds up. Its
# display has 14 bits, and the book is an ordinary FP32 number beside it. This notebook builds the till, finds the two
# percent, and asks why 128.

# %%
import json
from pathlib import Path

import accumulation_precision
import numpy as np
from accumulation_precision import (
    PROMOTE_EVERY,
    accumulation_error,
    add_group,
    gaussian_operands,
    multiply_on_tensor_core,
)

from utils.drawings_05 import draw_alignment
from utils.plots_05 import plot_doublings

# %%
draw_alignment()

# %% [markdown]
# Four terms in binary, six bits kept. They are shifted until their points stand below each other; what lies right of
# the line is dropped. The larger the sum, the further right the products start, and the less of them stays.
#
# ## Numbers to follow with a pencil
#
# Six bits are kept. The products are $64$, $1.99$, $-1.99$ and $0.5$, the sum so far is 0.
#
# 1. The largest magnitude is 64, so the first of the six bits is worth 64 and the last $64 / 2^5 = 2$: the **unit**.
# 2. Each term is cut to a multiple of 2, towards zero: $64,\ 0,\ 0,\ 0$. The sum is 64; exact would be $64.5$.
# 3. With seven bits the unit is 1: $64,\ 1,\ -1,\ 0$. Still 64. With eight it is $0.5$: $64,\ 1.5,\ -1.5,\ 0.5$: exact.
#
# And the till in the evening: the sum so far is $2^{14}$, then come 32 products of 0.9. With 14 bits the unit is
# $2^{14-13} = 2$. Each 0.9 is cut to 0. Together they are 28.8, and all of it is gone.

# %%
terms = np.array([[64.0], [1.99], [-1.99], [0.5]], np.float32)
for kept_bits in (6, 7, 8, 14):
    got = add_group(np.zeros(1, np.float32), terms.copy(), kept_bits)[0]
    print(f"{kept_bits:2} bits: unit {64 / 2 ** (kept_bits - 1):.4g}, sum {got}   (exact: 64.5)")
print("2^14 and 32 times 0.9:", add_group(np.float32([2**14]), np.full((32, 1), 0.9, np.float32), 14)[0])

# %% [markdown]
# ## Build it
#
# The hardware adds 32 products at a time, together with the sum so far. The report says "around 14 bits" and that lower
# bits are cut; that the sum so far is cut with the products is our reading (it reproduces the report's numbers, below).


# %%
def till(total, products, kept_bits=14):
    """Add a group of products to the sum: align all to the largest, cut, add."""
    terms = [total, *products]
    largest = max(abs(term) for term in terms)
    if largest == 0:
        return 0.0
    unit = 2.0 ** (np.floor(np.log2(largest)) - (kept_bits - 1))
    return unit * sum(np.trunc(term / unit) for term in terms)


# %%
def naive_dot(a, b, every=None):
    """A sum of products through the till; `every` so many terms it is emptied into the book."""
    book = total = 0.0
    for k in range(0, len(a), 32):
        total = till(total, a[k : k + 32] * b[k : k + 32])
        if every and (k + 32) % every == 0:
            book, total = np.float32(book + total), 0.0
    return book + total


# %%
a, b = gaussian_operands(6, 1024)
for every in (None, 128):
    naive = [[naive_dot(row.astype(float), column.astype(float), every) for column in b] for row in a]
    assert np.array_equal(np.float32(naive), multiply_on_tensor_core(a, b, promote_every=every))
print("naive and module agree, to the last bit")

# %% [markdown]
# ## The derivation
#
# 1. Let $2^p$ be the largest power of two not above the largest magnitude of a group. With 14 bits the unit is
#    $u = 2^{p - 13}$.
# 2. Every term is cut to a multiple of $u$, towards zero: it loses between 0 and $u$, on average $u/2$.
# 3. In the morning $u$ is set by the largest product, and harmless. A sum of $k$ products with mean zero grows like
#    $\sqrt k$, and $u$ grows with it.
# 4. The cuts always take from the magnitude. Those of the products have both signs and partly cancel. But the sum
#    itself is cut in every group too, always towards zero, and that pull adds up.
# 5. So each group adds an error of the order of $u \propto \sqrt k$. If these were independent, they would add up over
#    $K$ terms to about $\sqrt K \cdot \sqrt K = K$, while the result is about $\sqrt K$: the relative error grows like
#    $\sqrt K$ at least, and with the pull of step 4 somewhat faster.
# 6. **The cure, *promotion*.** After every $N_C = 128$ terms the sum goes to FP32, and the till starts again from zero.
#    Then $u$ stays what it was in the first 128 terms, and what remains of the error averages out over the parts.
#
# ## Which error?
#
# With data of mean zero some outputs are nearly zero, and error over output is then anything at all. We divide by the
# root mean square (rms) of all outputs instead. Here is why:

# %%
a, b = gaussian_operands(96, 4096)
exact = a.astype(np.float64) @ b.T.astype(np.float64)
error = np.abs(multiply_on_tensor_core(a, b) - exact)
print(f"max |error| / |output|       {np.max(error / np.abs(exact)):8.1%}   (decided by the smallest output)")
print(f"max |error| / rms of outputs {np.max(error) / np.sqrt(np.mean(exact**2)):8.2%}")

# %% [markdown]
# ## The experiment: the day goes on

# %%
lengths = [128, 256, 512, 1024, 2048, 4096]
plain = np.array([accumulation_error(a[:, :k], b[:, :k]) for k in lengths])
cured = np.array([accumulation_error(a[:, :k], b[:, :k], promote_every=PROMOTE_EVERY) for k in lengths])
grown = np.polyfit(np.log(lengths[2:]), np.log(plain[2:, 1]), 1)[0]
assert plain[-1, 1] > 9 * cured[-1, 1]
print(f"from K = 512 on the rms error grows like K to the power of {grown:.2f} without promotion")

# %%
names = {"14 bits all the way": plain, "to FP32 every 128": cured}
curves = {f"{n}: {what}": (lengths, e[:, i]) for n, e in names.items() for i, what in enumerate(("largest", "rms"))}
title = f"At K = 4096 promotion cuts the rms error {plain[-1, 1] / cured[-1, 1]:.0f}-fold, to {cured[-1, 1]:.3%}"
kinds = ["wrong", "#C9A98C", "content", "#9DB9DC"]
plot_doublings(curves, kinds, title, "K, terms in the sum", "error / rms of the outputs")

# %% [markdown]
# **And the report's two percent?** The *largest* error depends on how many outputs there are to be unlucky; the rms
# does not. So the number of outputs must be said:

# %%
a, b = gaussian_operands(256, 4096)
for n in (32, 64, 128, 256):
    (most, rms), (cured_most, _) = accumulation_error(a[:n], b[:n]), accumulation_error(a[:n], b[:n], promote_every=128)
    print(f"{n:>3} x {n:<3} outputs: largest {most:.2%}, rms {rms:.3%}; with promotion the largest is {cured_most:.3%}")

# %% [markdown]
# It creeps up with the number of outputs. At 1024 x 1024 outputs and $K = 4096$ this till gives **2.0 %** without
# promotion and **0.08 %** with it (`python accumulation_precision.py --paper`, half a minute). That is the report's
# "nearly 2 %". The report gives neither its sizes nor its measure, so the agreement is with our reading of it.
#
# **And the kernel itself?** The package has a kernel for FP8 products that is written for a GPU
# ([docs/fp8.md](../docs/fp8.md)). It can be run here without one, step by step in an interpreter, and this till put in
# the place of the tensor core. `make kernel-errors` does so and writes down what comes out; here it is beside the till.

# %%
told = json.loads((Path(accumulation_precision.__file__).parent / "kernel_errors.json").read_text())
for n, kernel in told["outputs"].items():
    print(f"kernel, {n:>4} x {n:<4}: largest {kernel['largest, without']:.2%}, ", end="")
    print(f"with promotion {kernel['largest, every 128']:.3%}")
a, b = (x[:64] for x in gaussian_operands(1024, 4096))  # the kernel's own operands
for every, name in ((None, "without"), (128, "every 128")):
    assert np.isclose(accumulation_error(a, b, promote_every=every)[0], told["outputs"]["64"][f"largest, {name}"])
print("the till and the kernel lose the same")

# %% [markdown]
# Not nearly the same: every one of the kernel's sums is the till's, to the last bit (a test of the package holds it).
#
# ## How often to the safe?

# %%
a, b = gaussian_operands(256, 4096)
intervals = [32, 64, 128, 256, 512, 1024, 2048, 4096]
curve = [accumulation_error(a[:64], b[:64], promote_every=n)[1] for n in intervals]
steepest = max(np.array(curve[3:]) / curve[2:-1])
title = f"Each doubling of the interval from 128 on costs up to {steepest:.1f} times the error"
labels = "$N_C$, terms between two promotions", "rms error / rms of the outputs"
plot_doublings({"K = 4096": (intervals, curve)}, ["content"], title, *labels)

# %% [markdown]
# The curve has no elbow that would single out 128. But 128 is the width of a tile: at its end the partial sum leaves
# the tensor core anyway, to be multiplied by its scales. The promotion comes almost for free.
#
# ## Change this, predict, run
#
# So far products had both signs. Let them all be positive, as behind a ReLU. The sum is then much larger, and errors
# are measured against it. Predict: is the till, without promotion, better or worse than before? By which factor? And
# with promotion?
#
# <details><summary>Afterwards</summary>
#
# Far worse, some fifty times by the rms, even against the larger result. Now every cut points the same way, and nothing
# cancels; and the sum grows like $K$ and not like $\sqrt K$, and the unit with it. The till is worst for the
# most harmless-looking data. Promotion cures it all the same, a hundredfold.
#
# </details>

# %%
for name, (left, right) in {"both signs": (a[:64], b[:64]), "positive": (np.abs(a[:64]), np.abs(b[:64]))}.items():
    for every in (None, 128):
        largest, rms = accumulation_error(left, right, promote_every=every)
        print(f"{name:10} promotion every {every!s:4}: largest {largest:7.2%}, rms {rms:7.3%} of the outputs' rms")

# %% [markdown]
# ## What you can now do
#
# Build a sum as a tensor core does it, to the bit; explain why its error grows with the length of the sum, and faster
# when all products are positive; say what must stand beside a "largest error" for it to mean anything.
#
# ## Exercises
#
# Graded: `add_on_tensor_core` (`make check CH=05`). By thought alone:
#
# 1. Why must the module's integers stay below $2^{24}$?
#
# <details><summary>Solution</summary>
#
# It adds them in float32, which holds integers exactly up to $2^{24}$. 33 terms below $2^{14}$ stay below $2^{19.1}$,
# so the model of the till adds no error of its own.
#
# </details>
#
# 2. The till rounds to nearest and does not cut. Which steps of the derivation change?
#
# <details><summary>Solution</summary>
#
# Steps 2 and 4: the average loss is zero and the pull towards zero is gone. What stays is step 3: the unit still grows
# with the sum, so the error still grows like $\sqrt K$, only from a smaller start.
#
# </details>
#
# 3. One long sum is split between two workers, who take every second group of 32, and their two sums are added at the
#    end. Does that help the till?
#
# <details><summary>Solution</summary>
#
# A little: each till sees half of the terms, so its sum is $\sqrt 2$ times smaller, and so is its unit. The promotion
# is the same idea, carried through: 32 tills of 128 terms.
#
# </details>
