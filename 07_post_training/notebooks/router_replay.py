# %% [markdown]
# # Router replay
#
# **The question.** Answers are written by one program and learned from by another. Their weights are the same. Are they
# the same *function*? And if not: how far apart, and what helps?
#
# At a help desk two clerks share every call, and a dispatcher picks them by ear. Calls are recorded, and in the evening
# the clerks are trained on them: praised for calls that went well, blamed for others. But the recording is a little
# muffled. The dispatcher, listening again, sometimes hears another name and sends the tape to another clerk. *She* is
# then blamed for words that she never said.
#
# In a mixture of experts (chapter 03) the dispatcher is the router. The **sampler**, which writes, is a fast engine
# with few bits and fused kernels; the **trainer** has more bits. GRPO's ratio $\pi / \pi_{old}$ takes for granted that
# before the first step it is 1.

# %%
import numpy as np
from router_replay import (
    MoeWeights,
    find_rerouted,
    measure_mismatch,
    moe_backward,
    moe_forward,
    recompute_gates_forward,
    round_mantissa,
    round_weights,
)
from token_policy import log_softmax

from utils.drawings_07 import plot_bars, plot_curves, plot_scatter

# %% [markdown]
# ## Numbers to follow with a pencil
#
# Three experts have the scores 0.801, 0.800 and 0.100; the best one is chosen. BF16 keeps 8 significant bits: between
# 0.5 and 1 its numbers lie 1/256 = 0.0039 apart. Both scores round to 0.80078. Now the first of equals is taken, or
# whichever the kernel sees first: the choice hangs on nothing. (E4M3, an FP8 format, keeps 4 significant bits.)
#
# Say that expert 0 would answer 5 and expert 1 would answer $-5$. Rounding 0.801 to 0.80078 changes a smooth function
# by a fraction of a thousandth. Here it changes the answer by 10, or not at all. **The error of a choice is the whole
# difference between two experts, or nothing.**

# %%
scores = np.array([0.801, 0.800, 0.100])
print("as BF16:", round_mantissa(scores, 7), " as E4M3:", round_mantissa(scores, 3))

# %% [markdown]
# ## Build it: a layer that can be told its experts
#
# Letters: a token comes as a row $x$ of $D$ numbers; there are $E$ experts, $A = 2$ of them chosen; the head turns the
# result into logits of $V$ tokens.


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
print("naive and module agree, with experts of their own choice and with given ones")

# %% [markdown]
# ## The experiment: how many tokens change experts?
#
# The sampler keeps its weights in fewer bits, and writes one token for each of 4,000 random rows. The trainer, with the
# same weights in full, is asked how likely that token was. The number to watch is the logarithm of their ratio: 0 is
# what GRPO takes for granted, 0.7 is a factor of two.

# %%
shares, bits = [], {"FP16": 10, "BF16": 7, "E4M3": 3}
for name, kept in bits.items():
    found = measure_mismatch(np.random.default_rng(1), weights, round_weights(weights, kept), x, replay=False)
    far = np.abs(np.log(found.ratio_N))
    shares.append(round(100 * found.rerouted_N.mean(), 3))
    moved = far[found.rerouted_N].mean() if found.rerouted_N.any() else np.nan
    rest = far[~found.rerouted_N].mean()
    count = found.rerouted_N.sum()
    print(f"{name}: {count:>3} tokens with other experts, mean |log ratio| {moved:.2f}; all others {rest:.4f}")

# %%
title = f"Bits decide how many tokens change experts: {shares[1]:.2g} % in BF16, {shares[2]:.2g} % in E4M3"
plot_bars(list(bits), shares, ["routed"] * 3, title, "tokens with other experts, %", " %")

# %% [markdown]
# And *how far off* such a token is does not shrink with the error of rounding, which becomes a hundred times as small
# from the last line to the first: it was computed by other weights. (Two tokens and ten are no measure of an average;
# `python router_replay.py` takes twice as many rows.) Each dot below is a token; on the line both say the same.

