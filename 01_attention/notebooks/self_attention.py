# %% [markdown]
# # Self-attention
#
# **The question.** A token is a row of numbers that knows only itself. *Sat* would like to know **who** sat; the
# answer lies in another row. How does a row fetch what it needs from the others, when nobody says in advance where it
# is, and how can the fetching itself be *learned*?
#
# **The idea.** Ask like in a dictionary, only softly. Every token holds up a label (its **key**) and keeps a message
# ready (its **value**). A token that wants something holds up a question (its **query**), compares it with every
# label, and takes the mean of all messages, weighted by how well the labels fit. A hard look-up has no slope; a
# weighted mean has one everywhere, and so gradient descent can move the questions, the labels and the messages.

# %%
import matplotlib.pyplot as plt
import numpy as np
from self_attention import attend_backward, attend_forward, score_keys, share_attention

from utils.gradient_check import central_difference, relative_error
from utils.whiteboard import COLORS, arrow, board, matrix, note, use_style

use_style()

# %% [markdown]
# ## One question, two tokens, by pencil
#
# The query is $(2, 0, 0, 0)$. The first label is zero, the second is $(\ln 3, 0, 0, 0)$: numbers chosen so that the
# shares come out as a quarter and three quarters.

# %%
query = np.array([[2.0, 0, 0, 0]])
key = np.array([[0.0, 0, 0, 0], [np.log(3.0), 0, 0, 0]])
value = np.array([[4.0, 0.0], [0.0, 8.0]])
out, (_, _, _, prob) = attend_forward(query, key, value)
score = score_keys(query, key)

# %%
parts = [  # label, numbers, upper left corner, format
    ("query  [1, 4]", query, 0.4, 3.1, ".0f"),
    ("key$^T$  [4, 2]", key.T, 5.2, 4.3, ".1f"),
    ("score  [1, 2]", score, 9.4, 3.1, ".1f"),
    ("shares  [1, 2]", prob, 13.6, 3.1, ".2f"),
    ("value  [2, 2]", value, 16.6, 3.5, ".0f"),
    ("out  [1, 2]", out, 19.2, 3.1, ".0f"),
]
notes = [(2.0, "what I look for"), (6.0, "what each offers"), (10.2, "how well it fits"), (14.4, "1 : 3")]

# %%
fig, ax = board(21, 5.2, "One query asks two keys and takes the mean of two values")
drawn = [matrix(ax, x, y, array, cell=0.8, numbers=form, label=label) for label, array, x, y, form in parts]
for start, end in ((1, 2), (2, 3), (4, 5)):
    arrow(ax, drawn[start], drawn[end])
for x in (4.4, 15.9):
    note(ax, x, 2.7, "×", size=15)
note(ax, 8.2, 2.1, r"$/\sqrt{4}$", size=12)
note(ax, 12.25, 2.2, "softmax", size=10)
for x, text in notes:
    note(ax, x, 0.5, text, "ink")
note(ax, 18.6, 0.5, r"$\frac{1}{4}(4, 0) + \frac{3}{4}(0, 8) = (1, 6)$", "content", size=12)
plt.show()

# %% [markdown]
# ## The derivation
#
# **1. Fit is a dot product.** Query and key both have width $K$; $q \cdot k_t = \sum_{i=1}^{K} q_i k_{t,i}$ is large
# when they point the same way. All queries against all keys is one matrix product, $Q K^\top$, of shape $[S, T]$.
#
# **2. Scores become shares by softmax.** $p_t = e^{s_t} / \sum_u e^{s_u}$ is positive and sums to one. Only
# differences of scores count: $e^{s_t + c}$ has the factor $e^c$ above and below. The code uses that to subtract the
# largest score first, so that no exponent is positive and nothing overflows.
#
# **3. The answer is the mean** $o = \sum_t p_t v_t$, or $O = P V$.
#
# **4. Why divide by $\sqrt K$?** If the entries of $q$ and $k$ are independent with mean 0 and variance 1, each
# product $q_i k_i$ has variance 1, and a sum of $K$ of them has variance $K$. The spread of the scores would grow
# with the width, and softmax of large scores is a hard choice. Dividing by $\sqrt K$ keeps the spread at one for
# every width.
#
# **5. Backwards through the mean.** Given $dO$: $dV = P^\top dO$ (a message is thanked by everybody who listened) and
# $dP = dO\, V^\top$.
#
# **6. Backwards through the softmax.** From $\partial p_j / \partial s_i = p_j([i = j] - p_i)$,
#
# $$ds_i = \sum_j dp_j\, p_j ([i = j] - p_i) = p_i \Big(dp_i - \sum_j p_j\, dp_j\Big).$$
#
# The bracket is "how much better than the average message": pushing all scores up together changes nothing.
#
# **7. Backwards through the scores.** $dQ = dS\, K / \sqrt{K}$ and $dK = dS^\top Q / \sqrt{K}$: the scale comes
# again.

# %% [markdown]
# ## The same in numbers
#
# The Jacobian of the softmax, written out, against step 6; then all three gradients against central differences.

