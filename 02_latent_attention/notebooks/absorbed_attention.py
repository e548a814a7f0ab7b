# %% [markdown]
# # Absorbed attention
#
# **The question.** The cache holds latents, the scores need keys. Must every key be rebuilt at every step?
#
# The librarian's drawer holds 8,000 notes in shorthand, and 128 readers wait. A dull librarian translates all 8,000
# notes for each reader, for every single question. A clever one translates the *question* into shorthand, once per
# reader, and compares it with the notes as they lie. What she finds is a mixture of notes, still in shorthand; she
# translates that one mixture back. Two small translations instead of 8,000.
#
# Nothing is approximated. It is the same sum with the brackets elsewhere, and that is what *absorbed* means: the
# matrices that made keys and values disappear into the query's side and behind the sum.

# %%
import numpy as np
from absorbed_attention import (
    V3,
    absorbed_attention_backward,
    absorbed_attention_forward,
    count_absorbed,
    count_expanded,
    count_kept,
    crossing_queries,
    split_up_projection,
)

# %%
from decoupled_rope import (
    MLAConfig,
    MLAWeights,
    decoupled_attention_backward,
    decoupled_attention_forward,
    project_queries_forward,
)
from kv_cache import TokenCache

from utils.drawings_02 import draw_absorption
from utils.plots_02 import plot_costs, plot_lines

# %%
draw_absorption()

# %% [markdown]
# ## Numbers to follow with a pencil
#
# Letters as before: $c$ is a latent, $W^{UK}$ makes a head's key from it, $q$ is the head's query. Let
# $$q = (1, 2), \qquad W^{UK} = \begin{pmatrix} 1 & 0 \\ 3 & 1 \end{pmatrix}, \qquad c = (2, -1).$$
# Key first: $W^{UK} c = (2,\; 6 - 1) = (2, 5)$, and $q \cdot (2, 5) = 2 + 10 = 12$.
#
# Question first: $W^{UK\top} q = (1 + 6,\; 2) = (7, 2)$, and $(7, 2) \cdot c = 14 - 2 = 12$. The same number, and with
# a second latent only the last product has to be done again.

# %%
q, w_uk, c = np.array([1.0, 2.0]), np.array([[1.0, 0.0], [3.0, 1.0]]), np.array([2.0, -1.0])
print("key first:", q @ (w_uk @ c), " question first:", (w_uk.T @ q) @ c)

# %% [markdown]
# And behind the softmax: let the shares of two latents be 1/4 and 3/4, the value matrix $W^{UV} = (1\;\,2)$, the
# latents $(2, -1)$ and $(0, 1)$. Values first: $0$ and $2$, mixed $1.5$. Mixture first:
# $\tfrac14 (2, -1) + \tfrac34 (0, 1) = (0.5, 0.5)$, translated $0.5 + 1 = 1.5$.

# %%
share, latents, w_uv = np.array([0.25, 0.75]), np.array([[2.0, -1.0], [0.0, 1.0]]), np.array([1.0, 2.0])
print("values first:", share @ (latents @ w_uv), " mixture first:", (share @ latents) @ w_uv)

# %% [markdown]
# ## Build it: one token decodes from the drawer
#
# A real layer, small: $H = 4$ heads, latents of $C = 12$, rotary keys (the tags) of $R = 4$. Eight tokens are in the
# drawer, a ninth arrives. `split_up_projection` cuts the released matrix into the two that we need, for each head.

# %%
rng = np.random.default_rng(0)
config = MLAConfig(32, 4, kv_lora_rank=12, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8, q_lora_rank=16)
weights, x = MLAWeights.init(rng, config), rng.standard_normal((1, 9, 32))
past = TokenCache(9)
want = decoupled_attention_forward(x, weights, config, past=past)[0][0, 8]
latents, tags = past.rooms[0][0], past.rooms[1][0]  # [9, C], [9, R]: the whole memory
w_uk, w_uv = split_up_projection(weights.kv_b_proj, config)  # [H, K, C], [H, U, C]
queries = project_queries_forward(x[:, 8:], weights, config, config.angles([8]))[0][0, :, 0]  # [H, K + R]


# %%
def decode_absorbed(queries):
    """Answer one token's queries [H, K + R] from latents and tags alone."""
    found = []
    for h, query in enumerate(queries):
        question = w_uk[h].T @ query[:8]  # into the shorthand: [C]
        score = (latents @ question + tags @ query[8:]) / np.sqrt(8 + 4)
        share = np.exp(score - score.max())
        mixture = share / share.sum() @ latents  # still in shorthand: [C]
        found.append(w_uv[h] @ mixture)
    return weights.o_proj @ np.concatenate(found)


# %%
assert np.allclose(decode_absorbed(queries), want, rtol=0, atol=1e-13)
module = absorbed_attention_forward(x, weights, config)[0][0, 8]
assert np.allclose(module, want, rtol=0, atol=1e-13)
print("naive, absorbed module and expanded module agree to 1e-13; no key and no value was built")

