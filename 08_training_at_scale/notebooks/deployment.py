# %% [markdown]
# # Deployment
#
# **The question.** The model is trained, and thousands of people ask it at once. On which GPUs do its experts belong,
# and which of them deserves a second desk?
#
# An office has 32 rooms and 256 clerks, eight a room. Every letter needs eight clerks. At four o'clock all rooms wait
# for the one where the mail about taxes piles up. There are two remedies: seat the busy clerks with idle ones, and hire
# a *twin* for the busiest. Nobody learns anything new; the twin knows what the clerk knows. And both remedies go by
# the mail of last week. What if the tax season is over?
#
# Serving DeepSeek-V3 is that office. A layer is done when its *slowest* GPU is done, so what counts is the largest
# load, not the mean. Training has balanced the experts by a bias (chapter 03), over all of its texts. When people ask
# about taxes all day, no bias helps.
#
# Words: **prefill** reads a prompt, many tokens at once; **decoding** writes, one token a step for each conversation; a
# **slot** is room for one expert on one GPU; a **redundant** expert is a copy.

# %%
import numpy as np
from deployment import DECODE, PREFILL, copy_experts, gpu_loads, imbalance, pack_evenly, place_globally

from utils.drawings_07 import WORSE, plot_bars, plot_curves
from utils.drawings_08 import draw_packing
from utils.whiteboard import tint

# %% [markdown]
# ## Numbers to follow with a pencil
#
# Six experts with loads 12, 6, 3, 1, 1, 1 (24 together), four GPUs with two slots each: eight slots, two of them to
# spare.
#
# 1. *Copies.* The largest share is 12: the first expert gets a second slot, 6 each. Now two shares are 6; the first in
#    the list is served first: a third slot, 4 each. Copies 3, 1, 1, 1, 1, 1; shares 4, 4, 4, 6, 3, 1, 1, 1.
# 2. *Packing.* Heaviest first, into the lightest GPU with room: 6, 4, 4, 4 on the four; then 3 to a 4, and 1, 1, 1: the
#    loads are 7, 7, 5, 5. The mean is 6, so that the slowest GPU needs 7/6 of the ideal time.
#
# Without copies the first expert alone would be 12, twice the mean, wherever it sits.
#
# ## Build it: copies, then packing


# %%
def naive_copies(loads, slots):
    """A slot each, then always one more where a copy has most to do."""
    copies = [1] * len(loads)
    while sum(copies) < slots:
        shares = [load / n for load, n in zip(loads, copies)]
        copies[shares.index(max(shares))] += 1
    return copies


# %%
def naive_packing(items, packs):
    """Heaviest first, into the lightest pack that has room; items are (expert, load)."""
    room, gpus = len(items) // packs, [[] for _ in range(packs)]
    for item in sorted(items, key=lambda i: -i[1]):
        free = [g for g in gpus if len(g) < room]
        min(free, key=lambda g: sum(load for _, load in g)).append(item)
    return gpus


# %%
loads = [12.0, 6.0, 3.0, 1.0, 1.0, 1.0]
copies = naive_copies(loads, 8)
items = [(e, loads[e] / n) for e, n in enumerate(copies) for _ in range(n)]
gpus = naive_packing(items, 4)
print("copies:", copies, " loads of the GPUs:", [sum(load for _, load in g) for g in gpus])
assert copies == copy_experts(np.array(loads), 8).tolist()
packed = pack_evenly(np.array([load for _, load in items]), 4)
assert [[items[i] for i in pack] for pack in packed] == gpus

# %%
rng = np.random.default_rng(1)
load_E = rng.lognormal(sigma=1.0, size=32)
in_order = [[(e, load_E[e]) for e in range(4 * g, 4 * g + 4)] for g in range(8)]
panels = {"by number": in_order, "packed": naive_packing([i for gpu in in_order for i in gpu], 8)}
copies = copy_experts(load_E, 40)
items = [(e, load_E[e] / n) for e, n in enumerate(copies) for _ in range(n)]
panels["8 copies, packed"] = naive_packing(items, 8)
worst = [imbalance(np.array([sum(load for _, load in g) for g in gpus])) for gpus in panels.values()]

