# %% [markdown]
# # GRPO
#
# **The question.** How do you learn from grades alone, if nobody tells you how well you usually do?
#
# A class writes essays. The examiner never shows a model essay; he only writes *passed* or *failed*. Is a pass good
# news? Not if everybody passed: then the question was easy, and the pass says nothing. It is good news if most failed.
# So compare each essay with the others *on the same question*. And a question on which all passed, or all failed? It
# teaches nothing at all, however long they wrote.
#
# Earlier methods (PPO, arXiv:1707.06347) trained a second network, as large as the first, to foresee the grade. GRPO
# (*group relative policy optimisation*) draws several answers to each question and takes their mean: the baseline of
# the last notebook. Below we follow one group from its grades to the changed weights, then a small policy learns to
# sort from *right* and *wrong* alone. At the end the book's trained model sits in the class.

# %%
import numpy as np
from grpo import LOSSES, Batch, clipped_forward, group_advantages, grpo_backward, grpo_forward, grpo_step
from supervised_fine_tuning import warm_start

from utils.drawings_07 import BETTER, WORSE, draw_group, plot_answers_over_time, plot_curves, plot_seed_dots

# %% [markdown]
# ## Numbers to follow with a pencil
#
# Four answers to one question, rewards 1, 0, 0, 1. Their mean is 1/2, their standard deviation (the root of the mean
# squared distance from the mean) is 1/2 as well. The **advantage** of an answer is its distance from the mean in units
# of the deviation: $(1 - 1/2) / (1/2) = +1$ for the right ones, $-1$ for the others. With rewards 1, 0, 0, 0 the mean
# is 1/4, the deviation $\sqrt{3}/4 = 0.433$, and the one right answer stands out: $+1.73$, against $-0.58$. With 0, 0,
# 0, 0 there is nothing to compare, and every advantage is 0.


# %%
def naive_advantages(rewards):
    """(reward - mean) / deviation; nothing where all are equal."""
    mean = sum(rewards) / len(rewards)
    deviation = (sum((r - mean) ** 2 for r in rewards) / len(rewards)) ** 0.5
    if deviation == 0:
        return [0.0] * len(rewards)
    return [(r - mean) / deviation for r in rewards]


for rewards in ([1, 0, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]):
    assert np.allclose(naive_advantages(rewards), group_advantages(np.array([rewards], dtype=float))[0])
    print(rewards, np.round(naive_advantages(rewards), 2))

# %% [markdown]
# ## Build it: a group, before and after one step
#
# The policy was fine-tuned for a moment and sorts some questions. It answers one of them eight times.

# %%
from token_policy import (
    Adam,
    PolicyWeights,
    check_answers,
    decode_tokens,
    encode_text,
    measure_accuracy,
    read_answers,
    score_answers_backward,
    score_answers_forward,
    sorting_problems,
    write_answers,
)

# %%
rng = np.random.default_rng(1)
weights = warm_start(rng, 45)
question = np.repeat([encode_text("150>")], 8, axis=0)
answers = write_answers(weights, question, rng)
reward = check_answers(answers.token_BT).astype(float)
advantage = group_advantages(reward[None])[0]
batch = Batch(answers.logp_BS, answers.written_BS, advantage)

# %%
logp, cache = score_answers_forward(weights, answers.token_BT)
dlogp = grpo_backward(1.0, grpo_forward(logp, batch)[1])
gradient = score_answers_backward(dlogp, cache)
moved = PolicyWeights(*(w - 0.1 * d for w, d in zip(weights, gradient)))
after = score_answers_forward(moved, answers.token_BT)[0]
before, after = (np.exp((x * answers.written_BS).sum(axis=1)) for x in (logp, after))
title = "One step: what was better than its group becomes likelier"
draw_group("150>", read_answers(answers), reward, advantage, before, after, title)

# %% [markdown]
# One right answer and seven wrong ones: it alone gets likelier. (`0357` is so unlikely that four digits
# do not show its probability.)
#
# ## Build it: the ratio, and why it is clipped
#
# Writing is expensive, so one batch of answers serves for several steps. From the second step on, the answers were
# written by *older* weights. Letters: $\pi$ is the probability of a token under today's weights, $\pi_{old}$ under
# those that wrote it, and $r = \pi / \pi_{old}$ their **ratio**, how much likelier the token is today. Weighing by the
# ratio puts the average right, $\sum \pi_{old} \cdot r A = \sum \pi A$: what is written too seldom by the old weights
# counts more.
#
# But with many steps on one batch the ratios run away; a lucky answer would be pushed up without end, and one that
# fell would be pushed down harder and harder (`token_policy`, at its end). So the gain $r A$ is *clipped*: beyond $1 +
# \varepsilon$ it counts no further. On one side only: an answer that has become *less* likely than it should be must
# find its way back. By pencil, with $\varepsilon = 0.2$: $r = 1.5, A = +1$ counts as 1.2 with slope 0. $r = 1.5, A =
# -1$ counts as $-1.5$ with slope $-1$: all of it.


