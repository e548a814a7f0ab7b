# %% [markdown]
# # RMSNorm
#
# **The question.** Every layer of a deep model *adds* something to its rows, so they grow from layer to layer. A matrix
# that meets rows of size 1 in the first layer and of size 8 in the last would give scores eight times, and softmaxes
# far harder, there. How do we hand every reader rows of one size, and lose as little as possible?
#
# A sound engineer records a whisper and a shout. On the tape the shout is a hundred times louder. Before anybody works
# on them he turns both to the same volume. What was *said* is unchanged: all the loud and soft places of a recording
# keep their proportions. Only how loud it was as a whole is forgotten.
#
# RMSNorm is that knob, one for each row. And forgetting has a consequence for learning, which is the surprise of this
# notebook: on the way back, no gradient ever says *louder*.

# %%
import numpy as np
from rms_norm import rms_norm_backward, rms_norm_forward

from utils.gradient_check import central_difference, relative_error
from utils.plots_01 import draw_norm_stages, draw_projection, plot_gain
from utils.plots_02 import plot_lines

# %% [markdown]
# ## Numbers to follow with a pencil
#
# How loud is a row? Take its **root mean square**, rms: square the numbers, take their mean, take the root. For
# $x = (1, 7)$: the mean of 1 and 49 is 25, the root is 5. Divide: $\hat x = (0.2, 1.4)$. (A hat means: normed.) The row
# $(10, 70)$ has rms 50 and gives the same $(0.2, 1.4)$.
#
# Then each coordinate is multiplied by a **weight** of its own, which is learned. With $w = (1, 2)$: $y = (0.2, 2.8)$.
#
# Backwards. Say the loss grows with the first normed coordinate: $dy = (1, 0)$, weights 1. Dividing by 5 would give
# $(0.2, 0)$. But raising $x_1$ also raises the rms, which lowers *both* normed coordinates. Subtract $\hat x$ times the
# mean of $dy\,\hat x$, which is $0.2/2 = 0.1$, before dividing: $(1 - 0.02,\; 0 - 0.14)/5 = (0.196, -0.028)$. Multiply
# it with $x$: $1 \cdot 0.196 - 7 \cdot 0.028 = 0$.

# %%
x = np.array([1.0, 7.0])
y, cache = rms_norm_forward(x, np.ones(2), eps=0.0)
dx, _ = rms_norm_backward(np.array([1.0, 0.0]), cache)
print("y", y, "  the same for 10 x:", rms_norm_forward(10 * x, np.ones(2), eps=0.0)[0])
print("dx", dx.round(4), "  dx · x =", round(abs(dx @ x), 12))

# %% [markdown]
# In the plane: every row lands on one circle, of radius $\sqrt 2$ (in $D$ dimensions on a sphere of radius $\sqrt D$).
# The weight then stretches the circle.

# %%
rng = np.random.default_rng(4)
around = 2 * np.pi * np.arange(9)[:, None] / 9 + 0.2
points = np.concatenate([np.cos(around), np.sin(around)], axis=1) * rng.uniform(0.4, 3.2, size=(9, 1))
draw_norm_stages(points, np.array([1.6, 0.6]))

# %% [markdown]
# ## Build it
#
# A row of zeros has rms 0, and $0/0$ is not a number. So a tiny $\varepsilon$ (epsilon, $10^{-6}$) is added to the mean
# square, **inside** the root.


# %%
def norm(x, w, eps=1e-6):
    """One row."""
    rms = np.sqrt(np.mean(x**2) + eps)
    return w * x / rms


x, w = rng.standard_normal((3, 5)), rng.standard_normal(5)
y, cache = rms_norm_forward(x, w)
assert np.allclose(y, [norm(row, w) for row in x], atol=1e-15)
print("naive and module agree; a row of zeros gives", norm(np.zeros(2), np.ones(2)))

