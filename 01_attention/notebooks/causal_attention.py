# %% [markdown]
# # Causal attention
#
# **The question.** A model learns to guess the next word. A text of seven words holds six such guesses, and attention
# could work on all of them in one go. But the answer to each guess is the very next row. How do we let every row learn
# at the same time, and none read its own answer?
#
# A teacher hands out a crossword whose solutions are printed on the same page, one line further down each time. Every
# pupil solves it perfectly. At home, where no solutions are printed, nobody can do a thing. The remedy is a sheet of
# paper: cover everything below the line you are working on, and move the sheet down line by line. In a matrix product
# one need not move a sheet: one lays a **mask** over all lines at once, a staircase.
#
# What happens without the sheet will be measured below: a model that is *too good* in training, and what it has really
# learned.

# %%
import numpy as np
from causal_attention import attend_causally_backward, attend_causally_forward, attend_masked_forward, causal_mask
from self_attention import SelfAttentionWeights, attend_forward, self_attend_backward, self_attend_forward

from utils.drawings_01 import draw_growing_shares, draw_offsets
from utils.gradient_check import central_difference, relative_error
from utils.plots_01 import plot_leak

# %% [markdown]
# ## Numbers to follow with a pencil
#
# Three tokens, all scores equal, values 6, 2 and 1. Without a mask every row takes the mean of all three: 3, 3, 3.
#
# With the mask, row 1 sees only itself: 6. Row 2 sees two, a half each: $(6 + 2)/2 = 4$. Row 3 sees all:
# $(6 + 2 + 1)/3 = 3$. So causal attention with equal scores is the *running mean*.

# %%
value, zeros = np.array([[6.0], [2.0], [1.0]]), np.zeros((3, 2))
print("without mask:", attend_forward(zeros, zeros, value)[0][:, 0])
print("causal:      ", attend_causally_forward(zeros, zeros, value)[0][:, 0])

# %% [markdown]
# ## Build it
#
# Row $t$ may look at the columns $1 \dots t$. The plainest way is to give each row only the keys and values it may see:


# %%
def ask(q, keys, values):
    """One query: the market of the last notebook."""
    score = keys @ q / np.sqrt(len(q))
    share = np.exp(score - score.max())
    return share / share.sum() @ values


def look_back(q, k, v):
    """Each row sees the rows up to itself, and no other."""
    return np.array([ask(q[t], k[: t + 1], v[: t + 1]) for t in range(len(q))])


# %% [markdown]
# That is right, and slow: one small product for each row. The trick is to compute *all* scores in one product and put
# $-\infty$ where looking is forbidden, **before** the softmax. $e^{-\infty}$ is exactly 0.


# %%
def look_back_at_once(q, k, v):
    """The same by one product and a mask."""
    score = q @ k.T / np.sqrt(q.shape[1])
    may_look = np.tril(np.ones(score.shape, dtype=bool))  # True on and below the diagonal
    score = np.where(may_look, score, -np.inf)
    share = np.exp(score - score.max(axis=1, keepdims=True))
    return share / share.sum(axis=1, keepdims=True) @ v


rng = np.random.default_rng(0)
q, k, v = rng.standard_normal((5, 3)), rng.standard_normal((5, 3)), rng.standard_normal((5, 2))
out, _ = attend_causally_forward(q, k, v)
assert np.allclose(out, look_back(q, k, v), atol=1e-15)
assert np.allclose(out, look_back_at_once(q, k, v), atol=1e-15)
print("row by row, at once, and the module: all agree")