# %%
copied = {e for e in range(32) if copies[e] > 1}
title = f"The fullest GPU: {worst[0]:.2f}, {worst[1]:.2f}, {worst[2]:.2f} times the mean; gold has copies"
draw_packing(panels, copied, title)

# %% [markdown]
# ## The derivation: why greedy copies are the best
#
# Letters: expert $e$ has the load $l_e$ and $c_e$ copies, so that each carries $l_e / c_e$. We want the largest of
# these shares small, with the number of slots, $\sum c_e$, given.
#
# 1. As long as the expert with the largest share gets no further copy, that share stays.
# 2. So in *every* better solution that expert has more copies. Giving it one excludes none of them.
# 3. Repeat until the slots are used up. (The test compares with all possibilities on small cases.)
#
# Packing is another matter: the best one is hard to find, and heaviest-first is good, not optimal.
#
# ## The experiment: prefill and decoding
#
# The report's units: prefill on 32 GPUs, 8 experts and **one redundant** one each; decoding on 320 GPUs with **one**
# expert each, of which 64 hold copies. Loads here are drawn (log-normal), since no measured ones are public.


# %%
def measure(sigma, seeds=5):
    """The fullest GPU over the mean: prefill and decoding, without and with the report's copies."""
    found = []
    for seed in range(seeds):
        load = np.random.default_rng(seed).lognormal(sigma=sigma, size=256)
        placements = [place_globally(load, n, g) for n, g in ((256, 32), (288, 32), (256, 256), (320, 320))]
        found.append([imbalance(gpu_loads(p, load)) for p in placements])
    return np.mean(found, axis=0)


sigmas = [0.0, 0.3, 0.6, 0.9, 1.2]
result = np.array([measure(sigma) for sigma in sigmas])
for sigma, row in zip(sigmas, result):
    print(f"spread {sigma}: prefill {row[0]:.2f} -> {row[1]:.2f}, decoding {row[2]:.2f} -> {row[3]:.2f}")

# %%
names = ["prefill, packed", "prefill, 32 copies", "decoding, no copies", "decoding, 64 copies"]
curves = {name: (sigmas, result[:, i]) for i, name in enumerate(names)}
title = f"With 8 experts a GPU packing does most; with one, copies: {result[2, 2]:.1f} to {result[2, 3]:.1f}"
colors = [tint("content", 0.45), "content", tint("routed", 0.45), "routed"]
x, y = "spread of the loads (sigma of their logarithm)", "fullest GPU over the mean"
plot_curves(curves, colors, title, x, y, yscale="log", yticks=(1, 2, 4, 8, 16), yticklabels=("1", "2", "4", "8", "16"))

# %% [markdown]
# Pale is without copies. With even loads (spread 0) 64 copies buy nothing: a quarter more GPUs, the mean falls, the
# fullest has what it had.
#
# ## The experiment: loads change
#
# Copies are chosen by the load of the last minutes (the report: about every ten). What if the next minutes are others?
# First with drawn loads that drift.

# %%
drifts, stale, unplaced = [0.0, 0.1, 0.2, 0.4, 0.6], [], []
by_number = [list(range(8 * g, 8 * g + 8)) for g in range(32)]
for drift in drifts:
    rng = np.random.default_rng(3)
    old = rng.lognormal(sigma=0.6, size=256)
    placement = place_globally(old, 288, 32)
    now = [old * rng.lognormal(sigma=drift, size=256) for _ in range(20)]
    stale.append(np.mean([imbalance(gpu_loads(placement, load)) for load in now]))
    unplaced.append(np.mean([imbalance(gpu_loads(by_number, load)) for load in now]))

# %%
curves = {"placed by old loads": (drifts, stale), "by number, never placed": (drifts, unplaced)}
title = f"Loads that moved by 20 %: {stale[2]:.2f} instead of {stale[0]:.2f}, unplaced {unplaced[2]:.2f}"
plot_curves(curves, ["content", "ink"], title, "drift since the placement", "fullest GPU over the mean")

