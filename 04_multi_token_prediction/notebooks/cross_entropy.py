# %% [markdown]
# # Which guesses count, and who shares the bill?
#
# **The question.** In chapter 00 every guess paid its surprise into a box. From now on a row of the model answers
# *several* questions: the next word, and the one after it. Some of these questions nobody can judge. After the last
# word of a page there is no next one; and where one story ends and another begins, the next word has nothing to do with
# what was read. Which guesses count? And by what is the sum divided?
#
# Think of a teacher with thirty sheets. Some children wrote forty lines, some three, and on every sheet there are lines
# below the end that are simply empty. She wants one number for the class. Does she average over the lines that were
# written, over all lines of the paper, or over the children's own averages? Three rules, three numbers, and it is not a
# matter of taste: a class that is praised by the third rule learns to write sheets with three good lines.
#
# A model learns what its loss praises. So before this chapter adds guesses, it settles how they are counted. At the end
# of this notebook a model is praised for the empty lines, and we look at what it has learned.

# %%
import numpy as np
from cross_entropy import (
    IGNORE,
    bits_per_byte,
    cross_entropy_backward,
    cross_entropy_forward,
    head_loss_backward,
    head_loss_forward,
    perplexity,
)

# %%
from utils.drawings_04 import draw_scoring
from utils.gradient_check import central_difference, relative_error
from utils.plots_00 import plot_to_floor
from utils.plots_04 import plot_bars
from utils.story_drafts import draw_stories, load_stories
from utils.story_task import step_adam, word_floors

# %% [markdown]
# ## Numbers to follow with a pencil
#
# Three rows guess among three tokens. Raised to the power of $e$ and divided by their sum, their logits give the
# probabilities $(\tfrac14, \tfrac12, \tfrac14)$, $(\tfrac34, \tfrac18, \tfrac18)$ and
# $(\tfrac13, \tfrac13, \tfrac13)$.
#
# 1. In row 0 token 1 came: it pays $-\ln\tfrac12 = 0.693$. In row 1 token 0 came: $-\ln\tfrac34 = 0.288$. For row 2
#    there is no answer. Its target is the mark `IGNORE`, the number −100.
# 2. Divided by the rows that count: $(0.693 + 0.288) / 2 = 0.490$ nats. Divided by all three: $0.327$.
# 3. The slope of the first rule, row 0: probability minus one-hot, over two:
#    $(\tfrac14, \tfrac12 - 1, \tfrac14) / 2 = (0.125, -0.25, 0.125)$. Row 2: exactly $(0, 0, 0)$.

# %%
logits = np.log(np.array([[1.0, 2.0, 1.0], [6.0, 1.0, 1.0], [5.0, 5.0, 5.0]]))
target = np.array([1, 0, IGNORE])
loss, cache = cross_entropy_forward(logits, target)
print(f"over the rows that count {loss:.4f}, over all {cross_entropy_forward(logits, target, divisor=3)[0]:.4f} nats")
print(cross_entropy_backward(1.0, cache).round(4) + 0.0)

# %%
prob = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
draw_scoring(logits, prob, [("−ln 1/2 = 0.693", True), ("−ln 3/4 = 0.288", True), ("no answer: pays nothing", False)])

# %% [markdown]
# ## Build it
#
# Letters: $N$ rows, $V$ tokens in the vocabulary, $D$ the width of a hidden row. First what one row pays, then the
# bill.


# %%
def cost(z, came):
    """One row of logits [V]: the surprise at the token that came."""
    raised = np.exp(z - z.max())
    return -np.log(raised[came] / raised.sum())


def naive_loss(logits, target, divisor=None):
    """Sum over the rows that count, over a divisor that is said aloud."""
    paid = [cost(z, t) for z, t in zip(logits, target) if t != IGNORE]
    return sum(paid) / (len(paid) if divisor is None else divisor)


