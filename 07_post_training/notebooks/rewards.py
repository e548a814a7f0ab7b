# %% [markdown]
# # Who says what is right?
#
# In colonial Hanoi, the story goes, the town paid for rat tails. Tails came in, and so did rats without tails: people
# had begun to breed them. The rule was right about tails and said nothing about rats.
#
# A *reward* is a number that somebody gives for an answer, and a *rule* is a small program that gives it. Where a rule
# can check (mathematics, code with tests, a format), DeepSeek-V3 uses a rule and no model: it cannot be flattered. But
# a model that is trained for thousands of steps to be paid, will find whatever the rule lets through.

# %%
import numpy as np
from policy_gradient import leave_one_out, reinforce_step
from rewards import countdown_reward, judge_answers, ordered_reward, partial_reward, read_expression, sorting_reward
from supervised_fine_tuning import warm_start
from token_policy import Adam, encode_text, measure_accuracy, read_answers, sorting_problems, write_answers

from utils.drawings_07 import BETTER, WORSE, plot_curves

# %% [markdown]
# ## Numbers to follow with a pencil
#
# The question `201>`, three rules. The *strict* one wants exactly `012.`. The *careless* one wants three digits in
# rising order. The *partial* one gives a third for each digit in its place.


# %%
def strict(question, text):
    return float(text == "".join(sorted(question[:3])) + ".")


def careless(question, text):
    return float(len(text) == 4 and text[3] == "." and text[0] <= text[1] <= text[2])


for text in ("012.", "021.", "000.", "012"):
    marks = [rule("201>", text) for rule in (strict, careless, partial_reward)]
    print(f"{text:<5} strict {marks[0]:.2f}  careless {marks[1]:.2f}  partial {marks[2]:.2f}")

# %%
for text in ("012.", "021.", "000.", "012", "", "0123.", "555."):
    assert strict("201>", text) == sorting_reward("201>", text)
    assert careless("201>", text) == ordered_reward("201>", text)

# %% [markdown]
# ## Why never `eval`
#
# The game *countdown*: reach 22 with the numbers 3, 5 and 7, each once. The model writes a calculation, and Python has
# a calculator built in. This is the whole rule, and it is a hole in the wall:


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
# Built up by hand: a list of tokens, and one function for each line of the grammar. Each returns a value and the place
# where it stopped.


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
# ## The experiment: the careless rule is found out
#
# The policy has been fine-tuned for a moment and sorts a sixth of the held-out questions. Now it is paid, once by the
# strict rule and once by the careless one. How it learns from payment is the next notebook's matter.

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
    "right, careless rule": right,
    "right, strict rule": smooth(runs["strict"][1]),
}
title = f"The careless rule pays for {earned[1][-1]:.0%} of the answers; {right[1][-1]:.0%} are right"
plot_curves(curves, [WORSE, "ink", BETTER], title, "step", "share of answers", ylim=(0, 1.02))

# %%
for question in ("201>", "543>", "115>", "350>"):
    prompt = np.repeat([encode_text(question)], 5, axis=0)
    for name, (_, _, weights) in runs.items():
        texts = read_answers(write_answers(weights, prompt, np.random.default_rng(1)))
        print(f"{question} {name:<9}", " ".join(texts))

# %% [markdown]
# Nobody told the second policy to ignore the question. Rising digits that fit no question are easier to write than
# those that fit, and they pay the same. Its reward curve is the better one of the two: **a rising reward does not say
# that anything was learned.** Look at answers, and keep a measure that is not the reward.
#
# ## Change this, predict, run
#
# Pay by `partial_reward`. Will it end higher or lower than the strict rule after 60 steps? (It pays for steps on the
# way, so there is something to learn from answers that are wrong. And `000.` is worth a third for `201>`, so there is
# something to be misled by as well.)
#
# ## What you can now do
#
# Write a rule that reads and never runs; name what it lets through; tell a rising reward from a model that improves.
#
# ## Exercises
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