# %% [markdown]
# ## The derivation
#
# 1. $o_t = \sum_{j \le t} p_{tj}\, v_j$ with $p_{tj} = e^{a_{tj}} / \sum_{u \le t} e^{a_{tu}}$. **Both** sums stop at
#    $t$: the shares of what may be seen must add up to one.
# 2. As a mask: $a_{tj} = -\infty$ where $j > t$. Then $e^{a_{tj}} = 0$ in both sums.
# 3. Two near misses. Setting the *share* to zero after the softmax stops the first sum only: the rows no longer add up
#    to one, and a hidden key still acts through the second sum. Setting the *score* to zero is worse: $e^0 = 1$, the
#    future gets a share.
# 4. **Backwards: nothing new.** $da_{tj} = p_{tj}\,(dp_{tj} - \sum_u p_{tu}\, dp_{tu})$ has the factor $p_{tj}$. Where
#    the mask made a zero, the gradient is zero by itself.
# 5. **Older keys.** A model that writes keeps the keys of earlier tokens. If $T$ keys are there and the $S$ queries are
#    the last of them, query $s$ stands at position $s + T - S$, so it may look at $t \le s + (T - S)$. The diagonal
#    ends in the *last* corner.

# %%
draw_offsets(
    {"a whole text": causal_mask(4, 4), "two more after three": causal_mask(2, 5), "one more": causal_mask(1, 6)}
)

# %%
gradients = attend_causally_backward(np.ones((5, 2)), attend_causally_forward(q, k, v)[1])
for name, array, gradient in zip(("dq", "dk", "dv"), (q, k, v), gradients):
    by_trying = central_difference(lambda: np.sum(attend_causally_forward(q, k, v)[0]), array)
    print(name, "agrees with central differences:", relative_error(gradient, by_trying) < 1e-7)
whole = attend_causally_forward(q, k, v)[0]
chunks = [attend_causally_forward(q[:3], k[:3], v[:3])[0], attend_causally_forward(q[3:], k, v)[0]]
assert np.allclose(whole, np.concatenate(chunks), atol=1e-15)  # step 5: in two pieces, the same

# %% [markdown]
# ## Old rows never change
#
# Here is who looks at whom, while a sentence arrives word by word (random weights; only the pattern matters here). The
# framed row is new. The rows above it stay what they were, to the last digit.

# %%
words = ["the", "cat", "that", "saw", "the", "dog"]
layer, hidden = SelfAttentionWeights.init(rng, 8, 8, 8), rng.normal(size=(6, 8))
grown = [self_attend_forward(hidden[:n], layer, attend_causally_forward)[1][1][3] for n in range(1, 7)]
assert all(np.allclose(small, grown[-1][: len(small), : len(small)]) for small in grown)
draw_growing_shares(words, grown)

# %% [markdown]
# That is more than a pretty picture. It is why one pass over a whole text trains every position as if the text had
# ended there. And it is why a model that writes can **keep** what it has computed: a new token needs its own row, and
# for that the keys and values of the old ones. Chapter 02 starts from there.
#
# ## The experiment: what leaks without the mask
#
# A task that **cannot** be learned: each token is drawn at random from five, the next one too. Nobody can foretell it;
# an honest loss is $\ln 5 = 1.609$ and stays there. We train the same layer with and without the mask. A row holds its
# token and its place, one-hot each, so that a query can ask for a place.

# %%
VOCABULARY, LENGTH = 5, 8


def draw_texts(n_texts):
    """Random tokens as rows [token | place], and the token that follows each."""
    tokens = rng.integers(VOCABULARY, size=(n_texts, LENGTH + 1))
    places = np.broadcast_to(np.eye(LENGTH), (n_texts, LENGTH, LENGTH))
    return np.concatenate([np.eye(VOCABULARY)[tokens[:, :-1]], places], axis=-1), tokens[:, 1:]


# %%
def surprise(logits, answers):
    """Mean surprise, and its gradient by the logits (chapter 00: probability minus one-hot)."""
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    right = np.take_along_axis(p, answers[..., None], axis=-1)[..., 0]
    return -np.log(right).mean(), (p - np.eye(VOCABULARY)[answers]) / answers.size


# %%
def train(attend, n_steps=400, rate=20.0):
    """Plain descent on the three matrices; the loss of every step on fresh texts, and the weights."""
    weights, losses = SelfAttentionWeights.init(np.random.default_rng(0), VOCABULARY + LENGTH, 13, VOCABULARY), []
    for _ in range(n_steps):
        hidden, answers = draw_texts(64)
        logits, cache = self_attend_forward(hidden, weights, attend)
        loss, dlogits = surprise(logits, answers)
        _, dweights = self_attend_backward(dlogits, cache)
        weights = SelfAttentionWeights(*(w - rate * d for w, d in zip(vars(weights).values(), vars(dweights).values())))
        losses.append(loss)
    return np.array(losses), weights


