# %% [markdown]
# # YaRN: a longer context
#
# **The question.** A model was trained on 4,096 tokens. What must change so that it can read 163,840?

# %%
import matplotlib.pyplot as plt
import numpy as np
from rotary_embedding import inverse_frequencies
from yarn import V3_SCALING, magnitude, pair_at_rotations, ramp_bounds, rotary_frequencies, softmax_scale, stretch_ramp

from utils.whiteboard import COLORS, use_style

use_style()
plain, stretched = inverse_frequencies(64), rotary_frequencies(64, 10000.0, V3_SCALING)

# %% [markdown]
# ## On the whiteboard: which angles has a pair ever seen?
#
# Three pairs over 4,096 tokens of training (orange), and what 163,840 tokens would add without any change (pale). The
# fast pair has been round hundreds of times: no angle is new to it. The slow pair has seen a tenth of its circle;
# beyond, every angle is unknown land.

# %%
fig, axes = plt.subplots(1, 3, figsize=(9, 3.3), subplot_kw={"projection": "polar"})
for ax, pair in zip(axes, (4, 20, 31)):
    seen, asked = (min(n * plain[pair], 2 * np.pi) for n in (4096, 163840))
    ax.bar((seen + asked) / 2, 1, width=asked - seen, color=COLORS["draft"], alpha=0.18)
    ax.bar(seen / 2, 1, width=seen, color=COLORS["rope"], alpha=0.7)
    ax.set(xticks=[], yticks=[])
    ax.set_title(f"pair {pair}: {4096 * plain[pair] / (2 * np.pi):,.2f} turns", loc="center", fontsize=11)
axes[2].text(0.28, 0.55, "seen", ha="center", va="center")
axes[2].text(3.6, 0.5, "never seen", ha="center", va="center")
fig.tight_layout()
plt.show()

# %% [markdown]
# ## Derivation
#
# 1. Pair $i$ makes $n_i = L_0\,\theta_i / 2\pi$ turns in the training length $L_0 = 4096$. It falls from 652 (pair 0)
#    to 0.09 (pair 31).
# 2. More than $\beta_{fast} = 32$ turns: every angle is known, and neighbours must stay apart. **Leave it.**
# 3. Less than $\beta_{slow} = 1$ turn: new positions would make new angles. **Divide its speed by $s = 40$**: position
#    163,840 then has the angle that 4,096 had.
# 4. Between them, a straight ramp. Solve $n_i = \beta$ for the pair:
#    $i(\beta) = R \ln(L_0 / 2\pi\beta) / (2 \ln 10000)$, that is 10.47 and 22.51, rounded outwards to 10 and 23. These
#    are *pairs*; to read them as dimensions is row P of the common mistakes.
# 5. With 40 times more keys the softmax flattens. YaRN multiplies all scores by $m^2$, $m = 0.1 \ln s + 1$. The whole
#    score, content too; and only once: either in cos and sin (as the paper writes it) or in the scale (as DeepSeek
#    does), not both.
#
# ## Check in numbers

# %%
for beta in (32, 1):
    print(f"{beta:>2} turns of 4096 tokens at pair {pair_at_rotations(beta, 64, 10000.0, 4096):.3f}")
print("stays up to, stretched from:", ramp_bounds(64, 10000.0, V3_SCALING))
for pair in (10, 11, 16, 22, 23, 31):
    print(f"pair {pair}: {plain[pair]:.8e} -> {stretched[pair]:.8e}")
print(f"scale: {softmax_scale(192):.7f} -> {magnitude(40):.6f}^2 / sqrt(192) = {softmax_scale(192, V3_SCALING):.7f}")

# %% [markdown]
# ## The finding: the ramp

# %%
low, high = ramp_bounds(64, 10000.0, V3_SCALING)
assert np.allclose(stretched[: low + 1], plain[: low + 1])
assert np.allclose(stretched[high:], plain[high:] / 40)
curves = {
    "trained": (plain, {"color": COLORS["ink"]}),
    "all divided by 40 (plain interpolation)": (plain / 40, {"color": COLORS["draft"], "ls": "--", "lw": 1.5}),
    "YaRN": (stretched, {"color": COLORS["rope"], "marker": "o"}),
}

# %%
fig, (top, bottom) = plt.subplots(2, 1, figsize=(8, 6), sharex=True, height_ratios=[1, 1.3])
top.plot(stretch_ramp(64, 10000.0, V3_SCALING), "o-", color=COLORS["rope"])
top.set(ylabel="share of stretching", yticks=[0, 0.5, 1])
top.set_title(f"Pairs 0 to {low} stay, {high} to 31 turn 40 times slower")
for name, (frequencies, look) in curves.items():
    bottom.semilogy(2 * np.pi / frequencies, label=name, **look)
bottom.axhline(4096, color="#BBBBBB", lw=1)
bottom.text(0, 5000, "4,096 tokens", color="#888888")
bottom.set(xlabel="pair", ylabel="tokens per full turn")
bottom.legend(loc="lower right")
fig.tight_layout()
plt.show()

# %% [markdown]
# ## A consequence: no slow pair meets an angle it does not know
#
# The largest angle of each pair at position 163,840, against what training has shown (a full turn counts as
# everything):

# %%
known = np.minimum(4096 * plain, 2 * np.pi)
asked = {"unchanged": 163840 * plain, "YaRN": 163840 * stretched}
for name, angle in asked.items():
    fresh = np.minimum(angle, 2 * np.pi) > known * (1 + 1e-12)
    pairs = np.flatnonzero(fresh)
    print(f"{name:<10} pairs with unknown angles: {f'{pairs[0]} to {pairs[-1]}' if len(pairs) else 'none'}")

# %% [markdown]
# And what plain interpolation loses: the angle between *neighbours* in the fastest pair is $1/40$ radian instead of
# one. Two adjacent words become nearly one.
#
# ## What changed
#
# 21 of 32 numbers and one scale. No weight is new; V3 then trains 1,000 steps at 32K and 1,000 at 128K to get used to
# them (V3 4.3).
#
# ## Exercises
#
# 1. Read the bounds as dimension indices, 20 and 46 (of 64), and use them on pairs. Which pairs stay unstretched by
#    mistake?
#
# <details><summary>Solution</summary>
#
# The ramp would start at pair 20 and reach only 0.42 at pair 31. Pairs 11 to 20 would stay as they were, and pairs
# 23 to 31, the ones that need the full stretch, get less than half of it.
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