# %% [markdown]
# ## The trained model speaks: the tax season
#
# Now real loads. The book's model has learned from small stories and from Python code, 16 experts in each of three
# layers, balanced over both by its bias. Give every layer an office of eight GPUs with three slots each: 24 slots for
# 16 experts. Place by what sixty new stories need. Then the mail changes: people send code.

# %%
from pathlib import Path

from utils.story_model import new_stories, open_book


def measure_loads(texts):
    """Visits of each expert over the mean, layer by layer [3, 16]; the token that opens a text left out."""
    chosen = np.concatenate([open_book().read(text).chosen[:, 1:] for text in texts], axis=1)
    return np.array([np.bincount(layer.ravel(), minlength=16) / layer.size * 16 for layer in chosen])


# %%
code = Path("overlap.py").read_text(encoding="utf-8")
told = measure_loads([" ".join(story.sentences) for story in new_stories(60)])
written = measure_loads([code[i : i + 300] for i in range(0, len(code) - 300, 300)])
print(f"busiest expert over the mean: stories {told.max(axis=1).round(2)}, code {written.max(axis=1).round(2)}")
fullest = {"stories, placed by stories": [], "code, placed by stories": [], "code, placed by code": []}
for stories, codes in zip(told, written):
    placements = [place_globally(load, 24, 8) for load in (stories, codes)]
    fullest["stories, placed by stories"].append(imbalance(gpu_loads(placements[0], stories)))
    fullest["code, placed by stories"].append(imbalance(gpu_loads(placements[0], codes)))
    fullest["code, placed by code"].append(imbalance(gpu_loads(placements[1], codes)))

# %%
values = [round(max(found), 2) for found in fullest.values()]
assert max(values[0], values[2]) < 1.15 < 2 < values[1]
title = f"The mail changes: fullest GPU {values[1]:.1f} times the mean; placed anew, {values[2]:.2f}"
plot_bars(
    list(fullest), values, ["content", WORSE, "content"], title, "fullest GPU over the mean, worst of three layers"
)

# %% [markdown]
# The bias has done its duty: over stories every expert is busy. Code is the work of a few, who hardly matter for
# stories and so got no twins. Neither packing nor copies are at fault, only last week's numbers. (One small model and
# one file of code. V3's loads are measured anew every ten minutes.)
#
# ## The experiment: groups stay together
#
# A token is kept to 4 of 8 groups. If a group's experts lie in one node, few nodes are needed, whatever was copied. So
# EPLB packs *groups into nodes* first, if they divide; for decoding on 40 nodes they do not, and it places globally.

# %%
from deployment import nodes_reached, place_by_groups
from expert_parallelism import Cluster, choose_within_nodes

load = np.random.default_rng(0).lognormal(sigma=0.6, size=256)
chosen = choose_within_nodes(np.random.default_rng(1).normal(size=(400, 256)), Cluster(), 8, 4)
reached, uneven = {}, {}
places = {"by groups": place_by_groups(load, 288, 32, 8, 4), "globally": place_globally(load, 288, 32)}
for name, placement in places.items():
    reached[name] = round(nodes_reached(chosen, placement, 4, np.random.default_rng(2)), 2)
    uneven[name] = imbalance(gpu_loads(placement, load))
title = f"By groups fewer nodes, and a fullest GPU of {uneven['by groups']:.2f} for {uneven['globally']:.2f}"
plot_bars(list(reached), list(reached.values()), ["content", "ink"], title, "nodes that a token reaches, of 4")

# %% [markdown]
# ## The experiment: the shared expert is the busiest of all
#
# When decoding, the shared expert counts as a ninth routed one that every token chooses. 320 slots hold 256 experts,
# the other 64 hold redundant and shared ones, how many of which the report leaves open. Let the load decide.

# %%
from deployment import load_with_shared

split = {}
for sigma in (0.0, 0.3, 0.6):
    load = np.random.default_rng(0).lognormal(sigma=sigma, size=256)
    split[sigma] = int(copy_experts(load_with_shared(load, 8), DECODE.slots)[-1])
    print(f"spread {sigma}: {split[sigma]} slots for the shared expert, {64 - split[sigma]} for redundant ones")

