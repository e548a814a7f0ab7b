# %% [markdown]
# # An answer, made likelier
#
# **The question.** A model writes answers by drawing tokens. What exactly do we turn, if we want one answer to come up
# more often and another one less?
#
# Two friends help you to teach a model to sort. It was asked `201>` and wrote `021.` The first friend knows the answer:
# *write `012.`* The second one knows nothing and only shakes her head: *not that one*. However different they are, you
# can do the same two things with what they say: make something that can be written **likelier**, or **less likely**.
# The chapter is about the two friends (fine-tuning is the first, learning from rewards the second). This notebook is
# about the handle that both of them turn.
#
# A model that writes is called a **policy** here: a rule that says how probable each next step is. The letter for it is
# $\pi$, so that $\pi(\text{token})$ is the probability of a token. An answer is several tokens, each drawn from such a
# distribution; its probability is the product of theirs, and the *logarithm* of it is a sum, a number for each token.

# %%
import numpy as np

# %%
from token_policy import (
    PolicyWeights,
    encode_text,
    log_softmax,
    policy_backward,
    policy_forward,
    read_answers,
    read_windows,
    score_answers_backward,
    score_answers_forward,
    sorting_problems,
    token_log_probs_backward,
    token_log_probs_forward,
    write_answers,
)

# %%
from utils.drawings_07 import BETTER, draw_chain, plot_curves, plot_scatter
from utils.gradient_check import central_difference, relative_error

names = ["tokens so far", "window of 7", "hidden row", "logits z", "log π(token)"]
kinds = ["ink", "ink", "content", "content", "ink"]
title = "From a text to the probability of its next token: the whole policy of this chapter"
draw_chain(names, kinds, ["the last 7", "tanh", "head", "softmax"], title)

# %% [markdown]
# ## Numbers to follow with a pencil
#
# *Logits*, $z$, are the scores that a network gives to the tokens of its vocabulary; the softmax (chapter 00) makes
# probabilities of them. Three tokens, $z = (\log 2, \log 1, \log 1)$: probabilities 2/4, 1/4, 1/4. Suppose that the
# second token was written. Its log-probability is $\log 1/4 = -1.386$.
#
# Which way must every logit go, to raise it? Its own up: by 1 minus its probability, 3/4. The others down: by their
# probabilities, 2/4 and 1/4. The three numbers sum to zero: what one token wins, the others lose.

# %%
z, written = np.log([2.0, 1.0, 1.0]), 1
probability = np.exp(z) / np.exp(z).sum()
slope = (np.arange(3) == written) - probability
print("log-probability", np.log(probability[written]).round(3), "  slope by each logit", slope)

for v in range(3):  # the same by trying: raise one logit a little and look again
    up = z + 1e-6 * np.eye(3)[v]
    gain = up[written] - np.log(np.exp(up).sum()) - np.log(probability[written])
    print(f"logit {v} raised by a millionth: log-probability {gain / 1e-6:+.3f} millionths")

# %% [markdown]
# ## Build it: ask how likely an answer was
#
# The policy sees a *window*: the last seven tokens, the newest one last (what is missing at the beginning is filled
# with padding, token 0). Seven are enough for the question and all that was written of the answer. Each token is
# looked up in a table of embeddings; the seven rows, side by side, go through one hidden layer and a head. Letters of
# the arrays: $V = 13$ tokens, $D = 8$ numbers for each, $I = 7 \cdot 8$ numbers of a window, $F = 64$ hidden ones.
# Together $13 \cdot 8 + 64 \cdot 56 + 64 + 13 \cdot 64 = 4584$ weights.


# %%
def naive_logits(weights, text):
    """Scores for the token after `text`."""
    window = ([0] * 7 + encode_text(text))[-7:]
    seen = np.concatenate([weights.embed_VD[token] for token in window])
    hidden = np.tanh(weights.hidden_FI @ seen + weights.bias_F)
    return weights.head_VF @ hidden


def naive_log_probability(weights, question, answer):
    """log pi of every token of the answer."""
    found = []
    for s, token in enumerate(encode_text(answer)):
        z = naive_logits(weights, question + answer[:s])
        found.append(z[token] - np.log(np.exp(z).sum()))
    return found


# %% [markdown]
# The module asks about a whole text at once, one row for each token that is followed by another. Row 3 of `201>012.`
# reads the `>` and is the first that writes the answer: hence the `3:`.

