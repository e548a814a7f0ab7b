# %% [markdown]
# # Load balancing by a loss
#
# **The question.** A router that likes an expert trains it more, so it gets better, so the router likes it more.
# How can we ask for balance in the only language that training understands: a loss with a gradient?
#
# **The difficulty.** The load is a count, and a count has no slope.
#
# **The idea.** Multiply the count by something smooth that rises and falls with it: the mean score.

# %%
import matplotlib.pyplot as plt
import numpy as np
from expert_routing import choose_top_experts, count_load, sigmoid
from load_balancing import (
    communication_balance_forward,
    device_balance_forward,
    expert_balance_forward,
    sequence_balance_backward,
    sequence_balance_forward,
)

from utils.whiteboard import COLORS, INK, arrow, board, matrix, note, use_style

use_style()


def headline(fig, text):
    """One finding above several plots, set like a title."""
    fig.suptitle(text, x=0.01, ha="left", fontsize=13, fontweight="bold")


# %% [markdown]
# ## On the whiteboard: a count times a score
#
# The golden example of the report's Eqs. (17) to (20): two tokens, four experts, two activated.

# %%
score = np.array([[[0.9, 0.1, 0.5, 0.5], [0.8, 0.2, 0.6, 0.4]]])
loss, (slope, share, _) = sequence_balance_forward(score, 2, 1.0)
f, P = slope[0] * 2, share[0].mean(axis=0)
fig, ax = board(14, 5.2, f"L / alpha = sum of f x P = {loss:.1f}; in balance it would be 1.0")
matrix(ax, 0.6, 4.1, score[0], "routed", cell=0.8, numbers=".1f", label="scores s")
matrix(ax, 5.0, 4.1, share[0], "routed", cell=0.8, numbers=".2f", label="shares s' (rows sum to 1)")
matrix(ax, 9.9, 3.75, P[None], "routed", cell=0.9, numbers=".3f", label="P: mean share, smooth")
matrix(ax, 9.9, 2.0, f[None], "ink", cell=0.9, numbers=".0f", label="f: counts, no gradient")
arrow(ax, (3.9, 3.3), (4.9, 3.3))
arrow(ax, (8.3, 3.3), (9.8, 3.3))
arrow(ax, (2.2, 2.4), (9.8, 1.55), "top 2 of each row", kind="ink", bend=0.12)
note(ax, 7, 0.4, "gradient: each score is pushed down by f, relative to the token's average push", "ink", size=11)
plt.show()

# %% [markdown]
# ## The derivation, in five steps
#
# 1. **Count.** $f_i = \frac{E}{A\,T}\,\#\{t : i \text{ chosen}\}$. The factor makes $f_i = 1$ for everyone in
#    balance, whatever $E$ and $A$.
# 2. **Share.** $s'_{it} = s_{it}/\sum_j s_{jt}$, because sigmoid scores have no common scale; $P_i = \frac1T\sum_t
#    s'_{it}$, and $\sum_i P_i = 1$.
# 3. **Product.** $L = \alpha\sum_i f_i P_i$. In balance $L = \alpha$.
# 4. **Gradient through $P$ alone.** $\partial L/\partial s'_{it} = \alpha f_i/T$: the busier, the harder the push.
# 5. **Through the share:** $ds_{it} = \frac{\alpha}{T\sum_j s_{jt}}\big(f_i - \sum_j s'_{jt} f_j\big)$. Experts
#    busier than the token's average go down, the others *up*: unlike the task, this loss does call back the
#    neglected.

# %% [markdown]
# ## A numeric check

# %%
rng = np.random.default_rng(0)
raw = rng.uniform(0.1, 0.9, size=(3, 16, 8))
_, cache = sequence_balance_forward(raw, 2, 1.0)
nudge = rng.normal(size=raw.shape) * 1e-7
values = [sequence_balance_forward(raw + sign * nudge, 2, 1.0)[0] for sign in (1, -1)]
print(f"predicted {2 * (sequence_balance_backward(1.0, cache) * nudge).sum():.9e}")
print(f"measured  {values[0] - values[1]:.9e}")

# %% [markdown]
# ## It works: load before and after
#
# Scores of a skewed router, and nothing but the balance loss to follow (500 steps of plain gradient descent on the
# logits of 512 tokens).

# %%
tokens_ND = np.concatenate([rng.normal(size=(512, 12)), np.full((512, 1), 2.0)], axis=1)  # a common direction
router_ED = rng.normal(size=(8, 13)) * 0.4
history = []
for _ in range(500):
    score_NE = sigmoid(tokens_ND @ router_ED.T)
    loss, cache = sequence_balance_forward(score_NE[None], 2, 1.0)
    history.append((loss, count_load(choose_top_experts(score_NE, 2), 8)))
    dscore = sequence_balance_backward(1.0, cache)[0]
    router_ED -= 2.0 * (dscore * score_NE * (1 - score_NE)).T @ tokens_ND

# %%
before, after = history[0][1], history[-1][1]
fig, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True)
for ax, load, name in zip(axes, (before, after), ("before", "after 500 steps")):
    ax.bar(range(8), load, color=COLORS["routed"])
    ax.axhline(load.mean(), color=INK, linewidth=1, linestyle="--")
    ax.set_title(f"{name}: MaxVio {load.max() / load.mean() - 1:.2f}", fontsize=11)
    ax.set_xlabel("expert")
