# %% [markdown]
# # Load balancing by a loss
#
# **The question.** The more patients a doctor sees, the better he gets. The better he gets, the more the reception
# sends him. Left alone, a few doctors do all the work and the rest never learn. How can we ask for balance in the only
# language that training understands: a number that should be small, with a slope?
#
# The difficulty: a load is a *count*, and counts have no slope. The reception's opinion may move a little, and nobody
# goes elsewhere.
#
# The trick: multiply each doctor's count by his mean score. The count says *how hard* to push, the score is *what is
# pushed*, for it is smooth. Whoever is too busy has his score pushed down, everywhere a little, until the first
# patients go next door. This notebook builds that loss as DeepSeek-V3 writes it, watches it empty a queue, and then
# asks for the bill: what does it cost when the uneven load was the *right* one?

# %%
import numpy as np
from expert_routing import choose_top_experts, count_load, sigmoid, sigmoid_gate_backward, sigmoid_gate_forward
from load_balancing import (
    communication_balance_forward,
    device_balance_forward,
    expert_balance_forward,
    sequence_balance_backward,
    sequence_balance_forward,
)
from loss_free_balancing import max_violation

# %%
from utils.clinic_task import N_DAYS, N_PATIENTS, E, train_reception
from utils.drawings_03 import draw_balance
from utils.gradient_check import central_difference, relative_error
from utils.plots_03 import plot_levels, plot_loads, plot_price

# %% [markdown]
# ## Numbers to follow with a pencil
#
# One sequence of $S = 2$ tokens, $E = 4$ experts, $A = 2$ activated. Scores 0.9, 0.1, 0.5, 0.5 and 0.8, 0.2, 0.6, 0.4.
#
# 1. **Count.** The two largest are experts 0 and 2 for both tokens (a tie goes to the first). Counts 2, 0, 2, 0. In
#    balance each expert would have $A S / E = 1$. So $f = (2, 0, 2, 0)$: twice too busy, or idle.
# 2. **Share.** Divide each row by its sum, which is 2 for both: 0.45, 0.05, 0.25, 0.25 and 0.40, 0.10, 0.30, 0.20. The
#    mean over the tokens: $P = (0.425, 0.075, 0.275, 0.225)$.
# 3. **Multiply and add.** $2 \cdot 0.425 + 2 \cdot 0.275 = 1.4$. In balance, $f$ would be all ones and the sum 1. The
#    loss is $\alpha$ times that.
# 4. **Which way does it push?** For token 0, the shares weigh the $f$ to a mean of $2 \cdot 0.45 + 2 \cdot 0.25 =
#    1.4$. Expert 0 lies above that by 0.6, expert 1 below by 1.4. Divided by the number of tokens and by the sum of the
#    scores, $2 \cdot 2$: slopes $0.15, -0.35, 0.15, -0.35$. Descent goes against the slope: the busy fall, the idle
#    rise.

# %%
score = np.array([[[0.9, 0.1, 0.5, 0.5], [0.8, 0.2, 0.6, 0.4]]])
loss, (push, share, _) = cache_of = sequence_balance_forward(score, 2, 1.0)  # push is α f / S, here f / 2
draw_balance(score[0], share[0], 2 * push[0], f"Two experts take all: L / α is {loss:.1f}, in balance it is 1")
print("slopes of the scores of token 0:", sequence_balance_backward(1.0, cache_of[1])[0, 0].round(3))

# %% [markdown]
# ## Build it
#
# One sequence: steps 1 to 3, token by token.


# %%
def naive_loss(score, A):
    """Scores [S, E] of one sequence: L / alpha, and the counts f [E]."""
    S, E = score.shape
    f, P = np.zeros(E), np.zeros(E)
    for row in score:
        for e in np.argsort(-row, kind="stable")[:A]:
            f[e] += E / (A * S)
        P += row / row.sum() / S
    return f @ P, f


