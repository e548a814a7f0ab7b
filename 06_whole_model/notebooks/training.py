# %% [markdown]
# # A training step
#
# **The question.** There is a loss, and a gradient for every tensor. What else has to happen, in which order, until the
# loss has fallen? And what goes wrong, silently, if the order is another?
#
# Picture a crew that moves a long ladder. One calls the direction (the gradient). One sees to it that nobody pulls too
# hard (clipping). One remembers where they have been heading (the moments of Adam), so that a single shout does not
# turn everybody round. And when the ladder stands, the caretaker of chapter 03 makes his round and moves the signs on
# the experts' doors. He comes last, and he works from what happened in *this* step.
#
# The notebook builds a step from these four, holds it equal to the module, weight for weight, and then shows what each
# of them is for by leaving it out.

# %%
import numpy as np
from architecture import BIAS, Config, init_model, trained_weights
from loss_free_balancing import max_violation, update_bias
from model import loss_backward, loss_forward
from small_language_model import VOCAB_SIZE, AdamW, draw_windows, read_topics
from training import Recipe, move_biases, take_step, train_model, unigram_entropy

from utils.plots_06 import plot_curves

# %% [markdown]
# ## Numbers to follow with a pencil
#
# **Clipping.** Two weights have the gradients 3 and 4. Taken together they are an arrow of length $\sqrt{9 + 16} = 5$.
# The longest that is allowed is 1, so both are divided by 5: 0.6 and 0.8. The *direction* stays.
#
# **Adam.** First step, gradient 0.6. Its memory of gradients starts at zero and goes a tenth of the way: 0.06. That of
# squares goes a twentieth: $0.05 \cdot 0.36 = 0.018$. Both are too small because they started at zero, by the known
# factors 0.1 and 0.05: corrected, 0.6 and 0.36. The step is $0.6/\sqrt{0.36} = 1$ times the learning rate, whatever the
# gradient was.
#
# **Decay.** The weight itself is 2. It is pulled towards zero by a tenth of itself, times the learning rate. With rate
# 0.01: $2 - 0.01 \cdot (1 + 0.1 \cdot 2) = 1.988$.

# %%
weight = {"w": np.array([[2.0, 0.0]])}
AdamW(weight).step({"w": np.array([[3.0, 4.0]])}, rate=0.01)
print("after one step:", weight["w"].round(6))

# %% [markdown]
# ## Build it: clip, and move by Adam
#
# All weights, gradients and moments are dictionaries with the same names (see `architecture`), so a step is a loop over
# names. The settings are V3's: 0.9 and 0.95, a decay of 0.1, a longest gradient of 1.


# %%
def clip(grads, longest=1.0):
    length = np.sqrt(sum((g**2).sum() for g in grads.values()))
    return {name: g * min(1.0, longest / length) for name, g in grads.items()}


def adamw(weights, grads, memory, step, rate):
    """In place; vectors (norms) are not decayed."""
    for name, w in weights.items():
        m, v = memory.setdefault(name, (np.zeros_like(w), np.zeros_like(w)))
        m += 0.1 * (grads[name] - m)
        v += 0.05 * (grads[name] ** 2 - v)
        direction = m / (1 - 0.9**step) / (np.sqrt(v / (1 - 0.95**step)) + 1e-8)
        w -= rate * (direction + (0.1 * w if w.ndim > 1 else 0))


# %% [markdown]
# ## Build it: the whole step


# %%
def naive_step(model, memory, step, windows, rate, speed=0.01):
    losses, cache = loss_forward(model, *windows, mtp_weight=0.3, alpha=1e-4)
    grads = loss_backward(cache)
    adamw(trained_weights(model.weights), clip(grads), memory, step, rate)
    for layer, load in losses.loads.items():  # the caretaker comes last
        bias = model.weights[f"model.layers.{layer}.mlp.gate.{BIAS}"]
        bias[:] = update_bias(bias, load, speed)
    return losses


# %%
text, config, rng = read_topics(), Config(initializer_range=0.12), np.random.default_rng(0)
ours, theirs = (init_model(np.random.default_rng(0), config) for _ in range(2))
optimizer, memory = AdamW(trained_weights(theirs.weights)), {}
for step in range(1, 4):
    windows = draw_windows(rng, text, 4, 34)
    naive_step(ours, memory, step, windows, rate=0.01)
    take_step(theirs, optimizer, windows, Recipe(), 0.01)
for name, array in theirs.weights.items():
    assert np.allclose(ours.weights[name], array, rtol=0, atol=1e-9), name
print(f"after three steps all {len(theirs.weights)} tensors agree, the biases among them")

# %% [markdown]
# ## The derivation
#
# 1. **Windows.** Texts are laid end to end and cut anywhere; a window of $S$ tokens has $S - 1$ questions. What
#    crosses from one document into the next does not count as a question (chapter 04).
# 2. **One loss,** so one gradient: main, further tokens, balance, added before anything goes backward (`model`).
# 3. **Clip the whole, not each part.** A common factor keeps the direction; clipping tensor by tensor would turn it.
# 4. **Adam, then decay,** each on its own (that is the W of AdamW): the decay must not go through the moments, or
#    weights with large gradients would hardly be decayed.
# 5. **The biases are no weights.** They are in no gradient and in no decay (`trained_weights` leaves them out), and
#    they move by the sign of each expert's shortfall, from the loads that *this* step counted with the biases *before*
#    the step.
# 6. **The rate** rises over the first 20 steps and then falls along a cosine to a tenth. At the start the moments know
#    little, and a full step in a chance direction does harm; at the end small steps settle.
#
# Does the caretaker have to come last? He reads loads that are already counted, so he could come before Adam as well.
# He must only not come *between* the forward pass and its gradient: then the experts that are blamed would be others
# than those that answered, if the layer were run again. Some frameworks do run it again, to save memory.
#
# ## The experiment: fifty steps
#
# The dashed line is what a guess pays that knows how frequent each character is, but not what came before.

