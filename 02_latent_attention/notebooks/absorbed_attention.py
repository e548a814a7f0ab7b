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
def draw_expanded(ax):
    note(ax, 0.3, 10.5, "expanded: both act on T latents", align="left", size=11)
    latents = box(ax, 11.3, 10.2, "T latents, 512", "latent", width=4, filled=True)
    query, out = (box(ax, x, 6.9, name, "content", width=2.2) for x, name in [(1.6, "query"), (20.4, "output")])
    scores, total = box(ax, 7.6, 6.9, "scores", "ink"), box(ax, 15, 6.9, "Σ p v", "ink")
    up_key, up_value = (box(ax, x, 8.6, n, "content", filled=True) for x, n in [(7.6, "W_UK"), (15, "W_UV")])
    for start, end in [(latents, up_key), (latents, up_value), (up_key, scores), (up_value, total)]:
        arrow(ax, start, end, kind="latent" if start is latents else "content")
    for start, end in [(query, scores), (scores, total), (total, out)]:
        arrow(ax, start, end)
    return up_key, up_value


# %%
def draw_absorbed(ax):
    note(ax, 0.3, 4.8, "absorbed:\none acts on the query,\none on the sum", align="left", size=11)
    latents = box(ax, 11.3, 3.4, "T latents, 512", "latent", width=4, filled=True)
    for x, name in [(1.6, "query"), (20.4, "output")]:
        box(ax, x, 1, name, "content", width=2.2)
    up_key = box(ax, 3.6, 1, "W_UKᵀ", "content", filled=True)
    up_value = box(ax, 18.4, 1, "W_UV", "content", filled=True)
    scores, total = box(ax, 8.6, 1, "scores", "ink"), box(ax, 14, 1, "Σ p c", "latent")
    for start, end in [(up_key, scores), (latents, scores), (scores, total), (latents, total), (total, up_value)]:
        arrow(ax, start, end, kind="latent" if latents in (start, end) or end is not total else "ink")
    return up_key, up_value


# %%
fig, ax = board(22, 11)
for before, after, side in zip(draw_expanded(ax), draw_absorbed(ax), (-1, 1)):
    arrow(ax, (before.x + side * before.width / 2, before.y), after, kind="draft", dashed=True)
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
new, past_lengths = np.unique(np.logspace(0, np.log10(T), 60).astype(int)), 2 ** np.arange(8, 18)
forms = {"absorbed": count_absorbed, "expanded from latents": count_expanded, "expanded, kept": count_kept}
operations = {name: [float(count(V3, int(s), T).flops) for s in new] for name, count in forms.items()}
moved = {name: np.array([2 * count(V3, 1, int(t)).values for t in past_lengths]) for name, count in forms.items()}
assert all((moved["absorbed"] < other).all() for name, other in moved.items() if name != "absorbed")
at = crossing_queries(V3, T)
title = f"Fewest bytes always; fewer operations than expanding below {at:.0f} new tokens"

# %%
fig, axes = plt.subplots(1, 2, figsize=(9.5, 4.2))
for name, kind in zip(forms, ["latent", "content", "ink"]):
    axes[0].loglog(new, operations[name], color=COLORS[kind])
    axes[1].loglog(past_lengths, moved[name], color=COLORS[kind], label=name)
axes[0].axvline(at, color=COLORS["draft"], lw=1.2, ls="--")
axes[0].text(at * 1.15, operations["absorbed"][0], f"{at:.0f}", color=COLORS["draft"])
axes[0].set(xlabel=f"new tokens, with T = {T:,} keys", ylabel="operations")
axes[1].set(xlabel="keys T, one new token", ylabel="bytes moved")
axes[1].legend()
fig.suptitle(title, x=0.02, ha="left", weight="bold")
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
