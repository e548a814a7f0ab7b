# %% [markdown]
# # Multi-head attention
#
# **The question.** *The cat saw the dog that sat.* The verb would like to know two things: **who** sat, and **whom** it
# had to do with. They stand in two places. One softmax gives one mixture, and a mixture of *cat* and *dog* is neither.
# How does a token ask several questions at once, and what does it cost?
#
# You come back from the market with one bag in which fish and flowers lie mixed, three parts to one. Nobody can sort it
# again. So take two bags, half the size each: with the one you ask for fish, with the other for flowers. Each bag is
# filled by its own wish. The two together are no heavier than the big one was.
#
# The bags are called **heads**. At the end a layer with two of them answers both questions after fifty steps, and a
# layer with one, of the same number of weights, still pays after three hundred.

# %%
import numpy as np
from causal_attention import attend_causally_forward
from multi_head_attention import (
    AttentionWeights,
    merge_heads,
    multi_head_backward,
    multi_head_forward,
    split_heads,
    weight_gradient,
)

from utils.drawings_01 import draw_split, draw_who
from utils.gradient_check import central_difference, relative_error
from utils.plots_02 import plot_lines
from utils.story_task import ACTORS, WIDTH, draw_sentences, show_rows, spell_words, train_who

# %% [markdown]
# ## Numbers to follow with a pencil
#
# Three tokens: $(3, 0)$, $(0, 3)$ and $(3, 3)$. Whom does the last one look at? Queries are the tokens doubled, keys
# are the tokens doubled.
#
# **One head of width 2.** The query is $(6, 6)$, the keys $(6, 0), (0, 6), (6, 6)$. Scores over $\sqrt 2$:
# $36/1.414 = 25.5$, $25.5$ and $72/1.414 = 50.9$. The third wins by 25.5: it looks at itself and nothing else.
#
# **Two heads of width 1.** Head 0 sees the first coordinates only: query 6, keys $6, 0, 6$, scores $36, 0, 36$: shares
# $\tfrac12, 0, \tfrac12$. Head 1 sees the second coordinates: scores $0, 36, 36$, shares $0, \tfrac12, \tfrac12$. The
# same numbers, cut in two, and each half looks where *it* finds something.

# %%
token, eye = np.array([[[3.0, 0.0], [0.0, 3.0], [3.0, 3.0]]]), np.eye(2)
both = AttentionWeights(q_proj=2 * eye, k_proj=2 * eye, v_proj=eye, o_proj=eye)
for n_heads in (1, 2):
    shares = multi_head_forward(token, both, n_heads)[1][1][3][0, :, -1]
    for h, share in enumerate(shares):
        print(f"H = {n_heads}, head {h}: the last token shares {share.round(3)}")

# %% [markdown]
# ## Heads are a reshape
#
# To cut a row into heads nothing is computed; numbers change places. Two tokens of width 6, numbers counted through:
# token 0 has 0 to 5, token 1 has 6 to 11. Head 0 gets the first three numbers *of each token*. Cut the last axis, then
# bring the head axis to the front.
#
# On the right is a mistake that every shape check lets through: cut and carried in one `reshape`. A head then holds
# different pieces of **one** token as if they were different tokens. It trains, to a worse loss, and the causal mask no
# longer means anything.

# %%
counted = np.arange(12).reshape(1, 2, 6)
right = split_heads(counted, 2)[0]
wrong = counted.reshape(2, 2, 3)  # the same shape, without exchanging the axes
draw_split(counted[0], right, wrong)

# %% [markdown]
# ## Build it
#
# Letters: $S$ tokens of width $D$, $H$ heads, $K$ and $U$ the widths of key and value *of one head*. The four matrices
# hold all heads, one below the other: rows $hK$ to $(h+1)K$ of `q_proj` are the wish of head $h$. `o_proj` brings the
# answers, laid end to end, back to width $D$.


# %%
def one_head(x, w_q, w_k, w_v):
    """The causal attention of the last notebook, on one text [S, D]."""
    q, k, v = x @ w_q.T, x @ w_k.T, x @ w_v.T
    score = np.where(np.tri(len(x)) > 0, q @ k.T / np.sqrt(q.shape[1]), -np.inf)
    share = np.exp(score - score.max(axis=1, keepdims=True))
    return share / share.sum(axis=1, keepdims=True) @ v


def many_heads(x, w, H):
    """Each head on its own, the answers side by side, then o_proj."""
    cut = zip(np.split(w.q_proj, H), np.split(w.k_proj, H), np.split(w.v_proj, H))
    return np.concatenate([one_head(x, *parts) for parts in cut], axis=1) @ w.o_proj.T


