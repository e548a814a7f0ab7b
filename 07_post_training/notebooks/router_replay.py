# %% [markdown]
# # Who answered, and who is corrected?
#
# At a help desk two clerks share every call, and a dispatcher picks them by ear. Calls are recorded, and in the
# evening the clerks are trained on them. But the recording is a little muffled: the dispatcher, listening again,
# sometimes hears another name and sends the tape to another clerk. *She* is then corrected for words that she never
# said.
#
# In a mixture of experts the dispatcher is the router. Answers are *written* by a fast engine (few bits, fused kernels)
# and *learned from* by the trainer (more bits). Their weights are the same. Their experts are not always.

# %%
import numpy as np
from router_replay import (
    MoeWeights,
    choose_experts,
    find_rerouted,
    measure_mismatch,
    moe_backward,
    moe_forward,
    recompute_gates_forward,
    round_mantissa,
    round_weights,
)
from token_policy import log_softmax

from utils.drawings_07 import draw_chain, plot_bars, plot_scatter

# %% [markdown]
# ## Numbers to follow with a pencil
#
# Three experts have the scores 0.801, 0.800 and 0.100; the best one is chosen. BF16 keeps 8 significant bits: between
# 0.5 and 1 its numbers lie 1/256 = 0.0039 apart. Both scores round to 0.80078. Now the first of equals is taken, or
# whichever the kernel sees first: the choice hangs on nothing.
#
# A small error in a smooth function stays small. A choice is not smooth: **the error of a choice is the whole
# difference between two experts, or nothing.**

# %%
scores = np.array([0.801, 0.800, 0.100])
print("as BF16:", round_mantissa(scores, 7), " as E4M3:", round_mantissa(scores, 3))


# %%
def naive_moe(weights, x, chosen=None):
    """One token through its two best experts, or through two that are given."""
    score = 1 / (1 + np.exp(-weights.router_ED @ x))
    if chosen is None:
        chosen = np.argsort(-score)[:2]
    gates = score[chosen] / score[chosen].sum()
    out = x.copy()
    for gate, e in zip(gates, chosen):
        out += gate * weights.down_EDF[e] @ np.tanh(weights.up_EFD[e] @ x)
    return weights.head_VD @ out


# %%
rng = np.random.default_rng(0)
weights, x = MoeWeights.init(rng), rng.standard_normal((4000, 16))
logits, index, _ = moe_forward(weights, x)
assert np.allclose([naive_moe(weights, row) for row in x[:20]], logits[:20], atol=1e-13)
other = np.array([[3, 0]] * 20)
assert np.allclose([naive_moe(weights, r, [3, 0]) for r in x[:20]], moe_forward(weights, x[:20], other)[0], atol=1e-13)

# %% [markdown]
# ## The experiment: how many tokens change experts?
#
# The sampler keeps its weights in fewer bits, and writes one token for each of 4,000 hidden rows. The trainer, with the
# same weights in full, is asked how likely that token was. GRPO takes for granted that both say the same.

# %%
shares, bits = [], {"FP16": 10, "BF16": 7, "E4M3": 3}
for name, kept in bits.items():
    found = measure_mismatch(np.random.default_rng(1), weights, round_weights(weights, kept), x, replay=False)
    far = np.abs(np.log(found.ratio_N))
    shares.append(round(100 * found.rerouted_N.mean(), 3))
    moved = far[found.rerouted_N].mean() if found.rerouted_N.any() else np.nan
    rest = far[~found.rerouted_N].mean()
    print(f"{name}: mean |log ratio| of tokens with other experts {moved:.2f}, of all others {rest:.4f}")

# %%
title = f"Bits decide how many tokens change experts: {shares[1]:.2g} % in BF16, {shares[2]:.2g} % in E4M3"
plot_bars(list(bits), shares, ["routed"] * 3, title, "tokens with other experts, %", " %")

# %% [markdown]
# And *how far off* such a token is does not depend on the bits: it was computed by other weights. One layer here, and
# independent random tokens; a token of V3 passes 58 such layers, and one change anywhere moves every later choice.

