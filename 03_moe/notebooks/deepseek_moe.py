# %% [markdown]
# # The expert layer of DeepSeek-V3
#
# **The question.** 256 experts stand in 8 buildings, and a token visits 8 of them. How does one layer choose them,
# bound the traffic between the buildings, keep everybody busy, and stay differentiable?
#
# All parts are there: a reception that scores, signs on the doors, gates, a generalist at the entrance. What is left is
# an *order of operations*. It is short, and nearly every mistake in public code is two of its steps exchanged, one
# forgotten, or one done twice. Nothing crashes then; the model is a little worse, and nobody knows why.
#
# What is new is the buildings. A patient who is sent all over town spends the day on the road. So the reception first
# chooses 4 of 8 buildings, each judged by its *two* best doctors for this patient, and then 8 doctors in those four. A
# building is a node of the cluster, with 32 experts on it; the chapter calls it a **group**.
#
# At the end the whole layer stands in a small language model, and we ask which words its experts have taken on.

# %%
import numpy as np
from deepseek_moe import (
    DeepseekMoE,
    RouterConfig,
    deepseek_moe_backward,
    deepseek_moe_forward,
    keep_best_groups,
    route_tokens_forward,
    routed_experts_forward,
    sort_by_expert,
)
from expert_routing import count_load
from load_balancing import sequence_balance_backward, sequence_balance_forward
from loss_free_balancing import max_violation, update_bias

# %%
from utils.clinic_task import adjust_weights
from utils.drawings_03 import draw_golden_gate
from utils.gradient_check import central_difference, relative_error
from utils.plots_03 import plot_loads, plot_mistakes, plot_sorting, plot_word_experts
from utils.story_task import story_words, word_floors

# %% [markdown]
# ## Numbers to follow with a pencil
#
# One token; eight experts in four groups of two; two groups stay, two experts are chosen, the scale is 2.5. The biases
# are all negative (only their differences matter).
#
# 1. **Add the bias, to choose only.** $s + b$: $-0.20, -0.25 \mid -0.20, -0.30 \mid -0.18, -0.17 \mid -0.05, -0.15$.
# 2. **Value the groups,** each by its two best: $-0.45$, $-0.50$, $-0.35$, $-0.20$. The last two stay.
# 3. **Choose** the two best that are left: experts 6 and 7.
# 4. **Weigh** them by their scores *without* the bias: 0.25 and 0.15, of 0.40. Then scale: $2.5 \cdot 0.625 = 1.5625$
#    and $2.5 \cdot 0.375 = 0.9375$.
#
# The best score of all, 0.30, belongs to expert 2. It is not chosen, because it is too busy: its bias is the lowest.

# %%
score = np.array([0.10, 0.05, 0.30, 0.20, 0.02, 0.03, 0.25, 0.15])
bias = np.array([-0.3, -0.3, -0.5, -0.5, -0.2, -0.2, -0.3, -0.3])
small = RouterConfig(n_routed_experts=8, num_experts_per_tok=2, n_group=4, topk_group=2)
(index, gate), _ = route_tokens_forward(score[None], bias, small)
value = (score + bias).reshape(4, 2).sum(axis=1)
title = "The best score, 0.30, is too busy to be chosen; experts 6 and 7 are"
draw_golden_gate(score, bias, value, index[0], gate[0], 2, title)

# %% [markdown]
# Line 4 has a trap. The masked cells are set to $-\infty$. Filled with 0 instead, as the first released code did, they
# would beat every real candidate, because all of those are negative.
#
# ## Build it: choose, weigh


# %%
def choose(s, b, config):
    """One token: scores and biases [E] -> its experts, best first."""
    c = (s + b).reshape(config.n_group, -1)
    value = np.sort(c, axis=1)[:, -2:].sum(axis=1)
    c[np.argsort(-value, kind="stable")[config.topk_group :]] = -np.inf  # all other groups
    return np.argsort(-c.ravel(), kind="stable")[: config.num_experts_per_tok]


