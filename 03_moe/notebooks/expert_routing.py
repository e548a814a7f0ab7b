# %% [markdown]
# # Expert routing
#
# **The question.** A clinic has 256 doctors, and a patient sees eight of them. At the reception somebody looks at each
# patient for a moment and decides which eight. How does she *learn* to decide? Nobody ever tells her which doctor would
# have been the right one. All she hears, afterwards, is how the patients are.
#
# In a **mixture of experts** the patient is a token and a doctor is an **expert**: a small network like the SwiGLU of
# chapter 01. The reception is the **router**, one matrix with a row for each expert. Only the chosen experts work, so a
# model can own 671 billion weights and use 37 billion of them for a token.
#
# The trouble is that a choice is a step. Change the reception's opinion a little, and the same doctors are called;
# change it a little more, and suddenly another one is. Steps have no slope, and descent (chapter 00) needs slopes.
#
# The way out: choose by the scores, and then *listen* by the scores too. The answers of the chosen experts are mixed,
# and the higher an expert's score, the more his answer counts. The choice stays a step. But the weight of an answer is
# smooth, and through it the outcome reaches the reception. At the end of this notebook a reception that knows nothing
# has learned from outcomes alone whom to call, and another, with one small change, has learned nothing whatever.

# %%
import warnings

import numpy as np
from expert_routing import (
    choose_top_experts,
    count_load,
    normalize_gates_backward,
    normalize_gates_forward,
    sigmoid_gate_backward,
    sigmoid_gate_forward,
    sigmoid_scores_forward,
    softmax_gate_backward,
    softmax_gate_forward,
)

# %%
from utils.clinic_task import train_reception
from utils.drawings_03 import draw_reception
from utils.gradient_check import central_difference, relative_error
from utils.plots_03 import plot_heard, plot_learning
from utils.whiteboard import tint

# %% [markdown]
# ## Numbers to follow with a pencil
#
# One token, four experts, two of them activated. The router's four rows times the token give the **logits** $\ln 4$,
# $\ln 2$, $0$ and $0$.
#
# 1. **Score.** A *sigmoid* asks each expert by itself: $s = 1/(1 + e^{-l})$, and with $e^{-l} = \tfrac14, \tfrac12, 1,
#    1$ that is $\tfrac45, \tfrac23, \tfrac12, \tfrac12$. (A *softmax* lets them compete: $e^l$ is $4, 2, 1, 1$, of
#    $8$ in all: $\tfrac12, \tfrac14, \tfrac18, \tfrac18$.)
# 2. **Choose** the two largest: experts 0 and 1.
# 3. **Weigh.** $\tfrac45 + \tfrac23 = \tfrac{22}{15}$, so the **gates** are $\tfrac45 / \tfrac{22}{15} = \tfrac{6}{11}$
#    and $\tfrac{5}{11}$.
# 4. **Mix.** Expert 0 answers $3$, expert 1 answers $-1$. The output is $\tfrac{6}{11} \cdot 3 - \tfrac{5}{11} =
#    \tfrac{13}{11}$.
#
# Now back. The loss grows by 1 for each unit of output.
#
# 5. A unit more of gate 0 would bring 3, a unit more of gate 1 would bring $-1$: $dg = (3, -1)$.
# 6. Gates sum to one: more of one is less of the other. On average a unit was worth $\tfrac{13}{11}$, and only the
#    difference counts. $ds_0 = (3 - \tfrac{13}{11}) / \tfrac{22}{15} = 1.240$, and $ds_1 = (-1 - \tfrac{13}{11}) /
#    \tfrac{22}{15} = -1.488$.
# 7. A sigmoid has the slope $s(1 - s)$: $dl_0 = 1.240 \cdot \tfrac{4}{25} = 0.198$, $dl_1 = -1.488 \cdot \tfrac29 =
#    -0.331$. Experts 2 and 3 hear nothing.

# %%
logits, answers = np.log([[4.0, 2.0, 1.0, 1.0]]), np.array([[3.0, -1.0]])
score, _ = sigmoid_scores_forward(logits)
chosen = choose_top_experts(score, 2)
gate, cache = normalize_gates_forward(np.take_along_axis(score, chosen, axis=1))
dpicked = normalize_gates_backward(answers, cache)
print(f"scores {score[0].round(3)}, experts {chosen[0]}, gates times 11: {11 * gate[0]}, output times 11:", end=" ")
slope = (score * (1 - score))[:, :2]
print(f"{11 * (gate * answers).sum():.0f}\nback: ds {dpicked[0].round(3)}, dl {(dpicked * slope)[0].round(3)}")

