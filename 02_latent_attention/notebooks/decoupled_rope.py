# %% [markdown]
# # Decoupled RoPE: the whole MLA layer
#
# **The question.** Latent attention scores straight from the latent, because two matrices stand side by side. Rotary
# positions push a turn between them. Can we have both?
#
# Our clerk keeps one short note per word (the latent), and every reader translates his question into the language of
# the notes instead of having each note translated for him. Now each card must also carry a clock. If the clock is
# stamped on the *translated* card, no reader may skip the translation any more: the hand stands on something that was
# never written. DeepSeek's answer fits on a stamp: leave the note unstamped, and clip a **separate little tag** to it
# that carries the clock and nothing else. Words are compared by the note, places by the tag, and the two scores are
# added.

# %%
import numpy as np
from decoupled_rope import (
    MLAConfig,
    MLAWeights,
    decoupled_attention_backward,
    decoupled_attention_forward,
    split_scores,
)
from kv_cache import TokenCache
from rotary_embedding import rotate_pairs_backward, rotate_pairs_forward

from utils.drawings_02 import draw_mla_layer
from utils.plots_02 import draw_score_parts

# %% [markdown]
# ## Why plain RoPE breaks the trick
#
# Call the query's matrix $W_Q$, the one that makes a key from a latent $W^{UK}$ (U for *up*). Without positions, query
# token $m$ meets latent $n$ through one fixed matrix, $W_Q^\top W^{UK}$; it never changes, so it can be moved to the
# query's side. With RoPE on the keys it is $W_Q^\top R(n - m)\, W^{UK}$: another matrix for every distance. Every key
# would have to be rebuilt from its latent, at every step, to be turned.

# %%
rng = np.random.default_rng(0)
w_q, w_uk = rng.standard_normal((4, 6)), rng.standard_normal((4, 3))
for distance in (0, 1, 2):
    turn = rotate_pairs_forward(np.eye(4), np.tile(distance * np.array([1.0, 0.1]), (4, 1)))[0]
    print(f"m - n = {distance}: first row of the matrix to absorb {(w_q.T @ turn @ w_uk)[0].round(2)}")

# %% [markdown]
# ## Intuition: two kinds of fitting together
#
# Give positions a few dimensions of their own. In the drawing blue carries content and never turns; orange carries
# positions and never passes through the latent. One orange key serves all heads. What is kept per token are the two
# filled boxes, green and orange: 512 and 64 numbers in DeepSeek-V3.

# %%
draw_mla_layer()

# %% [markdown]
# ## Numbers to follow with a pencil
#
# One query, one key. Content parts $(1, 2)$ and $(3, 1)$: dot product $3 + 2 = 5$. Rotary parts $(1, 0)$ and $(1, 0)$,
# turned by 30 degrees per token; the query is two tokens later: $\cos 60° = 0.5$. The joined vectors have width
# $2 + 2 = 4$, so the score is $(5 + 0.5) / \sqrt 4 = 2.75$.
#
# Scaled apart, each by its own width, it would be $5/\sqrt2 + 0.5/\sqrt2 = 3.89$: no longer the dot product of anything
# of width 4.

# %%
joined_query = np.array([1, 2, np.cos(np.pi / 3), np.sin(np.pi / 3)])
joined_key = np.array([3.0, 1.0, 1.0, 0.0])
print("score", (joined_query @ joined_key / np.sqrt(4)).round(3))

# %% [markdown]
# ## Build it, step one: what a token leaves behind
#
# Letters: $C$ is the width of the latent, $R$ of the rotary part, $K$ of a head's content key, $U$ of its value, $H$
# the number of heads. One matrix with $C + R$ rows reads the hidden state $h$. Its first $C$ results are the latent,
# which is then brought to unit size (RMSNorm: divide by the root of the mean square, times a learned weight). Its last
# $R$ are the tag, turned to the token's position, and *not* normed.

# %%
config = MLAConfig(32, 4, kv_lora_rank=12, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8, q_lora_rank=16)
weights, x = MLAWeights.init(rng, config), rng.standard_normal((1, 12, 32))
C, R, K, U, H = 12, 8, 8, 8, 4


def norm(c, weight):
    return weight * c / np.sqrt(np.mean(c**2) + 1e-6)


def card(h, position):
    """Return latent [C] and tag [R] of one token."""
    both = weights.kv_a_proj_with_mqa @ h
    tag = rotate_pairs_forward(both[None, C:], config.angles([position])[0])[0][0]
    return norm(both[:C], weights.kv_a_layernorm), tag


# %% [markdown]
# ## Build it, step two: what a token asks
#
# The query takes a detour through a latent of its own (nothing of it is kept; it saves memory in training). Then each
# head gets $K$ content numbers, which stay as they are, and $R$ rotary numbers, which turn.


