# %% [markdown]
# # Decoupled RoPE: the whole MLA layer
#
# **The question.** Latent attention can score straight from the latent because two matrices stand side by side. Rotary
# positions push a turn between them. Can we have both?

# %%
import matplotlib.pyplot as plt
import numpy as np
from decoupled_rope import MLAConfig, MLAWeights, decoupled_attention_forward, split_scores
from kv_cache import TokenCache
from rotary_embedding import rope_angles, rotate_pairs_forward

from utils.whiteboard import COLORS, arrow, board, box, colormap, use_style

use_style()

# %% [markdown]
# ## Why plain RoPE breaks the absorption
#
# Without positions, query $m$ meets latent $n$ through one fixed matrix, $W_Q^\top W_{UK}$, which can be multiplied out
# in advance. With RoPE on the keys it is $W_Q^\top R(n - m)\, W_{UK}$: another matrix for every distance. There is
# nothing to precompute, and every key would have to be rebuilt from its latent, at every step, to be turned.

# %%
rng = np.random.default_rng(0)
w_q, w_uk = rng.standard_normal((4, 6)), rng.standard_normal((4, 3))
for distance in (0, 1, 2):
    turn = rotate_pairs_forward(np.eye(4), np.tile(distance * np.array([1.0, 0.1]), (4, 1)))[0]
    print(f"m - n = {distance}: first row of the matrix to absorb {(w_q.T @ turn @ w_uk)[0].round(2)}")

# %% [markdown]
# ## On the whiteboard: the released answer
#
# Give positions their own few dimensions. Blue carries content and never turns; orange carries positions and never
# passes through the latent. One orange key serves all heads. What is kept per token: the filled green and the filled
# orange box.


# %%
def draw_projections(ax):
    h = box(ax, 10.6, 10.2, "hidden state h", "ink", width=4)
    tall = {"height": 1.3}
    query = box(ax, 3.9, 7.8, "query latent\n(RMSNorm) 1536", "latent", width=4, **tall)
    rope = box(ax, 10.6, 7.8, "rotary key\n(RoPE) 64", "rope", width=3.2, filled=True, **tall)
    latent = box(ax, 17.3, 7.8, "latent c\n(RMSNorm) 512", "latent", width=3.8, filled=True, **tall)
    arrow(ax, h, query, "q_a_proj")
    arrow(ax, h, rope)
    arrow(ax, h, latent, "kv_a_proj_with_mqa", size=9)
    return query, rope, latent


# %%
def draw_heads(ax, query, latent):
    names = ["q content\n128 × 128", "q rope (RoPE)\n128 × 64", "k content\n128 × 128", "value\n128 × 128"]
    kinds, places = ["content", "rope", "content", "content"], [2, 6.1, 15, 19.3]
    parts = [box(ax, x, 5, n, k, width=3.4, height=1.2) for n, k, x in zip(names, kinds, places)]
    for start, end, text in zip([query, query, latent, latent], parts, ["", "q_b_proj", "kv_b_proj", ""]):
        arrow(ax, start, end, text, size=9)
    return parts


# %%
fig, ax = board(21.4, 10.8)
query, k_rope, latent = draw_projections(ax)
q_content, q_rope, k_content, value = draw_heads(ax, query, latent)
score = box(ax, 9, 2.6, "(q·k content + q·k rope) × scale, softmax", "ink", width=9, height=1)
for start, kind in [(q_content, "content"), (q_rope, "rope"), (k_content, "content")]:
    arrow(ax, start, score, kind=kind)
arrow(ax, k_rope, score, "shared by all heads", "rope", size=9)
out = box(ax, 18.2, 0.7, "weighted values, o_proj", "ink", width=5.6, height=1)
arrow(ax, score, out)
arrow(ax, value, out, kind="content")
plt.show()

# %% [markdown]
# ## Derivation
#
# 1. Split each query and key in two: $q = [q^C; q^R]$, $k = [k^C; k^R]$ (V3 Eq. 4, 9). A dot product of joined vectors
#    is a sum: $q \cdot k = q^C \cdot k^C + q^R \cdot k^R$.
# 2. Content comes from the latent and is not turned: $k^C_h = W^{UK}_h c$ (Eq. 2). So it can still be absorbed.
# 3. Positions come from the hidden state, *beside* the latent: $k^R = \mathrm{RoPE}(W^{KR} h)$ (Eq. 3). From the latent
#    it would work too, but positions would then compete with content for 512 numbers. One key for all heads, as in
#    multi-query attention, so it adds 64 kept numbers and not $128 \cdot 64$.
# 4. RMSNorm on both latents, not on $k^R$ (the released layout: `kv_a_layernorm` has 512 weights, not 576).
# 5. The sum is scaled once, by $1/\sqrt{K+R}$: it is one dot product of width $K+R$ (Eq. 10). Two scales would weigh
#    positions anew.
# 6. Backward: $dq^R, dk^R$ are turned back; $dk^R$ is summed over the heads that shared it; then through the norms.
#
# ## Check in numbers: one step written out

