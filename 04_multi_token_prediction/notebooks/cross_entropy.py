# %% [markdown]
# # What is a wrong prediction worth?
#
# A language model gives every token of the vocabulary a probability. One of them was the truth. This chapter adds
# *more* predictions for every position, so we first settle what one of them costs, which rows count, and what we
# divide by. All three questions come back with every depth of multi-token prediction.

# %%
import matplotlib.pyplot as plt
import numpy as np
from cross_entropy import IGNORE, cross_entropy_backward, cross_entropy_forward, head_loss_forward, perplexity

from utils.whiteboard import COLORS, arrow, bars, board, box, matrix, note, use_style

use_style()

# %%
logits = np.log(np.array([[1.0, 2.0, 1.0], [6.0, 1.0, 1.0], [5.0, 5.0, 5.0]]))
target = np.array([1, 0, IGNORE])
prob = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
fig, ax = board(12, 4.2, "Softmax each row, read off the true token, take minus the logarithm")
a = matrix(ax, 0.4, 3.3, logits, "ink", cell=0.9, label="logits (3 rows, V = 3)", numbers=".2f")
b = matrix(ax, 4.9, 3.3, prob, "content", cell=0.9, label="probabilities", numbers=".3f", limit=1)
arrow(ax, a, b, "softmax")
for row, (t, text) in enumerate(zip(target, ["−log 2/4 = 0.693", "−log 6/8 = 0.288", "ignored: no target"])):
    y = 3.3 - 0.9 * (row + 0.5)
    arrow(ax, (7.7, y), (9.2, y), kind="draft" if t != IGNORE else "ink", dashed=t == IGNORE)
    note(ax, 10.5, y, text, "draft" if t != IGNORE else "ink")
note(ax, 6.2, 0.25, "true tokens: 1, 0, none", "ink")
plt.show()

# %% [markdown]
# ## The derivation
#
# 1. Softmax: $P_v = e^{z_v} / \sum_u e^{z_u}$. Adding a constant to all $z$ changes nothing, so we subtract the
#    largest first and no exponential overflows.
# 2. The loss of a row with true token $t$: $\ell = -\log P_t = \log \sum_u e^{z_u} - z_t$.
# 3. Its derivative: the first part gives $\partial \log \sum_u e^{z_u} / \partial z_v = P_v$, the second gives $-1$ at
#    $v = t$. So $\partial \ell / \partial z_v = P_v - [v = t]$: *probability minus one-hot*.
# 4. The components of that sum to zero: what the truth gains, the others lose.
# 5. Over rows: $L = \frac{1}{\text{divisor}} \sum_{\text{rows that count}} \ell$. The usual divisor is the number of
#    rows that count. Eq. (24) of the V3 report divides the $T - k$ terms of depth $k$ by $T$: a depth with fewer rows
#    weighs less, and all depths share one scale.

# %%
loss, cache = cross_entropy_forward(logits, target)
print(f"loss {loss:.6f} = (0.693147 + 0.287682) / 2, perplexity {perplexity(loss):.4f}")
print("gradient:\n", cross_entropy_backward(1.0, cache).round(4))
step = np.zeros_like(logits)
step[1, 2] = 6e-6
up, down = (cross_entropy_forward(logits + s * step, target)[0] for s in (1, -1))
print(f"central difference at row 1, token 2: {(up - down) / 1.2e-5:.6f}")

# %%
p = np.linspace(0.01, 1, 200)
cost = [cross_entropy_forward(np.log([[x, 1 - x + 1e-12]]), np.array([0]))[0] for x in p]
halving = (
    cross_entropy_forward(np.log([[1.0, 3.0]]), np.array([0]))[0]
    - cross_entropy_forward(np.log([[1.0, 1.0]]), np.array([0]))[0]
)
fig, ax = plt.subplots()
ax.plot(p, cost, color=COLORS["content"])
for x in (0.5, 0.25, 0.125):
    ax.plot([x], [-np.log(x)], "o", color=COLORS["draft"])
    ax.annotate(f"p = {x:g}: {-np.log(x):.3f}", (x, -np.log(x)), xytext=(8, 6), textcoords="offset points")
ax.set(xlabel="probability given to the true token", ylabel="loss, nats")
ax.set_title(f"Every halving of the true token's probability costs {halving:.3f} nats more")
plt.show()

# %% [markdown]
# ## The head and the loss in one
#
# The logits are the largest tensor of the whole training step, and every further depth has its own. Since the gradient
# of a row needs that row's logits only, `head_loss_forward` takes it on the spot, a chunk of rows at a time.

# %%
rows, V, gigabyte = 4096, 129280, 1e9
sizes = [rows * V * 4 / gigabyte, 2 * rows * V * 4 / gigabyte, 1024 * V * 4 / gigabyte]
fig, ax = plt.subplots(figsize=(8, 2.6))
labels = ["main head, all rows", "main head and one MTP depth", "any number of depths, 1024 rows at a time"]
bars(ax, labels, [round(s, 2) for s in sizes], ["content", "draft", "latent"], " GB")
ax.set_title(f"Chunks of 1024 rows hold {sizes[1] / sizes[2]:.0f} times less (V3, 4096 tokens, FP32)")
ax.set_xlabel("logits alive at once, GB")
plt.show()

# %%
rng = np.random.default_rng(0)
hidden, head, some = rng.standard_normal((10, 4)), rng.standard_normal((7, 4)), rng.integers(0, 7, 10)
for chunk in (10, 4, 1):
    print(f"chunk {chunk:>2}: loss {head_loss_forward(hidden, head, some, chunk=chunk)[0]:.15f}")

# %% [markdown]
# ## What changed
#
# Nothing yet but the bookkeeping: a target may be absent (`IGNORE`), and the divisor is said aloud.
#
# ## Exercises
#
# **1.** A model gives all 129,280 tokens the same probability. What is its loss, and what must an untrained model's
# first printed loss be near?
#
# <details><summary>Solution</summary>
#
# log 129280 = 11.77 nats. A first loss far above it means that the logits start too large; far below it, that the
# target leaks into the input.
#
# </details>
#
# **2.** Half of a batch is padding. What happens to the gradient if you divide by all rows, not by those that count?
#
# <details><summary>Solution</summary>
#
# Loss and gradient halve, and a batch with more padding takes smaller steps. The planted mistake "ignored rows are
# divided by" does it; `test_a_given_divisor_replaces_the_number_of_rows_that_count` notices.
#
# </details>
#
# **3.** Why is the gradient of a row bounded, however wrong the model is?
#
# <details><summary>Solution</summary>
#
# Each component lies between −1 and 1, and their absolute values sum to 2 (1 − P_t), at most 2. Being infinitely wrong
# costs infinitely much, yet pulls no harder than being sure of any other token.
#
# </details>