# %%
p0, dp = share_attention(np.array([0.0, 1.0, 3.0])), np.array([5.0, -2.0, 1.0])
jacobian = np.diag(p0) - np.outer(p0, p0)
print("Jacobian times dp:", jacobian @ dp)
print("p (dp - mean dp): ", p0 * (dp - p0 @ dp))

# %%
rng = np.random.default_rng(0)
Q, K, V, dO = rng.normal(size=(3, 7)), rng.normal(size=(5, 7)), rng.normal(size=(5, 2)), rng.normal(size=(3, 2))
gradients = attend_backward(dO, attend_forward(Q, K, V)[1])
for name, array, gradient in zip(("dQ", "dK", "dV"), (Q, K, V), gradients):
    numeric = central_difference(lambda: np.sum(dO * attend_forward(Q, K, V)[0]), array)
    print(name, gradient.shape, "agrees to 1e-8:", relative_error(gradient, numeric) < 1e-8)

# %% [markdown]
# ## What the scale is for
#
# Sixteen keys, random queries, no training. How many keys does a query really look at? Count them by the entropy of
# its shares: $n = \exp(-\sum_t p_t \ln p_t)$ is 16 for equal shares and 1 for a hard choice. And how much of a
# gradient gets through the softmax? For the share $p_t$ the slope by its own score is $p_t (1 - p_t)$.


# %%
def look(score):
    """Keys looked at, and the slope that gets through, both averaged over the queries."""
    p = share_attention(score)
    n_keys = np.exp(-np.sum(p * np.log(np.maximum(p, 1e-300)), axis=-1))
    return n_keys.mean(), np.sum(p * (1 - p), axis=-1).mean()


widths = 2 ** np.arange(1, 13)
pairs = [(rng.normal(size=(400, w)), rng.normal(size=(16, w))) for w in widths]
scaled = np.array([look(score_keys(q, k)) for q, k in pairs])
unscaled = np.array([look(q @ k.T) for q, k in pairs])

# %%
at = list(widths).index(128)  # the content width of a DeepSeek-V3 head
finding = f"At width 128 a query looks at {scaled[at, 0]:.0f} keys with the scale and at {unscaled[at, 0]:.1f} without"

# %%
fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.9), layout="constrained")
for column, (ax, label) in enumerate(zip(axes, ("keys looked at, of 16", "slope that gets through"))):
    ax.plot(widths, scaled[:, column], "o-", color=COLORS["content"])
    ax.plot(widths, unscaled[:, column], "o--", color=COLORS["ink"])
    ax.set_xscale("log", base=2)
    ax.set(xlabel="width of query and key, K", ylabel=label, ylim=0)
    ax.axvline(128, color="#BBBBBB", linewidth=1)
    ax.text(700, scaled[-1, column] * 0.88, r"with $1/\sqrt{K}$", color=COLORS["content"], ha="center")
    ax.text(500, unscaled[at, column] * 1.25, "without", color=COLORS["ink"])
fig.suptitle(finding, fontweight="bold", x=0.01, ha="left", fontsize=13)
plt.show()

# %% [markdown]
# Without the scale the model starts with its mind made up: at large widths every query has chosen one key at random,
# and the softmax hardly lets a gradient through to change the choice. With it, width is free to grow.

# %% [markdown]
# ## Where it stands in the chapter
#
# *Self*-attention means that queries, keys and values are three projections of the same rows,
# `self_attend_forward(hidden, weights)`. Two things are still wrong for a language model. A token looks at tokens
# that come **after** it: `causal_attention` draws the line. And nothing here knows **order**: shuffle the tokens, and
# the outputs are shuffled alike. Chapter 02 gives them positions.
#
# ## Exercises
#
# **1.** What does attention return when all keys are equal? And when one score is larger than all others by 50?
#
# <details><summary>Solution</summary>
#
# Equal keys give equal scores, so equal shares: the plain mean of the values. A lead of 50 gives the others shares
# below $e^{-50} \approx 2 \cdot 10^{-22}$: to float64, exactly the value of the winner. Attention lies between an
# average and a look-up, and the size of the scores says where.
# </details>
#
# **2.** Give a query a component $c$ that every key has in common, $k_t = c + r_t$. Show that $c$ does not matter for
# this query, and find the test that says so through the gradient.
#
# <details><summary>Solution</summary>
#
# $q \cdot k_t = q \cdot c + q \cdot r_t$: the first term is the same for all $t$, and step 2 says that it cancels. So
# the loss does not change when all keys move together, and the gradients of one query by the keys sum to zero:
# `test_moving_all_scores_of_a_query_together_has_no_gradient`.
# </details>
#
# **3.** Somebody drops the scale and starts `q_proj` and `k_proj` smaller instead, so that the scores begin with
# spread one. Is that the same?
#
# <details><summary>Solution</summary>
#
# The forward pass is the same at the start, the training is not. Put $K^{-1/4}$ into each of the two matrices: now
# the score is an unscaled product of smaller queries and keys, its slope by an entry of `q_proj` is larger by
# $K^{1/4}$ than with the scale outside, while the entries are smaller by as much. Adam moves every entry by about the
# learning rate whatever the gradient, so the wider the head, the faster its scores would move: every width would need
# a learning rate of its own.
# </details>
