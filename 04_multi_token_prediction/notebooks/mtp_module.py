# %% [markdown]
# # How can a model that guesses one word guess two?
#
# **The question.** *The cat that heard the …* The model has just written *dog*. To learn what comes after it, all
# layers would have to run again, 61 of them in V3. But its hidden row, from which it guessed *dog*, already holds what
# it thought about the text: that a cat is doing something, that it heard somebody. Can the next guess be had for less?
#
# Think of an interpreter with an assistant. The interpreter listens, thinks, and says a word. The assistant has not
# listened to the speech. But she is handed the interpreter's **notes** as they were just before he spoke, and she hears
# the one thing that the notes cannot contain: **which word** he then chose. Notes and word, side by side, are enough to
# make a good guess at his next word; and she needs one thought for it where he needs sixty.
#
# The assistant is the **multi-token-prediction module**, MTP. The notes are the hidden row $h_i$, the word is the
# embedding of $t_{i+1}$, and her guess is at $t_{i+2}$. At the end of this notebook such a module, trained on the
# stories of chapter 00, foretells what the *cat* does; and then we take its notes away, and its word, and exchange them
# with each other.

# %%
from dataclasses import replace
from functools import partial

import numpy as np
from causal_block import compact_block_forward
from mtp_module import MtpWeights, combine_backward, combine_forward, mtp_backward, mtp_forward, swap_order
from small_language_model import AdamW, SmallModel, loss_and_gradients, main_forward, name_arrays

# %%
from utils.drawings_04 import draw_module, draw_orders
from utils.gradient_check import central_difference, relative_error
from utils.plots_04 import plot_bars
from utils.story_drafts import draw_stories, floor_rows, load_stories, mean_price, price_rows

# %%
draw_module()

# %% [markdown]
# ## Numbers to follow with a pencil
#
# Rows of width 2. The notes are $h = (0, 2)$, the word's embedding is $e = (5, 0)$.
#
# 1. **Norm each by itself.** Divide by the root mean square. For $h$: $\sqrt{(0 + 4)/2} = 1.414$, so $(0, 1.414)$. For
#    $e$: $\sqrt{25/2} = 3.536$, so $(1.414, 0)$. The word was more than twice as long as the notes; now both are heard
#    alike.
# 2. **Lay them end to end**, the word first: $(1.414, 0, 0, 1.414)$.
# 3. **Project back** to width 2 by a matrix that takes the first and the last number: $(1.414, 1.414)$. With the notes
#    first, the same matrix would have met $(0, 1.414, 1.414, 0)$ and taken $(0, 0)$.
#
# Backwards, for a word $e = (6, 8)$ and a slope of $(1, 0)$ at its normed half. Its root mean square is
# $\sqrt{50} = 7.07$, the normed row $(0.849, 1.131)$. Their product's mean is $0.849/2 = 0.424$. What arrives is
# $\big((1, 0) - 0.424\,(0.849, 1.131)\big) / 7.07 = (0.0905, -0.0679)$. At a right angle to $(6, 8)$: how long the
# embedding is does not matter, so no slope points along it.

# %%
take_first_and_last = np.array([[1.0, 0, 0, 0], [0, 0, 0, 1.0]])
weights = MtpWeights(np.ones(2), np.ones(2), take_first_and_last, np.ones(2))
for order in ("released", "paper"):
    pair, _ = combine_forward(weights, np.array([[0.0, 2.0]]), np.array([[5.0, 0.0]]), order)
    print(f"{order:8} order: {pair[0].round(3)}")
_, cache = combine_forward(weights, np.array([[0.0, 2.0]]), np.array([[6.0, 8.0]]))
print("slope at the embedding:", combine_backward(np.array([[1.0, 0.0]]), cache)[1][0].round(4))

# %% [markdown]
# ## Build it
#
# Letters: $D$ the width, $S$ rows. The module owns three norms and the matrix `eh_proj` $[D, 2D]$ (the name says it:
# embedding, hidden), and a block. Embedding and head are the main model's.


# %%
def norm(row, weight):
    return weight * row / np.sqrt(np.mean(row**2) + 1e-6)


def naive_pair(h, e, w):
    """Notes and word, normed apart, the word first, projected back to width D."""
    return w.eh_proj @ np.concatenate([norm(e, w.enorm), norm(h, w.hnorm)])