axes[0].set_ylabel("tokens")
headline(fig, f"The busiest of 8 experts goes from {before.max()} to {after.max()} tokens (mean 128)")
assert after.max() < before.max()
fig.tight_layout()
plt.show()

# %% [markdown]
# ## Four levels, four opinions
#
# DeepSeek-V2 balances experts, *devices* (compute) and *communication* (copies received). V3 keeps only a small
# sequence-wise loss. The same routings, seen by all: 8 experts on 4 devices, 2 activated, at most 2 devices a token.

# %%
T = np.arange(64)
cases = {
    "one pair|takes all": np.stack([0 * T, 0 * T + 1], 1),
    "one expert|of each device": np.stack([2 * (T % 4), 2 * ((T + 1) % 4)], 1),
    "pairs that share|a device": np.stack([2 * (T % 4), 2 * (T % 4) + 1], 1),
    "each sequence|has its half": np.stack([T % 4 + 4 * (T >= 32), (T + 1) % 4 + 4 * (T >= 32)], 1),
}

# %%
table = []
for index in cases.values():
    s = np.full((64, 8), 0.05)
    np.put_along_axis(s, index, 0.35, axis=1)
    levels = [expert_balance_forward(s, index, 1.0), device_balance_forward(s, index, 4, 1.0)]
    levels += [
        communication_balance_forward(s, index, 4, 2, 1.0),
        sequence_balance_forward(s.reshape(2, 32, 8), 2, 1.0),
    ]
    table.append([level[0] for level in levels])

# %%
fig, ax = plt.subplots(figsize=(9.5, 3.6))
names = ("expert", "device", "communication", "sequence-wise")
for k, (name, kind) in enumerate(zip(names, ("routed", "content", "rope", "latent"))):
    ax.bar(np.arange(4) + 0.2 * k - 0.3, np.array(table)[:, k], width=0.18, color=COLORS[kind], label=name)
ax.axhline(1, color=INK, linewidth=1, linestyle="--")
ax.set_xticks(range(4), [name.replace("|", "\n") for name in cases])
ax.set_ylabel("loss / alpha")
ax.legend(ncols=4, loc="upper right")
blind = [names[k] for k in range(4) if table[1][k] <= 1.0001 and table[1][0] > 1.0001]
ax.set_title(f"Experts idle, yet {' and '.join(blind)} see nothing wrong")
plt.show()

# %% [markdown]
# Read the last group: every expert is equally busy over the whole batch, but each *sequence* uses half of them.
# Only the sequence-wise loss objects. Whether that is a fault or the very specialisation one hoped for is the
# question of the next notebook.
#
# ## What it costs the language loss
#
# Every auxiliary loss pulls on the same router weights as the task. Suppose the best router for the task is a skewed
# one: a topic is frequent. At that best point the task's gradient is zero, and the balance loss is not at rest.

# %%
pulls = []
for top in np.linspace(1 / 8, 5 / 8, 6):
    p = np.r_[top, np.full(7, (1 - top) / 7)]
    topic = rng.choice(8, size=(1, 4096), p=p)
    s = np.full((1, 4096, 8), 0.02)
    np.put_along_axis(s, topic[..., None], 0.9, axis=-1)  # each topic has its expert, firmly
    dscore = sequence_balance_backward(1.0, sequence_balance_forward(s, 1, 1.0)[1])
    pulls.append((top, np.abs(dscore[0]).sum(axis=0).max()))

# %%
fig, ax = plt.subplots(figsize=(9, 3.4))
ax.plot(*np.array(pulls).T, color=COLORS["routed"], marker="o")
ax.set(xlabel="share of the most frequent topic", ylabel="pull on one expert / alpha")
ax.set_title("The more skewed the best router, the harder the pull away from it")
assert (np.diff([pull for _, pull in pulls]) > 0).all()
plt.show()

# %% [markdown]
# This pull is paid in language loss. $\alpha$ sets the price: too small and experts starve, too large and the router
# obeys the loss and not the text. The next notebook, `loss_free_balancing`, does without, and measures both.
#
# ## Exercises
#
# **1.** A batch of two sequences; sequence 1 sends everything to experts 0 and 1, sequence 2 to 2 and 3, of four
# experts. What do the pooled and the sequence-wise $f$ look like?
#
# <details><summary>Solution</summary>
#
# Pooled: $f = [1, 1, 1, 1]$. Sequence-wise: $[2, 2, 0, 0]$ and $[0, 0, 2, 2]$. An implementation that pools the
# batch but calls itself sequence-wise is one of this chapter's planted bugs.
#
# </details>
#
# **2.** Somebody builds $P$ from raw sigmoid scores. What does the router then learn that has nothing to do with
# balance?
#
# <details><summary>Solution</summary>
#
# To lower *all* scores: $\sum_i f_i s_i$ falls when every score of a token shrinks. Since gates are normalised, the
# task does not resist, and the scores drift towards zero.
#
# </details>
#
# **3.** Forgetting the $1/A$ in $f$: what changes when you go from top-2 to top-8?
#
# <details><summary>Solution</summary>
#
# The loss is multiplied by $A$, so it grows from $2\alpha$ to $8\alpha$ in perfect balance, and a tuned $\alpha$ is
# worthless for the new $A$.
#
# </details>
