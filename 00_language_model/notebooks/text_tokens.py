# %% [markdown]
# # From text to numbers
#
# **The question.** A model can multiply and add, and nothing else. How does a text become something that can be
# multiplied? And can we get it back?
#
# Before computers, a printer set a page from a case of small metal letters, one grip for each letter. Good printers had
# a trick: words like *the* come so often that it pays to cast them in one piece. A case with more pieces takes more
# room, but a page takes fewer grips. How many pieces should the case have, and which ones?
#
# A language model has the same case. Its pieces are called **tokens**, the case is the **vocabulary**, and a text is a
# row of numbers, each the number of a piece. DeepSeek-V3's case has 129,280 pieces. This notebook builds one, and then
# gives each piece what a model can work with: a row of numbers of its own.
#
# (A **language model** is a machine that is shown the tokens so far and says how likely each token of the vocabulary is
# to come next. That is all it does; writing is asking it again and again. The chapter ends with one that you built.)

# %%
from collections import Counter

import numpy as np
from text_tokens import (
    decode_pairs,
    embed_backward,
    embed_forward,
    encode_pairs,
    learn_merges,
    spell_tokens,
    tell_stories,
)

from utils.drawings_00 import draw_lookup, draw_merging
from utils.plots_02 import plot_lines

# %% [markdown]
# ## Letters are numbers already
#
# Every text in a computer is stored as **bytes**, numbers from 0 to 255. A plain English letter takes one byte, an
# accented one two, a Chinese character three. So there is a vocabulary of 256 tokens that can write anything. Nothing
# is ever unknown to it.

# %%
for text in ("the cat", "café", "猫"):
    print(f"{text!r:10} {list(text.encode())}")

# %% [markdown]
# It has one fault: the rows are long. A model looks at a limited number of tokens, and its work grows with their
# number. So we cast pieces.
#
# ## Numbers to follow with a pencil
#
# Take *the cat sat on the mat*, 22 letters and blanks. Which two neighbours stand together most often? *a, t*: three
# times, in *cat*, *sat* and *mat*. Cast them as one piece, **at**, and the text has 22 − 3 = 19 tokens. Count again:
# *t, h* stand together twice, so cast **th** (17 tokens). Again: *th, e* twice, so cast **the** (15 tokens). A piece
# may be made of pieces.

# %%
text = "the cat sat on the mat"
merges = learn_merges(text, 3)
stages = {"bytes": list(text)}
for n in (1, 2, 3):
    spelled = spell_tokens(merges[:n])
    stages[f"merge {n}"] = [spelled[t].decode() for t in encode_pairs(text, merges[:n])]
draw_merging(stages, "Three merges: at, th, the; 22 tokens become 15")

# %% [markdown]
# ## Build it
#
# The recipe is called **byte-pair encoding**. It needs two small functions. The first counts pairs of neighbours; the
# second walks from left to right and replaces the pair wherever it stands.


# %%
def most_frequent_pair(tokens):
    """The pair of neighbours that occurs most often, and how often."""
    pairs = list(zip(tokens, tokens[1:]))
    return Counter(pairs).most_common(1)[0]  # of equals, the one that stands first


# %%
def replace_pair(tokens, pair, new):
    """The same tokens, with `new` wherever the pair stood."""
    out, i = [], 0
    while i < len(tokens):
        if i + 1 < len(tokens) and (tokens[i], tokens[i + 1]) == pair:
            out.append(new)
            i += 2  # both are used up
        else:
            out.append(tokens[i])
            i += 1
    return out


# %%
tokens, learned = list(text.encode()), []
for new in range(256, 259):  # numbers 0 to 255 are the bytes; pieces get the next ones
    pair, count = most_frequent_pair(tokens)
    tokens = replace_pair(tokens, pair, new)
    learned.append(pair)
    print(f"token {new} is the pair {pair}, {count} times; {len(tokens)} tokens are left")

# %% [markdown]
# ## What makes it exact
#
# 1. **Learning** is done once, on a large text: it gives a list of pairs, in order.
# 2. **Encoding** a new text applies the list from the top. Nothing is counted any more. The order matters: **the**
#    (token 258) can only be made once **th** (257) is there.
# 3. **Decoding** spells each token: its pair is replaced by its two parts until only bytes are left.
# 4. Each merge can be undone, so decoding what was encoded gives the text back, **every byte of it**, also for texts
#    that the list was never learned on. Pieces it does not know are simply not merged.
#
# The module does the same; it agrees on a text that has words never seen while learning.

# %%
story = tell_stories(np.random.default_rng(0), 200)
merges = learn_merges(story, 60)
new_text = "the fox that saw the café slept. 猫"
naive = list(new_text.encode())
for i, pair in enumerate(merges):
    naive = replace_pair(naive, pair, 256 + i)
assert naive == encode_pairs(new_text, merges)
assert decode_pairs(naive, merges) == new_text
print(f"naive and module agree: {len(new_text.encode())} bytes, {len(naive)} tokens, and back without a loss")
print([piece.decode(errors="replace") for piece in spell_tokens(merges)[-6:]])

# %% [markdown]
# The stories are this chapter's own text: 224 sentences about a cat, a dog, an owl and a fox, each drawn with a known
# probability. The last pieces cast are whole phrases of them.
#
# ## The experiment: a case is cast for one kind of text
#
# We learn up to 60 merges on the stories, and count how many tokens three texts need: other stories, a line of news,
# and a line of Python.