# %% [markdown]
# ## Build it: one token
#
# Letters: $N$ tokens of width $D$, $E$ experts, $A$ of them activated. First one token, step by step as above.


# %%
def route_one(x, router, A):
    """One token [D] meets a router [E, D]: the chosen experts, best first, and their gates."""
    score = [1 / (1 + np.exp(-(row @ x))) for row in router]
    chosen = sorted(range(len(score)), key=lambda e: -score[e])[:A]
    total = sum(score[e] for e in chosen)
    return chosen, [score[e] / total for e in chosen]


# %%
rng = np.random.default_rng(3)
x, router = rng.normal(size=(6, 4)), rng.normal(size=(5, 4))
routing, cache = sigmoid_gate_forward(x, router, 2)
for n, (index, gate) in enumerate(zip(*routing)):
    chosen, gates = route_one(x[n], router, 2)
    assert list(index) == chosen
    assert np.allclose(gate, gates, rtol=0, atol=1e-15)
print("naive and module agree on", len(x), "tokens")

# %% [markdown]
# Six tokens on their way. The thickness of a line is the gate.

# %%
load = count_load(routing.index_NA, 5)
title = f"12 visits, and already the busiest expert has {load.max()}, the idlest {load.min()}"
draw_reception(*routing, load, title)

# %% [markdown]
# ## The derivation
#
# 1. **Score.** Each expert has a row $e_i$ in the router; its logit is $l_i = x \cdot e_i$. Softmax: $s_i = e^{l_i} /
#    \sum_j e^{l_j}$ (Switch, DeepSeek-V2). Sigmoid: $s_i = 1/(1 + e^{-l_i})$ (DeepSeek-V3, Eq. 15).
# 2. **Choose.** $\mathcal T$ is the set of the $A$ largest (Eq. 14). It is constant almost everywhere, so it has no
#    slope, and we go on as if it were given.
# 3. **Weigh.** Either by the plain score, $g_i = s_i$ (V2), or *normalised*, $g_i = s_i / \Sigma$, where $\Sigma =
#    \sum_{j \in \mathcal T} s_j$ is the sum of the chosen scores (V3, Eq. 13).
# 4. **Mix.** $y = \sum_{i \in \mathcal T} g_i\, y_i$, where $y_i$ is what expert $i$ makes of $x$.
# 5. **Back to the gate.** $dg_i = y_i \cdot dy$: what a unit more of this answer would have cost.
# 6. **Back through the normalisation.** $s_i$ stands in the numerator of its own gate and in the denominator of *every*
#    gate of the token: $\partial g_j / \partial s_i = ([i = j] - g_j) / \Sigma$, where $[i = j]$ is 1 if $i$ is $j$,
#    else 0. Summed over $j$:
#    $$ds_i = \frac{1}{\Sigma}\Big(dg_i - \sum_{j\in\mathcal T} g_j\, dg_j\Big), \qquad i \in \mathcal T.$$
#    Only the difference from the token's *average* answer teaches. A pull on all gates alike does nothing.
# 7. **Back through the score.** Sigmoid: $dl_i = ds_i\, s_i (1 - s_i)$, zero for those not chosen. Softmax: $dl_i =
#    s_i (ds_i - \sum_j s_j ds_j)$ (chapter 00), which is not zero for those not chosen.
# 8. **Back to the row and the token.** A product hands each factor the other one: $de_i = \sum_n dl_{ni}\, x_n$ and
#    $dx_n = \sum_i dl_{ni}\, e_i$.
#
# Steps 6 to 8 for one token, then added up over all:


# %%
def naive_backward(dgate, x, router, A):
    """One token: from the slopes of its gates [A] to those of its logits [E]."""
    chosen, gates = route_one(x, router, A)
    score = 1 / (1 + np.exp(-router @ x))
    mean = sum(g * dg for g, dg in zip(gates, dgate))
    dlogit = np.zeros(len(router))
    for e, dg in zip(chosen, dgate):
        dlogit[e] = (dg - mean) / score[chosen].sum() * score[e] * (1 - score[e])
    return dlogit


