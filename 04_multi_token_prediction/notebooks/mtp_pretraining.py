# %% [markdown]
# # Which row reads what, and what is it good for?
#
# A window of text gives every row one thing to learn: the next token. Multi-token prediction asks row $i$ for
# $t_{i+2}$, $t_{i+3}$ and so on as well. Most mistakes here are mistakes of *indexing*: a row that reads its own target
# learns to copy, a row that is one off learns something else than it is used for. So we draw the grid first.

# %%
import os
from dataclasses import replace
from functools import cache

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small matrices: a second thread would only get in the way

import matplotlib.pyplot as plt
import numpy as np
from cross_entropy import IGNORE
from mtp_pretraining import (
    depth_targets,
    index_rows,
    mtp_loss_backward,
    mtp_loss_forward,
    parallel_loss_backward,
    parallel_loss_forward,
)
from small_language_model import SmallModel, draw_windows, loss_and_gradients, read_topics, train_model

from utils.whiteboard import COLORS, arrow, board, box, note, use_style

use_style()


# %%
def draw_grid(ax, x, depth, tokens, document):
    targets = depth_targets(tokens[None], depth, document[None])[0]
    for i, read, target in zip(*index_rows(len(tokens), depth)):
        y, counted = 4.6 - 0.8 * i, targets[i] != IGNORE
        for j in range(len(tokens)):
            kind = "draft" if j == target else "content" if j == read else "ink"
            kind = kind if counted or j != target else "ink"
            text = "h" if depth and j == i else "E" if j == read else ("→" if counted else "×") if j == target else ""
            used = j in (read, target) or (depth and j == i)
            box(ax, x + 0.75 * j, y, text, kind if used else "ink", width=0.66, height=0.66, filled=used and bool(text))
    note(ax, x + 1.9, 5.85, f"depth {depth}" + (": the main model" if depth == 0 else ""), size=12)
    for j in range(len(tokens)):
        note(ax, x + 0.75 * j, 5.25, f"$t_{j}$", size=11)


# %%
tokens, document = np.arange(6), np.array([0, 0, 0, 0, 1, 1])
fig, ax = board(
    16, 6.4, "h: hidden row i, E: the token read, →: the target, ×: a target in the next document", inches=11
)
for depth in range(3):
    draw_grid(ax, 0.9 + 5.3 * depth, depth, tokens, document)
for depth in range(3):
    ax.plot([0.9 + 5.3 * depth + 0.75 * 3.5] * 2, [0.4, 5.5], "--", color=COLORS["ink"], linewidth=1.2)
note(ax, 8, 0.15, "dashed: where one document ends and the next begins")
plt.show()

# %% [markdown]
# ## The derivation
#
# 1. The main model's row $i$ reads $t_i$ and is trained on $t_{i+1}$. Call it depth 0.
# 2. Depth $k$ reads $h^{k-1}_i$ and $\mathrm{Emb}(t_{i+k})$, and is trained on $t_{i+k+1}$. The window ends at $t_T$,
#    so its rows are $i = 0 \ldots T-k-1$: one fewer with each depth.
# 3. Eq. (24): $\mathcal{L}_k = -\frac{1}{T}\sum_i \log P^k_i[t_{i+k+1}]$, these $T-k$ terms over $T$.
# 4. Eq. (25): $\mathcal{L}_\mathrm{MTP} = \frac{\lambda}{D}\sum_{k=1}^{D}\mathcal{L}_k$; $\lambda = 0.3$, later 0.1.
# 5. In packed windows a row counts only if its tokens are of one document. (V3 packs without an attention mask, so a
#    row may still *look* across; it is not *scored* across.)
# 6. Backwards each depth hands its hidden gradient down to the one before, and depth 1 to the main model.
#
# Meta's parallel heads (arXiv:2404.19737) ask the same rows for the same targets, but no head is told the tokens in
# between. The difference in a picture:

