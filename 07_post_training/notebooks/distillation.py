# %% [markdown]
# # Distillation
#
# **The question.** A better model exists already. What can it tell a smaller one that a book of solutions cannot?
#
# A solution at the back of the book says: *7*. A teacher who is asked says: *7, of course, although I see why you might
# think 9, and nobody would say 3*. And she can do something else that no book can: ask her about a question that is
# *not* in the book, and she writes a solution for it. A *label* is one token. A *teacher* is a probability for every
# token at every place, and a pen.
#
# DeepSeek-V3 learned to reason from another model, DeepSeek-R1: not from its probabilities but from the answers that it
# wrote, of which those were kept that a check found right. This notebook has both ways and lets them compete.

# %%
import numpy as np
from distillation import (
    forward_kl_backward,
    forward_kl_forward,
    reverse_kl_backward,
    reverse_kl_forward,
    teacher_writes,
    train_student,
    train_teacher,
)

# %%
from token_policy import (
    decode_tokens,
    log_softmax,
    measure_accuracy,
    solve_problems,
    sorting_problems,
    write_answers,
)

# %%
from utils.drawings_07 import BETTER, plot_bars, plot_two_fits
from utils.gradient_check import central_difference

# %% [markdown]
# ## Numbers to follow with a pencil
#
# $p$ is the teacher's distribution over tokens, $q$ the student's. The **divergence** between them, $\text{KL}(p, q)$,
# is the average of $\log p - \log q$, taken over what the teacher would say. Three tokens, $p = (1/2, 1/4, 1/4)$ and $q
# = (1/4, 1/2, 1/4)$:
#
# $\frac12 \log 2 + \frac14 \log \frac12 + \frac14 \log 1 = \frac12 \log 2 - \frac14 \log 2 = \frac14 \log 2 = 0.173$.
#
# It is 0 only when both agree everywhere. The student's logits feel $q - p = (-1/4, +1/4, 0)$: too little of the first
# token, too much of the second, and the third is right.
#
# ## Build it: the divergence, and its slope


# %%
def naive_kl(p, q):
    """The teacher's average of log p - log q."""
    return sum(a * (np.log(a) - np.log(b)) for a, b in zip(p, q))


p, q, row = np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.5, 0.25]), np.ones((1, 1), dtype=bool)
loss, cache = forward_kl_forward(np.log(p)[None, None], np.log(q)[None, None], row)
assert np.isclose(naive_kl(p, q), loss)
assert np.allclose(q - p, forward_kl_backward(1.0, cache)[0, 0])
print(f"KL(p, q) = {loss:.4f}, by hand {np.log(2) / 4:.4f};  slope by the student's logits", q - p)

# %% [markdown]
# ## The derivation
#
# Letters: $z_v$ is the student's logit of token $v$, $q_v$ its probability, $p_v$ the teacher's; $u$ runs over all
# tokens as well; $L$ is the divergence; $t$ is a *temperature*, a number that divides all logits.
#
# 1. $L = \sum_v p_v \log p_v - \sum_v p_v \log q_v$; the first part does not know the student.
# 2. $\log q_v = z_v - \log \sum_u e^{z_u}$, so $\partial L / \partial z_v = -p_v + q_v \sum_u p_u = q_v - p_v$. With a
#    label, $p$ is one-hot: fine-tuning is distillation from a teacher that is always sure.
# 3. *Temperature*: divide the logits of both by $t > 1$, and what was unlikely is seen more clearly. The slope gets one
#    $1/t$ from $z / t$, and another because softened distributions differ less; $t^2$ in front keeps its size.
# 4. *The other direction*, $\text{KL}(q, p)$, the average of $\log q - \log p$ over what the *student* says: $\partial
#    L / \partial z_v = q_v (\log q_v - \log p_v - L)$. What it says too often, against how far off it is on average.


# %%
def naive_reverse(p, q):
    """Loss and slope of the divergence seen from the student."""
    loss = naive_kl(q, p)
    return loss, [b * (np.log(b) - np.log(a) - loss) for a, b in zip(p, q)]


loss, cache = reverse_kl_forward(np.log(p)[None, None], np.log(q)[None, None], row)
assert np.isclose(loss, naive_reverse(p, q)[0])
assert np.allclose(reverse_kl_backward(1.0, cache)[0, 0], naive_reverse(p, q)[1])

