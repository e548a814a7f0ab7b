# %% [markdown]
# # A language model with a context
#
# **The question.** A table for the last two letters has 529 rows, one for the last ten has more rows than anybody has
# letters. How can a model look back ten letters without a row for every run of ten?
#
# The telephone of the last notebook forgot at each letter how the word began. Give it a longer memory, and it needs a
# longer table; and the longer table is worse than long, it is *lonely*. What it has learned after *the cat sa* does not
# help it after *the dog sa*. Yet you and I know at once that they are alike.
#
# The way out has three steps, and every language model since has taken them. Give each letter a row of numbers (the
# embedding), so that *alike* means something. Lay the rows of the last $T$ letters side by side. And let one layer of
# simple units look at all of them together. What is learned in one place now serves all places where the numbers are
# similar: the table is replaced by a **function with shared weights**.

# %%
from collections import Counter
from dataclasses import replace

import numpy as np
from bigram_model import train_bigram, write_tokens
from context_model import ContextWeights, context_backward, context_forward, cut_windows, measure_context, train_context
from surprise import surprise_backward, surprise_forward
from text_tokens import ALPHABET, decode_characters, encode_characters, story_floor, tell_stories

from utils.drawings_00 import draw_surprises, draw_window
from utils.plots_00 import plot_to_floor

# %%
draw_window("the cat sat on the m", 8, "a")

# %% [markdown]
# ## Numbers to follow with a pencil
#
# Two tokens, 0 and 1, with rows of one number: 0 and 1. The window holds two tokens. One hidden unit takes the *first
# minus the second* and bends it by tanh. The head gives token 0 the logit 0, and token 1 the hidden value times
# $2.885$.
#
# Window $1, 0$: first minus second is 1, bent $\tanh 1 = 0.762$, logits $0$ and $0.762 \cdot 2.885 = 2.197 = \ln 9$.
# Raised 1 and 9: token 1 comes with probability 0.9. Window $0, 0$: hidden 0, both logits 0: a half each. Window
# $0, 1$: hidden $-0.762$, token 1 has $1/(1 + 9) = 0.1$.

# %%
rows = np.array([0.0, 1.0])
for first, second in [(1, 0), (0, 0), (0, 1)]:
    hidden = np.tanh(rows[first] - rows[second])
    logits = np.array([0.0, hidden * np.log(9) / np.tanh(1)])
    share = np.exp(logits) / np.exp(logits).sum()
    print(f"window {first} {second}: hidden {hidden:+.3f}, logits {logits.round(3)}, P(1) = {share[1]:.2f}")

# %% [markdown]
# ## Build it
#
# Letters: $V$ tokens in the vocabulary, $T$ tokens in the window, $D$ numbers in a token's row, $F$ hidden units. Three
# matrices hold everything that is learned: `embed_tokens` ($V \times D$) says what each token is, `up_proj`
# ($F \times TD$) what the last $T$ tokens mean together, `lm_head` ($V \times F$) what follows from it.

# %%
rng = np.random.default_rng(0)
V, T, D, F = len(ALPHABET), 8, 8, 64
weights = ContextWeights.init(rng, V, T, D, F)
token = encode_characters(tell_stories(rng, 3000))
unseen = encode_characters(tell_stories(rng, 500))


# %%
def next_logits(window, w):
    """Scores of every token after one window of T tokens."""
    x = np.concatenate([w.embed_tokens[t] for t in window])  # rows side by side: T D numbers
    hidden = np.tanh(w.up_proj @ x)
    return w.lm_head @ hidden


windows, targets = cut_windows(token, T)
print(
    f"{len(targets):,} windows; the first: {decode_characters(windows[0])!r}, then {decode_characters(targets[:1])!r}"
)
logits, cache = context_forward(windows[:50], weights)
assert np.allclose(logits, [next_logits(w, weights) for w in windows[:50]], atol=1e-14)
print(f"naive and module agree; {sum(w.size for w in vars(weights).values()):,} weights")

# %% [markdown]
# ## The derivation: the way back
#
# 1. Forward: $x = [E_{t_1}; \dots; E_{t_T}]$, $\;a = W_{up}\, x$, $\;h = \tanh a$, $\;z = W_{head}\, h$. Then the
#    surprise.
# 2. It begins with $dz = $ probability minus one-hot (`surprise`).
# 3. A product hands each factor the other one. From $z = W_{head} h$: $dh = W_{head}^\top dz$, and
#    $dW_{head} = dz\, h^\top$, summed over all windows.
# 4. The bend: $\tanh' = 1 - \tanh^2$, so $da = dh \odot (1 - h^2)$ ($\odot$: number by number). A unit near $\pm1$ is
#    *full*: its slope is nearly zero, it hardly learns.
# 5. From $a = W_{up}\, x$: $dx = W_{up}^\top da$, $dW_{up} = da\, x^\top$.
# 6. Cut $dx$ into $T$ rows again and send each to its token (`text_tokens`): a letter is in many windows, at many
#    places, and gets the sum.
#
# In code, with one window a row, $z = h W_{head}^\top$:


