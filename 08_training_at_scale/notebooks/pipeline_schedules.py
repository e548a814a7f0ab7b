# %% [markdown]
# # Pipeline schedules
#
# **The question.** A model is too large for one machine, so that each holds a few of its layers. How do machines that
# need each other's results not wait for each other?
#
# Four painters work on a house: the first primes, the second paints the ground, and so on. With one wall, three of them
# always watch. With many walls they work at the same time, except in the *morning*, when the last one has nothing to
# paint yet, and in the *evening*, when the first one is done. That idle time has a name, the **bubble**.
#
# A model is cut into **stages**, a few layers each, one stage a **rank** (a GPU with its process). A batch is cut into
# **micro-batches**, the walls. But there is one thing that painters do not have: training goes down the row **and back
# up**. The last stage begins the backward pass of a wall, the first one ends it, so that the first painter waits at
# *noon*, while the last one has it all to do. Four ways of ordering the work follow, each with less waiting or less
# memory than the one before.

# %%
from pipeline_schedules import (
    SCHEDULES,
    Times,
    bubble_formula,
    dualpipe_order,
    gpipe_order,
    measure_bubbles,
    measure_memory,
    one_f_one_b_order,
    run_schedule,
)

# %%
from utils.drawings_07 import plot_bars, plot_curves
from utils.drawings_08 import draw_schedule

# %% [markdown]
# ## Numbers to follow with a pencil
#
# Letters: $P$ stages, $M$ micro-batches, a forward of a micro-batch takes $F$, a backward $B$. With $P = 2$, $M = 2$,
# $F = 1$, $B = 2$, all forwards first:
#
# ```
# time     0 1 2 3 4 5 6 7 8
# rank 0   F F . . . B B B B          it waits from 2 to 5
# rank 1   . F F B B B B . .
# ```
#
# Rank 1 cannot begin before 1. Its forwards end at 3, its first backward at 5, and until then rank 0 waits, from 2 to
# 5. Each rank works 6 of 9 units: the bubble is 3 = $(P - 1)(F + B)$.
#
# ## Build it: a day's work from two rules
#
# An order says what each rank does, one thing after the other; `("F", 3)` is the forward of micro-batch 3. *When* it
# happens follows from two rules: a rank does one thing at a time, and a task waits for what it reads.


# %%
def naive_times(order, F=1, B=2):
    """Go round the ranks; each does its next task if what it reads is there. Returns when the last one ends."""
    done, free, place = {}, [0] * len(order), [0] * len(order)
    while any(n < len(tasks) for n, tasks in zip(place, order)):
        for p, tasks in enumerate(order):
            if place[p] < len(tasks):
                kind, m = tasks[place[p]]
                reads = (kind, m, p - 1 if kind == "F" else p + 1)
                if reads in done or not 0 <= reads[2] < len(order):
                    start = max(free[p], done.get(reads, 0))
                    free[p] = done[kind, m, p] = start + (F if kind == "F" else B)
                    place[p] += 1
    return max(free)


# %%
def all_forwards_first(P, M):
    return [[("F", m) for m in range(M)] + [("B", m) for m in reversed(range(M))] for p in range(P)]


for P, M in ((2, 2), (4, 8)):
    end = naive_times(all_forwards_first(P, M))
    slots = run_schedule(gpipe_order(P, M), P, Times())
    assert end == max(rank[-1].end for rank in slots)
    print(f"P = {P}, M = {M}: {end} units, of which {end - M * 3} waiting; (P - 1)(F + B) = {(P - 1) * 3}")

# %%
P, M, times = 4, 8, Times()  # F = 1, B = 2
gpipe = run_schedule(gpipe_order(P, M), P, times)
title = f"GPipe: every rank waits {measure_bubbles(gpipe)[0]:.0f}, and holds {measure_memory(gpipe)[0]} micro-batches"
draw_schedule(gpipe, title)

# %% [markdown]
# Numbers are micro-batches, white is waiting. The last rank has a morning (bottom left) and an evening (bottom right),
# the first one a noon; every rank waits 9 in all.
#
# ## Build it: 1F1B, the same waiting, less memory
#
# Between a forward and its backward a rank must *hold* the activations (the results in between, which the backward pass
# reads). GPipe holds those of all $M$ micro-batches. Nobody forces us to do all forwards first: as soon as a backward
# can be done, do it. One forward, one backward, in turns: 1F1B.


