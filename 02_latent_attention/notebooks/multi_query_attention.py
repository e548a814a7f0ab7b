# %% [markdown]
# # Multi-query attention
#
# **The question.** While a model decodes, its arithmetic units wait for memory: each key is fetched, used for one
# product, and dropped. Can one read serve more than one query?
#
# Eight readers sit in the archive, and each has a card for every word, written for him alone. For every new word the
# messenger carries eight drawers up from the cellar. The reading takes a moment, the carrying takes the day. So someone
# proposes: *one* drawer for all of you. The questions stay your own.
#
# That is multi-query attention: every head has its own queries, all heads share one key and one value per token. The
# messenger carries an eighth. What do the readers lose? That will be measured below, not guessed.

# %%
import numpy as np
from kv_cache import MultiHeadWeights, TokenCache, cached_attention_backward, cached_attention_forward
from multi_query_attention import MultiQueryWeights, multi_query_backward, multi_query_forward

from utils.drawings_02 import draw_sharing
from utils.plots_02 import plot_lines
from utils.recall_task import Recall, train_recalls

# %%
draw_sharing({4: "multi-head: 4 keys and values", 1: "multi-query: 1 key and value"}, "Four queries, one drawer")

# %% [markdown]
# ## Numbers to follow with a pencil
#
# Two tokens, $(1, 0)$ and $(0, 1)$; the shared key and the shared value of a token are the token itself. Token 1 asks
# twice: head 0 with $(0, 1)$, head 1 with the opposite, $(0, -1)$.
#
# Head 0: scores $0$ and $1/\sqrt2 = 0.707$, shares $1 / (1 + e^{0.707}) = 0.330$ and $0.670$. Head 1: scores $0$ and
# $-0.707$, shares $0.670$ and $0.330$. The *same* two keys, and two different answers: sharing keys is not sharing
# attention.

# %%
keys = values = np.eye(2)
for head, query in enumerate([np.array([0.0, 1.0]), np.array([0.0, -1.0])]):
    share = np.exp(keys @ query / np.sqrt(2))
    share /= share.sum()
    print(f"head {head}: shares {share.round(3)}, finds {(share @ values).round(3)}")

# %% [markdown]
# ## Build it
#
# Letters: $H$ heads, $S$ tokens, hidden states of width $D$, keys of width $K$, values of width $U$. The only loop that
# is left over heads is the one over *queries*; keys and values are made once, before it.

# %%
rng = np.random.default_rng(0)
D, H, K, U, S = 16, 4, 4, 4, 6
weights, x = MultiQueryWeights.init(rng, D, H, K, U), rng.standard_normal((S, D))


def ask_one_drawer(x):
    """Causal multi-query attention of one text [S, D], head by head."""
    keys, values, found = x @ weights.k_proj.T, x @ weights.v_proj.T, []  # no head axis
    for q_proj in np.split(weights.q_proj, H):
        score = np.where(np.tri(S) > 0, x @ q_proj.T @ keys.T / np.sqrt(K), -np.inf)
        share = np.exp(score - score.max(axis=1, keepdims=True))
        found.append(share / share.sum(axis=1, keepdims=True) @ values)
    return np.concatenate(found, axis=1) @ weights.o_proj.T


# %%
y, cache = multi_query_forward(x[None], weights)
assert np.allclose(y[0], ask_one_drawer(x), rtol=0, atol=1e-13)
print("naive and module agree")

# %% [markdown]
# It is multi-head attention whose heads happen to have equal key and value matrices. Tie them, and the outputs agree;
# only the drawer is four times larger, full of copies.

# %%
tied_k, tied_v = np.tile(weights.k_proj, (H, 1)), np.tile(weights.v_proj, (H, 1))
tied = MultiHeadWeights(weights.q_proj, tied_k, tied_v, weights.o_proj, H)
one, many = TokenCache(S), TokenCache(S)
multi_query_forward(x[None], weights, one)
assert np.allclose(cached_attention_forward(x[None], tied, many)[0], y, rtol=0, atol=1e-13)
print(f"cache of {S} tokens: {one.nbytes} bytes instead of {many.nbytes}")

# %% [markdown]
# ## The derivation
#
# 1. Multi-head: $o_{h,s} = \sum_t \mathrm{softmax}_t(q_{h,s}\cdot k_{h,t}/\sqrt K)\, v_{h,t}$, where $h$ is the head,
#    $s$ the token that asks, $t$ a token that is read. Cache: $H(K+U)$ values per token.
# 2. Drop the $h$ of $k$ and $v$: $o_{h,s} = \sum_t \mathrm{softmax}_t(q_{h,s}\cdot k_t/\sqrt K)\, v_t$. Cache: $K+U$.
# 3. Backward. $k_t$ enters the scores of all $H$ heads, so by the chain rule its gradient is
#    $dk_t = \sum_h dk_{h,t}$. *What the forward shares, the backward sums.*
# 4. The work per step is unchanged, $2HT(K+U)$ operations for $T$ keys. But the $H$ queries of a token now form one
#    matrix against the same keys: each key is fetched once and used $H$ times.
#
# Step 3 can be checked without a new derivation: the tied multi-head layer knows one gradient for each copy.

