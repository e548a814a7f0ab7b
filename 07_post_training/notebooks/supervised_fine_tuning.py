# %% [markdown]
# # Supervised fine-tuning
#
# **The question.** A model has learned to continue any text. How does it learn to *answer*, and which tokens of a
# dialogue should teach it?
#
# An intern sits beside an adviser and reads a thousand letters with their replies. She is to learn to *reply*. If she
# practises the customers' letters just as eagerly, much of her time goes into guessing what a customer will ask, which
# nobody can know. And if she is never shown that a reply *ends*, she will never put the pen down.
#
# This is the friend of the last notebook who knows the answer. A dialogue is one row of tokens: question, answer, end.
# The model is trained as in chapter 00, every position predicts the next token. New is only *which positions count*.
# It goes wrong in three ways, and none of them crashes.

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

# %%
from token_policy import (
    ALPHABET,
    Adam,
    PolicyWeights,
    decode_tokens,
    measure_accuracy,
    sorting_problems,
    write_answers,
)

# %%
from utils.drawings_07 import BETTER, WORSE, draw_packed_rows, draw_rows_read_and_predict, plot_curves

# %%
turns = [Turn("system", "Sort."), Turn("user", "2 0 1"), Turn("assistant", "0 1 2")]
for text, learned in render_dialogue(turns):
    print(f"{'learned' if learned else '   -   '}  {text}")

# %% [markdown]
# That is a dialogue as DeepSeek-V3 is given it. The markers in brackets are single tokens; the answer *and the end
# after it* are learned. Whoever asks writes the `<｜Assistant｜>`, so the model need not.
#
# ## Numbers to follow with a pencil
#
# **Which positions?** `201>012.` has eight tokens, so seven positions that predict a next one. The last four tokens
# are of the answer. Which positions count?

# %%
text, is_answer = "201>012.", [False] * 4 + [True] * 4
draw_rows_read_and_predict(text, is_answer, "The first row that learns reads the last token of the question")

# %% [markdown]
# The position that reads `>` counts, since it must write `0`. One that reads `.` and predicts does not exist. So
# what decides is the token that is *predicted*, not the one that is read.
#
# **Divided by what?** Ten answer tokens with a loss of 2 each come in one piece of a batch, ninety with a loss of 1 in
# another (pieces, because memory is short or there are several machines). The mean over the batch is $(20 + 90)/100 =
# 1.1$. The mean of the two means is $(2 + 1)/2 = 1.5$: the ten tokens weigh nine times as much as the ninety.
#
# ## Build it: mark, shift, average


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
# $-100$ stands where nothing is learned; the other numbers are `0`, `1`, `2` and `.` in the alphabet of the policy.


# %%
def naive_loss(logits, targets, divisor):
    """Position by position: minus the log-probability of the target, over the positions that count."""
    total = 0.0
    for z, t in zip(logits, targets):
        if t != IGNORE:
            total += np.log(np.exp(z).sum()) - z[t]
    return total / divisor


# %%
rng = np.random.default_rng(0)
logits = rng.standard_normal((7, len(ALPHABET)))
loss, cache = masked_loss_forward(logits[None], np.array([want]))
assert np.isclose(naive_loss(logits, want, 4), loss, rtol=1e-14)

# %% [markdown]
# ## The derivation
#
# Letters: $n$ positions count; $\pi_t$ is the probability that the model gives to the target of a position, $z_v$ the
# logit of token $v$ there, $\pi_v$ its probability.
#
# 1. $L = -\frac1n \sum_{\text{counts}} \log \pi_t$: the cross-entropy of chapter 00, over the answers.
# 2. So each token that counts gets the handle of the last notebook, $\partial L / \partial \log \pi_t = -1/n$, and all
#    others get exactly 0.
# 3. $\partial L / \partial z_v = (\pi_v - [v = t]) / n$ where a position counts.
# 4. If a batch comes in pieces, $n$ must be that of the *whole* batch in each of them; then the pieces' losses and
#    gradients simply add up. (Until October 2024 the much used trainer of Hugging Face's `transformers` divided each
#    piece by its own count.)

# %%
prob = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
by_hand = np.zeros_like(prob)
for row, t in enumerate(want):
    if t != IGNORE:
        by_hand[row] = (prob[row] - (np.arange(len(ALPHABET)) == t)) / 4  # steps 2 and 3
assert np.allclose(by_hand, masked_loss_backward(1.0, cache)[0], rtol=0, atol=1e-16)

pieces = [naive_loss(logits[:5], want[:5], 4), naive_loss(logits[5:], want[5:], 4)]
assert np.isclose(sum(pieces), loss)
print(f"two pieces by the whole batch's count: {pieces[0]:.3f} + {pieces[1]:.3f} = {loss:.3f}")
print("largest slope of each position:", np.abs(by_hand).max(axis=1).round(3))

# %% [markdown]
# ## Build it: several dialogues in a row
#
# Dialogues have all lengths, and the rows of a batch have one. Filling up with padding wastes most of the work, so
# several dialogues share a row. They must not see each other, or each would answer with its neighbour's question in
# mind: position $i$ may attend to position $j$ if $j$ is not later *and* of the same dialogue. (In pre-training
# DeepSeek-V3 leaves that out, in fine-tuning it does not.)


