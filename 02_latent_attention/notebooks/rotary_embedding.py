# %% [markdown]
# # Rotary position embedding
#
# **The question.** A score is a dot product of a query and a key. How can it know *how far apart* two tokens are,
# without being told where either of them is?
#
# *The dog bit the man* and *the man bit the dog* are the same five words. A layer that compares words and nothing else
# cannot tell them apart (the last notebook ended on that). So each card needs a stamp. A page number would do, but it
# asks too much: the reader would have to learn, for every pair of pages, how far apart they are. What grammar wants to
# know is *two words back*, here or a thousand pages on.
#
# So stamp a **clock** on each card instead. The hand turns by a fixed angle with every token. Put two cards side by
# side: the angle *between* their hands tells how many tokens lie between them, and nothing else. Early or late in the
# book, two cards three tokens apart always show the same angle. And a dot product is a machine that measures angles.

# %%
import numpy as np
from rotary_embedding import (
    half_split_order,
    inverse_frequencies,
    rope_angles,
    rotate_halves_forward,
    rotate_pairs_backward,
    rotate_pairs_forward,
)

from utils.drawings_02 import draw_clocks, draw_seats
from utils.plots_02 import draw_diagonals, plot_lines

# %% [markdown]
# ## Begin with two numbers and one angle
#
# Two numbers $(a, b)$ are an arrow in the plane. To turn it by an angle $\varphi$ (phi), multiply by the $2 \times 2$
# matrix
# $$R(\varphi) = \begin{pmatrix} \cos\varphi & -\sin\varphi \\ \sin\varphi & \cos\varphi \end{pmatrix},
# \qquad (a, b) \to (a \cos\varphi - b \sin\varphi,\; a \sin\varphi + b \cos\varphi).$$
# Check it on the arrow $(1, 0)$: it becomes $(\cos\varphi, \sin\varphi)$, the point of the unit circle at that angle.


# %%
def turn(pair, angle):
    """Turn one arrow counter-clockwise."""
    a, b = pair
    return np.array([a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)])


for m in range(4):
    print(f"(1, 0) turned {m} times by 30 degrees:", turn((1, 0), m * np.pi / 6).round(3))

# %% [markdown]
# ## Numbers to follow with a pencil
#
# Let query and key be the same arrow $(1, 0)$. The query stands at position $m$ and is turned by $m\theta$; the key at
# position $n$, by $n\theta$ ($\theta$, theta, is the angle per token; here 30 degrees). Their dot product is
# $\cos m\theta \cos n\theta + \sin m\theta \sin n\theta$. School knows this sum: it is $\cos((m - n)\theta)$.
#
# Positions 3 and 1: $\cos 60° = 0.5$. Positions 7 and 5: $\cos 60° = 0.5$. Positions 1 and 3: $\cos(-60°) = 0.5$.
# Positions 3 and 2: $\cos 30° = 0.866$.

# %%
for m, n in [(3, 1), (7, 5), (1, 3), (3, 2)]:
    score = turn((1, 0), m * np.pi / 6) @ turn((1, 0), n * np.pi / 6)
    print(f"query at {m}, key at {n}: score {score:.3f}, cos((m - n) 30°) = {np.cos((m - n) * np.pi / 6):.3f}")

# %%
draw_clocks()

# %% [markdown]
# One clock cannot tell *two before* from *two behind* for these arrows, as the third line shows. Query and key are
# usually different arrows, and then it can: a key that points 90 degrees ahead of the query gets
# $\cos((m - n)\theta - 90°)$, which has another value on each side.
#
# ## Many clocks
#
# One clock has a second fault: after a full turn it shows the same angle again. At 30 degrees, twelve tokens apart
# looks like no tokens apart. The remedy is the remedy of every wall clock: a fast hand *and* slow ones. Cut a vector of
# width $R$ into $R/2$ pairs, each with an angle of its own per token. Pair $i$ takes $\theta_i = 10000^{-2i/R}$ radian:
# pair 0 one radian per token (about 57 degrees), the last pair nearly nothing. Fast pairs tell neighbours apart, slow
# pairs tell chapters apart.