# %%
rng = np.random.default_rng(0)
raw = rng.uniform(0.1, 0.9, size=(3, 16, 8))  # three sequences
loss, cache = sequence_balance_forward(raw, 2, 0.01)
naive = 0.01 * np.mean([naive_loss(sequence, 2)[0] for sequence in raw])
assert np.isclose(loss, naive, rtol=1e-14)
print(f"naive and module agree: {loss:.6f}; balance would be 0.01")

# %% [markdown]
# ## The derivation
#
# Letters: $S$ tokens in a sequence, $E$ experts, $A$ activated. $s_{it}$ is the score of expert $i$ for token $t$.
#
# 1. **Count** (Eq. 18). $f_i = \frac{E}{A\,S}\,\#\{t : i \text{ chosen}\}$. The factor makes $f_i = 1$ for everyone in
#    balance, whatever $E$ and $A$ are.
# 2. **Share** (Eq. 19, 20). $s'_{it} = s_{it}/\sum_j s_{jt}$, since sigmoid scores have no common scale; $P_i =
#    \frac{1}{S}\sum_t s'_{it}$, and $\sum_i P_i = 1$.
# 3. **Product** (Eq. 17). $L = \alpha\sum_i f_i P_i$. In balance $L = \alpha$.
# 4. **Back to the share.** $f$ is flat, so the slope comes through $P$ alone: $\partial L/\partial s'_{it} = \alpha f_i
#    / S$. The busier the expert, the harder the push.
# 5. **Back through the share.** Every score of the token stands in the denominator, as in the last notebook but one:
#    $$ds_{it} = \frac{\alpha}{S \sum_j s_{jt}} \Big(f_i - \sum_j s'_{jt} f_j\Big).$$
#    Experts busier than the token's average are pushed down, the others *up*. The task never calls back an expert that
#    was not chosen; this loss does.
# 6. Several sequences: the mean of their losses, each with its own counts. That is what *sequence-wise* means.


# %%
def naive_slope(score, A, alpha):
    """Step 5 for one sequence [S, E]."""
    _, f = naive_loss(score, A)
    slope = np.zeros_like(score)
    for t, row in enumerate(score):
        share = row / row.sum()
        slope[t] = alpha / (len(score) * row.sum()) * (f - share @ f)
    return slope


# %%
dscore = sequence_balance_backward(1.0, cache)
naive = [naive_slope(sequence, 2, 0.01) / len(raw) for sequence in raw]
assert np.allclose(dscore, naive, rtol=0, atol=1e-16)
by_trying = central_difference(lambda: sequence_balance_forward(raw, 2, 0.01)[0], raw)
print("central differences agree too:", relative_error(dscore, by_trying) < 1e-6)

# %% [markdown]
# ## The experiment: emptying a queue
#
# A router that sends everybody the same way, because all tokens share a direction, and nothing but this loss to follow:
# 500 steps of plain descent.

# %%
tokens = np.concatenate([rng.normal(size=(512, 12)), np.full((512, 1), 2.0)], axis=1)  # the last number is common
router, loads = rng.normal(size=(8, 13)) * 0.4, []
for _ in range(500):
    score = sigmoid(tokens @ router.T)
    _, cache = sequence_balance_forward(score[None], 2, 1.0)
    loads.append(count_load(choose_top_experts(score, 2), 8))
    dscore = sequence_balance_backward(1.0, cache)[0]
    router -= 2.0 * (dscore * score * (1 - score)).T @ tokens

# %%
before, after = loads[0], loads[-1]
assert after.max() < before.max()
title = f"The busiest of 8 experts goes from {before.max()} to {after.max()} tokens; a fair share is 128"
plot_loads({"before": before, "after 500 steps": after}, title)

# %% [markdown]
# ## Four losses, four opinions
#
# DeepSeek-V2 used three such losses at once: over *experts*, over *devices* (experts lie on several machines, and what
# counts is how busy a machine is), and over *communication* (how many tokens are sent to a machine; a token that needs
# two experts there travels once). DeepSeek-V3 keeps only the small *sequence-wise* one. Show all four the same
# routings: 8 experts on 4 devices, 2 activated, 64 tokens in two sequences.

