# %% [markdown]
# # The classic mixture of experts
#
# **The question.** The reception has decided, and the patients stand in the corridor. Behind the doors the machines
# want order: a processor multiplies whole rectangles of numbers, so every expert should get the same number of rows.
# But one doctor is popular and has a queue, another has nobody. Who waits, and who is sent home?
#
# The first large mixtures (GShard, Switch) put the same number of chairs before every door. Who finds a chair is
# served. Who comes when all are taken is **dropped**: the layer adds nothing for this choice, and the token goes on
# with what the residual stream (chapter 01) carries anyway. This notebook builds that layer, measures what dropping
# costs a layer that learns, and looks at the two ends of the scale: doctors who choose their patients, and lots.

# %%
import numpy as np
from classic_moe import (
    ClassicMoE,
    assign_places,
    classic_moe_backward,
    classic_moe_forward,
    dispatch_combine_backward,
    dispatch_combine_forward,
    dropped_share,
    expert_choice_forward,
    expert_places,
    route_by_hash,
    route_uniformly,
)
from expert_routing import count_load, softmax_gate_forward

# %%
from utils.clinic_task import adjust_weights, draw_patients, open_clinic
from utils.drawings_03 import draw_places
from utils.gradient_check import central_difference, relative_error
from utils.plots_03 import plot_dropped, plot_loads

# %% [markdown]
# ## Numbers to follow with a pencil
#
# Six tokens, three experts, two activated. That makes 12 choices; shared fairly, 4 for each expert. So there are
# $P = 4$ **places** before each door. The choices, first and second:
#
# | token | 0 | 1 | 2 | 3 | 4 | 5 |
# |---|---|---|---|---|---|---|
# | first | 0 | 0 | 0 | 1 | 0 | 2 |
# | second | 1 | 2 | 1 | 0 | 2 | 0 |
#
# All first choices are seated before any second one, in the order of the tokens. Expert 0 seats tokens 0, 1, 2 and 4
# and is full. Expert 1 seats token 3, expert 2 token 5. Now the second choices: tokens 0 and 2 sit down at expert 1,
# tokens 1 and 4 at expert 2. Tokens 3 and 5 come to expert 0 and are turned away: 2 of 12 choices, and with them their
# gates. Meanwhile expert 1 and expert 2 have one free chair each, which is computed all the same.

# %%
index = np.array([[0, 1], [0, 2], [0, 1], [1, 0], [0, 2], [2, 0]])
places = expert_places(n_tokens=6, n_experts=3, n_activated=2, capacity_factor=1.0)
place = assign_places(index, 3, places)
draw_places(index, place, places, f"{places} places each: {(place < 0).sum()} of 12 choices are turned away")

# %% [markdown]
# ## Build it: the corridor
#
# Two loops, in the order in which people are seated. `-1` means no place.


# %%
def seat(choices, n_experts, P):
    """Choices [N, A] -> the place of each of them at its expert."""
    taken, place = [0] * n_experts, np.full(choices.shape, -1)
    for rank in range(choices.shape[1]):  # first choices, then second choices
        for n in range(len(choices)):
            e = choices[n, rank]
            if taken[e] < P:
                place[n, rank] = taken[e]
            taken[e] += 1
    return place


# %%
rng = np.random.default_rng(0)
many = np.array([rng.choice(5, 2, replace=False) for _ in range(40)])
for P in (1, 7, 16, 40):
    assert np.array_equal(seat(many, 5, P), assign_places(many, 5, P))
print("naive and module seat 80 choices alike, with 1, 7, 16 and 40 places")

# %% [markdown]
# ## Build it: behind the doors
#
# An expert here is two matrices with a ReLU between them: $\mathrm{FFN}(x) = W^{down}\,\mathrm{relu}(W^{up} x)$. Who
# has a place is answered, and the answer counts with its gate.


# %%
def naive_layer(x, w, choices, gates, place):
    """Tokens [N, D] in, what the experts add [N, D] out."""
    y = np.zeros_like(x)
    for n, a in zip(*np.nonzero(place >= 0)):
        e = choices[n, a]
        y[n] += gates[n, a] * w.down_proj[e] @ np.maximum(w.up_proj[e] @ x[n], 0)
    return y