# %%
fig, axes = plt.subplots(1, 2, figsize=(11, 3.6))
for ax, title, told in zip(axes, ("DeepSeek: a causal chain", "Meta: parallel heads"), (True, False)):
    ax.set(xlim=(0, 8), ylim=(0, 4.2), aspect="equal", title=title)
    ax.axis("off")
    rows = [box(ax, 1.0, 2, "$h_i$", "content", width=1.1)]
    for k in (1, 2):
        x, y = (1.0 + 2.6 * k, 2) if told else (3.6, 3.1 - 2.2 * (k - 1))
        rows.append(box(ax, x, y, f"depth {k}", "draft", width=1.5))
        arrow(ax, rows[k - 1 if told else 0], rows[k])
        end = box(ax, *((x, 3.6) if told else (6.6, y)), f"$t_{{i+{k + 1}}}$", "ink", width=1.1, height=0.6)
        arrow(ax, rows[k], end)
        if told:
            arrow(ax, box(ax, x, 0.5, f"$t_{{i+{k}}}$", "content", width=1.1, height=0.6), rows[k])
plt.show()

# %%
rng = np.random.default_rng(0)
model = SmallModel.init(rng, vocab_size=5, hidden_size=6, n_heads=3, n_layers=1, n_depths=2, dtype=np.float64)
window = rng.integers(0, 5, (1, 8))
losses, gradients = loss_and_gradients(model, window)
step = np.zeros((6, 12))
step[1, 2] = 6e-6
sides = []
for s in (1, -1):
    moved = replace(model.mtp[0], eh_proj=model.mtp[0].eh_proj + s * step)
    a, b, c = loss_and_gradients(replace(model, mtp=(moved, model.mtp[1])), window)[0]
    sides.append(a + 0.3 / 2 * (b + c))
print(f"by hand {gradients.mtp[0].eh_proj[1, 2]:.10f}, central difference {(sides[0] - sides[1]) / 1.2e-5:.10f}")

# %% [markdown]
# ## As a training signal: denser
#
# Without MTP a hidden row answers for one token. With depth $D$ it answers for up to $D + 1$ of them: directly for the
# next, and through the modules for the later ones.

# %%
n = 12
counts = np.array([sum(np.arange(n - 1) < n - 1 - k for k in range(d + 1)) for d in range(4)])
fig, ax = plt.subplots(figsize=(8, 3.2))
for d in range(4):
    color = COLORS["content"] if d == 0 else COLORS["draft"]
    ax.step(range(n - 1), counts[d], where="mid", color=color, alpha=(1, 0.4, 0.7, 1)[d], label=f"D = {d}")
ax.set(xlabel="hidden row of a 12-token window", ylabel="loss terms on the row", ylim=(0, 4.6))
ax.legend(ncol=4, loc="lower left")
ax.set_title(f"A window of {n} tokens gives {counts[0].sum()} loss terms at D = 0 and {counts[3].sum()} at D = 3")
plt.show()


# %% [markdown]
# ## Measured: chain, parallel heads, nothing
#
# Small models (width 32, one layer, two depths), the same data and seeds, 3 seeds, 120 steps each on the language
# reference; the losses are those on held-out topics. Only the *main* head's loss says whether MTP helped the model that
# is kept; the depths' losses say how good a drafter it would be.


# %%
@cache
def held_out(objective, seed, n_steps=120):
    ahead = {
        "chain": (mtp_loss_forward, mtp_loss_backward),
        "parallel": (parallel_loss_forward, parallel_loss_backward),
    }
    n_depths = 0 if objective == "nothing" else 2
    model = SmallModel.init(np.random.default_rng(seed), hidden_size=32, n_layers=1, n_depths=n_depths)
    options = {"ahead": ahead.get(objective, ahead["chain"])}
    train_model(model, read_topics(), n_steps, seed=seed, n_windows=8, n_tokens=66, **options)
    windows = draw_windows(np.random.default_rng(7), read_topics(held_out=True), 32, 66)
    return loss_and_gradients(model, *windows, **options)[0]


