# %% [markdown]
# # Descent
#
# **The question.** A model has millions of weights and one number that says how bad it is. In which direction should
# each weight move, and how far?
#
# You stand on a mountain in thick fog and want to go down. You cannot see the valley. But you feel the ground under
# your feet: to the east it falls steeply, to the north it rises a little. So you take a step where it falls most, feel
# again, and take the next one. That is all of training: feel the slope, step, feel again.
#
# Two things can go wrong, and both will happen below. If the step is too long, you land on the opposite side, higher
# than before. And if the valley is a long, narrow gorge, the ground falls steeply towards its walls and hardly along
# its bed: you stumble from wall to wall and make no way. Adam, the rule that trains DeepSeek-V3, is an answer to the
# gorge.

# %%
import numpy as np
from descent import adam_step, clip_gradients, momentum_step, plain_step, valley_backward, valley_forward, walk_valley

from utils.plots_00 import draw_parabola, draw_paths

# %% [markdown]
# ## Words first
#
# The **loss** $L$ is the number to be made small. The **slope** of $L$ by a weight $w$ says how fast $L$ grows when $w$
# grows: raise $w$ by a tiny $h$, and $L$ grows by slope times $h$. We write it $dw$ (short for
# $\partial L / \partial w$). All slopes together are the **gradient**; as an arrow it points where $L$ grows fastest,
# so a step *against* it goes down. The **learning rate** $\eta$ (eta) says how long a step is:
# $w \leftarrow w - \eta\, dw$.
#
# ## Numbers to follow with a pencil
#
# One weight, $L = w^2/2$, so the slope is $dw = w$. Start at 4.
#
# Rate 0.5: $4 - 0.5 \cdot 4 = 2$, then 1, then 0.5. Each step halves the way to the bottom.
#
# Rate 1.9: $4 - 1.9 \cdot 4 = -3.6$, then $3.24$, then $-2.92$. It lands on the other side each time, but nearer.
#
# Rate 2.5: $4 - 10 = -6$, then $9$, then $-13.5$. Each step lands higher than the last. This is how training
# *explodes*.

# %%
paths = {}
for rate in (0.5, 1.9, 2.5):
    w, path = 4.0, [4.0]
    for _ in range(5):
        w = w - rate * w
        path.append(w)
    paths[f"rate {rate}"] = np.array(path)
    print(f"rate {rate}:", [round(p, 2) for p in path[:4]])
draw_parabola(paths, ["content", "content", "wrong"], "Twice the right step only swings; more than twice explodes")

# %% [markdown]
# ## Build it: slopes without trying
#
# One could find every slope by trying: raise a weight, measure, put it back. For a million weights that is a million
# measurements a step. The **chain rule** finds all of them in one walk backwards: if $w$ acts on $a$, and $a$ acts on
# $L$, then the slopes multiply, $dw = da \cdot \partial a/\partial w$. So every operation needs to know only how to
# turn the slope of its output into the slopes of its inputs. We call the two directions *forward* and *backward*, and
# every mechanism of this book comes as such a pair.
#
# Three operations in a row: $a = w x$, then $b = \tanh a$ (a smooth bend between −1 and 1), then $L = (b - y)^2$.


# %%
def forward(w, x, y):
    a = w * x
    b = np.tanh(a)
    return (b - y) ** 2, (a, b)


def backward(w, x, y, kept):
    a, b = kept
    db = 2 * (b - y)  # slope of the square
    da = db * (1 - b**2)  # slope of tanh, from what came out of it
    return da * x  # slope of a product by one factor: the other factor


# %%
w, x, y, h = 0.7, 1.5, -0.2, 1e-6
loss, kept = forward(w, x, y)
by_trying = (forward(w + h, x, y)[0] - forward(w - h, x, y)[0]) / (2 * h)  # a central difference
assert np.isclose(backward(w, x, y, kept), by_trying, rtol=1e-8)
print(f"by the chain rule {backward(w, x, y, kept):.8f}, by trying {by_trying:.8f}")

