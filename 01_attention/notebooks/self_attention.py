# %% [markdown]
# # Self-attention
#
# **The question.** *The cat saw the dog that sat.* Who sat? A row of numbers stands for each word, and the row of *sat*
# knows only *sat*. The answer lies in another row, now here, now there. How does a row fetch what it needs, when nobody
# says in advance where it is? And how can the fetching be *learned*?
#
# Think of a market. Each stall has a **sign** above it and **goods** below. You come with a **wish**. You hold your
# wish against every sign, and where sign and wish agree you take much, elsewhere little. What you carry home is a
# mixture of goods, mixed by how well the signs fitted your wish. Each word of a sentence is a stall, and each word is a
# customer too. The wish is called **query**, the sign **key**, the goods **value**.
#
# Why a mixture, why not go to the best stall alone? Because a choice has no slope. Move the sign a little, and the
# choice stays what it was, until it suddenly jumps. A mixture moves a little when a sign moves a little, so descent can
# feel in which direction wishes, signs and goods should go (chapter 00). At the end of this notebook a layer has
# learned to answer *who sat?*, from nothing but right and wrong answers.

# %%
import numpy as np
from self_attention import (
    SelfAttentionWeights,
    attend_backward,
    attend_forward,
    score_keys,
    self_attend_backward,
    self_attend_forward,
    share_attention,
)

# %%
from utils.drawings_01 import draw_one_query, draw_who
from utils.gradient_check import central_difference, relative_error
from utils.plots_01 import plot_scale
from utils.plots_02 import plot_lines
from utils.story_task import ACTORS, WIDTH, draw_sentences, show_rows, spell_words, train_who

# %% [markdown]
# ## Numbers to follow with a pencil
#
# One query, two keys, two values. The query is $(2, 0, 0, 0)$. The first key is $(0, 0, 0, 0)$, the second
# $(1.099, 0, 0, 0)$, where $1.099 = \ln 3$ is chosen so that the numbers come out round. The values are $(4, 0)$ and
# $(0, 8)$.
#
# 1. **How well do they fit?** Multiply number by number and add up (the *dot product*): $2 \cdot 0 = 0$ and
#    $2 \cdot 1.099 = 2.197$. Divide by $\sqrt 4 = 2$, the root of the width (the reason comes below): scores $0$ and
#    $1.099$.
# 2. **Shares.** Raise $e$ to each: $1$ and $3$. Divide by their sum: $\tfrac14$ and $\tfrac34$. That is the softmax of
#    chapter 00.
# 3. **The mixture.** $\tfrac14 (4, 0) + \tfrac34 (0, 8) = (1, 6)$.

# %%
query = np.array([[2.0, 0, 0, 0]])
key = np.array([[0.0, 0, 0, 0], [np.log(3.0), 0, 0, 0]])
value = np.array([[4.0, 0.0], [0.0, 8.0]])
out, (_, _, _, prob) = attend_forward(query, key, value)
draw_one_query(query, key, score_keys(query, key), prob, value, out)

# %% [markdown]
# And backwards, still by pencil. Say the loss grows by 1 for each unit of both results: $do = (1, 1)$. (A $d$ before a
# name means: how much the loss grows when this grows a little.)
#
# 4. Each value was taken with its share, so it gets its share of $do$: $dv_1 = \tfrac14 (1, 1)$, $dv_2 = \tfrac34 (1,
#    1)$.
# 5. More of share 1 would have brought more of $(4, 0)$: worth $(1, 1) \cdot (4, 0) = 4$. More of share 2 is worth 8.
# 6. But shares sum to one: more of one is less of the other. On average a unit of share was worth $\tfrac14 \cdot 4 +
#    \tfrac34 \cdot 8 = 7$. Only the difference from that counts: $ds_1 = \tfrac14 (4 - 7) = -0.75$, $ds_2 = \tfrac34 (8
#    - 7) = 0.75$.
# 7. Score 2 was query times key over 2, so $dq = 0.75 \cdot \tfrac{1.099}{2} = 0.412$ in the first coordinate, and
#    $dk_2 = 0.75 \cdot \tfrac22 = 0.75$.

