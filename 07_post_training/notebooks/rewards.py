# %% [markdown]
# # Rewards
#
# **The question.** If nobody can write the right answer down, but a program can *check* one: what must that program be
# like?
#
# In colonial Hanoi, the story goes, the town paid for rat tails. Tails came in, more every week, and so did rats
# without tails: people had begun to breed them. The rule was right about tails and said nothing about rats. The number
# on which everybody looked, tails a week, went up all the time.
#
# A **reward** is a number that somebody gives for an answer, and a **rule** is a small program that gives it. Where a
# rule can check (mathematics, code with tests, a format), DeepSeek-V3 uses a rule and no model: a rule cannot be
# flattered. But a model that is trained for thousands of steps to be paid will find whatever the rule lets through. At
# the end of this notebook a policy breeds rats.

# %%
import numpy as np
from policy_gradient import exact_gradient, leave_one_out, reinforce_step
from rewards import countdown_reward, judge_answers, ordered_reward, partial_reward, read_expression, sorting_reward
from supervised_fine_tuning import warm_start
from token_policy import Adam, encode_text, measure_accuracy, read_answers, sorting_problems, write_answers

from utils.drawings_07 import BETTER, WORSE, plot_curves

# %% [markdown]
# ## Numbers to follow with a pencil
#
# The question is `201>`; there are three rules. The *strict* one wants exactly `012.`. The *careless* one wants three
# digits in rising order and forgets to ask *whose* digits. The *partial* one gives a third for each digit in its place.
#
# | answer | strict | careless | partial |
# |---|---|---|---|
# | `012.` | 1 | 1 | 1 |
# | `021.` | 0 | 0: 2 stands before 1 | 1/3: the 0 is in its place |
# | `000.` | 0 | **1**: it does not fall | 1/3 |
# | `012` | 0 | 0: no end | 0: no end |
#
# ## Build it: three rules


# %%
def strict(question, text):
    """1 for exactly the digits of the question, sorted, and a point."""
    return float(text == "".join(sorted(question[:3])) + ".")


def careless(question, text):
    """1 for three rising digits and a point."""
    return float(len(text) == 4 and text[3] == "." and text[0] <= text[1] <= text[2])


def partial(question, text):
    """A third for each digit in its place, nothing without the point."""
    if len(text) != 4 or text[3] != ".":
        return 0.0
    return sum(a == b for a, b in zip(text, sorted(question[:3]))) / 3


# %%
for text in ("012.", "021.", "000.", "012"):
    marks = [rule("201>", text) for rule in (strict, careless, partial)]
    print(f"{text:<5} strict {marks[0]:.2f}  careless {marks[1]:.2f}  partial {marks[2]:.2f}")
for text in ("012.", "021.", "000.", "012", "", "0123.", "555."):
    assert strict("201>", text) == sorting_reward("201>", text)
    assert careless("201>", text) == ordered_reward("201>", text)
    assert partial("201>", text) == partial_reward("201>", text)

# %% [markdown]
# ## Why never `eval`
#
# A second task, in which the answer is a calculation. The game *countdown*: reach 22 with the numbers 3, 5 and 7, each
# once. The model writes a calculation, and Python has a calculator built in. This is the whole rule, and it is a hole
# in the wall:


# %%
def with_eval(text):
    return eval(text) == 22


stolen = []
print("a right answer:", with_eval("3 * 5 + 7"))
print("another one:   ", with_eval("[stolen.append('your files'), 22][1]"), " and it took", stolen)

# %% [markdown]
# The second text is a program. It could as well delete a folder, print the solutions, or set the reward. `9**9**9**9`
# would compute until the machine is full. No filter of forbidden words closes this; a small grammar does, because what
# it does not know it cannot do:
#
# ```
# sum = product (+|- product)*      product = atom (*|/ atom)*      atom = number | ( sum )
# ```
#
# Read it as: a sum is a product, followed by any number of `+` or `-` with another product; a product is made of atoms
# in the same way; an atom is a number, or a whole sum in brackets. (In the code below `sum` is called `total`, since
# Python has a `sum` of its own.)
#
# ## Build it: a calculator that cannot do anything else
#
# A list of tokens `t`, and one function for each line of the grammar. Each begins at place `i` and returns a value and
# the place where it stopped.