# %%
def turn_all(vector, position):
    """RoPE of one vector: pair i = (2i, 2i + 1) is turned by position * 10000^(-2i/R)."""
    R, out = len(vector), np.empty(len(vector))
    for i in range(R // 2):
        out[2 * i : 2 * i + 2] = turn(vector[2 * i : 2 * i + 2], position * 10000 ** (-2 * i / R))
    return out


rng = np.random.default_rng(0)
q, k = rng.standard_normal((2, 8))
for m, n in [(5, 2), (105, 102), (5005, 5002), (5, 4), (2, 5)]:
    print(f"m = {m:>4}, n = {n:>4}: score {turn_all(q, m) @ turn_all(k, n):+.6f}")

# %% [markdown]
# The first three lines are one number: distance 3, wherever it is. The last line is distance $-3$: another number.
#
# ## The derivation
#
# 1. Turning by $\varphi$ and then by $\psi$ is turning by $\varphi + \psi$: $R(\psi) R(\varphi) = R(\psi + \varphi)$.
# 2. The transpose of $R(\varphi)$ has the two sines exchanged, which is $R(-\varphi)$: it turns back. So
#    $R(\varphi)^\top R(\varphi)$ is no turn at all, and lengths stay what they were.
# 3. Score of a turned pair: $(R(m\theta) q) \cdot (R(n\theta) k) = q^\top R(m\theta)^\top R(n\theta)\, k$.
# 4. By 2 and 1: $= q^\top R((n - m)\theta)\, k$. Only $n - m$ is left. Write it out for $q = (a, b)$, $k = (c, d)$:
#    $(ac + bd) \cos((m-n)\theta) + (ad - bc) \sin((n-m)\theta)$: a cosine for how well they agree, a sine for which of
#    them is ahead.
# 5. A vector is many pairs and a dot product is their sum, so the whole score depends on $m - n$ only.
# 6. Backward. $y = R(\varphi) x$, so $dx = R(\varphi)^\top dy = R(-\varphi)\, dy$: **the gradient is turned back**, by
#    the same angles.
#
# (With complex numbers steps 1 to 4 are one line: $z = a + ib$, a turn is a product with $e^{i\varphi}$, a dot product
# is $\mathrm{Re}(z \bar w)$, and $\mathrm{Re}(z e^{im\theta}\, \overline{w e^{in\theta}}) =
# \mathrm{Re}(z \bar w\, e^{i(m-n)\theta})$. It says the same.)
#
# ## The module agrees

# %%
x = rng.standard_normal((5, 8))
angles = rope_angles(np.arange(5), inverse_frequencies(8))  # [position, pair]
y, _ = rotate_pairs_forward(x, angles)
assert np.allclose(y, [turn_all(row, m) for m, row in enumerate(x)], rtol=0, atol=1e-14)

dy = rng.standard_normal((5, 8))
naive_dx = np.array([turn_all(row, -m) for m, row in enumerate(dy)])  # step 6
assert np.allclose(rotate_pairs_backward(dy, angles), naive_dx, rtol=0, atol=1e-14)
assert np.allclose((y**2).sum(1), (x**2).sum(1))
print("naive and module agree, forward and backward; lengths are unchanged")

# %% [markdown]
# The module has no loop: `x[..., 0::2]` is every $a$ at once, `x[..., 1::2]` every $b$.
#
# ## The experiment: one value on every diagonal
#
# Put the same query and the same key at every position. In the square of scores, row $m$ and column $n$, a diagonal is
# one distance.


# %%
def turned(vector, start=0):
    rows = np.repeat(vector[None], 24, axis=0)
    return rotate_pairs_forward(rows, rope_angles(np.arange(start, start + 24), inverse_frequencies(8)))[0]


score = turned(q) @ turned(k).T
assert max(np.ptp(np.diagonal(score, d)) for d in range(-23, 24)) < 1e-10
by_distance = {start: turned(q, start) @ turned(k, start)[0] for start in (0, 1000)}
assert np.allclose(by_distance[0], by_distance[1000], atol=1e-9)
draw_diagonals(score, by_distance, "Every diagonal has one value: only the distance counts")

# %% [markdown]
# The curve on the right is a sum of four waves, one for each pair. It is not a smooth "nearer is stronger": RoPE lets
# the score *depend* on distance, and training chooses how.
#
# What does each clock contribute? For $q = k$ the cosine is all that is left. Here are the four of width 8.

# %%
distance = np.arange(60)
waves = {f"pair {i}": (distance, np.cos(distance * f)) for i, f in enumerate(inverse_frequencies(8))}
period = 2 * np.pi / inverse_frequencies(8)
kinds = ["#F3C397", "#E69A55", "rope", "ink"]
title = f"Pair 0 repeats after {period[0]:.0f} tokens, pair 3 after {period[-1]:,.0f}"
plot_lines(waves, kinds, title, "distance m − n", "score of the pair, q = k")

# %% [markdown]
# ## Two layouts, and the permutation between them
#
# *Which* two numbers form a pair is a convention, and there are two. The released DeepSeek weights pair **neighbours**,
# (0,1), (2,3), and so on; many libraries pair **halves**, (0,4), (1,5), and so on of eight. The pairs are the same,
# they only sit elsewhere. Move the elements first, by the arrows below, and both rules give the same scores. Forget it,
# and every shape still fits, the model runs, and what it writes is nonsense.

# %%
order = half_split_order(8)
draw_seats(order, "The same four pairs, seated in two ways")

# %%
q, k = rng.standard_normal((2, 5, 8))


def scores(rotate, pick):
    return rotate(q[:, pick], angles)[0] @ rotate(k[:, pick], angles)[0].T


want = scores(rotate_pairs_forward, slice(None))
assert np.allclose(scores(rotate_halves_forward, order), want)
forgotten = np.abs(scores(rotate_halves_forward, slice(None)) - want)
print(f"halves after the permutation: equal; without it: wrong by up to {forgotten.max():.2f}")
print(f"at position 0, where nothing turns, the mistake is invisible: {forgotten[0, 0]:.0e}")

# %% [markdown]
# The keys in a cache are in the layout of the code that wrote them: two programs that agree on every score may still
# not share a cache.
#
# ## Change this, predict, run
#
# The cell turns the *query only*, by $m - n$, and leaves the key alone. Predict: is the score the same as when both are
# turned? Then change `m - n` to `n - m` and predict again. Which of the two is step 4?
#
# <details><summary>Afterwards</summary>
#
# The same, to the last digit: what counts is the turn *between* the two. In step 4 the key is turned by $n - m$ and the
# query not at all; turning the query by $m - n$ instead is turning back by as much. With `n - m` on the query the angle
# has the wrong sign: another score, as if the key stood as far *ahead* as it stands behind.
#
# </details>

# %%
one_query, one_key, m, n = q[0], k[0], 11, 4
both = turn_all(one_query, m) @ turn_all(one_key, n)
print(f"both turned {both:+.6f}, query alone by m - n {turn_all(one_query, m - n) @ one_key:+.6f}")

# %% [markdown]
# ## What changed, and what comes next
#
# Scores know distances, and no position was learned. But a turn now stands between $W_Q$ and $W_K$, another one for
# every distance. The gift at the end of the last notebook, to move $W^{UK}$ over to the query, needs the two side by
# side. That conflict is the next notebook.
#
# ## What you can now do
#
# Turn a vector by RoPE in five lines; prove that only the distance counts; say why the backward pass turns back; and
# recognise weights that were made for the other layout.
#
# ## Exercises
#
# Graded: `rotate_neighbours` and `rotate_neighbours_backward` (`make check CH=02`). By thought alone:
#
# 1. Turning the query only gives the same scores. Why does nobody do it?
#
# <details><summary>Solution</summary>
#
# Every query would have to be turned once for every key. Turning both needs one turn per token, and the turned key can
# be cached.
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
# At position 0, and for slow pairs everywhere, the angle is nearly zero, and turning forward or back is nearly the
# same. The gradient is right in part, and wrong where it matters: far from the start, in the fast pairs.
#
# </details>
#
# 4. Give the query arrow $(1, 0)$ and the key arrow $(0, 1)$ at one angle $\theta$ per token. What is their score at
#    distance $m - n$, and why does this pair know which of the two came first?
#
# <details><summary>Solution</summary>
#
# Step 4 with $a = 1, b = 0, c = 0, d = 1$: $\sin((n - m)\theta)$. Exchange $m$ and $n$ and the sign changes.
#
# </details>
