# %% [markdown]
# # Surprise
#
# **The question.** A forecaster says *rain: 70 %*, and the sun shines. How wrong was he? We need one number for a guess
# about the next token, such that whoever guesses honestly does best.
#
# Two forecasters pay into a box each evening, according to what they said and what came. What should the rule of
# payment be? It should cost nothing to have been certain and right. It should cost more, the less likely you called
# what happened. And there is a third wish: if it rains on Monday *and* on Tuesday, and a forecaster gave both a half,
# then he gave the pair a quarter. Probabilities of independent things **multiply**, but payments should **add**: two
# evenings, two payments. There is one function that turns products into sums, the logarithm. The price is $-\ln p$,
# where $p$ is the probability that was given to what came. We call it the **surprise**.
#
# The box will turn out to be honest: on average nobody can pay less than a forecaster who says what he believes. Every
# language model, DeepSeek-V3 included, is trained to pay as little as possible into this box.

# %%
from collections import Counter

import numpy as np
from surprise import (
    cross_entropy,
    entropy,
    in_bits,
    softmax_backward,
    softmax_forward,
    surprise_backward,
    surprise_forward,
)
from text_tokens import ALPHABET, story_floor, tell_stories

# %%
from utils.drawings_00 import draw_pushes, draw_softmax
from utils.plots_00 import plot_readers
from utils.plots_02 import plot_lines

# %%
p = np.linspace(0.005, 1, 400)
title = "The less likely it was called, the more it costs"
plot_lines({"−ln p": (p, -np.log(p))}, ["content"], title, "probability given to what came", "surprise, nats")

# %% [markdown]
# The unit is the **nat** when the logarithm is the natural one. With the logarithm to base 2 it is the **bit**, the
# worth of one yes-or-no question; 1 bit is $\ln 2 = 0.693$ nats. In this book losses are in nats unless it says bits.
#
# ## Numbers to follow with a pencil
#
# A model does not give probabilities at once. It gives a score for each token, any real number, called **logit**. Two
# steps make probabilities of logits: raise ($e$ to the power of each, so that all are positive), and divide by the sum.
# That is the **softmax**.
#
# Three tokens, *sat*, *ran*, *sang*, with logits $\ln 2 = 0.693$, $0$ and $0$. Raised: $2, 1, 1$. Sum 4. Probabilities
# $\tfrac12, \tfrac14, \tfrac14$.
#
# *sat* comes: surprise $-\ln \tfrac12 = 0.693$. Had *sang* come: $-\ln\tfrac14 = 1.386$. If the probabilities are true,
# *sat* comes half of the time, and the average is
# $\tfrac12 \cdot 0.693 + \tfrac14 \cdot 1.386 + \tfrac14 \cdot 1.386 = 1.040$ nats, or 1.5 bits. That average is the
# **entropy**: the surprise that is left for one who knows everything that can be known.

# %%
names, z = ["sat", "ran", "sang"], np.log([2.0, 1.0, 1.0])
draw_softmax(names, z, "Logits are raised, then divided by their sum")

# %% [markdown]
# ## Build it
#
# In NumPy both steps are a line each. There is one trap: $e^{1000}$ is too large for any float. But adding a number to
# all logits multiplies all raised numbers by the same factor, and the division takes it out again. So we first subtract
# the largest logit: the largest power is then $e^0 = 1$.


# %%
def softmax(z):
    """Probabilities from one row of logits."""
    raised = np.exp(z - z.max())
    return raised / raised.sum()


def surprise(z, came):
    """What it costs when token `came` comes, in nats."""
    return -np.log(softmax(z)[came])


print("probabilities", softmax(z), "  surprises", *(f"{surprise(z, v):.3f}" for v in range(3)))
print("logits 1000, 1001:", softmax(np.array([1000.0, 1001.0])).round(3))

# %% [markdown]
# Training needs to know which way each logit should go. Try it: raise one logit a little and see how the surprise
# changes. The change, divided by the little step, is the **slope** by that logit; all slopes together are the
# **gradient**.

