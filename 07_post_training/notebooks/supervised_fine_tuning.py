# %% [markdown]
# # Which tokens should a dialogue teach?
#
# An intern sits beside an adviser and reads a thousand letters with their replies. She is to learn to *reply*. If she
# practises the customers' letters just as eagerly, she will one day answer a question with another question.
#
# A dialogue is one row of tokens: question, answer, end. The model is trained as before, each row predicts the next
# token. The only new thing is *which rows count*, and it goes wrong in three ways that crash nothing.

# %%
import numpy as np
from supervised_fine_tuning import (
    IGNORE,
    Turn,
    answer_targets,
    attention_mask,
    fine_tuning_gradient,
    masked_loss_backward,
    masked_loss_forward,
    pack_dialogues,
    render_dialogue,
    sorting_dialogue,
    sorting_dialogues,
)
from token_policy import ALPHABET, Adam, PolicyWeights, measure_accuracy, sorting_problems

# %%
from utils.drawings_07 import draw_packed_rows, draw_rows_read_and_predict, plot_curves

# %%
turns = [Turn("system", "Sort."), Turn("user", "2 0 1"), Turn("assistant", "0 1 2")]
for text, learned in render_dialogue(turns):
    print(f"{'learned' if learned else '   -   '}  {text}")

# %% [markdown]
# That is DeepSeek-V3's template. The markers are single tokens; the answer *and the end after it* are learned. Whoever
# asks writes the `<｜Assistant｜>`, so the model need not.
#
# ## Numbers to follow with a pencil
#
# `201>012.` has eight tokens and seven rows that predict. The last four tokens are of the answer. Which rows count?

# %%
text, is_answer = "201>012.", [False] * 4 + [True] * 4
draw_rows_read_and_predict(text, is_answer, "The first row that learns reads the last token of the question")

# %% [markdown]
# The row that reads `>` counts, since it must write `0`. The row that reads `.` does not exist. So the mask stands on
# the *target*. Mark what is not of an answer, then shift; not the other way round.


# %%
def naive_targets(tokens, is_answer):
    """Row i is trained on token i + 1, if that token is of an answer."""
    targets = []
    for i in range(len(tokens) - 1):
        targets.append(tokens[i + 1] if is_answer[i + 1] else IGNORE)
    return targets


# %%
one = sorting_dialogue("201>", "012.")
want = naive_targets(one.token_T.tolist(), one.answer_T.tolist())
assert answer_targets(one.token_T[None], one.answer_T[None])[0].tolist() == want
print(want)

# %% [markdown]
# ## The loss
#
# Letters: $n$ counts the rows that count, $\pi_t$ is the probability of a row's target.
#
# 1. A row that counts costs $-\log \pi_t$; a row that does not costs nothing.
# 2. $L = -\frac{1}{n} \sum \log \pi_t$ over the rows that count.
# 3. A row that counts has the slope (probability − one-hot)$/n$, every other row exactly 0.
# 4. If a batch is cut into pieces (for memory, or over machines), $n$ must be that of the *whole* batch.
#
# The fourth line is where several trainers were wrong for years. Two pieces, one with 10 tokens of loss 2 each, one
# with 90 of loss 1: the mean of the batch is (20 + 90) / 100 = 1.1; the mean of the two means is 1.5.


# %%
def naive_loss(logits, targets):
    """Row by row: minus the log-probability of the target, over the rows that count."""
    costs = []
    for z, t in zip(logits, targets):
        if t != IGNORE:
            costs.append(np.log(np.exp(z).sum()) - z[t])
    return sum(costs) / len(costs)


# %%
rng = np.random.default_rng(0)
logits = rng.standard_normal((7, len(ALPHABET)))
loss, cache = masked_loss_forward(logits[None], np.array([want]))
assert np.isclose(naive_loss(logits, want), loss, rtol=1e-14)
print("largest slope of each row:", np.abs(masked_loss_backward(1.0, cache)[0]).max(axis=1).round(3))

# %% [markdown]
# ## Packing
#
# Dialogues have all lengths, and rows of a batch have one. Filling up with padding wastes most of the work, so several
# dialogues share a row. They must not see each other: attention is masked by dialogue (in pre-training DeepSeek-V3
# leaves that out, in fine-tuning it does not), and positions start anew. Our policy has a window instead of attention;
# what belongs to another dialogue is padding in it.