# %%
def naive_backward(dz, windows, w):
    """Steps 3 to 6 for a whole batch of windows."""
    x = w.embed_tokens[windows].reshape(len(windows), -1)
    h = np.tanh(x @ w.up_proj.T)
    dhead = dz.T @ h
    da = (dz @ w.lm_head) * (1 - h**2)
    dup = da.T @ x
    dx = (da @ w.up_proj).reshape(len(windows), T, D)
    dembed = np.zeros_like(w.embed_tokens)
    for row, window in zip(dx, windows):
        for d, t in zip(row, window):
            dembed[t] += d
    return dembed, dup, dhead


# %%
loss, surprised = surprise_forward(logits, targets[:50])
dz = surprise_backward(surprised)
gradients = context_backward(dz, cache)
for name, naive, module in zip(vars(gradients), naive_backward(dz, windows[:50], weights), vars(gradients).values()):
    assert np.allclose(naive, module, atol=1e-14), name
print("naive and module agree, backward too; loss before training", round(loss, 3), " ln V =", round(np.log(V), 3))

# %% [markdown]
# ## Train it
#
# Draw 128 windows, go forward, go back, let Adam step, and again: 1,500 times, a few seconds.

# %%
weights, losses = train_context(token, T, V=V)
floor = story_floor()
smooth = np.convolve(losses, np.ones(25) / 25, mode="valid")
title = f"Eight letters of context: from {losses[0]:.2f} to {smooth[-1]:.2f} nats a letter in 1,500 steps"
curves = {"surprise, mean of 25 steps": (range(len(smooth)), smooth)}
plot_to_floor(curves, ["content"], floor, "nobody can pay less", title, "step", "nats a letter", ylim=(0, 3.2))

# %% [markdown]
# And it writes. Beside it the bigram of the last notebook, for comparison.

# %%
table, _ = train_bigram(token[:6000], V, 150, 20.0)
start = encode_characters("the cat ").tolist()
models = {
    "one letter": lambda so_far: table[so_far[-1]],
    "eight letters": lambda so_far: context_forward(np.array([so_far[-T:]]), weights)[0][0],
}
for name, model in models.items():
    print(f"{name:14}", decode_characters(write_tokens(model, start, 110, np.random.default_rng(4))))

# %% [markdown]
# ## The experiment: how far must one look?

# %%
looks = [1, 2, 4, 8, 12, 16]
trained = {n: weights if n == T else train_context(token, n, V=V)[0] for n in looks}
paid = [measure_context(unseen, trained[n], n) for n in looks]
text = tell_stories(np.random.default_rng(1), 4000)


def table_price(T):
    """What a table of all runs of T letters pays, as in the notebook `surprise`."""
    runs = Counter(text[i : i + T] for i in range(len(text) - T))
    longer = Counter(text[i : i + T + 1] for i in range(len(text) - T))
    return sum(-n * np.log(n / runs[run[:T]]) for run, n in longer.items()) / (len(text) - T)


# %%
tables = [table_price(n) for n in looks]
assert paid[0] > paid[1] > paid[2] > paid[3] > floor
title = f"One letter back {paid[0]:.2f} nats, eight {paid[3]:.2f}, sixteen {paid[-1]:.2f}; the floor is {floor:.2f}"
curves = {"a table of all runs of that length": (looks, tables), "the model, unseen stories": (looks, paid)}
axes = {"x": "letters in the window", "y": "nats a letter", "ylim": (0, None)}
plot_to_floor(curves, ["#D5D8DD", "content"], floor, "nobody can pay less", title, wide=next(iter(curves)), **axes)
print("model", np.round(paid, 3), " table", np.round(tables, 3))

# %% [markdown]
# The two curves are nearly one. With 5,752 weights the model of eight letters pays what a table of every run of eight
# letters pays, and that is the best that eight letters can give. Sharing weights has cost nothing.
#
# (A warning about such comparisons: pay must be measured on *unseen* text. Trained on twenty sentences only, the model
# learns their accidents by heart. It then pays less than the floor on those twenty, which is no skill, and much more on
# others. That is **overfitting**.)