# %%
config = MLAConfig(32, 4, kv_lora_rank=12, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8, q_lora_rank=16)
weights = MLAWeights.init(rng, config)
x = rng.standard_normal((1, 12, 32))
past = TokenCache(12)
y, cache = decoupled_attention_forward(x, weights, config, past=past)
content, rope = split_scores(cache)
a = weights.kv_a_proj_with_mqa @ x[0, 5]
latent = a[:12] / np.sqrt(np.mean(a[:12] ** 2) + 1e-6)
turned = rotate_pairs_forward(a[None, 12:], config.angles([5])[0])[0][0]
print("latent and rotary key of token 5 are the cached ones:", np.allclose(past.rooms[0][0, 5], latent), end=", ")
print(np.allclose(past.rooms[1][0, 5], turned))
print(f"kept per token: {past.nbytes // 8 // 12} values = 12 + 8")

# %% [markdown]
# ## The finding: two score matrices, one sum
#
# To see the parts alone (white is the lowest value of a row, full colour the highest), feed the same token twelve
# times: the content cannot tell them apart, the rope part sees nothing but distance. Then a text of different tokens.


# %%
def three_scores(hidden):
    """Content, rope and their sum for head 0; what the mask hides is NaN."""
    parts = split_scores(decoupled_attention_forward(hidden, weights, config)[1])
    shown = [p[0, 0] for p in (*parts, parts[0] + parts[1])]
    return [np.where(np.tril(np.ones((12, 12))) > 0, p, np.nan) for p in shown]


same = np.repeat(x[:, :1], 12, axis=1)
rows = {"one token, 12 times": three_scores(same), "12 different tokens": three_scores(x)}
alone, by_distance, _ = rows["one token, 12 times"]
assert np.nanmax(alone) - np.nanmin(alone) < 1e-12
assert max(np.ptp(np.diagonal(by_distance, -d)) for d in range(12)) < 1e-12

# %%
fig, axes = plt.subplots(2, 3, figsize=(9, 6.1))
for line, (name, shown) in zip(axes, rows.items()):
    low, high = np.nanmin(shown), np.nanmax(shown)
    for ax, values, kind in zip(line, shown, ["content", "rope", "ink"]):
        ax.imshow(values, cmap=colormap(kind), vmin=low, vmax=high)
        ax.set(xticks=[], yticks=[])
    line[0].set_ylabel(name)
for ax, text, kind in zip(axes[0], ["content", "+ rope", "= score"], ["content", "rope", "ink"]):
    ax.set_title(text, color=COLORS[kind], loc="center")
fig.suptitle("Content knows no position, rope knows distance, the score is their sum", x=0.02, ha="left", weight="bold")
fig.tight_layout()
plt.show()

# %% [markdown]
# Shift all positions by 1000: nothing changes. Stretch them: only the rope part does.

# %%
for name, positions in [("shifted by 1000", np.arange(12) + 1000), ("stretched 3 times", 3 * np.arange(12))]:
    c, r = split_scores(decoupled_attention_forward(x, weights, config, positions)[1])
    print(f"{name}: content same {np.allclose(c, content)}, rope same {np.allclose(r, rope, atol=1e-9)}")

# %% [markdown]
# ## What changed since the last notebooks
#
# This is the attention of DeepSeek-V2 and V3, with the released names. It keeps 512 + 64 numbers per token and layer.
# It still expands every key and value when it reads them; the next notebook stops that.
#
# ## Exercises
#
# 1. How many numbers would be kept per token and layer if each of the 128 heads had its own rotary key?
#
# <details><summary>Solution</summary>
#
# $512 + 128 \cdot 64 = 8704$, fifteen times 576.
#
# </details>
#
# 2. Could the *query* have one rotary part shared by all heads?
#
# <details><summary>Solution</summary>
#
# Then all heads would add the same position scores, and no head could look at neighbours while another looks far back.
# Queries are not cached, so per-head rotary queries cost no memory.
#
# </details>
#
# 3. Without YaRN, by what factor is the rope part too loud if content is scaled by $1/\sqrt{128}$ and rope by
#    $1/\sqrt{64}$?
#
# <details><summary>Solution</summary>
#
# Content is $\sqrt{192/128} = 1.22$ times too large, rope $\sqrt{192/64} = 1.73$ times; against content, rope weighs
# $1.41$ times too much.
#
# </details>
