# %% [markdown]
# # The transformer block
#
# **The question.** We have a reader that lets tokens exchange (attention), one that lets each think (SwiGLU), and a
# norm that hands them rows of one size. How do we stack 61 pairs of them, so that the first still learns when the
# error is measured behind the last?
#
# **The idea.** Do not pass the rows *through* the readers. Keep them on a **stream** that runs straight from the
# first layer to the last. A reader takes a normed copy, and what it has to say is **added**.

# %%
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
from multi_head_attention import multi_head_backward, multi_head_forward
from rms_norm import rms_norm_backward, rms_norm_forward
from swiglu import swiglu_backward, swiglu_forward
from transformer_block import BlockSizes, BlockWeights, block_backward, block_forward, stack_forward, tour_block

from utils.whiteboard import COLORS, INK, arrow, board, box, note

# %%
fig, ax = board(24, 6.6, "Two readers beside one stream")
ax.plot([0.6, 22.6], [1.6, 1.6], color=COLORS["content"], linewidth=5, solid_capstyle="round", zorder=0)
for x, norm, reader in ((2.2, "input_\nlayernorm", "attention"), (12.8, "post_attention_\nlayernorm", "SwiGLU")):
    plus = box(ax, x + 8.2, 1.6, "+", "content", width=0.9, height=0.9, size=15, filled=True)
    first = box(ax, x + 1.6, 4.6, norm, width=3.4, height=1.3, size=9.5)
    second = box(ax, x + 6.2, 4.6, reader, "content", width=3.0, height=1.3)
    arrow(ax, (x - 0.6, 1.6), (x + 0.6, 3.9))
    arrow(ax, first, second)
    arrow(ax, second, plus)
for x, text in ((1.4, "x"), (11.6, "x + attention(norm(x))"), (22.0, "out")):
    note(ax, x, 0.7, text, "content", size=11.5)
plt.show()

# %% [markdown]
# ## The derivation
#
# **1. Forward.** $x' = x + A(N_1(x))$, then $x'' = x' + M(N_2(x'))$. After $L$ blocks the stream is the sum of the
# embedding and of $2L$ answers.
#
# **2. Backwards through one addition.** $y = x + f(x)$ gives $dx = dy + J_f^\top dy$: the gradient arrives **twice**,
# straight and through the branch.
#
# **3. Through many.** $\partial x_L / \partial x_0 = \prod_l (I + J_l)$. Multiply out: one term is $I$. However deep
# the stack, and whatever the branches do, the error reaches the first layer unchanged by that term. Without the
# stream the product is $\prod_l J_l$, and it shrinks or grows exponentially.
#
# **4. Where the norm stands.** In the branch, $N$ touches only what the reader sees. On the stream (post-norm, $x' =
# N(x + A(x))$), every layer rescales the stream and its gradient, and the term $I$ is lost.
#
# **5. What pre-norm costs.** The stream grows: the answers have a size of their own, and their sum grows like the
# root of their number if they are unrelated. A last norm before the head settles it.

# %% [markdown]
# ## The same in numbers
#
# Readers that say nothing: the stream passes unchanged, and so does the gradient.

# %%
rng = np.random.default_rng(0)
sizes = BlockSizes(hidden_size=12, n_heads=3, key_dim=4, value_dim=4, intermediate_size=32)
weights, x, dy = BlockWeights.init(rng, sizes), rng.normal(size=(1, 6, 12)), rng.normal(size=(1, 6, 12))
silent_attention = replace(weights.self_attn, o_proj=0 * weights.self_attn.o_proj)
silent = replace(weights, self_attn=silent_attention, mlp=replace(weights.mlp, down_proj=0 * weights.mlp.down_proj))
out, cache = block_forward(x, silent, sizes.n_heads)
print("stream unchanged:", np.array_equal(out, x))
print("gradient unchanged:", np.array_equal(block_backward(dy, cache)[0], dy))

# %% [markdown]
# ## Six tokens through a stack of blocks
#
# First shape by shape, through one block. The last axis of the stream is $D$ at every station where something is
# added: that is what makes blocks stackable.

# %%
words = ["the", "cat", "sat", "on", "the", "mat"]
embedding = {word: rng.normal(size=12) for word in words}  # both "the" start from the same row
hidden = np.stack([embedding[word] for word in words])[None]
layers = [BlockWeights.init(rng, sizes) for _ in range(4)]
out, caches = stack_forward(hidden, layers, sizes.n_heads)
for what, axes, shape in tour_block(caches[0]):
    print(f"{what:32} {axes:8} {shape}")