# %%
dgate = rng.normal(size=(6, 2))
dx, drouter = sigmoid_gate_backward(dgate, cache)
dlogit = np.array([naive_backward(d, row, router, 2) for d, row in zip(dgate, x)])
assert np.allclose(drouter, dlogit.T @ x, rtol=0, atol=1e-14)
assert np.allclose(dx, dlogit @ router, rtol=0, atol=1e-14)
by_trying = central_difference(lambda: np.sum(dgate * sigmoid_gate_forward(x, router, 2)[0].gate_NA), router)
print("central differences agree too:", relative_error(drouter, by_trying) < 1e-8)

# %% [markdown]
# ## The experiment: can a reception learn from outcomes?
#
# The clinic: eight complaints, eight doctors, each of whom treats one complaint perfectly. Every patient has *two*
# complaints, and the right outcome is the mean of the two treatments. The router sees the patient's eight numbers and
# the complaints, sends him to two doctors, and gets nothing back but the slope of the error. It starts from random
# numbers. How often is a chosen doctor one who is needed? Guessing finds him two times of eight.
#
# Four receptions: the sigmoid and the softmax above, and two that look as reasonable: one that counts both answers
# alike ($g = \tfrac12$), and one that calls a single doctor and normalises.


# %%
def alike_forward(seen, router):
    (index, gate), cache = sigmoid_gate_forward(seen, router, 2)
    return (index, np.full_like(gate, 0.5)), cache


def alike_backward(dgate, cache):
    """The gates are constants: whatever they are worth, nothing arrives."""
    return sigmoid_gate_backward(0 * dgate, cache)


# %%
def one_doctor(seen, router):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the module warns of this; here it is the point
        return sigmoid_gate_forward(seen, router, 1)


# %%
receptions = {
    "sigmoid, normalised (V3)": (lambda seen, w: sigmoid_gate_forward(seen, w, 2), sigmoid_gate_backward),
    "softmax, plain (V2)": (lambda seen, w: softmax_gate_forward(seen, w, 2), softmax_gate_backward),
    "both answers alike": (alike_forward, alike_backward),
    "one doctor, normalised": (one_doctor, sigmoid_gate_backward),
}
runs = {name: [train_reception(*way, seed=s, steps=200) for s in range(2)] for name, way in receptions.items()}
right = {name: np.mean([r[1] for r in group], axis=0) for name, group in runs.items()}

# %%
end = {name: r[-50:].mean() for name, r in right.items()}
for name, group in runs.items():
    print(f"{name:26} right doctors {end[name]:.0%}, seeds from", end=" ")
    print(f"{min(r[1][-50:].mean() for r in group):.0%} to {max(r[1][-50:].mean() for r in group):.0%}")
v3, alike = end["sigmoid, normalised (V3)"], end["both answers alike"]
assert v3 > 0.6 > 0.35 > alike
title = f"From outcomes alone: {v3:.0%} of the doctors are right with gates, {alike:.0%} without"
plot_learning(right, ["routed", tint("routed", 0.45), "ink", "wrong"], 0.25, title, "chosen doctors who were needed, %")

# %% [markdown]
# Nobody ever named the right doctor, and yet the reception finds him. The two flat lines are not slow: *nothing*
# arrives there. Counted alike, the gates are constants. With one doctor and normalising, the gate is $s/s = 1$, a
# constant too. The module warns of it.
#
# ## The experiment: who hears of an outcome?
#
# One token, eight experts, three chosen; the same pull on the gates. Which logits get a gradient?

# %%
x_one, router_one = np.eye(8)[:1], np.diag(np.ones(8))  # the token reads column 0: the gradient there is the logit's
router_one[:, 0] = rng.normal(size=8)
pull = np.array([[1.0, -0.5, 0.2]])
chosen, cache = sigmoid_gate_forward(x_one, router_one, 3)
heard = {
    "softmax, plain gates": softmax_gate_backward(pull, softmax_gate_forward(x_one, router_one, 3)[1])[1][:, 0],
    "sigmoid, normalised gates": sigmoid_gate_backward(pull, cache)[1][:, 0],
}
silent = np.setdiff1d(np.arange(8), chosen.index_NA)
n_soft, n_sig = (int((np.abs(h[silent]) > 1e-12).sum()) for h in heard.values())
title = f"Of 5 experts not chosen, {n_soft} hear of the outcome under softmax, {n_sig} under sigmoid"
plot_heard(heard, chosen.index_NA[0], title)