z = np.log(q)  # both slopes by trying, at a temperature of 3
for forward, backward in ((forward_kl_forward, forward_kl_backward), (reverse_kl_forward, reverse_kl_backward)):
    slope = backward(1.0, forward(np.log(p)[None, None], z[None, None], row, 3.0)[1])[0, 0]
    tried = central_difference(lambda f=forward: f(np.log(p)[None, None], z[None, None], row, 3.0)[0], z)
    assert np.allclose(slope, tried, rtol=0, atol=1e-9)

# %% [markdown]
# ## The experiment: which way round?
#
# A teacher has two favourites among 40 tokens, and nothing between them. The student is too small for that: its logits
# are a parabola, one place and one width. It must be wrong, and the direction of the divergence says how.

# %%
place = np.arange(40.0)
teacher = 0.6 * np.exp(-((place - 11) ** 2) / 8) + 0.4 * np.exp(-((place - 29) ** 2) / 8)
teacher = np.log(teacher / teacher.sum() + 1e-9)


def fit(forward, backward, start=14.0):
    """Walk place and log-width of a parabola of logits downhill."""
    middle, width = start, 1.5
    for _ in range(4000):
        off = (place - middle) / np.exp(width)
        _, cache = forward(teacher[None, None], (-(off**2) / 2)[None, None], row)
        dz = backward(1.0, cache)[0, 0]
        middle, width = middle - 2 * dz @ off / np.exp(width), width - 0.02 * dz @ off**2
    return np.exp(log_softmax(-(((place - middle) / np.exp(width)) ** 2) / 2))


# %%
fits = {
    "forward: covers everything": fit(forward_kl_forward, forward_kl_backward),
    "reverse: picks one": fit(reverse_kl_forward, reverse_kl_backward),
}
between, missed = fits["forward: covers everything"][18:23].sum(), fits["reverse: picks one"][20:].sum()
assert missed < 0.01 < 0.1 < between
silent = np.exp(teacher)[20:].sum()
title = f"Forward: {between:.0%} where she says nothing; reverse: {silent:.0%} of hers left out"
plot_two_fits(place, np.exp(teacher), fits, ["content", BETTER], title)

# %% [markdown]
# Forward: whatever the teacher may say must be possible, so the middle is filled. Reverse: say nothing that the
# teacher would not, so one favourite is dropped. (Which one depends on the start: here it began nearer to the left.)
# Eq. (27) in `grpo` *measures* a divergence of the second kind, and *pulls* like one of the first.
#
# ## The experiment: labels, logits, texts
#
# A wide teacher (128 hidden numbers) was trained on all 162 training questions. The narrow student (24) has a book with
# 48 of them. Three ways, 300 steps of 32 texts each: the 48 labels alone; the teacher's logits along the same 48 texts;
# or 48 labels and what the teacher *writes* on the other questions, the wrong ones thrown away.

# %%
rng = np.random.default_rng(0)
train, held_out = sorting_problems()
teacher_policy = train_teacher(rng)
few = solve_problems(train[:48])
written = teacher_writes(teacher_policy, train[48:], rng)
both = np.concatenate([few, written])
know = measure_accuracy(teacher_policy, held_out)
print(f"teacher: {know:.0%} of held-out questions; {len(written)} right texts written")
print("such as", " ".join(decode_tokens(t) for t in written[::30]))

# %%
ways = {"48 labels": ("labels", few), "logits along them": ("logits", few), "labels and texts": ("labels", both)}
right = {
    name: [measure_accuracy(train_student(kind, seed, teacher_policy, texts), held_out) for seed in range(3)]
    for name, (kind, texts) in ways.items()
}
for name, found in right.items():
    print(f"{name:<18} {[f'{x:.0%}' for x in found]}")

# %%
means = [round(100 * np.mean(found), 1) for found in right.values()]
assert means[2] > max(means[:2]) + 20
title = f"Texts: from {means[0]:.0f} % to {means[2]:.0f} %; logits along the same texts: {means[1]:.0f} %"
x = "held-out questions right, % (mean of 3 seeds)"
plot_bars(list(right), means, ["ink", "content", BETTER], title, x, " %")