# %%
x, w = rng.normal(size=(40, 6)), ClassicMoE.init(rng, 5, 6, 8)
(index, gate), _ = softmax_gate_forward(x, w.weight, 2)
for P in (7, 40):
    y, cache = dispatch_combine_forward(x, index, gate, w, P)
    assert np.allclose(y, naive_layer(x, w, index, gate, seat(index, 5, P)), rtol=0, atol=1e-14)
    print(f"{P} places: naive and module agree; {dropped_share(index, 5, P):.0%} of the choices turned away")

# %% [markdown]
# The module does the same without a loop over tokens: it copies each seated token to its chair, a buffer of shape
# $[E, P, D]$, runs all experts in one batched product, and reads the answers back. That rectangle is the whole point of
# the chairs.
#
# ## The derivation
#
# 1. **Places.** Shared fairly, an expert gets $N A / E$ choices. $P = \lceil c\, N A / E \rceil$ leaves room by a
#    factor $c$, the **capacity factor**.
# 2. **Dispatch.** Copy token $n$ to place $p$ of expert $e$: $b_{ep} = x_n$.
# 3. **Experts.** $o_{ep} = W^{down}_e\,\mathrm{relu}(W^{up}_e\, b_{ep})$.
# 4. **Combine.** $y_n = \sum_a g_{na}\, o_{e(n,a)\,p(n,a)}$, over the choices that found a place.
# 5. **Back through the sum.** $dg_{na} = o_{ep} \cdot dy_n$ and $do_{ep} = g_{na}\, dy_n$. A choice without a place
#    appears in no sum, so both are zero: the router is never told that the expert was full, nor that he would have had
#    a good answer.
# 6. **Back through the expert.** With $h = \mathrm{relu}(W^{up} b)$: $dh = (W^{down\,\top} do)$ where $h > 0$, else
#    0; $dW^{down} = do\, h^\top$, $\;dW^{up} = dh\, b^\top$, $\;db = W^{up\,\top} dh$.
# 7. **Back through the copy.** A token that was copied to several experts gets all their $db$, added up.
#
# Steps 5 to 7, one choice at a time:


# %%
def naive_backward(dy, x, w, choices, gates, place):
    dx, dgate, dup, ddown = (np.zeros_like(a) for a in (x, gates, w.up_proj, w.down_proj))
    for n, a in zip(*np.nonzero(place >= 0)):
        e, do = choices[n, a], gates[n, a] * dy[n]
        h = np.maximum(w.up_proj[e] @ x[n], 0)
        dgate[n, a] = (w.down_proj[e] @ h) @ dy[n]
        dh = (w.down_proj[e].T @ do) * (h > 0)
        dx[n] += w.up_proj[e].T @ dh
        dup[e] += np.outer(dh, x[n])
        ddown[e] += np.outer(do, h)
    return dx, dgate, dup, ddown


# %%
dy = rng.normal(size=x.shape)
_, cache = dispatch_combine_forward(x, index, gate, w, 7)
theirs, ours = dispatch_combine_backward(dy, cache), naive_backward(dy, x, w, index, gate, seat(index, 5, 7))
for got, want in zip(theirs, ours):
    assert np.allclose(got, want, rtol=0, atol=1e-13)
by_trying = central_difference(lambda: np.sum(dy * dispatch_combine_forward(x, index, gate, w, 7)[0]), w.up_proj)
print("naive, module and central differences agree:", relative_error(theirs[2], by_trying) < 1e-7)

# %% [markdown]
# ## The experiment: how much room is enough?
#
# Hidden states have much in common: a direction that all of them share. A router that has not learned to look past it
# sends everybody the same way. We give random tokens more and more of a common direction and count who is turned away.

# %%
factors = np.linspace(0.5, 4, 29)
w = ClassicMoE.init(np.random.default_rng(0), 6, 8, 16)
curves = {}
for common in (0.0, 1.0, 3.0):
    tokens = rng.normal(size=(2048, 8)) + common * np.ones(8) / 8**0.5
    (index, _), _ = softmax_gate_forward(tokens, w.weight, 2)
    curves[f"common direction {common:g}"] = [dropped_share(index, 6, expert_places(2048, 6, 2, c)) for c in factors]
