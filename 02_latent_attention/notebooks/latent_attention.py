# %% [markdown]
# # Latent attention, without positions
#
# **The question.** If we may keep only a few numbers per token, which ones serve all heads best?
#
# So far the drawer got smaller by keeping *fewer cards*: multi-query attention has one card for all 128 readers,
# grouped-query attention eight. Whoever shares a card must be content with what stands on it. A librarian has another
# idea. She keeps no cards at all, but one short **note** per word in a shorthand of her own. Every reader has two
# glasses: through the first, the note looks like the front of *his* card, through the second like the back of it. The
# drawer holds the notes only. The glasses are always the same, so they lie on the table once for all words.
#
# The note is called the **latent** (from Latin for *hidden*: nobody says what its numbers mean; training decides). The
# glasses are two matrices for each head. That is multi-head latent attention, MLA, except for the positions, which the
# next two notebooks add.

# %%
import numpy as np
from kv_cache import MultiHeadWeights, TokenCache, cached_attention_forward
from latent_attention import (
    LatentWeights,
    compress_projections,
    latent_attention_backward,
    latent_attention_forward,
    score_from_latent,
)

from utils.drawings_02 import draw_latent
from utils.plots_02 import plot_lines
from utils.recall_task import Recall, train_recalls

# %%
draw_latent()

# %% [markdown]
# ## Numbers to follow with a pencil
#
# Two tokens, hidden states $(1, 0)$ and $(0, 1)$. The shorthand is one number: multiply by $(1\;\,2)$. So the notes are
# $c = 1$ and $c = 2$. Two heads read them. Head 0 sees the key $1c$ and the value $3c$; head 1 sees the key $2c$ and
# the value $-c$:
#
# | | token 0, $c = 1$ | token 1, $c = 2$ |
# |---|---|---|
# | head 0 | key 1, value 3 | key 2, value 6 |
# | head 1 | key 2, value −1 | key 4, value −2 |
#
# Token 1 asks: head 0 with its first coordinate, 0, head 1 with its second, 1. Head 0's scores are 0 and 0, its shares
# one half each, its result $(3 + 6)/2 = 4.5$. Head 1's scores are 2 and 4, its shares 0.119 and 0.881, its result
# $-0.119 - 1.762 = -1.881$. Kept: 2 numbers for 2 tokens. Multi-head attention would keep 8, the table.

# %%
weights = LatentWeights(
    q_proj=np.eye(2),
    kv_a_proj=np.array([[1.0, 2.0]]),
    kv_b_proj=np.array([[1.0], [3.0], [2.0], [-1.0]]),  # head 0: key, value; head 1: key, value
    o_proj=np.eye(2),
    n_heads=2,
)
past = TokenCache(2)
y, _ = latent_attention_forward(np.eye(2)[None], weights, past)
print("token 1 finds", y[0, 1].round(3), " kept:", past.rooms[0][0, :, 0])

# %% [markdown]
# ## Build it: down once, up per head
#
# Letters: a hidden state has $D$ numbers, a note $C$, a key $K$, a value $U$; there are $H$ heads. $W^{DKV}$ (*down*,
# for key and value) makes the note; $W^{UK}_h$ and $W^{UV}_h$ (*up*) are the two glasses of head $h$.

# %%
rng = np.random.default_rng(0)
D, H, K, U, C = 32, 4, 8, 8, 12
weights = LatentWeights.init(rng, D, H, K, U, C)
W_dkv = weights.kv_a_proj  # [C, D]
up = weights.kv_b_proj.reshape(H, K + U, C)
W_uk, W_uv = up[:, :K], up[:, K:]  # [H, K, C], [H, U, C]
W_q = weights.q_proj.reshape(H, K, D)


# %%
def look_back(text):
    """The last token of a text [n, D] asks all tokens, head by head; returns the layer's output [D]."""
    notes, found = text @ W_dkv.T, []  # the notes are all that would be kept
    for h in range(H):
        keys, values = notes @ W_uk[h].T, notes @ W_uv[h].T
        score = keys @ (W_q[h] @ text[-1]) / np.sqrt(K)
        share = np.exp(score - score.max())
        found.append(share / share.sum() @ values)
    return weights.o_proj @ np.concatenate(found)


