# %% [markdown]
# # Balancing without a loss, and the balancing laboratory
#
# **The question.** A balance loss speaks to the reception in the same voice as the patients do, and she cannot tell the
# two apart. Every push towards short queues is also a push away from what is best for somebody. Can the doctors be kept
# equally busy by someone who never touches the objective?
#
# Put a sign on each door. It says how long the wait is, and the reception looks at it when she *sends* a patient.
# Nobody looks at it when the doctors' answers are *weighed*: a doctor is not less right because his corridor is full.
# Every evening a caretaker goes round: where the queue was too long, he makes the sign a notch less inviting, where it
# was too short, a notch more. He has never heard of the outcome. He is a thermostat.
#
# The sign is called the **bias** of an expert. DeepSeek-V3 is balanced by it. Does it help? This notebook ends in a
# laboratory that can tell, because there the best split of work is known: six ways of balancing, five seeds each. It
# does not come out quite as the papers say, and that is reported too.

# %%
import numpy as np
from expert_routing import count_load, sigmoid
from load_balancing import sequence_balance_backward, sequence_balance_forward
from loss_free_balancing import (
    loss_free_gate_backward,
    loss_free_gate_forward,
    max_violation,
    settle_bias,
    update_bias,
)

# %%
from utils.clinic_task import N_DAYS, N_PATIENTS, A, D, E, adjust_weights, draw_patients, open_clinic
from utils.drawings_03 import draw_two_paths
from utils.gradient_check import central_difference, relative_error
from utils.plots_03 import plot_methods, plot_served, plot_settling, plot_strips, plot_stuck
from utils.plots_studies import plot_study

# %%
draw_two_paths()

# %% [markdown]
# ## Numbers to follow with a pencil
#
# **The caretaker.** Four experts had 6, 3, 2 and 1 tokens. The mean is 3. At a speed of 0.1 the first bias falls by
# 0.1, the second stays, the third and the fourth rise by 0.1. How *much* the load is off does not matter, only on which
# side it is. How uneven was it? The busiest had 3 more than the mean, relative to the mean: **MaxVio** $= (6 - 3)/3 =
# 1$. Whoever waits for the busiest waits twice as long as in balance.
#
# **The sign.** A token has scores 0.9, 0.6 and 0.2, two experts are activated. Without bias: experts 0 and 1, gates
# $0.9/1.5 = 0.6$ and $0.4$. With the biases $-0.05, 0.05, 0$ the sums are 0.85, 0.65 and 0.2: the same experts, and
# *exactly* the same gates. With $-0.5, 0, 0.5$ the sums are 0.4, 0.6 and 0.7: now experts 2 and 1, weighed by their own
# scores, $0.2/0.8 = 0.25$ and $0.75$.

# %%
print("bias after one step:", update_bias(np.zeros(4), np.array([6, 3, 2, 1]), 0.1), end="  ")
print("MaxVio:", max_violation(np.array([6, 3, 2, 1])))
for bias in ([0.0, 0.0, 0.0], [-0.05, 0.05, 0.0], [-0.5, 0.0, 0.5]):
    (index, gate), _ = loss_free_gate_forward(np.array([[0.9, 0.6, 0.2]]), np.array(bias), 2)
    print(f"bias {bias!s:<18} experts {index[0]}, gates {gate[0].round(4)}")

# %% [markdown]
# ## Build it: choose with the sign, weigh without


# %%
def choose_and_weigh(score, bias, A):
    """One token: scores [E], biases [E] -> its experts, best first, and their gates."""
    chosen = np.argsort(-(score + bias), kind="stable")[:A]
    return chosen, score[chosen] / score[chosen].sum()


# %%
rng = np.random.default_rng(0)
score, bias = rng.uniform(0.1, 0.9, size=(64, 8)), rng.normal(size=8) * 0.2
routing, cache = loss_free_gate_forward(score, bias, 2)
for row, index, gate in zip(score, *routing):
    chosen, gates = choose_and_weigh(row, bias, 2)
    assert np.array_equal(chosen, index)
    assert np.allclose(gates, gate, rtol=0, atol=1e-15)
