# %% [markdown]
# # Fine-grained and shared experts
#
# **The question.** We may spend so many parameters and so many operations for each token. Is it better to have 16
# wide experts and use 2, or 64 thin ones and use 8? The bill is the same. What do we buy?
#
# **The idea.** We buy *teams*. And once teams are plentiful, what all of them need can be moved to experts that are
# always on.

# %%
import matplotlib.pyplot as plt
import numpy as np
from expert_routing import choose_top_experts
from fine_grained_experts import (
    Segmentation,
    SwiGLUExperts,
    count_grouped_combinations,
    every_expert_forward,
    merge_experts,
    split_experts,
)

from utils.whiteboard import COLORS, board, note, tint, use_style

use_style()

# %% [markdown]
# ## On the whiteboard: the same area, cut differently
#
# Each rectangle is an expert, its height the hidden width. Filled: used by one token. Gold: shared.

# %%
coarse = Segmentation(n_routed=16, n_activated=2, hidden=512)
fine = coarse.cut(4)
layers = {"16 wide, 2 active": coarse, "64 thin, 8 active": fine, "one of the active shared": fine.share(1)}
fig, ax = board(16, 7.2, f"Equal cost, {coarse.combinations} teams or {fine.combinations:,}")
for row, (name, shape) in enumerate(layers.items()):
    y, total = 5.9 - 2.3 * row, shape.n_routed + shape.n_shared
    on = set(range(shape.n_shared)) | set(shape.n_shared + np.arange(shape.n_activated) * 7 % shape.n_routed)
    per_column, high = (1, 1.2) if total == 16 else (4, 0.3)
    for e in range(total):
        kind = "shared" if e < shape.n_shared else "routed"
        left, bottom = 0.3 + 0.62 * (e // per_column), y + 0.6 - high * (e % per_column + 1)
        color = COLORS[kind] if e in on else tint("routed", 0.15)
        ax.add_patch(plt.Rectangle((left, bottom), 0.56, high * 0.9, facecolor=color, edgecolor=COLORS[kind]))
    note(ax, 10.7, y + 0.25, name, size=12, align="left")
    cost = f"{shape.active_parameters(64):,} weights for a token"
    note(ax, 10.7, y - 0.25, f"{cost}\n{shape.combinations:,} teams", "ink", size=10, align="left")
plt.show()

# %% [markdown]
# ## The derivation, in four steps
#
# 1. **An expert is a sum over hidden units:** $\mathrm{FFN}(x) = \sum_f w^{down}_f\,\mathrm{silu}(w^{gate}_f\!\cdot
#    x)\,(w^{up}_f\!\cdot x)$. Any partition of the units is a partition of the work, so $m$ thin experts with the
#    right weights *are* the wide one.
# 2. **So fine contains coarse.** Give the $m$ pieces of an expert the same gate, always choose them together, and
#    the old layer is back. Cutting can only widen what the layer can express; whether training finds it is another
#    matter.
# 3. **Teams.** $\binom{E}{A}$ becomes $\binom{mE}{mA}$.
# 4. **Shared experts.** What every token needs (syntax, common words) would have to be in *every* team. Put $K_s$
#    experts outside the choice: $y = \sum_{i \le K_s} \mathrm{FFN}_i(x) + \sum_{i \in \mathcal T}
#    g_i\,\mathrm{FFN}_i(x)$, with $K_s$ fewer to choose. No gate: they are no choice.

# %% [markdown]
# ## A numeric check
#
# The pieces add up to the whole, and shared experts merge into one wide one, which is how they are released.

# %%
rng = np.random.default_rng(0)
x_ND, wide = rng.normal(size=(32, 16)), SwiGLUExperts.init(rng, 4, 16, 24)
whole = every_expert_forward(x_ND, wide)[0]
for m in (2, 3, 8):
    pieces = every_expert_forward(x_ND, split_experts(wide, m))[0].reshape(32, 4, m, 16)
    print(f"m = {m}: largest difference of the sum {np.abs(pieces.sum(axis=2) - whole).max():.1e}")
merged = every_expert_forward(x_ND, merge_experts(wide))[0][:, 0]
print(f"four shared as one: {np.abs(merged - whole.sum(axis=1)).max():.1e}")

# %% [markdown]
# ## Teams against cuts

# %%
cuts = [1, 2, 4, 8, 16]
teams = [coarse.cut(m).combinations for m in cuts]
costs = {coarse.cut(m).active_parameters(64) for m in cuts}
fig, ax = plt.subplots(figsize=(8, 3.8))
ax.semilogy(cuts, [float(t) for t in teams], color=COLORS["routed"], marker="o")
for m, t in zip(cuts, teams):
    ax.annotate(f"{t:,}" if t < 10**6 else f"{t:.1e}", (m, float(t)), xytext=(9, -4), textcoords="offset points")
ax.set(xlabel="cuts m of each expert", ylabel="teams", xlim=(0, 19), ylim=(1, None), xticks=cuts)
assert len(costs) == 1
ax.set_title(f"Cost stays at {costs.pop():,} weights; teams grow to {teams[-1]:.0e}")
plt.show()

# %% [markdown]
# Are more teams *worth* anything? A small test with no training at all. A target map is a sum of four hidden
# "features" out of 24, different for each token, and experts know the features exactly: a wide expert holds a fixed
# bundle of them, a thin one a single feature. A token picks the experts that explain its target best, at equal cost
# (6 features).

# %%
n_features, wanted, spent = 24, 4, 6
need = np.array([rng.choice(n_features, wanted, replace=False) for _ in range(2000)])
covered = []
for size in (6, 3, 2, 1):  # features in one expert
    bundle = rng.permutation(n_features).reshape(-1, size)  # what each expert knows
    useful = np.array([[len(set(wish) & set(known)) for known in bundle] for wish in need], dtype=float)
    best = choose_top_experts(useful, spent // size)
    covered.append(np.take_along_axis(useful, best, axis=1).sum(axis=1).mean() / wanted)

# %%
fig, ax = plt.subplots(figsize=(9, 3.3))
labels = ["4 experts,\n1 active", "8 experts,\n2 active", "12 experts,\n3 active", "24 experts,\n6 active"]
ax.bar(labels, np.array(covered) * 100, color=COLORS["routed"], width=0.6)
ax.set_ylabel("needed features found, %")
ax.set_title(f"At equal cost, a wide expert covers {covered[0]:.0%} of the need, thin ones {covered[-1]:.0%}")
assert covered[0] < covered[-1]
plt.show()

# %% [markdown]
# ## What the groups of V3 give up
#
# V3 lets a token visit at most 4 of 8 groups (nodes). How many of its teams are left?

# %%
kept = [count_grouped_combinations(256, 8, 8, g) for g in range(1, 9)]
share = np.array([k / kept[-1] for k in kept])
fig, ax = plt.subplots(figsize=(8, 3.3))
ax.bar(range(1, 9), share * 100, color=[COLORS["routed"] if g == 4 else tint("routed", 0.45) for g in range(1, 9)])
ax.set(xlabel="groups that a token may visit, of 8", ylabel="teams left, %")
ax.set_title(f"With 4 of 8 groups, {share[3]:.0%} of the teams are left: still {kept[3]:.1e}")
plt.show()

# %% [markdown]
# ## What comes next
#
# All parts are on the table. `deepseek_moe` puts them together: sigmoid scores, bias, groups, normalised and scaled
# gates, a shared expert, and a dispatch that is fast.
#
# ## Exercises
#
# **1.** V3 has 256 routed experts of width 2048, 8 active, 1 shared, $d = 7168$. How many weights does a token meet
# in one layer, and what share of the layer is that?
#
# <details><summary>Solution</summary>
#
# One expert: $3 \cdot 7168 \cdot 2048 = 44{,}040{,}192$. Nine of them: 396,361,728 of 257: 3.5 %. It is no accident
# that this equals the dense layers of V3: their width is $9 \cdot 2048 = 18432$.
#
# </details>
#
# **2.** Why does the comparison "fine contains coarse" need the *raw* gates and not normalised ones?
#
# <details><summary>Solution</summary>
#
# With normalised gates the $m$ copies of a gate share the sum: each is $g/m$, so the pieces add up to $1/m$ of the
# old output (a scale then mends it). Raw gates can be repeated as they are.
#
# </details>
#
# **3.** Could one cut until every expert is a single hidden unit?
#
# <details><summary>Solution</summary>
#
# Teams would be most numerous, but the router would have as many rows as there are hidden units, so it would cost
# as much as a third of the dense layer, and each matrix product would have one row: memory traffic without
# arithmetic.
#
# </details>