# %%
dy = rng.standard_normal(y.shape)
dshared = multi_query_backward(dy, cache)[1].k_proj
dcopies = cached_attention_backward(dy, cached_attention_forward(x[None], tied)[1])[1].k_proj.reshape(H, K, D)
assert np.allclose(dshared, dcopies.sum(axis=0), rtol=0, atol=1e-12)
print("lengths: of the copies' gradients", np.linalg.norm(dcopies, axis=(1, 2)).round(2), end="; ")
print(f"of their sum {np.linalg.norm(dshared):.2f}, of their mean {np.linalg.norm(dshared) / H:.2f}")

# %% [markdown]
# ## The experiment: what do four readers lose?
#
# Train both kinds from scratch on a small task. Six tokens each write a value beside a name; the last token shows a
# name and wants the value, or shows a value and wants the name. Four heads, 400 steps, the same key width for both, so
# that multi-query keeps a quarter.

# %%
task, widths = Recall(both_ways=True), (2, 4, 6, 8, 12)
right: dict = {"multi-head": [], "multi-query": []}
for K in widths:
    layer = MultiHeadWeights.init(np.random.default_rng(0), task.width, 4, K, K)
    right["multi-head"].append(train_recalls(layer, cached_attention_forward, cached_attention_backward, task))
    layer = MultiQueryWeights.init(np.random.default_rng(0), task.width, 4, K, K)
    right["multi-query"].append(train_recalls(layer, multi_query_forward, multi_query_backward, task))
    print(f"K = {K:>2}: multi-head {right['multi-head'][-1]:.0%}, multi-query {right['multi-query'][-1]:.0%}")

# %%
many, one = right["multi-head"][2], right["multi-query"][2]
assert many > one + 0.2
plot_lines(
    {name: (widths, r) for name, r in right.items()},
    ["ink", "content"],
    f"Keys of width 6: four drawers {many:.0%} right, one drawer {one:.0%}",
    "key width K (multi-query keeps a quarter)",
    "right answers after 400 steps",
    ylim=(0, 1.04),
)

# %% [markdown]
# At the same width, the shared key has too little room for what four heads would like to find; a wider one makes up for
# it. That comparison is not fair to multi-query attention, for it keeps a quarter; the next notebook compares at equal
# cache, and there the verdict turns around. (A toy, one seed. At scale, V2's Table 1 rates multi-query attention
# clearly weaker than multi-head.)
#
# ## Change this, predict, run
#
# A reader's implementation takes the *mean* of the heads' gradients for the shared key. Predict: does training by Adam
# notice? And by plain gradient descent? The cell trains both ways with Adam.
#
# <details><summary>Afterwards</summary>
#
# Adam divides each gradient by its own running size, so a factor of 4 cancels: the two runs are the same. Plain descent
# would move the shared matrices four times too slowly. Only a gradient check sees the mistake in both.
#
# </details>


# %%
def averaged(dy, cache):
    dx, grads = multi_query_backward(dy, cache)
    grads.k_proj[:] /= 4
    grads.v_proj[:] /= 4
    return dx, grads


for name, backward in (("sum", multi_query_backward), ("mean", averaged)):
    layer = MultiQueryWeights.init(np.random.default_rng(0), task.width, 4, 8, 8)
    print(f"{name}: {train_recalls(layer, multi_query_forward, backward, task):.1%}")

# %% [markdown]
# ## What changed since the last notebook
#
# The cache is $H$ times smaller and each byte of it does $H$ times the work. The price is expression: all heads must
# find what they look for in the *same* key, and the values they mix are the same numbers. Remember the picture, though:
# absorbed latent attention is multi-query attention too, with a wider key.
#
# ## What you can now do
#
# Write multi-query attention forward and backward; say why it helps decoding although it saves no arithmetic; and
# measure what sharing costs.
#
# ## Exercises
#
# Graded: `shared_key_backward` with $J = 1$ (`make check CH=02`). By thought alone:
#
# 1. Multiply the shared key projection by 2 and every query projection by 1/2. What changes?
#
# <details><summary>Solution</summary>
#
# Nothing: only $q \cdot k$ matters, and the factors cancel.
#
# </details>
#
# 2. Why is averaging the heads' gradients of the shared key a mistake that training may survive?
#
# <details><summary>Solution</summary>
#
# It points the same way and is $H$ times too short. Adam divides by the gradient's own size, so the factor cancels but
# for its tiny epsilon; a gradient check does not forgive it (`python -m utils.bugs 02` plants it).
#
# </details>
