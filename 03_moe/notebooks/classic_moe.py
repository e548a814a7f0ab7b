# %% [markdown]
# # The classic mixture of experts
#
# **The question.** Tokens have chosen their experts. Now a matrix product wants a rectangle: every expert the same
# number of rows. But a popular expert has a queue at its door, and another stands idle. Who waits, and who is turned
# away?
#
# **The answer of GShard and Switch.** Give every expert $P$ places. Who comes too late is *dropped*: the layer adds
# nothing for that choice, and the residual carries the token on.

# %%
import matplotlib.pyplot as plt
import numpy as np
from classic_moe import (
    ClassicMoE,
    assign_places,
    classic_moe_forward,
    dropped_share,
    expert_choice_forward,
    expert_places,
    route_by_hash,
    route_uniformly,
)
from expert_routing import count_load, softmax_gate_forward

from utils.whiteboard import COLORS, INK, board, box, note, use_style

use_style()


def headline(fig, text):
    """One finding above several plots, set like a title."""
    fig.suptitle(text, x=0.01, ha="left", fontsize=13, fontweight="bold")


# %% [markdown]
# ## On the whiteboard: places, and who gets them

# %%
index_NA = np.array([[0, 1], [0, 2], [0, 1], [1, 0], [0, 2], [2, 0]])
places = expert_places(n_tokens=6, n_experts=3, n_activated=2, capacity_factor=1.0)
place_NA = assign_places(index_NA, 3, places)
dropped = int((place_NA < 0).sum())
seats = {(e, p): n for n in range(6) for e, p in zip(index_NA[n], place_NA[n]) if p >= 0}

# %%
fig, ax = board(12, 4.9, f"{places} places for each expert: {dropped} of 12 choices are turned away")
for e in range(3):
    y = 3.9 - 1.25 * e
    box(ax, 1.3, y, f"expert {e}", "routed", width=1.9, height=0.8)
    for p in range(places):
        guest = f"t{seats[e, p]}" if (e, p) in seats else ""
        box(ax, 3.3 + 1.15 * p, y, guest, "content" if guest else "ink", width=0.95, height=0.8)
    late = [f"t{n}" for n in range(6) for a in range(2) if index_NA[n, a] == e and place_NA[n, a] < 0]
    if late:
        note(ax, 8.4, y, "dropped: " + ", ".join(late), "ink", size=12, align="left")
note(ax, 6, 0.45, "all first choices are seated before any second choice, in the order of the tokens", "ink", size=10.5)
plt.show()

# %% [markdown]
# ## The derivation, in four steps
#
# 1. **Places.** Perfect balance would send $N A / E$ choices to each expert; $P = \lceil c\, N A / E\rceil$ leaves a
#    factor $c$ of room.
# 2. **Dispatch.** Copy token $n$ into place $p$ of expert $e$: $b_{ep} = x_n$. A copy, so the gradient is copied
#    back.
# 3. **Experts.** One batched product for all: $o_{ep} = W^{down}_e\,\mathrm{relu}(W^{up}_e\, b_{ep})$.
# 4. **Combine.** $y_n = \sum_{a\ \text{kept}} g_{na}\, o_{e(n,a)\,p(n,a)}$. Backward, with $dy$: $dg_{na} = o^\top
#    dy_n$, $\;do_{ep} = g_{na}\, dy_n$, and a dropped choice sends nothing to anyone, not even to the router: the
#    router is never told that the expert was full.

# %% [markdown]
# ## A numeric check
#
# With room for all, the layer must be the plain sum over chosen experts.

# %%
rng = np.random.default_rng(0)
x_ND, weights = rng.normal(size=(64, 8)), ClassicMoE.init(rng, 6, 8, 16)
y_ND, _ = classic_moe_forward(x_ND, weights, 2, capacity_factor=6.0)
routing, _ = softmax_gate_forward(x_ND, weights.weight, 2)
run = lambda n, e: weights.down_proj[e] @ np.maximum(weights.up_proj[e] @ x_ND[n], 0)  # noqa: E731
want = [sum(g * run(n, e) for e, g in zip(routing.index_NA[n], routing.gate_NA[n])) for n in range(64)]
print(f"largest difference {np.abs(y_ND - want).max():.1e}")

# %% [markdown]
# ## What room costs, and what skew costs
#
# Tokens with a common direction (as hidden states have) make some experts popular. How many choices are dropped?

# %%
factors = np.linspace(0.5, 4, 29)
skews, curves = (0.0, 1.0, 3.0), []
for skew in skews:
    skewed = rng.normal(size=(2048, 8)) + skew * np.ones(8) / 8**0.5
    index, _ = softmax_gate_forward(skewed, weights.weight, 2)
    share = [dropped_share(index.index_NA, 6, expert_places(2048, 6, 2, c)) for c in factors]
    curves.append(share)