# %% [markdown]
# Then as a picture. Each token has its lane, from left to right. In every block the lanes first exchange (lines: who
# listens to whom, as strong as the share, mean over the heads), then each thinks alone (the box). The lines only ever
# run down, from an earlier token to a later one.


# %%
lanes = 6.4 - 1.0 * np.arange(6)


def draw_exchange(ax, x, prob, lanes):
    """Lines from the lane that is listened to, at x, to the lane that listens, at x + 1.7."""
    for s, t in np.ndindex(prob.shape):
        if s != t and prob[s, t] > 0:
            ax.plot([x, x + 1.7], [lanes[t], lanes[s]], color=COLORS["content"], alpha=min(1.0, 1.5 * prob[s, t]))


# %%
fig, ax = board(21, 7.8, "Lanes exchange downwards, then each thinks alone")
for word, lane in zip(words, lanes):
    note(ax, 0.9, lane, word, size=11)
    ax.plot([1.6, 20.3], [lane, lane], color=COLORS["ink"], linewidth=1.2, zorder=0)
for i, block in enumerate(caches):
    x0 = 2.1 + 4.6 * i
    note(ax, x0 + 1.9, 7.2, f"block {i}", "ink")
    draw_exchange(ax, x0, block.attention[1][3][0].mean(axis=0), lanes)
    for lane in lanes:
        box(ax, x0 + 2.9, lane, "think", "ink", width=1.3, height=0.62, size=8.5)
note(ax, 3.0, 0.5, "listen", "content")
plt.show()

# %% [markdown]
# ### What has become of the two *the*?
#
# They start from the same row, and no position has been given to them. After the first exchange they differ, because
# the second one has more to listen to. How far apart are the lanes after each block? One minus the cosine of each
# pair of rows: 0 is the same direction, 1 is at right angles.

# %%
streams = [hidden[0], *(block.stream[-1][0] for block in caches)]
units = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in streams]
apart = [1 - unit @ unit.T for unit in units]
assert apart[0][0, 4] < 1e-12 < apart[1][0, 4]
finding = f"The two “the” start equal and are {apart[-1][0, 4]:.2f} apart after four blocks"

# %%
fig, axes = plt.subplots(1, 5, figsize=(10.5, 2.9), layout="constrained")
for i, ax in enumerate(axes):
    ax.imshow(apart[i], cmap="Blues", vmin=0, vmax=1.5)
    ax.set_xticks(range(6), words, rotation=90)
    ax.set_yticks(range(6), words if i == 0 else [])
    ax.set_title(f"after {i}" if i else "embedding", fontsize=11)
    ax.grid(visible=False)
fig.suptitle(finding, x=0.01, ha="left", fontweight="bold")
plt.show()

# %% [markdown]
# ## Three ways to stack
#
# The same weights, three wirings: with the stream and the norm in the branch (pre-norm), with the norm on the stream
# (post-norm), and with no stream at all. We send random rows through 64 blocks and a random gradient back, and write
# down how large it is at every block.

# %%
SIZES = BlockSizes(hidden_size=32, n_heads=4, key_dim=8, value_dim=8, intermediate_size=64)
DEPTH = 64
deep = [BlockWeights.init(rng, SIZES) for _ in range(DEPTH)]
rows, gradient = rng.normal(size=(4, 6, 32)), rng.normal(size=(4, 6, 32))


def size(array):
    """Root mean square over everything."""
    return np.sqrt(np.mean(array**2))


# %%
def measure_stack(forward, backward):
    """Size of the stream after each block, and of the gradient before each."""
    x, caches, up, down = rows, [], [size(rows)], [size(gradient)]
    for weights in deep:
        x, cache = forward(x, weights, SIZES.n_heads)
        caches.append(cache)
        up.append(size(x))
    dx = gradient
    for cache in reversed(caches):
        dx = backward(dx, cache)
        down.append(size(dx))
    return np.array(up), np.array(down[::-1])


# %%
def post_norm_forward(x, w, n_heads):
    """x = norm(x + attention(x)), then x = norm(x + mlp(x))."""
    attended, attention = multi_head_forward(x, w.self_attn, n_heads)
    x, first = rms_norm_forward(x + attended, w.input_layernorm)
    thought, mlp = swiglu_forward(x, w.mlp)
    x, second = rms_norm_forward(x + thought, w.post_attention_layernorm)
    return x, (attention, first, mlp, second)


