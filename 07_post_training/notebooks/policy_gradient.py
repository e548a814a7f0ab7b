# %% [markdown]
# # How do you climb a hill that you can only ask about?
#
# A cook gets one word back from the dining room: a grade. The grade has no slope. Nobody can tell her by how much it
# would rise with a gram more of salt; she can only cook again. Yet there is one thing that she does know, and can turn:
# *how often she cooks what*. If dishes with more salt get better grades than her average, she will salt more often.
#
# That is all of REINFORCE. The *policy* π is a distribution over actions (here: answers), the *reward* R is a number
# that comes back for the action that was drawn. What we want to raise is the *expected* reward J: the average over
# everything that the policy might do.

# %%
import numpy as np
from policy_gradient import (
    estimate_gradients,
    exact_gradient,
    leave_one_out,
    mean_baseline,
    measure_noise,
    no_baseline,
    reinforce_backward,
    reinforce_forward,
)
from token_policy import log_softmax

# %%
from utils.drawings_07 import BETTER, WORSE, plot_bars, plot_curves

# %% [markdown]
# ## Numbers to follow with a pencil
#
# Four actions with probabilities 1/2, 1/4, 1/8, 1/8 and rewards 11, 10, 10, 14. On average
# $J = 5.5 + 2.5 + 1.25 + 1.75 = 11$.
#
# How does J change with the logit of action $v$? It can be written down: $\partial J / \partial z_v = \pi_v (R_v - J)$.
# Action 0 has exactly the average reward: 0. Action 1: $1/4 \cdot (10 - 11) = -0.25$. Action 3: $1/8 \cdot 3 = 0.375$.

# %%
pi, R = np.array([1 / 2, 1 / 4, 1 / 8, 1 / 8]), np.array([11.0, 10.0, 10.0, 14.0])
J = (pi * R).sum()
print("expected reward", J, "  its slope by each logit", pi * (R - J))
assert np.allclose(pi * (R - J), exact_gradient(np.log(pi), R))

# %% [markdown]
# With a language model nobody can write that sum: there are more answers than atoms. But we can *draw*.
#
# ## The derivation
#
# 1. $J = \sum_a \pi_a R_a$, and only $\pi$ depends on the weights: $\nabla J = \sum_a R_a \nabla \pi_a$.
# 2. $\nabla \pi_a = \pi_a \nabla \log \pi_a$, by the chain rule for the logarithm.
# 3. So $\nabla J = \sum_a \pi_a R_a \nabla \log \pi_a$: an *average over actions drawn from π*, of reward times the
# slope of the log-probability of what was drawn.
# 4. Drawing the slope alone averages to nothing: $\sum_a \pi_a \nabla \log \pi_a = \nabla \sum_a \pi_a = \nabla 1 = 0$.
# 5. So any number $b$ that does not depend on the draw may be subtracted: $\nabla J$ is also the average of
#    $(R_a - b) \nabla \log \pi_a$. The number is called a *baseline*, $R - b$ the *advantage*.


# %%
def naive_estimate(rng, n_answers, baseline):
    """Draw a few actions; average (reward - baseline) times (one-hot - probability)."""
    total = np.zeros(4)
    for _ in range(n_answers):
        a = rng.choice(4, p=pi)
        one_hot = np.arange(4) == a
        total += (R[a] - baseline) * (one_hot - pi)
    return total / n_answers


# %%
rng = np.random.default_rng(0)
print("exact            ", pi * (R - J))
for baseline in (0, 11):
    tries = np.array([naive_estimate(rng, 4, baseline) for _ in range(2000)])
    print(f"baseline {baseline:>2}: mean", tries.mean(axis=0).round(2), " spread of one", tries.std(axis=0).round(2))

# %% [markdown]
# Both are right on average. But *one* estimate from four draws is, without a baseline, off by several times its own
# length. Rewards around 11 say "more of this!" whatever was drawn; only the differences between those shouts matter.
#
# ## Which baseline?
#
# We do not know J. But we may draw several answers to the *same* question, and take their mean. Two ways: the mean of
# the whole group, or for each answer the mean of the *others*.


# %%
def naive_leave_one_out(rewards):
    """Each reward minus the mean of the others."""
    advantages = []
    for i, r in enumerate(rewards):
        others = [x for j, x in enumerate(rewards) if j != i]
        advantages.append(r - sum(others) / len(others))
    return advantages