# %% [markdown]
# ## The derivation
#
# Letters: $D$ numbers in a row, $r = \sqrt{\tfrac1D \sum_j x_j^2 + \varepsilon}$, $\hat x = x / r$,
# $y = w \odot \hat x$ ($\odot$: number by number).
#
# 1. The weight: $dw = \sum dy \odot \hat x$, summed over **all** rows: one weight serves them all.
# 2. Into the norm: $g = w \odot dy$ is the slope by $\hat x$. (Forget the $w$ here, and all is right as long as every
#    weight is 1: at the start of training.)
# 3. $x$ stands in two places. As the numerator: $g_i / r$.
# 4. And inside the root. Raise $x_i$ a little: $r$ grows by $x_i / (D r)$. Since $r$ divides every coordinate, each
#    $\hat x_j$ falls by $\hat x_j / r$ times that. Together:
#    $-\sum_j g_j \frac{\hat x_j}{r} \cdot \frac{x_i}{D r} = -\frac1r\, \hat x_i\, \text{mean}(g \odot \hat x)$.
# 5. Collect: $dx = \frac1r \big(g - \hat x \cdot \text{mean}(g \odot \hat x)\big)$.
# 6. With $\varepsilon = 0$: multiply by $x$ and it is zero. **What points along $x$ is taken out.** It must be so:
#    moving along $x$ changes the loudness only, and loudness is forgotten.
# 7. The factor $1/r$: loud rows get small gradients, soft rows large ones.


# %%
def naive_backward(dy, x, w, eps=1e-6):
    """One row: steps 2 to 5, with the sum of step 4 written out."""
    D, r = len(x), np.sqrt(np.mean(x**2) + eps)
    g, dx = w * dy, np.zeros(len(x))
    for i in range(D):
        dx[i] = g[i] / r
        for j in range(D):
            dx[i] -= g[j] * x[j] / r**2 * x[i] / (D * r)
    return dx


# %%
dy = rng.standard_normal((3, 5))
dx, dw = rms_norm_backward(dy, cache)
assert np.allclose(dx, [naive_backward(d, row, w) for d, row in zip(dy, x)], atol=1e-14)
assert np.allclose(dw, sum(d * row / np.sqrt(np.mean(row**2) + 1e-6) for d, row in zip(dy, x)), atol=1e-14)
by_trying = central_difference(lambda: np.sum(dy * rms_norm_forward(x, w)[0]), x)
print("naive and module agree; central differences:", relative_error(dx, by_trying) < 1e-8)

# %%
row, slope = np.array([2.6, 1.2]), np.array([0.5, 1.1])
across, _ = rms_norm_backward(slope[None], rms_norm_forward(row[None], np.ones(2), eps=0.0)[1])
assert abs(np.sum(across * row)) < 1e-12
draw_projection(row, slope, across[0])

# %% [markdown]
# ## The experiment: rows that can only grow
#
# Step 6 has a consequence that one can watch. Take a row and let plain descent move it, through a norm, towards a
# target direction. Every step stands at a right angle to the row, and a step at a right angle makes it *longer*
# (Pythagoras), never shorter. Then, by step 7, the longer row gets smaller gradients. The norm slows its own row down.
# The larger the rate, the more.

# %%
goal = rng.standard_normal(64)
start = rng.standard_normal(64)
walks, lengths = {}, {}
for rate in (3.0, 30.0, 300.0):
    row, sizes = start.copy(), []
    for _ in range(200):
        y, cache = rms_norm_forward(row, np.ones(64), eps=0.0)
        row = row - rate * rms_norm_backward((y - goal) / 64, cache)[0]
        sizes.append(np.sqrt(np.mean(row**2)))
    walks[f"rate {rate:g}"] = (range(200), sizes)
    lengths[rate] = sizes
    assert all(b >= a - 1e-9 for a, b in zip(sizes, sizes[1:]))

# %%
ends = {rate: sizes[-1] for rate, sizes in lengths.items()}
title = f"A row behind a norm never shrinks; rate 300: {ends[300.0]:.1f} times as long"
plot_lines(walks, ["#B9CFE8", "#7BA3D3", "content"], title, "step", "root mean square of the row", ylim=(0, None))

