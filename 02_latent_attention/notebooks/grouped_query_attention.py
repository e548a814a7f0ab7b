# %% [markdown]
# # Grouped-query attention
#
# **The question.** Multi-head attention keeps too much, multi-query attention expresses too little. Is there something
# between?

# %%
import matplotlib.pyplot as plt
import numpy as np
from grouped_query_attention import GroupedQueryWeights, grouped_query_forward, share_heads_forward
from kv_cache import TokenCache

from utils.whiteboard import COLORS, arrow, board, box, note, use_style

use_style()

# %% [markdown]
# ## On the whiteboard: one dial
#
# `num_key_value_heads` = $J$ turns from $J = H$ (multi-head) to $J = 1$ (multi-query). Neighbouring heads share.

# %%
fig, ax = board(21, 4.8)
for panel, (J, name) in enumerate([(4, "J = 4: multi-head"), (2, "J = 2: grouped"), (1, "J = 1: multi-query")]):
    x0 = 7 * panel
    note(ax, x0 + 3.3, 4.5, name, size=12)
    share = 4 // J
    centres = [x0 + 1 + 1.55 * (j * share + (share - 1) / 2) for j in range(J)]
    keys = [box(ax, c, 0.8, f"k{j}, v{j}", "content", width=1.35, filled=True, size=10) for j, c in enumerate(centres)]
    for h in range(4):
        arrow(ax, box(ax, x0 + 1 + 1.55 * h, 3.4, f"q{h}", "ink", width=1.2), keys[h // share])
plt.show()

# %% [markdown]
# ## Derivation
#
# 1. Project $J$ keys and values per token; keep $J(K+U)$ values.
# 2. Head $h$ reads key-value head $\lfloor h / (H/J) \rfloor$: `repeat` gives `0 0 1 1`, `tile` would give `0 1 0 1`.
#    Both train, only one reads a released checkpoint.
# 3. Backward: sum the gradients of the $H/J$ heads that share.
#
# ## Check in numbers

# %%
names = np.arange(2.0).reshape(1, 2, 1, 1)
print("4 heads, 2 key-value heads: head h reads", share_heads_forward(names, 2)[0, :, 0, 0].astype(int))
rng = np.random.default_rng(0)
x = rng.standard_normal((1, 6, 32))
for J in (8, 4, 2, 1):
    past = TokenCache(6)
    grouped_query_forward(x, GroupedQueryWeights.init(rng, D=32, H=8, J=J, K=4, U=4), past)
    print(f"J = {J}: {past.nbytes // 8 // 6} values per token")

# %% [markdown]
# ## The finding: what sharing costs a layer that was not trained to share
#
# Take a multi-head layer with random weights and replace the keys and values of each group by their mean. (This is how
# GQA models were first made from MHA models; afterwards they are trained on.) Heads of a random layer have nothing in
# common, so this is the worst case.

# %%
H, K, D = 8, 16, 64
full = GroupedQueryWeights.init(rng, D, H, H, K, K)
x = rng.standard_normal((4, 32, D))
want = grouped_query_forward(x, full)[0]


def pooled(J):
    mean = [w.reshape(J, H // J, K, D).mean(1).reshape(J * K, D) for w in (full.k_proj, full.v_proj)]
    return GroupedQueryWeights(full.q_proj, *mean, full.o_proj, H, J)


dial = [8, 4, 2, 1]
miss = [np.linalg.norm(grouped_query_forward(x, pooled(J))[0] - want) / np.linalg.norm(want) for J in dial]

# %%
fig, ax = plt.subplots()
ax.plot([2 * J * K for J in dial], miss, "o-", color=COLORS["content"])
for J, error in zip(dial, miss):
    ax.annotate(f"J = {J}", (2 * J * K, error), xytext=(8, 4), textcoords="offset points")
ax.set(xlabel="values kept per token", ylabel="relative error of the output", ylim=(-0.05, 1.15), xlim=(0, 290))
assert (np.diff(miss) > 0).all()
ax.set_title(f"Pooling untrained heads: half the cache, {miss[1]:.0%} error")
plt.show()

# %% [markdown]
# ## What changed since the last notebook
#
# Nothing but a number. GQA picks *which* heads share and shares whole vectors. The next notebook asks a better
# question: if all that is to be kept is $n$ numbers per token, which $n$ numbers are best?
#
# ## Exercises
#
# 1. DeepSeek-V3 keeps 576 values per layer and token. How many key-value heads of width 128 is that?
#
# <details><summary>Solution</summary>
#
# $576 / (2 \cdot 128) = 2.25$, the number in Table 1 of the V2 paper.
#
# </details>
#
# 2. Does `repeat` copy the keys in memory? How would you avoid it?
#
# <details><summary>Solution</summary>
#
# `np.repeat` copies. Reshape the *queries* to [B, J, H/J · S, K] instead and multiply them with the J keys as they are:
# the readers become extra rows of the query matrix.
#
# </details>