print("naive and module agree on", len(score), "tokens")

# %% [markdown]
# ## Build it: the caretaker's round


# %%
def go_round(bias, load, speed):
    """After a step: a notch down where the load was above the mean, a notch up where it was below."""
    mean, moved = sum(load) / len(load), []
    for b, n in zip(bias, load):
        if n > mean:
            b = b - speed
        elif n < mean:
            b = b + speed
        moved.append(b)
    return np.array(moved)


# %%
load = count_load(routing.index_NA, 8)
assert np.array_equal(go_round(bias, load, 0.001), update_bias(bias, load, 0.001))
print("loads", load, "move the biases by", (go_round(bias, load, 0.001) - bias).round(4))

# %% [markdown]
# ## The derivation
#
# 1. **Choose with help:** $\mathcal T$ is the set of the $A$ largest $s_i + b_i$ (V3, Eq. 16).
# 2. **Weigh without:** $g_i = s_i / \sum_{j\in\mathcal T} s_j$ (Eq. 13). The bias stands in no gate. A bias that does
#    not flip a choice changes no output, to the last bit, so $\partial L/\partial b = 0$ wherever there is a slope at
#    all.
# 3. **Move:** $b_i \leftarrow b_i + \gamma\,\mathrm{sign}(\bar c - c_i)$, where $c_i$ counts the tokens of expert $i$
#    in the *whole* batch, on all machines, and $\bar c$ is their mean. After the step, and in training only. $\gamma$
#    is the speed: 0.001 in V3.
# 4. **Measure:** $\mathrm{MaxVio} = (\max_i c_i - \bar c)/\bar c$.
# 5. Backward: nothing new. The scores get the gradient of `expert_routing`, at the experts that were chosen *with* the
#    bias.

# %%
pull = rng.normal(size=(64, 2))
dscore = loss_free_gate_backward(pull, cache)
total = np.take_along_axis(score, routing.index_NA, axis=1).sum(axis=1, keepdims=True)
naive = np.zeros_like(score)
centred = (pull - (routing.gate_NA * pull).sum(axis=1, keepdims=True)) / total
np.put_along_axis(naive, routing.index_NA, centred, axis=1)
assert np.allclose(dscore, naive, rtol=0, atol=1e-14)
by_trying = central_difference(lambda: np.sum(pull * loss_free_gate_forward(score, bias, 2)[0].gate_NA), bias)
print("slope of the loss by the biases, by trying:", by_trying)

# %% [markdown]
# ## The experiment: how fast should the caretaker walk?
#
# A frozen router that prefers the first experts; only the biases move.

# %%
prefers = sigmoid(rng.normal(size=(1024, 8)) + np.linspace(1.5, -1.5, 8))
biases, _ = settle_bias(prefers, np.zeros(8), 2, speed=0.01, steps=150)
violations = {}
for speed in (0.001, 0.01, 0.1):
    _, loads = settle_bias(prefers, np.zeros(8), 2, speed, 150)
    violations[f"speed {speed:g}"] = [max_violation(load) for load in loads]
slow, fine, fast = (np.mean(v[-20:]) for v in violations.values())
assert fine < min(slow, fast)
title = f"After 150 steps MaxVio is {slow:.2f} (too slow), {fine:.2f}, and {fast:.2f} (too fast)"
plot_settling(biases, violations, title)

# %% [markdown]
# The right speed depends on how many steps there are and on how far apart the scores lie. V3 has hundreds of thousands
# of steps and takes 0.001; the laboratory has 600 and takes 0.01.
#
# # The balancing laboratory
#
# Does any of this help a model that *learns*? The clinic of the last notebooks can tell. Eight complaints, eight
# doctors, two of them for each patient; the best split is a doctor for each complaint, with zero loss and equal loads.
# This time nobody is finished: the doctors are random matrices and learn what to treat while the reception learns whom
# to send. All patients share a strong common direction, so at first she sends them all the same way. And a day has a
# topic.
#
# Forward and backward by hand; the gate is the one above.


