# %% [markdown]
# # What may be demanded of a borrowed layer?
#
# **The question.** The module of this chapter runs a decoder layer of its own. V3 takes a full one (latent attention,
# experts); chapter 06 does that. Here a small block stands in for it. So we ask what *any* block must promise before a
# module can be built on it.
#
# A court hires a stenographer for a day. He need not be the best in town. But four things the court must be able to
# rely on. He never writes what has not been said yet. After a break he goes on from his earlier sheets, and the record
# is the same as without the break. If the judge strikes the last words, he tears off the last sheets, and it is as if
# they had never been. And he numbers his sheets as the court tells him, not as he likes.
#
# These are the four promises: **causal**, **cached = whole**, **forgetting**, **positions from outside**. The second
# and the third are what decoding with drafts will live on: drafts are words on trial, and many are struck.

# %%
import inspect
from dataclasses import replace

import causal_block
import numpy as np
from causal_block import (
    CompactBlock,
    KeyValueCache,
    compact_block_backward,
    compact_block_forward,
    rotate,
)

# %%
from utils.drawings_04 import draw_compact_block
from utils.gradient_check import central_difference, relative_error
from utils.plots_02 import plot_lines
from utils.plots_04 import plot_influence

# %%
draw_compact_block()

# %% [markdown]
# ## Numbers to follow with a pencil
#
# **A turned pair.** Keys and queries are pairs of numbers, turned by their position (chapter 02). Key $(1, 0)$ stands
# at positions 0 and 1, the query $(1, 0)$ at position 1, all turned by one radian a position. Their products see the
# distance only: $\cos(1 - 0) = 0.540$ and $\cos(1 - 1) = 1$. Over $\sqrt 2$: scores $0.382$ and $0.707$. Raised:
# $1.465$ and $2.028$; shares $0.419$ and $0.581$.
#
# **The network.** Its hidden units are $u = (-1, 2)$. Cut at zero and squared: $(0, 4)$. The slope of the square is
# $2u$ where $u > 0$, else 0: $(0, 4)$. The cut unit says nothing and learns nothing, this time.

# %%
key, query = rotate(np.ones((1, 1, 2, 1)) * [1.0, 0.0], np.array([[0, 1]]))[0, 0], np.array([np.cos(1), np.sin(1)])
raised = np.exp(key @ query / np.sqrt(2))
print("products", (key @ query).round(3), " shares", (raised / raised.sum()).round(3))

# %% [markdown]
# ## Build it
#
# Letters: $S$ rows of width $D$, $H$ heads of width $K$, $F$ hidden units. A row is turned pair by pair; the first pair
# turns fastest.


