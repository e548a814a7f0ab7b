# %% [markdown]
# # RMSNorm
#
# **The question.** Every layer adds to the stream, so its rows grow with depth. A matrix that reads a row of length 1
# in the first layer and of length 30 in the last would see 30 times larger scores there. How do we hand every reader
# rows of the same size, and lose nothing else?
#
# **The idea.** Divide each row by its root mean square. Length is forgotten, direction is kept. LayerNorm subtracts
# the mean first; that costs a second pass over the row and turns out not to be needed.

# %%
import matplotlib.pyplot as plt
import numpy as np
from rms_norm import rms_norm_backward, rms_norm_forward

from utils.whiteboard import COLORS, use_style

use_style()

# %% [markdown]
# ## Two coordinates, on paper
#
# $x = (1, 7)$ has mean square $(1 + 49) / 2 = 25$ and root mean square 5, so $y = (0.2, 1.4)$. Every row of width $D$
# lands on the sphere of radius $\sqrt D$; the weight then stretches each coordinate by its own factor.

# %%
rng = np.random.default_rng(4)
around = 2 * np.pi * np.arange(9)[:, None] / 9 + 0.2
points = np.concatenate([np.cos(around), np.sin(around)], axis=1) * rng.uniform(0.4, 3.2, size=(9, 1))
weight = np.array([1.6, 0.6])
on_circle, _ = rms_norm_forward(points, np.ones(2))
stretched, _ = rms_norm_forward(points, weight)
angle = np.linspace(0, 2 * np.pi, 200)
circle = np.sqrt(2) * np.stack([np.cos(angle), np.sin(angle)], axis=-1)


# %%
def draw_arrows(ax, start, end, color):
    """Arrows from each row of `start` to the same row of `end`."""
    for a, b in zip(start, end):
        ax.annotate("", b, a, arrowprops={"arrowstyle": "-|>", "color": color, "linewidth": 1.4, "shrinkA": 0})


# %%
fig, axes = plt.subplots(1, 3, figsize=(10, 3.7), layout="constrained")
zero = np.zeros_like(points)
stages, titles = [zero, points, on_circle, stretched], ("rows of any length", "÷ root mean square", "× weight")
for ax, before, after, title in zip(axes, stages, stages[1:], titles):
    draw_arrows(ax, before, after, COLORS["ink" if before is zero else "content"])
    ax.plot(*after.T, "o", color=COLORS["content"], markersize=4)
    ax.set(xlim=(-3.6, 3.6), ylim=(-3.6, 3.6), aspect="equal", title=title)
axes[1].plot(*circle.T, color=COLORS["ink"], linewidth=1)
axes[2].plot(*(circle * weight).T, color=COLORS["ink"], linewidth=1)
assert np.allclose(np.linalg.norm(on_circle, axis=1), 2**0.5, rtol=1e-4)
plt.show()

# %% [markdown]
# ## The derivation
#
# Write $r = \sqrt{\tfrac1D \sum_j x_j^2 + \varepsilon}$, $\hat x = x / r$ and $y = w \odot \hat x$.
#
# **1. The weight.** $dw = \sum_\text{tokens} dy \odot \hat x$: one weight serves all tokens, so their gradients add
# up.
#
# **2. Into the norm.** $g = w \odot dy$ is the gradient of $\hat x$.
#
# **3. $x$ stands in two places.** From the numerator: $g_i / r$. Through the root: $\partial r / \partial x_i = x_i /
# (D r)$, and $r$ divides every coordinate, so
#
# $$dx_i = \frac{g_i}{r} - \sum_j g_j \frac{x_j}{r^2} \cdot \frac{x_i}{D r}.$$
#
# **4. Collect.** $dx = \tfrac1r \big(g - \hat x \cdot \text{mean}(g \odot \hat x)\big)$. With $\varepsilon = 0$ that
# is a projection: what points along $x$ is taken out. It must be so. Moving along $x$ changes only the length, and
# the length is forgotten.
#
# **5. The factor $1 / r$.** Long rows get small gradients, short rows large ones, as a long lever turns slowly.

# %%
x, dy = np.array([[2.6, 1.2]]), np.array([[0.5, 1.1]])
y, cache = rms_norm_forward(x, np.ones(2), eps=0.0)
dx, _ = rms_norm_backward(dy, cache)
assert abs(np.sum(dx * x)) < 1e-12
arrows = [  # from, to, colour, label, and where it stands
    (0 * x, x, COLORS["ink"], "x", (2.7, 1.1)),
    (y, y + dy, COLORS["ink"], "dy", (1.75, 1.85)),
    (x, x + 2 * dx, COLORS["content"], "dx, drawn twice as long", (2.5, 1.9)),
]