# %%
rng = np.random.default_rng(0)
D, H, K, U, S = 7, 3, 2, 5, 4
weights, x = AttentionWeights.init(rng, D, H, K, U), rng.standard_normal((S, D))
out, cache = multi_head_forward(x[None], weights, H)
assert np.allclose(out[0], many_heads(x, weights, H), atol=1e-14)
print("naive and module agree:", out.shape)

# %% [markdown]
# ## The derivation
#
# 1. **Project once, cut later.** One product $x W_Q^\top$ makes the queries of all heads; head $h$ is its columns $hK$
#    to $(h+1)K$. Same numbers as $H$ small products, and faster.
# 2. **Attend in each head**, with the width $K$ **of the head** under the root.
# 3. **Lay end to end and project**: $u = W_O\, [o_1; \dots; o_H]$ (V3's Eq. 11).
# 4. **Laying end to end and projecting is adding.** Cut $W_O$ into blocks of columns, one for each head:
#    $u = \sum_h W_{O,h}\, o_h$. So heads do not compete for the output: each adds its own finding to it.
# 5. **What a head is.** $W_{O,h}\, o_h = \sum_t p_{h,t}\, (W_{O,h} W_{V,h})\, x_t$: the shares $p_{h,t}$ say from
#    *where*, the product $W_{O,h} W_{V,h}$ says *what* of it. One head has one *where* for everything it carries.
# 6. **Cost.** With $K = U = D/H$ the four matrices have $4D^2$ numbers, whatever $H$ is. More heads cost nothing but
#    narrower ones.
# 7. **Backwards** go the same doors in reverse. Split $du\, W_O$ where the forward merged; attend backwards in each
#    head; merge $dq, dk, dv$ where it split; and the three roles of a row add up:
#    $dx = dq\, W_Q + dk\, W_K + dv\, W_V$.
#
# Step 4 in numbers: the layer is the sum of its heads.

# %%
total = np.zeros_like(x)
for h in range(H):
    q, v = slice(h * K, (h + 1) * K), slice(h * U, (h + 1) * U)
    total += one_head(x, weights.q_proj[q], weights.k_proj[q], weights.v_proj[v]) @ weights.o_proj[:, v].T
assert np.allclose(total, out[0], atol=1e-14)
query = x[None] @ weights.q_proj.T
assert np.array_equal(merge_heads(split_heads(query, H)), query)
print("the layer is the sum of its heads; merging undoes splitting")


# %% [markdown]
# And step 7. The core's backward pass is that of `self_attention`; new are only the doors.


# %%
def naive_backward(du, x, w, H):
    """One text: back through o_proj, each head, and the three projections."""
    do = np.split(du @ w.o_proj, H, axis=1)
    dx, parts = np.zeros_like(x), {"q": [], "k": [], "v": []}
    for h, (w_q, w_k, w_v) in enumerate(zip(np.split(w.q_proj, H), np.split(w.k_proj, H), np.split(w.v_proj, H))):
        q, k, v = x @ w_q.T, x @ w_k.T, x @ w_v.T
        share = attend_causally_forward(q, k, v)[1][3]
        worth = do[h] @ v.T
        dscore = share * (worth - (share * worth).sum(axis=1, keepdims=True)) / np.sqrt(q.shape[1])
        for name, slope, matrix in (("q", dscore @ k, w_q), ("k", dscore.T @ q, w_k), ("v", share.T @ do[h], w_v)):
            parts[name].append(slope.T @ x)
            dx += slope @ matrix
    return dx, {f"{n}_proj": np.concatenate(p) for n, p in parts.items()}


# %%
du = rng.standard_normal(out.shape)
dx, gradients = multi_head_backward(du, cache)
naive_dx, naive_gradients = naive_backward(du[0], x, weights, H)
assert np.allclose(dx[0], naive_dx, atol=1e-13)
assert all(np.allclose(getattr(gradients, n), g, atol=1e-13) for n, g in naive_gradients.items())
assert np.allclose(gradients.o_proj, weight_gradient(du, cache[2]), atol=1e-14)
by_trying = central_difference(lambda: np.sum(du * multi_head_forward(x[None], weights, H)[0]), weights.o_proj)
print("naive and module agree; o_proj by central differences:", relative_error(gradients.o_proj, by_trying) < 1e-8)

