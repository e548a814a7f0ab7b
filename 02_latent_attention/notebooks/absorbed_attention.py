# %% [markdown]
# # Absorbed attention
#
# **The question.** The cache holds latents, the scores need keys. Must every key be rebuilt at every step?
#
# No. Move the matrix to the other side of the dot product, where there is only one vector: the query.

# %%
import matplotlib.pyplot as plt
import numpy as np
from absorbed_attention import (
    V3,
    absorbed_attention_forward,
    count_absorbed,
    count_expanded,
    count_kept,
    crossing_queries,
)
from decoupled_rope import MLAConfig, MLAWeights, decoupled_attention_forward
from kv_cache import TokenCache

from utils.whiteboard import COLORS, arrow, board, box, note, use_style

use_style()

# %% [markdown]
# ## On the whiteboard: the boxes merge
#
# Above: each of T latents is multiplied up to a key and a value, in every head. Below: the two matrices have moved,
# W_UK to the query, W_UV behind the sum; between them, all heads attend to the latents themselves.

# %%
fig, ax = board(23, 9.6)
note(ax, 0.2, 9.2, "expanded: T products per step and head", align="left", size=12)
q1 = box(ax, 2, 6.3, "query\n128", "content", width=2.2, height=1.2)
dot1 = box(ax, 7.2, 6.3, "scores", "ink", width=2.2)
sum1 = box(ax, 13.2, 6.3, "Σ p v", "ink", width=2.2)
out1 = box(ax, 21, 6.3, "output\n128", "content", width=2.2, height=1.2)
lat1 = box(ax, 10.2, 8.4, "T latents, 512", "latent", width=4, filled=True)
arrow(ax, q1, dot1)
arrow(ax, dot1, sum1, "softmax")
arrow(ax, sum1, out1)
arrow(ax, lat1, dot1, "W_UK", "content")
arrow(ax, lat1, sum1, "W_UV", "content")
ax.axhline(5.1, color="#DDDDDD")
note(ax, 0.2, 4.5, "absorbed: one product before, one behind", align="left", size=12)
q2 = box(ax, 2, 1.6, "query\n128", "content", width=2.2, height=1.2)
ql = box(ax, 6.6, 1.6, "query, seen\nfrom the latent\n512", "latent", width=3, height=1.7)
dot2 = box(ax, 10.9, 1.6, "scores", "ink", width=2.2)
sum2 = box(ax, 15.2, 1.6, "Σ p c\n512", "latent", width=2.2, height=1.2)
out2 = box(ax, 21, 1.6, "output\n128", "content", width=2.2, height=1.2)
lat2 = box(ax, 13, 3.7, "T latents, 512", "latent", width=4, filled=True)
arrow(ax, q2, ql, "W_UKᵀ", "content", size=9)
arrow(ax, ql, dot2)
arrow(ax, dot2, sum2, "softmax", size=9)
arrow(ax, sum2, out2, "W_UV", "content")
arrow(ax, lat2, dot2, kind="latent")
arrow(ax, lat2, sum2, kind="latent")
plt.show()

# %% [markdown]
# ## Derivation
#
# 1. Scores: $q_h \cdot (W^{UK}_h c_t) = (W_h^{UK\top} q_h) \cdot c_t$.
# 2. Outputs: $\sum_t p_t\,(W^{UV}_h c_t) = W^{UV}_h \left(\sum_t p_t\, c_t\right)$.
# 3. The rope part needs no matrix: $q^R_h \cdot k^R_t$ with the cached, turned key.
# 4. Join them: query $[W_h^{UK\top} q_h; q^R_h]$ and key $[c_t; k^R_t]$ of width 576, value $c_t$ of width 512, the
#    same for all heads: **multi-query attention**, read straight from the cache.
# 5. The scores are *the same numbers*, so the scale is the same: $1/\sqrt{128 + 64}$ (times mscale²), never
#    $1/\sqrt{576}$.
#
# ## Check in numbers

# %%
rng = np.random.default_rng(0)
config = MLAConfig(32, 4, kv_lora_rank=12, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8, q_lora_rank=16)
weights, x = MLAWeights.init(rng, config), rng.standard_normal((1, 9, 32))
want, _ = decoupled_attention_forward(x, weights, config)
past = TokenCache(9)
prefill, _ = decoupled_attention_forward(x[:, :6], weights, config, past=past)
steps = [absorbed_attention_forward(x[:, s : s + 1], weights, config, past=past)[0] for s in range(6, 9)]
print("prefill expanded, decode absorbed, over one cache:", np.allclose(np.concatenate([prefill, *steps], 1), want))

