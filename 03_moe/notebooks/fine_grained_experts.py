# %% [markdown]
# # Fine-grained and shared experts
#
# **The question.** We may spend so many weights and so many operations for each token. Is it better to have 16 wide
# experts and use 2, or 64 thin ones and use 8? The bill is the same to the last product. What do we buy?
#
# A clinic with 16 physicians who each know four things, against one with 64 specialists who each know one. A patient of
# the first sees two physicians, of the second eight specialists: eight pieces of knowledge in either case. But the
# physicians come with *bundles*. Whoever needs one thing from each of four bundles cannot be served by two of them. And
# every physician had to learn to take a temperature, because everybody needs that. In the second clinic one person at
# the entrance does it for all, and nobody else has to know how.
#
# The first idea is called **fine-grained** experts, the second a **shared** expert. This notebook cuts an expert and
# shows that nothing is lost; counts the *teams*; and then trains layers of equal cost, to see whether the teams are
# found.

# %%
from math import comb

import numpy as np

# %%
from expert_routing import count_load, scatter_to_experts, sigmoid
from fine_grained_experts import (
    Segmentation,
    SwiGLUExperts,
    count_grouped_combinations,
    every_expert_backward,
    every_expert_forward,
    fine_grained_backward,
    fine_grained_forward,
    merge_experts,
    split_experts,
)
from loss_free_balancing import loss_free_gate_backward, loss_free_gate_forward, update_bias

# %%
from utils.clinic_task import adjust_weights
from utils.drawings_03 import draw_cuts
from utils.gradient_check import central_difference, relative_error
from utils.plots_03 import plot_cut_runs, plot_groups
from utils.plots_studies import plot_study

# %% [markdown]
# ## Numbers to follow with a pencil
#
# **Teams.** Four experts, one activated: a token can be sent to 4 different teams of one. Cut each in two and activate
# two of eight: $\frac{8 \cdot 7}{2} = 28$ teams. Cut in four, four of sixteen: $\frac{16 \cdot 15 \cdot 14 \cdot 13}{1
# \cdot 2 \cdot 3 \cdot 4} = 1820$. As many weights, as many products, 455 times as many teams.
#
# **The bill of DeepSeek-V3.** An expert has three matrices of $7168 \times 2048$: 44,040,192 weights. One layer has 256
# routed experts and a shared one: 257 of them, 11,318,329,344 weights. A token meets 8 + 1 of them: 396,361,728. That
# is 3.5 %, and it is the answer to how a model of 671 billion weights uses 37 billion.

# %%
coarse = Segmentation(n_routed=4, n_activated=1, hidden=512)
print("teams:", [coarse.cut(m).combinations for m in (1, 2, 4)], "by hand:", [comb(4, 1), comb(8, 2), comb(16, 4)])
v3 = Segmentation(n_routed=256, n_activated=8, hidden=2048, n_shared=1)
owned, used = v3.total_parameters(7168), v3.active_parameters(7168)
print(f"V3, one layer: {owned:,} weights, {used:,} of them for a token: {used / owned:.1%}")

# %%
sixteen = Segmentation(n_routed=16, n_activated=2, hidden=512)
thin = sixteen.cut(4)
layers = {"16 wide, 2 active": sixteen, "64 thin, 8 active": thin, "one of the active shared": thin.share(1)}
draw_cuts(layers, 64, f"Equal cost: {sixteen.combinations} teams, or {thin.combinations:,}")

# %% [markdown]
# Each rectangle is an expert, as high as its hidden width. Filled: used by one token. Gold: shared.
#
# ## Build it: cut an expert
#
# An expert is a sum over its hidden units: unit $f$ reads the token through row $f$ of two matrices and writes through
# column $f$ of the third. So any way of dealing out the units is a way of dealing out the work.


# %%
def silu(z):
    return z / (1 + np.exp(-z))


def ffn(x, gate_proj, up_proj, down_proj):
    """One SwiGLU expert on one token [D]."""
    return down_proj @ (silu(gate_proj @ x) * (up_proj @ x))