# %%
honest, _ = train(attend_causally_forward)
leaky, cheat = train(attend_forward)
guess = np.log(VOCABULARY)
assert leaky[-50:].mean() < 0.8 * guess < honest[-50:].mean()
share = self_attend_forward(draw_texts(1)[0][0], cheat)[1][1][3]
title = f"Without the mask the loss falls to {leaky[-50:].mean():.2f}, below what is possible ({guess:.2f})"
plot_leak(honest, leaky, guess, share, title)

# %% [markdown]
# The square on the right shows how. Each row looks at the column *after* it, the place of its own answer. The last row,
# whose answer is not in the text, cannot cheat. When such a model writes, there is no next column, and it is lost.
#
# **A loss that is too good is the usual symptom of a leak.** The sharper test changes one token and demands that every
# output before it stay the same, to the last bit:

# %%
edited = v.copy()
edited[3] += 1.0
for name, attend in (("without mask", attend_forward), ("causal", attend_causally_forward)):
    moved = np.abs(attend(q, k, edited)[0] - attend(q, k, v)[0]).max(axis=1)
    print(f"token 3 is edited; outputs move by {moved.round(3)} ({name})")

# %% [markdown]
# ## Change this, predict, run
#
# A colleague multiplies the *shares* by the mask, after the softmax, and says that nothing leaks: no value of the
# future is ever read. The cell edits the last *key* and looks whether earlier outputs move. Predict: which rows move?
# And does the same happen when the last *value* is edited?
#
# <details><summary>Afterwards</summary>
#
# All earlier rows move when the key is edited: the future leaks through the denominator $\sum_u e^{a_{tu}}$, which runs
# over all keys. When the value is edited none moves. A test that edits values only would have let this mistake pass.
#
# </details>


# %%
def masked_too_late(q, k, v):
    share = attend_forward(q, k, v)[1][3]
    return np.tril(share) @ v


last_key, last_value = k.copy(), v.copy()
last_key[4] += 1.0
last_value[4] += 1.0
print(
    "key edited:  rows move by", np.abs(masked_too_late(q, last_key, v) - masked_too_late(q, k, v)).max(axis=1).round(3)
)
print(
    "value edited: rows move by",
    np.abs(masked_too_late(q, k, last_value) - masked_too_late(q, k, v)).max(axis=1).round(3),
)

# %% [markdown]
# ## What you can now do
#
# Mask attention forward and backward, with older keys too; recognise a leak by its loss and prove it by an edit; say
# why old rows can be kept.
#
# ## Exercises
#
# Graded: `causal_mask`, `causal_attention_backward` (`make check CH=01`). By thought alone:
#
# 1. How many scores of an $S \times S$ product are thrown away? What would a program gain that does not compute them?
#
# <details><summary>Solution</summary>
#
# $S(S-1)/2$ of $S^2$, nearly half. A kernel that works in blocks skips the blocks above the diagonal, which saves
# almost half of the time at large $S$. It is why FLOP counts come as *causal* and *non-causal*; for V3 the two differ
# by about a tenth at 4,096 tokens, because the experts are most of the work.
#
# </details>
#
# 2. Two texts share one row of a batch, one after the other. Which mask keeps them apart? What does DeepSeek-V3 do in
#    pre-training?
#
# <details><summary>Solution</summary>
#
# Two staircases on the diagonal, nothing between them: `causal_mask(T, T) & (text[:, None] == text[None, :])`, which
# `attend_masked_forward` takes as it is. The report (section 4.1) says that V3 packs documents and does **not** mask
# across them in pre-training.
#
# </details>
#
# 3. A model reads a question and then writes. Need the mask hide anything while it *reads the question*?
#
# <details><summary>Solution</summary>
#
# Nothing forces it: all words of the question are known. But the layers were trained with rows that look back only, and
# the kept keys and values of the question must not depend on what is written later. A causal model stays causal while
# reading.
#
# </details>