# %%
fig, ax = plt.subplots(figsize=(6.2, 4.2), layout="constrained")
ax.plot(*circle.T, color=COLORS["ink"], linewidth=1)
for start, end, color, label, place in arrows:
    draw_arrows(ax, start, end, color)
    ax.text(*place, label, color=color)
ax.set(xlim=(-1.6, 4.6), ylim=(-1.6, 2.6), aspect="equal")
ax.set_title("No gradient points along x")
plt.show()

# %% [markdown]
# ## The same in numbers
#
# The whole Jacobian of the norm, from its formula in step 4, against one backward pass per coordinate.

# %%
x = rng.normal(size=5)
r = np.sqrt(np.mean(x**2))
jacobian = (np.eye(5) - np.outer(x, x) / (5 * r**2)) / r
rows = [rms_norm_backward(e, rms_norm_forward(x, np.ones(5), eps=0.0)[1])[0] for e in np.eye(5)]
print("equal to 1e-14:", np.abs(jacobian - rows).max() < 1e-14)
print("Jacobian times x is zero:", np.abs(jacobian @ x).max() < 1e-14)

# %% [markdown]
# ## What eps is for
#
# $\varepsilon = 10^{-6}$ stands inside the root. For ordinary rows it is nothing; a row of zeros it saves from $0/0$.
# In between it decides how far tiny rows are amplified. We send rows of every size through and look at the size that
# comes out, and at the factor that a gradient gets on its way back.

# %%
sizes = np.logspace(-6, 2, 81)
direction = rng.normal(size=64)
direction /= np.sqrt(np.mean(direction**2))
across = rng.normal(size=64)
across -= direction * np.mean(across * direction)
came_out, gain = [], []
for size in sizes:
    y, cache = rms_norm_forward(size * direction, np.ones(64))
    came_out.append(np.sqrt(np.mean(y**2)))
    gain.append(np.linalg.norm(rms_norm_backward(across, cache)[0]) / np.linalg.norm(across))

# %%
fig, ax = plt.subplots(figsize=(8.5, 3.9), layout="constrained")
ax.loglog(sizes, came_out, color=COLORS["content"])
ax.loglog(sizes, gain, color=COLORS["ink"])
ax.axvline(1e-3, color="#BBBBBB", linewidth=1)
ax.text(1.2e-3, 3e-3, r"$\sqrt{\varepsilon} = 0.001$", color=COLORS["ink"])
ax.text(1.0, 1.6, "size of the output", color=COLORS["content"])
ax.text(2e-6, 1600, "factor on the gradient", color=COLORS["ink"])
ax.set(xlabel="root mean square of the row", ylim=(5e-4, 6e3))
largest, knee = max(gain), came_out[np.argmin(np.abs(sizes - 1e-3))]
assert abs(knee - 2**-0.5) < 1e-6
ax.set_title(f"eps bounds the factor on a gradient at {largest:,.0f}")
plt.show()

# %% [markdown]
# At $\text{rms} = \sqrt\varepsilon$ the output has size $1/\sqrt2$. With eps added **outside** the root the knee
# would sit at $10^{-6}$ and the factor would reach a million. It is one of the planted mistakes of this chapter
# (`test_eps_stands_inside_the_root`).
#
# ## Where V3 norms
#
# Before attention, before the MLP, on the query latent, on the key-value latent, and once before the head: each with
# its own weight, all with $\varepsilon = 10^{-6}$. In training V3 does not even keep the outputs: it recomputes every
# RMSNorm on the way back (report, section 3.2.3), for it is cheaper to do again than to store.
#
# ## Exercises
#
# **1.** Show that RMSNorm of $c\,x$ is RMSNorm of $x$ for $c > 0$, and use it to derive $dx \cdot x = 0$ without any
# algebra.
#
# <details><summary>Solution</summary>
#
# $c$ comes out of the root and cancels. So the loss, as a function of $c$, is constant: its derivative at $c = 1$ is
# zero. By the chain rule that derivative is $\sum_i dx_i\, x_i$.
# </details>
#
# **2.** Which rows do RMSNorm and LayerNorm treat alike? Where do they differ most?
#
# <details><summary>Solution</summary>
#
# Rows of mean zero come out alike. A constant row comes out as ones from RMSNorm and as zeros from LayerNorm, which
# erases the direction $(1, \dots, 1)$ altogether: `test_the_mean_is_not_subtracted`.
# </details>
#
# **3.** Where could the weight $w$ go if the next thing is a matrix $W$? Why do models keep it all the same?
#
# <details><summary>Solution</summary>
#
# Into the columns of the matrix: $W (w \odot \hat x) = (W\, \text{diag}(w))\, \hat x$. Several matrices read the same
# norm ($W_Q, W_K, W_V$), and one vector to train for all of them moves differently under Adam than three scaled
# matrices. For inference one may fold it in.
# </details>