# %%
def naive_gain(r, a, edge=0.2):
    """The smaller of the plain gain and the clipped one."""
    clipped = min(max(r, 1 - edge), 1 + edge)
    return min(r * a, clipped * a)


r = np.linspace(0.4, 1.8, 141)
curves = {f"advantage {a:+.0f}": (r, [naive_gain(x, a) for x in r]) for a in (1, -1)}
for a in (1.0, -1.0):
    assert np.allclose(curves[f"advantage {a:+.0f}"][1], clipped_forward(r, np.full(141, a))[0])
title = "The gain stops growing on one side, and on that side only"
plot_curves(curves, [BETTER, WORSE], title, "ratio π / π_old", "gain that counts: min(r A, clip(r) A)")

# %% [markdown]
# ## The derivation: the whole loss
#
# Letters: $L$ is the loss; $o_b$ is answer $b$ of $B$, $|o_b|$ the number of its tokens, $A_b$ its advantage, $r_{bs}$
# the ratio of its token $s$; $\text{clip}(r, 1 - \varepsilon, 1 + \varepsilon)$ is $r$, or the nearer edge if it lies
# outside.
#
# 1. $L = -\frac{1}{B} \sum_b \frac{1}{|o_b|} \sum_s \min(r_{bs} A_b,\ \text{clip}(r_{bs}, 1-\varepsilon,
# 1+\varepsilon) A_b)$
# 2. $r = \exp(\log \pi - \log \pi_{old})$, so $\partial r / \partial \log \pi = r$.
# 3. Where the plain term counts, the slope of the gain by $\log \pi$ is $r A$; where the clipped one does, 0.
# 4. One token gets $\partial L / \partial \log \pi = -\frac{r A}{B |o_b|}$ or 0. Advantage and $\pi_{old}$ are numbers.
# 5. While nothing has moved, $r = 1$, nothing is clipped, and it is REINFORCE with the group's mean as its baseline.
#
# Step 4 is the handle of `token_policy`. All that is special about GRPO is in this one number for each token. (The
# report's Eq. (26) has whole answers in the place of tokens; `report_grpo_forward` is that one. Everybody's code, and
# DeepSeek's own earlier paper, goes token by token.)
#
# ## Build it: loss and slope


# %%
def naive_grpo(logp, old, lengths, advantages):
    """Answer by answer, token by token: loss and slope by each log-probability."""
    loss, slope = 0.0, np.zeros_like(logp)
    for b, (n, a) in enumerate(zip(lengths, advantages)):
        for s in range(n):
            r = np.exp(logp[b, s] - old[b, s])
            loss -= naive_gain(r, a) / n / len(logp)
            if naive_gain(r, a) == r * a:
                slope[b, s] = -r * a / n / len(logp)
    return loss, slope


# %%
lengths, old = [5, 2, 3, 1], -rng.random((4, 5))
logp, a = old + 0.3 * rng.standard_normal((4, 5)), group_advantages(np.array([[1.0, 0, 0, 1]]))[0]
some = Batch(old, np.arange(5) < np.array(lengths)[:, None], a)
loss, cache = grpo_forward(logp, some)
naive_loss, naive_slope = naive_grpo(logp, old, lengths, a)
assert np.isclose(loss, naive_loss)
assert np.allclose(grpo_backward(1.0, cache), naive_slope)
print("loss", round(loss, 4), "  slopes of the second answer", naive_slope[1].round(3))

# %% [markdown]
# ## Staying near where you came from
#
# A class that is graded on exams alone may forget everything else. So Eq. (26) subtracts something for leaving home: a
# number $\beta$ times the **divergence** from a *reference*, usually the fine-tuned model that the training began with.
# (The divergence of two distributions, $\text{KL}(\pi, \pi_{ref})$, is the average of $\log \pi - \log \pi_{ref}$ over
# what $\pi$ says; 0 if they agree. `distillation` takes it apart.) Nobody can sum that average over all answers, so Eq.
# (27) estimates it from the token that was written: with $\rho = \pi_{ref} / \pi$ it is $\rho - \log \rho - 1$. By
# pencil: for $\rho = 2$ it is $2 - 0.693 - 1 = 0.307$, for $\rho = 1$ it is 0. It is never negative, and right on
# average.
#
# Its *slope* is another matter. For five tokens we can write the averages out and look: each token $a$ has its slope by
# $\log \pi_a$, times row $a$ of `score` (the slope of $\log \pi_a$ by the five logits, one-hot minus probability), each
# as often as it is drawn.

