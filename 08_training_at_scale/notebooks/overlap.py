# %% [markdown]
# # Overlap
#
# **The question.** Tokens must travel to their experts and back, and that takes about as long as the computing. How can
# they travel without anybody waiting for them?
#
# A cook who must send to the market for every dish waits half of the day. Two dishes, shifted against each other, do
# better: while the boy runs for the fish of the first, the cook cuts the vegetables of the second. Nothing has become
# faster; the waiting of one is filled with the work of the other. It works as long as there is enough to cut.
#
# A block of DeepSeek-V3 waits twice in each direction: its tokens travel to their experts (**dispatch**) and back
# (**combine**). Within one batch nothing can be done meanwhile: the experts need the tokens, and the next attention
# needs the results. But a pipeline has two dishes at hand, a forward of one micro-batch *and* a backward of another
# (`pipeline_schedules`).

# %%
import numpy as np
from expert_parallelism import IB_BYTES_S
from overlap import (
    BlockTimes,
    apart_seconds,
    block_period,
    chunk_times,
    count_block_times,
    lend_multiprocessors,
    pair_order,
    pair_seconds,
    run_streams,
    scale_sending,
)
from pipeline_schedules import dualpipe_order, one_f_one_b_order, run_schedule

# %%
from utils.drawings_07 import plot_bars, plot_curves
from utils.drawings_08 import draw_streams

# %% [markdown]
# ## Numbers to follow with a pencil
#
# Pieces of one block: `ATTN` and `MLP` (its experts), each with a forward (F), a backward of inputs (B) and a backward
# of weights (W); journeys `DISPATCH` and `COMBINE`, forward and backward. The backward runs the journeys in reverse:
# the gradient first undoes the combine, then the experts, then the dispatch, then the attention.
#
# Let each of the six computings take 3 and each of the four journeys 2. One after the other: $6 \cdot 3 + 4 \cdot 2 =
# 26$ a block. Fig. 4 of the report puts them on two streams:
#
# ```
# computing   MLP(B)      MLP(W)      MLP(F)      ATTN(B)     ATTN(W)     ATTN(F)
# network     DISPATCH(F)             DISPATCH(B) COMBINE(F)              COMBINE(B)
# ```
#
# `MLP(F)` waits for `DISPATCH(F)`, which has 6 to arrive in and needs 2. `ATTN(B)` waits for `DISPATCH(B)`: 2 in 3. So
# nothing waits: 18 a block.
#
# Read the two lines as a wheel that goes on turning: one micro-batch goes down through the blocks while the other one
# comes up, and the wheel may be cut anywhere. Cut as above, the last two pieces belong to the *next* block already:
# `ATTN(F)` needs the `COMBINE(F)` of the block before it, and `COMBINE(B)` brings the gradient from which the next
# `MLP(B)` starts.
#
# ## Build it: two streams
#
# What each piece needs, by name; what each stream does, in order. A piece starts when its stream is free and what it
# needs has ended. After some rounds every block takes equally long: that is its *period*.

# %%
COMPUTING = ["MLP(B)", "MLP(W)", "MLP(F)", "ATTN(B)", "ATTN(W)", "ATTN(F)"]
NETWORK = ["DISPATCH(F)", "DISPATCH(B)", "COMBINE(F)", "COMBINE(B)"]
NEEDS = {"MLP(B)": "COMBINE(B)", "MLP(F)": "DISPATCH(F)", "ATTN(B)": "DISPATCH(B)", "ATTN(F)": "COMBINE(F)"}
NEEDS |= {"DISPATCH(F)": "ATTN(F)", "DISPATCH(B)": "MLP(B)", "COMBINE(F)": "MLP(F)", "COMBINE(B)": "ATTN(B)"}


# %%
def naive_block(compute, send, rounds=40):
    """Go round and round Fig. 4; a piece starts when its stream is free and what it needs has ended."""
    ends, free = dict.fromkeys(NEEDS, 0.0), {"compute": 0.0, "send": 0.0}
    row = ["MLP(B)", "DISPATCH(F)", "MLP(W)", "DISPATCH(B)", "MLP(F)", "COMBINE(F)"]
    row += ["ATTN(B)", "COMBINE(B)", "ATTN(W)", "ATTN(F)"]
    begins = []
    for _ in range(rounds):
        for name in row:
            stream, takes = ("compute", compute[name]) if name in COMPUTING else ("send", send[name])
            free[stream] = ends[name] = max(free[stream], ends.get(NEEDS.get(name), 0.0)) + takes
        begins.append(ends["ATTN(F)"])
    return begins[-1] - begins[-2]


# %%
for travel in (2, 3, 5, 7):
    slow = BlockTimes(*[3.0] * 6, *[float(travel)] * 4)
    naive = naive_block(dict.fromkeys(COMPUTING, 3.0), dict.fromkeys(NETWORK, float(travel)))
    assert naive == block_period(slow)
    print(f"journeys of {travel}: apart {18 + 4 * travel}, as a pair {naive:.0f} a block")

