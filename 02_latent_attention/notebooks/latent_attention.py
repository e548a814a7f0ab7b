# %% [markdown]
# # Latent attention, without positions
#
# **The question.** If we may keep only $C$ numbers per token, which ones serve all heads best?
#
# Not some of the keys and some of the values, but a *latent* that both can be computed from.

# %%
import matplotlib.pyplot as plt
import numpy as np
from kv_cache import MultiHeadWeights, TokenCache, cached_attention_forward
from latent_attention import LatentWeights, compress_projections, latent_attention_forward, score_from_latent

from utils.whiteboard import COLORS, arrow, board, box, note, use_style

use_style()

# %% [markdown]
# ## On the whiteboard
#
# Down once, up per head. The only thing that outlives the step is the green box.

# %%
fig, ax = board(19, 6.2)
hidden = box(ax, 1.6, 3.2, "hidden\nD = 7168", "ink", width=2.4, height=1.5)
latent = box(ax, 7.4, 3.2, "latent c\nC = 512", "latent", width=2.4, height=1.5, filled=True)
arrow(ax, hidden, latent, "W_DKV")
for h, (y, name) in enumerate([(5.3, "1"), (3.2, "2"), (1.1, "128")]):
    pair = box(ax, 13.8, y, f"k{name}   v{name}", "content", width=2.6, height=0.9)
    arrow(ax, latent, pair, "W_UK, W_UV" if h == 1 else "")
note(ax, 13.8, 2.15, "...", size=16)
note(ax, 7.4, 5.0, "kept in the cache", "latent", size=12)
note(ax, 7.4, 1.4, "512 numbers", "latent", size=12)
note(ax, 17.2, 3.2, "rebuilt when read:\n128 · (128 + 128)\n= 32,768 numbers", "content", size=11)
plt.show()

# %% [markdown]
# ## Derivation
#
# 1. $c_t = W^{DKV} h_t$: joint compression to $C$ numbers (V3 Eq. 1).
# 2. $k_{h,t} = W^{UK}_h c_t,\quad v_{h,t} = W^{UV}_h c_t$: each head has its own view of the same latent (Eq. 2, 5).
# 3. So $k_{h,t} = (W^{UK}_h W^{DKV}) h_t$: an ordinary key projection, whose stack over heads is forced to rank
#    $\le C$. Nothing else is given up: every head still has its own key and its own value.
# 4. Backward: the latent is read by $H$ keys and $H$ values, so
#    $dc_t = \sum_h \left(W_h^{UK\top} dk_{h,t} + W_h^{UV\top} dv_{h,t}\right)$.
# 5. And the gift: $q_h \cdot (W^{UK}_h c_t) = (W_h^{UK\top} q_h) \cdot c_t$. The scores need no keys at all.
#
# ## Check in numbers

# %%
rng = np.random.default_rng(0)
D, H, K, U, C = 32, 4, 8, 8, 12
weights = LatentWeights.init(rng, D, H, K, U, C)
x = rng.standard_normal((1, 6, D))
past = TokenCache(6)
_, (_, _, (q, k, *_), latent, _) = latent_attention_forward(x, weights, past)
direct = K**-0.5 * q @ k.swapaxes(-1, -2)
print(f"kept per token: {past.nbytes // 8 // 6} values instead of {H * (K + U)}")
print("scores straight from the latent are the same:", np.allclose(direct, score_from_latent(q, latent, weights)))

# %% [markdown]
# ## The finding: why one *joint* latent
#
# The best rank-$C$ factors of given matrices come from the singular value decomposition. Compare, at the same number of
# kept values, one latent for keys and values together with two separate latents of half the width. Two separate latents
# are a special case of the joint one (block-diagonal up-projections), so joint can never be worse. How much better
# depends on how much keys and values have in common; here each is half a shared random matrix and half its own.

# %%
common = rng.standard_normal((H * K, D))
k_proj, v_proj = (common + rng.standard_normal((2, H * K, D))) / np.sqrt(2 * D)
plain = MultiHeadWeights(k_proj.copy(), k_proj, v_proj, rng.standard_normal((D, H * U)), H)
widths = np.arange(2, D + 1, 2)


def miss(matrix, rank):
    return (np.linalg.svd(matrix, compute_uv=False)[rank:] ** 2).sum()


total = miss(k_proj, 0) + miss(v_proj, 0)
joint = np.array([miss(np.vstack([k_proj, v_proj]), w) for w in widths]) / total
apart = np.array([miss(k_proj, w // 2) + miss(v_proj, w // 2) for w in widths]) / total

# %%
fig, ax = plt.subplots()
ax.plot(widths, apart, color=COLORS["content"], label="two latents of C / 2, one for keys, one for values")
ax.plot(widths, joint, color=COLORS["latent"], label="one joint latent of C")
ax.set(xlabel="values kept per token, C", ylabel="share of the matrices that is lost", ylim=(0, None))
assert (joint <= apart + 1e-12).all()
at = list(widths).index(16)
ax.set_title(f"At C = 16 the joint latent loses {joint[at]:.0%}, two separate ones {apart[at]:.0%}")
ax.legend()
plt.show()

# %% [markdown]
# At full rank nothing is lost: a multi-head layer *is* a latent layer with $C = D$.

# %%
kv_a, kv_b = compress_projections(plain.k_proj, plain.v_proj, H, rank=D)
exact = LatentWeights(plain.q_proj, kv_a, kv_b, plain.o_proj, H)
gap = np.abs(latent_attention_forward(x, exact)[0] - cached_attention_forward(x, plain)[0]).max()
print(f"multi-head and its own factors at C = D agree to 1e-12: {gap < 1e-12}")

# %% [markdown]
# ## What changed since the last notebook, and what is missing
#
# The cache holds $C$ numbers for any number of heads. But shuffle the past and the last output stays the same:

# %%
shuffled = x.copy()
shuffled[:, :5] = x[:, [3, 0, 4, 1, 2]]
gap = np.abs((latent_attention_forward(shuffled, weights)[0] - latent_attention_forward(x, weights)[0])[:, -1]).max()
print(f"last output unchanged to 1e-12 after shuffling the five tokens before it: {gap < 1e-12}")

# %% [markdown]
# Nothing here knows where a token stands. The next notebook adds positions, the one after it shows why they cannot
# simply be added *here*.
#
# ## Exercises
#
# 1. Why does V3 not compress the queries for the cache's sake?
#
# <details><summary>Solution</summary>
#
# Queries are not cached. V3 compresses them too (width 1536), but to save activation memory during training.
#
# </details>
#
# 2. Count the parameters of $W_K, W_V$ at V3's sizes, and of $W^{DKV}, W^{UK}, W^{UV}$.
#
# <details><summary>Solution</summary>
#
# $2 \cdot 16384 \cdot 7168 = 234{,}881{,}024$ against $512 \cdot 7168 + 32768 \cdot 512 = 20{,}447{,}232$: 11.5 times
# fewer.
#
# </details>
