# %% [markdown]
# # May a scale come from the past?
#
# **The question.** To find the largest number of a tensor costs a pass over it before the pass that divides. *Delayed*
# scaling saves the first pass: it takes the scale from the largest numbers of the last few steps. DeepSeek-V3 pays for
# the pass, **online**, for every tile. What does it get for that?
#
# Two weather services choose a coat for you. One looks at the last sixteen days and picks the coat that the coldest of
# them needed. It never goes outside. The other opens the window. On most days they agree. Then comes one icy day. The
# first service sends you out in a light coat, for there was no ice in its book; and then, for sixteen mild days, it
# makes you wear the heaviest coat that there is.
#
# The icy day is a spike in a tensor, one number much larger than usual. Both halves of the story happen to a delayed
# scale: it is surprised once, and blind afterwards. This notebook sends the spike through both services. And it answers
# a second question that comes with tiles: what if the backward pass needs them the other way round?

# %%
import numpy as np
from fine_grained_quantization import dequantize, quantize, relative_rms
from float_formats import E4M3, E5M6, round_to
from online_quantization import (
    DelayedScale,
    quantize_online,
    report_on,
    spread_activations,
    stream_with_spike,
    turn_tiles,
    turning_error,
)

# %%
from utils.drawings_05 import draw_turning, draw_two_scales
from utils.plots_02 import plot_lines
from utils.plots_05 import plot_turning

# %%
draw_two_scales()

# %% [markdown]
# ## Numbers to follow with a pencil
#
# Three tensors of two numbers: $[0.5, 1]$, then $[0.5, 1000000]$, then $[0.5, 1]$ again. A delayed scale takes the
# largest number of the tensors *before*.
#
# 1. The second tensor is scaled by the first one's maximum: $s = 1/448$. $0.5$ becomes 224 and is read back as 0.5. The
#    million would be 448 million; it is clipped to 448 and read back as **1**.
# 2. The third is scaled by the million: $s = 10^6 / 448 = 2232$. $0.5 / s = 0.000224$, far below half of the first step
#    of E4M3, $2^{-10} = 0.00098$. So $0.5$ is read back as **0**, and so is the 1.
# 3. That goes on until the million has left the history.

# %%
delayed = DelayedScale(history=16)
for largest in (1.0, 1e6, 1.0):
    q = delayed.quantize(np.array([[0.5, largest]]))
    print(f"tensor [0.5, {largest:g}]   scale {q.scales[0, 0]:.3g}   read back {dequantize(q)[0]}")

# %% [markdown]
# ## Build it


# %%
class NaiveDelayed:
    """The first service: a book of the last maxima, and no window."""

    def __init__(self, history=16):
        self.book, self.history = [], history

    def read_back(self, x):
        usual = max(self.book[-self.history :], default=np.abs(x).max())
        self.book.append(np.abs(x).max())
        scale = np.float32(max(usual, 1e-4)) / np.float32(448)
        return round_to(np.float32(x) / scale, E4M3) * scale


# %%
def naive_online(x, width=128):
    """The second service: every 128 numbers of a row by their own maximum."""
    cut = x.reshape(len(x), -1, width)
    scale = np.maximum(np.abs(cut).max(axis=2, keepdims=True), np.float32(1e-4)) / np.float32(448)
    return (round_to(cut / scale, E4M3) * scale).reshape(x.shape)


# %%
stream, ours, mine = stream_with_spike(n_steps=40, spike_at=12, size=1e6), DelayedScale(16), NaiveDelayed(16)
for x, _ in stream:
    assert np.allclose(mine.read_back(x), dequantize(ours.quantize(x)), rtol=1e-6)
    assert np.allclose(naive_online(x), dequantize(quantize_online(x)), rtol=1e-6)
print("naive and module agree on forty tensors")

# %% [markdown]
# ## The derivation
#
# Let ordinary numbers be of size 1 and one number of one tensor be $A \gg 448$ times larger.
#
# 1. **Delayed, at the spike.** The scale is still that of the usual maximum. The spike is clipped to it, the others are
#    unharmed: the tensor is wrong exactly where it was unusual.
# 2. **Delayed, afterwards.** The scale is $A / 448$ for as long as the spike is in the history, $H$ steps. Numbers of
#    size 1 become $448 / A$, and below $2^{-10}$ that is zero. For $H$ steps nearly everything is lost.
# 3. **Online, at the spike.** The same loss, but in the 128 numbers of one tile.
# 4. **Online, afterwards.** Nothing. There is no memory.
#
# ## The experiment: one icy day

# %%
past, now, delayed = [], [], DelayedScale(history=16)
for x, ordinary in stream:
    past.append(report_on(x, delayed.quantize(x), ordinary).error)
    now.append(report_on(x, quantize_online(x), ordinary).error)
blind = int(np.sum(np.array(past) > 0.5))
title = f"One number out of 8,192 blinds the delayed scale for {blind} steps"
curves = {"delayed, last 16 maxima": (range(40), past), "online, 1 x 128": (range(40), now)}
plot_lines(curves, ["wrong", "content"], title, "step", "relative error, spike left out", log="y", ylim=(0.02, 8))