# %%
def naive_mask(document):
    """What each position may attend to, in a row whose positions belong to these dialogues."""
    n = len(document)
    return [[j <= i and document[i] == document[j] for j in range(n)] for i in range(n)]


assert (attention_mask(np.array([0, 0, 1, 1, 1])) == naive_mask([0, 0, 1, 1, 1])).all()
print("two dialogues of 2 and 3 tokens in a row:\n", np.array(naive_mask([0, 0, 1, 1, 1])).astype(int))

# %%
train, held_out = sorting_problems()
dialogues = sorting_dialogues(train)
packed = pack_dialogues(dialogues[:7] + [sorting_dialogue("5>", "5."), sorting_dialogue("31>", "13.")], 24)
title = f"Nine dialogues in three rows: what is in full colour is learned, {packed.answer_BT.mean():.0%} of the places"
draw_packed_rows(packed.token_BT, packed.answer_BT, packed.document_BT, ALPHABET, title)

# %% [markdown]
# Our policy has a window in place of attention; what belongs to another dialogue is padding in it. If packing is done
# right, nobody can tell by loss or gradient how the dialogues were laid out.

# %%
weights = PolicyWeights.init(rng)
(a, da), (b, db) = (fine_tuning_gradient(weights, pack_dialogues(dialogues[:12], n)) for n in (32, 8))
print(f"12 dialogues in rows of 32: loss {a:.12f}\n12 dialogues in rows of  8: loss {b:.12f}")
assert all(np.allclose(x, y, atol=1e-14) for x, y in zip(da, db))

# %% [markdown]
# ## The experiment: what does a wrong mask cost?
#
# Three policies, the same steps: the right mask; the mask that was not shifted (a position counts if the token that it
# *reads* is of an answer); and no mask, so that the intern practises the customers' letters too.


# %%
def shifted_wrongly(packed):
    """A position counts if the token that is *read* is of an answer."""
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
    """Train on packed dialogues under a mask; return held-out accuracy every 20 steps, and the policy."""
    rng = np.random.default_rng(seed)
    weights, right = PolicyWeights.init(rng), []
    adam = Adam(weights)
    for step in range(n_steps + 1):
        if step % 20 == 0:
            right.append(measure_accuracy(weights, held_out))
        few = pack_dialogues([dialogues[i] for i in rng.integers(0, len(dialogues), 32)], 32)
        weights = adam.step(weights, fine_tuning_gradient(weights, mask(few))[1])
    return right, weights


# %%
runs = {n: [train_with(m, seed) for seed in range(2)] for n, m in masks.items()}
curves = {n: (range(0, 161, 20), np.mean([right for right, _ in run], axis=0)) for n, run in runs.items()}
last = {n: c[1][-1] for n, c in curves.items()}
assert last["not shifted"] < last["questions count too"] < last["right"]
title = f"Held-out questions answered: {last['right']:.0%}; mask not shifted, {last['not shifted']:.0%}"
y = "right answers (mean of 2 seeds)"
plot_curves(curves, [BETTER, WORSE, "ink"], title, "step", y, ylim=(0, 1))

# %%
for name, run in runs.items():
    answers = [decode_tokens(t[4:]) for t in write_answers(run[0][1], held_out[:5]).token_BT]
    print(f"{name:<20}", "  ".join(f"{decode_tokens(q)}{a}" for q, a in zip(held_out, answers)))

# %% [markdown]
# The mask that was not shifted never shows the model its *first* token, so it guesses that one, and goes on from there
# as if it were right. No position complains: the loss looks fine. That the questions count too is the milder mistake,
# and it still costs. Of the seven places that are then learned, two are digits that nobody can foresee: each keeps a
# loss of about $\log 6 = 1.79$ for ever, while those of the answer go to zero, so that in the end most of the loss, and
# of the noise in its gradient, is about what customers ask.
#
# ## Change this, predict, run
#
# The pen that is never put down: leave the end out of what is learned. Predict the share of right answers after 160
# steps, and what the answers look like. (An answer is right only with its point. The policy may write four tokens.)
#
# <details><summary>Afterwards</summary>
#
# None is right. The three digits are as good as ever; after them the policy writes anything but a point, since among
# its 13 tokens nothing ever spoke for that one. In a chat such a model answers well and then goes on, to the limit of
# tokens: often by writing the user's next question.
#
# </details>

# %%
right, weights = train_with(lambda p: p._replace(answer_BT=p.answer_BT & (p.token_BT != 1)), 0)
answers = [decode_tokens(t[4:]) for t in write_answers(weights, held_out[:5]).token_BT]
print(f"right {right[-1]:.0%};", "  ".join(f"{decode_tokens(q)}{a}" for q, a in zip(held_out, answers)))

# %% [markdown]
# ## What you can now do
#
# Mark the tokens of a dialogue that count; shift marks and targets together; pack without letting dialogues meet; say
# what to divide by when a batch comes in pieces. The friend who knows has taught all she can. Next: what if nobody can
# write the answer down, but somebody can *check* it? `rewards`.
#
# ## Exercises
#
# Graded: `targets_of_answers` (`make check CH=07`). By thought alone:
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