# %%
def questions(h, position):
    """Return content [H, K] and rotary [H, R] queries of one token."""
    inner = norm(weights.q_a_proj @ h, weights.q_a_layernorm)
    per_head = (weights.q_b_proj @ inner).reshape(H, K + R)
    angles = np.repeat(config.angles([position])[0], H, axis=0)
    return per_head[:, :K], rotate_pairs_forward(per_head[:, K:], angles)[0]


# %% [markdown]
# ## Build it, step three: one token looks back
#
# Each head rebuilds its keys and values from the latents (its own rows of `kv_b_proj`: $K$ for the key, then $U$ for
# the value), adds the two dot products, scales once, and mixes.


# %%
def look_back(h, position, latents, tags):
    """Attend from one token to all cards; return the layer's output [D]."""
    content, rotary = questions(h, position)
    up, found = weights.kv_b_proj.reshape(H, K + U, C), []
    for head in range(H):
        keys, values = latents @ up[head, :K].T, latents @ up[head, K:].T
        score = (keys @ content[head] + tags @ rotary[head]) / np.sqrt(K + R)
        share = np.exp(score - score.max())
        found.append(share / share.sum() @ values)
    return weights.o_proj @ np.concatenate(found)


# %%
past = TokenCache(12)
y, cache = decoupled_attention_forward(x, weights, config, past=past)
latents, tags = (np.array(part) for part in zip(*(card(h, s) for s, h in enumerate(x[0]))))
naive = np.array([look_back(x[0, s], s, latents[: s + 1], tags[: s + 1]) for s in range(12)])
assert np.allclose(y[0], naive, rtol=0, atol=1e-12)
assert np.allclose(past.rooms[0][0], latents)
assert np.allclose(past.rooms[1][0], tags)
print(f"naive and module agree to 1e-12; kept per token: {past.nbytes // 8 // 12} = {C} + {R} numbers")

# %% [markdown]
# You have just written the attention layer of DeepSeek-V3. With the released weights in these seven arrays,
# `look_back` would compute what the released model computes (at its sizes, and with YaRN's frequencies and scale,
# notebook `yarn`).
#
# ## The derivation
#
# 1. Split each query and key in two, $q = [q^C; q^R]$ and $k = [k^C; k^R]$ (V3 Eq. 4, 9; the raised letters mean
#    *content* and *rotary*). The dot product of joined vectors is a sum: $q \cdot k = q^C \cdot k^C + q^R \cdot k^R$.
# 2. Content comes from the latent and is not turned: $k^C_h = W^{UK}_h c$ (Eq. 2). So it can still be absorbed.
# 3. Positions come from the hidden state, *beside* the latent: $k^R = \mathrm{RoPE}(W^{KR} h)$ (Eq. 3).
# 4. RMSNorm acts on both latents and not on $k^R$ (in the released files `kv_a_layernorm` has 512 weights, not 576).
# 5. The sum is scaled once, by $1/\sqrt{K+R}$: it is one dot product of width $K+R$ (Eq. 10).
# 6. Backward. A sum hands its gradient to both parts. $dq^R$ and $dk^R$ are turned back. The one tag was read by $H$
#    heads, so $dk^R = \sum_h dk^R_h$. Then through the norms and the matrices.
#
# ## A reader's question: why does the rotary key come from the hidden state?
#
# It could be computed from the latent too; it would even save a few weights. But the latent has room for 512 numbers,
# and it is *read* by 128 heads as keys and values. Whatever the tag needs would have to be carried through the same
# 512 numbers, and compete with content for room. From the hidden state, all 7168 numbers are at hand, and it costs
# nothing in the cache: either way the tag itself is kept, because it must be turned once, when its position is known.
# (Kept unturned, inside the latent, it would have to be rebuilt and turned again for every query: the old problem.) And
# one tag for all heads, not 128: $512 + 128 \cdot 64 = 8704$ kept numbers would be fifteen times 576.
#
# ## The backward pass of the tag, checked
#
# Step 6 in four lines. From the module's own shares we take each score's gradient; the rest is ours.

# %%
dy = rng.standard_normal(x.shape)
dweights = decoupled_attention_backward(dy, cache)[1]
q, k, v, scale, share = (a[0] if np.ndim(a) else a for a in cache[6])  # heads first: [H, S, ...]
do = (dy[0] @ weights.o_proj).reshape(12, H, U).swapaxes(0, 1)
dshare = do @ v.swapaxes(1, 2)
dscore = scale * share * (dshare - (share * dshare).sum(-1, keepdims=True))
dtag_of_head = dscore.swapaxes(1, 2) @ q[:, :, K:]  # [H, T, R]
dtag = rotate_pairs_backward(dtag_of_head.sum(axis=0), config.angles(np.arange(12))[0])
assert np.allclose(dtag.T @ x[0], dweights.kv_a_proj_with_mqa[C:], atol=1e-12)
one = rotate_pairs_backward(dtag_of_head[0], config.angles(np.arange(12))[0]).T @ x[0]
missed = np.linalg.norm(dtag.T @ x[0] - one) / np.linalg.norm(dtag.T @ x[0])
print(f"summed over heads: equal; with head 0 alone the gradient would be off by {missed:.0%}")

