# %% [markdown]
# # Expert routing
#
# **The question.** A model with 256 experts reads a token with 8 of them. Somebody has to choose, and the choice is
# a step function: move a score a little and nothing changes, move it a little more and another expert answers. Steps
# have no slope. How does a router learn anything at all?
#
# **The idea.** Choose by the scores, then *multiply each expert's answer by its score*. The choice stays flat, but
# the weight of the answer is smooth, and through it the loss reaches the router.

# %%
import matplotlib.pyplot as plt
import numpy as np
from expert_routing import (
    count_load,
    sigmoid_gate_backward,
    sigmoid_gate_forward,
    softmax_gate_backward,
    softmax_gate_forward,
)

from utils.whiteboard import COLORS, board, box, note, use_style

use_style()


def headline(fig, text):
    """One finding above several plots, set like a title."""
    fig.suptitle(text, x=0.01, ha="left", fontsize=13, fontweight="bold")


rng = np.random.default_rng(3)

# %% [markdown]
# ## On the whiteboard: tokens flow to experts
#
# Six tokens, five experts, two activated. The thickness of an arrow is the gate: what the expert's answer counts.

# %%
x_ND, weight_ED = rng.normal(size=(6, 4)), rng.normal(size=(5, 4))
routing, _ = sigmoid_gate_forward(x_ND, weight_ED, 2)
load_E = count_load(routing.index_NA, 5)
fig, ax = board(12, 6.4, f"{load_E.sum()} visits for 6 tokens, and the loads already differ: {load_E.tolist()}")
tokens = [box(ax, 1.2, 5.7 - n, f"token {n}", "content", width=1.7, height=0.62) for n in range(6)]
experts = [box(ax, 8.4, 5.45 - 1.12 * e, f"expert {e}", "routed", width=1.9, height=0.7) for e in range(5)]
for n in range(6):
    for e, gate in zip(routing.index_NA[n], routing.gate_NA[n]):
        ends = [tokens[n].x + 0.9, experts[e].x - 1.0], [tokens[n].y, experts[e].y]
        ax.plot(*ends, color=COLORS["routed"], linewidth=9 * gate**1.5, alpha=0.7, solid_capstyle="round")
for e, load in enumerate(load_E):
    note(ax, 10.6, experts[e].y, f"{load} token" + "s" * int(load != 1), "routed", size=11)
plt.show()

# %% [markdown]
# ## The derivation, in five steps
#
# 1. **Score.** One row $e_i$ of the router for each expert: logits $l_i = x^\top e_i$. A *softmax* makes experts
#    compete, $s_i = e^{l_i}/\sum_j e^{l_j}$ (Switch, DeepSeek-V2). A *sigmoid* asks each one alone,
#    $s_i = 1/(1+e^{-l_i})$ (DeepSeek-V3, Eq. 15).
# 2. **Choose.** $\mathcal T$ = the $A$ largest. No gradient: $\mathcal T$ is constant almost everywhere (Eq. 14).
# 3. **Weigh.** Raw: $g_i = s_i$. Normalised: $g_i = s_i / S$ with $S = \sum_{j \in \mathcal T} s_j$ (Eq. 13).
# 4. **Back through the weight.** From $y = \sum_i g_i\, y_i$ comes $dg_i = y_i^\top dy$: an expert whose answer
#    points against the error should count more. Through the normalisation:
#    $$ds_i = \frac{1}{S}\Big(dg_i - \sum_{j\in\mathcal T} g_j\, dg_j\Big), \qquad i \in \mathcal T.$$
#    Only the difference from the *average* expert of the token teaches. A pull on all gates alike does nothing.
# 5. **Back through the score.** Sigmoid: $dl_i = ds_i\, s_i (1 - s_i)$, zero for experts not chosen. Softmax:
#    $dl_i = s_i (ds_i - \sum_j s_j ds_j)$, which is not zero for those that were not chosen.

# %% [markdown]
# ## A numeric check

# %%
pull_NA = rng.normal(size=(6, 2))
_, dweight_ED = sigmoid_gate_backward(pull_NA, sigmoid_gate_forward(x_ND, weight_ED, 2)[1])
nudge = rng.normal(size=weight_ED.shape) * 1e-6
values = [(sigmoid_gate_forward(x_ND, weight_ED + sign * nudge, 2)[0].gate_NA * pull_NA).sum() for sign in (1, -1)]
print(f"predicted {2 * (dweight_ED * nudge).sum():.9e}\nmeasured  {values[0] - values[1]:.9e}")

