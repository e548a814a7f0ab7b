# %% [markdown]
# # SwiGLU
#
# **The question.** Attention takes means: whatever it moves, it moves linearly. Somewhere a token must **think**
# about what it has gathered: if this *and* that, then such. What is the smallest machine that can do it, token by
# token?
#
# **The idea.** Two projections of the same row. One says *what* (up), the other *how much* (gate, through a smooth
# switch). Multiply them coordinate by coordinate, and project back.

# %%
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from swiglu import SwigluWeights, sigmoid, swiglu_backward, swiglu_forward

from utils.whiteboard import COLORS, arrow, board, box, note, use_style

use_style()

# %%
fig, ax = board(20, 5.4, "One row, two branches, one product")
x = box(ax, 1.6, 2.6, "x\n[D]", "content", height=1.2)
gate = box(ax, 6.0, 4.2, "gate_proj\n[F, D]", width=2.8, height=1.2)
up = box(ax, 6.0, 1.0, "up_proj\n[F, D]", width=2.8, height=1.2)
silu = box(ax, 10.0, 4.2, "silu\n(how much)", "content", width=2.4, height=1.2)
times = box(ax, 12.8, 2.6, "×", "content", width=1.0, height=1.0, size=15, filled=True)
down = box(ax, 15.6, 2.6, "down_proj\n[D, F]", width=2.8, height=1.2)
y = box(ax, 18.8, 2.6, "y\n[D]", "content", height=1.2, width=1.6)
for start, end in ((x, gate), (x, up), (gate, silu), (silu, times), (up, times), (times, down), (down, y)):
    arrow(ax, start, end)
note(ax, 9.9, 1.1, "(what)", "content")
plt.show()

# %% [markdown]
# ## The derivation
#
# **1. Forward.** $g = W_\text{gate}\, x$, $u = W_\text{up}\, x$, $\;y = W_\text{down}\,(\text{silu}(g) \odot u)$,
# with $\text{silu}(a) = a\, \sigma(a)$ and $\sigma(a) = 1 / (1 + e^{-a})$.
#
# **2. The switch.** For large $a$, $\sigma(a) \to 1$ and silu is $a$; for very negative $a$ it is 0. In between it
# bends smoothly, and dips below zero.
#
# **3. Its slope.** With $s = \sigma(a)$ and $s' = s(1 - s)$, the product rule gives $\text{silu}'(a) = s + a\, s (1 -
# s)$.
#
# **4. Backwards.** Let $dh = W_\text{down}^\top dy$ be the gradient of the product $h = \text{silu}(g) \odot u$. Each
# factor gets $dh$ times the other one: $du = dh \odot \text{silu}(g)$ and $dg = dh \odot u \odot \text{silu}'(g)$.
#
# **5. The branches meet:** $dx = W_\text{gate}^\top dg + W_\text{up}^\top du$, since $x$ went both ways.

# %% [markdown]
# ## The same in numbers
#
# A gate of $\ln 3$ is open by three quarters; then the slope of silu against a difference quotient.

# %%
tiny = SwigluWeights(gate_proj=np.array([[np.log(3)]]), up_proj=np.array([[8.0]]), down_proj=np.array([[1.0]]))
y, cache = swiglu_forward(np.array([[1.0]]), tiny)
print("y = 8 · 3/4 · ln 3 =", y[0, 0].round(4), " dx =", swiglu_backward(np.ones((1, 1)), cache)[0][0, 0].round(4))
a, h = np.linspace(-3, 3, 5), 1e-5
quotient = ((a + h) * sigmoid(a + h) - (a - h) * sigmoid(a - h)) / (2 * h)
print("slope of silu agrees to 1e-9:", np.abs(quotient - sigmoid(a) * (1 + a * (1 - sigmoid(a)))).max() < 1e-9)

# %%
a = np.linspace(-6, 6, 601)
s = sigmoid(a)
slope, lowest = s * (1 + a * (1 - s)), a[np.argmin(a * s)]

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
left.plot(a, a * s, color=COLORS["content"])
left.plot(a, np.maximum(a, 0), color=COLORS["ink"], linestyle="--", linewidth=1.2)
left.set(xlabel="a", title=f"silu dips to {np.min(a * s):.2f} at {lowest:.2f}")
left.text(1.2, 4.0, "relu", color=COLORS["ink"])
left.text(3.4, 2.2, "silu", color=COLORS["content"])
right.plot(a, slope, color=COLORS["content"])
right.plot(a, a > 0, color=COLORS["ink"], linestyle="--", linewidth=1.2)
right.set(xlabel="a", title=f"its slope lies between {slope.min():.2f} and {slope.max():.2f}")
plt.show()

# %% [markdown]
# ## What a gate can do: multiply
#
# There is a small fact about silu: $\text{silu}(a) - \text{silu}(-a) = a\,(\sigma(a) + \sigma(-a)) = a$. So two
# hidden units with opposite gates and opposite signs give $u\,(\text{silu}(a) - \text{silu}(-a)) = a u$, **exactly**.
# A gated MLP multiplies two coordinates with two hidden units, which says "this *and* that" in numbers.
#
# A plain MLP can only lay straight pieces side by side. We give it random hidden units, fit its last layer as well as
# it can be fitted (least squares), and count how many units it takes.

