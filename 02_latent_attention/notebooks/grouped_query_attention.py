# %% [markdown]
# # Grouped-query attention
#
# **The question.** Multi-head attention keeps too much, multi-query attention lets its heads see too little. Is there
# something between?
#
# The archive again: eight readers, and a messenger who carries drawers. Eight drawers are too heavy, one is too poor.
# So: two drawers, four readers to each. That is all. Grouped-query attention is one number, the number of drawers; many
# open models (Llama 3, Qwen 2.5) have eight.
#
# What this notebook adds is care (who reads which drawer?) and a fair question: if you may keep a given number of
# values per token, is it better to have many narrow drawers or few wide ones?

# %%
import numpy as np
from grouped_query_attention import (
    GroupedQueryWeights,
    grouped_query_backward,
    grouped_query_forward,
    share_heads_backward,
    share_heads_forward,
)
from kv_cache import TokenCache

from utils.drawings_02 import draw_sharing
from utils.plots_02 import plot_lines
from utils.plots_studies import plot_study
from utils.recall_task import Recall, train_recalls

# %%
names = {4: "J = 4: multi-head", 2: "J = 2: grouped", 1: "J = 1: multi-query"}
draw_sharing(names, "One dial: how many drawers for four readers")

# %% [markdown]
# ## Numbers to follow with a pencil
#
# Letters: $H$ query heads, $J$ key-value heads (`num_key_value_heads` in released configs), so $H/J$ readers for each
# drawer. With $H = 6$ and $J = 2$ there are three: heads 0, 1, 2 read drawer 0, heads 3, 4, 5 read drawer 1. Head $h$
# reads drawer $h \div (H/J)$, rounded down: $\lfloor 4 / 3 \rfloor = 1$.
#
# NumPy has two functions that look alike: `repeat` gives 0 0 0 1 1 1, `tile` gives 0 1 0 1 0 1. A model trained from
# scratch does not care which; a released checkpoint was trained with the first.
#
# Backward, each drawer's gradient is the sum over its readers. If the six readers pull with 1, 2, 3, 4, 5, 6, drawer 0
# gets 6 and drawer 1 gets 15.

# %%
drawers, pulls = np.arange(2.0).reshape(1, 2, 1, 1), np.arange(1.0, 7.0).reshape(1, 6, 1, 1)
print("head h reads drawer", share_heads_forward(drawers, 3)[0, :, 0, 0].astype(int))
print("tile would give    ", np.tile(drawers, (1, 3, 1, 1))[0, :, 0, 0].astype(int))
print("gradients of the drawers", share_heads_backward(pulls, 3)[0, :, 0, 0])

# %% [markdown]
# ## Build it

# %%
rng = np.random.default_rng(0)
D, H, J, K, S = 32, 6, 2, 4, 5
weights, x = GroupedQueryWeights.init(rng, D, H, J, K, K), rng.standard_normal((S, D))


