# %% [markdown]
# # Laboratory: does the layer need both parts?
#
# **The question.** A score is content plus rope. Train the layer on a task that needs *what* and *where*, take one part
# away, and see what is lost. The gradients are the ones derived by hand in this chapter; nothing else trains the layer.

# %%
import matplotlib.pyplot as plt
import numpy as np
from decoupled_rope import MLAConfig, MLAWeights, decoupled_attention_backward, decoupled_attention_forward

from utils.whiteboard import COLORS, arrow, board, box, note, use_style

use_style()
N_KEYS, N_VALUES, S = 24, 8, 12
D = N_KEYS + N_VALUES + 1

# %% [markdown]
# ## On the whiteboard: a store with overwrites
#
# Each token writes a value under a name; the last token asks for a name. Right is the value written *last*. Content
# finds the name, position finds the latest.

# %%
fig, ax = board(20, 4.2)
story = [("b", 3), ("a", 5), ("c", 1), ("a", 2), ("b", 7), ("a", 6), ("c", 4)]
boxes = [
    box(ax, 1.5 + 2.3 * i, 1.3, f"{name} = {value}", "content" if name == "a" else "ink", filled=(i == 5))
    for i, (name, value) in enumerate(story)
]
ask = box(ax, 18.4, 1.3, "a = ?", "rope")
for place, kind in [(1, "ink"), (3, "ink"), (5, "rope")]:
    arrow(ax, (18.2, 1.75), (boxes[place].x, 1.75), kind=kind, bend=0.24, dashed=kind == "ink")
note(ax, 13, 0.45, "the latest a: answer 6", "content")
plt.show()


# %%
def draw_stories(rng, B):
    """Twelve writes with four names out of 24, then the question; returns [B, 13, D] and the right values [B]."""
    few = rng.permuted(np.tile(np.arange(N_KEYS), (B, 1)), axis=1)[:, :4]
    names = np.take_along_axis(few, rng.integers(4, size=(B, S)), axis=1)
    values = rng.integers(N_VALUES, size=(B, S))
    writes = np.concatenate([np.eye(N_KEYS)[names], np.eye(N_VALUES)[values], np.ones((B, S, 1))], axis=-1)
    asked = names[np.arange(B), rng.integers(S, size=B)]
    question = np.concatenate([np.eye(N_KEYS)[asked], np.zeros((B, N_VALUES)), -np.ones((B, 1))], axis=-1)
    same = names == asked[:, None]
    latest = S - 1 - same[:, ::-1].argmax(axis=1)
    return np.concatenate([writes, question[:, None]], axis=1), values[np.arange(B), latest], same, values


# %% [markdown]
# What could a layer reach that is blind to order? It sees all values under the asked name, each equally likely to be
# the last one; its best guess is the most frequent. That is a number we can count before training:

# %%
_, _, same, values = draw_stories(np.random.default_rng(1), 20000)
counts = (np.eye(N_VALUES)[values] * same[..., None]).sum(axis=1)
blind = float((counts.max(axis=1) / counts.sum(axis=1)).mean())
print(f"best possible without order: {blind:.1%}")

# %% [markdown]
# ## Taking a part away
#
# Set the query and key rows of a part to zero. Its score is then $0 \cdot 0$, and so are both gradients: what starts at
# zero stays there.

# %%
config = MLAConfig(D, 2, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8, rope_theta=100.0)


def draw_weights(rng, without):
    weights = MLAWeights.init(rng, config)
    queries, keys = weights.q_proj.reshape(2, -1, D), weights.kv_b_proj.reshape(2, -1, 16)
    if without == "rope":
        queries[:, 8:], weights.kv_a_proj_with_mqa[16:] = 0, 0
    if without == "content":
        queries[:, :8], keys[:, :8] = 0, 0
    return weights


# %% [markdown]
# The loss is the cross-entropy of the value, read from eight of the output's coordinates at the last token; its
# gradient is probabilities minus the right answer. Adam follows the gradients.


# %%
def judge(y, target):
    """Share of right answers, and the gradient of the mean cross-entropy at the output."""
    logits = y[:, -1, N_KEYS : N_KEYS + N_VALUES]
    odds = np.exp(logits - logits.max(-1, keepdims=True))
    dy = np.zeros_like(y)
    dy[:, -1, N_KEYS : N_KEYS + N_VALUES] = odds / odds.sum(-1, keepdims=True) - np.eye(N_VALUES)[target]
    return (logits.argmax(-1) == target).mean(), dy / len(y)


def adam(weights, grads, state, step, rate=5e-3):
    for name, array in weights.arrays().items():
        first, second = state.setdefault(name, (np.zeros_like(array), np.zeros_like(array)))
        first += 0.1 * (getattr(grads, name) - first)
        second += 0.01 * (getattr(grads, name) ** 2 - second)
        array -= rate * first / (1 - 0.9**step) / (np.sqrt(second / (1 - 0.99**step)) + 1e-8)


# %%
def train(without, steps=800, seed=0):
    rng = np.random.default_rng(seed)
    weights, state, right = draw_weights(rng, without), {}, []
    for step in range(1, steps + 1):
        x, target, *_ = draw_stories(rng, 64)
        y, cache = decoupled_attention_forward(x, weights, config)
        score, dy = judge(y, target)
        adam(weights, decoupled_attention_backward(dy, cache)[1], state, step)
        right.append(score)
    return np.array(right)


curves = {name: train(name) for name in ("nothing", "rope", "content")}

# %% [markdown]
# ## The finding

# %%
smooth = {name: np.convolve(curve, np.ones(50) / 50, "valid") for name, curve in curves.items()}
whole, no_rope, no_content = (100 * smooth[name][-1] for name in ("nothing", "rope", "content"))
assert no_rope < 100 * blind + 5 < no_content < whole - 20
fig, ax = plt.subplots()
for name, kind in [("nothing", "latent"), ("content", "rope"), ("rope", "content")]:
    label = "whole layer" if name == "nothing" else f"without the {name} part"
    ax.plot(np.arange(50, 801), smooth[name], color=COLORS[kind], label=label)
ax.axhline(blind, color="#999999", lw=1, ls="--", label="best possible without order")
ax.set(xlabel="step", ylabel="right answers (mean of 50 steps)", ylim=(0, 1.02))
ax.set_title(f"Both parts: {whole:.0f}% right; content alone {no_rope:.0f}%, rope alone {no_content:.0f}%")
ax.legend(loc="lower right")
plt.show()

# %% [markdown]
# Content alone climbs to what is possible without order, and stops. Rope alone is not blind to content, for its key
# comes from the hidden state too; but four numbers cannot hold 24 names apart. Together they do it.
#
# This is a toy: one layer, 24 names, a rotary part made narrow on purpose. With `qk_rope_head_dim=8` and `N_KEYS = 4`
# the same `train` ends at 99.8% whole, 45.8% without rope and 99.2% without content: ordinary RoPE attention is a good
# layer. It is the *cache* that pays for its width.
#
# ## Exercises
#
# 1. Why does the blue curve not fall below the dashed line, and can it ever rise above?
#
# <details><summary>Solution</summary>
#
# Without the rope part the layer is invariant to the order of the writes, so no weights can beat the count. Small
# batches scatter around it. (A stack of causal layers can: the mask itself tells the second layer how many tokens came
# before.)
#
# </details>
#
# 2. Only one of the two sides (query rows or key rows) set to zero: what changes?
#
# <details><summary>Solution</summary>
#
# The score is zero at the start, but the gradient of the zero side is (score gradient) × (other side), which is not. It
# grows, and the part comes back.
#
# </details>