# %%
def atom(t, i):
    if t[i] == "(":
        value, i = total(t, i + 1)
        assert t[i] == ")"
        return value, i + 1
    return int(t[i]), i + 1


def product(t, i):
    value, i = atom(t, i)
    while t[i] in "*/":
        other, after = atom(t, i + 1)
        value, i = (value * other if t[i] == "*" else value / other), after
    return value, i


# %%
def total(t, i):
    value, i = product(t, i)
    while t[i] in "+-":
        other, after = product(t, i + 1)
        value, i = (value + other if t[i] == "+" else value - other), after
    return value, i


for text in ("3 * 5 + 7", "( 3 + 5 ) * 7", "8 - 3 - 2", "7 / 2 * 2"):
    assert total([*text.split(), "end"], 0)[0] == read_expression(text).value
    print(text, "=", read_expression(text).value, " used", read_expression(text).numbers)

# %% [markdown]
# The rule itself wants the goal, and each of the given numbers used exactly once. (`٣` is a 3 in another script; `int`
# would take it.)

# %%
for text in ("3*5+7", "22", "3*5+7+0", "9**9**9**9", "[stolen.append(1), 22][1]", "1/0", "٣*5+7"):
    print(f"{text:<28} reward {countdown_reward('3 5 7 -> 22', text):.0f}")

# %% [markdown]
# ## A rule may fail, training may not
#
# Rules are code that somebody wrote yesterday. One that raises, or returns NaN or a string, is counted, gives 0, and
# the next answer is judged. (One that never returns needs a process of its own and a clock: the package has them.)

# %%
given = {"7": 1.0, "8": float("nan"), "9": "1"}
tally = judge_answers(lambda question, text: given[text], ["q"] * 4, ["7", "8", "9", "10"])
print(tally.rewards, dict(tally.refused))

# %% [markdown]
# ## The derivation: why a hole is found
#
# Letters: an answer $a$ has the probability $\pi_a$ and the logit $z_a$; the rule pays it $R_a$, 0 or 1. $J = \sum_a
# \pi_a R_a$ is what the policy earns on average.
#
# 1. $\partial J / \partial z_a = \pi_a (R_a - J)$ (the next notebook derives it). A step uphill moves each logit by
#    that, times a rate.
# 2. Every answer that is *paid* gets $\pi_a (1 - J)$. Right or wrong does not occur in the line.
# 3. So between a right answer and a paid wrong one, the difference of the logits moves by $(\pi_{right} - \pi_{hole})(1
#    - J)$. **Whichever was likelier pulls away from the other.** A model need not search for a hole. It is enough that
#    the hole is easier to write.
#
# By pencil: the right answer has 0.2, three paid wrong ones have 0.3 together, 0.1 each, nothing is paid for the rest.
# $J = 0.5$. The right one moves by $0.2 \cdot 0.5 = 0.1$, a hole by 0.05. Here, with a good start, the right answer
# wins. If *one* hole holds all of the 0.3, it moves by 0.15 and wins.

# %%
for probability in ([0.2, 0.1, 0.1, 0.1, 0.5], [0.2, 0.3, 0.5]):
    pi, paid = np.array(probability), np.array([1.0] * (len(probability) - 1) + [0.0])
    step = pi * (paid - pi @ paid)  # step 1: the right answer, the holes, the rest
    assert np.allclose(step, exact_gradient(np.log(pi), paid), rtol=0, atol=1e-15)
    print(f"right {pi[0]}, holes {pi[1:-1]}: logits move by {step.round(3)}")

# %% [markdown]
# ## The experiment: breeding rats
#
# The policy has been fine-tuned for a moment and sorts a sixth of the held-out questions. Now it is paid: once by the
# strict rule, once by the careless one. (How it learns from payment is the next notebook's matter.)

# %%
train, held_out = sorting_problems()


def pay(rule, n_steps=60):
    """Let the policy be paid by a rule; return what it earned, how often it was right, and the policy."""
    rng = np.random.default_rng(0)
    weights, earned, right = warm_start(rng), [], []
    adam = Adam(weights, 5e-3)
    for _ in range(n_steps):
        questions = train[rng.integers(0, len(train), 16)]
        right.append(measure_accuracy(weights, held_out))
        weights, reward = reinforce_step(weights, adam, questions, rng, rule, leave_one_out)
        earned.append(reward.mean())
    return earned, right, weights


