# %% [markdown]
# # Causal attention
#
# **The question.** A language model predicts the next token. A text of six tokens holds five such tasks, and
# attention could work on all of them at once. But the answer to each task is the very next row. How do we let every
# position learn at the same time, without letting it read its own answer?
#
# **The idea.** Before the softmax, strike out every score that points ahead. What remains is a lower triangle: row
# $t$ looks at columns $1 \dots t$.

# %%
import matplotlib.pyplot as plt
import numpy as np
from causal_attention import attend_causally_backward, attend_causally_forward, causal_mask
from matplotlib.patches import Rectangle
from self_attention import SelfAttentionWeights, attend_forward, self_attend_backward, self_attend_forward

from utils.gradient_check import central_difference, relative_error
from utils.whiteboard import COLORS, INK, board, colormap, matrix, note, use_style

use_style()

# %% [markdown]
# ## The attention matrix, growing token by token
#
# Six tokens with random contents (nothing is trained). Each board shows who looks at whom after one more token has
# arrived: rows ask, columns are asked. The framed row is the new one.

# %%
rng = np.random.default_rng(1)
words = ["the", "cat", "sat", "on", "the", "mat"]
weights, hidden = SelfAttentionWeights.init(rng, 8, 8, 8), rng.normal(size=(6, 8))


def shares(n_tokens):
    """Who looks at whom when only the first tokens are there."""
    return self_attend_forward(hidden[:n_tokens], weights, attend_causally_forward)[1][1][3]


grown = [shares(n) for n in range(1, 7)]

# %%
fig, ax = board(27, 6.9, "A new token adds one row; the rows above it never change")
x = 0.9
for n, prob in enumerate(grown, 1):
    seen = np.where(causal_mask(n, n), prob, np.nan)
    matrix(ax, x, 5.9, seen, cell=0.95, numbers=".1f" if n > 3 else ".2f", limit=1.0)
    note(ax, x + n * 0.95 / 2, 6.4, f"{n} token" + "s" * (n > 1), "ink", size=9)
    bottom = 5.9 - n * 0.95
    ax.add_patch(Rectangle((x, bottom), n * 0.95, 0.95, fill=False, edgecolor=INK, linewidth=2, zorder=3))
    note(ax, x + n * 0.95 / 2, bottom - 0.4, f"+ {words[n - 1]}", "content", size=10)
    x += n * 0.95 + 0.95
assert all(np.allclose(small, grown[-1][: len(small), : len(small)]) for small in grown)
plt.show()

# %% [markdown]
# That the old rows stay is more than a pretty picture. It is why one pass over a whole text trains every position as
# if the text had ended there, and why a model that writes can **keep** what it has computed: a new token needs its
# own row, and for that the keys and values of the old ones, nothing else. Chapter 02 starts from there.

# %% [markdown]
# ## The derivation
#
# **1. The sum stops at $t$.** $\;o_t = \sum_{j=1}^{t} p_{tj} v_j$ with $p_{tj} = e^{s_{tj}} / \sum_{u \le t}
# e^{s_{tu}}$. Both sums stop: the shares of what may be seen must add up to one.
#
# **2. As a mask.** Put $s_{tj} = -\infty$ where $j > t$. Then $e^{s_{tj}} = 0$ exactly, in both sums. (Setting the
# *share* to zero after the softmax would fix the first sum only. Setting the *score* to zero is worse: $e^0 = 1$, the
# future gets a share.)
#
# **3. Backwards: nothing new.** $ds_{tj} = p_{tj}\,(dp_{tj} - \sum_u p_{tu}\, dp_{tu})$ has the factor $p_{tj}$.
# Where the mask put a zero, the gradient is zero by itself; no mask is needed on the way back.
#
# **4. Older keys.** If $T$ keys are there and the $S$ queries are the last of them, query $s$ stands at position $s +
# T - S$: $\;\text{mask}[s, t] = t \le s + (T - S)$. The diagonal ends in the last corner.

# %%
fig, ax = board(20, 5.2, "With older keys the diagonal ends in the last corner")
for x, (S, T), text in ((0.6, (4, 4), "S = T = 4"), (6.6, (2, 5), "S = 2, T = 5"), (13.6, (1, 6), "S = 1, T = 6")):
    mask = np.where(causal_mask(S, T), 0.5, np.nan)
    matrix(ax, x, 4.2, mask, cell=0.8, limit=1.0, label=text)
note(ax, 2.2, 0.4, "a whole text", "ink")
note(ax, 8.6, 0.4, "two more tokens after three", "ink")
note(ax, 16.0, 0.4, "one more token: no mask left", "ink")
plt.show()

# %% [markdown]
# ## The same in numbers
#
# With equal scores row $t$ is the mean of the first $t$ values; and the gradient agrees with central differences.

# %%
value = np.array([[6.0], [2.0], [1.0]])
print("running mean of 6, 2, 1:", attend_causally_forward(np.zeros((3, 2)), np.zeros((3, 2)), value)[0][:, 0])
Q, K, V, dO = (rng.normal(size=(5, 3)) for _ in range(4))
gradients = attend_causally_backward(dO, attend_causally_forward(Q, K, V)[1])
for name, array, gradient in zip(("dQ", "dK", "dV"), (Q, K, V), gradients):
    numeric = central_difference(lambda: np.sum(dO * attend_causally_forward(Q, K, V)[0]), array)
    print(name, "agrees to 1e-7:", relative_error(gradient, numeric) < 1e-7)

