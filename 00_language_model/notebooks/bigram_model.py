# %% [markdown]
# # The bigram model
#
# **The question.** What is the smallest thing that deserves the name language model, and can it be *learned* without
# being told what to count?
#
# A child plays with a telephone that proposes the next letter. After *t* it likes to propose *h*; after *q* always *u*.
# The telephone need not understand anything: it has a table. For each letter it says how often each other letter came
# next. Two letters make a *bigram*, so this is a **bigram model**.
#
# There are two ways to get the table. Count, as one would; or start from a table of zeros and go downhill on the
# surprise. The second way seems a detour. But it is the one that still works when the table is replaced by a machine
# with 671 billion numbers, for which nobody knows what to count. So we take both ways and look whether they meet.

# %%
import numpy as np
from bigram_model import bigram_backward, bigram_forward, count_pairs, share_counts, train_bigram, write_tokens
from text_tokens import ALPHABET, decode_characters, encode_characters, story_floor, tell_stories

from utils.drawings_00 import draw_surprises
from utils.plots_00 import draw_tables, plot_to_floor

# %% [markdown]
# ## Numbers to follow with a pencil
#
# The text is *the heat* and a blank: `t h e _ h e a t _` (the blank is written `_`). Its pairs:
#
# | first | then | how often |
# |---|---|---|
# | t | h, _ | once each: 1/2, 1/2 |
# | h | e, e | twice: 1 |
# | e | _, a | once each: 1/2, 1/2 |
# | _ | h | once: 1 |
# | a | t | once: 1 |
#
# What does this table pay for the text it was counted on? Eight pairs; four of them cost $\ln 2$ (two after *t*, two
# after *e*), four cost nothing. The mean is $4 \cdot 0.693 / 8 = 0.347$ nats a letter.

# %%
word = encode_characters("the heat ")
V = len(ALPHABET)
pairs = list(zip(word, word[1:]))
counts = np.zeros((V, V))
for first, then in pairs:
    counts[first, then] += 1
paid = [-np.log(counts[f, t] / counts[f].sum()) for f, t in pairs]
assert np.array_equal(counts, count_pairs(word, V))
print("surprises", *(f"{abs(p):.3f}" for p in paid), f" mean {np.mean(paid):.3f}")

# %% [markdown]
# ## Build it: count
#
# The text is this chapter's stories. We count pairs in some of them and are surprised by others. To every count we add
# a tenth: a pair that was never seen becomes unlikely, not impossible. (With a zero, one unexpected letter would cost
# $-\ln 0$: everything.)

# %%
rng = np.random.default_rng(0)
token, unseen = (encode_characters(tell_stories(rng, n)) for n in (250, 400))
counted = share_counts(count_pairs(token, V), smoothing=0.1)
print(f"{len(token):,} letters of {V} kinds; most likely after h: {ALPHABET[counted[ALPHABET.index('h')].argmax()]!r}")

# %% [markdown]
# ## Build it again: learn
#
# Now forget the counts. The model is a table of logits, one row for each first letter, all zeros: no idea. A row is
# looked up, made into probabilities, and surprised by the letter that came. Then each row moves by *probability minus
# one-hot*, the slope of the last notebook but one.


# %%
def step_downhill(table, token, rate):
    """One step on the whole text, row by row; returns the new table and the loss before the step."""
    slope, loss = np.zeros_like(table), 0.0
    for first, then in zip(token, token[1:]):
        p = np.exp(table[first]) / np.exp(table[first]).sum()
        loss -= np.log(p[then])
        slope[first] += p - np.eye(V)[then]  # probability minus one-hot, into the row that was used
    n = len(token) - 1
    return table - rate * slope / n, loss / n


# %%
table, short = np.zeros((V, V)), token[:600]
for _ in range(3):
    table, loss = step_downhill(table, short, rate=20.0)
    print(f"loss {loss:.4f}")
module_table, module_losses = train_bigram(short, V, 3, 20.0)
assert np.allclose(table, module_table, atol=1e-12)
assert np.isclose(loss, module_losses[-1])
print("naive and module agree")

# %% [markdown]
# The first loss is $\ln V$: who has no idea pays the same for every letter.
#
# ## The derivation: where does descent come to rest?
#
# Letters: $z_{uv}$ is the logit of letter $v$ after letter $u$, $p_{uv}$ its probability, $c_{uv}$ how often the pair
# stands in the text, $c_u = \sum_v c_{uv}$ how often $u$ is followed by anything, $N$ the number of pairs.
#
# 1. The loss is $L = \frac1N \sum_{u,v} c_{uv}\,(-\ln p_{uv})$: equal pairs cost the same, so they can be counted.
# 2. Every place with first letter $u$ gives the row $z_u$ a slope $p_u - \text{one-hot}$. Sum over the places:
#    $dz_{uv} = \frac1N\,(c_u\, p_{uv} - c_{uv})$.
# 3. At rest all slopes are zero: $p_{uv} = c_{uv}/c_u$. **Descent on the surprise comes to rest at the counts.** It was
#    never told to count.
# 4. Rows of rare letters have small slopes ($c_u / N$ is small), so they arrive late. That is the gorge of `descent`
#    again.
#
# Step 2 against the module's backward pass:

# %%
logits = rng.standard_normal((V, V))
p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
c = count_pairs(token, V)
by_counts = (c.sum(axis=1, keepdims=True) * p - c) / c.sum()
assert np.allclose(bigram_backward(bigram_forward(logits, token)[1]), by_counts, atol=1e-15)
print(f"the sum over {len(token) - 1:,} places is the formula with counts")

# %% [markdown]
# ## The experiment: do the two ways meet?

# %%
table, losses = train_bigram(token, V, 300, 20.0)
learned = np.exp(table) / np.exp(table).sum(axis=1, keepdims=True)
exact = share_counts(c)  # without smoothing
rows = c.sum(axis=1) > 100
far = np.abs(learned - exact)[rows].max()
best = -np.sum(c[c > 0] * np.log(exact[c > 0])) / c.sum()
assert losses[-1] - best < 0.02
title = "Descent finds the table of counts without having been told to count"
draw_tables({"counted": exact, "learned by 300 steps": learned}, ALPHABET, title)

# %%
curves = {"learned table, step by step": (range(300), losses)}
title = f"The loss falls from ln {V} = {losses[0]:.2f} to what counting pays, {best:.2f}"
plot_to_floor(curves, ["content"], best, "counted table, same text", title, "step", "nats a letter", ylim=(0, 3.2))

# %% [markdown]
# Both tables on stories that neither has seen, and the floor that the last notebook but one has computed:


# %%
def price(logits):
    return bigram_forward(logits, unseen)[0]


print(f"unseen stories: counted {price(np.log(counted)):.3f}, learned {price(table):.3f}, floor {story_floor():.3f}")
gap = abs(price(np.log(counted)) - price(table))
assert gap < 0.02

# %% [markdown]
# ## It writes
#
# A model of the next letter can write: look up the row of the last letter, draw a letter with these probabilities,
# append it, repeat. The **temperature** divides the logits first: below 1 it prefers the likely even more.

# %%
start = encode_characters("the ").tolist()
for temperature in (1.0, 0.5):
    written = write_tokens(lambda so_far: table[so_far[-1]], start, 60, np.random.default_rng(3), temperature)
    print(f"temperature {temperature}: {decode_characters(written)}")

# %% [markdown]
# Letters follow letters as they should, and no word is safe: at each letter the model has forgotten how the word began.
# Where does it pay? Letter by letter:

# %%
line = "the owl sang in the oak. "
seen = encode_characters(line)
nats = np.array([0.0, *(-np.log(learned[f, t]) for f, t in zip(seen, seen[1:]))])
draw_surprises({"bigram": (line, nats)}, "The bigram pays at every letter that more than one can follow")

# %% [markdown]
# ## Change this, predict, run
#
# The cell reverses the text, so that the model learns which letter comes *before* which. Predict: is the loss higher,
# lower, or the same? (Do not think of meaning. Think of $\sum c_{uv} \ln c_{uv}$.)
#
# <details><summary>Afterwards</summary>
#
# The same, but for the ends of the text. The pairs are the same pairs; each direction pays the entropy of pairs minus
# the entropy of single letters. A bigram model cannot tell whether a language is read from left to right.
#
# </details>


# %%
def floor_of(tokens):
    """What the exact table of counts pays on its own text."""
    c = count_pairs(tokens, V)
    return -np.sum(c[c > 0] * np.log(share_counts(c, 1e-12)[c > 0])) / c.sum()


print(f"forwards {floor_of(token):.4f}, backwards {floor_of(token[::-1]):.4f}")

# %% [markdown]
# ## What you can now do
#
# Build the smallest language model twice, by counting and by descent; prove that both come to the same table; make it
# write.
#
# ## Exercises
#
# Graded: `bigram_backward` (`make check CH=00`). By thought alone:
#
# 1. A table for the last *two* letters has how many rows? For the last ten? Why is that the end of tables?
#
# <details><summary>Solution</summary>
#
# $V^2$ and $V^{10}$; with 23 letters, 529 and $4.1 \cdot 10^{13}$. Almost all rows would never be seen. And rows know
# nothing of each other: what was learned about *the cat sa* says nothing about *the dog sa*. The next notebook shares.
#
# </details>
#
# 2. Why does smoothing hurt on the training text and help on unseen text?
#
# <details><summary>Solution</summary>
#
# By step 3 the plain shares are the best for the text that was counted: any change costs. On unseen text a pair may
# come that was never counted, and its surprise under plain shares is infinite.
#
# </details>
#
# 3. The learned table does not need smoothing. Why is no logit minus infinity after 300 steps?
#
# <details><summary>Solution</summary>
#
# The slope of a pair never seen is $c_u p_{uv}/N$: it pushes down, less and less as $p_{uv}$ shrinks, and arrives
# nowhere in finite time. Stopping early is a smoothing too.
#
# </details>