def cut(gate_proj, up_proj, down_proj, m):
    """One expert -> m thin ones; the first gets the first units, and so on."""
    thin = len(gate_proj) // m
    parts = [slice(i * thin, (i + 1) * thin) for i in range(m)]
    return [(gate_proj[p], up_proj[p], down_proj[:, p]) for p in parts]


# %%
rng = np.random.default_rng(0)
x, experts = rng.normal(size=(32, 16)), SwiGLUExperts.init(rng, 4, 16, 24)
whole, _ = every_expert_forward(x, experts)
for m in (2, 3, 8):
    pieces = cut(experts.gate_proj[1], experts.up_proj[1], experts.down_proj[1], m)
    assert np.allclose(sum(ffn(x[0], *piece) for piece in pieces), whole[0, 1], rtol=0, atol=1e-14)
    module = every_expert_forward(x, split_experts(experts, m))[0][0, m : 2 * m]  # the pieces of expert 1
    assert np.allclose(module, [ffn(x[0], *piece) for piece in pieces], rtol=0, atol=1e-14)
merged, _ = every_expert_forward(x, merge_experts(experts))
assert np.allclose(merged[:, 0], whole.sum(axis=1), rtol=0, atol=1e-13)
print("pieces add up to the whole; and four experts that are always on are one wide one")

# %% [markdown]
# ## Build it: the layer with shared experts


# %%
def naive_layer(x, router, routed, shared, A):
    """One token [D]: softmax gates as in DeepSeekMoE, the shared experts without a gate."""
    score = np.exp(router @ x - (router @ x).max())
    score = score / score.sum()
    y = sum(ffn(x, *(a[i] for a in vars(shared).values())) for i in range(len(shared.gate_proj)))
    for i in np.argsort(-score, kind="stable")[:A]:
        y = y + score[i] * ffn(x, *(a[i] for a in vars(routed).values()))
    return y


# %%
router, shared = rng.normal(size=(4, 16)), SwiGLUExperts.init(rng, 2, 16, 5)
y, cache = fine_grained_forward(x, router, experts, shared, 2)
assert np.allclose(y, [naive_layer(row, router, experts, shared, 2) for row in x], rtol=0, atol=1e-13)
print("naive and module agree:", y.shape)

# %% [markdown]
# ## The derivation
#
# 1. **An expert is a sum:** $\mathrm{FFN}(x) = \sum_f w^{down}_f\,\mathrm{silu}(w^{gate}_f\!\cdot x)\,(w^{up}_f\!\cdot
#    x)$, over its $F$ hidden units. Any partition of the units is a partition of the work.
# 2. **So fine contains coarse.** Give the $m$ pieces of an expert the same gate and always choose them together: the
#    old layer is back. Cutting can only widen what a layer *can* do. What training finds is another matter.
# 3. **Teams.** $\binom{E}{A}$ (in words: in how many ways $A$ of $E$ can be chosen) becomes $\binom{mE}{mA}$.
# 4. **Shared.** What every token needs would have to be in every team. Put some experts outside the choice, and choose
#    as many fewer: $y = \sum_{shared} \mathrm{FFN}_i(x) + \sum_{i \in \mathcal T} g_i\,\mathrm{FFN}_i(x)$. They have no
#    gate, for they are no choice.
# 5. **Back.** Expert $i$ receives $g_i\,dy$, a shared one all of $dy$. With $h = \mathrm{silu}(a)\,u$, where $a =
#    W^{gate} x$ and $u = W^{up} x$, and $dh = W^{down\,\top} (g\,dy)$:
#    $$du = dh\,\mathrm{silu}(a), \qquad da = dh\,u\,\big(\sigma(a) + a\,\sigma(a)(1 - \sigma(a))\big),$$
#    $dW^{up} = du\,x^\top$, $dW^{gate} = da\,x^\top$, $dW^{down} = (g\,dy)\,h^\top$, and
#    $dx = W^{up\,\top} du + W^{gate\,\top} da$. And the gate hears $dg_i = \mathrm{FFN}_i(x) \cdot dy$.


