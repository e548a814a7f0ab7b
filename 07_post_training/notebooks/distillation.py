# %% [markdown]
# # What does a teacher say that a solution does not?
#
# A solution at the back of the book says: 7. A teacher who is asked says: 7, of course, although I see why you might
# think 9, and nobody would say 3. A *label* is one token. A *teacher* is a probability for every token, at every place.
#
# DeepSeek-V3 learned to reason from another model, DeepSeek-R1: not from its probabilities but from the answers that it
# wrote, of which those that a check found right were kept. This notebook has both ways, and lets them compete.

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
from token_policy import decode_tokens, log_softmax, measure_accuracy, solve_problems, sorting_problems

from utils.drawings_07 import plot_bars, plot_curves, plot_two_fits

# %% [markdown]
# ## Numbers to follow with a pencil
#
# The *divergence* between two distributions, teacher $p$ and student $q$, is the average of $\log p - \log q$, taken
# over what the teacher would say. Three tokens, $p = (1/2, 1/4, 1/4)$ and $q = (1/4, 1/2, 1/4)$:
#
# $\frac12 \log 2 + \frac14 \log \frac12 + \frac14 \log 1 = \frac12 \log 2 - \frac14 \log 2 = \frac14 \log 2 = 0.173$.
#
# It is 0 only when both agree everywhere. The student's logits feel $q - p = (-1/4, +1/4, 0)$: too little of the first
# token, too much of the second, and the third is right.


# %%
def naive_kl(p, q):
    """The teacher's average of log p - log q."""
    return sum(a * (np.log(a) - np.log(b)) for a, b in zip(p, q))


p, q, row = np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.5, 0.25]), np.ones((1, 1), dtype=bool)
loss, cache = forward_kl_forward(np.log(p)[None, None], np.log(q)[None, None], row)
assert np.isclose(naive_kl(p, q), loss)
print("KL(p, q) =", round(loss, 4), "  slope", forward_kl_backward(1.0, cache)[0, 0])

# %% [markdown]
# ## The derivation
#
# Letters: $z$ are the student's logits, $q$ its softmax, $t$ a temperature that divides all logits.
#
# 1. $L = \sum_v p_v \log p_v - \sum_v p_v \log q_v$; the first part does not know the student.
# 2. $\log q_v = z_v - \log \sum_u e^{z_u}$, so $\partial L / \partial z_v = -p_v + q_v \sum_u p_u = q_v - p_v$. With a
#    label, $p$ is one-hot: fine-tuning is distillation from a teacher that is always sure.
# 3. *Temperature*: divide the logits of both by $t > 1$, and what was unlikely is seen more clearly. The slope gets one
#    $1/t$ from $z / t$, and another because softened distributions differ less; $t^2$ in front keeps its size.
# 4. *The other direction*, the student's average of $\log q - \log p$: $\partial L / \partial z_v = q_v (\log q_v -
# \log p_v - L)$.


# %%
def naive_reverse(p, q):
    """Loss and slope of the divergence seen from the student."""
    loss = naive_kl(q, p)
    return loss, [b * (np.log(b) - np.log(a) - loss) for a, b in zip(p, q)]


loss, cache = reverse_kl_forward(np.log(p)[None, None], np.log(q)[None, None], row)
assert np.isclose(loss, naive_reverse(p, q)[0])
assert np.allclose(reverse_kl_backward(1.0, cache)[0, 0], naive_reverse(p, q)[1])

# %% [markdown]
# ## The experiment: which way round?
#
# A teacher has two favourites among 40 tokens, and nothing between them. The student is too small for that: its logits
# are a parabola, one place and one width. It must be wrong, and the direction of the divergence says how.

# %%
place, tau = np.arange(40.0), 2 * np.pi
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
between = fits["forward: covers everything"][18:23].sum()
title = f"Forward, {between:.0%} of what it says is what the teacher never would"
plot_two_fits(place, np.exp(teacher), fits, ["content", "rope"], title)

# %% [markdown]
# Forward: whatever the teacher may say must be possible, so the middle is filled. Reverse: say nothing that the
# teacher would not, so one favourite is dropped. (Which one, depends on the start: here it began nearer to the left.)
# The pull of Eq. (27) in `grpo` is of the first kind.
#
# ## The experiment: labels, logits, texts
#
# A wide teacher was trained on all 162 training questions. The narrow student has 48 of them. Three ways, equal steps:
# the 48 labels alone; the teacher's logits along the same 48 texts; or 48 labels and what the teacher *writes* on the
# other questions, the wrong ones thrown away.

# %%
rng = np.random.default_rng(0)
train, held_out = sorting_problems()
teacher = train_teacher(rng)
few = solve_problems(train[:48])
written = teacher_writes(teacher, train[48:], rng)
both = np.concatenate([few, written])
print(f"teacher: {measure_accuracy(teacher, held_out):.0%} of held-out questions; {len(written)} right texts written")
print("such as", " ".join(decode_tokens(t) for t in written[::30]))

# %%
ways = {"48 labels": ("labels", few), "logits along them": ("logits", few), "labels and texts": ("labels", both)}
right = {
    name: [measure_accuracy(train_student(kind, seed, teacher, texts), held_out) for seed in range(3)]
    for name, (kind, texts) in ways.items()
}
for name, found in right.items():
    print(f"{name:<18} {[f'{x:.0%}' for x in found]}")

# %%
means = [round(100 * np.mean(found), 1) for found in right.values()]
title = (
    f"Texts lift the student from {means[0]:.0f} % to {means[2]:.0f} %; logits along the same texts to {means[1]:.0f} %"
)
plot_bars(
    list(right), means, ["ink", "content", "latent"], title, "held-out questions right, % (mean of 3 seeds)", " %"
)

# %% [markdown]
# A sorted answer leaves no choice: the teacher is nearly sure of every token, its distribution is nearly the label,
# and along texts that the student has seen there is little more to say. New texts are new questions answered. Where
# the next token is *not* certain, as in prose, a distribution says far more than one draw from it; this task cannot
# show that.
#
# ## Change this, predict, run
#
# Keep the teacher's wrong answers as well: replace `written` by what `write_answers` gives for `train[48:]`, unchecked.
# The teacher is almost always right: predict how much the student loses. Then with `train_teacher(rng, 60)`, a teacher
# that is not.
#
# ## What you can now do
#
# Derive both divergences' slopes; say what a temperature shows and why $t^2$ stands in front; choose between logits and
# texts, and say what each needs (the same vocabulary; a check).
#
# ## Exercises
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