# %%
rng = np.random.default_rng(0)
weights = PolicyWeights.init(rng)
logp = naive_log_probability(weights, "201>", "012.")
module, _ = score_answers_forward(weights, np.array([encode_text("201>012.")]))
assert np.allclose(logp, module[0, 3:], rtol=0, atol=1e-14)
print("tokens", np.round(logp, 2), f"  whole answer {sum(logp):.2f}: written once in {np.exp(-sum(logp)):,.0f} times")

# %% [markdown]
# ## The derivation
#
# Letters: $z_v$ is the logit of token $v$, $\pi_v$ its probability, $a$ the token that was written; $o$ is an answer,
# $o_s$ its token number $s$; $L$ is any loss. $[v = a]$ is 1 if $v$ is the written token and 0 otherwise.
#
# 1. $\log \pi_a = z_a - \log \sum_u e^{z_u}$: the logarithm of a softmax.
# 2. The first part has slope 1 by $z_a$ and 0 by every other logit.
# 3. The second part has slope $e^{z_v} / \sum_u e^{z_u} = \pi_v$ by $z_v$.
# 4. Together: $\partial \log \pi_a / \partial z_v = [v = a] - \pi_v$.
# 5. A whole answer is $\log \pi(o) = \sum_s \log \pi(o_s)$: every token has its own row of logits and its own slope.
#
# So a loss that looks at log-probabilities, however complicated, has to say one thing only for each written token: $g_s
# = \partial L / \partial \log \pi(o_s)$, *how much would you like this token to be less likely*. The rest is always
# the same: multiply step 4 by $g_s$, and go back through the network as in chapter 00. **That number is the handle.**


# %%
def naive_slope(logits, tokens, g):
    """One row at a time: g times (one-hot - probability)."""
    rows = []
    for z, a, weight in zip(logits, tokens, g):
        probability = np.exp(z) / np.exp(z).sum()
        rows.append(weight * ((np.arange(len(z)) == a) - probability))
    return np.array(rows)


# %%
logits, tokens, g = rng.standard_normal((5, 7)), rng.integers(0, 7, 5), rng.standard_normal(5)
_, cache = token_log_probs_forward(logits[None], tokens[None])
assert np.allclose(naive_slope(logits, tokens, g), token_log_probs_backward(g[None], cache)[0], rtol=0, atol=1e-15)

# %% [markdown]
# And the rest of the way, through head, hidden layer and table: the module's gradient is $g$ put through step 4 and the
# network's own backward pass. Trying every entry of one array (central differences) says the same.

# %%
texts, g = np.array([encode_text("201>012."), encode_text("350>053.")]), rng.standard_normal((2, 7))
grads = score_answers_backward(g, score_answers_forward(weights, texts)[1])
logits, cache = policy_forward(weights, read_windows(texts, 7)[:, :-1])
dlogits = np.array([naive_slope(z, row[1:], weight) for z, row, weight in zip(logits, texts, g)])
assert all(np.allclose(a, b, atol=1e-13) for a, b in zip(policy_backward(dlogits, cache), grads))
tried = central_difference(lambda: (g * score_answers_forward(weights, texts)[0]).sum(), weights.embed_VD)
print("central differences agree:", relative_error(grads.embed_VD, tried) < 1e-6)

# %% [markdown]
# ## Writing is drawing
#
# Untrained, the policy writes almost anything. (`.` ends an answer.) While it writes, it notes how likely each token
# was; whoever asks the same weights afterwards, about all rows at once, gets the same numbers.

# %%
train, held_out = sorting_problems()
answers = write_answers(weights, np.repeat([encode_text("201>")], 6, axis=0), rng)
for text, logp in zip(read_answers(answers), answers.logp_BS.sum(axis=1)):
    print(f"201>{text:<5} log-probability {logp:6.2f}, so one in {np.exp(-logp):,.0f}")

again, _ = score_answers_forward(weights, answers.token_BT)
assert np.allclose(again[answers.written_BS], answers.logp_BS[answers.written_BS])

# %% [markdown]
# ## The experiment: the friend who knows
#
# *Write `012.`* Each of its four tokens gets $g = -1$: a loss falls when they become likelier. Step downhill, look at
# the probability, and again. Nobody says a word about `021.`, which the policy might write instead.