# %%
def naive_backward(dy, x, gate_proj, up_proj, down_proj):
    """One expert, one token: step 5 with dy as it arrives at this expert."""
    a, u = gate_proj @ x, up_proj @ x
    sig = 1 / (1 + np.exp(-a))
    dh = down_proj.T @ dy
    du, da = dh * a * sig, dh * u * (sig + a * sig * (1 - sig))
    return up_proj.T @ du + gate_proj.T @ da, np.outer(da, x), np.outer(du, x), np.outer(dy, silu(a) * u)


# %%
dy = rng.normal(size=x.shape)
dx, drouter, drouted, dshared = fine_grained_backward(dy, cache)
gate = scatter_to_experts(cache[0].gate_NA, cache[0].index_NA, 4)
one = [naive_backward(gate[n, 1] * dy[n], x[n], *(a[1] for a in vars(experts).values())) for n in range(32)]
for name, total in zip(vars(drouted), map(sum, list(zip(*one))[1:])):
    assert np.allclose(vars(drouted)[name][1], total, rtol=0, atol=1e-12)
by_trying = central_difference(lambda: np.sum(dy * fine_grained_forward(x, router, experts, shared, 2)[0]), router)
print("naive and module agree; so do central differences of the router:", relative_error(drouter, by_trying) < 1e-6)

# %% [markdown]
# ## The experiment: does training find the better teams?
#
# A token has 8 numbers and 4 of 16 flags. Each flag stands for its own linear map, and the target is twice the mean of
# its four maps: a need that is *composed* of parts. Two layers of equal cost: 8 wide experts of which 2 are active, and
# 32 thin ones of which 8 are, trained with the caretaker of the last notebook and, the thin ones, once more with nobody
# who balances. The gate is that of the last notebook too (sigmoid, normalised).


# %%
def draw_composed(rng, world):
    x, flags = rng.normal(size=(128, 8)), np.zeros((128, 16))
    need = rng.permuted(np.tile(np.arange(16), (128, 1)), axis=1)[:, :4]
    np.put_along_axis(flags, need, 1.0, axis=1)
    return np.concatenate([x, flags], axis=1), 2 * (world[need].mean(axis=1) @ x[..., None])[..., 0]


# %%
def forward(x, router, bias, routed, shared, A):
    score = sigmoid(x @ router.T)
    routing, gate_cache = loss_free_gate_forward(score, bias, A)
    gate = scatter_to_experts(routing.gate_NA, routing.index_NA, len(router))
    answers, cache = every_expert_forward(x, routed)
    common, common_cache = every_expert_forward(x, shared)
    y = np.einsum("ne,ned->nd", gate, answers) + common.sum(axis=1)
    return y, routing.index_NA, (x, score, routing, gate, answers, gate_cache, cache, common_cache)


# %%
def backward(dy, kept):
    """The gradients of router, routed and shared experts, as a flat list."""
    x, score, routing, gate, answers, gate_cache, cache, common_cache = kept
    dgate = np.take_along_axis(np.einsum("nd,ned->ne", dy, answers), routing.index_NA, axis=1)
    dscore = loss_free_gate_backward(dgate, gate_cache)
    n_shared = len(common_cache[1].gate_proj)
    drouted = every_expert_backward(gate[..., None] * dy[:, None], cache)[1]
    dshared = every_expert_backward(np.repeat(dy[:, None], n_shared, axis=1), common_cache)[1]
    return [(dscore * score * (1 - score)).T @ x, *vars(drouted).values(), *vars(dshared).values()]