# %%
t = np.arange(64)
routings = {
    "one pair\ntakes all": np.stack([0 * t, 0 * t + 1], 1),
    "one expert\nof each device": np.stack([2 * (t % 4), 2 * ((t + 1) % 4)], 1),
    "pairs that share\na device": np.stack([2 * (t % 4), 2 * (t % 4) + 1], 1),
    "each sequence\nhas its half": np.stack([t % 4 + 4 * (t >= 32), (t + 1) % 4 + 4 * (t >= 32)], 1),
}


# %%
def ask_all(index):
    """Each loss over its alpha, for a routing whose chosen experts have 0.35 of the score and the others 0.05."""
    s = np.full((64, 8), 0.05)
    np.put_along_axis(s, index, 0.35, axis=1)
    return {
        "expert": expert_balance_forward(s, index, 1.0)[0],
        "device": device_balance_forward(s, index, 4, 1.0)[0],
        "communication": communication_balance_forward(s, index, 4, 2, 1.0)[0],
        "sequence-wise": sequence_balance_forward(s.reshape(2, 32, 8), 2, 1.0)[0],
    }


# %%
opinions = {name: ask_all(index) for name, index in routings.items()}
halves = opinions["each sequence\nhas its half"]
assert [name for name, loss in halves.items() if loss > 1.0001] == ["sequence-wise"]
plot_levels(opinions, "Every loss has its blind spot; only one looks at each sequence by itself")

# %% [markdown]
# Purple bars are above 1: this loss objects. In the second panel half of the experts are idle, and device and
# communication see nothing wrong. In the last panel every expert is equally busy over the whole batch, but each
# *sequence* uses half of them. Only the sequence-wise loss objects. Is that a fault, or the very specialisation that
# one hoped for? A text about law may want other experts than a text about cooking.
#
# ## The experiment: the bill
#
# The clinic once more, with finished doctors *and* a finished reception: every patient goes to the two doctors that he
# needs, and the error is zero. But it is winter. On half of the days most patients have the flu, complaint 0. So the
# right load is uneven. Now the balance loss is switched on, and task and loss pull on the same router. What does it do
# to a perfect one: send some of the flu patients next door? How uneven the load is, one number says: **MaxVio**, by how
# much the busiest has more than the mean, relative to the mean. 0 is even; at 1 the busiest has twice his share.

# %%
own = 12.0 * np.eye(E) - 6.0  # a complaint raises the logit of its own doctor by 6 and lowers all others by 6
perfect = np.concatenate([np.zeros((E, 8)), own, np.zeros((E, 1))], axis=1)


# %%
def train_with(alpha):
    def forward(seen, router):
        routing, cache = sigmoid_gate_forward(seen, router, 2)
        loads.append(count_load(routing.index_NA, E))
        return routing, (seen, cache)

    def backward(dgate, cache):
        (seen, inner), score = cache, cache[1][3]
        by_day = sequence_balance_forward(score.reshape(N_DAYS, N_PATIENTS, E), 2, alpha)[1]
        dscore = sequence_balance_backward(1.0, by_day).reshape(-1, E)
        return None, sigmoid_gate_backward(dgate, inner)[1] + (dscore * score * (1 - score)).T @ seen

    return train_reception(forward, backward, router=perfect, steps=300, flu=0.5)


# %%
bill = {}
for alpha in (0.0, 0.001, 0.01, 0.1, 1.0):
    loads = []
    losses, right, _ = train_with(alpha)
    vio = np.mean([max_violation(load) for load in loads[-50:]])
    bill[f"{alpha:g}"] = losses[-50:].mean(), vio
    print(
        f"alpha {alpha:<6g} loss {losses[-50:].mean():.5f}   right doctors {right[-50:].mean():.0%}   MaxVio {vio:.2f}"
    )