# %% [markdown]
# That assert is the book's oldest friend: every backward pass in it is held to central differences like this.
#
# ## The gorge
#
# Two weights, $L = (x^2 + 100\, y^2)/2$. The slopes are $x$ and $100 y$: along $y$ the ground is a hundred times
# steeper. Along $y$ every rate above $2/100$ explodes. Along $x$ a rate of $0.02$ is slow: each step takes away one
# fiftieth of the way. **One rate must serve both**, and the steep direction decides.
#
# ## The derivation: from plain steps to Adam
#
# 1. **Plain descent**, $w \leftarrow w - \eta\, dw$. Where the slope is $c\,w$, a step multiplies $w$ by $1 - \eta c$.
#    It shrinks if $|1 - \eta c| < 1$, that is, if $\eta < 2/c$ for the *largest* $c$.
# 2. **Momentum.** Let the steps roll: $s \leftarrow 0.9\, s + dw$, $w \leftarrow w - \eta s$. Along the bed all slopes
#    agree and add up, to ten times the speed. From wall to wall they alternate and cancel.
# 3. **Adam** asks a different question: how large is the slope of this weight *usually*? Keep a running mean of the
#    slopes, $m \leftarrow \beta_1 m + (1 - \beta_1)\, dw$, and one of their squares,
#    $v \leftarrow \beta_2 v + (1 - \beta_2)\, dw^2$. (A running mean forgets: with $\beta = 0.9$ a value counts for
#    about 10 steps, with $0.95$ for about 20.)
# 4. Step by their quotient: $w \leftarrow w - \eta\, m / (\sqrt v + \epsilon)$. Whatever the size of the slopes, the
#    quotient is about 1 where they agree, and small where they contradict each other. **Every weight moves by about
#    $\eta$ a step**, steep or shallow. ($\epsilon$ is tiny; it only avoids $0/0$.)
# 5. **The start.** $m$ and $v$ begin at zero, so at step $t$ they are too small, by the factors $1 - \beta_1^t$ and
#    $1 - \beta_2^t$ (the weights of a running mean sum to that). Divide it out.
# 6. **Decay** (the W of AdamW): also shrink each weight a little, $w \leftarrow w - \eta \lambda w$, so that weights
#    nobody needs fade. If it were part of the gradient, step 4 would divide it away again.


# %%
def naive_adam(w, slopes, rate, b1=0.9, b2=0.95):
    """One weight, a list of slopes: where Adam takes it."""
    m = v = 0.0
    for t, dw in enumerate(slopes, 1):
        m = b1 * m + (1 - b1) * dw
        v = b2 * v + (1 - b2) * dw**2
        w = w - rate * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + 1e-8)
    return w


# %%
slopes, weights, moments = [100.0, -3.0, 0.01, 40.0], {"w": np.array([2.0])}, None
for dw in slopes:
    weights, moments = adam_step(weights, {"w": np.array([dw])}, moments, rate=0.1)
assert np.isclose(weights["w"][0], naive_adam(2.0, slopes, rate=0.1), rtol=1e-14)
print("naive and module agree: from 2 to", weights["w"][0].round(6))
for dw in (100.0, 0.01):
    print(f"first step for a slope of {dw:g}: {naive_adam(0.0, [dw], rate=0.1):+.4f}")

# %% [markdown]
# A slope of 100 and one of 0.01 make the same first step. That is the strength of Adam, and a thing to know about it:
# it also hides every wrong *factor* in a gradient. A backward pass that is ten times too large trains just as well, and
# only a gradient check sees it. You will meet such mistakes in every chapter.
#
# ## The experiment: four rules in the gorge

# %%
rules = {
    "plain, rate 0.018": lambda w, d, s: (plain_step(w, d, 0.018), s),
    "plain, rate 0.021": lambda w, d, s: (plain_step(w, d, 0.021), s),
    "momentum, rate 0.01": lambda w, d, s: momentum_step(w, d, s, 0.01),
    "Adam, rate 0.2": lambda w, d, s: adam_step(w, d, s, 0.2),
}
paths = {name: walk_valley(rule, 100) for name, rule in rules.items()}
height = {name: valley_forward(path[-1]) for name, path in paths.items()}
assert height["momentum, rate 0.01"] < height["Adam, rate 0.2"] < 0.01 * height["plain, rate 0.018"]
draw_paths(paths, valley_forward, "Plain steps crawl or explode; momentum and Adam get down")

# %% [markdown]
# In this smooth gorge momentum wins. Adam circles the bottom at a distance of its rate: since every step is about
# $\eta$ long, it only comes to rest when the rate falls. That is why training runs end with a falling rate. What Adam
# is for shows when the *units* change. Measure $x$ in metres and $y$ in millimetres, or the whole loss in cents:

# %%
scaled = {}
for factor in (1.0, 1000.0):
    steep = {"w": np.array([4.0, 1.0])}
    adam = momentum = steep
    state_a = state_m = None
    for _ in range(100):
        slope_a, slope_m = ({"w": factor * valley_backward(r["w"])} for r in (adam, momentum))
        adam, state_a = adam_step(adam, slope_a, state_a, 0.2)
        with np.errstate(over="ignore", invalid="ignore"):
            momentum, state_m = momentum_step(momentum, slope_m, state_m, 0.01)
    scaled[factor] = (adam["w"], momentum["w"])
    where = momentum["w"].round(3) if np.abs(momentum["w"]).max() < 1e6 else "beyond all bounds"
    print(f"loss times {factor:g}: Adam at {adam['w'].round(3)}, momentum {where}")

# %%
assert np.allclose(scaled[1.0][0], scaled[1000.0][0], atol=1e-6)
assert not np.abs(scaled[1000.0][1]).max() < 1e6
print("Adam goes the same way whatever the loss is multiplied with; momentum needs another rate")

# %% [markdown]
# A model has matrices of very different slopes, and nobody can give each a rate of its own by hand. Adam does.
#
# ## One more belt: clipping
#
# Now and then a batch of text is so strange that its gradient is a hundred times the usual one. V3 therefore shortens
# the gradient of all weights together to length 1 whenever it is longer. The direction stays.

# %%
clipped, norm = clip_gradients({"a": np.array([3.0]), "b": np.array([4.0])})
assert norm == 5.0
assert np.isclose(clipped["a"][0], 0.6)
print(f"(3, 4) has length {norm:g}; clipped it is ({clipped['a'][0]:g}, {clipped['b'][0]:g})")

# %% [markdown]
# ## Change this, predict, run
#
# Below, one weight sees slopes that alternate, $+1, -1, +1, -1, \dots$, and another sees $+1$ always. Both have the
# same usual size, 1. How far will each have moved after 20 steps of Adam at rate 0.1? Predict, then run. Then make the
# slopes of the second one $0.001$.
#
# <details><summary>Afterwards</summary>
#
# The steady one moves by $20 \cdot 0.1 = 2$, and by exactly as much with slopes of 0.001. The alternating one makes its
# first step of 0.1 and then almost stands: its mean is near zero, its usual size is still 1. The quotient $m / \sqrt v$
# is a kind of *agreement* between the last slopes.
#
# </details>

# %%
alternating = [(-1.0) ** t for t in range(20)]
steady = [1.0] * 20
print(f"alternating {naive_adam(0.0, alternating, 0.1):+.3f}, steady {naive_adam(0.0, steady, 0.1):+.3f}")

# %% [markdown]
# ## What you can now do
#
# Say why a rate explodes and at which value; find slopes by the chain rule and check them by trying; write Adam from
# memory and say what each of its lines is for.
#
# ## Exercises
#
# Graded: `adam_step` (`make check CH=00`). By thought alone:
#
# 1. Without the division by $1 - \beta^t$, how long is Adam's first step for $\beta_1 = 0.9$, $\beta_2 = 0.95$?
#
# <details><summary>Solution</summary>
#
# $m = 0.1\,dw$ and $\sqrt v = \sqrt{0.05}\,|dw| = 0.224\,|dw|$: 0.447 of the rate. With $\beta_2 = 0.999$, the usual
# value elsewhere, it would be 3.2 times the rate: too long instead of too short.
#
# </details>
#
# 2. Adam keeps two numbers for every weight. How many bytes does that make for V3's 671 billion weights in FP32, and
#    what does the report do about it?
#
# <details><summary>Solution</summary>
#
# $2 \cdot 4 \cdot 671 \cdot 10^9 = 5.4$ terabytes. V3 keeps both moments in BF16, half of that, and the weights
# themselves in FP32 beside their copies for computing (report, section 3.3.3).
#
# </details>
#
# 3. Why does a step against the gradient go down at all, and why only if it is short?
#
# <details><summary>Solution</summary>
#
# Along the step $-\eta\, dw$ the loss changes by about $-\eta \sum dw^2 < 0$. That is the straight line that touches
# the curve; the curve bends away from it, by an amount that grows with $\eta^2$. For short steps the line wins.
#
# </details>