# %% [markdown]
# So here the pen wins, and what the teacher *thinks* along known texts adds nothing. Is that so always?
#
# ## Build it: what a label leaves out
#
# A label is one draw from what could have been written. Step 2 with a label drawn from $p$ has the slope $q_v - [v =
# a]$; on average that is $q_v - p_v$, the teacher's. What is left is noise, and its size can be written down: the mean
# squared distance of a one-hot draw from $p$ is $1 - \sum_v p_v^2$. By pencil: $p = (1/2, 1/4, 1/4)$ gives $1 - 3/8 =
# 0.625$; a teacher who is sure gives 0. Sorting leaves no choice, so that teacher is nearly sure. The book's trained
# model tells stories, where much could come next.


# %%
def left_out(probability):
    return 1 - (probability**2).sum(axis=-1)


draws = np.eye(3)[rng.choice(3, size=20_000, p=p)]
assert abs(((draws - p) ** 2).sum(axis=1).mean() - left_out(p)) < 0.01  # 0.625 by pencil

# %%
from token_policy import policy_forward, read_windows

from utils.story_model import new_stories, open_book

solved = solve_problems(held_out)
sorting = left_out(np.exp(log_softmax(policy_forward(teacher_policy, read_windows(solved, 7)[:, 3:-1])[0])))
stories = [open_book().read(" ".join(story.sentences)) for story in new_stories(30)]
telling = np.concatenate([left_out(np.exp(log_softmax(seen.logits))) for seen in stories])
found = {"sorting": sorting.mean(), "telling stories": telling.mean()}
times = found["telling stories"] / found["sorting"]
title = f"A label leaves out {times:.0f} times as much in a story as in a sorted answer"
plot_bars(list(found), [round(v, 3) for v in found.values()], ["ink", "content"], title, "1 − Σ p², mean over tokens")

# %% [markdown]
# Where the next token is open, a distribution is worth many draws, and logits have much to add; where it is certain,
# only *new questions* help. DeepSeek's case (mathematics, code) is nearer to the second, and texts need
# no common vocabulary.
#
# ## Change this, predict, run
#
# Skip the check: keep the teacher's wrong answers as well. She is almost always right; predict how much the student
# loses. And with a teacher that was trained for 60 steps only?
#
# <details><summary>Afterwards</summary>
#
# Of a teacher who is nearly always right, hardly anything: 96 % unchecked, 94 % checked, which is chance. Of one who is
# right two times in three: 52 % against 91 %, and with the 48 labels alone it was 61. Unchecked, a poor teacher is
# worse than none; checked, she is nearly as good as the best. The check is what made her a teacher.
#
# </details>


# %%
def mean_right(teacher, texts):
    students = [train_student("labels", seed, teacher, np.concatenate([few, texts])) for seed in range(3)]
    return np.mean([measure_accuracy(student, held_out) for student in students])


for n_steps in (400, 60):
    r = np.random.default_rng(1)
    tired = train_teacher(r, n_steps)
    checked, anything = teacher_writes(tired, train[48:], r), write_answers(tired, train[48:], r).token_BT
    print(f"teacher of {n_steps} steps, {measure_accuracy(tired, held_out):.0%} right; student on", end=" ")
    print(f"{len(checked)} checked texts {mean_right(tired, checked):.0%}, on one unchecked text a question", end=" ")
    print(f"{mean_right(tired, anything):.0%} (means of 3 seeds)")

# %% [markdown]
# ## What you can now do
#
# Derive both divergences' slopes; say what a temperature shows and why $t^2$ stands in front; say what a label leaves
# out; choose between logits and texts, and say what each needs (the same vocabulary; a check).
#
# ## Exercises
#
# Graded: `reverse_kl_slope` (`make check CH=07`). By thought alone:
#
# **1.** Teacher and student have different tokenizers. Which way is left?
#
# <details><summary>Solution</summary>
#
# Texts. Logits are distilled token by token and need one vocabulary.
#
# </details>
#
# **2.** How large are the teacher's logits of a text of 1,000 tokens, for V3?
#
# <details><summary>Solution</summary>
#
# 1,000 · 129,280 numbers: 259 MB in BF16, against 4 kB of text. One keeps the largest few of each row, or runs the
# teacher beside the student.
#
# </details>
#
# **3.** With which kind of divergence is GRPO's step, "likelier what was better", related?
#
# <details><summary>Solution</summary>
#
# With the reverse one: the average is over what the *student* says. It can only move what it already writes now and
# then; a teacher's texts can show it what it never would.
#
# </details>