# %% [markdown]
# ## The experiment: two score matrices, one sum
#
# To see the parts alone, feed the same token twelve times: the content cannot tell them apart, the rotary part sees
# nothing but distance. Then a text of twelve different tokens.


# %%
def three_scores(hidden):
    """Content, rope and their sum for head 0; what the mask hides is NaN."""
    parts = split_scores(decoupled_attention_forward(hidden, weights, config)[1])
    shown = [p[0, 0] for p in (*parts, parts[0] + parts[1])]
    return [np.where(np.tri(12) > 0, p, np.nan) for p in shown]


same = np.repeat(x[:, :1], 12, axis=1)
rows = {"one token, 12 times": three_scores(same), "12 different tokens": three_scores(x)}
alone, by_distance, _ = rows["one token, 12 times"]
assert np.nanmax(alone) - np.nanmin(alone) < 1e-12
assert max(np.ptp(np.diagonal(by_distance, -d)) for d in range(12)) < 1e-12
draw_score_parts(rows, "Equal tokens: content is flat, rope has one value per diagonal")

# %% [markdown]
# White is the lowest value of a row of panels, full colour the highest. Look at the lower orange panel: it has *no*
# clean diagonals. That is right. The tag is made from the hidden state, so different tokens have different tags; what
# depends on the distance alone is how one given pair of tags fits. Position is added to content, it does not replace
# it.
#
# Shift all positions by 1000, and nothing changes. Stretch them, and only the rotary part does.

# %%
content, rope = split_scores(cache)
for name, positions in [("shifted by 1000", np.arange(12) + 1000), ("stretched 3 times", 3 * np.arange(12))]:
    c, r = split_scores(decoupled_attention_forward(x, weights, config, positions)[1])
    print(f"{name}: content same {np.allclose(c, content)}, rope same {np.allclose(r, rope, atol=1e-9)}")

# %% [markdown]
# ## Change this, predict, run
#
# The cell scales the two parts apart, each by its own width, as one public implementation did. With $K = R$, as here,
# predict: by what factor do all scores grow, and do the shares become more even or more peaked? Then think of V3's
# widths, 128 and 64: which of the two parts would become too loud?
#
# <details><summary>Afterwards</summary>
#
# Each part loses the divisor $\sqrt{K}$ or $\sqrt{R}$ in place of $\sqrt{K + R}$. With $K = R$ both grow by $\sqrt2 =
# 1.414$, and larger scores make more peaked shares: 0.20 becomes 0.25. At V3's widths the content grows by
# $\sqrt{192/128} = 1.22$ and the rotary part by $\sqrt{192/64} = 1.73$: position is 1.41 times too loud beside content,
# and a model that was trained otherwise listens to the wrong thing.
#
# </details>

# %%
apart = content * (np.sqrt(K + R) / np.sqrt(K)) + rope * (np.sqrt(K + R) / np.sqrt(R))
right = content + rope
row = np.exp(right[0, 0, 11]) / np.exp(right[0, 0, 11]).sum()
wrong = np.exp(apart[0, 0, 11]) / np.exp(apart[0, 0, 11]).sum()
print(
    f"scores grow by {(apart / right)[0, 0, 11, 0]:.3f};",
    f"the largest share goes from {row.max():.2f} to {wrong.max():.2f}",
)

# %% [markdown]
# ## What you can now do
#
# Write the attention of DeepSeek-V2 and V3 from an empty file, with the released names; say why the positions have
# dimensions of their own, where the rotary key comes from, what is normed and what is not; and derive the gradient of a
# key that all heads share. It still expands every key and value when it reads them; the next notebook stops that.
#
# ## Exercises
#
# Graded: `compress_hidden`, `compress_hidden_backward`, `mla_backward` and, last, `mla_from_an_empty_file` (`make check
# CH=02`). By thought alone:
#
# 1. Could the *query* have one rotary part shared by all heads?
#
# <details><summary>Solution</summary>
#
# Then all heads would add the same position scores, and no head could look at neighbours while another looks far back.
# Queries are not cached, so per-head rotary queries cost no memory.
#
# </details>
#
# 2. Without YaRN, by what factor is the rope part too loud if content is scaled by $1/\sqrt{128}$ and rope by
#    $1/\sqrt{64}$?
#
# <details><summary>Solution</summary>
#
# Content is $\sqrt{192/128} = 1.22$ times too large, rope $\sqrt{192/64} = 1.73$ times; against content, rope weighs
# $1.41$ times too much.
#
# </details>
#
# 3. Where would a model notice that its rotary key is normed by mistake, and why not at once?
#
# <details><summary>Solution</summary>
#
# At the start of training the tag's mean square is near 1 anyway, so the norm changes little. A trained tag has learned
# to be long where position matters and short where it does not; a norm flattens that, and released weights speak worse.
#
# </details>