# %%
from grpo import corrected_kl_backward, corrected_kl_forward, kl_estimate_backward, kl_estimate_forward
from token_policy import log_softmax

assert np.isclose(kl_estimate_forward(np.log(0.25), np.log(0.5))[0], 2 - np.log(2) - 1)  # the pencil
z, reference = rng.standard_normal(5), log_softmax(rng.standard_normal(5))
logpi = log_softmax(z)
pi, score = np.exp(logpi), np.eye(5) - np.exp(logpi)
estimate, rho = kl_estimate_forward(logpi, reference)
print("divergence", (pi * (logpi - reference)).sum().round(6), "  mean of the estimate", (pi @ estimate).round(6))
plain = (pi * kl_estimate_backward(np.ones(5), rho)) @ score
print("mean slope of the estimate        ", plain.round(4))
print("slope of KL(reference, policy)    ", (pi - np.exp(reference)).round(4))

# %%
excess = logpi - reference
corrected = corrected_kl_backward(np.ones(5), corrected_kl_forward(logpi, logpi, reference)[1])
print("slope of KL(policy, reference)    ", (pi * (excess - pi @ excess)).round(4))
print("mean slope, estimate weighed by r ", ((pi * corrected) @ score).round(4))

# %% [markdown]
# The number is one divergence, the pull is that of the other: the draw depends on the weights too, and a plain loss
# forgets it. Weighed by the ratio, number and pull belong together. Near the reference both pull alike, and $\beta$ is
# small (or 0 in most later recipes), so that few noticed.
#
# ## The experiment: learning to sort from right and wrong
#
# 16 questions a step, 16 answers to each, reward 1 or 0. Nobody ever shows a right answer. Every tenth step we ask how
# likely each of the 216 possible answers is, for every held-out question.

# %%
train, held_out = sorting_problems()
digits = [f"{a}{b}{c}." for a in range(6) for b in range(6) for c in range(6)]


def watch(weights, prompt):
    """Probability of each answer of three digits to one question."""
    texts = np.array([[*prompt, *encode_text(answer)] for answer in digits])
    return np.exp(score_answers_forward(weights, texts)[0][:, 3:].sum(axis=1))


# %%
rng = np.random.default_rng(0)
weights, seen, right, steps = warm_start(rng), [], [], list(range(0, 81, 10))
adam = Adam(weights, 5e-3)
for step in range(81):
    if step in steps:
        seen.append([watch(weights, prompt) for prompt in held_out])
        right.append(measure_accuracy(weights, held_out))
    weights, _ = grpo_step(weights, adam, train[rng.integers(0, len(train), 16)], rng)
print("held-out questions right:", [f"{r:.0%}" for r in right])

# %% [markdown]
# One of them as a picture: the held-out question whose right answer rose most (so it was *picked* for that; the
# accuracy above is the measure). The right answer is teal, its six likeliest rivals brown; white are all other texts.

# %%
seen = np.array(seen)  # [moment, question, answer]
answer_of = ["".join(sorted(decode_tokens(p[:3]))) + "." for p in held_out]
place = [digits.index(a) for a in answer_of]
rose = seen[-1, range(54), place] - seen[0, range(54), place]
q = int(rose.argmax())
top = [place[q], *[a for a in np.argsort(-seen[0, q]) if a != place[q]][:6]]
ends = seen[[0, -1], q, place[q]]
title = f"{decode_tokens(held_out[q])} the right answer goes from {ends[0]:.0%} to {ends[1]:.0%}"
plot_answers_over_time([digits[a] for a in top], seen[:, q][:, top], steps, answer_of[q], title)

# %% [markdown]
# ## The experiment: five losses, four steps a batch
#
# GRPO has relatives, and each changes one thing in step 4: `dr_grpo` leaves out the deviation and the division by
# length, `dapo` takes the mean over all tokens and moves the upper edge further away, `gspo` has one ratio an answer
# and edges very near, `cispo` uses the clipped ratio as a constant weight. With *one* step a batch the ratio is 1, and
# they differ by constants. So four steps.


# %%
def run(name, seed, n_steps=20):
    """Train with a named loss, four updates a batch; return held-out accuracy on the way."""
    rng = np.random.default_rng(seed)
    weights, right = warm_start(rng), []
    adam = Adam(weights, 2e-3)
    for step in range(n_steps + 1):
        if step % 5 == 0:
            right.append(measure_accuracy(weights, held_out))
        questions = train[rng.integers(0, len(train), 16)]
        weights, _ = grpo_step(weights, adam, questions, rng, name, n_answers=8, n_updates=4)
    return right


