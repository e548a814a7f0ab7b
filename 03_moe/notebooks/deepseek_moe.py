# %% [markdown]
# # The expert layer of DeepSeek-V3
#
# **The question.** 256 experts on 8 nodes, 8 for each token. How does one layer choose them, bound the traffic
# between nodes, keep everybody busy, and stay differentiable?
#
# **The answer** is an *order of operations*. Each step is simple, and nearly every public bug is two steps swapped.

# %%
import matplotlib.pyplot as plt
import numpy as np
from deepseek_moe import (
    DeepseekMoE,
    RouterConfig,
    deepseek_moe_backward,
    deepseek_moe_forward,
    keep_best_groups,
    route_tokens_forward,
    sort_by_expert,
)
from expert_routing import scatter_to_experts
from fine_grained_experts import every_expert_forward
from load_balancing import sequence_balance_backward, sequence_balance_forward
from loss_free_balancing import max_violation, update_bias

from utils.whiteboard import COLORS, INK, board, matrix, note, use_style

use_style()

# %% [markdown]
# ## On the whiteboard: one token on its way
#
# Eight experts in four groups of two; two groups stay, two experts are chosen, the scale is 2.5.

# %%
s_NE = np.array([[0.10, 0.05, 0.30, 0.20, 0.02, 0.03, 0.25, 0.15]])
bias_E = np.array([-0.3, -0.3, -0.5, -0.5, -0.2, -0.2, -0.3, -0.3])
config = RouterConfig(n_routed_experts=8, num_experts_per_tok=2, n_group=4, topk_group=2)
routing, _ = route_tokens_forward(s_NE, bias_E, config)
masked_NE = keep_best_groups(s_NE + bias_E, config.n_group, config.topk_group)
gates_NE = scatter_to_experts(routing.gate_NA, routing.index_NA, 8)
value_NG = (s_NE + bias_E).reshape(1, 4, 2).sum(axis=-1)

# %%
rows = [
    ("1  scores s", s_NE, "routed", ".2f"),
    ("2  choose by s + b", s_NE + bias_E, "ink", ".2f"),
    ("3  value of each group: its two best", value_NG, "ink", ".2f"),
    ("4  other groups to -inf, then the two best", masked_NE, "ink", ".2f"),
    ("5  gates: 2.5 x s / sum, without the bias", np.where(gates_NE > 0, gates_NE, np.nan), "routed", ".3f"),
]

# %%
fig, ax = board(14, 8.6, f"Experts {routing.index_NA[0].tolist()} with gates {routing.gate_NA[0].round(4).tolist()}")
for k, (text, values, kind, form) in enumerate(rows):
    cell = 0.85
    for i, v in enumerate(values[0]):
        span = 1.7 if values.shape[1] == 4 else 0.85
        matrix(
            ax,
            6.4 + span * i + (span - cell) / 2,
            8.1 - 1.6 * k,
            np.array([[v]]),
            kind,
            cell=cell,
            numbers=form,
            limit=1.8,
        )
    note(ax, 0.3, 7.7 - 1.6 * k, text, size=11.5, align="left")
plt.show()

# %% [markdown]
# The best *score* of all, 0.30, belongs to expert 2. It is not chosen: its expert is overloaded, says its bias. And
# mind the hatched cells: filled with 0 instead of $-\infty$ they would beat every real candidate, because all of
# those are negative.
#
# ## The derivation, in six steps
#
# 1. $s = \sigma(x W^\top)$ (Eq. 15).
# 2. $c = s + b$: only for choosing (Eq. 16). A group is worth the sum of its two best $c$; the best groups stay,
#    all else is $-\infty$.
# 3. $\mathcal T$ = the $A$ best of what is left (Eq. 14).
# 4. $w_i = s_i / (\sum_{\mathcal T} s_j + 10^{-20})$ (Eq. 13), $\;g_i = 2.5\, w_i$. Normalise, *then* scale, once.
# 5. $y = \mathrm{FFN}_{shared}(x) + \sum_{\mathcal T} g_i\,\mathrm{FFN}_i(x)$ (Eq. 12).
# 6. Backward. With $dg_i = \mathrm{FFN}_i(x)^\top dy$:
#    $$ds_i = \frac{2.5}{S}\Big(dg_i - \sum_j w_j\,dg_j\Big) + \big(\text{balance loss}\big)_i,$$
#    $$dx = dx_{shared} + \sum_{\mathcal T} dx_i + W^\top\big(ds\, s (1-s)\big).$$

