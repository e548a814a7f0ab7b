# %% [markdown]
# # Multi-head attention
#
# **The question.** One softmax gives a token **one** mean of the others. *Sat* wants to know who sat and where, two
# answers from two places; a mean of the two rows is neither. How does a token ask several questions at once, and what
# does that cost?
#
# **The idea.** Cut the width in $H$ pieces, let each piece attend on its own, and lay the answers side by side. It
# costs nothing: $H$ attentions of width $D/H$ need the same weights and the same products as one of width $D$.

# %%
import matplotlib.pyplot as plt
import numpy as np
from multi_head_attention import AttentionWeights, merge_heads, multi_head_backward, multi_head_forward, split_heads

from utils.whiteboard import COLORS, arrow, board, matrix, note, use_style

use_style()

# %% [markdown]
# ## Heads are a reshape
#
# Two tokens of width 6, their numbers counted through: token 0 has 0 to 5, token 1 has 6 to 11. For two heads we cut
# the last axis and carry the head axis to the front. Nothing is computed; numbers change places.

# %%
counted = np.arange(12).reshape(1, 2, 6)
right = split_heads(counted, 2)[0]
wrong = counted.reshape(2, 2, 3)  # the same shape, without exchanging the axes
tone = np.array([[0.75] * 3 + [0.25] * 3] * 2)  # dark: what belongs to head 0


# %%
def draw_numbers(ax, x, y, numbers, tones, text, kind="content"):
    """Cells tinted by their head, with the counted numbers in them."""
    outline = matrix(ax, x, y, tones, cell=0.8, limit=1.0)
    note(ax, outline.x, y + 0.4, text, kind, size=10)
    for (r, c), n in np.ndenumerate(numbers):
        note(ax, x + (c + 0.5) * 0.8, y - (r + 0.5) * 0.8, str(n), size=9.5)
    return outline


# %%
fig, ax = board(22, 6.5, "Cut, then exchange: a head holds a piece of every token")
start = draw_numbers(ax, 0.8, 4.1, counted[0], tone, "[S, H K]: rows are tokens")
for h in range(2):
    y = 5.8 - 2.9 * h
    end = draw_numbers(ax, 9.2, y, right[h], tone[:, 3 * h : 3 * h + 3], f"head {h}: [S, K]")
    arrow(ax, (start.x + start.width / 2, start.y), (end.x - end.width / 2, end.y))
    draw_numbers(ax, 16.4, y, wrong[h], tone.ravel()[wrong[h]], f"“head {h}”", "ink")
note(ax, 10.4, 0.6, "reshape(B, S, H, K)\n.transpose(0, 2, 1, 3)", "content", size=10)
note(ax, 17.6, 0.6, "reshape(B, H, S, K)\nhead 0 is all of token 0", "ink", size=10)
plt.show()

# %% [markdown]
# On the right is a mistake that every shape check lets through: cut and carried in one `reshape`. A head then holds
# different pieces of **one** token as if they were different tokens. It trains, to a worse loss, and the causal mask
# no longer means anything. `test_a_head_gets_neighbouring_numbers_of_each_token` counts the numbers, as we do here.

# %% [markdown]
# ## The derivation
#
# **1. Project once, cut later.** $Q = X W_Q^\top$ with $W_Q$ of shape $[HK, D]$; head $h$ is its columns $hK$ to
# $(h+1)K$. That is the same as $H$ small matrices, stacked.
#
# **2. Attend in each head:** $O_h = \text{softmax}(Q_h K_h^\top / \sqrt K)\, V_h$, with the width $K$ **of the head**
# under the root. Leading axes ride along, so `attend_causally_forward` serves $[B, H, S, K]$ unchanged.
#
# **3. Lay side by side and project:** $U = [O_1; \dots; O_H]\, W_O^\top$.
#
# **4. Concatenating is adding.** Cut $W_O$ in the same blocks of columns: $U = \sum_h O_h W_{O,h}^\top$. The heads do
# not share one answer; each adds its own to the stream.
#
# **5. What a head carries.** $O_h W_{O,h}^\top = P_h X\, (W_{O,h} W_{V,h})^\top$: the share matrix $P_h$ says from
# *where*, the product $W_{O,h} W_{V,h}$ of rank at most $U$ says *what*. One head has one "where" for all that it
# moves.
#
# **6. Backwards** go the same doors in reverse: split $dU\, W_O$ where the forward merged, merge $dQ, dK, dV$ where
# it split, and sum $X$'s three roles: $dX = dQ\, W_Q + dK\, W_K + dV\, W_V$.

# %% [markdown]
# ## The same in numbers: the layer is the sum of its heads

# %%
rng = np.random.default_rng(0)
D, H, K, U = 7, 3, 2, 5
weights, hidden = AttentionWeights.init(rng, D, H, K, U), rng.normal(size=(1, 4, D))
total = np.zeros_like(hidden)
for h in range(H):
    q, v = slice(h * K, (h + 1) * K), slice(h * U, (h + 1) * U)
    head = AttentionWeights(weights.q_proj[q], weights.k_proj[q], weights.v_proj[v], weights.o_proj[:, v])
    total += multi_head_forward(hidden, head, 1)[0]
print("largest difference below 1e-14:", np.abs(total - multi_head_forward(hidden, weights, H)[0]).max() < 1e-14)
query = hidden @ weights.q_proj.T
print("merge undoes split:", np.array_equal(merge_heads(split_heads(query, H)), query))

# %% [markdown]
# ## What two heads can do that one cannot
#
# A task with two questions: in a text of random letters, every token must answer with the letter **before** it and
# with the **first** letter. Rows hold letter and place (one-hot); the target is the two letters side by side. One
# head of width 16 against two of width 8: the same number of weights, the same number of products, the same training.