# %%
def run_forward(router, experts, bias, numbers, seen):
    """Route, let all doctors answer (they are tiny), combine."""
    score = sigmoid(seen @ router.T)
    routing, gate_cache = loss_free_gate_forward(score, bias, A)
    outputs = (numbers @ experts.reshape(E * D, D).T).reshape(-1, E, D)
    answers = np.take_along_axis(outputs, routing.index_NA[..., None], axis=1)
    return (routing.gate_NA[:, None] @ answers)[:, 0], (score, routing, gate_cache, answers)


# %%
def run_backward(dy, cache, numbers, seen, dscore_balance):
    """Return (drouter, dexperts)."""
    score, routing, gate_cache, answers = cache
    dscore = loss_free_gate_backward((answers @ dy[..., None])[..., 0], gate_cache) + dscore_balance
    full_gate = np.zeros_like(score)
    np.put_along_axis(full_gate, routing.index_NA, routing.gate_NA, axis=1)
    weighted = (full_gate[..., None] * dy[:, None]).reshape(-1, E * D)
    return (dscore * score * (1 - score)).T @ seen, (weighted.T @ numbers).reshape(E, D, D)


# %%
def misses(weights):
    return ((run_forward(*weights, np.zeros(E), numbers, seen)[0] - target) ** 2).sum()


rng, skills, weights = open_clinic(0)
numbers, seen, target, _ = draw_patients(rng, skills)
y, cache = run_forward(*weights, np.zeros(E), numbers, seen)
grads = run_backward(2 * (y - target), cache, numbers, seen, 0.0)
for w, grad, name in zip(weights, grads, ("router", "doctors")):
    part = w[:1, :3] if name == "router" else w[:1, :1, :3]  # views: a few entries are enough to try
    tried = central_difference(lambda: misses(weights), part)
    print(f"{name}: central differences agree:", relative_error(grad[tuple(map(slice, part.shape))], tried) < 1e-6)

# %% [markdown]
# The training. `alpha` is the strength of the sequence-wise balance loss, `speed` that of the caretaker; with both at
# zero nobody balances. Adam, 600 steps. The loss is given as a share of the target's variance: 1 means *learned
# nothing*.


# %%
def pull_to_balance(score, alpha):
    """What the sequence-wise loss adds to the gradient of the scores."""
    if not alpha:
        return 0.0
    _, cache = sequence_balance_forward(score.reshape(N_DAYS, N_PATIENTS, E), A, alpha)
    return sequence_balance_backward(1.0, cache).reshape(-1, E)


# %%
def train(seed, alpha, speed, stop=600, steps=600):
    """Task loss [steps], loads [steps, E], and who served which complaint in the last 50 steps [E, E]."""
    (rng, skills, weights), bias, served, moments = open_clinic(seed), np.zeros(E), np.zeros((E, E)), []
    losses, loads = [], []
    for step in range(1, steps + 1):
        numbers, seen, target, pair = draw_patients(rng, skills)
        y, cache = run_forward(*weights, bias, numbers, seen)
        losses.append(((y - target) ** 2).mean() / 0.5)
        grads = run_backward(2 * (y - target) / y.size, cache, numbers, seen, pull_to_balance(cache[0], alpha))
        adjust_weights(weights, grads, moments, step)
        loads.append(count_load(cache[1].index_NA, E))
        bias = update_bias(bias, loads[-1], speed if step <= stop else 0.0)
        if step > steps - 50:
            np.add.at(served, (pair[:, :, None], cache[1].index_NA[:, None]), 1)
    return np.array(losses), np.array(loads), served