# %%
def naive_1f1b(P, M):
    """Rank p runs P - 1 - p forwards ahead, then takes turns."""
    order = []
    for p in range(P):
        ahead = P - 1 - p
        tasks = [("F", m) for m in range(ahead)]
        for m in range(M):
            if m + ahead < M:
                tasks.append(("F", m + ahead))
            tasks.append(("B", m))
        order.append(tasks)
    return order


# %%
slots = run_schedule(one_f_one_b_order(P, M), P, times)
assert naive_times(naive_1f1b(P, M)) == max(rank[-1].end for rank in slots)
waiting, held = measure_bubbles(slots)[0], max(measure_memory(slots))
draw_schedule(slots, f"1F1B: still {waiting:.0f} of waiting, but {held} micro-batches held at most")

# %% [markdown]
# ## The derivation: zero bubble, or what nobody waits for
#
# A backward does two things: it finds the gradient of its *inputs*, for which the stage before waits, and that of its
# *weights*, for which nobody waits until the optimizer's step. Letters: $O$ is the time of the first part, $W$ of the
# second, $B = O + W$. Pass the first part on at once, and use the second as filling. The schedule is called ZB1P.
#
# 1. Look at rank 0 in the drawing of 1F1B. At *noon* it has run all forwards that it may, and the first gradient comes
#    up through the $P - 1$ stages below, a backward in each: it waits $(P - 1) B$, here 6. In the *evening* no forward
#    is left to take turns with: $P - 1$ gaps of length $F$, here three of 1. Together $(P - 1)(F + B) = 9$.
# 2. Noon: only the inputs' part comes up now, $O = B - W$ a stage. It waits $(P - 1)(B - W)$.
# 3. Evening: each of the $P - 1$ gaps is filled with a weights' part that was put off. Of $F$ there remains $F - W$:
#    $(P - 1)(F - W)$. Together $(P - 1)(F + B - 2W)$, here 3.
#
# The other ranks wait as long, at other times of the day: rank 3 in the morning, all of it.

# %%
slots = run_schedule(SCHEDULES["ZB1P"](P, M), P, times)
F, B, W, _ = times
assert set(measure_bubbles(slots)) == {(P - 1) * (F + B - 2 * W)}  # step 3, and on every rank
draw_schedule(slots, f"ZB1P: {measure_bubbles(slots)[0]:.0f} of waiting instead of 9")

# %% [markdown]
# ## DualPipe: feed from both ends
#
# DeepSeek-V3's experts sit on other machines, and moving tokens to them takes about as long as computing. DualPipe
# pairs a forward with a backward of *another* micro-batch, so that one computes while the other travels (`overlap` has
# the details). Such a pair takes the time $F\&B$. To have both at hand at any time, micro-batches enter at *both* ends,
# as if a second team of painters came from the other side of the house. Each rank holds two stages, one for each
# direction, hence two copies of the parameters.

# %%
slots = run_schedule(dualpipe_order(P, M), P, times)
title = f"DualPipe: {measure_bubbles(slots)[0]:.0f} of waiting; a pair is drawn as two halves"
draw_schedule(slots, title)

# %% [markdown]
# Pale is what entered at the top, dark what entered at the bottom. The report draws it at this size (Fig. 5):

# %%
big = run_schedule(dualpipe_order(8, 20), 8, times)
title = f"8 ranks, 20 micro-batches as in Fig. 5: {measure_bubbles(big)[0]:.0f} of {big[0][-1].end:.0f} is waiting"
draw_schedule(big, title)

# %% [markdown]
# ## The experiment: who waits how long?
#
# The report's 16 stages, 64 micro-batches, with the closed forms of Table 2 beside the simulation. (DualPipeV is
# DualPipe folded in the middle: a rank holds the first and the last stage, or two in between, and half as many ranks
# do.)

# %%
waits = {}
for name, make in SCHEDULES.items():
    slots = run_schedule(make(16, 64), 16, times)
    waits[name] = measure_bubbles(slots)[0]
    assert set(measure_bubbles(slots)) == {bubble_formula(name, 16, times)}
    held = max(measure_memory(slots))
    print(f"{name:<10} waits {waits[name]:4.0f} on {len(slots):>2} ranks, holds {held:>2} micro-batches")

# %%
title = f"16 stages: DualPipe waits {waits['DualPipe']:.0f}, 1F1B {waits['1F1B']:.0f} units"
kinds = ["ink", "ink", "ink", "content", "content"]
plot_bars(list(waits), list(waits.values()), kinds, title, "bubble of a rank, in forwards")