# %% [markdown]
# The online curve rises once, by the loss of a single tile. The spike is huge, a million times; E4M3's own reach
# absorbs anything below some ten thousand (`fine_grained_quantization`), for both kinds of scale.
#
# ## Change this, predict, run
#
# A cautious service takes four times the largest number of the past ("a margin"). And an anxious one shortens its book
# to four days. Predict for each: what happens *at* the spike, and for how long is it blind? Is either as good as
# opening the window?
#
# <details><summary>Afterwards</summary>
#
# The margin gives room for growth up to four times; a million is clipped as before, and it is blind for as long. For
# that room every ordinary step has two powers of two less at the bottom (not seen here, where nothing is that small).
# The short book is blind for four steps, but forgets slow growth sooner as well. Neither sees today.
#
# </details>


# %%
class Margin(NaiveDelayed):
    def read_back(self, x):
        usual = 4 * max(self.book[-self.history :], default=np.abs(x).max())
        self.book.append(np.abs(x).max())
        scale = np.float32(usual) / np.float32(448)
        return round_to(np.float32(x) / scale, E4M3) * scale


for name, service in {"margin of 4": Margin(16), "book of 4 days": NaiveDelayed(4)}.items():
    errors = [relative_rms(x[ordinary], service.read_back(x)[ordinary]) for x, ordinary in stream]
    print(f"{name:14} at the spike {errors[12]:.1%}, the step after {errors[13]:.0%}, blind for", end=" ")
    print(f"{np.sum(np.array(errors) > 0.5)} steps")

# %% [markdown]
# ## Turning the tiles
#
# The weight's gradient $dW = dY^\top X$ sums over tokens, so $X$ is needed in tiles of 128 x 1. What was kept from the
# forward pass are codes in tiles of 1 x 128. Beside E4M3 we try E5M6, a format of twelve bits (one of sign, five of
# exponent, six of mantissa) that the report uses for one tensor: which one, and why, stands below.

# %%
draw_turning()


# %%
def naive_turn(x, fmt, power_of_two):
    """Round in rows, read back, round in columns; returns both."""

    def round_along(x, axis):
        scale = np.maximum(np.abs(x).max(axis=axis, keepdims=True), np.float32(1e-4)) / np.float32(fmt.largest)
        if power_of_two:
            scale = np.float32(2.0) ** np.ceil(np.log2(scale))
        return round_to(x / scale, fmt) * scale

    once = round_along(x, 1)
    return once, round_along(once, 0)


# %%
x = spread_activations(128, 128)
q = quantize(x, (1, 128), E5M6, power_of_two=True)
once, twice = naive_turn(x, E5M6, power_of_two=True)
assert np.array_equal(once, dequantize(q))
assert np.array_equal(twice, dequantize(turn_tiles(q, power_of_two=True)))
print("naive and module agree")

# %% [markdown]
# With scales $s$ and $s'$ the new code is $\text{round}(q\, s / s')$. If $s / s' = 2^n$, the mantissa of $q$ stays as
# it is and rounding does nothing, *unless* the new code is subnormal. That needs a number smaller than its column's
# maximum by more than the format's normal reach: $2^{15}$ in E4M3, $2^{30}$ in E5M6.

# %%
x, rows = spread_activations(spread=1.5), {}
for fmt in (E4M3, E5M6):
    for power_of_two in (False, True):
        name = f"{fmt.name}, {'2ⁿ' if power_of_two else 'any'} scales"
        rows[name] = turning_error(x, fmt, power_of_two=power_of_two)
        print(f"{name:18} values changed {rows[name][0]:8.4%}   error {rows[name][1]:.3%} -> {rows[name][2]:.3%}")
assert rows["E5M6, 2ⁿ scales"][0] == 0
plot_turning(rows, "E5M6 with powers of two turns without changing a value")

# %% [markdown]
# The same holds for E4M3 but for its subnormal numbers, which these tensors, with tokens and channels of very different
# size, were made to provoke. The report uses E5M6 for one tensor, the input of the linear layer after attention, since
# attention's own backward pass reads it too and is sensitive. It gives the widths of the format only; the layout of its
# top is our assumption, and plays no role here.
#
# A scale that is a power of two is up to twice too large, and wastes up to one power of two at the top. It costs no
# accuracy for normal numbers: dividing by it changes exponents only.
#
# ## What you can now do
#
# Say what a scale from the past does on the day of a spike and on the days after; compute scales online; turn tiles for
# the backward pass, and say when that changes nothing.
#
# ## Exercises
#
# Graded: `turn_tile` (`make check CH=05`). By thought alone:
#
# 1. A tensor grows slowly, by one percent a step. How does a delayed scale with a history of 16 fare?
#
# <details><summary>Solution</summary>
#
# The largest of the past is always that of the step before, so the present maximum is clipped by one percent, less than
# a rounding. Delayed scaling is made for exactly this case; it is the sudden one that it cannot see.
#
# </details>
#
# 2. Why do weights not need to be turned?
#
# <details><summary>Solution</summary>
#
# A block of 128 x 128 is square: read the other way round it is a block of 128 x 128 with the same maximum, so the same
# scale and the same codes.
#
# </details>
#
# 3. Which tensor of a training step could safely use a delayed scale?
#
# <details><summary>Solution</summary>
#
# A weight: it moves by a learning rate a step and cannot jump. But then its maximum is cheap to keep as well, since it
# is cast once a step and used in many products.
#
# </details>