# %%
even = BlockTimes(*[3.0] * 6, *[2.0] * 4)
done = run_streams(pair_order(2), even)
streams = [[(p.name, *done[p.name, p.block]) for p in stream] for stream in pair_order(2)]
title = "Two blocks of a pair: while one computes, the other travels"
draw_streams(dict(zip(("computing", "network"), streams)), title, "time, in the units of the pencil")

# %% [markdown]
# The drawing cuts the wheel before `ATTN(F)`, and a journey begins as soon as it can. Blue is the forward of one
# micro-batch, green and gold are the backward of another; what travels is pale.
#
# ## The derivation: what hides behind what?
#
# A journey is *hidden* as long as it ends before somebody needs it. So look for each of the four at what is computed
# between its start and that moment, its *window*.
#
# 1. `DISPATCH(F)` starts with `MLP(B)` and is needed by `MLP(F)`. Between: `MLP(B)`, `MLP(W)`. What is longer, shows.
# 2. `DISPATCH(B)` starts when `MLP(B)` is done and the network is free, and is needed by `ATTN(B)`. Between: the rest
#    of `MLP(W)`, and `MLP(F)`.
# 3. `COMBINE(F)` starts after `MLP(F)`, is needed by `ATTN(F)`: behind `ATTN(B)` and `ATTN(W)`.
# 4. `COMBINE(B)` likewise: behind the rest of `ATTN(W)`, and `ATTN(F)`.
#
# The time of a block is all its computing and whatever of the four shows. The split of the backward into B and W is
# what makes room: the weights' parts are waited for by nobody.


# %%
def uncovered(first, second, b, w, f):
    """What shows of two journeys that share a network: `first` starts with b, f needs it; `second` starts after b."""
    left = max(0.0, w - max(0.0, first - b))  # of w, when the network is free for the second
    return max(0.0, first - b - w) + max(0.0, second - left - f)


def name_of(field):
    part, direction = field.split("_")
    return part.upper().replace("ATTENTION", "ATTN") + f"({direction.upper()})"


# %%
for seed in range(20):
    t = BlockTimes(*np.random.default_rng(seed).random(10))
    shows = uncovered(t.dispatch_f, t.dispatch_b, t.mlp_b, t.mlp_w, t.mlp_f)
    shows += uncovered(t.combine_f, t.combine_b, t.attention_b, t.attention_w, t.attention_f)
    named = {name_of(field): seconds for field, seconds in t._asdict().items()}
    assert np.allclose([t.computing + shows, naive_block(named, named)], block_period(t))
print("twenty blocks of random times: windows, simulation and module agree")

# %% [markdown]
# ## The experiment: V3's numbers, counted
#
# Operations of a block over a rate, bytes over 50 GB/s. The rate (450 TFLOP/s) is *assumed*; the chapter on cost says
# where such a number comes from.

# %%
v3 = count_block_times()  # 4,096 tokens
for name, seconds in v3._asdict().items():
    print(f"{name:<12} {seconds * 1e3:5.2f} ms")
assert block_period(v3) == v3.computing
print(f"computing {v3.computing * 1e3:.1f} ms, sending {v3.sending * 1e3:.1f} ms, a block of a pair", end=" ")
print(f"{block_period(v3) * 1e3:.1f} ms: all of the sending is hidden")

# %% [markdown]
# The report says that sending takes *about as long* as computing. Bytes over bandwidth give a third of it; what makes
# up the rest (latency, many small messages, shared cables, a higher rate of computing) is not said. So let us see how
# the pair does at any ratio.

# %%
ratios = [r / 10 for r in range(21)]
scaled = [scale_sending(v3, r) for r in ratios]
apart = [1e3 * apart_seconds(1, t) for t in scaled]
pair = [1e3 * block_period(t) for t in scaled]
floor = [1e3 * max(t.computing, t.sending) for t in scaled]
for r, a, p, f in list(zip(ratios, apart, pair, floor))[::5]:
    print(f"ratio {r}: apart {a:.1f} ms, pair {p:.1f} ms, no order can beat {f:.1f} ms")

# %%
curves = {"one after the other": (ratios, apart), "pair (Fig. 4)": (ratios, pair), "bound": (ratios, floor)}
title = f"At one to one the pair saves {100 - 100 * pair[10] / apart[10]:.0f} %, of 50 % that could be saved"
plot_curves(curves, ["ink", "content", "#BBBBBB"], title, "sending : computing", "ms a block")

# %%
one = scale_sending(v3, 1.0)
done = run_streams(pair_order(2), one)
streams = [[(p.name, *(1e3 * end for end in done[p.name, p.block])) for p in s] for s in pair_order(2)]
wait = 100 - 100 * one.computing / block_period(one)
title = f"One to one: {wait:.0f} % of the time nobody computes"
draw_streams(dict(zip(("computing", "network"), streams)), title, "milliseconds")