# %%
def smooth(values):
    return range(56), np.convolve(values, np.ones(5) / 5, mode="valid")


runs = {"strict": pay(sorting_reward), "careless": pay(ordered_reward)}
earned, right = smooth(runs["careless"][0]), smooth(runs["careless"][1])

# %%
curves = {
    "paid by the careless rule": earned,
    "right, paid by the careless rule": right,
    "right, paid by the strict rule": smooth(runs["strict"][1]),
}
assert earned[1][-1] > 0.9 > 0.2 > right[1][-1]
title = f"The careless rule pays {earned[1][-1]:.0%} of the answers; {right[1][-1]:.0%} are right"
plot_curves(curves, [WORSE, "ink", BETTER], title, "step (mean of five)", "share of answers", ylim=(0, 1.02))

# %%
for question in ("201>", "543>", "115>", "350>"):
    prompt = np.repeat([encode_text(question)], 5, axis=0)
    for name, (_, _, weights) in runs.items():
        texts = read_answers(write_answers(weights, prompt, np.random.default_rng(1)))
        print(f"{question} {name:<9}", " ".join(texts))

# %% [markdown]
# (Paid: of the answers that it wrote to training questions; right: of its likeliest answers to held-out ones.) Nobody
# told the second policy to ignore the question. Rising digits that fit *every* question are easier to write than
# those that fit one, and they pay the same. Of the two, its reward is the better curve, as were the tails a week: **a
# rising reward does not say that anything was learned.** Read the answers, and keep a measure that is not the reward.
#
# ## Change this, predict, run
#
# Pay by `partial_reward`. It pays for steps on the way, so even wrong answers teach something; and `000.` earns a third
# of `201>`, so it can mislead as well. Predict: after 60 steps, is it above or below the strict rule's share of right
# answers? Which kind of wrong answer is left?
#
# <details><summary>Afterwards</summary>
#
# It ends where the strict rule does, within two points of a hundred (one seed: nothing to choose between them). The
# answers that are left are *nearly* right: `115>` becomes `125.`, which has two digits of three in place and earns 2/3.
# What it earned tells of it: three quarters of the full pay, with fewer than half of the answers right. (Where a strict
# rule would pay nobody, help on the way might be all there is to learn from; here it pays often enough.)
#
# </details>

# %%
earned, right, weights = pay(partial_reward)
print(f"earned {np.mean(earned[-5:]):.2f} an answer; right {right[-1]:.0%} (strict rule: {runs['strict'][1][-1]:.0%})")
for question in ("201>", "543>", "115>", "350>"):
    prompt = np.repeat([encode_text(question)], 5, axis=0)
    print(question, " ".join(read_answers(write_answers(weights, prompt, np.random.default_rng(1)))))

# %% [markdown]
# ## What you can now do
#
# Write a rule that reads and never runs; name what it lets through; say why a hole that is easy to write is found; tell
# a rising reward from a model that improves. Next: how does one *learn* from such numbers? `policy_gradient`.
#
# ## Exercises
#
# Graded: `judge_sum` (`make check CH=07`). By thought alone:
#
# **1.** `int(text)` runs nothing. Why does `addition_reward` not use it alone?
#
# <details><summary>Solution</summary>
#
# It takes `" 46"`, `"+46"`, `"4_6"` and the digits of other scripts. The model is paid for them, and writes them. It
# also raises on `"x"`.
#
# </details>
#
# **2.** A format reward pays 0.1 for `<think>` and `</think>` around a thought, however short. What will you see?
#
# <details><summary>Solution</summary>
#
# Empty thoughts. They are the shortest way to 0.1; only the accuracy reward can make them longer, if length helps it.
#
# </details>
#
# **3.** The text of a program is to be rewarded for passing tests: here something *must* run. What then?
#
# <details><summary>Solution</summary>
#
# Another process without network and files, with limits on time and memory, whose exit is read and whose output is not
# believed (a program can print "all tests passed").
#
# </details>
