# %% [markdown]
# # YaRN: a longer context
#
# **The question.** A model was trained on texts of 4,096 tokens. What must change so that it can read forty times as
# much?
#
# The clock on each card has 32 hands (notebook `rotary_embedding`). In 4,096 tokens the fastest hand goes round 652
# times; the slowest makes a tenth of one turn, like the hour hand of a clock that was only ever watched from twelve to
# one. The model has learned to read these hands. Now show it a clock at half past eight. The fast hand is no news: it
# has pointed everywhere, thousands of times. But the slow hand stands where it has never stood, and nobody knows what
# the model makes of that.
#
# The cure follows from the picture. **Slow the slow hands down**, so that at the end of the long text they stand where
# they stood at the end of the short one. **Leave the fast hands alone**: they are known everywhere, and they are what
# tells neighbours apart. Between the two, do something in between. That is YaRN, "yet another RoPE extension".

# %%
import numpy as np
from rotary_embedding import inverse_frequencies, rope_angles, rotate_pairs_forward
from yarn import V3_SCALING, magnitude, pair_at_rotations, ramp_bounds, rotary_frequencies, softmax_scale, stretch_ramp

from utils.plots_02 import draw_seen_angles, plot_lines, plot_ramp

plain = inverse_frequencies(64)  # radians per token of the 32 pairs

# %%
draw_seen_angles(plain, (12, 24, 31), 4096)

# %% [markdown]
# ## Numbers to follow with a pencil
#
# A pair with angle $\theta$ (in radians) per token makes $n\,\theta / 2\pi$ turns in $n$ tokens. Pair 0 has
# $\theta = 1$: $4096 / 6.283 = 652$ turns. Pair 16 has $\theta = 10000^{-16/32} = 1/100$: 6.52 turns. Pair 31 has
# $\theta = 10000^{-31/32} = 0.000133$: 0.087 turns, 31 degrees.
#
# Forty times as many tokens, 163,840, would take pair 31 to 1,252 degrees: three and a half turns where a twelfth of
# one is known. Divide its $\theta$ by 40, and position 163,840 shows the 31 degrees that position 4,096 has shown.

# %%
for i in (0, 10, 16, 22, 23, 31):
    print(f"pair {i:>2}: {4096 * plain[i] / (2 * np.pi):>7.2f} turns in 4,096 tokens")

# %% [markdown]
# ## Build it
#
# Which pairs count as fast? YaRN names two limits: more than $\beta_{fast} = 32$ turns in the training length, leave
# it; fewer than $\beta_{slow} = 1$ turn, stretch it in full. Solve "turns of pair $i$ = $\beta$" for $i$, with $R$ the
# rotary width (64), $L_0$ the training length (4,096):
# $$\frac{L_0\, 10000^{-2i/R}}{2\pi} = \beta \quad\Rightarrow\quad
# i(\beta) = \frac{R \ln(L_0 / 2\pi\beta)}{2 \ln 10000}.$$


# %%
def pair_with_turns(beta, R=64, L0=4096, theta=10000.0):
    """The (fractional) number of the pair that makes beta turns in L0 tokens."""
    return R * np.log(L0 / (2 * np.pi * beta)) / (2 * np.log(theta))


low, high = np.floor(pair_with_turns(32)), np.ceil(pair_with_turns(1))
print(f"32 turns at pair {pair_with_turns(32):.2f}, 1 turn at pair {pair_with_turns(1):.2f}: {low:.0f} and {high:.0f}")

# %% [markdown]
# Rounded outwards, 10 and 23. Pairs 0 to 10 stay, pairs 23 to 31 are divided by the factor $s = 40$, and between them a
# straight **ramp** says how much of each.


# %%
def stretch(plain, low, high, s):
    """YaRN: ramp 0 keeps the frequency, ramp 1 divides it by s."""
    ramp = np.clip((np.arange(len(plain)) - low) / (high - low), 0, 1)
    return plain * (1 - ramp) + plain / s * ramp


ours, module = stretch(plain, low, high, 40), rotary_frequencies(64, 10000.0, V3_SCALING)
assert np.allclose(ours, module, rtol=1e-14, atol=0)
assert np.isclose(pair_with_turns(32), pair_at_rotations(32, 64, 10000.0, 4096))
for i in (10, 11, 16, 22, 23, 31):
    print(f"pair {i}: {plain[i]:.8e} -> {ours[i]:.8e}, {plain[i] / ours[i]:.2f} times slower")

