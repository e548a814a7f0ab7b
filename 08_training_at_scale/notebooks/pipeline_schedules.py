# %% [markdown]
# # How do ranks that need each other's results not wait for each other?
#
# Four painters work on a house: the first primes, the second paints the ground, and so on. With one wall three of them
# always watch. With many walls they work at the same time, except in the morning, when the last one has nothing to
# paint yet, and in the evening, when the first one is done. That idle time has a name, the *bubble*.
#
# A model that is too large for one machine is cut into *stages*, one a rank. A batch is cut into *micro-batches*, the
# walls. But training goes down **and back up**: the last stage begins the backward pass, and the first one ends it.

# %%
from pipeline_schedules import (
    SCHEDULES,
    Task,
    Times,
    bubble_formula,
    draw_text,
    dualpipe_order,
    gpipe_order,
    measure_bubbles,
    measure_memory,
    one_f_one_b_order,
    run_schedule,
)

from utils.drawings_07 import plot_bars, plot_curves
from utils.drawings_08 import draw_schedule

# %% [markdown]
# ## Numbers to follow with a pencil
#
# Letters: $P$ stages, $M$ micro-batches, a forward of a micro-batch takes $F$, a backward $B$. With $P = 2$, $M = 2$,
# $F = 1$, $B = 2$, all forwards first:
#
# ```
# rank 0   F F . . B B B B          it waits from 2 to 5
# rank 1   . F F B B B B .
# ```
#
# Rank 1 cannot begin before 1. Rank 0 waits until the first backward of rank 1 is done, from 2 to 5. Each rank works 6
# of 9 units: the bubble is 3 = $(P - 1)(F + B)$.


# %%
def naive_times(order, F=1, B=2):
    """Two rules: a rank does one thing at a time; a task waits for what it reads. Go round until all is done."""
    done, free, last = {}, [0] * len(order), len(order) - 1
    place = [0] * len(order)
    while any(place[p] < len(tasks) for p, tasks in enumerate(order)):
        for p, tasks in enumerate(order):
            while place[p] < len(tasks):
                kind, m = tasks[place[p]]
                waits_for = ("F", m, p - 1) if kind == "F" else ("B", m, p + 1)
                if 0 <= waits_for[2] <= last and waits_for not in done:
                    break
                start = max(free[p], done.get(waits_for, 0))
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
draw_schedule(
    gpipe,
    f"GPipe: every rank waits {measure_bubbles(gpipe)[0]:.0f}, and holds {measure_memory(gpipe)[0]} micro-batches",
)

# %% [markdown]
# ## 1F1B: the same waiting, less memory
#
# Between a forward and its backward a rank must *hold* the activations. GPipe holds all $M$. Nobody forces us to do all
# forwards first: as soon as a backward can be done, do it. One forward, one backward, in turns.


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
# ## Zero bubble: what nobody waits for
#
# A backward does two things: the gradient of its *inputs*, for which the stage before waits, and that of its
# *weights*, for which nobody waits before the optimizer's step. Split it ($B = O + W$), pass the first part on at
# once, and use the second as filling.
#
# 1. In 1F1B the last gap is $(P - 1)(F + B)$: $P - 1$ forwards to come down, $P - 1$ backwards to come up.
# 2. Coming up now takes $O = B - W$ a stage: $(P - 1)(F + B - W)$.
# 3. Rank $p$ has put off $p$ weights' parts and fills with them; over all, $P - 1$ more of $W$ disappear:
#    $(P - 1)(F + B - 2W)$.

# %%
slots = run_schedule(SCHEDULES["ZB1P"](P, M), P, times)
draw_schedule(slots, f"ZB1P: {measure_bubbles(slots)[0]:.0f} of waiting instead of 9")

# %% [markdown]
# ## DualPipe: feed from both ends
#
# DeepSeek-V3's experts sit on other nodes, and moving tokens takes about as long as computing. DualPipe pairs a
# forward with a backward of *another* micro-batch, so that one computes while the other communicates; that pair is the
# `F&B` of Table
# 2. To have both at hand at any time, micro-batches enter at *both* ends; each rank holds two stages, hence two copies
# of the parameters.

# %%
slots = run_schedule(dualpipe_order(P, M), P, times)
draw_schedule(
    slots, f"DualPipe: {measure_bubbles(slots)[0]:.0f} of waiting; pairs, drawn as halves, hide communication"
)

# %%
big = run_schedule(dualpipe_order(8, 20), 8, times)  # the sizes of the report's Fig. 5
draw_schedule(
    big, f"8 ranks, 20 micro-batches as in Fig. 5: {measure_bubbles(big)[0]:.0f} of {big[0][-1].end:.0f} waiting"
)

# %% [markdown]
# ## The experiment: who waits how long?
#
# The report's 16 stages, with the closed forms of Table 2 beside the simulation.

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
plot_bars(
    list(waits),
    list(waits.values()),
    ["ink", "ink", "shared", "content", "content"],
    title,
    "bubble of a rank, in forwards",
)

# %% [markdown]
# ## Does the closed form always hold?
#
# For DualPipe Table 2 prints $(P/2 - 1)(F\&B + B - 3W)$. Keep $F = 3$ and $W = 1$ and let the backward of inputs $O =
# B - W$ grow.

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
plot_curves(curves, ["content", "ink"], "Table 2 is exact where O = F = 3", "backward of inputs O", "bubble")

# %% [markdown]
# ## Change this, predict, run
#
# Let the pair hide communication: `Times(pair=2.5)` instead of 3, with 8 ranks and 32 micro-batches. Predict by how
# much the *whole* step becomes shorter, and whether the bubble does.
#
# ## What you can now do
#
# Simulate any schedule by two rules; say where each of five bubbles comes from; say what DualPipe pays (twice the
# parameters, one micro-batch more) and for what.
#
# ## Exercises
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
