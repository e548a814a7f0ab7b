# %% [markdown]
# # What does a decoder layer have to promise?
#
# A multi-token-prediction module runs a decoder layer of its own. V3 takes its full one (latent attention, experts);
# chapter 06 does that. Here a compact block stands in for it, and we ask what *any* such block must promise before a
# module can use it: it never looks ahead, it gives the same with a cache as without, forgotten rows leave no trace, and
# it takes positions from outside.

# %%
import matplotlib.pyplot as plt
import numpy as np
from causal_block import CompactBlock, KeyValueCache, compact_block_backward, compact_block_forward

from utils.whiteboard import COLORS, arrow, board, box, matrix, note, use_style

use_style()

# %%
places = {
    "x": (0.7, 1.3, "content", 0.9), "norm": (2.4, 2.4, "ink", 1.2), "attention": (4.5, 2.4, "content", 1.9),
    "+": (6.5, 1.3, "ink", 0.7), "norm ": (8.1, 2.4, "ink", 1.2), "relu² MLP": (10.0, 2.4, "content", 1.8),
    "+ ": (11.2, 1.3, "ink", 0.6), "y": (12.3, 1.3, "content", 0.9), "position": (4.5, 3.5, "rope", 1.5),
}  # fmt: skip
lines = ["x > norm", "norm > attention", "attention > +", "+ > norm ", "norm  > relu² MLP", "relu² MLP > + "]
lines += ["+  > y", "x > +", "+ > + ", "position > attention"]

# %%
fig, ax = board(13, 4.0, "Two residual steps: look back, then think")
boxes = {t: box(ax, x, y, t.strip(), kind, width=w, height=0.7) for t, (x, y, kind, w) in places.items()}
for line in lines:
    start, end = line.split(" > ")
    arrow(ax, boxes[start], boxes[end], kind="rope" if start == "position" else "ink")
note(ax, 6.5, 0.45, "a = x + o_proj attention(norm(x))        y = a + down_proj relu(up_proj norm(a))²")
plt.show()

# %% [markdown]
# ## The promises, measured
#
# 1. **Causal**: changing row 3 changes rows 3 and later only.
# 2. **Cached = whole**: two rows, then three more through the cache, equal five at once. The mask of row $s$ among
#    $S$ new rows that follow $T - S$ cached ones is $t > s + (T - S)$.
# 3. **Forgetting**: `truncate` and go on: as if the forgotten rows had never been.
# 4. **Positions**: a query at position $m$ and a key at $n$ are rotated, and their product depends on $m - n$ alone.

# %%
rng = np.random.default_rng(0)
w, x, at = CompactBlock.init(rng, 6, 11), rng.standard_normal((1, 5, 6)), np.arange(5)[None]
whole, _ = compact_block_forward(w, x, at, 3)
kv = KeyValueCache()
first, _ = compact_block_forward(w, x[:, :2], at[:, :2], 3, kv)
compact_block_forward(w, rng.standard_normal((1, 2, 6)), at[:, 2:4], 3, kv)  # two rows on trial
kv.truncate(2)  # rejected
rest, _ = compact_block_forward(w, x[:, 2:], at[:, 2:], 3, kv)
print("cached, with two rows tried and forgotten, differs by", np.abs(np.concatenate([first, rest], 1) - whole).max())

# %%
seen = np.zeros((5, 5))
for t in range(5):
    other = x.copy()
    other[0, t] += 1
    seen[:, t] = np.abs(compact_block_forward(w, other, at, 3)[0] - whole).max(axis=(0, 2))
seen[np.triu_indices(5, 1)] = np.where(seen[np.triu_indices(5, 1)] == 0, np.nan, seen[np.triu_indices(5, 1)])
fig, ax = board(10, 5, "How much output row s moves when input row t is changed: nothing above the diagonal")
matrix(ax, 3.6, 4.3, seen, "content", cell=0.75, label="changed input row t = 0 .. 4", numbers=".2f", limit=3)
for s in range(5):
    note(ax, 2.7, 4.3 - 0.75 * (s + 0.5), f"output row {s}")
note(ax, 8.4, 2.4, "hatched:\nexactly zero", "ink")
plt.show()

# %% [markdown]
# ## A shift that nobody sees, and one that everybody feels
#
# An MTP row combines hidden row $i$ with token $i + 1$. Does it stand at position $i$ or $i + 1$? Shift *all* rows and
# rotary attention cannot tell, for only distances count. That is why the mistake survives in public code. It shows when
# some rows are shifted and others are not: a draft row computed at $i + 1$ against a cache that was filled at $i$.

# %%
shifts, all_rows, last_row = range(9), [], []
for c in shifts:
    all_rows.append(np.abs(compact_block_forward(w, x, at + c, 3)[0] - whole).max())
    moved = at + c * (np.arange(5) == 4)
    last_row.append(np.abs(compact_block_forward(w, x, moved, 3)[0] - whole).max())
fig, ax = plt.subplots()
ax.semilogy(shifts, np.maximum(all_rows, 1e-17), "o-", color=COLORS["rope"], label="all rows shifted")
ax.semilogy(shifts, np.maximum(last_row, 1e-17), "o-", color=COLORS["draft"], label="only the last row shifted")
ax.set(xlabel="shift, positions", ylabel="largest change of the output", ylim=(1e-17, 10))
ax.legend(loc="center right")
ax.set_title(f"Shifting every row: at most {max(all_rows):.0e}; shifting one: {min(last_row[1:]):.2f} or more")
plt.show()

# %% [markdown]
# ## The gradient
#
# The backward pass is chapter 01's, shortened: the rotation's gradient is the rotation back, and `relu(u)²` has the
# slope `2 relu(u)`, so the gate comes for free. One check, on the loss $|y|^2 / 2$ whose $dy$ is $y$:

# %%
y, cache = compact_block_forward(w, x, at, 3)
dx, dweights = compact_block_backward(y, cache)
step = np.zeros_like(x)
step[0, 1, 2] = 6e-6
up, down = ((compact_block_forward(w, x + s * step, at, 3)[0] ** 2).sum() / 2 for s in (1, -1))
print(f"by hand {dx[0, 1, 2]:.9f}, central difference {(up - down) / 1.2e-5:.9f}")

# %% [markdown]
# ## What changed
#
# Chapter 01's block has become an *argument*: two functions with fixed promises. The module of the next notebook will
# take any block that keeps them.
#
# ## Exercises
#
# **1.** Leave the `(T - S)` out of the mask. Which use still works, so that the mistake is easily missed?
#
# <details><summary>Solution</summary>
#
# Training and prefill (T = S). With one new row after a cache it sees key 0 only; with several rows, as in the check of
# a draft, each sees a few of the oldest. `test_two_chunks_through_the_cache_equal_one_pass` plants it.
#
# </details>
#
# **2.** Why does `truncate` not have to touch the rows that stay?
#
# <details><summary>Solution</summary>
#
# The block is causal: keys and values of row t depend on rows up to t. Forgetting later rows cannot change earlier
# ones.
#
# </details>