# %%
x, past = rng.standard_normal((1, 6, D)), TokenCache(6)
y, cache = latent_attention_forward(x, weights, past)
naive = np.array([look_back(x[0, : s + 1]) for s in range(6)])
assert np.allclose(y[0], naive, rtol=0, atol=1e-13)
print(f"naive and module agree; kept per token: {past.nbytes // 8 // 6} numbers instead of {H * (K + U)}")

# %% [markdown]
# ## The derivation
#
# 1. $c_t = W^{DKV} h_t$: joint compression of token $t$ to $C$ numbers (V3 Eq. 1).
# 2. $k_{h,t} = W^{UK}_h c_t,\quad v_{h,t} = W^{UV}_h c_t$: each head has its own view of the note (Eq. 2, 5).
# 3. So $k_{h,t} = (W^{UK}_h W^{DKV})\, h_t$: an ordinary key projection. What is given up is its **rank**: the matrix
#    of all heads' keys and values, $H(K+U)$ rows high, can only produce $C$ independent directions. Nothing else is
#    lost: every head still has a key and a value of its own.
# 4. Backward. The note is read $2H$ times, as a key and as a value by each head, and what the forward shares, the
#    backward sums: $dc_t = \sum_h \left(W_h^{UK\top} dk_{h,t} + W_h^{UV\top} dv_{h,t}\right)$.
# 5. And a gift: $q_h \cdot (W^{UK}_h c_t) = (W_h^{UK\top} q_h) \cdot c_t$. The score needs no key at all. The reader
#    turns his glass around, so to speak, and writes his *question* in shorthand.
#
# Steps 4 and 5 in code, against the module:

# %%
dy = rng.standard_normal(y.shape)
dx, grads = latent_attention_backward(dy, cache)
q, k, v, scale, share = (a[0] if np.ndim(a) else a for a in cache[2])  # [H, S, K], ...
do = (dy[0] @ weights.o_proj).reshape(6, H, U).swapaxes(0, 1)
dshare = do @ v.swapaxes(1, 2)
dscore = scale * share * (dshare - (share * dshare).sum(-1, keepdims=True))
dk, dv = dscore.swapaxes(1, 2) @ q, share.swapaxes(1, 2) @ do
dc = sum(dk[h] @ W_uk[h] + dv[h] @ W_uv[h] for h in range(H))  # step 4
assert np.allclose(dc.T @ x[0], grads.kv_a_proj, rtol=0, atol=1e-12)

with_keys = scale * q @ k.swapaxes(1, 2)
assert np.allclose(with_keys, [scale * (q[h] @ W_uk[h]) @ cache[3][0].T for h in range(H)])  # step 5
assert np.allclose(with_keys, score_from_latent(q[None], cache[3], weights)[0])

# %% [markdown]
# ## A reader's question: why do K and V share *one* latent?
#
# One could keep two notes of half the length, one for the fronts and one for the backs. Two notes are a special case of
# one (half of each glass is blank), so the best joint note can never be worse than the best pair. But that is about the
# best; which one does *training* find? And by how much is it better? That depends on how much keys and values want to
# know in common. So measure both cases.
#
# The task: six tokens each write a *value* beside a *name*; the last token asks. **One way**: it shows a name and wants
# the value. Keys need the name, values need the value, and they have nothing in common. **Both ways**: half of the
# questions show a value and want its name. Now keys and values both need both. The layer is trained from scratch, with
# the backward pass of step 4, in 400 steps.