# %% [markdown]
# Against ZB1P there is one unit of a bubble to gain, for twice the parameters. What DualPipe is bought for is the pair:
# see the prediction below.
#
# ## The experiment: does the closed form always hold?
#
# For DualPipe Table 2 prints $(P/2 - 1)(F\&B + B - 3W)$. Keep $F = 3$ and $W = 1$ and let the backward of inputs $O =
# B - W$ grow. No other schedule was tried here, only other times.

# %%
inputs = [1, 2, 3, 4, 5, 6]
found = []
for O in inputs:
    uneven = Times(forward=3, backward=O + 1, weights=1, pair=O + 4)
    slots = run_schedule(dualpipe_order(8, 32), 8, uneven)
    found.append((max(measure_bubbles(slots)), bubble_formula("DualPipe", 8, uneven)))
    print(f"O = {O}: simulated {found[-1][0]:.0f}, Table 2 {found[-1][1]:.0f}")

# %%
curves = {"simulated": (inputs, [f[0] for f in found]), "Table 2": (inputs, [f[1] for f in found])}
axes = ("backward of inputs O (a forward takes 3)", "longest bubble of a rank, 8 ranks")
plot_curves(curves, ["content", "ink"], "Table 2 is exact where O = F = 3", *axes)

# %% [markdown]
# So the form holds under a condition that the report does not print: a forward takes as long as the backward of inputs.
# Below it the formula promises too little waiting, above it too much. How much does it matter? From a published step
# `cost_of_training` reckons V3's own chunks: $F = 58$, $O = 126 - 42 = 84$, $W = 42$ and a pair 139 milliseconds, far
# from equal. And yet:

# %%
v3 = Times(forward=0.058, backward=0.126, weights=0.042, pair=0.139)
waiting = max(measure_bubbles(run_schedule(dualpipe_order(16, 120), 16, v3)))
print(f"longest bubble of 16 ranks: {waiting:.2f} s simulated,", end=" ")
print(f"{bubble_formula('DualPipe', 16, v3):.2f} s by Table 2")

# %% [markdown]
# ## Change this, predict, run
#
# So far a pair took as long as its parts, 3. Let it hide communication and take 2.5, or 2; with 8 ranks and 32
# micro-batches, of which a rank in the middle does 23 pairs in a step. Predict how much shorter the *step* becomes. By
# 23 times what a pair saves, by more, or by less? And the bubble?
#
# <details><summary>Afterwards</summary>
#
# By more: 13 for half a unit a pair, 26 times as much. The three that are missing are in the bubble: Table 2 has $(P/2
# - 1) F\&B$ in it, three pairs of waiting for somebody else's pair, and those are shorter too: 4.5 for 6. The outer
# ranks have fewer pairs (21), do more work alone, and wait less than the formula says. A quarter of the step, for a
# pair of 2: that is what the second copy of the parameters is bought for.
#
# </details>

# %%
for pair in (3, 2.5, 2):
    slots = run_schedule(dualpipe_order(8, 32), 8, Times(pair=pair))
    bubbles = measure_bubbles(slots)
    print(
        f"a pair takes {pair}: step {slots[0][-1].end:.0f}, waiting {min(bubbles):.1f} to {max(bubbles):.1f}", end="; "
    )
    print(f"Table 2 has {bubble_formula('DualPipe', 8, Times(pair=pair)):.1f}")

# %% [markdown]
# ## What you can now do
#
# Simulate any schedule by two rules; say where each of five bubbles comes from; say what DualPipe pays (twice the
# parameters, one micro-batch more) and for what. Next: what travels between the machines? `expert_parallelism`.
#
# ## Exercises
#
# Graded: `forwards_ahead`, `pipeline_time`, and the simulator, `schedule_from_an_empty_file` (`make check CH=08`). By
# thought alone:
#
# **1.** With $P = 16$ how many micro-batches make GPipe's bubble less than a tenth of the step ($F = 1$, $B = 2$)?
#
# <details><summary>Solution</summary>
#
# $15 \cdot 3 / (3 M + 45) < 0.1$, so $M > 135$. It would then hold 136 micro-batches.
#
# </details>
#
# **2.** Why does GPipe's order of backwards (last one first) not matter for its bubble?
#
# <details><summary>Solution</summary>
#
# All are ready at the last rank at once; the pipe of backwards is as long in either order.
#
# </details>
#
# **3.** In DualPipeV the first and the last stage share a rank. What is that good for in DeepSeek-V3?
#
# <details><summary>Solution</summary>
#
# Embedding and output head are on one rank, and the MTP module, which needs both, shares them there physically.
#
# </details>