# %% [markdown]
# This is why the exact size of what stands before a norm hardly matters. Weights that act through a norm only can grow
# in the same way; what holds them is decay (chapter 00), not the loss.
#
# ## The experiment: what eps is for
#
# For ordinary rows $\varepsilon$ is nothing. For tiny ones it decides how far they are amplified. We send rows of every
# size through, and look at the size that comes out, and at the factor that a gradient gets on its way back.

# %%
sizes, direction, across = np.logspace(-6, 2, 81), rng.normal(size=64), rng.normal(size=64)
direction /= np.sqrt(np.mean(direction**2))
across -= direction * np.mean(across * direction)  # at a right angle: it gets through
came_out, gain = [], []
for size in sizes:
    y, cache = rms_norm_forward(size * direction, np.ones(64))
    came_out.append(np.sqrt(np.mean(y**2)))
    gain.append(np.linalg.norm(rms_norm_backward(across, cache)[0]) / np.linalg.norm(across))

# %%
assert abs(came_out[np.argmin(np.abs(sizes - 1e-3))] - 2**-0.5) < 1e-6
plot_gain(sizes, came_out, gain, f"eps inside the root bounds the factor on a gradient at {max(gain):,.0f}")

# %% [markdown]
# At rms $= \sqrt\varepsilon$ the output has size $1/\sqrt2$. With eps added **outside** the root the bend would sit at
# $10^{-6}$ and the factor would reach a million. It is one of the planted mistakes of this chapter
# (`test_eps_stands_inside_the_root`).
#
# DeepSeek-V3 norms before attention, before the MLP, on both latents of its attention, and once before the head: each
# with its own weight, all with $\varepsilon = 10^{-6}$. In training it does not even keep the outputs: it computes
# every RMSNorm again on the way back (report, section 3.2.3), for that is cheaper than storing.
#
# ## Change this, predict, run
#
# Older models use **LayerNorm**, which subtracts the mean of the row first. The cell norms three rows both ways.
# Predict: which rows come out alike, and which one does LayerNorm erase altogether?
#
# <details><summary>Afterwards</summary>
#
# Rows of mean zero come out alike. The constant row comes out as ones from RMSNorm and as zeros from LayerNorm: the
# direction $(1, \dots, 1)$ is lost. Released DeepSeek weights use that direction like any other
# (`test_the_mean_is_not_subtracted`).
#
# </details>

# %%
for row in ([1.0, -1.0, 2.0, -2.0], [1.0, 2.0, 3.0, 4.0], [5.0, 5.0, 5.0, 5.0]):
    row = np.array(row)
    centred = row - row.mean()
    layer_norm = centred / np.sqrt(np.mean(centred**2) + 1e-6)
    print(row, "RMSNorm", norm(row, np.ones(4)).round(2), " LayerNorm", layer_norm.round(2))

# %% [markdown]
# ## What you can now do
#
# Write RMSNorm forward and backward, with the term through the root; say why no gradient points along the row, and what
# follows from it; place eps.
#
# ## Exercises
#
# Graded: `rms_norm_backward` (`make check CH=01`). By thought alone:
#
# 1. Show $dx \cdot x = 0$ (for $\varepsilon = 0$) without any algebra.
#
# <details><summary>Solution</summary>
#
# RMSNorm of $c\,x$ is RMSNorm of $x$ for every $c > 0$. So the loss, as a function of $c$, is constant: its slope at
# $c = 1$ is zero. By the chain rule that slope is $\sum_i dx_i\, x_i$.
#
# </details>
#
# 2. Where could the weight $w$ go if the next thing is a matrix $W$? Why do models keep it all the same?
#
# <details><summary>Solution</summary>
#
# Into the columns of the matrix: $W (w \odot \hat x) = (W\, \text{diag}(w))\, \hat x$. Several matrices read the same
# norm ($W_Q, W_K, W_V$), and one vector to train for all of them moves differently under Adam than three scaled
# matrices. For inference one may fold it in.
#
# </details>
#
# 3. A test norms random rows with weights of one and compares with central differences. Which mistake of step 2 does it
#    miss?
#
# <details><summary>Solution</summary>
#
# The mean of $dy \odot \hat x$ instead of $g \odot \hat x$: with $w = 1$ they are equal. So test with weights that are
# not one.
#
# </details>