# %% [markdown]
# Look at what the heads have in common: all read `latents` and `tags`, and nothing else. Join them,
# question $[W^{UK\top}_h q_h;\, q^R_h]$ and key $[c_t;\, k^R_t]$ of width $C + R$, and it is **multi-query attention**:
# one wide key for all heads. MLA trains like multi-head attention and decodes like multi-query attention.
#
# ## The derivation
#
# 1. Scores: $q_h \cdot (W^{UK}_h c_t) = (W_h^{UK\top} q_h) \cdot c_t$: a matrix in a dot product may change sides, if
#    it is transposed.
# 2. Outputs: $\sum_t p_t\,(W^{UV}_h c_t) = W^{UV}_h \left(\sum_t p_t\, c_t\right)$: a matrix may leave a sum.
# 3. The rotary part needs no matrix: $q^R_h \cdot k^R_t$ with the cached, turned key. That is why it was kept apart.
# 4. Join them: query and key of width $C + R$ (V3: 576), value $c_t$ of width $C$ (512), the same for all heads.
# 5. The scores are *the same numbers*, so the scale is the same: $1/\sqrt{K + R} = 1/\sqrt{128 + 64}$ (times mscale²
#    under YaRN), never $1/\sqrt{576}$.
# 6. Backward. $s = q \cdot (W c)$ has three factors, and each gradient is the product of the other two:
#    $dq = ds\, W c$, $\;dc = ds\, W^\top q$, $\;dW = ds\, q\, c^\top$. Neither bracket changes them.

# %%
dy = rng.standard_normal(x.shape)
dx, grads = absorbed_attention_backward(dy, absorbed_attention_forward(x, weights, config)[1])
dx_expanded, grads_expanded = decoupled_attention_backward(dy, decoupled_attention_forward(x, weights, config)[1])
assert np.allclose(dx, dx_expanded, atol=1e-11)
for name, gradient in grads.arrays().items():
    assert np.allclose(gradient, getattr(grads_expanded, name), atol=1e-11), name
print("all", len(grads.arrays()), "gradients of the two forms are equal")

# %%
past = TokenCache(9)
first, _ = decoupled_attention_forward(x[:, :6], weights, config, past=past)
steps = [absorbed_attention_forward(x[:, s : s + 1], weights, config, past=past)[0] for s in range(6, 9)]
assert np.allclose(np.concatenate([first, *steps], 1), absorbed_attention_forward(x, weights, config)[0])
print("a prompt expanded, three tokens absorbed, over one cache: the same outputs")

# %% [markdown]
# ## What it costs
#
# Three ways to read the same past, counted for one layer of V3 and one sequence. **Absorbed**. **Expanded**: keys and
# values rebuilt from the latents at every step. **Kept**: expanded keys and values cached, no latent at all. Operations
# are multiplications and additions; bytes are what must come from memory, in 16-bit numbers.

# %%
print("one new token     operations        bytes moved (BF16)   operations per byte")
for T in (1024, 32768):
    for name, count in [("absorbed", count_absorbed), ("expanded", count_expanded), ("kept", count_kept)]:
        flops, values = count(V3, 1, T)
        print(f"T = {T:>5} {name:<9} {flops:>15,} {2 * values:>21,} {flops / (2 * values):>15.1f}")

# %% [markdown]
# Absorbed does up to 3.4 times the arithmetic of *kept* (scores of width 576 and values of width 512 instead of 192 and
# 128), and moves 38 times fewer bytes at 32,768 tokens (71 times at the limit, $40960 / 576$). At that length it does
# 128 operations per byte. A GPU can do some hundreds of operations in the time in which it fetches one byte; with
# *kept*, 1 operation per byte, it waits for memory nearly all the time.
#
# Where do the forms cross? Let $S$ tokens be new, $T$ keys in all. Expanding costs $2CH(K+U)$ per *key*, absorbing the
# same per *query*; the wider dot products cost $2H(2C - K - U)$ more per score, of which there are $ST$. Equal when
# $C(K+U)\,T = C(K+U)\,S + (2C - K - U)\,S\,T$; divide by $C(K+U)\,S\,T$:
# $$\frac1S = \frac1T + \frac{2C - K - U}{C\,(K + U)}.$$

# %%
for T in (1024, 8192, 131072):
    print(f"T = {T:>6}: absorb below {crossing_queries(V3, T):.1f} new tokens")

# %% [markdown]
# ## The experiment: count the operations of a real run
#
# Formulas can be wrong. So run both forms at a small size and count every multiplication that NumPy's matrix products
# do: an array of ours that notes down each product.


# %%
class Counted(np.ndarray):
    """An array whose matrix products are counted: 2 * result size * summed width each."""

    total, __array_priority__ = 0, 1  # the priority makes joined arrays Counted too

    def __array_ufunc__(self, ufunc, method, *inputs, **keywords):
        plain = [np.asarray(a) for a in inputs]
        out = getattr(ufunc, method)(*plain, **{k: v for k, v in keywords.items() if k != "out"})
        if ufunc is np.matmul:
            Counted.total += 2 * out.size * plain[0].shape[-1]
        return np.asarray(out).view(Counted)