def naive_module(hidden, embedding, w, block):
    """Pairs, a block, a norm of its own; what comes out goes to the shared head."""
    pairs = np.array([naive_pair(h, e, w) for h, e in zip(hidden, embedding)])
    return np.array([norm(row, w.shared_head_norm) for row in block(pairs)])


# %%
rng = np.random.default_rng(0)
w = MtpWeights.init(rng, 6)
for weight in (w.enorm, w.hnorm, w.shared_head_norm):
    weight[:] = 1 + rng.random(6)
hidden, embedding, at = rng.standard_normal((1, 5, 6)), rng.standard_normal((1, 5, 6)), np.arange(5)[None]
out, cache = mtp_forward(w, hidden, embedding, at, lambda x, position: (x.cumsum(axis=1), None))
assert np.allclose(out[0], naive_module(hidden[0], embedding[0], w, lambda x: x.cumsum(axis=0)), atol=1e-14)
print("naive and module agree, with a running sum for a block:", out.shape)

# %% [markdown]
# ## The derivation
#
# A second module could stand on the first and look one word further still. So modules are numbered by their **depth**
# $k = 1, 2, \ldots$, the main model is depth 0, and a raised $k$ says whose row it is. V3 has depth 1 only.
# $\mathrm{Emb}(t)$ is the embedding of token $t$, $h^0_i$ the main model's row $i$ behind its last norm, $M_k$ the
# matrix `eh_proj` of depth $k$, $\mathrm{TRM}_k$ its block (a layer of the transformer), $[a\,;b]$ two rows end to end.
#
# 1. **The pair**, Eq. (21): $h'^k_i =
#    M_k\,[\,\mathrm{RMSNorm}(h^{k-1}_i)\,;\,\mathrm{RMSNorm}(\mathrm{Emb}(t_{i+k}))\,]$.
# 2. **One block**, Eq. (22): $h^k = \mathrm{TRM}_k(h'^k)$. It is causal: row $i$ sees the pairs up to $i$, and with
#    them the words up to $t_{i+k}$. Its target is $t_{i+k+1}$, which it has not seen.
# 3. **The shared head**, Eq. (23), behind the module's own norm `shared_head.norm`.
# 4. **Backwards through the pair.** $M^\top dy$ is the slope at the row of $2D$ numbers. It splits: the first half goes
#    back through the word's norm, the second through that of the notes. $dM$ is $dy$ times the joined row.
# 5. **Three who learn.** The slope at the notes goes on into the main model: *it* learns to take notes that help with
#    the word after next. The slope at the embedding adds to the table's. And the shared head hears both guesses.


# %%
def norm_back(dy, row, weight):
    size = np.sqrt(np.mean(row**2) + 1e-6)
    g, unit = dy * weight, row / size
    return (g - unit * np.mean(g * unit)) / size


def naive_pair_back(dy, h, e, w):
    """Step 4: slopes at the notes, at the word, and at the matrix."""
    joined = np.concatenate([norm(e, w.enorm), norm(h, w.hnorm)])
    djoined = w.eh_proj.T @ dy
    D = len(h)
    return norm_back(djoined[D:], h, w.hnorm), norm_back(djoined[:D], e, w.enorm), np.outer(dy, joined)


# %%
dy = rng.standard_normal((5, 6))
dhidden, dembedding, named = combine_backward(dy[None], combine_forward(w, hidden, embedding)[1])
rows = [naive_pair_back(*each, w) for each in zip(dy, hidden[0], embedding[0])]
assert np.allclose(dhidden[0], [r[0] for r in rows], atol=1e-14)
assert np.allclose(dembedding[0], [r[1] for r in rows], atol=1e-14)
assert np.allclose(named["eh_proj"], sum(r[2] for r in rows), atol=1e-13)
print("naive and module agree")

# %% [markdown]
# The whole module: the norm behind the block first, then the block's own way back, then the pair. A running sum goes
# back as a running sum from the end.


# %%
def run(x, position):
    return x.cumsum(axis=1), None


def run_back(dy, cache):
    return dy[:, ::-1].cumsum(axis=1)[:, ::-1], None


