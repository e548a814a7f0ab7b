# %% [markdown]
# # SwiGLU
#
# **The question.** Attention takes means. Whatever it carries, it carries unchanged, mixed with others. Somewhere a
# token must *think* about what it has gathered: if this **and** that, then such. *Sleeping* and *cat* together mean:
# walk on tiptoe. Each alone does not. What is the smallest machine that can do that?
#
# A garden has two rows of taps. In the one, what flows through a pipe is set: water, or fertiliser, or nothing. In the
# other is set how far each pipe is *open*. A plant gets fertiliser only if it flows **and** the pipe is open; either
# alone gives nothing. That "and" is a product: amount times opening.
#
# **SwiGLU** is such a garden. One matrix, `up_proj`, looks at the token and says *what* would flow in each of $F$
# pipes. Another, `gate_proj`, looks at the same token and says how far each pipe is *open*. A third, `down_proj`,
# collects the pipes. We will see that two pipes are enough for an exact "and", and that a network without taps needs
# dozens of units to come near it.

# %%
import numpy as np
from swiglu import SwigluWeights, sigmoid, swiglu_backward, swiglu_forward

from utils.drawings_01 import draw_swiglu
from utils.gradient_check import central_difference, relative_error
from utils.plots_01 import plot_product, plot_silu

# %%
draw_swiglu()

# %% [markdown]
# ## Numbers to follow with a pencil
#
# The tap is not simply open or shut, for a switch has no slope. It is a smooth one, called **silu**: a number times its
# *sigmoid*, $\text{silu}(a) = a \cdot \sigma(a)$ with $\sigma(a) = 1/(1 + e^{-a})$, a value between 0 and 1.
#
# Token $x = (1, 4)$, one pipe. The gate reads the first coordinate times $\ln 3$: $a = 1.099$. Its sigmoid is
# $1/(1 + \tfrac13) = \tfrac34$, so the tap gives $1.099 \cdot \tfrac34 = 0.824$. The up-projection reads the second
# coordinate times 2: 8. Product: $8 \cdot 0.824 = 6.592$.

# %%
tiny = SwigluWeights(gate_proj=np.array([[np.log(3), 0.0]]), up_proj=np.array([[0.0, 2.0]]), down_proj=np.ones((2, 1)))
y, _ = swiglu_forward(np.array([1.0, 4.0]), tiny)
print(
    "sigmoid",
    sigmoid(np.log(3)),
    " silu",
    np.round(0.75 * np.log(3), 3),
    " y",
    y.round(3),
    "(copied to both coordinates)",
)

# %% [markdown]
# Backwards through the tap. How fast does silu grow? Product rule: $\sigma + a\,\sigma'$, and the slope of the sigmoid
# is $\sigma(1 - \sigma)$. At $a = \ln 3$: $0.75 + 1.099 \cdot 0.75 \cdot 0.25 = 0.956$. So a unit more of the gate is
# worth $8 \cdot 0.956 = 7.648$ in the product, a unit more of *up* is worth the opening, $0.824$.

# %%
a = np.linspace(-6, 6, 601)
s = sigmoid(a)
slope = s + a * s * (1 - s)
plot_silu(a, a * s, slope)

# %% [markdown]
# Far to the right silu is $a$ itself, far to the left 0. In between it dips below zero. (**relu** is its hard-edged
# relative: 0 left, $a$ right.)
#
# ## Build it
#
# Letters: $D$ numbers in a row, $F$ pipes. `gate_proj` and `up_proj` are $F \times D$, `down_proj` is $D \times F$.


# %%
def think(x, w):
    """One token [D]; every pipe on its own."""
    y = np.zeros(len(x))
    for pipe in range(len(w.gate_proj)):
        a = w.gate_proj[pipe] @ x  # how far open
        u = w.up_proj[pipe] @ x  # what would flow
        y += w.down_proj[:, pipe] * (a / (1 + np.exp(-a)) * u)
    return y


# %%
rng = np.random.default_rng(0)
weights, x = SwigluWeights.init(rng, 5, 7), rng.standard_normal((3, 5))
y, cache = swiglu_forward(x, weights)
assert np.allclose(y, [think(row, weights) for row in x], atol=1e-14)
print("naive and module agree:", y.shape, "each token by itself, no token sees another")

