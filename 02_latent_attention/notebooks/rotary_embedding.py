# %% [markdown]
# # Rotary position embedding
#
# **The question.** A score is a dot product. How can it know *how far apart* two tokens are, without being told where
# each one is?
#
# Turn every query and key by an angle that grows with its position. A dot product depends on the angle *between* two
# arrows, and that angle depends on the distance only.

# %%
import matplotlib.pyplot as plt
import numpy as np
from rotary_embedding import (
    half_split_order,
    inverse_frequencies,
    rope_angles,
    rotate_halves_forward,
    rotate_pairs_backward,
    rotate_pairs_forward,
)

from utils.whiteboard import COLORS, arrow, board, box, colormap, note, use_style

use_style()

# %% [markdown]
# ## On the whiteboard: a pair is an arrow
#
# Left: one pair of a key at positions 0 to 5, thirty degrees per position. Middle and right: a query (orange) and a key
# (blue) two positions apart, early and late in the text. Both arrows have moved; the angle between them has not.


# %%
def clock(ax, x, y, arrows, title):
    ax.add_patch(plt.Circle((x, y), 1.6, fill=False, color="#CCCCCC", lw=1.2))
    for position, kind, label in arrows:
        (tip,) = 1.6 * rotate_pairs_forward(np.array([[1.0, 0.0]]), rope_angles([position], np.array([np.pi / 6])))[0]
        arrow(ax, (x, y), (x + tip[0], y + tip[1]), kind=kind)
        note(ax, x + (1.15 + 0.07 * len(label)) * tip[0], y + 1.25 * tip[1], label, kind, size=11)
    note(ax, x, y + 2.45, title, size=11)


# %%
fig, ax = board(17, 5.4)
clock(ax, 2.7, 2.4, [(m, "rope", str(m)) for m in range(6)], "one key, positions 0 to 5")
clock(ax, 8.5, 2.4, [(3, "rope", "q at 3"), (1, "content", "k at 1")], "distance 2, early")
clock(ax, 14.3, 2.4, [(7, "rope", "q at 7"), (5, "content", "k at 5")], "distance 2, later")
plt.show()

# %% [markdown]
# ## Derivation
#
# 1. Write a pair as a complex number: $z = a + ib$. Turning by $\varphi$ is multiplying by $e^{i\varphi}$.
# 2. The dot product of two pairs is $\mathrm{Re}(z\,\bar w)$.
# 3. Turn the query by $m\theta$ and the key by $n\theta$:
#    $\mathrm{Re}(z e^{im\theta}\,\overline{w e^{in\theta}}) = \mathrm{Re}(z \bar w\, e^{i(m-n)\theta})$. Only $m-n$ is
#    left.
# 4. One angle comes round again and again; so each of the $R/2$ pairs gets its own speed, $\theta_i = 10000^{-2i/R}$,
#    from one radian per token to nearly none. Fast pairs tell neighbours apart, slow ones tell chapters apart.
# 5. As a matrix, a turn is orthogonal: $R(\varphi)^\top = R(-\varphi)$. The backward pass multiplies by the transpose:
#    it turns back.
#
# ## Check in numbers

# %%
rng = np.random.default_rng(0)
q, k = rng.standard_normal((2, 1, 8))
f = inverse_frequencies(8)
for m, n in [(5, 2), (105, 102), (5005, 5002), (5, 4)]:
    turned = [rotate_pairs_forward(x, rope_angles([p], f))[0] for x, p in ((q, m), (k, n))]
    print(f"m = {m:>4}, n = {n:>4}: score {np.sum(turned[0] * turned[1]):+.6f}")

# %%
x, dy = rng.standard_normal((2, 3, 8))
angles = rope_angles(np.arange(3), f)
print("turning back undoes it:", np.allclose(rotate_pairs_backward(rotate_pairs_forward(x, angles)[0], angles), x))

# %% [markdown]
# ## The finding: the score matrix has one value per diagonal
#
# The same query and the same key at every position; every diagonal of the matrix is one distance.