# %%
came, h = 0, 1e-6
for v in range(3):
    raised = z + h * np.eye(3)[v]
    print(f"logit of {names[v]:4}: slope {(surprise(raised, came) - surprise(z, came)) / h:+.3f}")

# %%
draw_pushes(names, softmax(z), came)

# %% [markdown]
# A step against the slope raises the logit of *sat* and lowers the others. The three pushes sum to zero: what one token
# wins, the others lose.
#
# ## The derivation
#
# Letters: $z_v$ is the logit of token $v$, $p_v$ its probability, $c$ the token that came, $[v = c]$ is 1 if $v$ is $c$
# and 0 otherwise.
#
# 1. The loss of one guess: $L = -\ln p_c = \ln \sum_u e^{z_u} - z_c$.
# 2. The slope of the first part by $z_v$ is $e^{z_v} / \sum_u e^{z_u} = p_v$. The slope of the second is $-[v = c]$.
# 3. Together $dz_v = p_v - [v = c]$: **probability minus one-hot**. No slope of a loss is simpler, and none is used
#    more often: it starts the backward pass of every language model.
# 4. For any loss, not only this one, we may need the way back through the softmax alone. Raise $z_v$ a little: its own
#    share grows by $p_v(1 - p_v)$, and every other share $p_u$ falls by $p_u p_v$. (A table of such slopes, every
#    output by every input, is a **Jacobian**.) Given the slopes $dp_u$ by the shares, sum over them:
#    $dz_v = p_v\,\big(dp_v - \sum_u p_u\, dp_u\big)$. Only what is better than the average is pushed up.
# 5. The average over the truth. If $q$ is what really happens and $p$ the guess, the mean payment is the
#    **cross-entropy** $H(q, p) = -\sum_v q_v \ln p_v$. Honest guesses pay the **entropy** $H(q) = H(q, q)$.
# 6. The box is honest: $H(q, p) - H(q) = -\sum_v q_v \ln (p_v / q_v)$, and since $\ln x \le x - 1$, this is at least
#    $-\sum_v q_v (p_v/q_v - 1) = -\sum_v p_v + \sum_v q_v = 0$. Equality only for $p = q$.
#
# Steps 3 and 4 in code, and the module beside them, on 5 guesses among 7 tokens.

# %%
rng = np.random.default_rng(0)
logits, target = rng.standard_normal((5, 7)), rng.integers(7, size=5)
loss, cache = surprise_forward(logits, target)
assert np.isclose(loss, np.mean([surprise(row, c) for row, c in zip(logits, target)]))

naive = np.array([softmax(row) - np.eye(7)[c] for row, c in zip(logits, target)]) / 5  # step 3; the loss is a mean
assert np.allclose(surprise_backward(cache), naive, atol=1e-15)

p, dp = softmax(logits[0]), rng.standard_normal(7)
jacobian = np.diag(p) - np.outer(p, p)
assert np.allclose(softmax_backward(dp, softmax_forward(logits[0])[1]), jacobian @ dp, atol=1e-15)  # step 4
print("naive and module agree")

# %% [markdown]
# And step 6 by trying: a true distribution, 10,000 random guesses. No guess pays less than the truth.

# %%
q = np.array([0.5, 0.25, 0.25])
guesses = softmax_forward(rng.standard_normal((10_000, 3)))[0]
paid = cross_entropy(np.broadcast_to(q, guesses.shape), guesses)
assert paid.min() >= entropy(q)
print(f"honest: {entropy(q):.4f} nats; cheapest of 10,000 guesses {paid.min():.4f}, dearest {paid.max():.2f}")

# %% [markdown]
# ## The experiment: what is there to learn in a text?
#
# Now we put readers before the stories of this chapter. Each must guess the next letter and pays its surprise. One
# knows nothing at all. One knows how frequent letters are. Others know that, for every run of the last $T$ letters. All
# of them have counted a long text. And the stories have a floor: since we know the probability of each of the 224
# sentences, we know what even a reader pays who knows them all: the entropy of a sentence, divided by its mean length.