# %%
train, held_out = sorting_problems()
dialogues = sorting_dialogues(train)
packed = pack_dialogues(dialogues[:7] + [sorting_dialogue("5>", "5."), sorting_dialogue("31>", "13.")], 24)
draw_packed_rows(
    packed.token_BT,
    packed.answer_BT,
    packed.document_BT,
    ALPHABET,
    "Nine dialogues in three rows: full colour is learned",
)

# %%
print("who may look at whom, two dialogues of 2 and 3 tokens:")
print(attention_mask(np.array([0, 0, 1, 1, 1])).astype(int))

# %%
weights = PolicyWeights.init(rng)
(a, da), (b, db) = (fine_tuning_gradient(weights, pack_dialogues(dialogues[:12], n)) for n in (32, 8))
print(f"12 dialogues in rows of 32: loss {a:.12f}\n12 dialogues in rows of  8: loss {b:.12f}")
assert all(np.allclose(x, y, atol=1e-14) for x, y in zip(da, db))

# %% [markdown]
# ## The experiment: what does a wrong mask cost?
#
# Three policies, the same steps: the right mask; the mask that was not shifted; no mask at all.


# %%
def shifted_wrongly(packed):
    """Keep the target if the token that is *read* is of an answer."""
    moved = np.zeros_like(packed.answer_BT)
    moved[:, 1:] = packed.answer_BT[:, :-1] & (packed.document_BT[:, 1:] == packed.document_BT[:, :-1])
    return packed._replace(answer_BT=moved)


masks = {
    "right": lambda p: p,
    "not shifted": shifted_wrongly,
    "questions count too": lambda p: p._replace(answer_BT=(p.document_BT >= 0) & (p.position_BT > 0)),
}


# %%
def train_with(mask, seed, n_steps=160):
    """Train on packed dialogues under a mask; return held-out accuracy every 20 steps."""
    rng = np.random.default_rng(seed)
    weights, right = PolicyWeights.init(rng), []
    adam = Adam(weights)
    for step in range(n_steps + 1):
        if step % 20 == 0:
            right.append(measure_accuracy(weights, held_out))
        few = pack_dialogues([dialogues[i] for i in rng.integers(0, len(dialogues), 32)], 32)
        weights = adam.step(weights, fine_tuning_gradient(weights, mask(few))[1])
    return right


# %%
curves = {n: (range(0, 161, 20), np.mean([train_with(m, s) for s in range(2)], axis=0)) for n, m in masks.items()}
last = {n: c[1][-1] for n, c in curves.items()}
title = "Right after 160 steps: " + ", ".join(f"{n} {x:.0%}" for n, x in last.items())
plot_curves(
    curves, ["content", "rope", "ink"], title, "step", "held-out questions right (mean of 2 seeds)", ylim=(0, 1)
)

# %% [markdown]
# The mask that was not shifted never shows the model its first token, and no row complains: its loss looks fine. That
# the questions count too is the milder mistake, and it still costs: more than half of what is learned is then digits
# that nobody can foresee, and the policy spends its steps on them.
#
# ## Change this, predict, run
#
# Leave the END token out of what is learned: in `masks`, add `"no end"` with
# `lambda p: p._replace(answer_BT=p.answer_BT & (p.token_BT != 1))`. Predict the share of right answers. (An answer is
# right only with its point, and nothing ever taught the model to write one.)
#
# ## What you can now do
#
# Mark the tokens of a dialogue that count; shift marks and targets together; pack without letting dialogues meet; say
# what to divide by when a batch comes in pieces.
#
# ## Exercises
#
# **1.** Which token does the row that reads `<｜Assistant｜>` learn, and does it count?
#
# <details><summary>Solution</summary>
#
# The first token of the answer; it counts. It is the row that a wrong shift silences.
#
# </details>
#
# **2.** A batch is split over two machines that average their gradients. One holds 10 tokens that count, the other 90.
# What must each divide by?
#
# <details><summary>Solution</summary>
#
# By 50, the mean over machines: then the average is the sum over 100. Dividing by 10 and 90 gives the ten tokens nine
# times the weight of the others.
#
# </details>
#
# **3.** Why is every answer of a dialogue of several turns learned in one pass, and not the last alone?
#
# <details><summary>Solution</summary>
#
# A causal row sees only its past, so the row of an early answer is the same whether more follows or not. All answers
# cost one forward pass together.
#
# </details>