# %%
runs = {name: np.array([run(name, seed) for seed in range(3)]) for name in LOSSES}
for name, found in runs.items():
    print(f"{name:<8} {found[:, -1].mean():.0%} right, seeds {[f'{x:.0%}' for x in found[:, -1]]}")
ends = {name: 100 * found[:, -1] for name, found in runs.items()}
apart = max(e.mean() for e in ends.values()) - min(e.mean() for e in ends.values())
within = max(np.ptp(e) for e in ends.values())
assert within > apart
title = f"Losses differ by up to {apart:.0f} points, seeds of one loss by up to {within:.0f}"
plot_seed_dots(ends, title, "held-out questions right after 20 batches, %; a dot a seed, a line at the mean")

# %% [markdown]
# Nothing to choose. Answers here have nearly all the same length, rewards are 0 or 1, and four steps go not far: these
# are not the circumstances for which the relatives were made. (Longer runs with more seeds, on a larger model, stand in
# [docs/post_training.md](../docs/post_training.md).) One thing can be measured on a single batch, though: whom does
# each of them silence, once a step was taken?

# %%
rng = np.random.default_rng(0)
weights = warm_start(rng)
answers = write_answers(weights, np.repeat(train[:32], 8, axis=0), rng)
reward = check_answers(answers.token_BT).astype(float).reshape(-1, 8)
batch = Batch(answers.logp_BS, answers.written_BS, group_advantages(reward).ravel())
logp, cache = score_answers_forward(weights, answers.token_BT)
gradient = score_answers_backward(grpo_backward(1.0, grpo_forward(logp, batch)[1]), cache)
logp, _ = score_answers_forward(Adam(weights, 2e-3).step(weights, gradient), answers.token_BT)
matters = batch.written_BS & (batch.advantage_B != 0)[:, None]
for name, (forward, backward, _) in LOSSES.items():
    slope = backward(1.0, forward(logp, batch)[1])
    print(f"{name:<8} after one step {(slope == 0)[matters].mean():.0%} of the tokens get no gradient")

# %% [markdown]
# `gspo` comes with edges of 0.0003 and 0.0004, made for answers of thousands of tokens and tiny steps. On four tokens
# and Adam's steps they silence most of what moved as it should. Edges belong to a length and a rate; they are not
# constants of nature.
#
# ## The trained model speaks: in the class at last
#
# The book's model reads a story and is asked who did it. In `token_policy` it found the right one of two actors
# likelier in most stories, and would often have said the other. Its answer is one word, so a group is a handful of
# words. Sixty new questions, eight answers to each:

# %%
from utils.story_model import ask_who, open_book

book, asked, head = open_book(), ask_who(500), "lm_head.weight"


def first_token(a):
    return book.tokenizer.encode(f" {a.answer}", add_special_tokens=False).ids[0]


rng, groups = np.random.default_rng(0), []
for a in asked[:60]:
    spoken = (book.read(a.text).logits[-1] + rng.gumbel(size=(8, 2048))).argmax(axis=1)
    groups.append(spoken == first_token(a))
    if len(groups) <= 2:
        print(a.text.split("\n")[1], [book.decode([t]).strip() for t in spoken], "right:", a.answer)

# %%
from model import hidden_backward, hidden_forward  # chapter 06: the model, forward and backward

n_right = np.sum(groups, axis=1)
print(f"{n_right.mean() / 8:.0%} right; all eight right {np.mean(n_right == 8):.0%},", end=" ")
print(
    f"all wrong {np.mean(n_right == 0):.0%} of the groups; {np.mean((n_right > 0) & (n_right < 8)):.0%} teach something"
)

# %% [markdown]
# Now let it learn: groups of sixteen, and the gradient of step 4 goes through the head into chapter 06's whole backward
# pass, 3 million weights, moved by Adam. (Advantages of a group add up to zero, so the second part of the softmax's
# slope cancels: only the words that were spoken are pushed.)


# %%
def one_question(model, a):
    """The gradient of GRPO's loss, divided over 16 questions; None if the group teaches nothing."""
    hidden, cache = hidden_forward(model, np.array([book.encode(a.text)]))
    logits = model.weights[head] @ hidden[0, -1]
    spoken = (logits + rng.gumbel(size=(16, 2048))).argmax(axis=1)
    advantage = naive_advantages((spoken == first_token(a)).astype(float))
    if not any(advantage):
        return None
    dlogits, dhidden = np.zeros(2048), np.zeros_like(hidden)
    np.add.at(dlogits, spoken, -np.array(advantage) / 16 / 16)
    dhidden[0, -1] = model.weights[head].T @ dlogits
    return {**hidden_backward(dhidden, cache), head: np.outer(dlogits, hidden[0, -1])}


