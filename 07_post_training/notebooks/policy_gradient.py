# %% [markdown]
# # The policy gradient
#
# **The question.** How do you climb a hill if all you can do is to ask, here and there, how high it is?
#
# A cook gets one number back from the dining room for each dish: a grade. The grade has no slope. Nobody can tell her
# by how much it would rise with a gram more of salt; she can only cook again. Yet there is one thing that she does
# know, and can turn: *how often she cooks what*. If salty dishes get better grades than her dishes do on average, she
# will salt more often. It is a poor sort of learning, and it works with any grader at all.
#
# Her guests are kind, though: they give 10 for the worst dish and 14 for the best. What she should make of *that* is
# the second half of the notebook.
#
# In words: the **policy** $\pi$ is a distribution over actions (for us, answers), the **reward** $R$ is the number that
# comes back for the action that was drawn, and what we want to raise is the **expected reward** $J$, the average over
# everything that the policy might do, each as often as it does it.

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
from utils.gradient_check import central_difference

# %% [markdown]
# ## Numbers to follow with a pencil
#
# Four dishes, cooked with probabilities 1/2, 1/4, 1/8, 1/8; grades 11, 10, 10, 14. On average
# $J = 5.5 + 2.5 + 1.25 + 1.75 = 11$.
#
# How does $J$ change with the logit $z_v$ of dish $v$? With four dishes it can be written down: $\partial J / \partial
# z_v = \pi_v (R_v - J)$. Dish 0 has exactly the average grade: 0. Dish 1: $1/4 \cdot (10 - 11) = -0.25$. Dish 3: $1/8
# \cdot (14 - 11) = 0.375$. More of 3, less of 1 and 2.
#
# (Why: raising $z_v$ raises $\pi_v$ by $\pi_v (1 - \pi_v)$ and takes $\pi_v \pi_u$ from every other $u$. So $J$ changes
# by $\pi_v (1 - \pi_v) R_v - \sum_{u \ne v} \pi_v \pi_u R_u$. Put the $-\pi_v \pi_v R_v$ of the first part into the
# sum: $J$ gains $\pi_v R_v$ and loses $\pi_v \sum_u \pi_u R_u = \pi_v J$.)

# %%
pi, R = np.array([1 / 2, 1 / 4, 1 / 8, 1 / 8]), np.array([11.0, 10.0, 10.0, 14.0])
J = (pi * R).sum()
print("expected reward", J, "  its slope by each logit", pi * (R - J))
assert np.allclose(pi * (R - J), exact_gradient(np.log(pi), R))
z = np.log(pi)  # and by trying
assert np.allclose(central_difference(lambda: np.exp(log_softmax(z)) @ R, z), pi * (R - J), rtol=0, atol=1e-8)

# %% [markdown]
# With a language model nobody can write that sum: there are more answers than atoms. But we can *draw* answers.
#
# ## The derivation
#
# Letters: $\nabla$ is the slope by all weights at once; $\sum_a$ runs over all actions; $b$ is any number.
#
# 1. $J = \sum_a \pi_a R_a$, and only $\pi$ depends on the weights: $\nabla J = \sum_a R_a \nabla \pi_a$.
# 2. $\nabla \pi_a = \pi_a \nabla \log \pi_a$, by the chain rule for the logarithm.
# 3. So $\nabla J = \sum_a \pi_a R_a \nabla \log \pi_a$: an *average over actions drawn from π*, of reward times the
# slope of the log-probability of what was drawn.
# 4. Drawing the slope alone averages to nothing: $\sum_a \pi_a \nabla \log \pi_a = \nabla \sum_a \pi_a = \nabla 1 = 0$.
# 5. So any number $b$ that does not depend on the draw may be subtracted: $\nabla J$ is also the average of
#    $(R_a - b) \nabla \log \pi_a$. The number is called a *baseline*, $R - b$ the *advantage*.
#
# The grade was never differentiated. It is the weight, the handle of `token_policy`, on what was drawn.
#
# ## Build it: an estimate from a few draws
#
# How does one draw from $\pi$, if its logarithms are at hand? Add to each a random number of a certain kind (*Gumbel*
# noise) and take the largest: action $a$ wins with probability exactly $\pi_a$. The whole chapter draws its tokens so.


# %%
def naive_estimate(rng, n_answers, baseline):
    """Draw a few actions; average (reward - baseline) times (one-hot - probability)."""
    total = np.zeros(4)
    for _ in range(n_answers):
        a = (np.log(pi) + rng.gumbel(size=4)).argmax()  # a draw from pi, as the module draws
        one_hot = np.arange(4) == a
        total += (R[a] - baseline) * (one_hot - pi)
    return total / n_answers