# %%
rng = np.random.default_rng(0)
logits, target = rng.standard_normal((7, 5)), np.array([3, IGNORE, 0, 4, IGNORE, 1, 2])
for divisor in (None, 7.0):
    loss, cache = cross_entropy_forward(logits, target, divisor)
    assert np.isclose(loss, naive_loss(logits, target, divisor), atol=1e-15)
print("naive and module agree")

# %% [markdown]
# ## The derivation
#
# Write $z_v$ for the logit of token $v$ in a row, $P_v = e^{z_v} / \sum_u e^{z_u}$ for its probability, $t$ for the
# token that came, and $[v = t]$ for 1 if $v$ is $t$, else 0.
#
# 1. A row pays $\ell = -\ln P_t = \ln \sum_u e^{z_u} - z_t$.
# 2. Its slope: $\partial \ell / \partial z_v = P_v - [v = t]$, probability minus one-hot (chapter 00). The components
#    sum to zero: what the true token gains, the others lose. However wrong the row is, their sizes sum to
#    $2 (1 - P_t)$, at most 2.
# 3. The bill: $L = \tfrac1n \sum_{\text{rows that count}} \ell$. A constant factor goes through: a row that counts has
#    the slope $(P_v - [v = t]) / n$, a row that does not has zero.
# 4. **What is $n$?** Usually the number of rows that count. In multi-token prediction, Eq. (24) of the V3 report, a
#    window of $T$ rows has $T - k$ guesses that look $k$ words further, and their sum is divided by $T$ all the same: a
#    question that fewer rows can answer weighs a little less, and all questions share one scale.
# 5. **Batches in pieces.** A batch is often worked off in pieces whose slopes are added up. If each piece is divided by
#    *its own* count, a piece with three guesses weighs as much as one with forty. Divide every piece by the count of
#    the whole batch, and the pieces add up to the whole, exactly.


# %%
def naive_gradient(logits, target, divisor):
    """Steps 2 and 3, row by row."""
    dlogits = np.zeros_like(logits)
    for n, t in enumerate(target):
        if t != IGNORE:
            prob = np.exp(logits[n] - logits[n].max())
            dlogits[n] = prob / prob.sum() / divisor
            dlogits[n, t] -= 1 / divisor
    return dlogits


# %%
loss, cache = cross_entropy_forward(logits, target, 7.0)
dlogits = cross_entropy_backward(1.0, cache)
assert np.allclose(dlogits, naive_gradient(logits, target, 7.0), atol=1e-16)
by_trying = central_difference(lambda: cross_entropy_forward(logits, target, 7.0)[0], logits)
print("naive and module agree; central differences:", relative_error(dlogits, by_trying) < 1e-8)

# %% [markdown]
# Step 5 in numbers: one batch of 43 guesses in two pieces, of 3 and of 40.

# %%
z, t = rng.standard_normal((43, 5)), rng.integers(5, size=43)
pieces = [slice(0, 3), slice(3, 43)]
whole = naive_gradient(z, t, 43)
together = np.concatenate([naive_gradient(z[s], t[s], 43) for s in pieces])
apart = np.concatenate([naive_gradient(z[s], t[s], len(t[s])) / 2 for s in pieces])
assert np.array_equal(together, whole)
print("one divisor for all: equal to the last bit")
print(
    f"each its own: the first three guesses weigh {np.abs(apart[0]).sum() / np.abs(whole[0]).sum():.1f} times too much"
)

# %% [markdown]
# ## The head and the loss in one
#
# The logits come from the **head**: a hidden row of $D$ numbers times a matrix $[V, D]$. For V3 a window of 4,096 rows
# has $4096 \cdot 129{,}280$ logits, 2.1 GB in FP32; each further question has as many again. But a row's slope needs no
# logits but its own. So head and loss can be done a few rows at a time, and only their products with the head are kept.