# %%
def train(draw, shape, seed, speed=0.01, steps=250):
    """The loss of the last 50 steps, as a share of the target's variance, and the teams that the last batch used."""
    rng, losses, moments, bias = np.random.default_rng(seed), [], [], np.zeros(shape.n_routed)
    world, router = rng.normal(size=(16, 8, 8)) / 8**0.5, rng.normal(size=(shape.n_routed, 24)) * 0.3
    routed, shared = (SwiGLUExperts.init(rng, n, 24, shape.hidden) for n in (shape.n_routed, shape.n_shared))
    weights = [router, *vars(routed).values(), *vars(shared).values()]
    for step in range(1, steps + 1):
        x, target = draw(rng, world)
        y, index, kept = forward(x, router, bias, routed, shared, shape.n_activated)
        error = np.concatenate([y[:, :8] - target, np.zeros((128, 16))], axis=1)
        losses.append((error**2).sum() / target.size / target.var())
        adjust_weights(weights, backward(2 * error / target.size, kept), moments, step, 0.01)
        bias = update_bias(bias, count_load(index, shape.n_routed), speed)
    return np.mean(losses[-50:]), len({tuple(sorted(team)) for team in index.tolist()})


# %% [markdown]
# The oracle first: is this forward and backward right?

# %%
x, _ = draw_composed(rng, rng.normal(size=(16, 8, 8)))
router, bias = rng.normal(size=(6, 24)) * 0.3, rng.normal(size=6) * 0.1
routed, shared = (SwiGLUExperts.init(rng, n, 24, 3) for n in (6, 1))
pull = rng.normal(size=(128, 24))
grads = backward(pull, forward(x, router, bias, routed, shared, 2)[2])
for array, grad in zip((router, routed.up_proj, shared.down_proj), (grads[0], grads[2], grads[6])):
    part = array.reshape(-1)[:4]
    tried = central_difference(lambda: np.sum(pull * forward(x, router, bias, routed, shared, 2)[0]), part)
    assert relative_error(grad.reshape(-1)[:4], tried) < 1e-6
print("central differences agree")

# %%
wide = Segmentation(n_routed=8, n_activated=2, hidden=16)
assert wide.active_parameters(24) == wide.cut(4).active_parameters(24)
runs = {}
for name, shape, speed in (
    ("8 wide, 2 on\ncaretaker", wide, 0.01),
    ("32 thin, 8 on\nnobody", wide.cut(4), 0.0),
    ("32 thin, 8 on\ncaretaker", wide.cut(4), 0.01),
):
    ends = np.array([train(draw_composed, shape, seed, speed) for seed in range(2)])
    runs[name] = ends[:, 0]
    who = name.replace("\n", ", ")
    print(f"{who:26} loss {ends[:, 0].mean():.3f}; 128 tokens use {ends[:, 1].mean():.0f} different teams")
# %%
means = [losses.mean() for losses in runs.values()]
assert means[-1] == min(means)
title = f"Equal cost: 8 wide experts pay {means[0]:.3f}, 32 thin ones with the caretaker {means[-1]:.3f}"
plot_cut_runs({"a need of 4 parts of 16": runs}, title)

# %% [markdown]
# Dots are the two seeds. With thin experts every token of the batch has a team of its own; eight wide experts have 28
# pairs to offer, and nearly all of them are used. Thin experts with the caretaker pay least, and the gain is small: a
# toy, after 250 steps. What a layer *can* do and what training finds are two things, as step 2 said.
#
# And on language? DeepSeekMoE finds a loss of 1.808 with one shared and 7 of 63 thin experts, where 2 of 16 wide ones
# pay 1.867. Small models on stories and Python, 960 steps, five seeds ([docs/studies.md](../docs/studies.md)):

# %%
names = {"coarse": "2 of 8 wide", "fine": "8 of 32 thin", "fine-shared": "1 shared, 7 of 31"}
plot_study("study_fine_experts", "At equal compute, so small, thin and shared experts gain nothing", names)

# %% [markdown]
# Thin beside wide is undecided, and with a shared one among them it is worse. No interval holds the paper's -3.2 %: so
# small and so early there is no such gain. Specialists take time to become any, and a token here has few to choose.
#
# ## The experiment: something that everybody needs
#
# Now every token needs the *same* map, one with a bend in it (a matrix, a ReLU, a matrix), beside those of its own
# flags. Eight thin experts chosen, or six chosen and two shared, at equal cost.