# %%
def turn(x, position):
    """Turn the neighbours of one row [K]: pair j by position * 10000^(-2j/K)."""
    y = np.empty_like(x)
    for j in range(len(x) // 2):
        angle = position * 10000.0 ** (-2 * j / len(x))
        a, b = x[2 * j], x[2 * j + 1]
        y[2 * j] = a * np.cos(angle) - b * np.sin(angle)
        y[2 * j + 1] = a * np.sin(angle) + b * np.cos(angle)
    return y


# %%
def look_back(rows, at, w, n_heads):
    """Row s asks rows 0 … s, in every head."""
    q, k, v = np.split(rows @ w.qkv_proj.T, 3, axis=1)
    K, out = q.shape[1] // n_heads, []
    for s in range(len(rows)):
        found = []
        for cut in (slice(h * K, (h + 1) * K) for h in range(n_heads)):
            keys = np.array([turn(k[t, cut], at[t]) for t in range(s + 1)])
            score = keys @ turn(q[s, cut], at[s]) / np.sqrt(K)
            share = np.exp(score - score.max())
            found.append(share / share.sum() @ v[: s + 1, cut])
        out.append(np.concatenate(found))
    return np.array(out) @ w.o_proj.T


# %%
def norm(rows, weight):
    return weight * rows / np.sqrt(np.mean(rows**2, axis=-1, keepdims=True) + 1e-6)


def naive_block(x, at, w, n_heads):
    """Look back, then think; both answers are added to the stream."""
    a = x + look_back(norm(x, w.input_layernorm), at, w, n_heads)
    up = np.maximum(norm(a, w.post_attention_layernorm) @ w.up_proj.T, 0)
    return a + up**2 @ w.down_proj.T


# %%
rng = np.random.default_rng(0)
w, x, at = CompactBlock.init(rng, 12, 19), rng.standard_normal((1, 5, 12)), np.arange(5)[None]
whole, cache = compact_block_forward(w, x, at, n_heads=3)
assert np.allclose(whole[0], naive_block(x[0], at[0], w, 3), atol=1e-14)
print("naive and module agree:", whole.shape)

# %% [markdown]
# ## The four promises, measured
#
# 1. **Causal.** Change one input row; rows before it must not move, not by a single bit.

# %%
seen = np.zeros((5, 5))
for t in range(5):
    other = x.copy()
    other[0, t] += 1
    seen[:, t] = np.abs(compact_block_forward(w, other, at, 3)[0] - whole).max(axis=(0, 2))
future = np.triu_indices(5, 1)
assert not seen[future].any()
seen[future] = np.nan
plot_influence(seen, "What comes later is not felt: nothing above the diagonal")

# %% [markdown]
# 2. **Cached = whole.** The keys and values of old rows are kept; new rows ask them and each other. Of $T$ keys the
#    last $S$ are new, so new row $s$ stands at place $s + (T - S)$ and may see the keys $t \le s + (T - S)$.
# 3. **Forgetting.** `truncate(n)` keeps the first $n$ rows. Because the block is causal, those were never touched by
#    what came after them, so nothing else has to be undone.

# %%
kv = KeyValueCache()
first, _ = compact_block_forward(w, x[:, :2], at[:, :2], 3, kv)
compact_block_forward(w, rng.standard_normal((1, 2, 12)), at[:, 2:4], 3, kv)  # two rows on trial …
kv.truncate(2)  # … are struck
rest, _ = compact_block_forward(w, x[:, 2:], at[:, 2:], 3, kv)
gap = np.abs(np.concatenate([first, rest], axis=1) - whole).max()
assert gap < 1e-13
print("two rows, two struck ones, three more: the same as five at once")

# %% [markdown]
# 4. **Positions from outside.** This one hides a trap. A row of the module joins hidden row $i$ with word $i + 1$. Does
#    it stand at position $i$ or $i + 1$? Turned pairs see only distances. If *all* rows are shifted alike nothing
#    changes, so a model trained either way trains alike. But let some rows be shifted and others not, as when a draft
#    is computed at $i + 1$ behind a cache that was filled at $i$:

# %%
shifts = np.arange(9)
together = [np.abs(compact_block_forward(w, x, at + c, 3)[0] - whole).max() for c in shifts]
alone = [np.abs(compact_block_forward(w, x, at + c * (np.arange(5) == 4), 3)[0] - whole).max() for c in shifts]
curves = {"all rows shifted": (shifts, together), "only the last row shifted": (shifts, np.maximum(alone, 1e-17))}
assert max(together) < 1e-14
title = f"Shift all rows: nothing but rounding. Shift one: {min(alone[1:]):.2f} and more"
plot_lines(curves, ["rope", "wrong"], title, "shift, positions", "largest change", log="y", ylim=(1e-17, 10))

# %% [markdown]
# That is why this mistake survives in public code: a training curve does not show it. A test has to look at the
# positions that are handed over (`test_the_spy_sees_which_token_which_hidden_row_and_which_position_meet`).
#
# ## The derivation: the way back
#
# The attention's way back is chapter 01's. Three steps are new here.
#
# 1. **The square of a cut unit.** $r = \max(u, 0)$, $h = r^2$. Where $u > 0$ the slope is $2u$, elsewhere zero, and
#    both cases are $2r$: the cut needs no case of its own. $du = 2r\,dh$.
# 2. **The turn.** A turn keeps lengths and angles, so its transpose is the turn back: $dx$ = turn $dy$ by minus the
#    angle.
# 3. **Two additions.** $y = a + m(a)$ and $a = x + A(x)$: at each, the gradient arrives twice, straight and through the
#    reader.


# %%
def norm_back(dy, rows, weight):
    size = np.sqrt(np.mean(rows**2, axis=-1, keepdims=True) + 1e-6)
    g, unit = dy * weight, rows / size
    return (g - unit * np.mean(g * unit, axis=-1, keepdims=True)) / size


def think_back(dy, a, w):
    """The second addition of the block, backwards: steps 1 and 3."""
    r = np.maximum(norm(a, w.post_attention_layernorm) @ w.up_proj.T, 0)
    dup = 2 * r * (dy @ w.down_proj)
    return dy + norm_back(dup @ w.up_proj, a, w.post_attention_layernorm)


# %%
dy = rng.standard_normal(x.shape)
mute = replace(w, o_proj=0 * w.o_proj)  # the attention says nothing: only the second addition is left
dx = compact_block_backward(dy, compact_block_forward(mute, x, at, 3)[1])[0]
assert np.allclose(dx, think_back(dy, x, mute), atol=1e-14)

heads, grad = rng.standard_normal((2, 1, 3, 5, 4))
by_trying = central_difference(lambda: np.sum(grad * rotate(heads, at)), heads)
assert relative_error(rotate(grad, at, -1.0), by_trying) < 1e-8  # step 2
print("the network's way back and the turn's agree with the module")

# %%
dx, dw = compact_block_backward(dy, cache)
for name, array, ours in (("x", x, dx), ("qkv_proj", w.qkv_proj, dw.qkv_proj), ("up_proj", w.up_proj, dw.up_proj)):
    by_trying = central_difference(lambda: np.sum(dy * compact_block_forward(w, x, at, 3)[0]), array)
    print(f"d{name:<8} agrees with central differences:", relative_error(ours, by_trying) < 1e-8)

# %% [markdown]
# ## Change this, predict, run
#
# The cell takes the text of the block and leaves the `(T - S)` out of the mask. Three uses follow: five rows at once;
# rows one by one through the cache; two rows, then three. Predict for each: right or wrong? Then plant a mistake of
# your own: the line `plant(...)` takes any two pieces of text.
#
# <details><summary>Afterwards</summary>
#
# Five at once is right: $T = S$, there is nothing to leave out. So training is right, and reading the prompt is. One by
# one is wrong: the newest row sees key 0 only. Two, then three is wrong too, and this is the use that the check of
# drafts makes. Whoever tests a cache with the prompt alone never meets the mistake.
#
# </details>


# %%
def plant(right, wrong):
    """The block with one piece of its text exchanged."""
    text = inspect.getsource(compact_block_forward)
    assert text.count(right) == 1
    scope = dict(vars(causal_block))
    exec(text.replace(right, wrong), scope)
    return scope["compact_block_forward"]


def in_pieces(block, edges):
    kv, edges = KeyValueCache(), [0, *edges, 5]
    return np.concatenate([block(w, x[:, a:b], at[:, a:b], 3, kv)[0] for a, b in zip(edges, edges[1:])], axis=1)


# %%
broken = plant("np.arange(S)[:, None] + (T - S)", "np.arange(S)[:, None]")
for name, edges in {"five at once": [], "one by one": [1, 2, 3, 4], "two, then three": [2]}.items():
    assert np.abs(in_pieces(compact_block_forward, edges) - whole).max() < 1e-13
    print(f"{name:16} the module is right, the broken one off by {np.abs(in_pieces(broken, edges) - whole).max():.2f}")

# %% [markdown]
# ## What you can now do
#
# Say what a module may demand of a layer, and test each promise by itself; run a layer with a cache, strike rows from
# it, and show that they left no trace; name the shift of positions that no training curve shows. From here on the block
# is an *argument*: two functions that keep four promises.
#
# ## Exercises
#
# Graded: `relu_squared_backward` (`make check CH=04`). By thought alone:
#
# 1. Why does `truncate` not have to touch the rows that stay?
#
# <details><summary>Solution</summary>
#
# The block is causal: keys and values of row $t$ depend on rows up to $t$ only. Taking later rows away cannot change
# earlier ones.
#
# </details>
#
# 2. A block with a norm over the *whole text* (the mean over all rows, say) would break which promises?
#
# <details><summary>Solution</summary>
#
# The first: a later row changes the mean, and with it all earlier rows. And with it the second and third: rows in the
# cache were made with another mean than the one that holds now.
#
# </details>
#
# 3. A model learned position by a table, one row for each place, added to the input. Is a common shift of all positions
#    still invisible?
#
# <details><summary>Solution</summary>
#
# No. Rows of the table are unrelated, so a shift gives other inputs; that mistake would show at once. Only schemes that
# see distances alone, as RoPE does, hide it.
#
# </details>
