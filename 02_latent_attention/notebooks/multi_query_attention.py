# %% [markdown]
# # Multi-query attention
#
# **The question.** While a model decodes, its arithmetic units wait for memory: each key is read, used for one product,
# and dropped. Can one read serve more than one query?

# %%
import matplotlib.pyplot as plt
import numpy as np
from kv_cache import MultiHeadWeights, TokenCache, cached_attention_forward
from multi_query_attention import MultiQueryWeights, multi_query_backward, multi_query_forward

from utils.whiteboard import COLORS, arrow, board, box, note, use_style

use_style()

# %% [markdown]
# ## On the whiteboard
#
# Multi-head attention keeps a key and a value for every head. Multi-query attention keeps one pair, and every head asks
# it.

# %%
fig, ax = board(18, 5.4)
note(ax, 4, 5.1, "multi-head: 4 queries, 4 keys and values", size=12)
note(ax, 14, 5.1, "multi-query: 4 queries, 1 key and value", size=12)
shared = box(ax, 14, 1, "k, v", "content", filled=True)
for h in range(4):
    query = box(ax, 1 + 2 * h, 3.8, f"q{h}", "ink", width=1.4)
    arrow(ax, query, box(ax, 1 + 2 * h, 1, f"k{h}, v{h}", "content", width=1.5))
    arrow(ax, box(ax, 11 + 2 * h, 3.8, f"q{h}", "ink", width=1.4), shared)
plt.show()

# %% [markdown]
# ## Derivation
#
# 1. Multi-head: $o_{h,s} = \sum_t \mathrm{softmax}_t(q_{h,s}\cdot k_{h,t}/\sqrt K)\, v_{h,t}$. Cache: $H(K+U)$ values
#    per token.
# 2. Drop the $h$ of $k$ and $v$: $o_{h,s} = \sum_t \mathrm{softmax}_t(q_{h,s}\cdot k_t/\sqrt K)\, v_t$. Cache: $K+U$.
# 3. Backward. $k_t$ feeds $H$ scores, so by the chain rule $dk_t = \sum_h dk_{h,t}$. *What the forward shares, the
#    backward sums.*
# 4. Work is unchanged ($2HST(K+U)$ operations), but the $H$ queries of a token now form one matrix against the same
#    keys: a matrix product instead of $H$ dot products, each key read once.
#
# ## Check in numbers: it is multi-head attention with tied keys

# %%
rng = np.random.default_rng(0)
D, H, K, U = 16, 4, 4, 4
shared = MultiQueryWeights.init(rng, D, H, K, U)
tied_k, tied_v = np.tile(shared.k_proj, (H, 1)), np.tile(shared.v_proj, (H, 1))
tied = MultiHeadWeights(shared.q_proj, tied_k, tied_v, shared.o_proj, H)
x = rng.standard_normal((1, 6, D))
gap = np.abs(multi_query_forward(x, shared)[0] - cached_attention_forward(x, tied)[0]).max()
print(f"same outputs to 1e-12: {gap < 1e-12}")

# %%
one, many = TokenCache(6), TokenCache(6)
y, cache = multi_query_forward(x, shared, one)
cached_attention_forward(x, tied, many)
print(f"cache: {one.nbytes} bytes instead of {many.nbytes}")
dx, dweights = multi_query_backward(np.ones_like(y), cache)
print("gradient of the one key projection:", dweights.k_proj.shape)

# %% [markdown]
# ## The finding
#
# Operations per byte read from the cache, in BF16: $2HT(K+U)$ operations over $2T \cdot (\text{heads kept})\,(K+U)$
# bytes.

# %%
heads = 2 ** np.arange(0, 8)
multi_head = 2 * heads * (K + U) / (2 * heads * (K + U))
multi_query = 2 * heads * (K + U) / (2 * (K + U))
fig, ax = plt.subplots()
ax.loglog(heads, multi_query, "o-", base=2, color=COLORS["content"], label="multi-query")
ax.loglog(heads, multi_head, "o-", base=2, color=COLORS["ink"], label="multi-head")
ax.set(xlabel="heads, H", ylabel="operations per byte of cache")
ax.set_title(f"{heads[-1]} heads on one key: each read does {multi_query[-1] / multi_head[-1]:.0f} times the work")
ax.legend()
plt.show()

# %% [markdown]
# ## What changed since the last notebook
#
# The cache is $H$ times smaller and each byte of it does $H$ times the work. The price is expression: all heads must
# find what they look for in the *same* key, and the values they mix are the same numbers. The V2 paper's Table 1 rates
# the result weak. Remember the picture, though: absorbed latent attention is multi-query attention too, with a wider
# key.
#
# ## Exercises
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
# It points the same way and is $H$ times too short. Adam divides by the gradient's own size, so it would hide the
# mistake almost completely; a gradient check does not (`make bugs` plants it).
#
# </details>