paid, even = ([b[i] for b in bill.values()] for i in (0, 1))
assert paid[-1] > 100 * paid[0]
assert max(even) - min(even) < 0.02
title = f"A perfect router: the loss rises to {paid[-1]:.2f} of the variance, and no queue gets shorter"
plot_price(list(bill), paid, even, title)

# %% [markdown]
# It does not! Not one patient is sent elsewhere. What moves at once is the *weight* of the answers: the flu doctor's
# score is pushed down on every patient, his colleague's is not, so the gates are no longer one half each, and the
# answer is wrong. The choice would only change if his score fell below that of a doctor who is not needed, and a good
# router keeps those far apart. So the bill comes first, and the goods later, if at all.
#
# Too weak, and experts starve while training; too strong, and the router obeys the loss and not the text. V3 takes
# $\alpha = 0.0001$, as a guard against extremes, and balances by a means that leaves the gates alone:
# `loss_free_balancing`.
#
# ## Change this, predict, run
#
# The cell repeats the queue experiment with $P$ made of *raw* sigmoid scores, without step 2's division. Predict: does
# the load still become even? And what will the scores do, on average, that has nothing to do with balance?
#
# <details><summary>Afterwards</summary>
#
# The load becomes even, and *all* scores sink to nothing: $\sum_i f_i s_i$ is small when every score is small. Gates
# are normalised, so the task does not resist, and nobody notices, until the scores are so small that rounding decides.
# It is one of the planted mistakes.
#
# </details>

# %%
divide = False
router = np.random.default_rng(5).normal(size=(8, 13)) * 0.4
for step in range(500):
    score = sigmoid(tokens @ router.T)
    load = count_load(choose_top_experts(score, 2), 8)
    if divide:
        dscore = sequence_balance_backward(1.0, sequence_balance_forward(score[None], 2, 1.0)[1])[0]
    else:
        dscore = np.broadcast_to(load * 8 / (2 * 512) / 512, score.shape)
    router -= 2.0 * (dscore * score * (1 - score)).T @ tokens
    if step in (0, 499):
        print(f"step {step}: mean score {score.mean():.3f}, MaxVio {max_violation(load):.2f}")

# %% [markdown]
# ## What you can now do
#
# Write the balance losses of DeepSeek-V2 and V3 and their gradient; say why a loss that is made of counts pushes all
# the same; find out which kind of unevenness a given loss cannot see; and say what balance costs when the task is
# uneven.
#
# ## Exercises
#
# Graded: `balance_batch_backward`, `balance_sequences`, `balance_sequences_backward` (`make check CH=03`). By thought
# alone:
#
# 1. A batch of two sequences; sequence 1 sends everything to experts 0 and 1, sequence 2 to 2 and 3, of four experts.
#    What do the pooled and the sequence-wise $f$ look like?
#
# <details><summary>Solution</summary>
#
# Pooled: $f = [1, 1, 1, 1]$. Sequence-wise: $[2, 2, 0, 0]$ and $[0, 0, 2, 2]$. An implementation that pools the batch
# but calls itself sequence-wise is one of this chapter's planted mistakes.
#
# </details>
#
# 2. Why does the loss of an untrained router, whose scores are all about one half, lie near $\alpha$ even if the load
#    is uneven?
#
# <details><summary>Solution</summary>
#
# With equal shares $P_i = 1/E$, and $\sum_i f_i = E$, so $L = \alpha \sum_i f_i / E = \alpha$. The loss *value* hardly
# shows the unevenness; its slope does, because that is made of the $f_i$ themselves. Watch the load, not this loss.
#
# </details>
#
# 3. Somebody forgets the $1/A$ in $f$. What changes when you go from two activated experts to eight?
#
# <details><summary>Solution</summary>
#
# The loss is multiplied by $A$, so it grows from $2\alpha$ to $8\alpha$ in perfect balance, and a tuned $\alpha$ is
# worthless for the new $A$.
#
# </details>