# %%
sampler = round_weights(weights, 3)
own, theirs = (moe_forward(w, x) for w in (weights, sampler))
token = (log_softmax(theirs[0]) + rng.gumbel(size=logits.shape)).argmax(axis=1)
rows, moved = np.arange(4000), find_rerouted(own[1], theirs[1])
trainer, writer = (log_softmax(out[0])[rows, token] for out in (own, theirs))
plot_scatter(
    writer,
    trainer,
    moved,
    ("same experts", "other experts"),
    "Far from the line are those with other experts",
    ("log π of the sampler (E4M3)", "log π of the trainer"),
)

# %% [markdown]
# ## Replay: take the choice, compute the gates again
#
# The sampler hands over which experts it used: a few small integers for each token and layer. The trainer uses *those*,
# and weighs them by its *own* scores.
#
# Why not take over the gates too? Letters: $s_a$ is the score of chosen expert $a$, $g_a = s_a / \sum s$ its gate,
# $y = x + \sum_a g_a E_a(x)$ the output.
#
# 1. The choice has no slope: a little change of a score changes no choice.
# 2. So the router learns through the gates alone: $\partial L / \partial g_a = \partial L / \partial y \cdot E_a(x)$.
# 3. And on to its weights: $\partial L / \partial s_a = (\partial L / \partial g_a - \sum_b g_b\, \partial L / \partial
#    g_b) / \sum s$, then through the sigmoid.
# 4. A gate that was *handed over* is a number. Step 3 has nothing to differentiate, and the router stops learning,
#    while everything else goes on and the loss falls.

# %%
_, choice, _ = moe_forward(sampler, x)
logits, used, cache = moe_forward(weights, x, choice)
assert (used == choice).all()
print(
    "router's gradient, gates recomputed:",
    np.abs(moe_backward(rng.standard_normal(logits.shape), cache).router_ED).mean().round(2),
)
today, _ = recompute_gates_forward(weights.router_ED, x, choice)
then, _ = recompute_gates_forward(sampler.router_ED, x, choice)
print("gates of today and of the sampler differ by up to", np.abs(today - then).max().round(3))

# %%
replayed = log_softmax(logits)[rows, token]
before, after = (np.exp(np.abs(t - writer)[moved].mean()) for t in (trainer, replayed))
title = f"With replay their ratio is off by {after - 1:.0%}, no longer by a factor of {before:.1f}"
plot_scatter(
    writer,
    replayed,
    moved,
    ("same experts", "had other experts"),
    title,
    ("log π of the sampler (E4M3)", "log π of the trainer, choices replayed"),
)

# %% [markdown]
# What is left is rounding, the same for all tokens. The other cause of another route, that the weights have *moved*
# between writing and learning, is replayed away just as well, for the few updates that one batch serves.
#
# ## Change this, predict, run
#
# Draw a router that is surer of itself: `weights = weights._replace(router_ED=4 * weights.router_ED)` after it is
# drawn. Will fewer tokens change experts? (Think of the gap between the second and the third score, and of the
# rounding error, which grows with the number that is rounded.)
#
# ## What you can now do
#
# Say why two runs of one model choose other experts and why that is not a small error; replay choices and recompute
# gates, and say what the router loses otherwise; read the ratio's tail as the meter for it.
#
# ## Exercises
#
# **1.** How much must be handed over, for V3 and an answer of 10,000 tokens?
#
# <details><summary>Solution</summary>
#
# 58 layers · 8 experts · 1 byte (256 experts fit one) = 464 bytes a token, 4.6 MB an answer. The latents of the cache
# are 150 times as much.
#
# </details>
#
# **2.** Should the balancing bias (chapter 03) be counted from replayed choices?
#
# <details><summary>Solution</summary>
#
# They are what ran, so they are the load. But they say what the *sampler's* router preferred; whoever moves the bias by
# them corrects a router that is a batch older. Either way: say which one is counted.
#
# </details>
#
# **3.** Why does clipping the ratio not repair it?
#
# <details><summary>Solution</summary>
#
# The clip silences a token that lies beyond the edge on its advantage's side, and lets it through on the other. Tokens
# with other experts lie on both sides by accident: half of the damage passes, and the tokens that are silenced are no
# random sample.
#
# </details>