# %% [markdown]
# ## A numeric check
#
# Sorted dispatch against "every expert on every token", and the gradient against a nudge of all weights at once.

# %%
rng = np.random.default_rng(0)
config = RouterConfig(16, 4, 4, 2)
weights = DeepseekMoE.init(rng, config, width=12, hidden=8)
x_ND, dy_ND = rng.normal(size=(64, 12)), rng.normal(size=(64, 12))
y_ND, cache = deepseek_moe_forward(x_ND, weights, config)
gate_NE = scatter_to_experts(cache.routing.gate_NA, cache.routing.index_NA, 16)
naive = np.einsum("ne,ned->nd", gate_NE, every_expert_forward(x_ND, weights.experts)[0])
shared = deepseek_moe_forward(x_ND, weights, RouterConfig(16, 4, 4, 2, routed_scaling_factor=0.0))[0]
print(f"sorted against naive: largest difference {np.abs(y_ND - naive - shared).max():.1e}")

# %%
_, grads = deepseek_moe_backward(dy_ND, cache)
nudges = {name: rng.normal(size=w.shape) * 1e-7 for name, w in weights.trainable().items()}
measured = 0.0
for sign in (1, -1):
    for name, w in weights.trainable().items():
        w += sign * nudges[name]
    measured += sign * (deepseek_moe_forward(x_ND, weights, config)[0] * dy_ND).sum()
    for name, w in weights.trainable().items():
        w -= sign * nudges[name]
print(f"predicted {2 * sum((grads[n] * nudges[n]).sum() for n in nudges):.9e}\nmeasured  {measured:.9e}")

# %% [markdown]
# ## Sorted dispatch
#
# All visits (token, expert), drawn in the order of the tokens and in the order of the experts. After the sort each
# expert sees one contiguous block: one matrix product for each expert, whatever the tokens chose.

# %%
order, runs = sort_by_expert(cache.routing.index_NA, 16)
visits = cache.routing.index_NA.ravel()
fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.2), sharey=True)
for ax, expert, name in zip(axes, (visits, visits[order]), ("as the tokens come", "sorted by expert")):
    ax.scatter(range(len(expert)), expert, s=9, color=COLORS["routed"])
    ax.set(xlabel="row", title=f"{name}: {(np.diff(expert) != 0).sum() + 1} runs")
    ax.title.set_fontsize(11)
axes[0].set_ylabel("expert")
n_before = (np.diff(visits) != 0).sum() + 1
title = f"{len(visits)} visits: {n_before} runs become {len(runs)}, one product for each"
fig.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
fig.tight_layout()
plt.show()

# %% [markdown]
# ## Five mistakes, and how far each takes the output
#
# Each is a real one, found in public code. The layer is the same; only one line of the router differs.

# %%
score_NE, bias = cache.score_NE, rng.normal(size=16) * 0.2 - 1.2  # only differences of a bias matter
right = route_tokens_forward(score_NE, bias, config)[0]
outputs = every_expert_forward(x_ND, weights.experts)[0]


def combine(index, gate):
    return (np.take_along_axis(outputs, index[..., None], axis=1) * gate[..., None]).sum(axis=1)


pick = lambda table: np.take_along_axis(table, right.index_NA, axis=1)  # noqa: E731
zero_fill = np.where(np.isinf(masked := keep_best_groups(score_NE + bias, 4, 2)), 0.0, masked)
filled = np.argsort(-zero_fill, axis=1, kind="stable")[:, :4]
biased = pick(score_NE + bias)
filled_gate = np.take_along_axis(score_NE, filled, 1)

# %%
wrong = {
    "bias in the gates": combine(right.index_NA, 2.5 * biased / biased.sum(1, keepdims=True)),
    "scaled twice": combine(right.index_NA, 2.5 * right.gate_NA),
    "scaled before normalising": combine(right.index_NA, right.gate_NA / 2.5),
    "not normalised": combine(right.index_NA, 2.5 * pick(score_NE)),
    "masked groups filled with 0": combine(filled, 2.5 * filled_gate / filled_gate.sum(1, keepdims=True)),
}
truth = combine(*right)
error = {name: np.linalg.norm(out - truth) / np.linalg.norm(truth) for name, out in wrong.items()}