# %%
sampler = round_weights(weights, 3)
own, theirs = (moe_forward(w, x) for w in (weights, sampler))
token = (log_softmax(theirs[0]) + rng.gumbel(size=logits.shape)).argmax(axis=1)
rows, moved = np.arange(4000), find_rerouted(own[1], theirs[1])
trainer, writer = (log_softmax(out[0])[rows, token] for out in (own, theirs))
labels, axes = ("same experts", "other experts"), ("log π of the sampler (E4M3)", "log π of the trainer")
plot_scatter(writer, trainer, moved, labels, "Far from the line are those with other experts", axes)

# %% [markdown]
# ## The derivation: take the choice, compute the gates again
#
# The sampler hands over which experts it used: a few small integers for each token and layer. The trainer uses *those*,
# and weighs them by its *own* scores.
#
# In the evening the tape goes to the clerks who took the call, but what *counts* is how the dispatcher would weigh them
# today. Why not take over the weights (the gates) too? Letters: $s_a$ is the score of chosen expert $a$, $g_a = s_a /
# \sum_b s_b$ its gate, $E_a(x)$ what it answers, $y = x + \sum_a g_a E_a(x)$ the output, $L$ the loss.
#
# 1. The choice has no slope: a little change of a score changes no choice.
# 2. So the router learns through the gates alone: $\partial L / \partial g_a = \partial L / \partial y \cdot E_a(x)$.
# 3. And on to its weights: $\partial L / \partial s_a = (\partial L / \partial g_a - \sum_b g_b\, \partial L / \partial
#    g_b) / \sum s$, then through the sigmoid.
# 4. A gate that was *handed over* is a number. Step 3 has nothing to differentiate, and the router stops learning,
#    while everything else goes on and the loss falls.

# %% [markdown]
# ## Build it: replay, and the router's gradient


# %%
def naive_router_gradient(weights, x, chosen, dlogits):
    """One token; steps 2 and 3 for the experts that are given."""
    s = 1 / (1 + np.exp(-weights.router_ED[chosen] @ x))
    g, dy = s / s.sum(), weights.head_VD.T @ dlogits
    dg = np.array([dy @ (weights.down_EDF[e] @ np.tanh(weights.up_EFD[e] @ x)) for e in chosen])
    ds = (dg - g @ dg) / s.sum()
    drouter = np.zeros_like(weights.router_ED)
    drouter[chosen] = np.outer(ds * s * (1 - s), x)
    return drouter


# %%
_, choice, _ = moe_forward(sampler, x)
logits, used, cache = moe_forward(weights, x, choice)
dlogits = rng.standard_normal(logits.shape)
module = moe_backward(dlogits, cache).router_ED
naive = sum(naive_router_gradient(weights, *row) for row in zip(x, choice, dlogits))
assert (used == choice).all()
assert np.allclose(naive, module, rtol=0, atol=1e-9)
today, then = (recompute_gates_forward(w.router_ED, x, choice)[0] for w in (weights, sampler))
print(f"the router's gradient, choices replayed and gates recomputed: {np.abs(module).mean():.1f} on average")
print(f"gates of today and of the sampler differ by up to {np.abs(today - then).max():.3f}")

# %%
replayed = log_softmax(logits)[rows, token]
before, after = (np.exp(np.abs(t - writer)[moved].mean()) for t in (trainer, replayed))
title = f"With replay their ratio is off by {after - 1:.0%}, no longer by a factor of {before:.1f}"
axes = (axes[0], "log π of the trainer, choices replayed")
plot_scatter(writer, replayed, moved, ("same experts", "had other experts"), title, axes)

# %% [markdown]
# What is left is rounding, the same for all tokens. The other cause of another route, that the weights have *moved*
# between writing and learning, is replayed away just as well, for the few updates that one batch serves.
#
# ## The trained model speaks: does it matter there?
#
# The layer above is random: two of its experts have nothing in common. What of a model that was trained? The book's
# model has three layers of 16 experts, 4 of them chosen, and one expert that everybody meets. Let a sampler have its
# weights with fewer bits (the router's in full, as in V3), on 30 stories that neither has read.

# %%
from utils.story_model import new_stories, open_book

