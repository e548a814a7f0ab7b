# %% [markdown]
# # Which row reads what, and what is it good for?
#
# **The question.** A text gives every row of a model one thing to learn: the next word. Multi-token prediction asks row
# $i$ for the word after the next as well, perhaps for the one after that. What may a row have read when it is asked?
# And does anybody learn more by it?
#
# A school class takes a dictation. The teacher reads a sentence word by word, and before each word every child writes
# down which word it expects. One child writes them all down, without a single mistake, week after week. Is it a genius?
# No, it sits where it can see the teacher's sheet. Nothing in its marks says so, except that they are too good.
#
# Most mistakes in this objective are seats of that kind, mistakes by *one place*. A row that has read its own target
# learns to copy. A row that is one place late learns something else than it is used for later. So we draw the grid
# first, catch a child that copies, and only then ask what the further guesses are good for.

# %%
import inspect
from functools import partial

import mtp_pretraining
import numpy as np
from causal_block import compact_block_forward
from cross_entropy import IGNORE
from mtp_module import combine_backward, combine_forward, mtp_forward, norm_rows_backward, norm_rows_forward

# %%
from mtp_pretraining import (
    Depth,
    depth_targets,
    index_rows,
    mtp_loss_backward,
    mtp_loss_forward,
    parallel_loss_backward,
    parallel_loss_forward,
)
from small_language_model import AdamW, SmallModel, loss_and_gradients, main_forward, name_arrays

# %%
from utils.drawings_04 import draw_chain_and_heads, draw_grid
from utils.gradient_check import central_difference, relative_error
from utils.plots_02 import plot_lines
from utils.plots_04 import plot_seeds
from utils.plots_studies import plot_study
from utils.story_drafts import draw_stories, floor_rows, load_stories, mean_price, price_rows

# %% [markdown]
# ## Numbers to follow with a pencil
#
# Two little texts lie in one window, *who is there ?* and *it rains*: six words $t_0 \ldots t_5$, the border between
# $t_3$ and $t_4$. The main model (depth 0) reads $t_i$ in row $i$ and is asked for $t_{i+1}$. Depth 1 reads row $i$ of
# the main model and word $t_{i+1}$, and is asked for $t_{i+2}$. Depth 2 reads row $i$ of depth 1 and word $t_{i+2}$,
# and is asked for $t_{i+3}$.
#
# 1. Rows: 5, 4, 3. One fewer with each depth, for the window ends.
# 2. Rows that count, whose words are all of one text: of depth 0 the rows 0, 1, 2, 4; of depth 1 the rows 0, 1; of
#    depth 2 the row 0. So 4, 2, 1.
# 3. A model that knows nothing of five possible words pays $\ln 5 = 1.609$ for each. Every depth is divided by the main
#    model's count, 4: $L_1 = 2 \cdot 1.609 / 4 = 0.805$ and $L_2 = 1.609 / 4 = 0.402$.
# 4. Weighed: $L_\text{MTP} = \tfrac{0.3}{2} (0.805 + 0.402) = 0.181$.

# %%
tokens, document = np.array([[4, 1, 3, 0, 2, 1]]), np.array([[0, 0, 0, 0, 1, 1]])
targets = {k: depth_targets(tokens, k, document)[0] for k in range(3)}
print("rows that count:", {k: int((t != IGNORE).sum()) for k, t in targets.items()})
draw_grid(["who", "is", "there", "?", "it", "rains"], 4, targets, IGNORE)

# %% [markdown]
# **h** is the hidden row, **E** the word that is read with it, crimson the guess; a dash is a guess that does not
# count.
#
# ## Build it
#
# Letters: a window of $S$ words, $T = S - 1$ rows of the main model; $k$ numbers the depths, of which there are $n$
# (the report writes $D$ for their number; in this book $D$ is the width). The pair and the norm are those of the
# notebook before; the block is a running mean, the simplest that is causal.


# %%
def naive_rows(tokens, document, depth):
    """For each row of a depth: its place, the word it reads, the word it is asked for, and whether that counts."""
    last = len(tokens) - 1
    rows = [(i, i + depth, i + depth + 1) for i in range(last - depth)]
    return [(i, read, target, document[i] == document[target]) for i, read, target in rows]