# %%
def run_counted(forward, S, T):
    """Products that S new tokens cost behind T - S cached ones."""
    text, past = np.random.default_rng(1).standard_normal((1, T, 32)), TokenCache(T)
    decoupled_attention_forward(text[:, : T - S], weights, config, past=past)
    past.rooms = tuple(room.view(Counted) for room in past.rooms)
    watched = MLAWeights(**{name: array.view(Counted) for name, array in weights.arrays().items()})
    Counted.total = 0
    forward(text[:, T - S :], watched, config, past=past)
    return Counted.total


# %%
T, new = 96, [1, 2, 4, 8, 16, 32, 64, 95]
measured = {
    "absorbed": [run_counted(absorbed_attention_forward, S, T) for S in new],
    "expanded": [run_counted(decoupled_attention_forward, S, T) for S in new],
}

# %%
for S, a, e in zip(new, *measured.values()):
    assert a - e == count_absorbed(config, S, T).flops - count_expanded(config, S, T).flops  # the rest is shared
at = crossing_queries(config, T)
curves = {name: (new, counts) for name, counts in measured.items()}
title = f"Counted in a real run: absorbing is cheaper below {at:.0f} of {T} tokens"
plot_lines(curves, ["latent", "content"], title, "new tokens S", "operations of the layer", log="xy")

# %% [markdown]
# The difference of the two counts equals the formula's, for every $S$, to the last digit. So the formula may speak for
# V3's size:

# %%
T = 8192
new, texts = np.unique(np.logspace(0, np.log10(T), 60).astype(int)), 2 ** np.arange(8, 18)
forms = {"absorbed": count_absorbed, "expanded": count_expanded, "kept": count_kept}
operations = {name: [float(count(V3, int(s), T).flops) for s in new] for name, count in forms.items()}
moved = {name: [2 * count(V3, 1, int(t)).values for t in texts] for name, count in forms.items()}
assert all(a < min(e, k) for a, e, k in zip(*moved.values()))
at = crossing_queries(V3, T)
plot_costs(new, operations, texts, moved, at, f"V3: fewest bytes always, fewer operations below {at:.0f} new tokens")

# %% [markdown]
# So: **expand for training and prompts, absorb for decoding** and for short drafts. Both read and write the same cache.
#
# ## Why not multiply the two matrices into one?
#
# $W_Q^\top W^{UK}$ would spare one more product. But for each head it is a $1536 \times 512$ matrix instead of
# $1536 \times 128$ and $128 \times 512$:

# %%
separate, merged = 128 * (1536 * 128 + 128 * 512), 128 * 1536 * 512
print(f"{separate:,} numbers apart, {merged:,} merged: {merged / separate:.1f} times more to read at every step")

# %% [markdown]
# "Absorbed" means re-bracketed, $(W^{UK\top} q)$ first, not multiplied out.
#
# ## Change this, predict, run
#
# The cell scales the absorbed scores by $1/\sqrt{C + R}$, the width in which they are computed, a mistake found in
# public code. Predict: are the shares too even or too peaked? At V3's sizes, by what factor are the scores too small?
#
# <details><summary>Afterwards</summary>
#
# Too even: 0.467 in place of 0.519. The divisor is $\sqrt{16}$ for $\sqrt{12}$, so all scores come out 0.87 times
# as large, and smaller scores make more even shares. At V3's sizes the widths are 576 and 192: $\sqrt{192/576} = 0.58$,
# scores little more than half as large. The width of the *latent* has no say in it: the sum over $C$ numbers gives the
# same score as the one over $K$, and it is the size of that score which the divisor was made for.
#
# </details>

# %%
question = w_uk[0].T @ queries[0, :8]
raw = latents @ question + tags @ queries[0, 8:]
for name, width in [("K + R", 8 + 4), ("C + R", 12 + 4)]:
    share = np.exp(raw / np.sqrt(width)) / np.exp(raw / np.sqrt(width)).sum()
    print(f"scaled by {name}: largest share {share.max():.3f}")

# %% [markdown]
# ## What you can now do
#
# Decode with MLA from an empty file without building a key; say why the rotary part had to be kept apart for that;
# choose the form by counting; and catch the wrong scale.
#
# ## Exercises
#
# Graded: `score_absorbed` and `score_absorbed_backward` (`make check CH=02`). By thought alone:
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
#
# 3. Why is training done in the expanded form, if both have the same gradients?
#
# <details><summary>Solution</summary>
#
# In training $S = T$: every token is new. The crossing formula then says $1/S = 1/S + \text{something positive}$, which
# no $S$ fulfils: expanding is cheaper at every length (as long as $2C > K + U$).
#
# </details>