# %%
dout = rng.standard_normal(out.shape)
dhidden, dembedding, dw, _ = mtp_backward(dout, cache, run_back)
slopes = {"hidden": (hidden, dhidden), "embedding": (embedding, dembedding), "eh_proj": (w.eh_proj, dw.eh_proj)}
for name, (array, ours) in slopes.items():
    by_trying = central_difference(lambda: np.sum(dout * mtp_forward(w, hidden, embedding, at, run)[0]), array)
    print(f"d{name:<10} agrees with central differences:", relative_error(ours, by_trying) < 1e-8)

# %% [markdown]
# ## Which half comes first?
#
# The report prints the notes first. The released weights are called `eh_proj`: embedding, then hidden, and vLLM,
# SGLang, Megatron and torchtitan all read them so. The shapes agree either way, so nothing crashes.

# %%
small = rng.standard_normal((3, 6))
draw_orders(small, swap_order(small))

# %%
exchanged = replace(w, eh_proj=swap_order(w.eh_proj))
released = combine_forward(w, hidden, embedding, "released")[0]
assert np.allclose(released, combine_forward(exchanged, hidden, embedding, "paper")[0], atol=1e-15)
print("with its halves exchanged and in the other order it gives the same")

# %% [markdown]
# ## The experiment: an assistant for the stories
#
# A model of one block reads the 224 sentences of chapter 00, word by word, with one module beside it. It learns from
# the sum of both losses, that of the module times 0.3 as in V3 (the next notebooks derive that sum). Since every
# sentence has a known probability, we know what the best reader would pay for each guess.

# %%
stories = load_stories()


def train(seed=0, steps=500):
    """One block and one module of width 24, by Adam."""
    sizes = {"vocab_size": len(stories.names), "hidden_size": 24, "n_heads": 2, "n_layers": 1}
    model = SmallModel.init(np.random.default_rng(seed), **sizes, dtype=np.float64)
    rng, optimizer = np.random.default_rng(seed), AdamW(dict(name_arrays(model)), decay=0.0)
    for step in range(steps):
        gradients = loss_and_gradients(model, *draw_stories(rng, stories))[1]
        optimizer.step(dict(name_arrays(gradients)), 0.02 * (1 - step / steps))
    return model


model = train()

# %% [markdown]
# Row $i$ of the module reads the main model's row $i$ and word $i + 1$. So of a sentence of 12 places the notes of
# places 0 to 9 meet the words 1 to 10.


# %%
def read_notes(model):
    """The main model's rows for every sentence: behind its last norm, and before it."""
    normed, (_, _, (unit, scale, _)) = main_forward(model, stories.tokens[:, :-1])
    return normed, unit / scale  # the norm had multiplied by `scale` to get `unit`


def module_price(model, notes, words, weights):
    """What the module pays for a guess, over all sentences as often as they are told."""
    block = partial(compact_block_forward, model.mtp_blocks[0], n_heads=2)
    at = np.broadcast_to(np.arange(10), words.shape[:2])
    rows = mtp_forward(weights, notes[:, :-1], words, at, block)[0]
    return mean_price(price_rows(rows @ model.lm_head.T, stories, depth=1), stories)


# %%
notes, before_norm = read_notes(model)
words, weights = model.embed_tokens[stories.tokens[:, 1:-1]], model.mtp[0]
main = mean_price(price_rows(notes @ model.lm_head.T, stories, depth=0), stories)
floors = [mean_price(floor_rows(stories, depth), stories) for depth in (0, 1)]
right = module_price(model, notes, words, weights)
assert right < floors[1] + 0.05
print(f"main model {main:.3f} nats a guess, floor {floors[0]:.3f}; module {right:.3f}, floor {floors[1]:.3f}")

# %% [markdown]
# The module is as good as anybody can be. And who sat? At *the cat that heard the dog* its guess must come from the
# notes (a cat does it) and the word (the clause is over).

# %%
line = ["^", "the", "cat", "that", "heard", "the", "dog"]
tokens = np.array([[stories.names.index(word) for word in line]])
told = main_forward(model, tokens[:, :-1])[0]
block = partial(compact_block_forward, model.mtp_blocks[0], n_heads=2)
rows = mtp_forward(weights, told, model.embed_tokens[tokens[:, 1:]], np.arange(6)[None], block)[0]
p = np.exp(rows[0, -1] @ model.lm_head.T)
p /= p.sum()
print("after “the cat that heard the dog”:", {stories.names[i]: round(float(p[i]), 2) for i in np.argsort(-p)[:4]})

