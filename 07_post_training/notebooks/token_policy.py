# %% [markdown]
# # What does it mean to make an answer likelier?
#
# You ask a model to sort `201`. It writes `021.`. A friend who knows the right answer may tell you *write 012*; another
# one only shakes his head. Both want the same of you: turn the model a little, so that something it can write becomes
# likelier, or less likely. This chapter is about what they can tell you. First we need the handle to turn.
#
# A model that writes is called a *policy* here: a rule that says with which probability it does what. Its answer is a
# row of tokens, each drawn from a distribution. So an answer has a probability, the product of its tokens', and the
# logarithm of it is a sum: one number for each token.

# %%
import numpy as np
from token_policy import (
    PolicyWeights,
    encode_text,
    read_answers,
    score_answers_backward,
    score_answers_forward,
    sorting_problems,
    token_log_probs_backward,
    token_log_probs_forward,
    write_answers,
)

from utils.drawings_07 import draw_chain, plot_curves

# %%
names = ["tokens so far", "window of 7", "hidden row", "logits z", "log π(token)"]
kinds = ["ink", "ink", "content", "content", "ink"]
draw_chain(names, kinds, ["the last 7", "tanh", "head", "softmax"], "From a text to the probability of its next token")

# %% [markdown]
# ## Numbers to follow with a pencil
#
# Three tokens, logits $z = (\log 2, \log 1, \log 1)$. The softmax makes probabilities of them: 2/4, 1/4, 1/4. Suppose
# that the second token was written. Its log-probability is $\log 1/4 = -1.386$.
#
# Which way must every logit go, to raise it? Its own up: by 1 minus its probability, 3/4. The others down: by their
# probabilities, 2/4 and 1/4. The three numbers sum to zero: what one token wins, the others lose.

# %%
z = np.log([2.0, 1.0, 1.0])
probability = np.exp(z) / np.exp(z).sum()
written = 1
slope = -probability
slope[written] += 1
print("log-probability", np.log(probability[written]).round(3), "  slope by each logit", slope)

# %%
h = 1e-6  # the same by trying: raise one logit a little, look at log pi again
for v in range(3):
    up = z + h * np.eye(3)[v]
    now = up[written] - np.log(np.exp(up).sum())
    print(f"logit {v}: {(now - np.log(probability[written])) / h:+.3f}")

# %% [markdown]
# ## The derivation
#
# Letters: $z_v$ is the logit of token $v$, $\pi_v$ its probability, $a$ the token that was written.
#
# 1. $\log \pi_a = z_a - \log \sum_u e^{z_u}$: the logarithm of a softmax.
# 2. The first part has slope 1 by $z_a$ and 0 by every other logit.
# 3. The second part has slope $e^{z_v} / \sum_u e^{z_u} = \pi_v$ by $z_v$.
# 4. Together: $\partial \log \pi_a / \partial z_v = [v = a] - \pi_v$.
# 5. A whole answer is $\log \pi(o) = \sum_s \log \pi(o_s)$: every token has its own row of logits and its own slope.
#
# Any loss that looks at log-probabilities only, needs to say just one thing for each token: $g_s = \partial L /
# \partial \log \pi(o_s)$. The rest is always the same: multiply by step 4, and go back through the network.


# %%
def naive_slope(logits, tokens, g):
    """One row at a time: g times (one-hot - probability)."""
    rows = []
    for z, a, weight in zip(logits, tokens, g):
        probability = np.exp(z) / np.exp(z).sum()
        one_hot = np.arange(len(z)) == a
        rows.append(weight * (one_hot - probability))
    return np.array(rows)


# %%
rng = np.random.default_rng(0)
logits, tokens, g = rng.standard_normal((5, 7)), rng.integers(0, 7, 5), rng.standard_normal(5)
_, cache = token_log_probs_forward(logits[None], tokens[None])
ours = token_log_probs_backward(g[None], cache)[0]
assert np.allclose(naive_slope(logits, tokens, g), ours, atol=1e-15)
print("naive and module agree")

# %% [markdown]
# ## Writing is drawing
#
# The policy of this chapter sees the last seven tokens: the whole question and what it has written so far. Untrained,
# it writes almost anything.

# %%
weights = PolicyWeights.init(rng)
train, held_out = sorting_problems()
answers = write_answers(weights, np.repeat([encode_text("201>")], 6, axis=0), rng)
for text, logp in zip(read_answers(answers), answers.logp_BS.sum(axis=1)):
    print(f"201>{text:<5} log-probability {logp:6.2f}, so one in {np.exp(-logp):,.0f}")

# %%
# asked afterwards, about all rows at once, it gives the same numbers: the text was written by these weights
again, _ = score_answers_forward(weights, answers.token_BT)
assert np.allclose(again[answers.written_BS], answers.logp_BS[answers.written_BS])

# %% [markdown]
# ## The experiment: pull at one answer
#
# Take the right answer `012.`, give each of its four tokens $g = -1$ (a loss falls when they become likelier), step
# downhill, look at the probability, and again.

# %%
right = np.array([encode_text("201>012.")])
other = np.array([encode_text("201>021.")])
g = np.zeros((1, 7))
g[:, 3:] = -1
paths = {"012.": [], "021.": []}
for _ in range(31):
    logp, cache = score_answers_forward(weights, right)
    paths["012."].append(logp[0, 3:].sum())
    paths["021."].append(score_answers_forward(weights, other)[0][0, 3:].sum())
    weights = PolicyWeights(*(w - 0.02 * d for w, d in zip(weights, score_answers_backward(g, cache))))

# %%
curves = {name: (range(31), path) for name, path in paths.items()}
gain = np.exp(paths["012."][-1])
plot_curves(
    curves,
    ["content", "ink"],
    f"Pulled 30 times, the right answer is drawn {gain:.0%} of the time",
    "step",
    "log-probability of the whole answer",
)

# %% [markdown]
# ## Change this, predict, run
#
# Set `g[:, 3:] = +1` in the cell before the last and predict both curves. Will the right answer's fall for ever? What
# happens to the size of a step when its probability is already nearly zero? (Step 4: the slope of its own logit is then
# nearly 1, and nothing stops it. Remember this when a loss pushes *down*: the clip of `grpo` is there for a reason.)
#
# ## What you can now do
#
# Compute the log-probability of an answer and its slope by every logit; say why any loss over written tokens needs to
# hand back one number for each of them, and no more.
#
# ## Exercises
#
# **1.** Both answers begin with `0`. Why does `021.` become likelier at first, although nobody pulls at it?
#
# <details><summary>Solution</summary>
#
# It shares its first token and its end with the right answer, and the weights of all rows are shared. Its middle falls
# more slowly than these rise.
#
# </details>
#
# **2.** Give $g = -1$ to every token of *every* answer that the policy writes. What does it learn?
#
# <details><summary>Solution</summary>
#
# On average nothing: $\sum_a \pi_a ([v = a] - \pi_v) = \pi_v - \pi_v = 0$. What is written anyway is pulled at.
# The whole of reinforcement learning is in the *differences* between the weights of answers.
#
# </details>