# %% [markdown]
# ## Who hears of the loss?
#
# One token, eight experts, three chosen. We ask for the gradient of every expert's logit, with the same pull on the
# gates, under three designs.

# %%
logits = rng.normal(size=8)
x_one, weight_one = np.eye(8)[:1], np.diag(np.ones(8))  # a token that reads one column, so that dweight shows dlogits
weight_one[:, 0] = logits
pull = np.array([[1.0, -0.5, 0.2]])
_, soft_cache = softmax_gate_forward(x_one, weight_one, 3)
chosen, sig_cache = sigmoid_gate_forward(x_one, weight_one, 3)
heard = np.stack([softmax_gate_backward(pull, soft_cache)[1][:, 0], sigmoid_gate_backward(pull, sig_cache)[1][:, 0]])
silent = np.setdiff1d(np.arange(8), chosen.index_NA)

# %%
n_soft, n_sig = (np.abs(heard[:, silent]) > 1e-12).sum(axis=1)
fig, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True)
for ax, values, name in zip(axes, heard, ("softmax, raw gates", "sigmoid, normalised gates")):
    colors = [COLORS["routed"] if e not in silent else COLORS["ink"] for e in range(8)]
    ax.bar(range(8), values, color=colors)
    ax.set(xlabel="expert", title=name)
    ax.title.set_fontsize(11)
axes[0].set_ylabel("gradient of the logit")
headline(fig, f"Of {len(silent)} experts not chosen, {n_soft} hear of the loss under softmax, {n_sig} under sigmoid")
fig.tight_layout()
plt.show()

# %% [markdown]
# Purple experts were chosen, grey ones were not. Under the sigmoid a neglected expert stays exactly where it is: not
# pushed away, not called back. Whatever brings it back must come from outside the task. That is what the chapters on
# balancing are about.
#
# ## The limit: one expert, normalised
#
# With $A = 1$ the normalised gate is $s/s = 1$. It is a constant, so the router receives *nothing*. The function
# warns.

# %%
import warnings

strength = []
for n_activated in range(1, 6):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # we know; that is the point
        _, cache = sigmoid_gate_forward(x_ND, weight_ED, n_activated)
    pulls = np.random.default_rng(1).normal(size=(200, 6, n_activated))
    strength.append(np.mean([np.linalg.norm(sigmoid_gate_backward(p, cache)[1]) for p in pulls]))

# %%
fig, ax = plt.subplots(figsize=(8, 3.2))
ax.bar(range(1, 6), strength, color=COLORS["routed"])
ax.set(xlabel="experts activated, of 5", ylabel="mean gradient norm of the router")
assert strength[0] < 1e-12 < min(strength[1:])
ax.set_title(f"One normalised expert teaches nothing (norm {strength[0]:.0f}), two {strength[1]:.2f}")
plt.show()

# %% [markdown]
# ## What comes next
#
# We can choose and we can learn. Next, `classic_moe`: getting tokens to their experts, and what happened to those
# that found the expert full.
#
# ## Exercises
#
# **1.** A token has scores 0.8, 0.6, 0.1 and two are activated. Normalised gates? Which of the three logits can move?
#
# <details><summary>Solution</summary>
#
# $0.8/1.4 = 0.571$ and $0.6/1.4 = 0.429$. Logits 0 and 1 move (in opposite directions); logit 2 does not: it was not
# chosen, and a sigmoid has no denominator that would connect it.
#
# </details>
#
# **2.** Show that with normalised gates $\sum_{i\in\mathcal T} s_i\, ds_i = 0$. What does it mean?
#
# <details><summary>Solution</summary>
#
# $\sum_i s_i ds_i = \frac1S\left(\sum_i s_i dg_i - \sum_i s_i \sum_j g_j dg_j\right)$, and $\sum_i s_i = S$, $s_i =
# S g_i$, so both terms are $\sum_i g_i dg_i$. Scaling all chosen scores of a token together changes no gate, so the
# loss cannot ask for it: the *level* of the scores is free, only ratios are learned.
#
# </details>
#
# **3.** Switch uses one expert and a softmax, without normalising. Why is that not silent?
#
# <details><summary>Solution</summary>
#
# Its gate is the raw probability of the winner, below 1 and smooth. $dl_i = s_i(ds_i - s_w ds_w)$ reaches all
# experts. Normalising over the chosen one alone is what kills it.
#
# </details>