# %%
opposite = np.array([[1.0], [-1.0]])  # the two hidden units
gate, up = opposite * [1.0, 0.0], opposite * [0.0, 1.0]  # one gates by coordinate 0, and carries coordinate 1
multiplier = SwigluWeights(gate_proj=gate, up_proj=up, down_proj=np.array([[1.0, 1.0], [0.0, 0.0]]))
rng = np.random.default_rng(0)
points, fresh = rng.uniform(-2, 2, size=(4000, 2)), rng.uniform(-2, 2, size=(4000, 2))


def times(x):
    """What both machines shall learn."""
    return x[:, 0] * x[:, 1]


# %%
def fit_relu(n_units):
    """Part of the variance that a one-layer ReLU network with random hidden units misses on fresh points."""
    w, b = rng.normal(size=(2, n_units)), rng.normal(size=n_units)
    hidden, unseen = np.maximum(points @ w + b, 0), np.maximum(fresh @ w + b, 0)
    best = np.linalg.lstsq(hidden, times(points), rcond=None)[0]
    return np.mean((unseen @ best - times(fresh)) ** 2) / np.var(times(fresh))


units = [2, 4, 8, 16, 32, 64, 128, 256]
missed = [np.mean([fit_relu(n) for _ in range(5)]) for n in units]

# %%
gated = swiglu_forward(fresh, multiplier)[0][:, 0]
exact = np.abs(gated - times(fresh)).max()
needed = next(n for n, m in zip(units, missed) if m < 0.01)
signed = LinearSegmentedColormap.from_list("signed", [COLORS["ink"], "white", COLORS["content"]])

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.9), layout="constrained")
shown = left.scatter(*fresh.T, c=gated, s=6, cmap=signed)
fig.colorbar(shown, ax=left)
left.set(
    xlabel="coordinate 0 (gate)", ylabel="coordinate 1 (up)", aspect="equal", title="two gated units multiply exactly"
)
left.grid(visible=False)
right.loglog(units, missed, "o-", color=COLORS["ink"])
right.set(xlabel="ReLU units without a gate", ylabel="part of the variance missed")
right.set_title(f"no gate: {needed} units to miss < 1 %")
plt.show()

# %%
print("two gated units, largest error below 1e-14:", exact < 1e-14)
print("ReLU units needed to miss less than 1 %:", needed)

# %% [markdown]
# That is not a proof that gates train better; Shazeer (2020) measured that they do, and offers no explanation. It
# shows what the product adds: an exact operation that plain units can only approximate.
#
# ## What it costs
#
# Three matrices instead of two: $3 D F$ weights. To stay at the $8 D^2$ of a classic MLP ($F = 4D$), $F$ would be
# $\tfrac83 D$. DeepSeek-V3 has $D = 7168$ and $F = 18432 = 2.57\, D$ in its three dense layers: 396,361,728 weights
# each. Its experts are the same machine with $F = 2048$ (chapter 03).

# %%
D, F = 7168, 18432
print(f"dense layer 3 D F = {3 * D * F:,}   one expert 3 D 2048 = {3 * D * 2048:,}")

# %% [markdown]
# ## Memory
#
# The backward pass needs $g$, $u$ and $\text{silu}(g) \odot u$. The last one can be made again from the first two,
# and that is what `swiglu_backward` does: V3 caches only the inputs of SwiGLU in its experts and recomputes the
# output (report, section 3.3.3).
#
# ## Exercises
#
# **1.** Exchange `gate_proj` and `up_proj`. What changes in the forward pass, what in the training from scratch, what
# with a released checkpoint?
#
# <details><summary>Solution</summary>
#
# $\text{silu}(u) \odot g$ is another function, so a checkpoint gives nonsense. From scratch both are drawn from the
# same distribution, and the names mean nothing yet: training goes as well. Such mistakes are caught only by a test
# against another implementation or by a number worked out by hand: `test_a_gate_of_ln_3_is_open_by_three_quarters`.
# </details>
#
# **2.** Show that $\text{silu}'(a) + \text{silu}'(-a) = 1$.
#
# <details><summary>Solution</summary>
#
# Differentiate $\text{silu}(a) - \text{silu}(-a) = a$. In the plot: the slope curve is symmetric about the point $(0,
# \tfrac12)$, which is why its maximum 1.10 and its minimum −0.10 sum to one.
# </details>
#
# **3.** Why does the code compute $\sigma(a)$ as $\exp(-\text{logaddexp}(0, -a))$?
#
# <details><summary>Solution</summary>
#
# $1 / (1 + e^{-a})$ overflows in $e^{-a}$ for $a < -709$ (the result, 0, is right, the warning is not wanted). The
# other usual form, $\tfrac12 (1 + \tanh \tfrac a2)$, gives exactly 0 below $a \approx -37$, where the truth is
# $e^{a}$. `logaddexp` is $\ln(1 + e^{-a})$, computed without overflow and without losing the tail.
# </details>