# %% [markdown]
# ## The experiment: who, and whom?
#
# The sentences of `self_attention` again: *the cat that saw the dog sat*, *the cat saw the dog that sat*. The verb's
# row must give two answers now: who did it, and who was the other. One head of width 16 against two of width 8: the
# same number of weights, the same training, three seeds.

# %%
curves, trained = {}, {}
for n_heads in (1, 2):
    ends = []
    for seed in range(3):
        layer = AttentionWeights.init(np.random.default_rng(seed), WIDTH, n_heads, 16 // n_heads, 16 // n_heads)
        forward = lambda rows, w, n=n_heads: multi_head_forward(rows, w, n)  # noqa: E731
        losses, right = train_who(layer, forward, multi_head_backward, n_answers=2, seed=seed)
        ends.append(right[-50:].mean(axis=0))
        curves[f"{n_heads} head{'s' * (n_heads > 1)}, seed {seed}"] = (range(len(losses)), losses)
    trained[n_heads] = layer
    who, other = np.mean(ends, axis=0)
    print(f"{n_heads} head(s): right about who {who:.0%}, about the other {other:.0%}")

# %%
one, two = (np.mean([c[1][-50:].mean() for n, c in curves.items() if n.startswith(str(h))]) for h in (1, 2))
assert two < 0.01 < 0.05 < one
title = f"One head still pays {one:.2f} nats an answer, two heads {two:.3f}"
plot_lines(curves, ["ink"] * 3 + ["content"] * 3, title, "step", "surprise, nats an answer")

# %% [markdown]
# Where do the two heads look? Here is one sentence, and the shares of the verb's row, head by head; below it the single
# head of the other layer, which must mix.

# %%
words, answers = draw_sentences(np.random.default_rng(11), 1)
shares = {n: multi_head_forward(show_rows(words), trained[n], n)[1][1][3][0, :, -1] for n in (1, 2)}
spelled = spell_words(words[0])
lines = {f"two heads: head {h}": (spelled, shares[2][h], 6) for h in range(2)} | {
    "one head": (spelled, shares[1][0], 6)
}
draw_who(lines, "Two heads look at two places; a single one has to mix them")

# %% [markdown]
# (Which head takes which question is chance; another seed may exchange them, or share the work otherwise.)
#
# ## The trained model speaks: who sat?
#
# The layer above has learned one question in seconds. **The model that runs through this book** has read more than a
# hundred thousand small stories and some pages of Python (`make book`; 3.2 million weights, four layers of four heads).
# Its keys and values are made in a thriftier way, which is chapter 02; what a head does with them stands above. Chapter
# 06 opens it. Here it reads *who sat* in both forms, as words now.

# %%
from utils.story_model import ask_who, find_word, open_book

book, scene = open_book(), "The cat was in the barn. The dog was there too. "
form = {"cat": "The cat that saw the dog sat.\nWho sat? The", "dog": "The cat saw the dog that sat.\nWho sat? The"}
for right, text in form.items():
    logits = book.read(scene + text).logits[-1]
    odds = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    cat, dog = (odds[book.encode(f" {name}")[1]] for name in ("cat", "dog"))
    print(f"the {right} sat; the model says: cat {cat:.0%}, dog {dog:.0%}, anything else {1 - cat - dog:.0%}")

# %% [markdown]
# It is sure that one of the two comes, and both forms leave it as undecided as a coin. Is that so in general? 60 new
# stories end in "Who sat?" or the like, each with two people, or two animals, of whom one did it. And where do the
# heads look from the last word before the answer: at the right name, or at the other one?

# %%
right, other, told = np.zeros((4, 4)), np.zeros((4, 4)), []
for question in (asked := ask_who(60)):
    seen = book.read(question.text)
    look = seen.attention[:, :, -1]  # [layers, heads, tokens]
    right += look[:, :, find_word(seen.words, question.answer)].sum(axis=-1) / len(asked)
    other += look[:, :, find_word(seen.words, question.other)].sum(axis=-1) / len(asked)
    told += book.spell([seen.logits[-1].argmax()])
says = [[q.answer, q.other].index(w) if w in (q.answer, q.other) else 2 for q, w in zip(asked, told)]
layer, head = np.unravel_index(np.argmax(right + other), right.shape)
print(f"says the right one {says.count(0)} times, the other {says.count(1)}, somebody else {says.count(2)}")
looks = right[layer, head], other[layer, head]
print(f"layer {layer}, head {head} looks at the right name {looks[0]:.0%}, at the other {looks[1]:.0%}")

# %%
lines, n = {}, len(book.encode(scene))
for who, text in form.items():
    seen = book.read(scene + text)
    lines[f"the {who} sat"] = (seen.words[n:], seen.attention[layer, head, -1, n:], len(seen.words) - n - 1)
draw_who(lines, f"Layer {layer}, head {head} of the trained model, from the word in front of the answer")

# %% [markdown]
# The head looks for whoever is in the story, at the right one more, and most answers are right. Yet two sentences that
# differ in nothing but the *form* get the same answer. So the form is not what it goes by; who acts in a story is also
# named more often, and that may be its cue. What the layer of this notebook learns in seconds, to ask for name and
# place at once, this model has not learned yet (half an hour on one busy core; `training.json` beside the weights has
# all its marks, poor ones too).
#
# ## Change this, predict, run
#
# The single head gets better, slowly. How does it do it at all, with one mixture? Predict: will it give the doer always
# the larger share, say $0.7$ and $0.3$? Then look at its shares, pair by pair. And does more *width* help it? (The cell
# tries 16 and 64 numbers.)
#
# <details><summary>Afterwards</summary>
#
# If the shares were the same for everybody, no matrix could give both answers. Suppose one could: it makes the other
# actor win for every one of the 12 ordered pairs. Exchange names in it, average over all exchanges, and it still does.
# But then it treats all actors alike, so from $0.7$ of one and $0.3$ of the other it can only prefer the larger part
# or, turned around, the absent ones, whose part is zero. What the head does instead is a trick: it looks at *some
# actors* more than at others, whoever did it. So the twelve pairs come to lie at twelve different places, and with much
# width and patience a matrix can tell them apart. A second *where* does it at once.
#
# </details>

# %%
for width in (16, 64):
    layer = AttentionWeights.init(np.random.default_rng(0), WIDTH, 1, width, width)
    losses, right = train_who(layer, lambda rows, w: multi_head_forward(rows, w, 1), multi_head_backward, n_answers=2)
    who, other = right[-50:].mean(axis=0)
    print(f"one head of width {width}: {losses[-50:].mean():.2f} nats; who {who:.0%} right, the other {other:.0%}")

# %%
words, answers = draw_sentences(np.random.default_rng(5), 100)
share = multi_head_forward(show_rows(words), layer, 1)[1][1][3][:, 0, -1]
for pair in [(0, 1), (1, 0), (1, 2), (2, 1)]:
    row = next(i for i, answer in enumerate(answers) if tuple(answer) == pair)
    places = [spell_words(words[row]).index(ACTORS[a]) for a in pair]
    print(f"{ACTORS[pair[0]]} did it, other {ACTORS[pair[1]]}: shares {share[row, places].round(2)}")

# %% [markdown]
# ## What you can now do
#
# Cut a layer into heads and put it together again, forward and backward; say what a head is (one *where*, with a *what*
# of low rank) and what it costs; recognise the reshape that mixes tokens. DeepSeek-V3 has 128 heads with a key of 128 +
# 64 numbers and a value of 128 each. Keeping the keys and values of all heads for all earlier tokens is what chapter 02
# makes small.
#
# ## Exercises
#
# Graded: `split_heads`, `multi_head_backward` (`make check CH=01`). By thought alone:
#
# 1. Count the weights and the multiplications of the four projections for $H$ heads with $K = U = D / H$. Where does
#    $H$ appear?
#
# <details><summary>Solution</summary>
#
# $4 D^2$ weights, $4 D^2$ multiplications per token; $H$ nowhere. In the core, $S \cdot T \cdot K$ products per head
# for the scores and as many for the mixture: $2 S T D$ for all heads together. Only the softmax grows with $H$: it runs
# over $H S T$ scores.
#
# </details>
#
# 2. Exchange two heads, that is, the blocks of rows of $W_Q, W_K, W_V$ and the blocks of columns of $W_O$. What happens
#    to the output?
#
# <details><summary>Solution</summary>
#
# Nothing: a sum does not care for the order of its terms (step 4). `test_heads_may_trade_places_if_their_weights_do`.
# It is also why heads can be spread over several devices: each computes its term, and one sum at the end joins them.
#
# </details>
#
# 3. Someone laid heads out *interleaved*: head $h$ takes the numbers $h, h + H, h + 2H, \dots$ of a row. Training from
#    scratch works as well. When does it show?
#
# <details><summary>Solution</summary>
#
# As soon as weights come from elsewhere: a released checkpoint has blocks. It is only a permutation of rows, so a model
# trained with it is as good; a model loaded into it writes nonsense.
# `test_a_head_gets_neighbouring_numbers_of_each_token`.
#
# </details>