# %% [markdown]
# ## The derivation
#
# Letters: $a = W_{gate}\, x$, $\;u = W_{up}\, x$, $\;h = \text{silu}(a) \odot u$ ($\odot$: pipe by pipe),
# $\;y = W_{down}\, h$.
#
# 1. Back through the collector: $dh = W_{down}^\top dy$, and $dW_{down} = dy\, h^\top$.
# 2. A product hands each factor the other one: $du = dh \odot \text{silu}(a)$.
# 3. And the tap gets $da = dh \odot u \odot \text{silu}'(a)$ with $\text{silu}'(a) = s + a\, s\,(1 - s)$,
#    $s = \sigma(a)$. (The mistake that one makes is to take the slope of the sigmoid alone, $s(1 - s)$. For large $a$
#    that is zero, and the right one is 1.)
# 4. $x$ went both ways, and ways that meet add up: $dx = W_{gate}^\top da + W_{up}^\top du$.
# 5. $dW_{gate} = da\, x^\top$, $dW_{up} = du\, x^\top$, summed over all tokens.


# %%
def naive_backward(dy, x, w):
    """One token: steps 1 to 5."""
    a, u = w.gate_proj @ x, w.up_proj @ x
    s = 1 / (1 + np.exp(-a))
    dh = w.down_proj.T @ dy
    du, da = dh * a * s, dh * u * (s + a * s * (1 - s))
    dx = w.gate_proj.T @ da + w.up_proj.T @ du
    return dx, np.outer(da, x), np.outer(du, x), np.outer(dy, a * s * u)


# %%
dy = rng.standard_normal((3, 5))
dx, gradients = swiglu_backward(dy, cache)
each = [naive_backward(d, row, weights) for d, row in zip(dy, x)]
assert np.allclose(dx, [parts[0] for parts in each], atol=1e-14)
for i, name in enumerate(("gate_proj", "up_proj", "down_proj"), 1):
    assert np.allclose(getattr(gradients, name), sum(parts[i] for parts in each), atol=1e-13), name
by_trying = central_difference(lambda: np.sum(dy * swiglu_forward(x, weights)[0]), weights.gate_proj)
print(
    "naive and module agree; gate_proj by central differences:", relative_error(gradients.gate_proj, by_trying) < 1e-8
)

# %% [markdown]
# ## The experiment: an exact "and" from two pipes
#
# There is a small fact about silu: $\text{silu}(a) - \text{silu}(-a) = a\,(\sigma(a) + \sigma(-a)) = a$. So two pipes
# with opposite gates, opposite openings of the collector and the same $u$ give
# $u\,(\text{silu}(a) - \text{silu}(-a)) = a\,u$: the product of two coordinates, **exactly**. If *cat* is 0 or 1 and
# *asleep* is 0 or 1, that is the "and".
#
# A network without taps (a matrix, relu, a matrix) can only lay straight pieces side by side. We give it random hidden
# units, fit its last layer as well as it can be fitted at all (least squares), and count how many units it takes to
# come near.

# %%
opposite = np.array([[1.0], [-1.0]])
gate, up = opposite * [1.0, 0.0], np.array([[0.0, 1.0], [0.0, 1.0]])  # gates +x0 and -x0, both carry x1
multiplier = SwigluWeights(gate_proj=gate, up_proj=up, down_proj=np.array([[1.0, -1.0], [0.0, 0.0]]))
corners = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
for row, result in zip(corners, swiglu_forward(corners, multiplier)[0]):
    print(f"cat {row[0]:g}, asleep {row[1]:g}: {result[0]:.12g}")

# %%
points, fresh = rng.uniform(-2, 2, size=(3000, 2)), rng.uniform(-2, 2, size=(3000, 2))


def fit_relu(n_units):
    """Part of the variance of x0 * x1 that a ReLU network with random hidden units misses on fresh points."""
    w, b = rng.normal(size=(2, n_units)), rng.normal(size=n_units)
    hidden, unseen = np.maximum(points @ w + b, 0), np.maximum(fresh @ w + b, 0)
    best = np.linalg.lstsq(hidden, points[:, 0] * points[:, 1], rcond=None)[0]
    truth = fresh[:, 0] * fresh[:, 1]
    return np.mean((unseen @ best - truth) ** 2) / np.var(truth)


units = [2, 4, 8, 16, 32, 64, 128, 256]
missed = [float(np.mean([fit_relu(n) for _ in range(5)])) for n in units]

