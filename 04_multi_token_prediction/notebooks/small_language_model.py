# %% [markdown]
# # What can a module learn that the main model has not?
#
# We now train: a small language model with one MTP module, on the text that every Python carries with it. The question
# to hold on to: the module shares embedding and head and adds one block. Is it worse than the main model at its job?
# It predicts *one token further*. So, surely?

# %%
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small matrices: a second thread would only get in the way

import matplotlib.pyplot as plt
import numpy as np
from small_language_model import (
    SmallModel,
    decode_text,
    draw_windows,
    loss_and_gradients,
    name_arrays,
    read_topics,
    train_model,
)

from utils.whiteboard import COLORS, arrow, bars, board, box, note, use_style

use_style()

# %%
seen, unseen = read_topics(), read_topics(held_out=True)
print(f"{len(seen.tokens):,} characters to learn from, {len(unseen.tokens):,} held out, digest {seen.digest}")
print(decode_text(unseen.tokens[:240]))

# %%
places = {
    "window": (1.1, 1.2, "ink", 1.6), "embed_tokens": (3.4, 1.2, "content", 2.1),
    "2 blocks": (5.8, 1.2, "content", 1.6), "norm": (7.7, 1.2, "content", 1.2),
    "lm_head": (9.7, 1.2, "content", 1.6), "next token": (12.2, 1.2, "ink", 1.9),
    "module": (7.7, 2.9, "draft", 1.6), "lm_head ": (9.7, 2.9, "content", 1.6), "one further": (12.2, 2.9, "ink", 1.9),
}  # fmt: skip
lines = ["window > embed_tokens", "embed_tokens > 2 blocks", "2 blocks > norm", "norm > lm_head", "norm > module"]
lines += ["lm_head > next token", "module > lm_head ", "lm_head  > one further", "embed_tokens > module"]
fig, ax = board(13.4, 3.8, "One model, two questions: filled parts exist once")
shared = ("lm_head", "embed_tokens")
boxes = {t: box(ax, *p[:2], t.strip(), p[2], width=p[3], filled=t.strip() in shared) for t, p in places.items()}
for line in lines:
    arrow(ax, *(boxes[name] for name in line.split(" > ")))
note(ax, 4.9, 2.55, "$t_{i+1}$", "content", size=12)
plt.show()

# %%
model = SmallModel.init(np.random.default_rng(0))
history = train_model(model, seen, 150)
smooth = np.array([history[max(0, s - 9) : s + 1].mean(axis=0) for s in range(len(history))])
fig, ax = plt.subplots()
ax.plot(smooth[:, 0], color=COLORS["content"], label="main model: the next token")
ax.plot(smooth[:, 1], color=COLORS["draft"], label="module: one token further")
ax.axhline(np.log(96), color=COLORS["ink"], linestyle="--", linewidth=1)
ax.set(xlabel="step", ylabel="loss, nats (mean of 10 steps)", ylim=(1.5, 4.8))
ax.legend()
lower = "below" if smooth[-1, 1] < smooth[-1, 0] else "above"
ax.set_title(f"The module ends {lower} the main model: {smooth[-1, 1]:.2f} against {smooth[-1, 0]:.2f} nats")
plt.show()

# %% [markdown]
# ## Why the further token need not be the harder one
#
# Row $i$ of the module is *told* $t_{i+1}$. So it has read $t_0 \ldots t_{i+1}$ and predicts $t_{i+2}$: the very
# question that the main model answers in row $i + 1$, from the very same text. It is a second opinion, not a harder
# question. But why should the second opinion be the better one? Two explanations offer themselves:
#
# - **depth**: the module stands on two blocks and adds a third;
# - **the pair**: it is handed the last two tokens side by side, where the main model must find the previous one by
#   attention, which in a model this young has hardly formed.
#
# Two controls tell them apart: a main model with three blocks and no module, and a module on *no* blocks at all, whose
# hidden row is only the embedding of the token before.

# %%
windows = draw_windows(np.random.default_rng(1), unseen, 24, 130)
two, module = loss_and_gradients(model, *windows)[0]
deeper = SmallModel.init(np.random.default_rng(0), n_layers=3, n_depths=0)
train_model(deeper, seen, 150)
three = loss_and_gradients(deeper, *windows)[0][0]
bare = SmallModel.init(np.random.default_rng(0), n_layers=0)
train_model(bare, seen, 150)
pair = loss_and_gradients(bare, *windows)[0][1]

# %%
labels = ["main model, 2 blocks", "main model, 3 blocks", "module on 2 blocks", "module on no block"]
fig, ax = plt.subplots(figsize=(8, 3.4))
bars(ax, labels, [round(v, 3) for v in (two, three, module, pair)], ["content", "content", "draft", "draft"])
ax.set_xlabel("held-out loss, nats, after 150 steps")
depth, side = two - three, two - pair
ax.set_title(f"A third block gains {depth:+.2f} nats, the pair alone {side:+.2f}")
plt.show()

# %% [markdown]
# At this age of the model it is the pair. That has a practical side: a small model's module may be *ahead* of its main
# model, and then the main model, which has the last word, turns good drafts down. In V3 it is the other way round: 61
# trained layers find the previous token easily, and the main loss weighs three to ten times as much.
#
# ## Is every part of the module used?

# %%
_, gradients = loss_and_gradients(model, *windows)
print("parameters without a gradient:", [n for n, g in name_arrays(gradients) if not np.abs(g).max() > 0] or "none")
for name, g in name_arrays(gradients.mtp):
    print(f"{name:<20} gradient length {np.linalg.norm(g):.4f}")

# %% [markdown]
# ## What changed
#
# The chapter's parts now train together. How good is this second opinion as a *draft* of the first one? That is the
# last notebook.
#
# ## Exercises
#
# **1.** "MTP loss must be above the main loss, else something leaks": true?
#
# <details><summary>Solution</summary>
#
# A good rule of thumb for large models, and no proof: here it is below, with nothing leaking. The proof is the canary:
# on random tokens both stay at log V, and a token that is only ever a target has no gradient in the embedding.
#
# </details>
#
# **2.** The losses here differ between Python versions. Which numbers of a report on them are still worth printing?
#
# <details><summary>Solution</summary>
#
# Differences and ratios of one run, with the digest of the text beside them; never a golden loss in a test.
#
# </details>