# %% [markdown]
# ## The experiment: six ways of balancing
#
# Six methods, five seeds, the same batches for all.

# %%
methods = {
    "none": (0.0, 0.0),
    "loss, α = 0.001": (1e-3, 0.0),
    "loss, α = 0.01": (1e-2, 0.0),
    "loss, α = 0.1": (1e-1, 0.0),
    "loss-free": (0.0, 0.01),
    "loss-free + α = 0.001": (1e-3, 0.01),
}
runs = {name: [train(seed, *settings) for seed in range(5)] for name, settings in methods.items()}


# %%
def count_idle(run):
    """Experts with less than 2 % of the visits of the last 50 steps; a fair share is 12.5 %."""
    load = run[1][-50:].sum(axis=0)
    return int((load < 0.02 * load.sum()).sum())


final = {name: np.array([r[0][-50:].mean() for r in group]) for name, group in runs.items()}
vio = {name: np.array([max_violation(r[1][-50:].sum(axis=0)) for r in group]) for name, group in runs.items()}
print(f"{'method':<24}{'task loss':>10}{'worst seed':>12}{'MaxVio':>9}{'idle of 8':>11}")
for name, group in runs.items():
    print(f"{name:<24}{final[name].mean():>10.4f}{final[name].max():>12.4f}", end="")
    print(f"{vio[name].mean():>9.3f}{np.mean([count_idle(r) for r in group]):>11.1f}")

# %%
means = {name: losses.mean() for name, losses in final.items()}
best = min(means, key=means.get)
assert means["none"] > 5 * means["loss-free"] > 5 * means[best]
title = f"Lowest loss: “{best}” with {means[best]:.4f}; loss-free {means['loss-free']:.4f}, none {means['none']:.3f}"
plot_methods(final, vio, title)

# %% [markdown]
# Small dots are seeds, diamonds their means. Read it honestly. Without balancing, experts starve and the task suffers.
# A loss that is too strong costs much of what was won: within a day it forbids the very specialisation that the topic
# asks for. A loss that is too weak leaves experts starving for hundreds of steps, in two seeds of five. And a loss of
# the right strength is better than loss-free *at this speed*. Is that the method, or the dial? Both have one; we turn
# both, in a moment.
#
# The paper on loss-free balancing (2408.15664, Table 2) compares at two sizes. With 1B parameters: perplexity 9.50
# against 9.56, MaxVio 0.04 against 0.72. With 3B: 7.92 against 7.97, and 0.04 against 0.52. Its balance loss has one
# strength, $\alpha = 0.001$, set as a compromise between loss and balance; what was tuned, at 1B, was the *speed* of
# the bias.
#
# ## The experiment: turning both dials
#
# The same runs with other speeds and other strengths, three seeds each (five where the caretaker is stopped). In
# perfect balance every bias still moves a notch up or down at each step, so tokens near a tie are sent to and fro; V3
# stops the caretaker for its last 500 billion tokens. We do that too.

# %%
dials = {f"speed {v:g}": (0.0, v, 600) for v in (0.0003, 0.001, 0.003, 0.01, 0.03)}
dials |= {f"α = {a:g}": (a, 0.0, 600) for a in (0.001, 0.003, 0.01, 0.03, 0.1)}
dials |= {f"speed 0.01, stopped at {stop}": (0.0, 0.01, stop) for stop in (450, 400)}
known = {(*settings, 600): name for name, settings in methods.items()}
turned = {}
for name, (alpha, speed, stop) in dials.items():
    have = known.get((alpha, speed, stop))
    group = runs[have][:3] if have else [train(seed, alpha, speed, stop) for seed in range(3 if stop == 600 else 5)]
    ends = np.array([(r[0][-50:].mean(), max_violation(r[1][-50:].sum(axis=0))) for r in group])
    turned[name] = ends[:, 0].mean()
    print(f"{name:<26} task loss {turned[name]:.5f}, worst seed {ends[:, 0].max():.5f}; ", end="")
    print(f"MaxVio {ends[:, 1].mean():.3f}, worst {ends[:, 1].max():.3f}")