# %% [markdown]
# With even loads it is 32 and 32, since the shared expert does the work of 32 routed ones; the unit that DeepSeek
# described in 2025 has 32 redundant experts as well.
#
# ## The experiment: how fast can it write?
#
# When decoding, sending sets the bound (the reckoning is that of 2505.09343, which takes the width as 7,000): in an
# *exchange* each of a GPU's 32 tokens goes to 9 experts in FP8, a byte a number, and comes back in BF16, two bytes,
# over 50 GB/s. Two micro-batches take turns, one computes while the other sends, so that each of 61 layers lasts two
# exchanges. The last line is a day of February 2025 that DeepSeek published (open-infra-index, day 6): GPUs at two
# dollars an hour, tokens at the prices of the list.

# %%
from deployment import exchange_seconds, expert_bytes, serving_day, token_seconds

one = (1 + 2) * 32 * 9 * 7000 / 50e9  # bytes out and back, tokens, experts, width; over the bandwidth
assert abs(one - exchange_seconds()) < 1e-12
print(f"an exchange {one * 1e6:.2f} us, a token {token_seconds() * 1e3:.2f} ms: {1 / token_seconds():.1f} a second")
print(f"at 900 GB/s, if NVLink reached the whole unit: {1 / token_seconds(bytes_s=900e9):,.0f} a second")
memory = [expert_bytes(PREFILL.slots // PREFILL.gpus), expert_bytes(DECODE.slots // DECODE.gpus)]
print(f"experts in a GPU's memory: prefill {memory[0] / 1e9:.1f} GB, decoding {memory[1] / 1e9:.2f} GB")
rent, income = serving_day()
print(f"a published day: ${rent:,.0f} of rent, ${income:,.0f} at list prices, had every token been paid for")

# %% [markdown]
# ## Change this, predict, run
#
# The report also tries 16 slots a GPU for prefill, of which 9 work at a time: room for 512, two for each expert. Take
# very uneven loads, a spread of 1.2. Predict: by how much does the fullest GPU improve on 288 slots, and what does that
# cost in memory?
#
# <details><summary>Afterwards</summary>
#
# By nothing that one could measure: 1.004 against 1.004 times the mean, five seeds, for 41 GB of experts in place of
# 23. With nine slots a GPU packing has evened out all there is. So more slots are not for the *last* ten minutes. They
# are for the *next* ones: with more copies lying ready, one can choose at every step which of them work.
#
# </details>

# %%
for n_slots in (288, 512):
    loads = [np.random.default_rng(seed).lognormal(sigma=1.2, size=256) for seed in range(5)]
    fullest = np.mean([imbalance(gpu_loads(place_globally(load, n_slots, 32), load)) for load in loads])
    print(f"{n_slots} slots: fullest GPU {fullest:.3f} of the mean, {expert_bytes(n_slots // 32) / 1e9:.0f} GB a GPU")

# %% [markdown]
# ## What you can now do
#
# Say why the largest load counts; copy and pack by hand; tell when copies help and when packing does, and what either
# is worth when the questions change; name what the report leaves open about its 64 GPUs.
#
# ## Exercises
#
# Graded: `count_copies` (`make check CH=08`). By thought alone:
#
# **1.** Why are decoding units ten times larger than prefill units?
#
# <details><summary>Solution</summary>
#
# A conversation brings one token a step. For an expert to see many tokens at once, many conversations must meet; and
# with one expert a GPU the weights are read once for all of them. A prompt brings its thousands of tokens by itself.
#
# </details>
#
# **2.** Can EPLB's packing put two copies of one expert on one GPU? What would that be good for?
#
# <details><summary>Solution</summary>
#
# It can, since it looks at loads only: with two slots a GPU and one very heavy expert it happens. It is good for
# nothing: the GPU has both shares.
#
# </details>
#
# **3.** Would you place by the mean load of a week or of ten minutes?
#
# <details><summary>Solution</summary>
#
# Of the time that the next minutes resemble. A week evens out exactly what copies are for; too short a time is noise,
# and every move of an expert costs 44 million bytes a layer.
#
# </details>