# %% [markdown]
# ## What leaks without the mask
#
# A task that **cannot** be learned: each token is drawn at random from five, the next one too. No model can predict
# it better than by guessing, with loss $\ln 5$. We train the same attention with and without the mask, with the
# gradients of this chapter. A row holds the token and its place (one-hot each), so that a query can ask for a place.

# %%
VOCABULARY, LENGTH = 5, 8


def draw_texts(n_texts):
    """Random tokens as rows [token | place], and the token that follows each."""
    tokens = rng.integers(VOCABULARY, size=(n_texts, LENGTH + 1))
    places = np.broadcast_to(np.eye(LENGTH), (n_texts, LENGTH, LENGTH))
    return np.concatenate([np.eye(VOCABULARY)[tokens[:, :-1]], places], axis=-1), tokens[:, 1:]


# %%
def next_token_loss(logits, answers):
    """Mean cross-entropy, and its gradient by the logits."""
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    right = np.take_along_axis(p, answers[..., None], axis=-1)[..., 0]
    return -np.log(right).mean(), (p - np.eye(VOCABULARY)[answers]) / answers.size


# %%
def train(attend, n_steps=400, rate=20.0):
    """Plain gradient descent on the three matrices; the loss of every step on fresh texts."""
    weights, losses = SelfAttentionWeights.init(np.random.default_rng(0), VOCABULARY + LENGTH, 13, VOCABULARY), []
    for _ in range(n_steps):
        hidden, answers = draw_texts(64)
        logits, cache = self_attend_forward(hidden, weights, attend)
        loss, dlogits = next_token_loss(logits, answers)
        _, dweights = self_attend_backward(dlogits, cache)
        weights = SelfAttentionWeights(*(w - rate * d for w, d in zip(vars(weights).values(), vars(dweights).values())))
        losses.append(loss)
    return np.array(losses), weights


# %%
honest, _ = train(attend_causally_forward)
leaky, cheat = train(attend_forward)
guess = np.log(VOCABULARY)
assert leaky[-50:].mean() < 0.8 * guess < honest[-50:].mean()
finding = "Without the mask the loss falls below what is possible"
print(f"guessing {guess:.3f}, causal {honest[-50:].mean():.3f}, without mask {leaky[-50:].mean():.3f}")

# %%
fig, (ax, shows) = plt.subplots(1, 2, figsize=(9.5, 3.8), width_ratios=(3, 2), layout="constrained")
ax.plot(honest, color=COLORS["content"])
ax.plot(leaky, color=COLORS["ink"])
ax.axhline(guess, color=COLORS["ink"], linestyle="--", linewidth=1.2)
ax.set(xlabel="step", ylabel="loss on fresh random texts", ylim=(0, 2))
ax.text(395, guess + 0.16, "causal: stays at guessing, ln 5", color=COLORS["content"], ha="right")
ax.text(395, leaky[-50:].mean() + 0.12, "without mask", color=COLORS["ink"], ha="right")
shows.imshow(self_attend_forward(draw_texts(1)[0][0], cheat)[1][1][3], cmap=colormap("ink"), vmin=0, vmax=1)
shows.set(xlabel="asked", ylabel="asks", title="what it learned")
shows.grid(visible=False)
fig.suptitle(finding, fontweight="bold", x=0.01, ha="left", fontsize=13)
plt.show()

# %% [markdown]
# The matrix on the right shows how: every row looks at the column after it, the place of its own answer. The last
# row, whose answer is not in the text, cannot cheat. At writing time there is no next column, and such a model is
# lost. **A loss that is too good is the usual symptom of a leak.** The sharper test changes a token and demands that
# every output before it stay the same, bit by bit: `test_a_changed_token_changes_nothing_before_it`.
#
# ## What changed
#
# One line: the scores that point ahead become $-\infty$. The backward pass is untouched. Still open: one softmax
# gives a token one mean to take. `multi_head_attention` gives it several.
#
# ## Exercises
#
# **1.** A colleague multiplies the *shares* by the mask, after the softmax, and says that nothing leaks, since no
# value of the future is read. Who is right?
#
# <details><summary>Solution</summary>
#
# The future leaks through the denominator: $\sum_u e^{s_{tu}}$ runs over all $u$, so a change of a later key changes
# how small the visible shares are. And the shares of early rows sum to far less than one.
# </details>
#
# **2.** How many scores of an $S \times S$ product are thrown away? What would a program gain that does not compute
# them?
#
# <details><summary>Solution</summary>
#
# $S(S-1)/2$ of $S^2$, nearly half. A kernel that works in blocks skips the blocks above the diagonal, which saves
# almost half of the time at large $S$. It is why FLOP counts come as "causal" and "non-causal"; for V3 the two differ
# by about a tenth at 4,096 tokens, because the experts are most of the work.
# </details>
#
# **3.** Two texts share one row of a batch, one after the other. Draw the mask that keeps them apart. What does
# DeepSeek-V3 do in pre-training?
#
# <details><summary>Solution</summary>
#
# Two triangles on the diagonal, nothing between them: `causal_mask(T, T) & (text[:, None] == text[None, :])`, which
# `attend_masked_forward` takes as it is. The report (section 4.1) says that V3 packs documents and does **not** mask
# across them in pre-training.
# </details>