group = np.array([[11.0, 10, 14, 11]])
assert np.allclose(naive_leave_one_out(group[0].tolist()), leave_one_out(group))
print("others' mean:", leave_one_out(group)[0].round(2), "  group's mean:", mean_baseline(group)[0])

# %%
exact, found = exact_gradient(np.log(pi), R), {}
for baseline in (no_baseline, mean_baseline, leave_one_out):
    estimates = estimate_gradients(rng, np.log(pi), R, baseline, 20_000, 4)
    off, variance = measure_noise(estimates, exact)
    length = (estimates.mean(axis=0) @ exact) / (exact @ exact)
    found[baseline.__name__] = variance
    print(f"{baseline.__name__:<14} {off:5.1f} standard errors off, length {length:.2f}, variance {variance:6.3f}")

# %%
saved = 1 - found["leave_one_out"] / found["no_baseline"]
labels = ["no baseline", "mean of the group", "mean of the others"]
values = [round(v, 2) for v in found.values()]
plot_bars(
    labels,
    values,
    ["ink", "rope", "content"],
    f"The others' mean takes {saved:.0%} of the variance away",
    "variance of one estimate from 4 draws",
)

# %% [markdown]
# The mean of the *group* holds the own reward: each advantage is shrunk by $1 - 1/M$, and so is the gradient, to 3/4 of
# its length with four answers. The direction is right, and a learning rate hides it. GRPO does that (and divides by the
# spread as well).
#
# ## A whole answer
#
# An answer is many tokens and one reward. $\log \pi$ of the answer is the sum over tokens, so *every* token gets the
# advantage of its answer, the brilliant one and the silly one alike. Which of them earned it, only many answers can
# tell.

# %%
logp = -rng.random((2, 5))
written = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]], dtype=bool)
advantage = np.array([1.0, -0.5])
loss, cache = reinforce_forward(logp, advantage, written)
naive = -sum(advantage[b] * logp[b, s] for b in range(2) for s in range(5) if written[b, s]) / 2
assert np.isclose(loss, naive)
print(reinforce_backward(1.0, cache))

# %% [markdown]
# ## The experiment: noise is time
#
# Climb from equal probabilities, 4 draws a step, with each baseline; the mean of 20 climbs. Only action 3 is best.


# %%
def climb(baseline, seed, n_steps=150, rate=0.3):
    """Step along estimates; return the expected reward on the way."""
    rng, z, path = np.random.default_rng(seed), np.zeros(4), []
    for _ in range(n_steps):
        path.append(np.exp(log_softmax(z)) @ R)
        z = z + rate * estimate_gradients(rng, z, R, baseline, 1, 4)[0]
    return path


# %%
paths = {b.__name__: np.array([climb(b, s) for s in range(20)]) for b in (no_baseline, mean_baseline, leave_one_out)}
stuck = (paths["no_baseline"][:, -1] < 12).mean()
curves = {name: (range(150), p.mean(axis=0)) for name, p in paths.items()}
title = f"Without a baseline {stuck:.0%} of the climbs end at a worse action"
plot_curves(curves, ["ink", "rope", "content"], title, "step", "expected reward (mean of 20)", ylim=(9.8, 14.2))

# %% [markdown]
# A policy that stops trying cannot learn any more: what is never drawn is never graded. Noise does not only slow the
# climb, it ends it, at whatever happened to be shouted for first.
#
# ## Change this, predict, run
#
# Subtract 10 from all rewards (`R = R - 10` in the pencil cell, all cells again). Which of the three curves changes,
# and which stay to the last digit?
#
# ## What you can now do
#
# Derive the policy gradient in five lines; say what a baseline changes (variance) and what not (the mean); say by how
# much a mean that holds the own reward shortens it.
#
# ## Exercises
#
# **1.** All answers of a group are right. What is their gradient, with and without a baseline?
#
# <details><summary>Solution</summary>
#
# With: 0, there is nothing to prefer. Without: each is made likelier, at the cost of answers that were not drawn and
# may be just as right.
#
# </details>
#
# **2.** Is the loss of `reinforce_forward` a measure of progress?
#
# <details><summary>Solution</summary>
#
# No. Its value is a by-product; with a baseline it is near 0 all the time. Only its gradient means something. Watch the
# reward on held-out questions.
#
# </details>
#
# **3.** Why must no gradient pass through the advantage, although the mean reward depends on the policy?
#
# <details><summary>Solution</summary>
#
# In step 3 the reward is a number that comes back from outside. In step 5 the baseline may be anything that is constant
# for the draw. Differentiating it adds a term that no line of the derivation has.
#
# </details>