# %% [markdown]
# Under a softmax an expert who was not chosen is still pushed: his score is in everybody's denominator. Under the
# sigmoid he stays exactly where he is, neither pushed away nor called back. Whatever calls back an expert that nobody
# visits must come from somewhere else than the task. That is what `load_balancing` and `loss_free_balancing` are about.
#
# ## Change this, predict, run
#
# The cell trains the V3 reception with `n_called = 3` doctors for each patient, although he needs two. Predict: will
# more of the needed doctors be found, or fewer? (With three called, guessing is right with the same quarter of the
# calls, and at best two thirds can be.) And what will the three gates become: a third each? Then set it to 4.
#
# <details><summary>Afterwards</summary>
#
# The share of right calls is close to its bound of two thirds: nearly every needed doctor is called. The third doctor
# is called because he must be, and the gates learn to ignore him: his gate is small, though a sigmoid cannot say zero.
# The loss is not zero for that reason. More calls also mean that more doctors are tried out at every step, which is how
# a router that hears only of those whom it called gets to know the others.
#
# </details>

# %%
n_called = 3
losses, right_now, learned = train_reception(
    lambda seen, w: sigmoid_gate_forward(seen, w, n_called), sigmoid_gate_backward
)
print(f"{n_called} called: {right_now[-50:].mean():.0%} of the calls were needed, at best {2 / n_called:.0%};", end=" ")
print(f"loss {losses[-50:].mean():.4f}, with two {runs['sigmoid, normalised (V3)'][0][0][-50:].mean():.4f}")
two_complaints = np.eye(8)[:1] + np.eye(8)[1:2]
rows = np.concatenate(
    [np.zeros((1, 8)), two_complaints, np.zeros((1, 1))], axis=1
)  # numbers, complaints, what all share
gates = sigmoid_gate_forward(rows, learned, n_called)[0].gate_NA[0]
print("gates of a patient with complaints 0 and 1:", gates.round(3))

# %% [markdown]
# ## What you can now do
#
# Write a router, forward and backward, from an empty page; say through which number the task reaches it, and why one
# expert with a normalised gate learns nothing; read off whether an expert that was not chosen hears of the outcome.
# Next, `classic_moe`: the patients have been sent, and now they stand in the corridor. Some doors have a queue.
#
# ## Exercises
#
# Graded: `teach_router`, `router_backward`, `softmax_router_backward` (`make check CH=03`). By thought alone:
#
# 1. A token has scores 0.8, 0.6, 0.1 and two are activated. Normalised gates? Which of the three logits can move?
#
# <details><summary>Solution</summary>
#
# $0.8/1.4 = 0.571$ and $0.6/1.4 = 0.429$. Logits 0 and 1 move (in opposite directions); logit 2 does not: it was not
# chosen, and a sigmoid has no denominator that would connect it.
#
# </details>
#
# 2. Show that with normalised gates $\sum_{i\in\mathcal T} s_i\, ds_i = 0$. What does it mean? (Try it on the pencil
#    numbers: $0.8 \cdot 1.240 = 0.667 \cdot 1.488$.)
#
# <details><summary>Solution</summary>
#
# $\sum_i s_i ds_i = \frac{1}{\Sigma}\left(\sum_i s_i dg_i - \sum_i s_i \sum_j g_j dg_j\right)$, and $\sum_i s_i =
# \Sigma$, $s_i = \Sigma g_i$, so both terms are $\sum_i g_i dg_i$. Scaling all chosen scores of a token together
# changes no gate, so the loss cannot ask for it: the *level* of the scores is free, only ratios are learned.
#
# </details>
#
# 3. Switch uses one expert and a softmax, without normalising. Why is that not silent?
#
# <details><summary>Solution</summary>
#
# Its gate is the plain probability of the winner $w$, below 1 and smooth. $dl_i = s_i([i = w] - s_w)\,ds_w$ reaches all
# experts. Normalising over the chosen one alone is what silences it.
#
# </details>