# %%
def naive_head_loss(hidden, head, target, chunk):
    """Loss, and its slopes by the hidden rows and by the head; only `chunk` rows of logits exist at once."""
    n, loss = np.sum(target != IGNORE), 0.0
    dhidden, dhead = np.zeros_like(hidden), np.zeros_like(head)
    for start in range(0, len(hidden), chunk):
        s = slice(start, start + chunk)
        logits = hidden[s] @ head.T
        loss += naive_loss(logits, target[s], n)
        dlogits = naive_gradient(logits, target[s], n)
        dhidden[s], dhead = dlogits @ head, dhead + dlogits.T @ hidden[s]
    return loss, dhidden, dhead


# %%
hidden, head = rng.standard_normal((7, 4)), rng.standard_normal((5, 4))
for chunk in (7, 3, 1):
    loss, cache = head_loss_forward(hidden, head, target, chunk=chunk)
    for ours, naive in zip((loss, *head_loss_backward(1.0, cache)), naive_head_loss(hidden, head, target, 2)):
        assert np.allclose(ours, naive, atol=1e-14)
print("naive and module agree, whatever the chunk")

# %%
gigabytes = {"main head, all rows": 4096, "main head and one further": 8192, "any number, 1,024 rows at a time": 1024}
gigabytes = {name: rows * 129_280 * 4 / 1e9 for name, rows in gigabytes.items()}
title = "Logits alive at once in V3: a chunk needs an eighth (window of 4,096, FP32)"
plot_bars(gigabytes, ["content", "draft", "ink"], title, "gigabytes", " GB")

# %% [markdown]
# ## The experiment: who notices a wrong divisor?
#
# A small model: a table with a row of logits for each word, which guesses the next word from the last one (the bigram
# model of chapter 00). Its sentences are laid on sheets of 40 places; a sentence has 8 words on average, the rest is
# empty. Once we divide by the guesses that count, once by all 39 of the sheet. Both are trained by plain steps against
# the gradient, and both by Adam. The floor is what a reader pays who knows exactly what follows each word.

# %%
stories = load_stories()
V = len(stories.names)
_, floor = word_floors(stories.word_NS, stories.chance_N, V)


def draw_sheets(rng, B=32, places=40):
    """Sentences on sheets: words read [B, 39], and targets with IGNORE where the sheet is empty."""
    words, document = draw_stories(rng, stories, B)
    sheet = np.full((B, places), IGNORE)
    sheet[:, : words.shape[1]] = np.where(document == 0, words, IGNORE)
    return np.maximum(sheet[:, :-1], 0), sheet[:, 1:]


# %%
def train(divisor_of, adam, steps=400, rate=8.0):
    """Train the table; return what it pays for a real guess, step by step."""
    rng, table, moments, paid = np.random.default_rng(0), {"logits": np.zeros((V, V))}, {}, []
    for step in range(1, steps + 1):
        read, target = draw_sheets(rng)
        logits = table["logits"][read]
        paid.append(cross_entropy_forward(logits, target)[0])
        _, cache = cross_entropy_forward(logits, target, divisor_of(target))
        dtable = np.zeros((V, V))
        np.add.at(dtable, read, cross_entropy_backward(1.0, cache))
        if adam:
            step_adam(table, {"logits": dtable}, moments, step, 0.05)
        else:
            table["logits"] -= rate * dtable
    return np.array(paid)


# %%
rules = {"by what counts": lambda t: np.sum(t != IGNORE), "by all places": lambda t: t.size}
curves = {f"{how}, {name}": train(rule, how == "Adam") for how in ("plain", "Adam") for name, rule in rules.items()}
ten = np.ones(10) / 10  # means of ten steps, so that a curve can be read
reached = {name: int(np.argmax(np.convolve(c, ten, "valid") < floor + 0.2)) for name, c in curves.items()}
print("steps until within 0.2 nats of the floor:", reached)

# %%
late = reached["plain, by all places"] / reached["plain, by what counts"]
smooth = {n: (range(391), np.convolve(c, ten, "valid")) for n, c in curves.items()}
title = f"A wrong divisor costs plain descent {late:.1f} times the steps; Adam does not notice"
kinds = ["content", "wrong", "ink", "latent"]
plot_to_floor(smooth, kinds, floor, "nobody can pay less", title, "step", "nats a word", wide="Adam, by what counts")