# %%
fig, ax = plt.subplots(figsize=(9, 3.2))
ax.barh(list(error), np.array(list(error.values())) * 100, color=COLORS["ink"])
ax.invert_yaxis()
ax.set_xlabel("change of the routed output, % of its norm")
finite = all(np.isfinite(out).all() for out in wrong.values())
assert finite
ax.set_title(f"Nothing crashes: {min(error.values()):.0%} to {max(error.values()):.0%} wrong, every number finite")
plt.show()

# %% [markdown]
# ## What reaches the router
#
# The gradient of the router's weights has two sources: the task, through the gates, and the balance loss, through the
# shares. The thermostat is not among them. V3's strength of 1e-4 beside others:

# %%
score_BSE = cache.score_NE.reshape(4, 16, 16)
norms = []
for alpha in (1e-4, 1e-3, 1e-2, 1e-1):
    _, balance_cache = sequence_balance_forward(score_BSE, 4, alpha)
    dscore = sequence_balance_backward(1.0, balance_cache).reshape(64, 16)
    _, alone = deepseek_moe_backward(np.zeros_like(dy_ND), cache, dscore)
    norms.append(np.linalg.norm(alone["gate.weight"]))
_, task = deepseek_moe_backward(dy_ND / dy_ND.size, cache)  # the gradient of a mean
task_norm = np.linalg.norm(task["gate.weight"])
print("balance / task:", ", ".join(f"{a:g}: {n / task_norm:.1e}" for a, n in zip((1e-4, 1e-3, 1e-2, 1e-1), norms)))

# %% [markdown]
# ## One hundred training steps of the bias
#
# The whole layer with a strong common direction in its inputs: load before and after.

# %%
common = rng.normal(size=(512, 12)) + 1.5 * np.ones(12) / 12**0.5
violations, first = [], None
for _ in range(100):
    _, now = deepseek_moe_forward(common, weights, config)
    first = now.load_E if first is None else first
    violations.append(max_violation(now.load_E))
    weights.gate.e_score_correction_bias[:] = update_bias(weights.gate.e_score_correction_bias, now.load_E, 0.01)

# %%
fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.2), sharey=True)
for ax, load, name in zip(axes, (first, now.load_E), ("before", "after 100 updates")):
    ax.bar(range(16), load, color=COLORS["routed"])
    ax.axhline(load.mean(), color=INK, linewidth=1, linestyle="--")
    ax.set(xlabel="expert", title=f"{name}: MaxVio {max_violation(load):.2f}")
    ax.title.set_fontsize(11)
axes[0].set_ylabel("tokens")
assert violations[-1] < violations[0]
title = f"The bias takes MaxVio from {violations[0]:.2f} to {violations[-1]:.2f} and no gradient was computed"
fig.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
fig.tight_layout()
plt.show()

# %% [markdown]
# ## What comes next
#
# The layer is complete, and chapter 06 uses it as it stands. Chapter 04 asks the model to see further than one token.
#
# ## Exercises
#
# **1.** Why are groups judged by the sum of their *two* best?
#
# <details><summary>Solution</summary>
#
# Eight experts from at most four groups: two for each on average. A group with one brilliant expert and 31 useless
# ones would spend a node's traffic on a single visit.
#
# </details>
#
# **2.** V3 multiplies the gates by 2.5. Derive what a factor $c$ does to $ds$. Why not fold it into the experts'
# weights?
#
# <details><summary>Solution</summary>
#
# $ds$ is linear in $c$. Folding it into `down_proj` gives the same function, but another start of training (the
# initial routed output is larger with $c$) and other step sizes under Adam, which ignores the scale of gradients.
#
# </details>
#
# **3.** An expert gets no token in a batch. What are its gradients, and what would happen to a loop that stacks
# only the experts that ran?
#
# <details><summary>Solution</summary>
#
# They are zero, as our `zeros_like` says. A stack of those that ran would be shorter and shift every later expert's
# gradient to its neighbour: no crash if the optimiser only zips.
#
# </details>