# %%
recipe = Recipe(n_tokens=50)


def run(n_steps=50, **changes):
    model = init_model(np.random.default_rng(0), config, np.float32)
    settings = {**vars(recipe), **changes}
    return train_model(model, text, Recipe(**settings), n_steps=n_steps), model


# %%
history, _ = run()
entropy, last = unigram_entropy(text, VOCAB_SIZE), np.mean([s.main for s in history[-10:]])
assert last < entropy - 0.3
curves = {
    "next character (main model)": np.array([s.main for s in history]),
    "the one after (MTP module)": np.array([s.ahead for s in history]),
}
title = f"50 steps: {last:.2f} nats a character; knowing frequencies alone, {entropy:.2f}"
plot_curves(curves, ["content", "draft"], ("knowing frequencies alone", entropy), title, "nats a character")

# %% [markdown]
# The module looks further ahead and yet pays less. It is told the next character, and has one more layer; chapter 04
# takes that apart.
#
# ## The experiment: leave something out
#
# The same run three times: as it is; with the caretaker at home; with ten times the rate. Loss and MaxVio (chapter 03)
# of the last ten steps.

# %%
variants = {
    "as it is": {},
    "no caretaker": {"bias_speed": 0.0},
    "ten times the rate": {"rate": 10 * recipe.rate},
}
found = {name: history if name == "as it is" else run(**changes)[0] for name, changes in variants.items()}
for name, steps in found.items():
    ends = np.array([(s.main, s.violation, s.length) for s in steps[-10:]]).mean(axis=0)
    first = max(s.main for s in steps[:30])
    print(f"{name:<20} loss {ends[0]:.3f} (worst of the first 30: {first:.2f})  MaxVio {ends[1]:.2f}", end="  ")
    print(f"gradient {ends[2]:.2f}")
# %%
vio = {name: np.array([s.violation for s in found[name]]) for name in ("as it is", "no caretaker")}
ends = [values[-10:].mean() for values in vio.values()]
assert ends[0] < ends[1]
title = f"MaxVio after 50 steps: {ends[0]:.2f} with the caretaker, {ends[1]:.2f} without"
plot_curves(vio, ["routed", "ink"], None, title, "MaxVio, mean of the layers")

# %% [markdown]
# One seed and a small model, so small differences in the loss mean nothing here. What is large: without the caretaker
# the load drifts apart, which the loss does not show yet; and a rate ten times too high costs much, although every
# gradient is clipped. Clipping bounds the gradient, not the step: Adam divides it out again, as the pencil showed.
#
# ## Change this, predict, run
#
# In `naive_step`, the decay is 0.1 of each *matrix*. The cell decays the balancing biases too, by handing all weights
# to the optimiser instead of `trained_weights`. (They get a gradient of zero.) Predict: which way do the biases drift,
# and what does that do to the load?
#
# <details><summary>Afterwards</summary>
#
# Nothing happens! A bias is a vector, vectors are not decayed, and a gradient of zero moves nothing. Set `decay_all` to
# `True` as well: now each bias is pulled towards zero at every step, by $0.1 \cdot 0.01$ of itself. The caretaker moves
# by 0.01, so the pull is small as long as the biases are small; it grows with them, and a bias that ought to stand at 1
# would have to be pushed up again and again. In V3 the speed is 0.001 and the rate $2 \cdot 10^{-4}$.
#
# </details>

# %%
decay_all = False
model, memory, r = init_model(np.random.default_rng(0), config), {}, np.random.default_rng(1)
for step in range(1, 13):
    losses, cache = loss_forward(model, *draw_windows(r, text, 4, 34))
    grads = loss_backward(cache)
    everything = {name: grads.get(name, np.zeros_like(w)) for name, w in model.weights.items()}
    adamw(model.weights, clip(everything), memory, step, 0.01)
    if decay_all:
        for name in set(model.weights) - set(grads):
            model.weights[name] *= 1 - 0.1 * 0.01
    move_biases(model, losses.loads, 0.01)
bias = np.concatenate([w for name, w in model.weights.items() if name.endswith(BIAS)])
print(f"decay_all={decay_all}: largest bias {np.abs(bias).max():.4f}, mean {bias.mean():+.5f};", end=" ")
print(f"MaxVio {np.mean([max_violation(load) for load in losses.loads.values()]):.2f}")

# %% [markdown]
# ## What you can now do
#
# Write a training step from an empty page and prove, weight by weight, that it is the module's; say what each part is
# for, and which of them is no weight; read a curve of MaxVio beside the loss. Next: `generation`, where the model
# writes, and `checkpoint`, where it leaves the house.
#
# ## Exercises
#
# Graded: `clip_gradients`, `turn_thermostats` (`make check CH=06`). By thought alone:
#
# 1. A run on two machines clips on each machine by the length of *its* gradient, then averages. What is wrong?
#
# <details><summary>Solution</summary>
#
# The direction changes: a machine with a long gradient is scaled down more than its neighbour. The length must be that
# of the averaged gradient, so average first.
#
# </details>
#
# 2. Why can a gradient of twice the size change nothing at all in Adam's steps?
#
# <details><summary>Solution</summary>
#
# If all gradients are twice as large, so is the memory $m$, and so is $\sqrt v$: the quotient is the same. Only a
# *change* of size is felt, for a while. Clipping at every step to the same length has therefore little effect; clipping
# now and then protects the memory from a single bad step.
#
# </details>