least, _, most = (np.interp(1.25, factors, curve) for curve in curves.values())
assert least < most
plot_dropped(factors, curves, 1.25, f"At c = 1.25, skew takes those turned away from {least:.0%} to {most:.0%}")

# %% [markdown]
# Room is no cure. With $c = 4$ nobody is turned away, and three quarters of what is computed are empty chairs.
#
# ## The experiment: what does it cost to be turned away?
#
# The clinic of the last notebook: eight complaints, every patient has two. Now *everything* learns, the router and the
# experts, by the gradients above. We train with much room and with little, and then look at each patient by himself:
# how wrong is his answer, if none, one, or both of his choices were turned away? (Patients have something in common
# here, as hidden states do. The experts are two layers with ReLU, which get the same row as the router.)


# %%
def train(c, seed, common=2.0, steps=300):
    """Of every patient of the last 50 steps: how many choices he lost [n], and his error [n]."""
    rng, skills, _ = open_clinic(seed)
    w, moments, lost, wrong = ClassicMoE.init(rng, 8, 17, 16), [], [], []
    for step in range(1, steps + 1):
        patients = draw_patients(rng, skills, common)
        y, cache = classic_moe_forward(patients.seen, w, 2, c)
        error = np.zeros_like(y)
        error[:, :8] = y[:, :8] - patients.target_ND
        grads = classic_moe_backward(2 * error / patients.target_ND.size, cache)[1]
        adjust_weights(list(vars(w).values()), list(vars(grads).values()), moments, step)
        lost.append((cache[1][1] < 0).sum(axis=1))
        wrong.append((error**2).mean(axis=1) * 17 / 8 / 0.5)  # 8 of the 17 numbers count; their variance is 0.5
    return np.concatenate(lost[-50:]), np.concatenate(wrong[-50:])


# %%
paid = {}
for c in (1.0, 8.0):
    lost, wrong = (np.concatenate(parts) for parts in zip(*(train(c, seed) for seed in range(2))))
    paid[c] = [wrong[lost == n].mean() if (lost == n).any() else np.nan for n in range(3)]
    print(f"c = {c:g}: error {wrong.mean():.3f}", end="")
    for n, name in enumerate(("none", "one", "both")):
        if (lost == n).any():
            print(f";  {name} lost: {(lost == n).mean():.1%} of the patients, error {paid[c][n]:.2f}", end="")
    print()
assert paid[1.0][0] < paid[1.0][1] < paid[1.0][2]

# %% [markdown]
# (An error of 1 means as wrong as no answer at all.) Who loses one choice is about twice as wrong as who is served by
# both; who loses both is left with nothing. For the *layer* this is no catastrophe: over all patients the error with
# $c = 1$ is only a little above that of $c = 8$, because those who are served may even be served better. But it is not
# fair, and not steady: who is turned away depends on who else is there, so the same token may be served in one batch
# and dropped in the next. DeepSeek-V3 drops nobody, in training or in use (report, 2.1.2); it keeps the queues short
# instead. How, is the matter of the next two notebooks.
#
# ## The two ends of the scale
#
# *Doctors choose.* Each takes the $P$ tokens that he scores highest. All loads are equal, and nobody needs a chair
# rule. *Nobody chooses.* A fixed number made from the token (a *hash*) decides for ever; there is nothing to learn and
# nothing to go wrong.

# %%
tokens = rng.normal(size=(2048, 8)) + np.ones(8) / 8**0.5
words = np.random.default_rng(1).zipf(1.3, size=2048)  # a few words are very frequent, as in text
loads = {
    "tokens choose": count_load(softmax_gate_forward(tokens, w.weight, 2)[0].index_NA, 6),
    "experts choose": np.full(6, expert_choice_forward(tokens, w, 683)[1][2].shape[1]),  # 2 · 2048 / 6 = 683 each
    "a hash of the word": count_load(route_by_hash(words, 6, 2), 6),
    "dealt like cards": count_load(route_uniformly(2048, 6, 2), 6),
}
worst = {name: load.max() / load.mean() - 1 for name, load in loads.items()}
assert worst["a hash of the word"] > 0.05 > worst["dealt like cards"]
plot_loads(loads, "Only choosing experts and dealing are even: a hash is not, for words are not", relative=True)