def weigh(s, chosen, config):
    return config.routed_scaling_factor * s[chosen] / s[chosen].sum()


# %%
rng = np.random.default_rng(0)
config = RouterConfig(n_routed_experts=16, num_experts_per_tok=4, n_group=4, topk_group=2)
scores, biases = rng.uniform(0.05, 0.95, size=(64, 16)), rng.normal(size=16) * 0.2
routing, _ = route_tokens_forward(scores, biases, config)
for s, index, gate in zip(scores, *routing):
    assert np.array_equal(choose(s, biases, config), index)
    assert np.allclose(weigh(s, index, config), gate, rtol=0, atol=1e-14)
groups = [len(set(index // 4)) for index in routing.index_NA]
print(f"naive and module agree; a token visits at most {max(groups)} of 4 groups")

# %% [markdown]
# ## Build it: the layer
#
# The shared expert answers every token, without gate and without scale. The chosen ones answer with their gates.


# %%
def ffn(x, gate_proj, up_proj, down_proj):
    """One SwiGLU expert on one token [D]."""
    a = gate_proj @ x
    return down_proj @ (a / (1 + np.exp(-a)) * (up_proj @ x))


def naive_layer(x, w, config):
    """One token [D] through the whole layer."""
    y = ffn(x, *vars(w.shared_experts).values())
    s = 1 / (1 + np.exp(-w.gate.weight @ x))
    chosen = choose(s, w.gate.e_score_correction_bias, config)
    for i, g in zip(chosen, weigh(s, chosen, config)):
        y = y + g * ffn(x, *(a[i] for a in vars(w.experts).values()))
    return y


# %%
weights = DeepseekMoE.init(rng, config, width=12, hidden=8)
weights.gate.e_score_correction_bias[:] = biases
x = rng.normal(size=(64, 12))
y, cache = deepseek_moe_forward(x, weights, config)
assert np.allclose(y, [naive_layer(row, weights, config) for row in x], rtol=0, atol=1e-13)
print("naive and module agree:", y.shape)

# %% [markdown]
# ## Build it: each expert once
#
# Token by token, the layer runs 256 small products for 64 tokens. Sort all visits by expert, and each expert sees one
# block of rows, whatever the tokens chose: one product for each expert.


# %%
def visit_sorted(x, index, gate, experts):
    """Tokens [N, D] -> what the routed experts add, each expert called once."""
    y, visits = np.zeros_like(x), index.ravel()
    order = np.argsort(visits, kind="stable")
    for i in np.unique(visits):
        mine = order[visits[order] == i]  # the numbers n A + a of its visits
        gate_proj, up_proj, down_proj = (a[i] for a in vars(experts).values())
        a = x[mine // index.shape[1]] @ gate_proj.T
        answers = (a / (1 + np.exp(-a)) * (x[mine // index.shape[1]] @ up_proj.T)) @ down_proj.T
        np.add.at(y, mine // index.shape[1], gate.ravel()[mine, None] * answers)
    return y


# %%
routed, _ = routed_experts_forward(x, cache.routing, weights.experts)
assert np.allclose(routed, visit_sorted(x, *cache.routing, weights.experts), rtol=0, atol=1e-13)
visits, (order, runs) = cache.routing.index_NA.ravel(), sort_by_expert(cache.routing.index_NA, 16)
n_before = int((np.diff(visits) != 0).sum()) + 1
plot_sorting(visits, order, f"{len(visits)} visits: {n_before} runs become {len(runs)}, one product for each")

# %% [markdown]
# ## The derivation
#
# 1. $s = \sigma(x W^\top)$ (Eq. 15).
# 2. $c = s + b$, only to choose (Eq. 16). A group is worth the sum of its two best $c$; the best groups stay, all else
#    is $-\infty$. Why two? Eight experts from at most four groups: two of each on average.
# 3. $\mathcal T$ = the $A$ best of what is left (Eq. 14).
# 4. $w_i = s_i / \Sigma$ with $\Sigma = \sum_{\mathcal T} s_j$ (Eq. 13; the code adds $10^{-20}$, so that zeros do not
#    divide), and $g_i = 2.5\, w_i$. Normalise, *then* scale, once.
# 5. $y = \mathrm{FFN}_{shared}(x) + \sum_{\mathcal T} g_i\,\mathrm{FFN}_i(x)$ (Eq. 12).
# 6. **Back.** With $dg_i = \mathrm{FFN}_i(x) \cdot dy$:
#    $$ds_i = \frac{2.5}{\Sigma}\Big(dg_i - \sum_{\mathcal T} w_j\,dg_j\Big) + (\text{balance loss})_i,$$
#    the first part for $i \in \mathcal T$ only,
#    $$dx = dx_{shared} + \sum_{\mathcal T} dx_i + W^\top\big(ds \cdot s (1-s)\big), \qquad dW = \sum_n \big(ds\, s
#    (1-s)\big)_n\, x_n^\top.$$
#    Expert $i$ gets $g_i\,dy$ and goes back as in `fine_grained_experts`. The bias gets nothing.
#
# The router's part for one token:


# %%
def naive_logit_slope(dy, x, w, config):
    """The slope of the loss by each logit of the router, [E]."""
    s = 1 / (1 + np.exp(-w.gate.weight @ x))
    chosen = choose(s, w.gate.e_score_correction_bias, config)
    dg = np.array([ffn(x, *(a[i] for a in vars(w.experts).values())) @ dy for i in chosen])
    w_i, ds = s[chosen] / s[chosen].sum(), np.zeros_like(s)
    ds[chosen] = config.routed_scaling_factor / s[chosen].sum() * (dg - w_i @ dg)
    return ds * s * (1 - s)


# %%
dy = rng.normal(size=x.shape)
dx, grads = deepseek_moe_backward(dy, cache)
slopes = np.array([naive_logit_slope(d, row, weights, config) for d, row in zip(dy, x)])
assert np.allclose(grads["gate.weight"], slopes.T @ x, rtol=0, atol=1e-12)
for name in ("gate.weight", "experts.up_proj", "shared_experts.down_proj"):
    part = weights.trainable()[name].reshape(-1)[:5]  # a view: five entries are tried
    tried = central_difference(lambda: np.sum(dy * deepseek_moe_forward(x, weights, config)[0]), part)
    print(f"{name}: central differences agree:", relative_error(grads[name].reshape(-1)[:5], tried) < 1e-6)

# %% [markdown]
# ## The experiment: five mistakes, and how far each takes the output
#
# Each was found in public code. Only one line differs. Biases as above, shifted down a little as they may be.

# %%
s, b = cache.score_NE, biases - 1.2  # only differences of a bias matter
right, _ = route_tokens_forward(s, b, config)
pick = lambda table, index=right.index_NA: np.take_along_axis(table, index, axis=1)  # noqa: E731
masked = keep_best_groups(s + b, 4, 2)
filled = np.argsort(-np.where(np.isinf(masked), 0.0, masked), axis=1, kind="stable")[:, :4]
norm = lambda chosen: 2.5 * chosen / chosen.sum(axis=1, keepdims=True)  # noqa: E731
wrong = {
    "the bias is in the gates": (right.index_NA, norm(pick(s + b))),
    "scaled twice": (right.index_NA, 2.5 * right.gate_NA),
    "scaled before normalising": (right.index_NA, right.gate_NA / 2.5),
    "not normalised": (right.index_NA, 2.5 * pick(s)),
    "masked groups filled with 0": (filled, norm(pick(s, filled))),
}

# %%
truth = visit_sorted(x, *right, weights.experts)
outputs = {name: visit_sorted(x, *way, weights.experts) for name, way in wrong.items()}
errors = {name: np.linalg.norm(y - truth) / np.linalg.norm(truth) for name, y in outputs.items()}
assert all(np.isfinite(y).all() for y in outputs.values())
least, most = min(errors.values()), max(errors.values())
plot_mistakes(errors, f"Nothing crashes: {least:.0%} to {most:.0%} wrong, all numbers finite")

# %% [markdown]
# ## The experiment: a hundred rounds of the caretaker
#
# Inputs with a strong common direction; the whole layer; only the bias moves.

# %%
common = rng.normal(size=(512, 12)) + 1.5 * np.ones(12) / 12**0.5
weights.gate.e_score_correction_bias[:] = 0
loads = []
for _ in range(101):
    _, now = deepseek_moe_forward(common, weights, config)
    loads.append(now.load_E)
    weights.gate.e_score_correction_bias[:] = update_bias(weights.gate.e_score_correction_bias, now.load_E, 0.01)
first, last = max_violation(loads[0]), max_violation(loads[-1])
assert last < first
title = f"The bias takes MaxVio from {first:.2f} to {last:.2f}, and no gradient was computed"
plot_loads({"before": loads[0], "after 100 rounds": loads[-1]}, title)

# %% [markdown]
# ## The experiment: which words do the experts take on?
#
# A language model on the 224 sentences of chapter 00 (*the cat that heard the dog sat on the mat.*). It sees two words:
# the last one and the one before, a row of 16 numbers for each, added up. Then comes this layer, 8 experts of which 2
# are active and one shared, then a head. There is no attention, so the two words must do. Loss-free balancing keeps the
# experts busy. Everything is trained by the gradients above.

# %%
names, table, chance = story_words()
_, bigram = word_floors(table, chance, len(names))
V, words_config = len(names), RouterConfig(8, 2, 1, 1, routed_scaling_factor=2.5)
r = np.random.default_rng(0)
moe = DeepseekMoE.init(r, words_config, width=16, hidden=8)
ends = {"last": r.normal(size=(V, 16)), "before": r.normal(size=(V, 16)), "head": r.normal(size=(V, 16)) / 20}


def read(last, before):
    """Two words [N] each in, logits [N, V] out."""
    x = ends["last"][last] + ends["before"][before]
    y, cache = deepseek_moe_forward(x, moe, words_config)
    return (x + y) @ ends["head"].T, (x + y, cache)


# %%
def learn(last, before, came):
    """The surprise at the words that came, and the gradient of every weight."""
    logits, (stream, cache) = read(last, before)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    dlogits = (p - np.eye(V)[came]) / len(came)
    dstream, grads = dlogits @ ends["head"], {"head": dlogits.T @ stream, "last": 0, "before": 0}
    dx, dmoe = deepseek_moe_backward(dstream, cache)
    for name, words in (("last", last), ("before", before)):
        grads[name] = np.zeros((V, 16))
        np.add.at(grads[name], words, dstream + dx)
    return -np.log(p[np.arange(len(came)), came]).mean(), {**grads, **dmoe}, cache.load_E


# %%
arrays, moments, losses, bias = {**ends, **moe.trainable()}, [], [], moe.gate.e_score_correction_bias
for step in range(1, 401):
    drawn = table[r.choice(len(table), size=32, p=chance)]
    triples = np.concatenate([np.stack([row[1:-1], row[:-2], row[2:]]) for row in drawn], axis=1)
    triples = triples[:, triples[2] >= 0]  # what was filled up does not count
    loss, grads, load = learn(*triples)
    adjust_weights([arrays[n] for n in arrays], [grads[n] for n in arrays], moments, step, 0.01)
    bias[:] = update_bias(bias, load, 0.01)
    losses.append(loss)
print(f"{np.mean(losses[-50:]):.3f} nats a word after 400 steps, {losses[0]:.3f} at the start; ", end="")
print(f"MaxVio of the last step {max_violation(load):.2f}; who knows the last word alone pays {bigram:.3f}")

# %% [markdown]
# Who serves whom? For each last word, the share of its tokens that visited each expert, over all sentences with their
# probabilities.

# %%
triples = np.concatenate([np.stack([row[1:-1], row[:-2], row[2:]]) for row in table], axis=1)
weight = np.repeat(chance, table.shape[1] - 2)[triples[2] >= 0]
last, before, came = triples[:, triples[2] >= 0]
_, (_, cache) = read(last, before)
visits, total = np.zeros((V, 8)), np.bincount(last, weight, minlength=V)
np.add.at(visits, (last[:, None], cache.routing.index_NA), weight[:, None])
kinds = ("cat dog owl fox", "sat slept ran sang", "saw heard", "that", "on at in by", "the", "mat gate oak lake")
order = [names.index(word) for kind in kinds for word in kind.split()]
shares = visits[order] / total[order, None]

# %%
kind_of = np.repeat(np.arange(len(kinds)), [len(kind.split()) for kind in kinds])
overlap = np.minimum(shares[:, None], shares[None]).sum(axis=2) / 2  # 1: the same experts, 0: none in common
alike = kind_of[:, None] == kind_of
within = overlap[alike & ~np.eye(len(order), dtype=bool)].mean()
across = overlap[~alike].mean()
title = f"Words of one kind have {within:.0%} of their visits in common, words of two kinds {across:.0%}"
plot_word_experts([names[i] for i in order], shares, title)

# %% [markdown]
# Nobody told the router about nouns and verbs. Two words that each pick two of eight experts by chance have a quarter
# of their visits in common, as words of two kinds have here; words of one kind have about half. What is followed by the
# same things is partly served by the same experts. (A toy, one seed. That the experts of a large model divide their
# work by kind of token, too, is reported in Appendix C of the V3 report.)
#
# ## The trained model speaks: whom do its experts serve?
#
# The model that runs through the book (`make book`) has three layers of 16 experts in 4 groups; a token visits 4 of
# them in 2 groups. It has read small stories and Python. Who serves what? 80 new stories, and a file of this chapter as
# code: for each kind of token, the share that visits each expert.

# %%
from pathlib import Path

from utils.story_model import kind_of, new_stories, open_book

book, served = open_book(), {}
texts = [story.text for story in new_stories(80)]
code = Path("expert_routing.py").read_text(encoding="utf-8").splitlines()
for text in [*texts, *("\n".join(code[i : i + 12]) for i in range(36, 150, 12))]:
    seen = book.read(text)
    for place, word in list(enumerate(seen.words))[1:]:
        kind = kind_of(word) if text in texts else "code"
        served.setdefault(kind, []).append(np.eye(16)[seen.chosen[:, place]].sum(axis=1))

# %%
kinds = ["name", "verb", "place", "thing", "small word", "sign", "code"]
share = np.array([np.mean(served[kind], axis=0) for kind in kinds])  # [kinds, layers, experts]
for layer in range(3):
    overlap = np.minimum(share[:, None, layer], share[None, :, layer]).sum(axis=2) / 4
    code_alike = overlap[-1, :-1].mean()
    words_alike = overlap[:-1, :-1][~np.eye(6, dtype=bool)].mean()
    print(f"layer {layer + 1}, in common: two kinds of words {words_alike:.0%}, words and code {code_alike:.0%}")

# %%
busiest = share[:6, 2].max()
expert = share[:6, 2].max(axis=0).argmax()
kind = kinds[share[:6, 2, expert].argmax()]
title = f"The last layer: expert {expert} sees {busiest:.0%} of the kind “{kind}”"
plot_word_experts([f"{kind} ({len(served[kind])})" for kind in kinds], share[:, 2], title)

# %% [markdown]
# Were experts chosen without regard to the kind of word, all lines would look alike and have 100 % in common. Nobody
# told the router about signs, names and Python; the caretaker of the biases wants nothing but even loads over the whole
# text, and a kind of token is a small part of it.
#
# ## What reaches the router
#
# The gradient of the router's weights has two sources: the task, through the gates, and the balance loss, through the
# shares. The caretaker is not among them. V3's strength of $10^{-4}$ beside others:

# %%
_, cache = deepseek_moe_forward(x, weights, config)
_, task = deepseek_moe_backward(dy / dy.size, cache)  # the gradient of a mean
for alpha in (1e-4, 1e-3, 1e-2, 1e-1):
    _, balance_cache = sequence_balance_forward(cache.score_NE.reshape(4, 16, 16), 4, alpha)
    dscore = sequence_balance_backward(1.0, balance_cache).reshape(64, 16)
    _, alone = deepseek_moe_backward(np.zeros_like(dy), cache, dscore)
    ratio = np.linalg.norm(alone["gate.weight"]) / np.linalg.norm(task["gate.weight"])
    print(f"alpha {alpha:g}: the balance loss pulls {ratio:.1e} times as hard as the task")

# %% [markdown]
# ## Change this, predict, run
#
# A group's value is the sum of its two best. DeepSeek-V2 took the single best. The cell counts, for random scores of
# V3's size, how many experts a token visits in each of its groups. Predict for `best_of = 1`: will tokens visit more
# nodes or fewer than with 2? And how many of the visited nodes serve only *one* expert? Then try 8.
#
# <details><summary>Afterwards</summary>
#
# Four groups stay in any case, so at most four nodes are visited. With the single best, groups come in for one
# brilliant expert, and more of the nodes are visited for one expert alone. With two, the groups that stay are those
# that have more to offer, so the visits are shared out better. With 8 a group is judged by experts that will hardly be
# chosen.
#
# </details>

# %%
best_of = 1
s = np.random.default_rng(7).uniform(size=(2000, 8, 32))
for judge in (best_of, 2):
    value = np.sort(s, axis=2)[:, :, -judge:].sum(axis=2)
    stays = np.argsort(-value, axis=1)[:, :4]
    kept = np.take_along_axis(s, stays[:, :, None], axis=1).reshape(2000, 128)
    node = np.argsort(-kept, axis=1)[:, :8] // 32
    visits = np.array([np.bincount(row, minlength=4) for row in node])
    print(f"judged by {judge}: nodes {(visits > 0).sum(axis=1).mean():.2f} a token, ", end="")
    print(f"{(visits == 1).sum(axis=1).mean():.2f} of them for one expert; ", end="")
    print(f"mean score {-np.sort(-kept)[:, :8].mean():.4f}")

# %% [markdown]
# ## What you can now do
#
# Write the expert layer of DeepSeek-V3 with its gradient on an empty sheet; say for every number in the router what
# moves it and what must not; read a public implementation and find the line where the bias leaks. Chapter 06 uses
# `deepseek_moe.py` as it stands; chapter 04 asks the model to see further than one token.
#
# ## Exercises
#
# Graded: `choose_and_weigh`, `visit_experts`, `moe_backward` and, last, `moe_from_an_empty_file` (`make check CH=03`).
# By thought alone:
#
# 1. Why are groups judged by their *two* best, and not by all 32?
#
# <details><summary>Solution</summary>
#
# Eight experts from at most four groups: two for each on average. With one, a group with one brilliant expert and 31
# useless ones would spend a node's traffic on a single visit. With all 32, the many that are never chosen would outvote
# the few that are.
#
# </details>
#
# 2. V3 multiplies the gates by 2.5. Derive what a factor does to $ds$. Why not fold it into the experts' weights?
#
# <details><summary>Solution</summary>
#
# $ds$ is linear in the factor. Folding it into `down_proj` gives the same function, but another start of training (the
# initial routed output is larger with the factor) and other step sizes under Adam, which ignores the scale of
# gradients.
#
# </details>
#
# 3. An expert gets no token in a batch. What are its gradients, and what would happen to a loop that stacks only the
#    experts that ran?
#
# <details><summary>Solution</summary>
#
# They are zero, as the module's `np.zeros` says. A stack of those that ran would be shorter and shift every later
# expert's gradient to its neighbour: no crash if the optimiser only zips.
#
# </details>