for k in range(3):
    mine = [tokens[0, target] if counts else IGNORE for _, _, target, counts in naive_rows(tokens[0], document[0], k)]
    assert mine == targets[k].tolist()
print("naive and module agree")


# %%
def cost(z, came):
    raised = np.exp(z - z.max())
    return -np.log(raised[came] / raised.sum())


def running_mean(x, position):
    return x.cumsum(axis=1) / (position[..., None] + 1), position


def running_mean_back(dy, position):
    return (dy / (position[..., None] + 1))[:, ::-1].cumsum(axis=1)[:, ::-1], None


# %%
def naive_chain(modules, embed, head, hidden, tokens, document, weight=0.3):
    """Each depth stands on the rows of the one before; all are divided by the main model's count."""
    n_main, losses = sum(counts for *_, counts in naive_rows(tokens, document, 0)), []
    for k, w in enumerate(modules, 1):
        rows = naive_rows(tokens, document, k)
        words = np.array([embed[tokens[read]] for _, read, _, _ in rows])
        pairs, _ = combine_forward(w, hidden[: len(rows)], words)
        mixed = pairs.cumsum(axis=0) / np.arange(1, len(rows) + 1)[:, None]
        hidden, _ = norm_rows_forward(mixed, w.shared_head_norm)
        paid = [cost(head @ row, tokens[target]) for row, (_, _, target, counts) in zip(hidden, rows) if counts]
        losses.append(sum(paid) / n_main)
    return weight / len(modules) * sum(losses), losses


# %%
rng = np.random.default_rng(0)
model = SmallModel.init(rng, vocab_size=5, hidden_size=6, n_heads=3, n_layers=1, n_depths=2, dtype=np.float64)
hidden = rng.standard_normal((1, 5, 6))
depths = [Depth(w, running_mean, running_mean_back) for w in model.mtp]
arrays = model.embed_tokens, model.lm_head, hidden, tokens, document
loss, losses, cache = mtp_loss_forward(depths, *arrays)
naive, each = naive_chain(model.mtp, *arrays[:2], hidden[0], tokens[0], document[0])
assert np.allclose([loss, *losses], [naive, *each], atol=1e-14)
blind = mtp_loss_forward(depths, arrays[0], 0 * arrays[1], *arrays[2:])
print(f"naive and module agree; knowing nothing: L1 {blind[1][0]:.3f}, L2 {blind[1][1]:.3f}, weighed {blind[0]:.3f}")

# %% [markdown]
# ## The derivation
#
# 1. Depth $k$ reads $h^{k-1}_i$ and $\mathrm{Emb}(t_{i+k})$ and is trained on $t_{i+k+1}$. The window ends at $t_T$, so
#    its rows are $i = 0 \ldots T - k - 1$.
# 2. Eq. (24): $\mathcal L_k = -\tfrac1T \sum_i \ln P^k_i[t_{i+k+1}]$, these $T - k$ terms over $T$. In packed windows
#    $T$ is the number of the main model's rows that count.
# 3. Eq. (25): $\mathcal L_\mathrm{MTP} = \tfrac\lambda n \sum_{k=1}^n \mathcal L_k$. V3 has $n = 1$, $\lambda = 0.3$,
#    and 0.1 for the last 4.8 trillion tokens.
# 4. **Packed texts.** V3 packs texts without a mask between them, so a row may *look* across a border, and can learn
#    not to. It is not *asked* across: a target in another text is nothing but noise, and with each depth one more row
#    at every border would have it.
# 5. **Backwards.** Depth $k$'s output was used twice: by the head, and as the notes of depth $k + 1$. So its slope is a
#    sum of two: start at the deepest, and hand the slope at the notes down. Depth 1 hands it to the main model.
#
# Step 5, by hand for two depths. `slopes` is what the head sends back to a depth, built from probability minus one-hot.