# %%
def pull(weights, answer, g_of_each, n_steps=30, rate=0.02):
    """Turn the handle of one answer's tokens; return log-probabilities of both answers on the way."""
    g, paths = np.zeros((1, 7)), {"012.": [], "021.": []}
    g[:, 3:] = g_of_each
    for _ in range(n_steps + 1):
        for name, path in paths.items():
            path.append(sum(naive_log_probability(weights, "201>", name)))
        _, cache = score_answers_forward(weights, np.array([encode_text("201>" + answer)]))
        weights = PolicyWeights(*(w - rate * d for w, d in zip(weights, score_answers_backward(g, cache))))
    return paths


# %%
paths = pull(weights, "012.", -1)
curves = {name: (range(31), path) for name, path in paths.items()}
gain = np.exp(paths["012."][-1])
title = f"Pulled 30 times, the right answer is drawn {gain:.0%} of the time"
plot_curves(curves, [BETTER, "ink"], title, "step", "log-probability of the whole answer")

# %% [markdown]
# The other answer rises at first, though nobody pulls at it: both begin with `0` and end with a point, and all rows
# share their weights. A friend who says *write this* says something about a thousand other texts as well.
#
# ## The trained model speaks: who did it?
#
# Asking how likely an answer is, works for any model. The one that runs through the book has read small stories with
# questions. Take sixty new stories that end in a question such as "Who sat?", and in which *two* actors might be the
# answer. How likely does it find either? (A name of several tokens is judged by its first.)

# %%
from utils.story_model import ask_who, open_book

book, asked, pairs = open_book(), ask_who(60), []
for a in asked:
    all_words = log_softmax(book.read(a.text).logits[-1])
    tokens = [book.tokenizer.encode(f" {word}", add_special_tokens=False).ids[0] for word in (a.answer, a.other)]
    pairs.append(all_words[tokens])
right, other = np.array(pairs).T
print(asked[0].text)
print(f"log-probabilities: {asked[0].answer} {right[0]:.2f}, {asked[0].other} {other[0]:.2f}")

# %%
known = right > other
title = f"The actor who did it is likelier in {known.sum()} of {len(known)} stories"
axes = ("log π of the other actor", "log π of the right answer")
unsure = (np.exp(pairs).max(axis=1) < 0.9).sum()
print(f"one of the two: {np.exp(pairs).sum(axis=1).mean():.0%} of the probability, on average")
print(f"neither of them has nine tenths of it in {unsure} of {len(known)} stories")
plot_scatter(other, right, known, ("the other one is likelier", "the right one is likelier"), title, axes, BETTER)

# %% [markdown]
# It is mostly one of the two, and in most stories it would say either of them. That is the best of places for what
# comes in `grpo`: a model that is right *now and then* can be told which of its own answers were the good ones.
#
# ## Change this, predict, run
#
# The other friend. She shakes her head at `021.`: its tokens get $g = +1$. Predict both curves. Will `021.` fall for
# ever, or settle? Will `012.`, the right answer, rise?
#
# <details><summary>Afterwards</summary>
#
# `021.` falls and does not stop: by step 4 the slope of its own logit is $1 - \pi$, so the less likely it is, the
# *harder* it is pushed. (Upwards it is the other way round: near $\pi = 1$ the pull dies away.) And `012.` falls with
# it: they share the first token, the end, and all weights. *Not that one* leaves open which one instead. A loss that
# pushes down needs a brake; in `grpo` the clip is one.
#
# </details>

# %%
paths = pull(weights, "021.", +1)
for name, path in paths.items():
    print(f"{name} log-probability after 0, 10, 20, 30 steps:", np.round(path[::10], 1))

# %% [markdown]
# ## What you can now do
#
# Compute the log-probability of an answer and its slope by every logit; say why a loss over written tokens needs to
# hand back one number for each of them, and no more; say what pushing down does that pulling up does not. Next:
# `supervised_fine_tuning`, the friend who knows.
#
# ## Exercises
#
# Graded: `log_probs_backward` (`make check CH=07`). By thought alone:
#
# **1.** An answer of four tokens, each with probability 1/2. What is the log-probability of the answer, and what
# becomes of it if every token rises to 0.6?
#
# <details><summary>Solution</summary>
#
# $4 \log 0.5 = -2.77$, once in 16. Then $4 \log 0.6 = -2.04$, once in 7.7: a fifth more for each token is twice as much
# for the answer. Long answers are sensitive.
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