names = ("nothing", "parallel", "chain")
result = {name: np.array([held_out(name, seed) for seed in range(3)]) for name in names}

# %%
fig, ax = plt.subplots(figsize=(8.5, 4))
for x, name in enumerate(("parallel", "chain")):
    for k in (1, 2):
        y = result[name][:, k]
        ax.bar(x + 0.36 * (k - 1.5), y.mean(), 0.32, color=COLORS["draft"], alpha=0.55 if k == 1 else 0.9)
        ax.plot([x + 0.36 * (k - 1.5)] * 3, y, "o", color="#222222", markersize=4)
        ax.annotate(f"depth {k}\n{y.mean():.2f}", (x + 0.36 * (k - 1.5), 0.25), ha="center", color="white")
ax.set_xticks([0, 1], ["parallel heads", "causal chain"])
ax.set_ylabel("held-out loss, nats (dots: seeds)")
gap = result["parallel"][:, 1:].mean(axis=0) - result["chain"][:, 1:].mean(axis=0)
ax.set_title(f"Told the tokens in between, the chain pays {gap[0]:.2f} and {gap[1]:.2f} nats less")
plt.show()

# %%
fig, ax = plt.subplots(figsize=(8, 3.2))
for x, name in enumerate(names):
    ax.plot([x] * 3, result[name][:, 0], "o", color=COLORS["draft" if x else "content"], markersize=8, alpha=0.8)
    ax.plot([x - 0.2, x + 0.2], [result[name][:, 0].mean()] * 2, color="#222222")
ax.set_xticks(range(3), ["nothing further", "parallel heads", "causal chain"])
ax.set_ylabel("main head, held out, nats")
change = result["chain"][:, 0] - result["nothing"][:, 0]
ax.set_title(f"Main head, chain against nothing: {change.min():+.3f} to {change.max():+.3f} nats over 3 seeds")
plt.show()

# %% [markdown]
# Two things to read with care. Depth 2 of the chain may lie below depth 1: it has one block more, and by Eq. (24) its
# $T - 2$ terms are divided by $T$ (at $T = 65$ that is 1.5% less than depth 1). And the last plot is of one small model
# after 120 steps: it shows no gain for the main head, and none should be read into it. The V3 report (Table 4) finds
# gains on most benchmarks at 15.7B and 228.7B parameters, with the loss on the Pile all but unchanged;
# arXiv:2404.19737 finds that parallel heads *hurt* small models and help large ones. Here as there the module is
# dropped afterwards: the main model runs alone.
#
# ## What changed
#
# The model got a second question per row, and a chain that shares everything but one layer a depth. For inference use,
# where the module is kept and drafts, see `speculative_decoding`.
#
# ## Exercises
#
# **1.** A colleague's MTP loss falls to 0.02 in a few hundred steps. What do you ask?
#
# <details><summary>Solution</summary>
#
# Which token the row reads. Reading $t_{i+k+1}$, the target, lets the module copy. Train on random tokens: no model can
# beat log V there (`test_the_copy_canary_on_random_tokens_nobody_beats_chance`).
#
# </details>
#
# **2.** Why must the rows of depth 1 that cross documents be left out, though the main model's attention crosses too?
#
# <details><summary>Solution</summary>
#
# Attention may learn to ignore the foreign text. A *target* in another document cannot be ignored: it is noise in the
# gradient, and with each depth one more row at every border has it.
#
# </details>
#
# **3.** Is the position of row i at depth k i or i + k?
#
# <details><summary>Solution</summary>
#
# i, as in the released weights' serving code: the row stands where its hidden row stands. With rotary attention a
# common shift is invisible in training (see `causal_block`), so a test must spy on the argument.
#
# </details>
