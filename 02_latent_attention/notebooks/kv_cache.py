# %% [markdown]
# # The key-value cache
#
# **The question.** A model writes token 1000. Must it read the 999 tokens before it all over again?
#
# Picture a clerk who writes a long report, one word at a time. After every word he is sent home and forgets everything.
# The next morning he reads the whole report from the start, finds the next word, writes it, and goes home. Word 1000
# costs him 999 words of reading.
#
# A second clerk has a drawer of cards. For each word he has once read, he writes a card: on the front what the word can
# be *found by*, on the back what it *has to say*. To find the next word he reads the last one, looks through the fronts
# of his cards, and copies from the backs. He never opens the report again.
#
# In attention the front of a card is called the **key**, the back the **value**; what the newest word looks for is its
# **query**. The drawer is the **key-value cache**. This notebook builds it, shows that both clerks write the same
# report, counts what the drawer saves, and sets the trap that most implementations fall into. The rest of the chapter
# is about making the cards small.

# %%
import numpy as np
from kv_cache import (
    MultiHeadWeights,
    TokenCache,
    attend_forward,
    cached_attention_forward,
    decode_by_recomputing,
    decode_with_cache,
)

from utils.drawings_02 import draw_growing_attention, draw_masks
from utils.plots_02 import plot_lines

# %% [markdown]
# ## Intuition: the attention matrix grows by one row
#
# Attention compares every query with every key, which makes a square of scores: one row for each query, one column for
# each key. A token may look back but not ahead (the *causal mask*), so only the lower triangle counts. When a token is
# added, the square gets one new row. The rows above it are finished: nothing ever reads them again. What the new row
# *does* need is every card so far, the blue strip.

# %%
draw_growing_attention()

# %% [markdown]
# Two things follow from the picture. Old queries are useless, for their rows are done. Old keys and values are needed
# at *every* later step, and they do not change, because a card is made from its own token alone.
#
# ## Numbers to follow with a pencil
#
# Three tokens, each described by two numbers (its *hidden state*): $(1, 0)$, $(0, 1)$ and $(1, 1)$. To keep the pencil
# short, query, key and value all equal the hidden state. How well a query and a key fit is their dot product, divided
# by the root of the key's width, here $\sqrt 2$ (chapter 01 says why).
#
# The third token asks with $(1, 1)$. Its scores are $1/\sqrt2$, $1/\sqrt2$ and $2/\sqrt2$, that is 0.707, 0.707 and
# 1.414. The softmax takes $e$ to the power of each, 2.028, 2.028 and 4.113, and divides by their sum, 8.169: shares
# 0.248, 0.248 and 0.503. The output mixes the three values by these shares: first coordinate $0.248 + 0.503 = 0.752$
# (rounded from more digits), second the same.

# %%
hidden = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
score = hidden @ hidden[2] / np.sqrt(2)
share = np.exp(score) / np.exp(score).sum()
print("scores", score.round(3), " shares", share.round(3), " output", (share @ hidden).round(3))

# %% [markdown]
# ## Build it: the clerk without a drawer
#
# Now with matrices. Letters for the whole chapter: a hidden state has $D$ numbers; a key has $K$, a value $U$. Three
# matrices make query, key and value from a hidden state. First one head, one text, no cache: read everything, answer
# for the last token.

# %%
rng = np.random.default_rng(0)
D, K, U = 6, 4, 5
W_q, W_k, W_v = rng.standard_normal((K, D)), rng.standard_normal((K, D)), rng.standard_normal((U, D))


def answer_from_the_start(text):
    """Read all tokens [n, D]; return what the last one finds out [U]."""
    query = W_q @ text[-1]
    keys, values = text @ W_k.T, text @ W_v.T
    score = keys @ query / np.sqrt(K)
    share = np.exp(score - score.max())
    return share / share.sum() @ values


# %% [markdown]
# ## Build it: the clerk with a drawer
#
# Only one line is different in spirit: the key and the value of the *newest* token are made, the others are there. The
# function reads one token, not a text.


# %%
def answer_with_cards(token, keys, values):
    """Read one token [D]; add its card; return what it finds out [U]."""
    keys.append(W_k @ token)
    values.append(W_v @ token)
    score = np.array(keys) @ (W_q @ token) / np.sqrt(K)
    share = np.exp(score - score.max())
    return share / share.sum() @ np.array(values)


# %%
text, keys, values = rng.standard_normal((7, D)), [], []
for n in range(1, 8):
    slow, fast = answer_from_the_start(text[:n]), answer_with_cards(text[n - 1], keys, values)
    assert np.allclose(slow, fast, rtol=0, atol=1e-14)
