# %% [markdown]
# # Expert parallelism
#
# **The question.** A token needs eight experts, and they sit in eight machines. What travels, how often, and what does
# it weigh?
#
# A town has eight libraries with eight librarians each. Every librarian knows four subjects, 256 in all. A question
# needs eight subjects. Walking across the town takes long, walking inside a library does not. If you write your
# question once for each *subject*, a messenger crosses the town eight times, now and then twice to one door. Write it
# once for each *library* instead: the librarian at the door copies it for the colleagues, collects their answers, adds
# them up, and sends one sheet back. And if you may choose your subjects freely among equals, ask in four libraries and
# not in eight.
#
# Libraries are **nodes** (machines), librarians are **ranks** (GPUs), subjects are **experts** (chapter 03). Across the
# town runs IB (InfiniBand, 50 GB/s for each GPU), inside a library NVLink (160 GB/s).

# %%
from math import comb

import numpy as np
from expert_parallelism import Cluster, Experts, expert_parallel_forward, one_machine_forward, plan_route

from utils.drawings_07 import plot_bars
from utils.drawings_08 import draw_journey, draw_traffic

# %% [markdown]
# ## Numbers to follow with a pencil
#
# Four nodes of four ranks, 32 experts: two a rank, eight a node. A token on rank 1 chose the experts 3, 9, 11, 14, 27.
#
# | expert | rank = expert // 2 | node = rank // 4 |
# |---|---|---|
# | 3 | 1 | 0 (its own: nothing to send) |
# | 9, 11, 14 | 4, 5, 7 | 1 |
# | 27 | 13 | 3 |
#
# Five experts, but only **two** crossings: to node 1 and to node 3. They arrive at the GPU of the *same number* (rank 1
# is number 1 of its node, so ranks 5 and 13), which hands on to 4 and 7. Every GPU has its own cable, so this shares
# the cables fairly.
#
# ## Build it: the journey out