# %% [markdown]
# Here the cook runs out of vegetables: twice a block the computing stands still, for the combine of the forward and for
# that of the backward. And the boy is not free: 20 of the GPU's 132 *multiprocessors* (the parts of a GPU that compute
# at the same time) do nothing but send. Without them the computing takes 132/112 of the time.

# %%
cost = {"apart": apart_seconds(1, v3), "pair": block_period(v3)}
cost["pair, 20 of 132 lent"] = block_period(lend_multiprocessors(v3))
cost["the same at one to one"] = block_period(lend_multiprocessors(one))
cost["apart at one to one"] = apart_seconds(1, one)
values = [round(1e3 * seconds, 1) for seconds in cost.values()]
title = f"20 lent cost {values[2] - values[1]:.0f} ms a block; at one to one {values[3]} for {values[4]} ms"
plot_bars(list(cost), values, ["ink", "content", "content", "content", "ink"], title, "ms a block")

# %% [markdown]
# ## The experiment: what it does for the pipeline
#
# Only a schedule that has a forward and a backward at hand *at the same time* can pair them: DualPipe. 1F1B has one
# after the other, and each waits for its own journeys.

# %%
P, M = 8, 32
step = {}
for name, make in (("1F1B", one_f_one_b_order), ("DualPipe", dualpipe_order)):
    for label, overlapped in (("as counted", v3), ("one to one", one)):
        slots = run_schedule(make(P, M), P, chunk_times(4, overlapped, overlapped=True))
        step[f"{name}, {label}"] = max(rank[-1].end for rank in slots)
saved = 1 - step["DualPipe, one to one"] / step["1F1B, one to one"]

# %%
seconds = [round(s, 2) for s in step.values()]
title = f"At one to one DualPipe's step is {saved:.0%} shorter, bubble and overlap together"
plot_bars(list(step), seconds, ["ink", "ink", "content", "content"], title, "seconds a step, 8 stages of 4 blocks")

# %% [markdown]
# ## Change this, predict, run
#
# A network a third as fast: sending then takes about as long as computing. Which of the four journeys shows, and by how
# much? Predict it from the four windows above and the printed milliseconds (times three for the journeys).
#
# <details><summary>Afterwards</summary>
#
# Both dispatches still fit behind the experts. COMBINE(F) takes 12.3 ms and has ATTN(B) and ATTN(W), 9.9: it shows by
# 2.5. It has used up ATTN(W), so that COMBINE(B) has nothing but ATTN(F): 6.4 behind 4.9 shows by 1.4. Together 3.9 ms.
# The two combines weigh as much as the two dispatches, and attention is the shorter half of a block.
#
# </details>

# %%
t = count_block_times(bytes_s=IB_BYTES_S / 3)
left_mlp = max(0, t.mlp_w - max(0, t.dispatch_f - t.mlp_b))
left_attention = max(0, t.attention_w - max(0, t.combine_f - t.attention_b))
windows = {
    "DISPATCH(F)": (t.dispatch_f, t.mlp_b + t.mlp_w),
    "DISPATCH(B)": (t.dispatch_b, left_mlp + t.mlp_f),
    "COMBINE(F)": (t.combine_f, t.attention_b + t.attention_w),
    "COMBINE(B)": (t.combine_b, left_attention + t.attention_f),
}
for name, (takes, window) in windows.items():
    print(f"{name:<11} {1e3 * takes:5.2f} ms, window {1e3 * window:5.2f}: shows {1e3 * max(0, takes - window):.2f}")
print(f"together {1e3 * (block_period(t) - t.computing):.2f} ms of a block are uncovered")

# %% [markdown]
# ## What you can now do
#
# Say which journey hides behind which computing and when it shows; say why the backward is split; tell what a pair
# costs in multiprocessors and what it saves. Next: what does it cost, all together? `cost_of_training`.
#
# ## Exercises
#
# Graded: `uncovered_time` (`make check CH=08`). By thought alone:
#
# **1.** Why can one micro-batch alone not overlap its own dispatch with its own computing?
#
# <details><summary>Solution</summary>
#
# Each piece needs the one before it: attention, dispatch, experts, combine are a chain. Two halves of the micro-batch
# could pair with each other; that is what V3 does when it serves (section 3.4).
#
# </details>
#
# **2.** What goes wrong if `MLP(W)` is moved behind `MLP(F)`?
#
# <details><summary>Solution</summary>
#
# `DISPATCH(F)` then hides behind `MLP(B)` alone, `DISPATCH(B)` behind `MLP(F)` and all of `MLP(W)`. At one to one both
# still hide in either order; where a dispatch takes longer than `MLP(B)`, the report's order is the better one.
#
# </details>
#
# **3.** `COMBINE(B)` carries FP8 and `DISPATCH(B)` BF16. Why this way round?
#
# <details><summary>Solution</summary>
#
# The gradient of a combine goes *out* to the experts, where the product rounds it to FP8 anyway; the gradient of a
# dispatch comes *back* and is added up.
#
# </details>