# %%
def naive_handing_down(chain, slopes):
    """Deepest first: the head's slope plus what the next depth hands down, back through norm, mean and pair."""
    handed = np.zeros_like(slopes[-1])
    for (pair_cache, norm_cache), slope in zip(reversed(chain), reversed(slopes)):
        dmixed, _ = norm_rows_backward(slope + handed, norm_cache)
        dpairs, _ = running_mean_back(dmixed, np.arange(dmixed.shape[1])[None])
        handed, _, _ = combine_backward(dpairs, pair_cache)
        handed = np.pad(handed, ((0, 0), (0, 1), (0, 0)))  # the last row of the depth below was not used
    return handed


# %%
chain, slopes, rows = [], [], hidden
for k, w in enumerate(model.mtp, 1):
    at = index_rows(6, k)
    pairs, pair_cache = combine_forward(w, rows[:, :-1], model.embed_tokens[tokens[:, at.read]])
    rows, norm_cache = norm_rows_forward(running_mean(pairs, at.position[None])[0], w.shared_head_norm)
    z = rows @ model.lm_head.T
    share = np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True) - np.eye(5)[tokens[:, at.target]]
    counts = (targets[k] != IGNORE)[None, :, None]
    slopes.append(0.3 / 2 / 4 * counts * share @ model.lm_head)  # lambda / n, over the four main rows
    chain.append((pair_cache, norm_cache))
gradients = mtp_loss_backward(1.0, cache)
assert np.allclose(naive_handing_down(chain, slopes), gradients.dhidden_BTD, atol=1e-14)
by_trying = central_difference(lambda: mtp_loss_forward(depths, *arrays)[0], hidden)
print("naive and module agree; central differences:", relative_error(gradients.dhidden_BTD, by_trying) < 1e-8)

# %% [markdown]
# ## The canary: a child that sees the sheet
#
# Miners took a canary down the shaft; when it fell silent, there was gas. Ours is a text of random words. Nobody can
# foretell them, so nobody can pay less than $\ln 16 = 2.77$ nats a guess. Whoever does has seen the target. We train
# the right objective, and one with a single word of its text exchanged: the module reads `target` instead of `read`.


# %%
def plant(function, right, wrong):
    """A function with one piece of its text exchanged."""
    text = inspect.getsource(function)
    assert text.count(right) == 1
    scope = dict(vars(mtp_pretraining))
    exec(text.replace(right, wrong), scope)
    return scope[function.__name__]


chain_pair = mtp_loss_forward, mtp_loss_backward
copying = (
    plant(mtp_loss_forward, "tokens_BS[:, rows.read]", "tokens_BS[:, rows.target]"),
    plant(mtp_loss_backward, "index_rows(S, k).read]", "index_rows(S, k).target]"),
)


# %%
def watch_canary(ahead, steps=120):
    """Main loss and module loss on fresh random words, step by step."""
    model = SmallModel.init(np.random.default_rng(0), vocab_size=16, hidden_size=24, n_heads=2, n_layers=1)
    rng, optimizer, history = np.random.default_rng(1), AdamW(dict(name_arrays(model)), decay=0.0), []
    for _ in range(steps):
        losses, gradients = loss_and_gradients(model, rng.integers(16, size=(32, 12)), ahead=ahead)
        optimizer.step(dict(name_arrays(gradients)), 0.01)
        history.append(losses)
    return np.array(history)


right, wrong = watch_canary(chain_pair), watch_canary(copying)
smallest = right[:, 1].min() * 11 / 10  # ten terms over eleven rows: per guess
assert smallest > np.log(16) - 0.05
assert wrong[-1, 1] < 0.2

# %%
curves = {"module, right": right[:, 1] * 11 / 10, "module that sees its target": wrong[:, 1] * 11 / 10}
curves["main model beside it"] = wrong[:, 0]
title = f"On random words {np.log(16):.2f} nats are the least; the copying module pays {wrong[-1, 1]:.2f}"
curves = {name: (range(120), values) for name, values in curves.items()}
plot_lines(curves, ["draft", "wrong", "content"], title, "step", "nats a guess", ylim=(0, 3.4))

