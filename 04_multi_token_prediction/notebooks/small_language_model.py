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
from small_language_model import SmallModel, decode, draw_windows, loss_and_gradients, name_arrays, read_topics, train

from utils.whiteboard import COLORS, arrow, board, box, note, use_style

use_style()

# %%
seen, unseen = read_topics(), read_topics(held_out=True)
print(f"{len(seen.tokens):,} characters to learn from, {len(unseen.tokens):,} held out, digest {seen.digest}")
print(decode(unseen.tokens[:240]))

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
note(ax, 4.7, 2.6, "$t_{i+1}$", "content", size=12)
plt.show()

# %%
model = SmallModel.init(np.random.default_rng(0))
history = train(model, seen, 150)
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
# question that the main model answers in row $i + 1$, from the very same text. It is a second opinion by a model that
# is one block deeper and gets the last two tokens side by side, not through attention. In V3, 61 layers against 62, the
# main model is the better one, because its loss weighs more and its layers are trained for it alone; here, 2 against 3
# layers, depth matters more.
#
# If that is right, then a main model with three blocks and no module must close most of the gap.

# %%
deeper = SmallModel.init(np.random.default_rng(0), n_layers=3, n_depths=0)
train(deeper, seen, 150)
windows = draw_windows(np.random.default_rng(1), unseen, 24, 130)
two, module = loss_and_gradients(model, *windows)[0]
three = loss_and_gradients(deeper, *windows)[0][0]
fig, ax = plt.subplots(figsize=(8, 3))
ax.barh([2, 1, 0], [two, module, three], color=[COLORS[k] for k in ("content", "draft", "content")], height=0.6)
for place, value in zip([2, 1, 0], (two, module, three)):
    ax.annotate(f"{value:.3f}", (value, place), xytext=(5, -4), textcoords="offset points")
ax.set_yticks([2, 1, 0], ["main, 2 blocks", "module on top of it", "main, 3 blocks, no module"])
ax.set(xlabel="held-out loss, nats", xlim=(0, two * 1.15))
share = (two - three) / (two - module)
ax.set_title(f"A third block alone closes {share:.0%} of the gap between main model and module")
plt.show()

# %% [markdown]
# The share in the title is measured, not wished for. What a third block does not explain belongs to the other half of
# the reason: the module need not *find* the previous token by attention, it is handed it. In a model this young (150
# steps) attention has hardly formed.
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