# %% [markdown]
# These are the numbers of the released model, to the last digit shown.
#
# ## The derivation
#
# 1. Pair $i$ makes $n_i = L_0\,\theta_i / 2\pi$ turns in training, from 652 down to 0.09.
# 2. $n_i > 32$: every angle is known, and neighbours must stay apart. **Leave it.**
# 3. $n_i < 1$: new positions would make new angles. **Divide the speed by $s$**: position $s L_0$ then has the angle
#    that $L_0$ had.
# 4. Between them a ramp, by the number of the *pair*. (The bounds are numbers of pairs; to read them as numbers of
#    dimensions is one of the common mistakes, see the exercises.)
# 5. With forty times more keys, a softmax spreads over more of them and gets flatter. YaRN sharpens it: all scores,
#    content too, are multiplied by $m^2$ with $m = 0.1 \ln s + 1$. The square, because the paper multiplies queries
#    *and* keys by $m$; and only once: either in cos and sin (as the paper writes it) or in the scale (as DeepSeek
#    does), never in both.
#
# For V3, $m = 0.1 \ln 40 + 1 = 1.368888$, and the scale becomes $m^2 / \sqrt{192} = 0.1352338$.

# %%
m = 0.1 * np.log(40) + 1
assert np.isclose(m, magnitude(40))
assert np.isclose(m**2 / np.sqrt(192), softmax_scale(192, V3_SCALING))
print(f"scale without YaRN {softmax_scale(192):.7f}, with YaRN {softmax_scale(192, V3_SCALING):.7f}")

# %%
curves = {"trained": plain, "all divided by 40": plain / 40, "YaRN": module}
title = f"Pairs 0 to {low:.0f} stay, {high:.0f} to 31 turn 40 times slower"
plot_ramp(stretch_ramp(64, 10000.0, V3_SCALING), curves, 4096, title)

# %% [markdown]
# ## No pair meets an angle that it does not know
#
# The largest angle of each pair at position 163,840, against what training has shown (a full turn counts as
# everything). Plain RoPE fails for the slow pairs. YaRN does not, *and* neither would the simpler cure, to divide every
# frequency by 40 (called position interpolation). So why the ramp?

# %%
known = np.minimum(4096 * plain, 2 * np.pi)
for name, frequencies in [("unchanged", plain), ("all divided by 40", plain / 40), ("YaRN", module)]:
    fresh = np.flatnonzero(np.minimum(163840 * frequencies, 2 * np.pi) > known * (1 + 1e-12))
    print(f"{name:<18} pairs with unknown angles: {f'{fresh[0]} to {fresh[-1]}' if len(fresh) else 'none'}")

# %% [markdown]
# ## The experiment: can the previous word still be found?
#
# Take a head that looks for *the token just before me*: every key is the arrow $(1, 0)$ in each pair, the query is the
# same arrow turned back by one token under the trained frequencies. That is what a head has learned; its weights do not
# change when the frequencies do. Now give it a text of 200 tokens under each of the three rules, and look at which
# distance it pays attention to.


# %%
def attention_by_distance(frequencies, n=200, sharpness=2.0):
    """Softmax shares over the distances 0 ... n - 1 of a head that was trained to find distance 1."""
    key = np.tile([1.0, 0.0], (n, 32))
    query = rotate_pairs_forward(key[:1], rope_angles([-1], plain))[0]  # learned: one token back
    turned_query = rotate_pairs_forward(query, rope_angles([n - 1], frequencies))[0]
    turned_keys = rotate_pairs_forward(key, rope_angles(np.arange(n), frequencies))[0]
    score = sharpness * (turned_keys @ turned_query[0])[::-1]  # entry d: the key d tokens back
    share = np.exp(score - score.max())
    return share / share.sum()


shares = {name: attention_by_distance(f) for name, f in curves.items()}

# %%
for name, share in shares.items():
    print(f"{name:<18} largest share at distance {share.argmax()}: {share.max():.2f}; on distance 1: {share[1]:.2f}")
assert shares["trained"].argmax() == shares["YaRN"].argmax() == 1
astray = shares["all divided by 40"].argmax()
title = f"All divided by 40, the head looks {astray} tokens back; under YaRN, 1"
near = {name: (range(90), share[:90]) for name, share in shares.items()}
plot_lines(near, ["ink", "wrong", "rope"], title, "distance to the key, in tokens", "share of attention")