print(f"7 tokens: the same answers; {sum(range(1, 8))} tokens read from the start, {len(keys)} with cards")

# %% [markdown]
# That is the whole idea. What the module adds is *heads* (several questions per token, each with its own keys and
# values), *batches* (several texts at once), and a drawer that does not grow by copying.
#
# ## Build it: a drawer whose room is taken once
#
# A Python list of arrays would be copied into one array at every step. Instead, take room for the longest text at the
# start, write behind the old tokens, and hand out a *view* of the filled part, which copies nothing.


# %%
class Drawer:
    def __init__(self, capacity, width):
        self.room, self.n = np.zeros((capacity, width)), 0

    def append(self, new):
        self.room[self.n : self.n + len(new)] = new
        self.n += len(new)
        return self.room[: self.n]


# %%
mine, theirs = Drawer(7, K), TokenCache(7)
for part in np.split(text @ W_k.T, [3, 4]):
    view, (kept,) = mine.append(part), theirs.append(part)
    assert np.array_equal(view, kept)
    print(f"{len(part)} new, {theirs.n_tokens} kept; the view shares the room's memory: {view.base is mine.room}")

# %% [markdown]
# `TokenCache` does the same for any number of arrays with their token axis second to last, refuses what does not fit,
# and can `truncate`: forget the newest tokens. That is how a rejected draft leaves (chapter 04).
#
# ## The derivation
#
# Token $s$ has hidden state $h_s$; $W_Q, W_K, W_V$ are the three matrices; $o_s$ is what token $s$ finds out.
#
# 1. $q_s = W_Q h_s,\; k_s = W_K h_s,\; v_s = W_V h_s$: three products that read token $s$ only.
# 2. $o_s = \sum_{t \le s} \mathrm{softmax}_t(q_s \cdot k_t / \sqrt K)\, v_t$: the mask lets token $s$ look back only,
#    so a later token never changes $o_s$.
# 3. Therefore $k_t$ and $v_t$ may be computed once and kept; old queries and outputs may be thrown away.
# 4. In a *stack* of layers the hidden states of the next layer are made of the $o_s$. By step 2 they never change
#    either, so the argument repeats in every layer. Without the mask it would stop here.
# 5. Tokens projected for a text of length $S$: with a cache $S$; without $1 + 2 + \dots + S = S(S+1)/2$.
#
# ## The module agrees
#
# One head of `cached_attention_forward` with an identity as output matrix must be our clerk. (Axes: B texts, S tokens.)

# %%
one_head = MultiHeadWeights(W_q, W_k, W_v, np.eye(U), n_heads=1)
y, _ = cached_attention_forward(text[None], one_head)
naive = np.array([answer_from_the_start(text[:n]) for n in range(1, 8)])
assert np.allclose(y[0], naive, rtol=0, atol=1e-14)

weights, x = MultiHeadWeights.init(rng, D=16, H=4, K=4, U=4), rng.standard_normal((1, 64, 16))
(kept, n_kept), (again, n_again) = decode_with_cache(x, weights), decode_by_recomputing(x, weights)
assert np.allclose(kept, again, rtol=0, atol=1e-12)
print(f"64 tokens, 4 heads: same outputs; tokens projected {n_kept} with a cache, {n_again} without")

# %% [markdown]
# ## Several tokens at once, and the trap
#
# A prompt arrives whole, or in chunks; a draft of three tokens wants to be verified in one go. So let $S$ tokens be new
# when $T - S$ cards are in the drawer, $T$ cards in all. Who may see what?
#
# The first new token is not token 0, it is token $T - S$. Query $s$ (counted from 0 within the chunk) stands at place
# $T - S + s$, and sees every key up to there: $t \le s + (T - S)$. The number $T - S$ is the **offset**. The square
# mask that is right for a text read in one piece is $t \le s$, without it. Laid over a chunk, it does not even let a
# new token see itself.

# %%
S, T = 2, 5
place = np.arange(T)
right = place <= np.arange(S)[:, None] + (T - S)
forgotten = place <= np.arange(S)[:, None]
title = "Two new tokens behind three cards: without the offset they miss themselves"
draw_masks({"t ≤ s + (T − S)": right, "t ≤ s: no offset": forgotten}, ["content", "wrong"], title)