for baseline, judge in ((0.0, no_baseline), (11.0, lambda reward: reward - 11.0)):
    module = estimate_gradients(np.random.default_rng(7), np.log(pi), R, judge, 1, 4)[0]
    assert np.allclose(naive_estimate(np.random.default_rng(7), 4, baseline), module, rtol=0, atol=1e-14)


# %%
rng = np.random.default_rng(0)
print("exact            ", pi * (R - J))
for baseline in (0, 11):
    tries = np.array([naive_estimate(rng, 4, baseline) for _ in range(2000)])
    print(f"baseline {baseline:>2}: mean", tries.mean(axis=0).round(2), " spread of one", tries.std(axis=0).round(2))

# %% [markdown]
# Both are right on average. But the gradient is 0.47 long, and *one* estimate from four draws without a baseline is off
# by 4.6 (the root of the four squared spreads): ten times as much. With it, by 0.6. Kind guests say "more of this!"
# whatever was cooked; only the differences between their grades say anything.
#
# ## Build it: which baseline?
#
# We do not know $J$. But we may draw several answers to the *same* question, a **group**, and take their mean. Two
# ways: the mean of the whole group, or for each answer the mean of the *others*.


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
assert found["leave_one_out"] < found["no_baseline"] / 20
saved = 1 - found["leave_one_out"] / found["no_baseline"]
labels = ["no baseline", "mean of the group", "mean of the others"]
values = [round(v, 2) for v in found.values()]
title = f"The others' mean takes {saved:.0%} of the variance away"
plot_bars(labels, values, [WORSE, "ink", BETTER], title, "variance of one estimate from 4 draws")

# %% [markdown]
# Why then is the grey bar the shortest? The mean of the *group* holds the own reward, which step 5 does not allow. With
# $M$ answers each advantage is shrunk by $1 - 1/M$, to 3/4 with four, and so is all that is made of it: the gradient to
# 3/4 of its length, the variance to $(3/4)^2$ of 0.44, which is 0.25. Nothing was gained; the estimate is the same one,
# made shorter. The direction is right, and a learning rate hides it. (Look at its line above: 47 standard errors off
# the truth, all of them length.) GRPO does that, and divides by the spread as well.
#
# ## Build it: a whole answer
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
handle = [[-advantage[b] / 2 * written[b, s] for s in range(5)] for b in range(2)]
assert np.allclose(handle, reinforce_backward(1.0, cache))
print("g of every token, two answers of 5 and of 2 tokens:\n", np.array(handle) + 0.0)

# %% [markdown]
# ## The experiment: noise is time
#
# Let the cook climb from equal probabilities, 4 dishes a step, with each baseline; the mean of 20 climbs. Only dish 3
# is best.


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
stuck = {name: (path[:, -1] < 12).mean() for name, path in paths.items()}
assert stuck["leave_one_out"] == 0 < stuck["no_baseline"]
curves = {name: (range(150), p.mean(axis=0)) for name, p in zip(labels, paths.values())}
title = f"Without a baseline {stuck['no_baseline']:.0%} of the climbs end at a worse dish"
plot_curves(curves, [WORSE, "ink", BETTER], title, "step", "expected reward (mean of 20)", ylim=(9.8, 14.2))

# %% [markdown]
# A policy that stops trying cannot learn any more: what is never drawn is never graded. Noise does not only slow the
# climb, it can end it, at whatever happened to be praised first.
#
# ## Change this, predict, run
#
# The guests become strict: 10 less for every dish, so that the grades are 1, 0, 0, 4. Nothing about the dishes has
# changed. Predict for each of the three baselines: does its variance change, and by how much? How many of 20 climbs end
# at a worse dish now?
#
# <details><summary>Afterwards</summary>
#
# With a group's mean nothing changes, to the last digit of rounding: 10 is subtracted from the reward and from the mean
# alike. Without a baseline the variance falls to a fortieth, and no climb is lost. It was never the *hill* that was
# hard, only the height at which it stands. (Which is why "reward +1 for right, 0 for wrong" and "0 for right, −1 for
# wrong" are two different trainings without a baseline, and one and the same with it.)
#
# </details>

# %%
grades, R = R, R - 10
for baseline in (no_baseline, mean_baseline, leave_one_out):
    generous, strict = (
        measure_noise(estimate_gradients(np.random.default_rng(1), np.log(pi), r, baseline, 20_000, 4), exact)[1]
        for r in (grades, R)
    )
    worse = sum(climb(baseline, seed)[-1] < 2 for seed in range(20))
    print(f"{baseline.__name__:<14} variance {generous:.3f} -> {strict:.3f}; at a worse dish {worse} of 20")
R = grades

# %% [markdown]
# ## What you can now do
#
# Derive the policy gradient in five lines; say what a baseline changes (variance) and what not (the mean); say by how
# much a mean that holds the own reward shortens it. Next: `grpo`, which makes a training of it.
#
# ## Exercises
#
# Graded: `advantage_over_others` (`make check CH=07`). By thought alone:
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