# %%
gated = swiglu_forward(fresh, multiplier)[0][:, 0]
assert np.abs(gated - fresh[:, 0] * fresh[:, 1]).max() < 1e-14
needed = next(n for n, m in zip(units, missed) if m < 0.01)
title = f"Two gated units multiply exactly; without gates it takes {needed} units to miss less than 1 %"
plot_product(fresh, gated, units, missed, title)

# %% [markdown]
# That is not a proof that gates train better. Shazeer (2020) measured that they do, and offers no explanation. It shows
# what the product adds: an exact operation that plain units can only approximate.
#
# ## What it costs
#
# Three matrices instead of two: $3 D F$ weights. To stay at the $8 D^2$ of a classic network ($F = 4D$), $F$ would be
# $\tfrac83 D$. DeepSeek-V3 has $D = 7168$ and $F = 18432 = 2.57\, D$ in its three dense layers. Its experts are the
# same machine with $F = 2048$ (chapter 03), and nearly all of its 671 billion weights are in such machines.
#
# The backward pass needs $a$, $u$ and $h$. The last can be made again from the first two, and that is what the module
# does: V3 keeps only the inputs of SwiGLU in its experts and computes the output again (report, section 3.3.3).

# %%
D, F = 7168, 18432
print(f"dense layer 3 D F = {3 * D * F:,}   one expert 3 D 2048 = {3 * D * 2048:,}")
print(f"58 layers of 257 experts: {58 * 257 * 3 * D * 2048 / 671.026e9:.1%} of the model")

# %% [markdown]
# ## Change this, predict, run
#
# The cell exchanges gate and up: the tap now reads what should flow, and the other way round. Predict for the
# multiplier: is the product still exact? And for the random layer above: is the output the same?
#
# <details><summary>Afterwards</summary>
#
# The multiplier breaks: $\text{silu}(x_1) x_0 - \text{silu}(x_1)(-x_0) = 2\,\text{silu}(x_1)\, x_0$. The random layer
# gives other numbers, of the same size and spread. That is the danger: from scratch the exchanged layer trains as well,
# since both matrices are drawn from the same distribution and names mean nothing yet; with a released checkpoint it
# writes nonsense. Only a number worked out by hand, or another implementation, catches it:
# `test_a_gate_of_ln_3_is_open_by_three_quarters`.
#
# </details>

# %%
for name, w, rows in (("multiplier", multiplier, corners[3:]), ("random layer", weights, x[:1])):
    exchanged = SwigluWeights(w.up_proj, w.gate_proj, w.down_proj)
    print(name, swiglu_forward(rows, w)[0][0].round(3), " exchanged", swiglu_forward(rows, exchanged)[0][0].round(3))

# %% [markdown]
# ## What you can now do
#
# Write the gated network forward and backward; say what a product adds that sums cannot; count the weights of V3's
# dense layers and experts.
#
# ## Exercises
#
# Graded: `swiglu_backward` (`make check CH=01`). By thought alone:
#
# 1. Show that $\text{silu}'(a) + \text{silu}'(-a) = 1$.
#
# <details><summary>Solution</summary>
#
# Take the slope of both sides of $\text{silu}(a) - \text{silu}(-a) = a$. In the plot: the slope curve is symmetric
# about the point $(0, \tfrac12)$, which is why its maximum 1.10 and its minimum −0.10 sum to one.
#
# </details>
#
# 2. Why does the module compute $\sigma(a)$ as $\exp(-\text{logaddexp}(0, -a))$?
#
# <details><summary>Solution</summary>
#
# $1 / (1 + e^{-a})$ overflows in $e^{-a}$ for $a < -709$ (the result, 0, is right, the warning is not wanted). The
# other usual form, $\tfrac12 (1 + \tanh \tfrac a2)$, gives exactly 0 below $a \approx -37$, where the truth is $e^{a}$.
# `logaddexp` is $\ln(1 + e^{-a})$, computed without overflow and without losing the tail.
#
# </details>
#
# 3. Why does a token think by itself here, when attention has just brought the others' words?
#
# <details><summary>Solution</summary>
#
# What was fetched is in its row by now. Exchange and thought alternate: attention carries between rows and hardly
# transforms, SwiGLU transforms and does not carry. Each can be made wider or sparser without touching the other, which
# is what chapters 02 and 03 do.
#
# </details>