# %%
dquery, dkey, dvalue = attend_backward(np.ones((1, 2)), attend_forward(query, key, value)[1])
print("dvalue:", dvalue[:, 0], " dquery, first coordinate:", dquery[0, 0].round(3))
print("dkey, first coordinate, of both keys:", dkey[:, 0])

# %% [markdown]
# ## Build it
#
# Letters: $S$ queries, $T$ keys (here both are the words of a sentence), $K$ the width of queries and keys, $U$ the
# width of values. First one query, as in the market; then all of them.


# %%
def ask(q, keys, values):
    """One query [K] meets keys [T, K] and values [T, U]."""
    score = keys @ q / np.sqrt(len(q))  # a number for each key
    share = np.exp(score - score.max())
    share = share / share.sum()
    return share @ values  # the mixture


# %%
rng = np.random.default_rng(0)
q, k, v = rng.standard_normal((3, 7)), rng.standard_normal((5, 7)), rng.standard_normal((5, 2))
naive = np.array([ask(row, k, v) for row in q])
out, cache = attend_forward(q, k, v)
assert np.allclose(out, naive, atol=1e-15)
print("naive and module agree:", out.shape)

# %% [markdown]
# *Self*-attention means that all three come from the same rows. Each row $x$ of width $D$ goes through three matrices:
# $q = W_Q x$ says what it looks for, $k = W_K x$ by what it can be found, $v = W_V x$ what it hands over. These
# matrices are what is learned.


# %%
def naive_self_attention(x, w):
    """Rows [S, D] in, rows [S, U] out."""
    queries, keys, values = x @ w.q_proj.T, x @ w.k_proj.T, x @ w.v_proj.T
    return np.array([ask(query, keys, values) for query in queries])


weights, x = SelfAttentionWeights.init(rng, 6, 4, 3), rng.standard_normal((5, 6))
out, cache = self_attend_forward(x, weights)
assert np.allclose(out, naive_self_attention(x, weights), atol=1e-15)
print("naive and module agree:", out.shape)

# %% [markdown]
# ## The derivation
#
# Index $s$ counts queries, $t$ counts keys.
#
# 1. The score $a_{st} = q_s \cdot k_t / \sqrt K$; the share $p_{st} = e^{a_{st}} / \sum_u e^{a_{su}}$; the mixture
#    $o_s = \sum_t p_{st} v_t$.
# 2. **Why the root?** Let the numbers of $q$ and $k$ be independent, with mean 0 and variance 1 (variance: the mean of
#    the squares). Each product $q_i k_i$ has variance 1 too, and variances of independent things add: a sum of $K$
#    products has variance $K$, so its typical size is $\sqrt K$. Without the division, wider queries would mean larger
#    scores, and a softmax of large scores gives nearly everything to one key.
# 3. **Back through the mixture.** $dv_t = \sum_s p_{st}\, do_s$: a value hears from every query that took of it, in
#    proportion. And $dp_{st} = do_s \cdot v_t$: what a unit more of this share would be worth.
# 4. **Back through the softmax** (chapter 00): $da_{st} = p_{st}\,\big(dp_{st} - \sum_u p_{su}\, dp_{su}\big)$. The sum
#    is the mean worth; only what is better or worse than the mean moves a score.
# 5. **Back through the score.** A product hands each factor the other one: $dq_s = \sum_t da_{st}\, k_t / \sqrt K$ and
#    $dk_t = \sum_s da_{st}\, q_s / \sqrt K$. The root appears again, because it multiplied the score.
# 6. **Back to the row.** $x$ played three parts, and ways that meet add up: $dx = W_Q^\top dq + W_K^\top dk + W_V^\top
#    dv$. Each matrix gets the products of its slope and its input: $dW_Q = \sum_s dq_s\, x_s^\top$, and so on.


