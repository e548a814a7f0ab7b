# %% [markdown]
# # How can a model that predicts one token predict two?
#
# Having emitted $t_{i+1}$, the main model would run all its layers to find $t_{i+2}$. But its hidden row $h_i$ already
# holds what it thought about the text. A *multi-token-prediction module* takes $h_i$, adds the one thing $h_i$ cannot
# know, the token $t_{i+1}$, and predicts $t_{i+2}$ with a single further layer.

# %%
import matplotlib.pyplot as plt
import numpy as np
from mtp_module import MtpWeights, combine_forward, mtp_backward, mtp_forward, swap_order

from utils.whiteboard import COLORS, arrow, board, box, matrix, note, use_style

use_style()

# %%
places = {
    "main model": (1.6, 1.6, "content", 2.2), "final norm": (4.2, 1.6, "content", 1.7),
    "hnorm": (6.7, 1.6, "draft", 1.4), "enorm": (6.7, 3.1, "draft", 1.4), "eh_proj": (8.9, 2.4, "draft", 1.5),
    "block": (11.0, 2.4, "draft", 1.4), "shared_head\n.norm": (13.3, 2.4, "draft", 2.0),
    "lm_head": (4.2, 4.3, "content", 1.7), "embed_tokens": (6.7, 4.5, "content", 2.2),
    "lm_head ": (13.3, 4.3, "content", 1.7),
}  # fmt: skip
lines = ["main model > final norm", "final norm > hnorm", "final norm > lm_head", "embed_tokens > enorm"]
lines += ["hnorm > eh_proj", "enorm > eh_proj", "eh_proj > block", "block > shared_head\n.norm"]

# %%
fig, ax = board(15, 5.4, "One depth: main model in blue, module in crimson, shared parts filled")
boxes = {
    t: box(ax, x, y, t.strip(), kind, width=w, filled=t.strip() in ("lm_head", "embed_tokens"))
    for t, (x, y, kind, w) in places.items()
}
for line in [*lines, "shared_head\n.norm > lm_head "]:
    arrow(ax, *(boxes[name] for name in line.split(" > ")))
labels = [
    (1.6, 0.85, "$t_0\\ ...\\ t_i$"),
    (4.2, 5.05, "$t_{i+1}$"),
    (6.7, 5.25, "$t_{i+1}$"),
    (13.3, 5.05, "$t_{i+2}$"),
]
for x, y, text in [*labels, (5.45, 1.25, "$h_i$")]:
    note(ax, x, y, text, size=12)
note(ax, 11.0, 1.6, "position i, like $h_i$", "rope")
plt.show()

# %% [markdown]
# ## The derivation
#
# 1. **Normalize apart.** $h_i$ and $\mathrm{Emb}(t_{i+k})$ come from different places and differ in size by far. Each
#    gets its own RMSNorm: `hnorm`, `enorm`.
# 2. **Join and project**, Eq. (21):
#    $h'^k_i = M_k\,[\,\mathrm{RMSNorm}(h^{k-1}_i)\,;\,\mathrm{RMSNorm}(\mathrm{Emb}(t_{i+k}))\,]$,
#    with $M_k$ of shape $D \times 2D$.
# 3. **One block**, Eq. (22): $h^k = \mathrm{TRM}_k(h')$. It is causal: row $i$ sees the pairs up to $i$, thus the
#    tokens up to $t_{i+k}$, and its target is $t_{i+k+1}$. Nothing leaks.
# 4. **The shared head**, Eq. (23), behind the module's own norm.
# 5. **Backwards** the joined row splits: the gradient of `eh_proj`'s columns says which half is which.
#
# **Which half is first?** The paper prints the hidden row first. The released weights are called `eh_proj`: embedding,
# then hidden. vLLM, SGLang, Megatron and torchtitan all read them so.

# %%
rng = np.random.default_rng(1)
eh_proj = rng.standard_normal((3, 6))
fig, ax = board(13, 3.8, "The same numbers, in two orders: swap_order exchanges the halves")
matrix(ax, 0.6, 2.9, eh_proj[:, :3], "content", cell=0.62, label="embedding", numbers=".1f", limit=2)
matrix(ax, 2.6, 2.9, eh_proj[:, 3:], "draft", cell=0.62, label="hidden row", numbers=".1f", limit=2)
swapped = swap_order(eh_proj)
matrix(ax, 8.0, 2.9, swapped[:, :3], "draft", cell=0.62, label="hidden row", numbers=".1f", limit=2)
matrix(ax, 10.0, 2.9, swapped[:, 3:], "content", cell=0.62, label="embedding", numbers=".1f", limit=2)
arrow(ax, (4.8, 2.0), (7.7, 2.0), "swap_order")
note(ax, 2.5, 0.6, "released:  eh_proj [ e ; h ]")
note(ax, 9.9, 0.6, "paper:  M [ h ; e ]")
plt.show()