# %% [markdown]
# A falling loss is what everybody hopes for, so nobody looks twice. As a drafter such a module is worthless: when it is
# used, its target does not exist yet.
#
# ## The experiment: to be told, or not
#
# arXiv:2404.19737 (Meta) asks the same row for the same further words, but by parallel heads: each has its own block on
# the main model's rows, and none is told the words in between.

# %%
draw_chain_and_heads()

# %% [markdown]
# What is being told worth? On the stories of chapter 00 the answer is exact, before anything is trained. The best
# reader at depth 1 who knows the word in between pays what the main model pays at the next place; one who does not must
# guess over the gap.

# %%
stories = load_stories()
exact = {told: [mean_price(floor_rows(stories, k, told=told), stories) for k in (0, 1, 2)] for told in (True, False)}
print("told:    ", "  ".join(f"depth {k}: {nats:.3f}" for k, nats in enumerate(exact[True])))
print("not told:", "  ".join(f"depth {k}: {nats:.3f}" for k, nats in enumerate(exact[False])))

# %% [markdown]
# Now train: a model of one block, two depths, by the chain, by parallel heads, or with nothing further; three seeds.


# %%
def train(ahead, n_depths, seed, steps=250, weight=0.3, watch=()):
    """Train on sentences as they are told; return the model, and what its main head paid at the steps of `watch`."""
    sizes = {"vocab_size": len(stories.names), "hidden_size": 24, "n_heads": 2, "n_layers": 1, "n_depths": n_depths}
    model = SmallModel.init(np.random.default_rng(seed), **sizes)
    rng, optimizer, paid = np.random.default_rng(seed), AdamW(dict(name_arrays(model)), decay=0.0), []
    for step in range(steps):
        windows = draw_stories(rng, stories)
        gradients = loss_and_gradients(model, *windows, weight=weight, ahead=ahead)[1]
        optimizer.step(dict(name_arrays(gradients)), 0.02 * (1 - step / steps))
        if step + 1 in watch:
            paid.append(main_price(model))
    return model, paid


# %%
def main_price(model):
    notes, _ = main_forward(model, stories.tokens[:, :-1])
    return mean_price(price_rows(notes @ model.lm_head.T, stories, 0), stories)


# %%
def further_prices(model, told):
    """What each depth pays for a guess, over all sentences."""
    rows, paid = main_forward(model, stories.tokens[:, :-1])[0], []
    for k, (w, block) in enumerate(zip(model.mtp, model.mtp_blocks), 1):
        at = index_rows(12, k)
        position, run = np.broadcast_to(at.position, (224, 11 - k)), partial(compact_block_forward, block, n_heads=2)
        if told:
            rows = out = mtp_forward(w, rows[:, :-1], model.embed_tokens[stories.tokens[:, at.read]], position, run)[0]
        else:
            out = norm_rows_forward(run(rows[:, at.position], position)[0], w.shared_head_norm)[0]
        paid.append(mean_price(price_rows(out @ model.lm_head.T, stories, k), stories))
    return paid


# %%
heads_pair, watch = (parallel_loss_forward, parallel_loss_backward), (50, 100, 250)
runs = {"nothing": [train(chain_pair, 0, seed, watch=watch) for seed in range(3)]}
runs["chain"] = [train(chain_pair, 2, seed, watch=watch) for seed in range(3)]
runs["heads"] = [train(heads_pair, 2, seed, watch=watch) for seed in range(3)]
paid = {name: np.array([further_prices(m, name == "chain") for m, _ in runs[name]]) for name in ("chain", "heads")}

# %%
groups = {name: {"depth 1": p[:, 0], "depth 2": p[:, 1]} for name, p in paid.items()}
floors = {f"{name}: depth {k}": exact[name == "chain"][k] for name in ("chain", "heads") for k in (1, 2)}
gap = paid["heads"].mean(axis=0) - paid["chain"].mean(axis=0)
worth = np.array(exact[False][1:]) - np.array(exact[True][1:])
assert np.allclose(gap, worth, atol=0.06)
title = (
    f"To be told saves {gap[0]:.2f} and {gap[1]:.2f} nats a guess; its exact worth is {worth[0]:.2f} and {worth[1]:.2f}"
)
plot_seeds(groups, ["draft", "ink"], floors, title, "nats a guess (dots: seeds, dashed: floor)")