# %% [markdown]
# Plain steps shrink with the divisor. Adam divides each step by the usual size of the gradient, so a constant factor
# falls out again. That is no licence: where two losses are *added*, as the main loss and the further one are in this
# chapter, a factor on one of them is a weight, and where gradients are clipped at a fixed length, it decides what is
# clipped. Adam forgives a factor on everything, not on a part.
#
# ## Change this, predict, run
#
# Now the teacher praises the empty lines. The cell below trains the table by Adam with the empty places as *targets*:
# they get word 0, and count. Predict two numbers before you run: the loss that this training reports at the end, and
# what its real guesses pay. (8 of 39 guesses of a sheet are real, the floor of a real one is the dashed line above.)
#
# <details><summary>Afterwards</summary>
#
# The reported loss falls far below the floor. An empty line after an empty line is no surprise, and four in five
# guesses are of that kind. Meanwhile real guesses have become *dearer*, and all of it at one place: an empty line is
# written with word 0, which is also the sign that opens a sentence. Who reads it now expects one more empty line, so
# the first word of every sentence is a surprise. Whoever compares two runs by their reported loss compares mostly
# paper. A loss below the floor is an alarm: something is counted that is not a guess.
#
# </details>

# %%
rng, table, moments = np.random.default_rng(0), {"logits": np.zeros((V, V))}, {}
for step in range(1, 401):
    read, target = draw_sheets(rng)
    logits = table["logits"][read]
    reported, cache = cross_entropy_forward(logits, np.maximum(target, 0))  # IGNORE has become word 0
    dtable = np.zeros((V, V))
    np.add.at(dtable, read, cross_entropy_backward(1.0, cache))
    step_adam(table, {"logits": dtable}, moments, step, 0.05)
print(
    f"reported {reported:.3f} nats; real guesses pay {cross_entropy_forward(logits, target)[0]:.3f}; floor {floor:.3f}"
)

# %% [markdown]
# ## Two other units
#
# A loss in nats depends on the tokens: whoever guesses long tokens pays more for each. Two ways to make it readable:
# the **perplexity**, $e$ to the loss, among how many equally likely tokens one seems to choose; and **bits per byte**,
# the whole bill of a text over its bytes, which is the same for every tokenizer.

# %%
print(f"{floor:.3f} nats a word: perplexity {perplexity(floor):.2f}")
text = "the cat sat on the mat ."
print(f"7 words in {len(text)} bytes at that price: {bits_per_byte(floor, 7, len(text)):.3f} bits per byte")

# %% [markdown]
# ## What you can now do
#
# Write the loss of a language model, forward and backward, with rows that do not count; say by what it is divided, and
# when that matters; compute it without ever holding all logits; read a loss that is too good as an alarm.
#
# ## Exercises
#
# Graded: `loss_gradient`, `head_backward` (`make check CH=04`). By thought alone:
#
# 1. A model gives all 129,280 tokens the same probability. What is its loss, and what must the first printed loss of an
#    untrained model be near?
#
# <details><summary>Solution</summary>
#
# $\ln 129280 = 11.77$ nats. A first loss far above it means that the logits start too large; far below, that the target
# leaks into the input.
#
# </details>
#
# 2. Half of a batch is empty, and the loss is divided by all places. Which other setting of the training has silently
#    changed, and under which optimizer?
#
# <details><summary>Solution</summary>
#
# The learning rate, by a half, under plain descent; under Adam nothing, except where gradients are clipped or a second
# loss is added. Worse, the factor changes from batch to batch with the share of empty places.
# `test_a_given_divisor_replaces_the_number_of_rows_that_count` notices.
#
# </details>
#
# 3. Why is the slope of a row bounded, however wrong the model is?
#
# <details><summary>Solution</summary>
#
# Each component lies between −1 and 1, and their sizes sum to $2(1 - P_t)$. To be infinitely wrong costs infinitely
# much, yet pulls no harder than to be sure of any other token.
#
# </details>