# %%
LETTERS, LENGTH = 4, 8
WIDTH = 2 * LETTERS + LENGTH


def draw_texts(n_texts):
    """Rows [letter | room for the answer | place], and the two letters wanted at each place."""
    letter = np.eye(LETTERS)[rng.integers(LETTERS, size=(n_texts, LENGTH))]
    places = np.broadcast_to(np.eye(LENGTH), (n_texts, LENGTH, LENGTH))
    before = np.concatenate([letter[:, :1], letter[:, :-1]], axis=1)
    wanted = np.concatenate([before, np.broadcast_to(letter[:, :1], letter.shape)], axis=-1)
    return np.concatenate([letter, 0 * letter, places], axis=-1), wanted


# %%
def train(n_heads, n_steps=800, rate=0.01, seed=0):
    """Adam on the squared error of the first 2 LETTERS coordinates."""
    start = AttentionWeights.init(np.random.default_rng(seed), WIDTH, n_heads, 16 // n_heads, 16 // n_heads)
    w = dict(vars(start))
    (mean, square), losses = ({n: np.zeros_like(a) for n, a in w.items()} for _ in range(2)), []
    for step in range(1, n_steps + 1):
        loss, gradients = measure(AttentionWeights(**w), n_heads)
        losses.append(loss)
        for n, g in gradients.items():
            mean[n], square[n] = 0.9 * mean[n] + 0.1 * g, 0.99 * square[n] + 0.01 * g**2
            w[n] = w[n] - rate * mean[n] / (1 - 0.9**step) / (np.sqrt(square[n] / (1 - 0.99**step)) + 1e-9)
    return np.array(losses), AttentionWeights(**w)


# %%
def measure(weights, n_heads):
    """Share of the wanted letters' variance that is missed, on fresh texts, and its gradients."""
    hidden, wanted = draw_texts(64)
    out, cache = multi_head_forward(hidden, weights, n_heads)
    miss = out[..., : 2 * LETTERS] - wanted
    scale = 1 / (wanted.size * np.var(np.eye(LETTERS)))
    dout = np.zeros_like(out)
    dout[..., : 2 * LETTERS] = 2 * scale * miss
    return scale * np.sum(miss**2), vars(multi_head_backward(dout, cache)[1])


losses = {n_heads: [train(n_heads, seed=seed) for seed in range(3)] for n_heads in (1, 2)}

# %%
fig, ax = plt.subplots(figsize=(9, 3.8), layout="constrained")
ends = {}
for n_heads, color in ((1, COLORS["ink"]), (2, COLORS["content"])):
    for curve, _ in losses[n_heads]:
        ax.plot(curve, color=color, linewidth=1.2)
    ends[n_heads] = [curve[-100:].mean() for curve, _ in losses[n_heads]]
    ax.text(806, np.mean(ends[n_heads]), f"H = {n_heads}", color=color, va="center")
ax.set(xlabel="step", ylabel="part of the variance missed", yscale="log")
one, two = np.mean(ends[1]), np.mean(ends[2])
assert max(ends[2]) < 0.001 < 0.1 < min(ends[1])
ax.set_title(f"One head misses {one:.0%} of the answer, two heads of half the width less than 0.1%")
plt.show()

# %%
hidden = draw_texts(1)[0]
_, trained = losses[2][0]
prob = multi_head_forward(hidden, trained, 2)[1][1][3][0]
first, before = (prob[h][2:, 0].min() for h in range(2)), (np.diagonal(prob[h], -1).min() for h in range(2))
assert max(first) > 0.9
assert max(before) > 0.9
fig, ax = board(20, 6.1, "Trained, one head looks at the first letter and the other at the one before")
for h in range(2):
    seen = np.where(np.tril(np.ones((LENGTH, LENGTH), dtype=bool)), prob[h], np.nan)
    matrix(ax, 3.2 + 8.5 * h, 5.3, seen, cell=0.62, numbers=".1f", limit=1.0, label=f"head {h}")
plt.show()

# %% [markdown]
# ## What changed
#
# Only the axes: the attention core is the one of the last notebook. DeepSeek-V3 has 128 heads with a key of 128 + 64
# and a value of 128 numbers each, so that $H K$ is much wider than $D = 7168$; its queries, keys and values come from
# small latents, which is the subject of chapter 02. And the answer of attention is *added* to the row, not put in its
# place: that is `transformer_block`, after the norm and the MLP have been built.
#
# ## Exercises
#
# **1.** Count the weights and the multiplications of the four projections for $H$ heads with $K = U = D / H$. Where
# does $H$ appear?
#
# <details><summary>Solution</summary>
#
# $4 D^2$ weights, $4 D^2$ multiplications per token; $H$ nowhere. In the core, $S \cdot T \cdot K$ products per head
# for the scores and as many for the mean: $2 S T D$ for all heads together. Only the softmax grows with $H$: it runs
# over $H S T$ scores.
# </details>
#
# **2.** Exchange two heads, that is, the blocks of rows of $W_Q, W_K, W_V$ and the blocks of columns of $W_O$. What
# happens to the output?
#
# <details><summary>Solution</summary>
#
# Nothing: a sum does not care for the order of its terms (step 4). `test_heads_may_trade_places_if_their_weights_do`.
# It is also why heads can be spread over several devices: each computes its term, and one sum at the end joins them.
# </details>
#
# **3.** In the task above, could one head do it if its values were allowed to be wider?
#
# <details><summary>Solution</summary>
#
# No. A row's shares are one distribution, and the value of a letter is the same whoever asks. Looking half at each
# place gives $\tfrac12 (v_\text{before} + v_\text{first})$, in which the two cannot be told apart: at most, one
# learns that both letters are the same, or which two they are, without the order. Width does not help; a second
# "where" does.
# </details>
