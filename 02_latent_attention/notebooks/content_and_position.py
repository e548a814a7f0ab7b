# %% [markdown]
# # Laboratory: does the layer need both parts?
#
# **The question.** A score is content plus rope. Train the layer on a task that needs *what* and *where*, take one part
# away, and see what is lost. The gradients are the ones derived by hand in this chapter; nothing else trains the layer.
#
# The task is a notebook with corrections. "b = 3", "a = 5", "a = 2", "a = 6": who asks for *a* wants the value written
# *last*, 6. To find the lines about *a*, one must read them (content). To know which came last, one must know where
# they stand (position). A reader who cannot see places finds 5, 2 and 6 and has to guess; a reader who sees places only
# knows which line is newest, not which is about *a*.

# %%
import numpy as np
from decoupled_rope import MLAConfig, MLAWeights, decoupled_attention_backward, decoupled_attention_forward

from utils.drawings_02 import draw_overwrites
from utils.plots_02 import plot_lines

N_KEYS, N_VALUES, S = 24, 8, 12
D = N_KEYS + N_VALUES + 1

# %%
story = [("b", 3), ("a", 5), ("c", 1), ("a", 2), ("b", 7), ("a", 6), ("c", 4)]
draw_overwrites(story, "a", "Content finds the lines about a, position the latest of them")

# %% [markdown]
# ## Numbers to follow with a pencil
#
# In the drawing *a* was written three times, 5, 2 and 6. A reader without places gives each value the share 1/3; three
# different values, so his best guess is right one time in three. Had it been 6, 2 and 6, he would say 6 and be right
# two times in three. Count this over many stories, and you know what a layer without positions can reach *at best*,
# before any training.
#
# A hidden state holds, one-hot, the name (24 places), the value (8 places), and +1 for a line or -1 for the question.


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


# %%
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
    return np.array(right), weights


runs = {name: train(name) for name in ("nothing", "rope", "content")}
curves, trained = ({name: run[i] for name, run in runs.items()} for i in (0, 1))

# %% [markdown]
# ## Predict, then look
#
# Write down three numbers before you read on: the share of right answers of the whole layer, of content alone, and of
# rope alone (guessing blindly gives 1 in 8).
#
# ## The finding

# %%
smooth = {name: np.convolve(curve, np.ones(50) / 50, "valid") for name, curve in curves.items()}
whole, no_rope, no_content = (100 * smooth[name][-1] for name in ("nothing", "rope", "content"))
steps = np.arange(50, 801)
shown = {"content and rope": smooth["nothing"], "content alone": smooth["rope"], "rope alone": smooth["content"]}
lines = {name: (steps, curve) for name, curve in shown.items()}
lines["best possible without order"] = ((50, 800), (blind, blind))
assert no_rope < 100 * blind + 5 < no_content < whole - 20
plot_lines(
    lines,
    ["latent", "content", "rope", "#BBBBBB"],
    f"Both parts: {whole:.0f}% right; content alone {no_rope:.0f}%, rope alone {no_content:.0f}%",
    "step",
    "right answers (mean of 50 steps)",
    ylim=(0, 1.02),
)

# %% [markdown]
# Content alone climbs to what is possible without order, and stops. Rope alone is not blind to content, for its key
# comes from the hidden state too; but four numbers cannot hold 24 names apart. Together they do it.
#
# This is a toy: one layer, 24 names, a rotary part made narrow on purpose. With `qk_rope_head_dim=8` and `N_KEYS = 4`
# the same `train` ends at 99.8% whole, 45.8% without rope and 99.2% without content: ordinary RoPE attention is a good
# layer. It is the *cache* that pays for its width.
#
# ## Change this, predict, run
#
# The trained layer again, on stories in which every line stands 40 positions further apart than in training. The
# content does not change, the clocks do. Predict: does it still answer like the whole layer, like content alone, or
# worse? (Training saw distances up to 12.)
#
# <details><summary>Afterwards</summary>
#
# Two apart is nearly as good: the hands still stand in an order that training knew. Forty apart is *worse than content
# alone*: the hands point anywhere, and the layer believes them. A position that was never seen is not neutral, it
# misleads. The notebook `yarn` is about that.
#
# </details>

# %%
x, target, *_ = draw_stories(np.random.default_rng(2), 2000)
for gap in (1, 2, 40):
    y, _ = decoupled_attention_forward(x, trained["nothing"], config, positions=gap * np.arange(S + 1))
    print(f"lines {gap:>2} apart: {judge(y, target)[0]:.1%} right")

# %% [markdown]
# ## What you can now do
#
# Train a layer by gradients that you derived; switch a part of it off so that it stays off; and compute, before any
# training, what a model that lacks something can reach at best.
#
# ## Exercises
#
# 1. Why does *content alone* settle at the grey line, and can it ever rise above?
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