at_125 = [np.interp(1.25, factors, curve) for curve in curves]

# %%
fig, ax = plt.subplots(figsize=(8, 3.8))
for skew, curve, kind in zip(skews, curves, ("latent", "content", "draft")):
    ax.plot(factors, np.array(curve) * 100, color=COLORS[kind], label=f"common direction {skew:g}")
ax.axvline(1.25, color=COLORS["ink"], linewidth=1, linestyle="--")
ax.set(xlabel="capacity factor c (memory and time grow with it)", ylabel="choices dropped, %")
ax.legend()
ax.set_title(f"At c = 1.25, skew takes the dropped share from {at_125[0]:.0%} to {at_125[-1]:.0%}")
assert at_125[0] < at_125[-1]
plt.show()

# %% [markdown]
# Room is no cure: the places of unpopular experts stay empty and are computed all the same. Balance is the cure, or
# not to drop at all: DeepSeek-V3 balances well enough to drop no token, in training or in use.
#
# ## The two ends of the scale
#
# *Experts choose.* Each takes the $P$ tokens that it scores highest. Loads are equal by construction, but whether I
# am taken depends on tokens that come after me. *Nobody chooses.* A hash of the token decides for ever.

# %%
score_like = rng.normal(size=(2048, 8)) + 1.0 * np.ones(8) / 8**0.5
vocabulary = np.random.default_rng(1).zipf(1.3, size=2048)  # a few words are very frequent
learned = softmax_gate_forward(score_like, weights.weight, 2)[0].index_NA
loads = {
    "tokens choose (learned)": count_load(learned, 6),
    "experts choose": np.full(6, expert_choice_forward(score_like, weights, 683)[1][2].shape[1]),
    "hash of the token": count_load(route_by_hash(vocabulary, 6, 2), 6),
    "dealt out like cards": count_load(route_uniformly(2048, 6, 2), 6),
}

# %%
fig, axes = plt.subplots(1, 4, figsize=(9.5, 2.9), sharey=True)
for ax, (name, load) in zip(axes, loads.items()):
    ax.bar(range(6), load / load.mean(), color=COLORS["routed"])
    ax.axhline(1, color=INK, linewidth=1, linestyle="--")
    ax.set_title(name, fontsize=10)
    ax.set_xlabel("expert")
axes[0].set_ylabel("load / mean load")
worst = {name: load.max() / load.mean() - 1 for name, load in loads.items()}
headline(fig, f"MaxVio {', '.join(f'{w:.2f}' for w in worst.values())}: even a hash is uneven when words are")
assert worst["hash of the token"] > 0.05 > worst["dealt out like cards"]
fig.tight_layout()
plt.show()

# %% [markdown]
# Does expert choice leak? Change the last tokens of a text and look at the output of the first ones.

# %%
x_text = rng.normal(size=(32, 8))
changed = x_text.copy()
changed[20:] = 2 * rng.normal(size=(12, 8))
leak = np.abs(expert_choice_forward(x_text, weights, 8)[0] - expert_choice_forward(changed, weights, 8)[0])[:20]
safe = np.abs(classic_moe_forward(x_text, weights, 2, 6.0)[0] - classic_moe_forward(changed, weights, 2, 6.0)[0])[:20]
print(f"tokens before the change whose output moved: experts choose {(leak.max(1) > 1e-9).sum()} of 20, ", end="")
print(f"tokens choose {(safe.max(1) > 1e-9).sum()} of 20")

# %% [markdown]
# An encoder may do this; a language model may not: in training it could read the future, and when it writes, the
# future is not there. So tokens choose, and the load has to be balanced by other means: `load_balancing` is next.
#
# ## Exercises
#
# **1.** 1024 tokens, 16 experts, 2 activated, capacity factor 1.25. How many places, and what share of the computed
# places is empty if no token is dropped?
#
# <details><summary>Solution</summary>
#
# $\lceil 1.25 \cdot 2048 / 16 \rceil = 160$ places; $16 \cdot 160 = 2560$ computed for 2048 choices: 20 % are empty.
#
# </details>
#
# **2.** In the code, `place` is $-1$ for a dropped choice. What would go wrong without the multiplication by
# `kept_NA`?
#
# <details><summary>Solution</summary>
#
# Index $-1$ is the *last* place of the expert: the dropped token would receive another token's answer. No error, no
# NaN, only a model that is a little worse. It is one of the planted bugs of this chapter (`make bugs`).
#
# </details>
#
# **3.** Why does GShard seat all first choices before any second choice?
#
# <details><summary>Solution</summary>
#
# A second choice has the smaller gate, so dropping it costs less. Token by token, an early token's second choice
# could take the seat of a later token's first.
#
# </details>