# %% [markdown]
# With every hand slowed down forty times, *one token back* has become forty tokens back, and so blurred that no key
# gets more than a few percent. YaRN leaves the hands that tell neighbours apart, and the previous word is found as
# before: the grey curve lies under the orange one. (A head built by hand. Training on repairs position interpolation;
# YaRN needs less of it.)
#
# ## Where the paper and the released code differ
#
# The YaRN paper draws its ramp over the number of *turns*: a pair with $n$ turns keeps the share
# $(n - 1)/(32 - 1)$, without rounding. DeepSeek's released code (and this book) draws it over the number of the *pair*,
# from 10 to 23. The ends agree, the middle does not, for turns fall by powers and pairs by ones:

# %%
turns = 4096 * plain / (2 * np.pi)
keep = np.clip((turns - 1) / (32 - 1), 0, 1)
paper = plain * keep + plain / 40 * (1 - keep)
for i in (11, 13, 16, 19, 22):
    print(f"pair {i}: the released code turns it {module[i] / paper[i]:.1f} times faster than the paper's formula")

# %% [markdown]
# A checkpoint must be run with the frequencies that it was trained with, so the released code decides
# ([errata](../docs/errata.md)).
#
# ## How far?
#
# $40 \cdot 4096 = 163{,}840$ is the length for which the frequencies are made; the report trained V3 in two phases of
# 1,000 steps, at 32K and at 128K tokens, and tested it to 128K (section 4.3). Beyond that, nothing has been shown.
# What changed in the model is 21 of 32 numbers and one scale.
#
# ## Change this, predict, run
#
# The cell stretches by 40 with the bounds read as *dimension indices*, 20 and 46 (each pair has two dimensions), but
# used on pairs. Predict: which pairs stay by mistake? Does the head still find the previous word? What will break, and
# at which length would you notice?
#
# <details><summary>Afterwards</summary>
#
# Pairs 11 to 20 stay by mistake, and the later ones are stretched too little: pair 31 runs at 0.59 of its speed in
# place of 1/40. The head still finds the previous word, since short distances live in the fast pairs. But pairs 23 to
# 31 now reach angles that training never showed, and not at 160K: pair 23 at 4,096 / 0.8875 = 4,615 tokens, the slowest
# at 6,972. So one would notice soon after the old length, and a test at short lengths would notice nothing.
#
# </details>

# %%
mistaken = stretch(plain, 20, 46, 40)
share = attention_by_distance(mistaken)
fresh = np.flatnonzero(np.minimum(163840 * mistaken, 2 * np.pi) > known * (1 + 1e-12))
print(f"largest share at distance {share.argmax()}: {share.max():.2f}; unknown angles in pairs {fresh}")

# %% [markdown]
# ## What you can now do
#
# Compute the rotary frequencies of DeepSeek-V3 with a pencil; say why fast pairs stay and slow ones are stretched;
# place the temperature once; and recognise five wrong ways to extend a context.
#
# ## Exercises
#
# Graded: `stretch_frequencies` (`make check CH=02`). By thought alone:
#
# 1. Bounds 20 and 46 on pairs, as above: how far is pair 31 stretched?
#
# <details><summary>Solution</summary>
#
# The ramp reaches only $(31 - 20)/26 = 0.42$ there. Pairs 11 to 20 stay as they were, and pairs 23 to 31, the ones that
# need the full stretch, get less than half of it. Neighbours are found, short texts are fine; beyond the training
# length the slow pairs show unknown angles.
#
# </details>
#
# 2. V2 used mscale 0.707. What is its scale?
#
# <details><summary>Solution</summary>
#
# $(0.0707 \ln 40 + 1)^2 / \sqrt{192} = 0.1147214$:
# `softmax_scale(192, {**V3_SCALING, "mscale": 0.707, "mscale_all_dim": 0.707})`.
#
# </details>
#
# 3. May a cache written with plain RoPE at 3,000 tokens be continued with YaRN?
#
# <details><summary>Solution</summary>
#
# No: the cached rotary keys were turned at the old speeds. They would have to be turned on by the difference of the
# angles, or computed again.
#
# </details>
#
# 4. YaRN has no weights. Is there anything to derive backward?
#
# <details><summary>Solution</summary>
#
# Frequencies are constants, so nothing here has a gradient of its own. The turn that uses them has: back by the same,
# stretched, angles. The module's script checks that.
#
# </details>
