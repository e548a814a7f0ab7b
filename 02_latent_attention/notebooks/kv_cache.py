# %% [markdown]
# # The key-value cache
#
# **The question.** A model writes token 1000. Must it read the 999 tokens before it all over again?
#
# No. A token's key and value depend on that token alone, so they can be kept. This notebook shows what is kept, counts
# what would be computed again without it, and sets the trap that most implementations fall into: the mask of a chunk.

# %%
import matplotlib.pyplot as plt
import numpy as np
from kv_cache import (
    MultiHeadWeights,
    TokenCache,
    cached_attention_forward,
    decode_by_recomputing,
    decode_with_cache,
)

from utils.whiteboard import arrow, board, box, matrix, note, use_style

use_style()

# %% [markdown]
# ## On the whiteboard: the attention matrix grows by one row
#
# Every step adds one query row. The rows above it are finished: nothing ever reads them again. What the new row *does*
# need is every key and every value so far, the blue strip below.


# %%
def draw_step(ax, x, step):
    rows = np.tril(np.full((4, 4), 0.12))
    rows[rows == 0] = -np.inf
    rows[step - 1, :step], rows[step:] = 1.0, -np.inf
    matrix(ax, x, 5.9, rows, "ink", cell=0.8, limit=1.3)
    kept = np.where(np.arange(4) < step - 1, 0.45, np.where(np.arange(4) == step - 1, 1.0, -np.inf))
    matrix(ax, x, 1.6, kept[None], "content", cell=0.8, limit=1.3)
    note(ax, x + 1.6, 6.25, f"token {step}: one new row", size=11)
    note(ax, x + 1.6, 0.4, f"kept: {step} key{'s' * (step > 1)} and value{'s' * (step > 1)}", "content", size=11)
    arrow(ax, (x + 0.8 * step - 0.4, 1.6), (x + 0.8 * step - 0.4, 5.9 - 0.8 * step), kind="content")


# %%
fig, ax = board(20, 6.6)
for step in range(1, 5):
    draw_step(ax, 0.6 + 5 * (step - 1), step)
plt.show()

# %% [markdown]
# ## Derivation
#
# 1. $q_s = W_Q h_s,\; k_s = W_K h_s,\; v_s = W_V h_s$: three products that read token $s$ only.
# 2. $o_s = \sum_{t \le s} \mathrm{softmax}_t(q_s \cdot k_t / \sqrt K)\, v_t$: the causal mask lets token $s$ look back
#    only, so a later token never changes $o_s$.
# 3. Therefore $k_t$ and $v_t$ may be computed once and kept; the old queries and outputs may be thrown away.
# 4. Projected tokens for a text of length $S$: with a cache $S$; without it $1 + 2 + \dots + S = S(S+1)/2$.
# 5. Several tokens at once (a prompt in chunks, a draft to verify): with $T$ keys and the last $S$ of them new, query
#    $s$ stands at place $T - S + s$. The mask is $t \le s + (T - S)$. Forgetting the **offset** $T - S$ is row E of the
#    common mistakes: it passes every test that uses a single chunk.
#
# ## Check in numbers

# %%
rng = np.random.default_rng(0)
weights = MultiHeadWeights.init(rng, D=16, H=4, K=4, U=4)
x = rng.standard_normal((1, 64, 16))
kept, n_kept = decode_with_cache(x, weights)
again, n_again = decode_by_recomputing(x, weights)
print(f"same outputs: {np.allclose(kept, again, rtol=0, atol=1e-12)}; tokens projected: {n_kept} and {n_again}")

# %% [markdown]
# A cache for the whole text is one array whose room is taken once. `append` writes behind the old tokens and returns a
# view; `truncate` forgets the last tokens, which is how a rejected draft leaves.

# %%
past = TokenCache(capacity=64)
for chunk in np.split(x, [10, 11, 40], axis=1):
    y, _ = cached_attention_forward(chunk, weights, past)
    print(f"{chunk.shape[1]:>2} new tokens, {past.n_tokens:>2} kept, {past.nbytes:>6} bytes")
assert np.allclose(y, kept[:, 40:])

# %% [markdown]
# ## The trap, drawn
#
# Two tokens arrive when three are cached. Left: the mask with its offset. Right: the square mask that a one-shot
# prefill uses, laid over the first keys. The new tokens do not even see themselves.

# %%
S, T = 2, 5
right = np.where(np.arange(T) <= np.arange(S)[:, None] + (T - S), 1.0, -np.inf)
wrong = np.where(np.arange(T) <= np.arange(S)[:, None], 1.0, -np.inf)
fig, ax = board(16, 3.9)
for x0, mask, kind, text in [(1, right, "content", "t ≤ s + (T − S)"), (9.4, wrong, "draft", "t ≤ s: no offset")]:
    matrix(ax, x0, 3, mask, kind, cell=1.0, label=text)
    for t in range(T):
        note(ax, x0 + t + 0.5, 0.65, f"key {t}" if t < 3 else f"new {t}", size=10)
    for s in range(S):
        note(ax, x0 - 0.2, 2.5 - s, f"q{s + 3}", align="right", size=11)
plt.show()

# %% [markdown]
# ## The finding

# %%
lengths = 2 ** np.arange(3, 15)
without = lengths * (lengths + 1) // 2
fig, ax = plt.subplots()
ax.loglog(lengths, without, color="#C0396B", label="nothing kept: S (S + 1) / 2")
ax.loglog(lengths, lengths, color="#2F6DB5", label="keys and values kept: S")
ax.set(xlabel="tokens written, S", ylabel="tokens projected")
ratio = without[-1] / lengths[-1]
ax.set_title(f"{lengths[-1]:,} tokens: keeping nothing costs {ratio:,.0f} times as much")
ax.legend()
plt.show()

# %% [markdown]
# ## What changed, and what it costs
#
# Computation became memory: two vectors per head, layer and token, read again at *every* step. For DeepSeek-V3's sizes,
# plain multi-head attention would keep 32,768 values per layer and token. The rest of this chapter makes that number
# small.
#
# ## Exercises
#
# 1. Why is it useless to cache the queries?
#
# <details><summary>Solution</summary>
#
# Query $s$ is used in row $s$ only, and row $s$ is finished after step $s$. Keys and values are read by every later
# row.
#
# </details>
#
# 2. Without a mask (an encoder), would the cache still be right?
#
# <details><summary>Solution</summary>
#
# In a single layer keys and values would still be right, but the old outputs would change with every new token, and
# with them the hidden states that the next layer makes keys from. Causality is what makes caching exact through a
# stack.
#
# </details>
#
# 3. A chunk of $S$ tokens arrives when $T - S$ are cached. How many scores are computed, and how many of them are
#    masked?
#
# <details><summary>Solution</summary>
#
# $S\,T$ scores, of which $S(S-1)/2$ are masked: those above the diagonal of the last $S$ columns.
#
# </details>