def ask_drawers(x):
    """Causal grouped-query attention of one text [S, D], head by head."""
    drawers = [(x @ k.T, x @ v.T) for k, v in zip(np.split(weights.k_proj, J), np.split(weights.v_proj, J))]
    found = []
    for h, q_proj in enumerate(np.split(weights.q_proj, H)):
        keys, values = drawers[h // (H // J)]
        score = np.where(np.tri(S) > 0, x @ q_proj.T @ keys.T / np.sqrt(K), -np.inf)
        share = np.exp(score - score.max(axis=1, keepdims=True))
        found.append(share / share.sum(axis=1, keepdims=True) @ values)
    return np.concatenate(found, axis=1) @ weights.o_proj.T


# %%
past = TokenCache(S)
y, cache = grouped_query_forward(x[None], weights, past)
assert np.allclose(y[0], ask_drawers(x), rtol=0, atol=1e-13)
print(f"naive and module agree; kept per token: {past.nbytes // 8 // S} values = 2 * {J} * {K}")

# %% [markdown]
# ## The derivation
#
# 1. Project $J$ keys and $J$ values per token; keep $J(K + U)$ values.
# 2. Head $h$ reads number $g(h) = \lfloor h / (H/J) \rfloor$:
#    $o_{h,s} = \sum_t \mathrm{softmax}_t(q_{h,s} \cdot k_{g(h),t} / \sqrt K)\, v_{g(h),t}$.
# 3. Backward: $k_{j,t}$ enters the scores of all heads with $g(h) = j$, so $dk_{j,t} = \sum_{h:\, g(h) = j} dk_{h,t}$.
# 4. The ends of the dial: $J = H$ is multi-head attention, $J = 1$ is multi-query.
#
# Step 3 by trying: push one element of the key matrix a little, and see whether the loss moves as the gradient says.

# %%
dy = rng.standard_normal(y.shape)
gradient = grouped_query_backward(dy, grouped_query_forward(x[None], weights)[1])[1].k_proj
for row, column in [(0, 3), (7, 30)]:
    losses = []
    for step in (1e-6, -1e-6):
        weights.k_proj[row, column] += step
        losses.append((grouped_query_forward(x[None], weights)[0] * dy).sum())
        weights.k_proj[row, column] -= step
    print(f"k_proj[{row}, {column}]: tried {(losses[0] - losses[1]) / 2e-6:+.6f}, derived {gradient[row, column]:+.6f}")

# %% [markdown]
# ## The experiment: the same cache, cut differently
#
# Four heads and a fixed number of values per token, $2JK$. Few wide drawers or many narrow ones? The task asks both
# ways: a name for its value, a value for its name (as in `multi_query_attention`), so keys have to know two things.
# Each layer is trained from scratch, 400 steps, one seed.

# %%
task, kept = Recall(both_ways=True), (8, 16, 24, 32)
right = {}
for J in (4, 2, 1):
    right[J] = []
    for n in kept:
        K = n // (2 * J)
        layer = GroupedQueryWeights.init(np.random.default_rng(0), task.width, 4, J, K, K)
        right[J].append(train_recalls(layer, grouped_query_forward, grouped_query_backward, task))
    print(f"J = {J}:", ", ".join(f"{n} values (width {n // (2 * J)}): {r:.0%}" for n, r in zip(kept, right[J])))

# %%
assert right[1][1] > right[2][1] > right[4][1]
plot_lines(
    {name: (kept, right[J]) for J, name in names.items()},
    ["ink", "#7FA8D6", "content"],
    f"With 16 values per token: 1 wide drawer {right[1][1]:.0%}, 4 narrow ones {right[4][1]:.0%}",
    "values kept per token, 2 J K",
    "right answers after 400 steps",
    ylim=(0, 1.04),
)

# %% [markdown]
# At equal cache the shared, wide key wins on this task, and by far. That is the opposite of what the last notebook
# found at equal *width*, and both are true: sharing costs, narrowness costs more. This is why every design of this
# chapter shares something. It is also a warning about comparisons: say what is held equal. (A wide key has a price that
# the cache does not show: more arithmetic per score, and more parameters in the query matrices.)
#
# ## Whole models
#
# The papers compare whole models, and there multi-head is ahead of grouped, and grouped of multi-query: V2's Table 1
# calls them strong, moderate and weak, its Table 8 gives 45.2, 41.2 and 37.9 points of MMLU at 7 billion parameters.
# Ours have 166 thousand, all the same number, and read stories and Python; the latent attention of the next notebooks
# runs beside them. Five seeds each, learning rates tuned: [docs/studies.md](../docs/studies.md).

# %%
names = {"mha": "4 key heads", "gqa": "2 key heads", "mqa": "1 key head", "mla": "a latent"}
plot_study("study_attention", "Fewer key heads cost something; a tight latent costs most", names)

# %% [markdown]
# In the mean the order is the papers': 4 heads, 2, 1. That one head is worse than two is beyond chance; that two are
# worse than four is so for every seed, though the pale interval still holds zero. But the latent, which keeps as few
# numbers as one key head (32 of the 128 that four heads keep), is *worse* than one head and than four, where the paper
# finds it better than multi-head. It is a tight latent, one and a half heads wide; V2's is four.
#
# ## Change this, predict, run
#
# Multi-head models have been turned into grouped ones by *pooling*: the keys of a group are replaced by their mean
# (then the model is trained on). The cell pools the random layer of above. Predict the error of its output for $J = 3$
# and $J = 1$: are random heads a good or a bad case? What would you expect of heads that learned similar things?
#
# <details><summary>Afterwards</summary>
#
# A bad case: 66 % off with two heads a group, 90 % with all six. The mean of two random keys resembles neither of them.
# Heads that have learned similar things would lose less, and what is lost is what the further training has to mend.
# ($J = 6$ pools each head with itself: nothing changes.)
#
# </details>

# %%
full = GroupedQueryWeights.init(rng, D, H, H, K, K)
want = grouped_query_forward(x[None], full)[0]
for J in (6, 3, 1):
    pooled = [w.reshape(J, H // J, -1, D).mean(1).reshape(-1, D) for w in (full.k_proj, full.v_proj)]
    got = grouped_query_forward(x[None], GroupedQueryWeights(full.q_proj, *pooled, full.o_proj, H, J))[0]
    print(f"J = {J}: output off by {np.linalg.norm(got - want) / np.linalg.norm(want):.0%}")

# %% [markdown]
# ## What changed since the last notebook
#
# Nothing but a number. GQA picks *which* heads share, and they share whole vectors. The next notebook asks a better
# question: if all that is to be kept is $n$ numbers per token, which $n$ numbers are best?
#
# ## What you can now do
#
# Write grouped-query attention for any $J$, read a released checkpoint's heads in the right order, derive its backward
# pass, and say what is held equal when somebody compares two kinds of attention.
#
# ## Exercises
#
# Graded: `shared_key_backward` (`make check CH=02`). By thought alone:
#
# 1. DeepSeek-V3 keeps 576 values per layer and token. How many key-value heads of width 128 is that?
#
# <details><summary>Solution</summary>
#
# $576 / (2 \cdot 128) = 2.25$, the number in Table 1 of the V2 paper.
#
# </details>
#
# 2. Does `repeat` copy the keys in memory? How would you avoid it?
#
# <details><summary>Solution</summary>
#
# `np.repeat` copies. Reshape the *queries* to [B, J, H/J · S, K] instead and multiply them with the J keys as they are:
# the readers become extra rows of the query matrix.
#
# </details>