# %% [markdown]
# A drafter has to be told, then: when it drafts, the word in between *is* known. And the main model, which is what is
# kept? Here is what its own head paid on the way, mean of three seeds:

# %%
for name, results in runs.items():
    prices = np.array([p for _, p in results])
    line = "  ".join(
        f"step {s}: {prices[:, i].mean():.3f} ± {np.ptp(prices[:, i]) / 2:.3f}" for i, s in enumerate(watch)
    )
    print(f"{name:8} {line}   (floor {exact[True][0]:.3f})")

# %% [markdown]
# The three lines differ by less than the seeds of each do, at every step: here the further questions neither help the
# main head nor harm it. The V3 report (Table 4) finds gains on most benchmarks at 15.7 and 228.7 billion parameters,
# with the loss on the Pile all but unchanged. arXiv:2404.19737 finds that parallel heads *hurt* small models and help
# large ones. This table is of one tiny model on one tiny language. It cannot decide between them, and should not be
# read as if it could. Two sizes of a whole model on stories and Python, five seeds each
# ([docs/studies.md](../docs/studies.md)) see no more:

# %%
names = {"small": "small", "small-mtp": "small, MTP", "large": "large", "large-mtp": "large, MTP"}
plot_study("study_mtp", "With or without the module: the seeds differ by more", names)

# %% [markdown]
# Every mean is a gain and every interval holds zero, early and late; the report's own gain on text (0.0 and 0.15 %)
# lies within all of them.
#
# ## Change this, predict, run
#
# The further losses weigh 0.3 altogether. Let them weigh ten times as much, 3.0. Predict: does the chain get better at
# its own guesses? Does the main head get worse, and by more than the seeds differ?
#
# <details><summary>Afterwards</summary>
#
# Hardly anything moves by more than the seeds differ, in the chain or in the main head. Knowing who did what serves all
# three questions, and this model is large enough for this language: there is nothing that one question could take away
# from another. (And Adam, which divides by the usual size of a slope, makes ten times the weight feel like a larger
# *share*, not like larger steps.) A conflict needs a model that is too small for its text. Every language model is.
#
# </details>

# %%
for weight, (model, _) in {0.3: runs["chain"][0], 3.0: train(chain_pair, 2, seed=0, weight=3.0)}.items():
    further = "  ".join(f"depth {k}: {nats:.3f}" for k, nats in enumerate(further_prices(model, told=True), 1))
    print(f"weight {weight}: main {main_price(model):.3f}  {further}")

# %% [markdown]
# ## What you can now do
#
# Say without looking which row of any depth reads what, and why some rows do not count; write the objective and hand
# its slopes down the chain; plant a canary before you believe a loss; say what being told is worth, and what these
# experiments do not show.
#
# ## Exercises
#
# Graded: `further_targets`, `chain_backward`, `parallel_backward` (`make check CH=04`). By thought alone:
#
# 1. A colleague's MTP loss falls to 0.02 within a few hundred steps. What do you ask?
#
# <details><summary>Solution</summary>
#
# Which word the row reads. Then for a run on random tokens: no model can beat $\ln V$ there
# (`test_the_copy_canary_on_random_tokens_nobody_beats_chance`).
#
# </details>
#
# 2. Why must rows that cross from one text into the next be left out, though the main model's attention crosses too?
#
# <details><summary>Solution</summary>
#
# Attention may learn to ignore the foreign text. A *target* in another text cannot be ignored: it is noise in the
# gradient, and with each depth one more row at every border has it.
#
# </details>
#
# 3. Is the position of row $i$ at depth $k$ the number $i$ or $i + k$?
#
# <details><summary>Solution</summary>
#
# $i$, as the serving engines run the released weights: the row stands where its hidden row stands. With rotary
# attention a common shift is invisible in training (`causal_block`), so a test has to look at the argument.
#
# </details>