# %%
def naive_journey(source, experts, per_rank, gpus):
    """Where one token crosses, and where it is handed on; sets remove what would be sent twice."""
    targets = {e // per_rank for e in experts}
    crossings, copies = [], []
    for node in sorted({t // gpus for t in targets}):
        relay = node * gpus + source % gpus
        crossings.append((source, relay))
        copies += [(relay, t) for t in sorted(targets) if t // gpus == node]
    return crossings, copies


town = Cluster(n_nodes=4, gpus_per_node=4, n_experts=32)
crossings, copies = naive_journey(1, [3, 9, 11, 14, 27], 2, 4)
print("crosses:", crossings, "\nhanded on:", copies)

# %%
draw_journey(1, crossings, copies, (4, 4), "Five experts, two crossings: once to a node, then inside it")

# %% [markdown]
# The module plans it for all tokens of all ranks at once. Is it the same plan?

# %%
chosen = [np.zeros((0, 5), int) for _ in range(16)]
chosen[1] = np.array([[3, 9, 11, 14, 27]])
route = plan_route(chosen, town)
assert [(s, relay) for s, _, relay in route.cross.tolist()] == crossings
assert [(route.cross[row, 2], rank) for row, rank in route.copy] == copies

# %% [markdown]
# ## Build it: the way back, added up before it is sent
#
# Letters: $x$ is the token's row of numbers, $E_a(x)$ what expert $a$ answers, $g_a$ its gate. The layer wants $y =
# \sum_a g_a\, E_a(x)$ over the chosen experts. A sum may be taken in any order:
#
# 1. a *rank* adds up its own experts' results for the token, weighed by the gates;
# 2. the *relay* adds up what the ranks of its node have;
# 3. the token's *own rank* adds up what the nodes have.
#
# So one vector crosses back for each that crossed out. Sending out is called **dispatch**, bringing back **combine**.


# %%
def naive_layer(x, chosen, gate, source, run, per_rank, gpus):
    """One token: its results summed on ranks, then in nodes, then at home."""
    in_node = {}
    for rank in sorted({e // per_rank for e in chosen}):
        mine = sum(g * run(x, e) for e, g in zip(chosen, gate) if e // per_rank == rank)
        in_node.setdefault(rank // gpus, []).append(mine)
    crossing_back = [sum(parts) for parts in in_node.values()]
    return sum(crossing_back)


# %%
from expert_parallelism import choose_within_nodes

rng, D, F = np.random.default_rng(0), 128, 13
shapes = [(32, F, D), (32, F, D), (32, D, F)]
experts = Experts(*(rng.normal(size=shape) / 8 for shape in shapes))
counts = [3, 0, 5, 2] * 4  # ranks have different numbers of tokens; some have none
x = [rng.normal(size=(n, D)) for n in counts]
chosen = [choose_within_nodes(rng.normal(size=(n, 32)), town, 6, 2) for n in counts]
gate = [rng.random((n, 6)) for n in counts]
y, route = expert_parallel_forward(x, chosen, gate, experts, town)

# %%
whole = one_machine_forward(np.concatenate(x), np.concatenate(chosen), np.concatenate(gate), experts)
assert np.allclose(np.concatenate(y), whole)


def run(x_D, e):
    """One expert on one token."""
    h = experts.gate_EFD[e] @ x_D
    return experts.down_EDF[e] @ (h / (1 + np.exp(-h)) * (experts.up_EFD[e] @ x_D))


for token in range(counts[2]):
    assert np.allclose(naive_layer(x[2][token], chosen[2][token], gate[2][token], 2, run, 2, 4), y[2][token])
print("sixteen ranks compute what one machine computes")

# %% [markdown]
# ## The derivation: how often does a token cross?
#
# Letters: $n$ nodes hold $E$ experts together, a token chooses $A$ of them; $\binom{E}{A}$ is the number of ways to
# choose $A$ of $E$. Say that all choices are equally likely.
#
# 1. A copy for every expert: each lies elsewhere with probability $(n-1)/n$, so $A (n-1)/n$; for 8 of 8 nodes, 7.
# 2. Once a node: another node is *missed* if all $A$ lie in the rest, with probability
#    $\binom{E - E/n}{A} / \binom{E}{A}$. So $(n-1)\left(1 - \binom{E-E/n}{A}/\binom{E}{A}\right)$.
# 3. At most $M = 4$ nodes (**node-limited routing**): first the four best nodes, then the best experts in them. With
#    the own node among them, which happens $M/n$ of the time (here half), three crossings are enough, else it takes
#    four: $M - M/n = M (n-1)/n = 3.5$.
#
# ## The experiment: count the crossings

# %%
from expert_parallelism import count_traffic, expected_crossings

v3 = Cluster()  # 8 nodes of 8 GPUs, 256 experts
score = [rng.normal(size=(40, 256)) for _ in range(64)]
crossed = {}
for kept in (8, 4, 2, 1):
    route = plan_route([choose_within_nodes(s, v3, 8, kept) for s in score], v3)
    crossed[kept] = count_traffic(route, v3, 1, 1).ib_out.sum() / (40 * 64)
    print(f"experts of at most {kept} nodes: {crossed[kept]:.2f}, expected {expected_crossings(v3, 8, kept % 8):.2f}")
by_hand = 7 * (1 - comb(256 - 32, 8) / comb(256, 8))  # step 2
assert abs(by_hand - expected_crossings(v3, 8, 0)) < 1e-12

# %%
labels = ["a copy for each expert", "once a node", "4 nodes (V3)", "2 nodes", "1 node"]
title = f"{crossed[8]:.2f} crossings in place of 7, and {crossed[4]:.2f} if kept to four nodes"
times, kinds = [7.0, *np.round(list(crossed.values()), 2)], ["ink", "ink", "routed", "ink", "ink"]
plot_bars(labels, times, kinds, title, "crossings of a token")

# %% [markdown]
# These scores are independent random numbers. What the limit gives beyond an average is a promise: never more than
# four, whatever the router learns.
#
# ## The trained model speaks: do groups belong on one node?
#
# The book's model was trained with such a limit: 16 experts in 4 groups, and a token may use 2 of them. Let a group be
# a node of four GPUs, one expert each, and read thirty new stories. Then deal the experts out to the nodes without
# regard to groups.

# %%
from utils.story_model import new_stories, open_book

book = open_book()
picks = np.concatenate([book.read(" ".join(s.sentences)).chosen.reshape(-1, 4) for s in new_stories(30)])
home = {"a group on a node": np.arange(16) // 4, "dealt out": rng.permutation(16) // 4}
reached = {name: np.mean([len(set(row)) for row in place[picks]]) for name, place in home.items()}
anyone = 4 * (1 - comb(12, 4) / comb(16, 4))  # four experts chosen at random
assert reached["a group on a node"] <= 2 < reached["dealt out"]
print(f"{len(picks):,} choices; nodes that a token reaches:", {n: round(float(r), 2) for n, r in reached.items()})
print(f"without any limit, choices at random: {anyone:.2f}")

# %% [markdown]
# The promise holds to the letter, because groups and nodes are the same thing. Laid out without regard to groups, the
# same choices reach nearly as many nodes as choices without a limit: the limit costs the model some freedom and then
# buys nothing.
#
# ## The experiment: what does it weigh?
#
# Out, a token of 7,168 numbers goes in FP8 (chapter 05): a byte each and a scale of 4 bytes for every 128, $7168 + 56
# \cdot 4 =$ **7,392** bytes. Back it goes in BF16: **14,336**. Why not FP8 both ways? Measure the error of the layer's
# output.

# %%
from expert_parallelism import bf16_token_bytes, fp8_token_bytes, round_to_bf16, round_to_fp8

ways = {"BF16, BF16": (round_to_bf16, round_to_bf16), "FP8, BF16 (V3)": (round_to_fp8, round_to_bf16)}
ways["FP8, FP8"] = (round_to_fp8, round_to_fp8)
error, size = {}, {}
for name, (out, back) in ways.items():
    got, _ = expert_parallel_forward(x, chosen, gate, experts, town, out, back)
    error[name] = 100 * np.linalg.norm(np.concatenate(got) - whole) / np.linalg.norm(whole)
    size[name] = sum(fp8_token_bytes(7168) if f is round_to_fp8 else bf16_token_bytes(7168) for f in (out, back))
    print(f"{name:<15} error {error[name]:.2f} %, {size[name]:,} bytes there and back")

# %%
assert 1.3 < error["FP8, FP8"] / error["FP8, BF16 (V3)"] < 1.6
title = "Back in FP8 as well: half as much error again"
plot_bars(list(error), np.round(list(error.values()), 2), ["ink", "routed", "ink"], title, "error of the output, %")

# %% [markdown]
# The way out costs nothing *extra*: the expert's product would round its input to FP8 anyway. The way back rounds sums
# that go on into the residual stream.
#
# ## The experiment: who sends to whom?

# %%
route = plan_route([choose_within_nodes(s, v3, 8, 4) for s in score], v3)
sent = np.zeros((64, 64))
source, _, relay = route.cross.T
np.add.at(sent, (source, relay), fp8_token_bytes(7168))
np.add.at(sent, (relay[route.copy[:, 0]], route.copy[:, 1]), fp8_token_bytes(7168))
np.fill_diagonal(sent, 0)
draw_traffic(sent, 8, "Between nodes only to the same number; the rest is inside")

# %% [markdown]
# The thin lines are crossings, each to the GPU of the same number in another node; the squares are what NVLink carries
# inside a node. In the time of one crossing (50 GB/s) NVLink hands on $160 / 50 = 3.2$ copies. A node that a token
# reached could feed 3.2 experts for free, four nodes $4 \cdot 3.2 \approx 13$. V3 uses 8: the inside is not the
# bottleneck.
#
# ## Change this, predict, run
#
# Another town with as many librarians: four nodes of 16 GPUs in place of eight nodes of 8, and no limit. Predict from
# step 2 ($n = 4$) how often a token crosses. More or less than V3's 3.5? And how many copies does NVLink hand on?
#
# <details><summary>Afterwards</summary>
#
# There are only three other nodes, and eight experts nearly always touch all of them: $3 \cdot (1 - \binom{192}{8} /
# \binom{256}{8}) = 2.71$, less than with eight nodes and a limit of four. The copies inside grow: 7.2 for each token,
# 2.7 for each crossing, still less than the 3.2 that NVLink manages in the same time. Larger nodes are the simplest
# cure; they are also what was not for sale.
#
# </details>

# %%
for town in (Cluster(4, 16, 256), v3):
    route = plan_route([choose_within_nodes(s, town, 8, town.n_nodes) for s in score], town)
    crossings, copies = (count.sum() / (40 * 64) for count in count_traffic(route, town, 1, 1)[:2])
    print(f"{town.n_nodes} nodes of {town.gpus_per_node}: {crossings:.2f} crossings", end=" ")
    print(f"(expected {expected_crossings(town, 8, 0):.2f}), {copies:.2f} copies inside a node")

# %% [markdown]
# ## What you can now do
#
# Plan a token's journey; derive how often it crosses; say why results are added up on the way, and why a group lives on
# one node; name what goes in FP8. All this takes time in which nobody computes, unless: `overlap`.
#
# ## Exercises
#
# Graded: `crossing_bytes` (`make check CH=08`). By thought alone:
#
# **1.** How many bytes cross IB for one token, out and back, at 3.5 crossings? How long at 50 GB/s?
#
# <details><summary>Solution</summary>
#
# $3.5 \cdot (7392 + 14336) = 76{,}048$ bytes, 1.5 microseconds; for 4,096 tokens 6.2 ms, in one direction of training
# and one layer. That is why something must be computed meanwhile: the next module.
#
# </details>
#
# **2.** Dispatch copies a token to several ranks. What is its backward pass?
#
# <details><summary>Solution</summary>
#
# What was copied is added up: the gradient of a dispatch is a combine, and the other way round. The test checks
# $\langle \text{dispatch}(x), y\rangle = \langle x, \text{combine}(y)\rangle$.
#
# </details>
#
# **3.** Why is a node worth the sum of its best *two* scores, not its best one?
#
# <details><summary>Solution</summary>
#
# With 8 experts from 4 nodes each gives two on average ($A/M$). A node with one brilliant and no second expert would
# be a poor choice.
#
# </details>