# %%
few = encode_characters(tell_stories(np.random.default_rng(2), 20))
by_heart, _ = train_context(few, 16, V=V)
seen_price, other_price = (measure_context(t, by_heart, 16) for t in (few, unseen))
print(f"trained on twenty sentences: {seen_price:.3f} on them, {other_price:.3f} on others")

# %% [markdown]
# Longer windows come closer to the floor, and none of these reaches it. Where do they still pay? Here is one sentence,
# letter by letter, with the window of eight and the window of sixteen. In it the *cat* has heard the *dog*, and the cat
# does what cats do.

# %%
line, before = "the cat that heard the dog sat on the mat. ", "the owl sang in the oak. "


def surprises(w, T):
    text = encode_characters(before + line)
    logits = context_forward(cut_windows(text, T)[0], w)[0]
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return -np.take_along_axis(log_p, text[T:, None], axis=1)[-len(line) :, 0]


# %%
nats = {"8 letters": surprises(weights, 8), "16 letters": surprises(trained[16], 16)}
verb = slice(line.index("sat"), line.index("sat") + 3)
for name, values in nats.items():
    print(f"{name}: {values[verb].sum():.2f} nats for the verb")
print(f"who remembers the cat: {-np.log(0.75):.2f} (cats sit three times in four)")
draw_surprises({name: (line, v) for name, v in nats.items()}, "Both windows pay for the verb: the cat is out of sight")

# %% [markdown]
# **At the verb the actor is 21 letters back.** A window of eight cannot see it, one of sixteen cannot either. One could
# make the window longer still. But the first layer grows with every letter, each place in the window has weights of its
# own, and most of what lies in between (*that heard the dog*) is of no use for the verb. What one would like is to **go
# and fetch** the one word that counts, wherever it stands. That is attention, and chapter 01 begins with the question
# *who sat?*
#
# ## Change this, predict, run
#
# The cell trains with a mistake: the slope of tanh is left out ($da = dh$). Predict: does the loss still fall? Will it
# end higher, and would you have noticed? Then read the last line.
#
# <details><summary>Afterwards</summary>
#
# It falls, and ends near the right one, since at every hidden unit the sign is right and only the size is wrong, and
# Adam forgives sizes. A falling loss proves little. A gradient check takes a second and proves it.
#
# </details>


# %%
def forgetful(dlogits, cache):
    """context_backward without the slope of tanh: a hidden row of zeros has slope 1 everywhere."""
    looked_up, x, hidden, w = cache
    wrong = context_backward(dlogits, (looked_up, x, 0 * hidden, w))
    return replace(wrong, lm_head=dlogits.T @ hidden)


for name, backward in {"right": context_backward, "without the slope of tanh": forgetful}.items():
    _, losses = train_context(token, T, V=V, n_steps=600, backward=backward)
    print(f"{name}: {np.mean(losses[-100:]):.3f} nats a letter after 600 steps")
error = np.linalg.norm(forgetful(dz, cache).up_proj - gradients.up_proj) / np.linalg.norm(gradients.up_proj)
print(f"what a gradient check says of the second: dW_up is wrong by {error:.0%} of its length")

# %% [markdown]
# ## What you can now do
#
# Build a language model from an empty file: tokens, embedding, a layer, a head, the surprise, the way back, Adam,
# writing. Say what a window cannot do. Everything in the chapters to come replaces one part of this model and leaves
# the rest as it is.
#
# ## Exercises
#
# Graded: `context_backward`, and, last, `language_model_from_an_empty_file` (`make check CH=00`). By thought alone:
#
# 1. How many weights has the model with window $T$? Which of the three matrices grows with $T$?
#
# <details><summary>Solution</summary>
#
# $VD + FTD + VF$. Only `up_proj`: each place in the window has weights of its own. Attention will use the same weights
# at every place.
#
# </details>
#
# 2. What would happen without the tanh?
#
# <details><summary>Solution</summary>
#
# $W_{head} W_{up}$ is one matrix: the logits would be a sum over places, each letter voting by itself. Such a model can
# say *after t often h*, and cannot say *h after t, unless there is a blank before it*.
#
# </details>
#
# 3. Trained on 3,000 sentences the model pays the same on those and on unseen ones; trained on 20 it does not. Why?
#
# <details><summary>Solution</summary>
#
# There are only 224 sentences. Among 3,000 all frequent ones occur, about as often as they should: there are no
# accidents to learn. Twenty sentences are full of them, and nearly 10,000 weights are enough to keep twenty sentences
# by heart.
#
# </details>