# %%
def answer_well(model, questions):
    """Share of the questions whose right answer is the likeliest word."""
    found = [model.weights[head] @ hidden_forward(model, np.array([book.encode(a.text)]))[0][0, -1] for a in questions]
    return np.mean([z.argmax() == first_token(a) for z, a in zip(found, questions)])


def learn(model, memory, step, questions, rate=5e-4):
    """One step of Adam on the mean of the questions' gradients, in place."""
    grads = [g for a in questions if (g := one_question(model, a))]
    for name in grads[0]:
        g = sum(d[name] for d in grads)
        m, v = memory.setdefault(name, (np.zeros_like(g), np.zeros_like(g)))
        m += 0.1 * (g - m)
        v += 0.05 * (g * g - v)
        model.weights[name] -= rate * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.95**step)) + 1e-8)


# %%
model = book.model._replace(weights={name: w.copy() for name, w in book.model.weights.items()})
memory, known = {}, [answer_well(model, asked[:100])]
for step in range(1, 5):
    learn(model, memory, step, [asked[i] for i in rng.integers(100, 500, 16)])
known.append(answer_well(model, asked[:100]))
assert known[1] > known[0]
print(f"of 100 held-out questions {known[0]:.0%} right, after four steps {known[1]:.0%}")

# %% [markdown]
# Four steps, 64 questions, and not one answer was shown. The model had read thousands of stories and could tell who did
# what; it did not always *say* it. (One seed, and a hundred questions: five points either way are chance.)
#
# ## Change this, predict, run
#
# Turn the sign of the advantage: the policy that sorts is praised for what was *worse* than its group. Predict its
# accuracy after 20 batches. What will it write? And with rewards that are drawn by lot, can anything move at all?
#
# <details><summary>Afterwards</summary>
#
# Praised for the worse, it soon knows no right answer any more: a group in which all are wrong then teaches nothing,
# so it stops exactly there, at answers that are *always* wrong. By lot, each advantage is noise with the mean zero: on
# average nothing is learned, but every single batch pushes somewhere, and so accuracy wanders off what fine-tuning had
# reached. (On models that already knew much, others saw rewards by lot *improve* them. A control with random rewards
# belongs in every such experiment.)
#
# </details>

# %%
lots, plain = np.random.default_rng(5), LOSSES["grpo"]
LOSSES["worse"] = (*plain[:2], lambda reward: -group_advantages(reward))
LOSSES["by lot"] = (*plain[:2], lambda reward: group_advantages(lots.integers(0, 2, reward.shape).astype(float)))
for name in ("worse", "by lot"):
    print(f"{name:<7} right after 0, 5, ..., 20 batches:", " ".join(f"{x:.0%}" for x in run(name, 0)))

# %% [markdown]
# ## What you can now do
#
# Compute advantages, ratio, clip and slope of a group by hand; say on which batches two of the five losses differ; say
# what the divergence of Eq. (27) measures and where it pulls; let a trained model learn from nothing but right and
# wrong. One thing we took for granted: that the weights that write and those that learn are the same function. With
# experts they are not: `router_replay`.
#
# ## Exercises
#
# Graded: `group_advantage`, `clipped_slope`, `kl_slope`, and the whole of it, `grpo_from_an_empty_file` (`make check
# CH=07`). By thought alone:
#
# **1.** What does the division by the deviation do to a question that 1 of 16 answers gets right?
#
# <details><summary>Solution</summary>
#
# Mean 1/16, deviation 0.242: the one right answer has the advantage 3.87, where 8 of 16 right give 1. Hard questions
# (and those nearly solved) weigh more. Dr. GRPO leaves it out for that reason: 0.94 against 0.5.
#
# </details>
#
# **2.** The policy solves nothing. What does GRPO learn?
#
# <details><summary>Solution</summary>
#
# Nothing: all advantages are 0. That is why one starts from a model that is right now and then, and why DAPO throws
# away groups without a difference and draws others.
#
# </details>
#
# **3.** Two wrong answers of the same group, one of 4 tokens and one of 400. Which token is pushed down harder?
#
# <details><summary>Solution</summary>
#
# In `grpo` one of the short answer's, a hundred times: $1/|o_b|$. So long wrong answers are cheap, and answers that go
# wrong grow. `dr_grpo` divides both by the same constant.
#
# </details>