book, stories = open_book(), [" ".join(story.sentences) for story in new_stories(30)]
IN_FULL = ("gate.weight", "e_score", "norm", "embed", "lm_head")


def with_bits(kept):
    """The book's model, its large matrices with so many bits behind the leading one."""
    weights = book.model.weights.items()
    return book.with_weights({n: round_mantissa(w, kept) for n, w in weights if not any(k in n for k in IN_FULL)})


trainer_reads = [book.read(text) for text in stories]


# %%
def compare(sampler):
    """Which tokens met other experts in any layer, and |log ratio| of a token that the sampler writes after each."""
    moved, off = [], []
    for text, own in zip(stories, trainer_reads):
        theirs = sampler.read(text)
        moved.append(np.any([find_rerouted(*pair) for pair in zip(own.chosen, theirs.chosen)], axis=0))
        logp = log_softmax(theirs.logits)
        token = (logp + rng.gumbel(size=logp.shape)).argmax(axis=1)[:, None]
        off.append(np.take_along_axis(log_softmax(own.logits) - logp, token, axis=1)[:, 0])
    return np.concatenate(moved), np.abs(np.concatenate(off))


# %%
shares, far, near = [], [], []
for kept in (6, 5, 4, 3, 2):
    moved, off = compare(with_bits(kept))
    shares.append(moved.mean())
    far.append(off[moved].mean())
    near.append(off[~moved].mean())
    print(f"{kept} bits: {moved.sum():>3} of {len(moved)} tokens ({shares[-1]:.1%}) with other experts,", end=" ")
    print(f"off by {far[-1]:.4f}; all others {near[-1]:.4f}")
curves = {"with other experts": (range(6, 1, -1), far), "with the same experts": (range(6, 1, -1), near)}
title = f"E4M3 (3 bits): {shares[3]:.0%} meet other experts, off by {far[3]:.1%}; the others by {near[3]:.1%}"
axes = ("bits kept behind the leading one", "mean |log ratio| of a token")
plot_curves(curves, ["routed", "ink"], title, *axes, xticks=range(2, 7))

# %% [markdown]
# More tokens are sent elsewhere than in the random layer. (At six bits they are few, so that the bend of the purple
# curve there is chance.) Other experts have their price here too: with six bits,
# tokens that met them are four times as far off as the others. But it is half a hundredth and not a factor of two, and
# in E4M3 it drowns in the rounding that all tokens share. Two experts that tie for the fourth place are, in a trained
# model, two who would both do. (That is our reading; what is measured is that the difference is small.) In this
# repository replay gained nothing when a small model was trained by GRPO with a sampler in FP8
# ([docs/post_training.md](../docs/post_training.md)). Those who need it train models of 58 such layers on answers of
# ten thousand tokens. The meter above is cheap; read it before you decide.
#
# ## Change this, predict, run
#
# Back to the random layer. Make the router surer of itself: its weights, and so all its logits, are four times as
# large. Predict: will fewer tokens change experts in E4M3? (Think of the gap between the second and the third score,
# and of the rounding error, which grows with the number that is rounded.)
#
# <details><summary>Afterwards</summary>
#
# As many as before, to the token. All logits are multiplied by four and so are their errors, since a floating-point
# format rounds in proportion; 4 is a power of two, so even the digits are the same. What a router needs to be safe from
# rounding is not large numbers but a *gap* that is large beside them.
#
# </details>

# %%
for factor in (1, 4):
    surer = weights._replace(router_ED=factor * weights.router_ED)
    moved = measure_mismatch(np.random.default_rng(1), surer, round_weights(surer, 3), x, replay=False).rerouted_N
    print(f"router times {factor}: {moved.sum()} of {len(moved)} tokens change experts")

# %% [markdown]
# ## What you can now do
#
# Say why two runs of one model choose other experts and why that is not a small error; replay choices and recompute
# gates, and say what the router loses otherwise; measure on a model of your own whether it needs any of that. Next: the
# last way to learn, from another model. `distillation`.
#
# ## Exercises
#
# Graded: `replayed_gates`, `replayed_gates_backward` (`make check CH=07`). By thought alone:
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