# %%
def draw_common(rng, world):
    x, target = draw_composed(rng, world)
    return x, target + np.maximum(x[:, :8] @ world[0], 0) @ world[1]


# %%
shapes = {"32, 8 chosen": wide.cut(4), "30, 6 chosen + 2 shared": wide.cut(4).share(2)}
assert len({shape.active_parameters(24) for shape in shapes.values()}) == 1
common = {name: np.array([train(draw_common, shape, seed)[0] for seed in range(2)]) for name, shape in shapes.items()}
without, with_shared = (losses.mean() for losses in common.values())
title = f"Two of the eight active experts shared: {with_shared:.3f} instead of {without:.3f}"
plot_cut_runs({"a need that all tokens have, and 4 parts of 16": common}, title)

# %% [markdown]
# ## What the groups of V3 give up
#
# V3's experts lie on 8 nodes (machines of eight GPUs each), and a token may visit at most 4 of them, to bound the
# traffic between machines. That forbids teams. How many are left?

# %%
kept = [count_grouped_combinations(256, 8, 8, g) for g in range(1, 9)]
share = np.array([k / kept[-1] for k in kept])
assert kept[-1] == comb(256, 8)
plot_groups(share, 4, f"With 4 of 8 groups, {share[3]:.0%} of the teams are left: still {kept[3]:.1e}")

# %% [markdown]
# ## Change this, predict, run
#
# The cell cuts every expert in three, gives the three pieces the *same* row of the router, and activates three times as
# many. The pieces of an expert always tie, so they are always chosen together. Predict: is the output the same as
# before? If not, by what factor is it off? (Look at what the softmax sums over.) Mend it by `scale`.
#
# <details><summary>Afterwards</summary>
#
# The softmax now runs over three times as many rows, so each score is a third of what it was: the output is a third.
# With `scale = 3` the old layer is back, to the last digits. *Fine contains coarse* needs this factor; DeepSeek-V2 has
# such a factor on its gates (`routed_scaling_factor`), and V3 too, though for normalised gates.
#
# </details>

# %%
m, scale = 3, 1.0
x, router, nobody = rng.normal(size=(32, 16)), rng.normal(size=(4, 16)), SwiGLUExperts.init(rng, 0, 16, 5)
before, _ = fine_grained_forward(x, router, experts, nobody, 2)
after, _ = fine_grained_forward(x, np.repeat(router, m, axis=0), split_experts(experts, m), nobody, 2 * m)
print(f"cut in {m}: the output is {(scale * after / before).mean():.4f} times the old one, everywhere:", end=" ")
print(np.allclose(after / before, after[0, 0] / before[0, 0]))

# %% [markdown]
# ## What you can now do
#
# Cut a trained expert into thin ones without changing what it computes, and merge shared ones; compute what a layer
# owns and what a token uses; say what thin experts can do that wide ones cannot, and why they need somebody who
# balances. All parts are on the table: `deepseek_moe` puts them together.
#
# ## Exercises
#
# Graded: `gated_expert_backward` (`make check CH=03`). By thought alone:
#
# 1. The first three layers of V3 are dense, with a hidden width of 18432. Why that number?
#
# <details><summary>Solution</summary>
#
# $9 \cdot 2048 = 18432$: a token meets as many weights in a dense layer as in an expert layer, 8 routed and 1 shared.
#
# </details>
#
# 2. With *normalised* gates the $m$ pieces of an expert share the sum. Does "fine contains coarse" still hold?
#
# <details><summary>Solution</summary>
#
# Each piece gets $g/m$, so the pieces add up to $1/m$ of the old output; a factor $m$ mends it, as in the cell above.
#
# </details>
#
# 3. Could one cut until every expert is a single hidden unit?
#
# <details><summary>Solution</summary>
#
# Teams would be most numerous, but the router would have as many rows as there are hidden units, so it would cost as
# much as a third of the dense layer, and each matrix product would have one row: memory traffic without arithmetic.
#
# </details>