# %%
texts = {
    "other stories": tell_stories(np.random.default_rng(1), 40),
    "English it never saw": "the minister said on friday that the budget would be debated at the end of the month.",
    "Python": "def main(argv): return [int(x) for x in argv if x.isdigit()]",
}
n_merges = [0, 5, 10, 20, 40, 60]
per_token = {
    name: (n_merges, [len(t.encode()) / len(encode_pairs(t, merges[:n])) for n in n_merges])
    for name, t in texts.items()
}

# %%
gain = {name: values[-1] for name, (_, values) in per_token.items()}
assert gain["other stories"] > 3 > 1.5 > gain["Python"]
plot_lines(
    per_token,
    ["content", "#7BA3D3", "ink"],
    f"60 merges: stories shrink {gain['other stories']:.1f} times, Python {gain['Python']:.1f} times",
    "merges learned on stories",
    "bytes a token",
    ylim=(0, None),
)

# %% [markdown]
# So a vocabulary is a decision about what the model will read. The report says of V3's (section 4.1): byte-level pairs,
# 128 thousand tokens, and a training text chosen so that many languages shrink well.
#
# ## A row of numbers for each token
#
# Token 258 is not *more* than token 257. The numbers are names, and a model must not calculate with names. So each
# token gets a row of $D$ numbers of its own, and the model calculates with those. All rows together are a table with
# $V$ rows (one for each token of the vocabulary), the **embedding**. At first the rows are random. Training moves them:
# tokens that are followed by the same things come to have similar rows.

# %%
table = np.array([[0.9, 0.1, 0.4], [0.2, 0.8, 0.6], [0.5, 0.5, 0.1], [0.1, 0.3, 0.9]])
draw_lookup(["the", "cat", "the", "mat"], [0, 1, 0, 3], table)

# %% [markdown]
# To look a row up is to multiply by a **one-hot** row: all zeros, but for a single one at the place of the token.
# Nobody multiplies by all those zeros; but seen as a product, the way back is clear. Let $E$ be the table, $o_n$ the
# one-hot row of the $n$-th token and $x_n$ its looked-up row:
#
# 1. Forward: $x_n = o_n E$.
# 2. Training gives for each $x_n$ a **gradient** $dx_n$: how much the error would grow if $x_n$ grew a little. (The
#    notebook on `descent` says more about gradients; here we only pass them on.)
# 3. Backward: $dE = \sum_n o_n^\top dx_n$. The one-hot column sends $dx_n$ to the row of its token.
# 4. A token that occurs twice was used twice, and **gets the sum**. Rows of tokens that did not occur get nothing.

# %%
tokens = np.array([0, 1, 0, 3])
one_hot = np.eye(4)[tokens]
x, cache = embed_forward(tokens, table)
assert np.array_equal(x, one_hot @ table)
dx = np.array([[1.0, 0, 0], [10, 0, 0], [100, 0, 0], [1000, 0, 0]])
assert np.array_equal(embed_backward(dx, cache), one_hot.T @ dx)
print("gradients 1, 10, 100, 1000 arrive in the rows as", embed_backward(dx, cache)[:, 0])

# %% [markdown]
# ## Change this, predict, run
#
# 1. A text of 64 times the letter *a*. How many merges can be learned before no pair occurs twice, and how many tokens
#    are left then? Predict, then run.
# 2. The cell after it writes `d[tokens] += dx` instead of adding row by row. What will row 0 hold, 101, 100 or 1?
#
# <details><summary>Afterwards</summary>
#
# Each merge halves the text: 32, 16, 8, 4, 2. With two tokens left the pair occurs once, and learning stops: five
# merges. Row 0 holds 100: NumPy fetches `d[tokens]` once, adds, and writes back; of two equal tokens the last one wins.
# No error, no warning, and the most frequent tokens learn from one of their places only. It is a planted mistake of
# this chapter (`python -m utils.bugs 00`).
#
# </details>

# %%
letters = "a" * 64
found = learn_merges(letters, 100)
print(len(found), "merges,", len(encode_pairs(letters, found)), "tokens left")

# %%
d = np.zeros((4, 3))
d[tokens] += dx
print("row 0 holds", d[0, 0])

# %% [markdown]
# ## What you can now do
#
# Turn any text into tokens and back without a loss; say what a larger vocabulary buys and what it costs; look rows up
# and send their gradients home.
#
# ## Exercises
#
# Graded: `merge_pair` and `embed_backward` (`make check CH=00`). By thought alone:
#
# 1. DeepSeek-V3 has 129,280 tokens and rows of 7,168 numbers. How many numbers is its embedding?
#
# <details><summary>Solution</summary>
#
# $129{,}280 \cdot 7{,}168 = 926{,}679{,}040$. The output side has a table of the same size (`lm_head`).
#
# </details>
#
# 2. Why not make every word a token?
#
# <details><summary>Solution</summary>
#
# Words never end: names, endings, spelling mistakes, other languages, code. A list of words needs an *unknown* token,
# and what is unknown is lost. Pieces of bytes can write anything, and frequent words become one piece by themselves.
#
# </details>
#
# 3. Someone types the text `<end>` and the tokenizer has a special token of that name, by which a model ends its
#    answer. What must encoding do?
#
# <details><summary>Solution</summary>
#
# Spell it, `<`, `end`, `>`: text stays text. If typed text could become the special token, whoever writes a prompt
# could forge the frame of the conversation.
#
# </details>