# %%
def naive_backward(do, q, k, v):
    """Steps 3 to 5 for queries q [S, K], keys k [T, K], values v [T, U]."""
    share = share_attention(q @ k.T / np.sqrt(q.shape[1]))
    dv = share.T @ do
    worth = do @ v.T
    mean = (share * worth).sum(axis=1, keepdims=True)
    dscore = share * (worth - mean)
    return dscore @ k / np.sqrt(q.shape[1]), dscore.T @ q / np.sqrt(q.shape[1]), dv


# %%
do = rng.standard_normal((3, 2))
gradients = attend_backward(do, attend_forward(q, k, v)[1])
for name, array, ours, naive in zip(("dq", "dk", "dv"), (q, k, v), gradients, naive_backward(do, q, k, v)):
    assert np.allclose(ours, naive, atol=1e-14)
    by_trying = central_difference(lambda: np.sum(do * attend_forward(q, k, v)[0]), array)
    print(name, ours.shape, "agrees with central differences:", relative_error(ours, by_trying) < 1e-8)

# %%
dout = rng.standard_normal(out.shape)
dx, dweights = self_attend_backward(dout, cache)
dq, dk, dv = naive_backward(dout, x @ weights.q_proj.T, x @ weights.k_proj.T, x @ weights.v_proj.T)
assert np.allclose(dx, dq @ weights.q_proj + dk @ weights.k_proj + dv @ weights.v_proj, atol=1e-14)  # step 6
assert np.allclose(dweights.q_proj, dq.T @ x, atol=1e-14)
print("the three roles of a row add up")

# %% [markdown]
# ## The experiment: who sat?
#
# Two kinds of sentences. In *the cat that saw the dog sat* the cat sat. In *the cat saw the dog that sat* it was the
# dog. A row is a word and its place in the sentence, one-hot each, side by side. The row of the verb must name who did
# it, out of four. One attention layer, trained by the gradients above for 300 steps, with the surprise of chapter 00 as
# loss.

# %%
weights = SelfAttentionWeights.init(np.random.default_rng(0), WIDTH, 8, len(ACTORS))
losses, right = train_who(weights, self_attend_forward, self_attend_backward)
title = f"After 300 steps {right[-50:].mean():.0%} are right; guessing: 25%"
plot_lines({"surprise at who did it": (range(len(losses)), losses)}, ["content"], title, "step", "nats")

# %%
words, answers = draw_sentences(np.random.default_rng(11), 400)
out, (_, (_, _, _, share), _) = self_attend_forward(show_rows(words), weights)
said = out[:, -1].argmax(axis=-1)
assert (said == answers[:, 0]).mean() > 0.99
one, other = (next(i for i, w in enumerate(words) if spell_words(w)[2] == form) for form in ("that", "saw"))
lines = {f"“{ACTORS[said[i]]}”" + " " * (i == one): (spell_words(words[i]), share[i, -1], 6) for i in (one, other)}
draw_who(
    lines,
    f"Asked who did it, the verb looks at the one who did ({(said == answers[:, 0]).mean():.0%} of 400 are right)",
)

# %% [markdown]
# Nobody told the layer about grammar. It found out that the doer stands at the second place, or at the fifth, but not
# at the sixth. (How does it know the place? The row says so. Rows that do not know their place come at the end.)
#
# ## The experiment: what the root is for
#
# Sixteen keys, random queries, nothing trained. How many keys does a query really look at? Count them by the entropy of
# its shares (chapter 00): $e^{\text{entropy}}$ is 16 for equal shares and 1 for a single one. And how much of a
# gradient gets through the softmax? By step 4 the slope of a share by its own score is $p_t (1 - p_t)$; we add these
# up.


# %%
def look(score):
    """Keys looked at, and the slope that gets through, both averaged over the queries."""
    p = share_attention(score)
    n_keys = np.exp(-np.sum(p * np.log(np.maximum(p, 1e-300)), axis=-1))
    return n_keys.mean(), np.sum(p * (1 - p), axis=-1).mean()