# %%
assert max(turned["speed 0.001"], turned["α = 0.003"]) < 0.0005 < turned["speed 0.01"]
assert max(turned[f"speed {v:g}"] for v in (0.001, 0.003, 0.01, 0.03)) < 0.03 < turned["α = 0.03"]

# %% [markdown]
# Each at its best, both leave next to nothing, and nothing to choose between them. (So the order above was the dial.)
# What differs is how far off the dial may stand: speeds from 0.001 to 0.03, a factor of thirty, all end below 0.03;
# for the strength a factor of three, from 0.003 to 0.01, does. Too slow a caretaker fails like too weak a loss: he does
# not arrive within 600 steps. The remaining loss at higher speeds comes from his restlessness: stopped at the right
# time it vanishes. Stopped too early, before the router has settled, a run can lose its balance again: look at the
# worst seed of the last line.
#
# ## Load as a film strip
#
# Each strip is one run (seed 0): time to the right, one line for each expert, dark means busy.

# %%
strips = {}
for name, group in runs.items():
    strip = group[0][1].reshape(30, 20, E).sum(axis=1).T
    strips[f"{name}: MaxVio {vio[name][0]:.2f}"] = strip / strip.sum(axis=0)
starved = {name: count_idle(group[0]) for name, group in runs.items()}
title = f"Unbalanced, {starved['none']} of 8 experts starve; with the caretaker, {starved['loss-free']}"
plot_strips(strips, 600, title)

# %% [markdown]
# ## Did each doctor find a complaint?
#
# For each complaint (a line), the share of its patients who were sent to each doctor. A patient sees two doctors, one
# for each of his complaints, so the true doctor of a complaint reads 1 and the others a seventh.


# %%
def served_share(run):
    """Lines are complaints, columns doctors, sorted so that each complaint's favourite is on the diagonal if it can."""
    share = run[2] / run[2].sum(axis=1, keepdims=True) * A
    return share[:, np.argsort(share.argmax(axis=0), kind="stable")]


found = {name: [len(set(r[2].argmax(axis=1).tolist())) for r in group] for name, group in runs.items()}
tables = {f"{n}: {found[n][0]} of 8": served_share(runs[n][0]) for n in ("none", "loss, α = 0.1", "loss-free")}
n_true, n_false = (sum(n == 8 for n in found[name]) for name in ("loss-free", "none"))
title = f"With the caretaker, {n_true} of 5 seeds give each complaint a doctor of its own; without, {n_false}"
plot_served(tables, "complaint", title)

# %% [markdown]
# ## And on language?
#
# The report's appendix C shows that experts balanced by a bias specialise by domain, those balanced by a loss less.
# Small models, half stories and half Python, five seeds ([docs/studies.md](../docs/studies.md)). How far apart are the
# loads of the two texts? 0: every expert serves both alike; 1: no expert serves both.

# %%
names, title = {"auxiliary-loss": "a loss", "bias": "the bias"}, "With a bias, experts specialise by kind of text"
plot_study("study_balance", title, names, "apart", "how far apart the loads of both texts are")

# %% [markdown]
# And it is cheaper: bits per byte differ by -2.09 ± 0.38 %, seed by seed the same way. The report's own gain is 0.4 and
# 0.6 %, at 15.7 and 228.7 billion parameters.
#
# ## Why the bias must be kept in FP32
#
# An expert whom nobody visits: his bias should rise by 0.001 at each step, to 1 in a thousand steps. BF16 keeps 8
# significant bits (chapter 00), so its numbers lie 0.002 apart between 0.25 and 0.5, and 0.004 apart from there to 1.


# %%
def round_to_bf16(x):
    """Round to nearest even on the upper 16 bits of a float32."""
    bits = np.asarray(x, dtype=np.float32).view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)) << np.uint64(16)
    return rounded.astype(np.uint32).view(np.float32)