# %%
def turned(x, start=0):
    return rotate_pairs_forward(np.repeat(x, 24, 0), rope_angles(np.arange(start, start + 24), f))[0]


score = turned(q) @ turned(k).T
assert max(np.ptp(np.diagonal(score, d)) for d in range(-23, 24)) < 1e-10
by_distance = {start: turned(q, start) @ turned(k, start)[0] for start in (0, 1000)}

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(9.5, 4), width_ratios=[1, 1.25])
left.imshow(score - score.min(), cmap=colormap("rope"))
left.set(xlabel="key position n", ylabel="query position m", xticks=range(0, 24, 6), yticks=range(0, 24, 6))
left.grid(visible=False)
right.plot(by_distance[0], color=COLORS["ink"], lw=6, alpha=0.35, label="key at 0")
right.plot(by_distance[1000], color=COLORS["rope"], lw=2, label="key at 1000")
right.set(xlabel="distance m − n", ylabel="score")
right.legend()
fig.suptitle("Every diagonal has one value: only the distance counts", x=0.02, ha="left", weight="bold")
fig.tight_layout()
plt.show()

# %% [markdown]
# ## Two layouts, and the permutation between them
#
# The released weights pair neighbours (0,1), (2,3), ...; many libraries pair halves (0,4), (1,5), ... of eight. Same
# pairs, other places. Move the elements first, by the arrows below, and both rules give the same scores. Forget it, and
# they do not.

# %%
order = half_split_order(8)
fig, ax = board(16, 4.6)
for place in range(8):
    pair = ["rope", "content", "latent", "shared"][place // 2]
    x, seat = 3.4 + 1.6 * place, 3.4 + 1.6 * int(np.flatnonzero(order == place)[0])
    box(ax, x, 3.7, str(place), pair, width=1.3)
    box(ax, seat, 0.8, str(place), pair, width=1.3)
    arrow(ax, (x, 3.3), (seat, 1.2), kind=pair)
note(ax, 2.3, 3.7, "pairs", align="right", size=12)
note(ax, 2.3, 0.8, "halves", align="right", size=12)
plt.show()

# %%
q, k = rng.standard_normal((2, 5, 8))
angles = rope_angles(np.arange(5), f)


def scores(rotate, pick):
    return rotate(q[:, pick], angles)[0] @ rotate(k[:, pick], angles)[0].T


want = scores(rotate_pairs_forward, slice(None))
print("halves after the permutation: equal", np.allclose(scores(rotate_halves_forward, order), want))
forgotten = scores(rotate_halves_forward, slice(None))
print(f"halves without it: wrong by up to {np.abs(forgotten - want).max():.2f}")

# %% [markdown]
# The keys that a cache holds are in the layout of the code that wrote them: two programs that agree on every score may
# still not share a cache.
#
# ## What changed since the last notebook
#
# Scores know distances, and no position was learned. But a turn now stands between $W_Q$ and $W_K$, different for every
# pair of tokens. The trick at the end of the last notebook, to move $W_{UK}$ over to the query, needs them side by
# side.
#
# ## Exercises
#
# 1. Turn the query only, by $(m - n)\theta$. Is that the same? Why does nobody do it?
#
# <details><summary>Solution</summary>
#
# The scores are the same, but every query would have to be turned once for every key. Turning both needs one turn per
# token, and the turned key can be cached.
#
# </details>
#
# 2. Why are values not turned?
#
# <details><summary>Solution</summary>
#
# The output should say what was found, not where. Turned values would mix differently for every distance and leave a
# turn in the sum.
#
# </details>
#
# 3. The loss of a layer whose backward pass turns forward instead of back still falls at first. Why?
#
# <details><summary>Solution</summary>
#
# At position 0, and for slow pairs everywhere, the angle is nearly zero and turning forward or back is nearly the same.
# The gradient is right in part and wrong where it matters: far from the start, in the fast pairs.
#
# </details>