widths = 2 ** np.arange(1, 13)
drawn = [(rng.normal(size=(200, w)), rng.normal(size=(16, w))) for w in widths]
scaled = np.array([look(score_keys(q, k)) for q, k in drawn])
unscaled = np.array([look(q @ k.T) for q, k in drawn])

# %%
at = list(widths).index(128)  # the content width of a DeepSeek-V3 head
title = f"At width 128 a query looks at {scaled[at, 0]:.0f} keys with the root and at {unscaled[at, 0]:.1f} without"
plot_scale(widths, scaled, unscaled, title)

# %% [markdown]
# Without the root a wide model starts with its mind made up: every query has chosen one key at random, and hardly any
# gradient gets through to change the choice.
#
# ## Change this, predict, run
#
# The cell below shuffles the words of a sentence, together with their places, before the trained layer sees them.
# Predict: does its answer for the verb change? Then set `keep_places = True`, so that the words are shuffled and the
# places stay in order. Predict again.
#
# <details><summary>Afterwards</summary>
#
# Shuffled with their places, the rows are the same rows in another order. The mixture is a sum over rows, and a sum has
# no order: the answer is the same to the last digit. Only what the rows *say* about places counts. With the places kept
# in order, another word stands at the second place now, and the answer may change. Attention itself knows no order;
# somebody must tell it. Here the rows do; in DeepSeek-V3 it is done by turning queries and keys (chapter 02).
#
# </details>

# %%
keep_places = False
order = np.random.default_rng(2).permutation(7)
rows = show_rows(words[one : one + 1])[0]
shuffled = rows[order]
if keep_places:
    shuffled[:, -7:] = rows[:, -7:]
verb = int(np.flatnonzero(order == 6)[0])
for name, r, place in (("in order", rows, 6), ("shuffled", shuffled, verb)):
    answer = self_attend_forward(r, weights)[0][place]
    print(f"{name}: {ACTORS[answer.argmax()]}, logits {answer.round(4)}")

# %% [markdown]
# ## What you can now do
#
# Write attention and its gradient from an empty page; say what query, key and value are for, and what the root is for;
# show a layer that has learned to look at the right word. Two things are still missing. A language model must not look
# at words that come *later*: `causal_attention`. And one mixture answers one question: `multi_head_attention`.
#
# ## Exercises
#
# Graded: `score_keys`, `softmax_backward`, `attention_backward`, `three_roles_backward` (`make check CH=01`). By
# thought alone:
#
# 1. What does attention return when all keys are equal? And when one score is larger than all others by 50?
#
# <details><summary>Solution</summary>
#
# Equal keys give equal scores, so equal shares: the plain mean of the values. A lead of 50 gives the others shares
# below $e^{-50} \approx 2 \cdot 10^{-22}$: to float64, exactly the value of the winner. Attention lies between an
# average and a look-up, and the size of the scores says where.
#
# </details>
#
# 2. All keys have a part $c$ in common, $k_t = c + r_t$. Show that $c$ does not matter, and find the test that says so
#    through the gradient.
#
# <details><summary>Solution</summary>
#
# $q \cdot k_t = q \cdot c + q \cdot r_t$: the first term is the same for all $t$, and the softmax does not see it. So
# the loss does not change when all keys move together, and the gradients of one query by the keys sum to zero:
# `test_moving_all_scores_of_a_query_together_has_no_gradient`.
#
# </details>
#
# 3. Somebody drops the root and starts $W_Q$ and $W_K$ smaller instead, so that scores begin with spread one. Is that
#    the same?
#
# <details><summary>Solution</summary>
#
# The forward pass is the same at the start, the training is not. Put $K^{-1/4}$ into each of the two matrices: the
# slope of the score by an entry of $W_Q$ is larger by $K^{1/4}$ than with the root outside, while the entries are
# smaller by as much. Adam moves every entry by about the learning rate whatever the slope, so the wider the head, the
# faster its scores would move: every width would need a learning rate of its own.
#
# </details>