# %% [markdown]
# The second way to be wrong is to use no mask at all behind a cache. For a *single* new token that is right: everything
# in the drawer is older. For a chunk it shows its first tokens their own future.
#
# ## The experiment: which test would notice?
#
# Feed 12 tokens as a prompt of $n$ and a chunk of $12 - n$, with each of the three masks for the second piece, and
# compare with one shot.


# %%
def attend_second_piece(q, k, v, mask):
    """Attention of the last S of T tokens under any mask [S, T]."""
    score = np.where(mask, q @ k.T / np.sqrt(q.shape[1]), -np.inf)
    share = np.exp(score - score.max(axis=1, keepdims=True))
    return share / share.sum(axis=1, keepdims=True) @ v


# %%
text = rng.standard_normal((12, D))
q, k, v = text @ W_q.T, text @ W_k.T, text @ W_v.T
whole = attend_forward(q[None, None], k[None, None], v[None, None], K**-0.5)[0][0, 0]
miss = {"offset": [], "no offset": [], "no mask": []}
for n in range(12):
    S = 12 - n
    row, key = np.arange(S)[:, None], np.arange(12)
    for name, mask in zip(miss, (key <= row + n, key <= row, key <= row + 12)):
        miss[name].append(np.abs(attend_second_piece(q[n:], k, v, mask) - whole[n:]).max())

# %%
assert max(miss["offset"]) < 1e-14
assert miss["no offset"][0] < 1e-14 < min(miss["no offset"][1:])
assert miss["no mask"][11] < 1e-14 < min(miss["no mask"][:11])
plot_lines(
    {name: (range(12), errors) for name, errors in miss.items()},
    ["content", "wrong", "ink"],
    "Each wrong mask passes one test and fails all others",
    "tokens in the cache when the second piece arrives, of 12",
    "largest error of its outputs",
)

# %% [markdown]
# *No offset* is right at the left end only (nothing cached: the usual unit test). *No mask* is right at the right end
# only (one new token: the usual demonstration). Between them lies every real use, so test **every** split; our
# `test_every_split_into_two_chunks_equals_one_shot` does. Both mistakes stand in public implementations.
#
# ## What the drawer costs
#
# Nothing is free: computation became memory. A card is $K + U$ numbers for each head, layer and token, and all cards
# are read again at every step. At DeepSeek-V3's sizes, 128 heads with keys and values of 128 numbers each, plain
# multi-head attention keeps $128 \cdot (128 + 128) = 32{,}768$ numbers per token in each of 61 layers: 4 megabytes for
# one token in 16-bit numbers. The rest of this chapter makes that number small.

# %%
past = TokenCache(capacity=64)
for chunk in np.split(x, [10, 11, 40], axis=1):
    y, _ = cached_attention_forward(chunk, weights, past)
    print(f"{chunk.shape[1]:>2} new tokens, {past.n_tokens:>2} kept, {past.nbytes:>6} bytes")
assert np.allclose(y, kept[:, 40:])
print(f"V3 without this chapter: {128 * (128 + 128) * 61 * 2:,} bytes per token")

# %% [markdown]
# ## Change this, predict, run
#
# In the cell below the mask lets each token see *only the three newest* keys (a sliding window). Before you run it,
# write down two predictions: is the first of the twelve outputs still right? How many of the others are? Then change 3
# to 12 and predict again.
#
# <details><summary>Afterwards</summary>
#
# The first three are right: nobody before them has more than three keys to see. The other nine have lost a part of
# their past, all of them. With 12 the window holds everybody's past, and twelve are right. A window is a promise about
# the memory (three rows are enough, however long the text), bought with what stands further back.
#
# </details>

# %%
window = 3
row, key = np.arange(12)[:, None], np.arange(12)
near = attend_second_piece(q, k, v, (key <= row) & (key > row - window))
print("outputs unchanged:", np.flatnonzero(np.abs(near - whole).max(axis=1) < 1e-14))

# %% [markdown]
# ## What you can now do
#
# Write cached attention from an empty file; say which arrays must be kept and why queries are not among them; write the
# mask of a chunk; and name the one test that each wrong mask passes.
#
# ## Exercises
#
# The graded ones begin with `mask_with_past` (`make check CH=02`). By thought alone:
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
# stack: step 4 of the derivation.
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
#
# 4. The backward pass: what is the gradient of a card that was written in an earlier step?
#
# <details><summary>Solution</summary>
#
# While generating, nothing is trained, and a card counts as a constant. In training the whole text is one chunk
# ($T = S$), and each key collects a gradient from every later query: $dk_t = \sum_{s \ge t} dscore_{s,t}\, q_s /
# \sqrt K$.
#
# </details>