# %% [markdown]
# ## What it costs
#
# Three ways to read the same past, counted for one layer of V3 and one sequence (`count_*`): *absorbed*; *expanded*
# from the latents at every step; *kept*, where expanded keys and values are cached and there is no latent at all.

# %%
print("one new token     operations        bytes moved (BF16)   operations per byte")
for T in (1024, 32768):
    for name, count in [("absorbed", count_absorbed), ("expanded", count_expanded), ("kept", count_kept)]:
        flops, values = count(V3, 1, T)
        print(f"T = {T:>5} {name:<9} {flops:>15,} {2 * values:>21,} {flops / (2 * values):>15.1f}")

# %% [markdown]
# Absorbed does 3.4 times the arithmetic of *kept* (scores of width 576 and values of width 512 instead of 192 and 128),
# and moves up to 71 times fewer bytes. Per byte it does over a hundred operations, so a GPU that can do some hundreds
# per byte is at last kept busy.
#
# Where do they cross? Expanding costs $2CH(K+U)$ per *key*, absorbing the same per *query*; the wider core costs
# $2H(2C - K - U)$ more per score. Equal when
# $$\frac1S = \frac1T + \frac{2C - K - U}{C\,(K + U)}.$$

# %%
for T in (1024, 8192, 131072):
    print(f"T = {T:>6}: absorb below {crossing_queries(V3, T):.1f} new tokens")

# %% [markdown]
# ## The finding

# %%
T = 8192
new = np.unique(np.logspace(0, np.log10(T), 60).astype(int))
forms = [("absorbed", count_absorbed, "latent"), ("expanded from latents", count_expanded, "content")]
forms.append(("expanded, kept", count_kept, "ink"))
at = crossing_queries(V3, T)
fig, axes = plt.subplots(1, 2, figsize=(9.5, 4.2))
for name, count, kind in forms:
    costs = np.array([count(V3, int(s), T) for s in new], dtype=float)
    axes[0].loglog(new, costs[:, 0], color=COLORS[kind], label=name)
    past_lengths = 2 ** np.arange(8, 18)
    moved = [2 * count(V3, 1, int(t)).values for t in past_lengths]
    axes[1].loglog(past_lengths, moved, color=COLORS[kind], label=name)
axes[0].axvline(at, color=COLORS["draft"], lw=1.2, ls="--")
axes[0].annotate(
    f"{at:.0f}", (at, axes[0].get_ylim()[0] * 1.6), color=COLORS["draft"], xytext=(5, 0), textcoords="offset points"
)
axes[0].set(xlabel=f"new tokens, with T = {T:,} keys", ylabel="operations")
axes[1].set(xlabel="keys T, one new token", ylabel="bytes moved")
axes[1].legend()
fig.suptitle(
    f"Fewest bytes always; fewer operations than expanding below {at:.0f} new tokens", x=0.02, ha="left", weight="bold"
)
assert all(count_absorbed(V3, 1, int(t)).values < count_kept(V3, 1, int(t)).values for t in past_lengths)
fig.tight_layout()
plt.show()

# %% [markdown]
# So: **expand for training and prefill, absorb for decoding** and for short drafts. Both forms read and write the same
# cache, and they have the same gradients (`absorbed_attention_backward` is tested against the other form).
#
# ## Why not multiply the two matrices into one?
#
# $W_Q^\top W_{UK}$ for each head would be a $1536 \times 512$ matrix instead of $1536 \times 128$ and $128 \times 512$:

# %%
separate, merged = 128 * (1536 * 128 + 128 * 512), 128 * 1536 * 512
print(f"{separate:,} numbers apart, {merged:,} merged: {merged / separate:.1f} times more to read at every step")

# %% [markdown]
# "Absorbed" means re-bracketed, $(W_{UK}^\top q)$ first, not multiplied out.
#
# ## Exercises
#
# 1. An implementation scales absorbed scores by $1/\sqrt{576}$. By what factor are its scores too small, and what does
#    the softmax do?
#
# <details><summary>Solution</summary>
#
# $\sqrt{576/192} = \sqrt 3$: every score is 1.73 times too small, the weights are too even. The text stays fluent and
# gets vaguer, which is why this mistake survives.
#
# </details>
#
# 2. How many new tokens may a speculative draft have before absorbing stops paying at $T = 1024$?
#
# <details><summary>Solution</summary>
#
# `crossing_queries(V3, 1024)` = 146.3, so up to 146: any realistic draft is verified in absorbed form.
#
# </details>