exact, stuck = [np.float32(0)], [np.float32(0)]
for _ in range(1000):
    exact.append(exact[-1] + np.float32(0.001))
    stuck.append(round_to_bf16(stuck[-1] + np.float32(0.001)))

# %%
first = int(np.argmax(np.array(stuck) == stuck[-1]))
assert stuck[-1] == stuck[first] < exact[-1]
title = f"In BF16 the bias sticks at {stuck[-1]:.3g} from step {first} on; in FP32 it goes on to {exact[-1]:.3f}"
plot_stuck(np.array(exact), np.array(stuck), title)

# %% [markdown]
# Why does BF16 *overtake* FP32 before it sticks? Between 0.25 and 0.5 the neighbours are 0.00195 apart, and 0.001 is a
# little more than half of that: each step is rounded up to a whole neighbour, nearly twice as far as it should go. From
# 0.5 on the neighbours are 0.0039 apart, 0.001 is less than half, and each step is rounded away.
#
# ## Change this, predict, run
#
# The cell trains the laboratory with `speed = 0.1`. Scores lie between 0 and 1. Predict the load of one expert over the
# steps, the MaxVio, and the task loss, compared with 0.01. Then try 0.001.
#
# <details><summary>Afterwards</summary>
#
# A step of 0.1 throws whole groups of patients from one doctor to another and back. The load of an expert swings at
# every step, although its *mean* may look even. The doctors see other patients all the time, and the task loss is far
# above that of 0.01. With 0.001 it is lower still, as the dials have shown. (The first draft of this answer said that
# 0.001 must be too slow, until the cell was run.)
#
# </details>

# %%
speed = 0.1
losses, loads, _ = train(0, 0.0, speed)
print(f"speed {speed}: loss {losses[-50:].mean():.4f} (0.01: {runs['loss-free'][0][0][-50:].mean():.4f})", end="; ")
print(f"MaxVio of single steps {np.mean([max_violation(load) for load in loads[-50:]]):.2f}", end=" ")
print(f"(0.01: {np.mean([max_violation(load) for load in runs['loss-free'][0][1][-50:]]):.2f})")
print("loads of expert 0 in the last steps:", loads[-10:, 0])

# %% [markdown]
# ## What you can now do
#
# Write the gate and the update of DeepSeek-V3's balancing; say why the bias has no gradient, when it moves and when it
# must not; set up a task that can tell whether a way of balancing helps. The experts are busy. Are they *good*, or do
# all of them learn the same common things? `fine_grained_experts` cuts them thin and takes the common things out.
#
# ## Exercises
#
# Graded: `move_bias`, `measure_violation` (`make check CH=03`). By thought alone:
#
# 1. An implementation adds the bias to the score before step 2 as well. Two experts have scores 0.6 and 0.2 and biases
#    $-0.3$ and $+0.3$. Which gates does it compute, and which are right?
#
# <details><summary>Solution</summary>
#
# It weighs with 0.3 and 0.5: gates 0.375 and 0.625. Right are 0.75 and 0.25. The favourite of the token has become the
# lesser voice, and worse, the caretaker now changes what the model computes.
#
# </details>
#
# 2. All biases get the same constant added. What changes? What if the counts are those of one device only?
#
# <details><summary>Solution</summary>
#
# Nothing changes: only differences matter, so some implementations subtract the mean. With the counts of one device
# each device would move its own copy of the bias its own way, and the copies would drift apart.
#
# </details>
#
# 3. Why the sign and not the shortfall itself?
#
# <details><summary>Solution</summary>
#
# At the start loads are far off, and a step in proportion would throw the biases about; later it would be tiny. The
# sign makes the speed one number that means the same throughout. The paper tried the proportional rule
# (`update_bias_in_proportion`): a little more even, but not a better model.
#
# </details>