# %%
def post_norm_backward(dx, cache):
    """The same doors in reverse."""
    attention, first, mlp, second = cache
    dx = rms_norm_backward(dx, second)[0]
    dx = rms_norm_backward(dx + swiglu_backward(dx, mlp)[0], first)[0]
    return dx + multi_head_backward(dx, attention)[0]


# %%
def no_stream_forward(x, w, n_heads):
    """x = attention(norm(x)), then x = mlp(norm(x)): the answers replace the rows."""
    x, first = rms_norm_forward(x, w.input_layernorm)
    x, attention = multi_head_forward(x, w.self_attn, n_heads)
    x, second = rms_norm_forward(x, w.post_attention_layernorm)
    x, mlp = swiglu_forward(x, w.mlp)
    return x, (first, attention, second, mlp)


# %%
def no_stream_backward(dx, cache):
    """The same doors in reverse."""
    first, attention, second, mlp = cache
    dx = rms_norm_backward(swiglu_backward(dx, mlp)[0], second)[0]
    return rms_norm_backward(multi_head_backward(dx, attention)[0], first)[0]


# %%
wirings = {
    "pre-norm": measure_stack(block_forward, lambda dx, cache: block_backward(dx, cache)[0]),
    "post-norm": measure_stack(post_norm_forward, post_norm_backward),
    "no stream": measure_stack(no_stream_forward, no_stream_backward),
}
for name, (up, down) in wirings.items():
    print(f"{name:10} size of the stream at the end {up[-1]:6.2f}   of the gradient at the start {down[0]:.2e}")

# %%
grown = {name: down[0] / down[-1] for name, (_, down) in wirings.items()}
assert grown["pre-norm"] < grown["post-norm"] < grown["no stream"]
finding = (
    f"64 blocks scale a gradient by {grown['pre-norm']:.0f} with pre-norm, by {grown['no stream']:.0e} without stream"
)
styles = {"pre-norm": ("-", COLORS["content"]), "post-norm": ("--", COLORS["ink"]), "no stream": (":", INK)}

# %%
fig, axes = plt.subplots(1, 2, figsize=(10, 3.9), layout="constrained")
for name, sides in wirings.items():
    for ax, values in zip(axes, sides):
        ax.plot(values, linestyle=styles[name][0], color=styles[name][1], label=name)
axes[0].set(xlabel="block", ylabel="size of the stream", ylim=0)
axes[1].set(xlabel="block", ylabel="size of the gradient", yscale="log")
axes[1].legend()
fig.suptitle(finding, x=0.01, ha="left", fontweight="bold")
plt.show()

# %% [markdown]
# Read the right board from right to left, as the gradient travels. Without a stream the product of Jacobians grows by
# about the same factor in every block, a straight line on this scale. With the norm on the stream it still grows,
# more slowly. With the norm in the branch most of the growth is in the first few blocks: further on the stream has
# become large (left), so each answer, and each Jacobian, is a small part of the whole. This is a measurement at the
# start of training, on random weights and one seed; it says nothing about where training ends.
#
# ## What the chapter has built
#
# A decoder block, forward and backward, from matrix products alone. DeepSeek-V3 keeps this frame to the letter
# (report, Figure 2) and exchanges what stands in the two places: latent attention for the attention (chapter 02),
# routed experts for the MLP in all layers but the first three (chapter 03).
#
# ## Exercises
#
# **1.** The answers have size $a$ each and are unrelated. How large is the stream after $L$ blocks? Compare with the
# left board.
#
# <details><summary>Solution</summary>
#
# Squares of unrelated parts add: $\sqrt{1 + 2 L a^2}$. The board ends near 9 at $L = 64$, so $a \approx 0.8$: each
# reader says something a little smaller than one, as the initialisation with variance 1 / fan-in intends.
# </details>
#
# **2.** Why can there be no norm on the stream at all, and why must there be one before the head?
#
# <details><summary>Solution</summary>
#
# The readers are protected by their own norms, so the stream may grow. The head is the last reader, and it has no
# branch: its norm is the final `model.norm`. Without it, logits would grow with the depth.
# </details>
#
# **3.** Attention and MLP could both read the same $x$ and be added together, $x + A(N(x)) + M(N(x))$. What is
# gained, what is lost? Which planted mistake of this chapter is close to it?
#
# <details><summary>Solution</summary>
#
# The two can run at the same time, and one norm is saved; some models do so. Lost is that a token thinks about what
# it has just heard: the MLP hears of it one block later. The mistake "the MLP is added to what came before the
# attention" has the MLP hear, and then drops the attention's answer from the stream.
# </details>