# %% [markdown]
# ## Change this, predict, run
#
# Five ways to do it wrong, at this trained module. Order them from harmless to worst before you run:
#
# - the halves of `eh_proj` exchanged (the report's order with the released weights);
# - the notes taken *before* the main model's last norm (the report does not say which; `hnorm` norms them anyway);
# - the module's own norms replaced by none: notes and word joined as they are;
# - no notes: a row of zeros in their place;
# - no word: the mean embedding in its place.
#
# <details><summary>Afterwards</summary>
#
# Notes from before the last norm change almost nothing *here*: the norm's weights have hardly moved from one in this
# small model. In a large one they have. Without its notes the module is a little worse only, for its own block looks
# back over the words of earlier pairs and makes up most of them. Without the norms the two halves have sizes that it
# has never met. Without the word it is lost: it must guess over the gap, and was never trained to. And exchanged halves
# are the worst of all, several times dearer than blind guessing: a module that is sure, and wrong.
#
# </details>


# %%
def no_norms(model, notes, words):
    """Notes and word joined as they are."""
    pairs = np.concatenate([words, notes[:, :-1]], axis=-1) @ weights.eh_proj.T
    at = np.broadcast_to(np.arange(10), words.shape[:2])
    rows = compact_block_forward(model.mtp_blocks[0], pairs, at, 2)[0]
    unit = rows / np.sqrt(np.mean(rows**2, axis=-1, keepdims=True) + 1e-6)
    return mean_price(price_rows(unit * weights.shared_head_norm @ model.lm_head.T, stories, depth=1), stories)


# %%
paid = {
    "as trained": right,
    "notes before the last norm": module_price(model, before_norm, words, weights),
    "joined without norms": no_norms(model, notes, words),
    "no notes": module_price(model, 0 * notes, words, weights),
    "no word": module_price(model, notes, words * 0 + words.mean(axis=(0, 1)), weights),
    "halves exchanged": module_price(model, notes, words, replace(weights, eh_proj=swap_order(weights.eh_proj))),
}
guessing = np.log(len(stories.names))
title = f"Halves exchanged: {paid['halves exchanged']:.1f} nats; blind guessing among all words pays {guessing:.1f}"
plot_bars(paid, ["draft"] + ["wrong"] * 5, title, "nats a guess")

# %% [markdown]
# ## What you can now do
#
# Write an MTP module, forward and backward, around any block; say what it shares and what it owns (in V3 11.6 billion
# weights of its own, nearly all in its layer; `eh_proj` is 103 million of them); load released ones in the right order,
# and recognise the wrong one by what the guesses cost, since nothing else tells.
#
# ## Exercises
#
# Graded: `join_pair`, `join_pair_backward`, `module_backward` (`make check CH=04`). By thought alone:
#
# 1. The module gets $h_i$ behind the main model's last norm and norms it again with `hnorm`. Does the second norm
#    change anything?
#
# <details><summary>Solution</summary>
#
# A row of root mean square 1 would not change. But the last norm has a *weight*: the row that arrives is weighed, its
# root mean square is no longer 1, and its direction is not that of the row before the norm. So it matters which of the
# two the module was trained on. vLLM and SGLang feed the released weights with the row behind the norm, and so do we.
#
# </details>
#
# 2. How could you find the right order of the halves with released weights and no documentation?
#
# <details><summary>Solution</summary>
#
# Nothing crashes either way. Measure what the module is for: what its guesses cost on real text, or how many of its
# drafts are accepted.
#
# </details>
#
# 3. Why two norms, and not one over the joined row of $2D$ numbers?
#
# <details><summary>Solution</summary>
#
# One norm keeps the *ratio* of the halves. The stream grows from layer to layer, an embedding does not; if the notes
# are thirty times as long as the word, the word is thirty times fainter behind a joint norm, and the module has to
# shout it up with large weights in `eh_proj`. Normed apart, both halves start equal, however the stream grows during
# training.
#
# </details>