# %%
weights = MtpWeights.init(rng, 6)
hidden, embedding = rng.standard_normal((2, 1, 5, 6))
paper = MtpWeights(weights.enorm, weights.hnorm, swap_order(weights.eh_proj), weights.shared_head_norm)
a = combine_forward(weights, hidden, embedding, "released")[0]
b = combine_forward(paper, hidden, embedding, "paper")[0]
c = combine_forward(weights, hidden, embedding, "paper")[0]
print(f"halves exchanged: differs by {np.abs(a - b).max():.1e}; forgotten: by {np.abs(a - c).max():.2f}")

# %% [markdown]
# ## The gradient, and a block as an argument
#
# The module does not care what the block is. Here it is a running sum, whose gradient is a running sum from the end.


# %%
def run(x, position):
    return x.cumsum(axis=1), None


def back(dy, cache):
    return dy[:, ::-1].cumsum(axis=1)[:, ::-1], None


# %%
at, dout = np.arange(5)[None], rng.standard_normal((1, 5, 6))
_, cache = mtp_forward(weights, hidden, embedding, at, run)
dhidden, dembedding, dweights, _ = mtp_backward(dout, cache, back)
step = np.zeros_like(embedding)
step[0, 2, 3] = 6e-6
up, down = ((mtp_forward(weights, hidden, embedding + s * step, at, run)[0] * dout).sum() for s in (1, -1))
print(f"by hand {dembedding[0, 2, 3]:.9f}, central difference {(up - down) / 1.2e-5:.9f}")

# %% [markdown]
# ## Why two norms
#
# The residual stream grows with depth, embeddings do not. How much of the joined row then still speaks of the token?

# %%
scales = 2.0 ** np.arange(-4, 9)
with_norm, without = [], []
for scale in scales:
    moved = combine_forward(weights, scale * hidden, embedding)[0]
    other = combine_forward(weights, scale * hidden, np.roll(embedding, 1, axis=1))[0]
    with_norm.append(np.linalg.norm(moved - other) / np.linalg.norm(moved))
    rows = [np.concatenate([e, scale * hidden], -1) @ weights.eh_proj.T for e in (embedding, np.roll(embedding, 1, 1))]
    without.append(np.linalg.norm(rows[0] - rows[1]) / np.linalg.norm(rows[0]))
fig, ax = plt.subplots()
ax.loglog(scales, with_norm, "o-", color=COLORS["draft"], label="normalized apart (Eq. 21)")
ax.loglog(scales, without, "o-", color=COLORS["ink"], label="joined as they are")
ax.set(xlabel="size of the hidden row, embedding = 1", ylabel="relative change with the token")
ax.legend()
ax.set_title(f"At 64 times the size the token's say falls from {with_norm[10]:.2f} to {without[10]:.3f} without norms")
plt.show()

# %% [markdown]
# ## What changed
#
# The block takes a *pair* in place of an embedding; all else is a decoder layer. V3's module has 11.6 billion
# parameters of its own, nearly all in its layer; `eh_proj` is 103 million of them.
#
# ## Exercises
#
# **1.** The module gets $h_i$ after the main model's final norm, and norms it again with `hnorm`. Does that change
# anything?
#
# <details><summary>Solution</summary>
#
# RMSNorm of a row already at root mean square 1 changes nothing, but the final norm has a *weight*: the row that
# arrives is weighed, its mean square is no longer 1, and its direction is another one than before the norm. So pre-norm
# and post-norm hidden rows give different pairs. The paper does not say which; vLLM and SGLang feed the post-norm row
# to the released weights, and so do we.
#
# </details>
#
# **2.** How could you find out, with released weights and no documentation, which order of concatenation is right?
#
# <details><summary>Solution</summary>
#
# Nothing crashes either way: the shapes agree. Measure what the module is for: its loss on real text, or the share of
# accepted drafts. The wrong order gives noise.
#
# </details>