# %%
def train(C, task, apart):
    """Return the share of right answers with one note of C numbers, or with two of C / 2."""
    H, K = 2, 12
    weights = LatentWeights.init(np.random.default_rng(0), task.width, H, K, K, C)
    open_ = np.ones((H, 2 * K, C))
    if apart:  # keys read the first half only, values the second
        open_[:, :K, C // 2 :], open_[:, K:, : C // 2] = 0, 0
    weights.kv_b_proj[:] *= open_.reshape(-1, C)

    def backward(dy, cache):
        dx, grads = latent_attention_backward(dy, cache)
        grads.kv_b_proj[:] *= open_.reshape(-1, C)
        return dx, grads

    return train_recalls(weights, latent_attention_forward, backward, task)


# %%
widths, right = (6, 8, 12, 16), {}
for way in ("one way", "both ways"):
    for shape in ("one joint note", "two notes apart"):
        task = Recall(both_ways=way == "both ways")
        right[f"{way}: {shape}"] = [train(C, task, apart=shape == "two notes apart") for C in widths]
        print(
            f"{way + ': ' + shape:<28}",
            " ".join(f"C = {C}: {r:.0%} " for C, r in zip(widths, right[f"{way}: {shape}"])),
        )

# %%
both, apart = right["both ways: one joint note"][1], right["both ways: two notes apart"][1]
assert both > apart + 0.2
plot_lines(
    {name: (widths, r) for name, r in right.items() if name.startswith("both")},
    ["latent", "content"],
    f"Asked both ways, C = 8: joint note {both:.0%}, two apart {apart:.0%}",
    "numbers kept per token, C",
    "right answers after 400 steps",
    ylim=(0, 1.04),
)

# %% [markdown]
# Asked both ways, the joint note wins by far: what keys and values both need is written once and read twice. Asked one
# way, there is nothing to share, and the two separate notes learn at least as fast; a structure that fits the task is a
# help. In a language model keys and values are made of the same hidden state, of everything that is known about a word,
# so sharing has much to offer. (One seed, a toy; what the best joint note *can* do is a proof, what training finds is a
# measurement.)
#
# The second reason is the gift of step 5: when keys and values are read from the *same* note, a step reads the drawer
# once, not twice. The notebook `absorbed_attention` lives on that.
#
# ## How much is lost? Cutting a layer that was trained without
#
# The best approximation of a matrix by one of lower rank comes from its *singular value decomposition*: it writes the
# matrix as a sum of simple ones, sorted by strength, and the strongest $C$ are kept. At full rank nothing is lost: a
# multi-head layer *is* a latent layer with $C = D$.

# %%
plain = MultiHeadWeights.init(rng, D, H, K, U)
for rank in (4, 8, 16, 32):
    kv_a, kv_b = compress_projections(plain.k_proj, plain.v_proj, H, rank)
    cut = LatentWeights(plain.q_proj, kv_a, kv_b, plain.o_proj, H)
    want = cached_attention_forward(x, plain)[0]
    gap = np.linalg.norm(latent_attention_forward(x, cut)[0] - want) / np.linalg.norm(want)
    print(f"C = {rank:>2} of {D}: outputs off by {gap:.0%}")
assert gap < 1e-12

# %% [markdown]
# A random layer has no weak directions, so every cut hurts. A trained one has some. But a small error in the matrices
# is not a small error in the answers, and V3's latents were not cut out of anything: they were there from the first
# step of training.
#
# ## The trained model speaks: what is in 48 numbers?
#
# The model that runs through the book (`make book`) keeps 48 numbers a token and layer for the content of all heads.
# What do they know beyond their own word? Take "The owl found a red key. It sang." Neither *it* nor a full stop says a
# word about owls. If the owl can be read from their latents, earlier layers have put it there. A linear map, fitted by
# least squares on 250 such texts, says which of ten animals it was, in 250 others.

# %%
from utils.story_model import open_book
from utils.story_words import ACTS, ANIMALS, COLOURS, THINGS

book, r = open_book(), np.random.default_rng(0)
animal, latents = r.integers(10, size=500), []
for number in animal:
    colour, thing, act = (sorted(words)[r.integers(len(words))] for words in (COLOURS, THINGS, ACTS))
    seen = book.read(f"The {ANIMALS[number]} found a {colour} {thing}. It {act}.")
    latents.append(seen.latent[:, -4:])
latents = np.array(latents)  # [texts, layers, the last four tokens, 48]
print("the last four tokens:", seen.words[-4:])


# %%
def read_off(rows, which):
    """Fit on the first half, with a little ridge; the share right in the second half."""
    rows = (rows - rows.mean(axis=0)) / (rows.std(axis=0) + 1e-9)
    rows, half = np.concatenate([rows, np.ones((len(rows), 1))], axis=1), len(rows) // 2
    fit, wanted = rows[:half], np.eye(len(ANIMALS))[which[:half]]
    weights = np.linalg.solve(fit.T @ fit + np.eye(rows.shape[1]), fit.T @ wanted)
    return float(((rows[half:] @ weights).argmax(axis=1) == which[half:]).mean())


# %%
share = np.array([[read_off(latents[:, layer, place], animal) for layer in range(4)] for place in range(4)])
title = f"Which animal? “It” says {share[1, 0]:.0%} in the first layer, {share[1, 3]:.0%} in the last"
names = ("full stop of its sentence", "“It”", "what it did", "full stop after")
curves = {name: (range(4), share[place]) for place, name in enumerate(names)} | {"guessing": (range(4), [0.1] * 4)}
axes = {"ylim": (0, 1.03), "xticks": range(4)}
kinds = ["latent", "content", "rope", "draft", "ink"]
plot_lines(curves, kinds, title, "layer whose latent is read", "share right", **axes)

# %% [markdown]
# The first layer's latent is made of the word alone, so nobody can read an animal from *it* or a full stop: guessing.
# From the next layer on attention has carried the animal over, and it lies in the latents, in the cache, where every
# head of every later word can find it. The word for what was done carries less of it; nothing told the model to file
# the owl at *it* and at full stops.
#
# ## What is missing: order

# %%
shuffled = x.copy()
shuffled[:, :5] = x[:, [3, 0, 4, 1, 2]]
gap = np.abs((latent_attention_forward(shuffled, weights)[0] - latent_attention_forward(x, weights)[0])[:, -1]).max()
print(f"last output unchanged to 1e-12 after shuffling the five tokens before it: {gap < 1e-12}")

# %% [markdown]
# *The dog bit the man* and *the man bit the dog* are the same to this layer. The next notebook adds positions, the one
# after it shows why they cannot simply be added *here*.
#
# ## Change this, predict, run
#
# Below, the values' part of step 4 is left out: the note learns from its use as a key only. Predict before you run:
# which gradients are wrong, that of $W^{DKV}$, of $W^{UK}$ and $W^{UV}$, or all? Would the loss still fall? Then take
# the keys' part out instead.
#
# <details><summary>Afterwards</summary>
#
# $W^{UK}$ and $W^{UV}$ come before the sum on the way back and stay right; only what lies behind the note is wrong,
# $W^{DKV}$ and $dx$. The loss still falls, for the glasses keep learning around a note that does not learn to speak:
# the kind of mistake that only a gradient check sees. `python -m utils.bugs 02` plants it.
#
# </details>

# %%
half = sum(dk[h] @ W_uk[h] for h in range(H))
print("W_DKV's gradient, relative error:", end=" ")
print(f"{np.linalg.norm(half.T @ x[0] - grads.kv_a_proj) / np.linalg.norm(grads.kv_a_proj):.2f}")

# %% [markdown]
# ## What you can now do
#
# Write latent attention forward and backward; say what exactly is given up (rank) and what is not (heads); explain why
# keys and values share a note, and when that helps.
#
# ## Exercises
#
# Graded: `expand_latent_backward` (`make check CH=02`). By thought alone:
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
#
# 3. Is grouped-query attention a special case of latent attention?
#
# <details><summary>Solution</summary>
#
# Yes. Let the note be the $J$ keys and $J$ values side by side, $C = J(K + U)$, and let the glasses of head $h$ copy
# its group's key and value. A joint note of the same length can do that, and more.
#
# </details>