# %%
text = tell_stories(np.random.default_rng(1), 4000)


def price(T):
    """Mean surprise at the next letter of one who knows what follows each run of T letters."""
    runs = Counter(text[i : i + T] for i in range(len(text) - T))
    longer = Counter(text[i : i + T + 1] for i in range(len(text) - T))
    return sum(-n * np.log(n / runs[run[:T]]) for run, n in longer.items()) / (len(text) - T)


looks = [0, 1, 2, 4, 8, 16, 24]
nats = [np.log(len(ALPHABET))] + [price(T) for T in looks]

# %%
names = ["knows nothing", "frequencies", *(f"the last {T}" if T > 1 else "the last letter" for T in looks[1:])]
floor = story_floor()
assert nats[0] > nats[1] > nats[2] > nats[3] > nats[4] > nats[5] > nats[6] > floor - 0.002
title = f"Looking back pays: {nats[0]:.2f} nats a letter for who knows nothing, {floor:.2f} for who knows all"
plot_readers(names, nats, floor, title)
print(
    f"the floor is {floor:.4f} nats, {in_bits(floor):.3f} bits a letter: most letters of these stories can be foretold"
)

# %% [markdown]
# (The last bar is a hair below the floor: who counts a text and is then asked about the same text has learned a few of
# its accidents.)
#
# Three things to take along. **The loss of a model has a floor**, and it is not zero: what is truly random cannot be
# learned. **A context is worth what it foretells**: two letters foretell the next one of a word. And the last of it is
# far away: after *the cat that heard the dog* the verb depends on the *cat*, 21 letters back. Tables of such runs
# cannot grow for ever. That is why there are models.
#
# ## Change this, predict, run
#
# A forecaster exaggerates: he squares the true probabilities and divides by their sum. Another is timid: he takes the
# square roots. The truth is $q = (0.9, 0.1)$. Who pays more, and can either pay less than the honest one? Predict, run,
# then try $q = (0.6, 0.4)$. (Dividing all logits by a **temperature** does exactly this: 0.5 squares, 2 takes roots.)
#
# <details><summary>Afterwards</summary>
#
# Neither pays less than the honest one (step 6). At 0.9 the timid one pays 0.072 nats too much, a little on every
# ordinary day; the exaggerating one 0.127, most of it on the one day in ten that surprises him. At 0.6 both lose
# little: there is not much to be timid about.
#
# </details>

# %%
q = np.array([0.9, 0.1])
for name, power in (("honest", 1), ("exaggerates", 2), ("timid", 0.5)):
    guess = q**power / np.sum(q**power)
    print(f"{name:12} says {guess.round(3)}, pays {cross_entropy(q, guess):.4f} nats")

# %% [markdown]
# ## What you can now do
#
# Turn logits into probabilities without overflow; say what a loss of 2.3 nats means; derive the gradient that starts
# every backward pass; tell what cannot be learned from what has not been learned yet.
#
# ## Exercises
#
# Graded: `surprise`, `surprise_backward` (`make check CH=00`). By thought alone:
#
# 1. A fresh model with a vocabulary of 129,280 tokens has random weights and knows nothing. What loss should its first
#    step print? What if it prints 40?
#
# <details><summary>Solution</summary>
#
# $\ln 129{,}280 = 11.77$ nats. A loss of 40 says that it is not without an idea but full of wrong ones: its logits
# start too large. It is the cheapest check of an initialisation.
#
# </details>
#
# 2. The **perplexity** is $e^L$. What does a perplexity of 8 mean, in words?
#
# <details><summary>Solution</summary>
#
# The model is as surprised, on average, as if it had to guess among 8 equally likely tokens.
#
# </details>
#
# 3. Two models use different tokenizers. Why can their losses per token not be compared, and what can?
#
# <details><summary>Solution</summary>
#
# A token of one may be half a word, of the other a whole one; larger pieces are harder to guess and fewer. The surprise
# of a whole *text* does not depend on how it is cut: bits per byte, which is loss × tokens / (bytes × ln 2).
#
# </details>