# %% [markdown]
# So let the doctors choose? Change the last tokens of a text, and look at the output of the first ones.

# %%
text = rng.normal(size=(32, 8))
changed = text.copy()
changed[20:] = 2 * rng.normal(size=(12, 8))
for name, run in (
    ("experts choose", lambda x: expert_choice_forward(x, w, 8)[0]),
    ("tokens choose", lambda x: classic_moe_forward(x, w, 2, 6.0)[0]),
):
    moved = np.abs(run(text) - run(changed))[:20].max(axis=1) > 1e-9
    print(f"{name}: of the 20 tokens before the change, {moved.sum()} got another output")

# %% [markdown]
# Whether *I* am taken depends on who comes after me. An encoder may do this. A language model may not: in training it
# could read the future (chapter 01 shows what that does to a loss), and when it writes, the future is not there. So
# tokens choose, and the load has to be balanced by other means.
#
# ## Change this, predict, run
#
# The cell seats the choices token by token instead of rank by rank: token 0's first and second choice, then token 1's,
# and so on. Predict with the table above: who is turned away now, and is it still 2? Which sort of choice is lost that
# was not lost before? Then look at what that costs: the gates of the lost choices, added up.
#
# <details><summary>Afterwards</summary>
#
# Expert 0 now seats tokens 0, 1, 2 (first choices) and then token 3, whose *second* choice it is. Token 4, who has
# expert 0 as its *first* choice, is turned away. As many are lost, but dearer ones: first choices have the larger
# gates. That is why GShard seats rank by rank.
#
# </details>

# %%
rank_by_rank = False
queue = (index_six := np.array([[0, 1], [0, 2], [0, 1], [1, 0], [0, 2], [2, 0]])).ravel()
arrived = [list(queue[:i]).count(e) for i, e in enumerate(queue)]  # how many stood there before me
place = assign_places(index_six, 3, 4) if rank_by_rank else np.where(np.array(arrived) < 4, arrived, -1).reshape(6, 2)
for n, a in zip(*np.nonzero(place < 0)):
    print(f"token {n} loses its {('first', 'second')[a]} choice, expert {index_six[n, a]}")
gates = np.array([[0.6, 0.4]] * 6)
print(f"gates lost, if a first choice counts 0.6 and a second 0.4: {gates[place < 0].sum():.1f}")

# %% [markdown]
# ## What you can now do
#
# Write dispatch and combine, forward and backward, with places that may run out; say what a capacity factor buys and
# what it wastes; say why experts cannot choose in a language model. Next, `load_balancing`: asking the router to keep
# the queues short, in the only language that training understands.
#
# ## Exercises
#
# Graded: `seat_choices`, `relu_expert_backward`, `combine_backward`, `expert_choice_backward` (`make check CH=03`). By
# thought alone:
#
# 1. 1024 tokens, 16 experts, 2 activated, capacity factor 1.25. How many places, and what share of the computed places
#    is empty if no token is dropped?
#
# <details><summary>Solution</summary>
#
# $\lceil 1.25 \cdot 2048 / 16 \rceil = 160$ places; $16 \cdot 160 = 2560$ are computed for 2048 choices: 20 % are
# empty.
#
# </details>
#
# 2. In the module's code, `place` is $-1$ for a dropped choice. What would go wrong without the multiplication by
#    `kept_NA`?
#
# <details><summary>Solution</summary>
#
# Index $-1$ is the *last* place of the expert: the dropped token would receive another token's answer. No error, no
# NaN, only a model that is a little worse. It is one of the planted mistakes of this chapter (`bugs.toml`).
#
# </details>
#
# 3. Two batches hold the same sentence among different neighbours. Can the model's output for that sentence differ,
#    although no token looks at another sentence?
#
# <details><summary>Solution</summary>
#
# Yes: the neighbours fill the chairs. With a capacity, what a token gets depends on everybody in the batch. An answer
# that changes with the server's load is hard to debug; it is one more reason to drop nobody.
#
# </details>
