# %% [markdown]
# # The transformer block
#
# **The question.** We have a reader that lets tokens exchange (attention), one that lets each think (SwiGLU), and a
# knob that hands both rows of one size (RMSNorm). How do we stack 61 pairs of them, so that the first still learns when
# the error is measured behind the last?
#
# Remember the children's game in which a sentence is whispered from ear to ear. After sixty ears nothing is left of it.
# Now play it differently: the sentence is written on a sheet that goes round, and everybody may *add a note*. Nobody
# rewrites the sheet. The last player reads the first words as they were written, and whoever wants to tell the first
# player something about his words sends it straight back along the sheet.
#
# The sheet is the **residual stream**. A layer reads a normed copy of it and *adds* what it has to say. At the end of
# this notebook such a stack is a language model: it reads the stories of chapter 00, whose window could not see *who
# sat*, and it comes within a hundredth of a nat of the best there is.

# %%
from dataclasses import replace

import numpy as np
from multi_head_attention import multi_head_backward, multi_head_forward
from rms_norm import rms_norm_backward, rms_norm_forward
from swiglu import swiglu_backward, swiglu_forward

# %%
from transformer_block import (
    BlockSizes,
    BlockWeights,
    block_backward,
    block_forward,
    list_arrays,
    stack_backward,
    stack_forward,
    tour_block,
)

# %%
from utils.drawings_01 import draw_block, draw_lanes, draw_who
from utils.gradient_check import central_difference, relative_error
from utils.plots_00 import plot_to_floor
from utils.plots_01 import plot_wirings
from utils.story_task import step_adam, story_words, word_floors

# %%
draw_block()

# %% [markdown]
# ## Numbers to follow with a pencil
#
# Let the stream be a single number and a layer a simple one: it answers with a tenth of what it reads,
# $f(x) = 0.1\, x$.
#
# **With the stream**, $x \leftarrow x + 0.1\, x = 1.1\, x$. After 60 layers: $1.1^{60} = 304$ times. **Without**,
# $x \leftarrow 0.1\, x$: after 60 layers $10^{-60}$. Gradients are multiplied by the same factors on their way back.
# With $10^{-60}$ of a gradient nothing learns.
#
# Now let every layer be silent, $f(x) = 0$. With the stream, $x$ arrives as it was and so does the gradient, after any
# number of layers. Without it, everything is zero. *A layer that has not learned anything yet does no harm*: that is
# the whole idea.

# %%
print(f"60 layers with f(x) = 0.1 x: with the stream {1.1**60:.0f}, without {0.1**60:.0e}")

# %% [markdown]
# ## Build it
#
# Letters: $D$ the width of the stream, $H$ heads of widths $K$ and $U$, $F$ hidden units of the SwiGLU. Two lines are
# all there is.


# %%
def naive_block(x, w, n_heads):
    """Exchange, then think; both times the answer is added to the stream."""
    x = x + multi_head_forward(rms_norm_forward(x, w.input_layernorm)[0], w.self_attn, n_heads)[0]
    x = x + swiglu_forward(rms_norm_forward(x, w.post_attention_layernorm)[0], w.mlp)[0]
    return x


rng = np.random.default_rng(0)
sizes = BlockSizes(hidden_size=12, n_heads=3, key_dim=4, value_dim=4, intermediate_size=32)
weights, x = BlockWeights.init(rng, sizes), rng.normal(size=(1, 6, 12))
out, cache = block_forward(x, weights, sizes.n_heads)
assert np.allclose(out, naive_block(x, weights, sizes.n_heads), atol=1e-14)
print("naive and module agree:", out.shape)

# %% [markdown]
# Shape by shape. Wherever something is added, the last axis is $D$: that is what makes blocks stackable. (The names are
# those of the released checkpoint. `post_attention_layernorm` stands *before* the MLP; it is called so because it comes
# after the attention.)

# %%
for what, axes, shape in tour_block(cache):
    print(f"{what:32} {axes:8} {shape}")

# %% [markdown]
# ## The derivation
#
# 1. Forward: $x' = x + A(N_1(x))$, then $x'' = x' + M(N_2(x'))$. $A$ is attention, $M$ the SwiGLU, $N_1, N_2$ the
#    norms. After $L$ blocks the stream is what came in, plus $2L$ answers.
# 2. **Backwards through one addition.** $y = x + f(x)$: raise $x$ a little, and $y$ grows by that, and by what $f$
#    makes of it. So $dx = dy + (\text{slope of } f)^\top dy$. The gradient arrives **twice**, straight and through the
#    branch.
# 3. **Through many.** The factors of all layers multiply: $(I + J_L) \cdots (I + J_1)$, where $J_l$ is the Jacobian of
#    branch $l$ (all its slopes) and $I$ changes nothing. Multiply out: one of the terms is $I$. However deep the stack,
#    and whatever its branches do, the error reaches the first layer by that term unchanged. Without the stream the
#    product is $J_L \cdots J_1$, and it shrinks or grows like a power.
# 4. **Where the norm stands.** In the branch it touches only what the reader sees (*pre-norm*). On the stream,
#    $x' = N(x + A(x))$ (*post-norm*), every layer rescales the stream and its gradient, and the term $I$ is lost.
# 5. **What pre-norm costs.** The stream grows: unrelated answers add like the sides of right angles, so their sum grows
#    like the root of their number. One last norm before the head settles it.


# %%
def naive_backward(dout, cache):
    """The two lines of the block from the last to the first; each norm and reader has its own backward pass."""
    through = swiglu_backward(dout, cache.mlp)[0]
    dbetween = dout + rms_norm_backward(through, cache.mlp_norm)[0]  # straight, and through the branch
    through = multi_head_backward(dbetween, cache.attention)[0]
    return dbetween + rms_norm_backward(through, cache.attention_norm)[0]


dout = rng.normal(size=x.shape)
dx, gradients = block_backward(dout, cache)
assert np.allclose(dx, naive_backward(dout, cache), atol=1e-14)
by_trying = central_difference(lambda: np.sum(dout * block_forward(x, weights, 3)[0]), x)
print("naive and module agree; central differences:", relative_error(dx, by_trying) < 1e-8)

# %% [markdown]
# And the silent block: with both output matrices zero, stream and gradient pass unchanged, to the last bit.

# %%
mute_attention = replace(weights.self_attn, o_proj=0 * weights.self_attn.o_proj)
mute = replace(weights, self_attn=mute_attention, mlp=replace(weights.mlp, down_proj=0 * weights.mlp.down_proj))
quiet, mute_cache = block_forward(x, mute, 3)
assert np.array_equal(quiet, x)
assert np.array_equal(block_backward(dout, mute_cache)[0], dout)
print("a block that says nothing changes nothing, forward and back")

# %% [markdown]
# ## The experiment: three ways to stack
#
# The same weights, three wirings: with the stream and the norm in the branch (pre-norm), with the norm on the stream
# (post-norm), and with no stream at all. We send random rows through 64 blocks and a random gradient back, and write
# down its size at every block.

# %%
SIZES = BlockSizes(hidden_size=32, n_heads=4, key_dim=8, value_dim=8, intermediate_size=64)
deep = [BlockWeights.init(rng, SIZES) for _ in range(64)]
rows, gradient = rng.normal(size=(4, 6, 32)), rng.normal(size=(4, 6, 32))


def post_norm(x, w):
    """x = norm(x + attention(x)), then x = norm(x + mlp(x)); returns the way back too."""
    attended, attention = multi_head_forward(x, w.self_attn, 4)
    x, first = rms_norm_forward(x + attended, w.input_layernorm)
    thought, mlp = swiglu_forward(x, w.mlp)
    x, second = rms_norm_forward(x + thought, w.post_attention_layernorm)
    return x, (attention, first, mlp, second)


# %%
def post_norm_back(dx, cache):
    attention, first, mlp, second = cache
    dx = rms_norm_backward(dx, second)[0]
    dx = rms_norm_backward(dx + swiglu_backward(dx, mlp)[0], first)[0]
    return dx + multi_head_backward(dx, attention)[0]


# %%
def no_stream(x, w):
    """x = attention(norm(x)), then x = mlp(norm(x)): the answers replace the rows."""
    x, first = rms_norm_forward(x, w.input_layernorm)
    x, attention = multi_head_forward(x, w.self_attn, 4)
    x, second = rms_norm_forward(x, w.post_attention_layernorm)
    x, mlp = swiglu_forward(x, w.mlp)
    return x, (first, attention, second, mlp)


def no_stream_back(dx, cache):
    first, attention, second, mlp = cache
    dx = rms_norm_backward(swiglu_backward(dx, mlp)[0], second)[0]
    return rms_norm_backward(multi_head_backward(dx, attention)[0], first)[0]


# %%
def measure_stack(forward, backward):
    """Size (root mean square) of the stream after each block, and of the gradient before each."""
    x, dx, caches = rows, gradient, []
    up, down = [np.sqrt(np.mean(x**2))], [np.sqrt(np.mean(dx**2))]
    for weights in deep:
        x, cache = forward(x, weights)
        caches.append(cache)
        up.append(np.sqrt(np.mean(x**2)))
    for cache in reversed(caches):
        dx = backward(dx, cache)
        down.append(np.sqrt(np.mean(dx**2)))
    return [[float(f"{size:.4g}") for size in way] for way in (up, down[::-1])]  # what a picture can show


# %%
wirings = {
    "pre-norm": measure_stack(lambda x, w: block_forward(x, w, 4), lambda dx, cache: block_backward(dx, cache)[0]),
    "post-norm": measure_stack(post_norm, post_norm_back),
    "no stream": measure_stack(no_stream, no_stream_back),
}
grown = {name: down[0] / down[-1] for name, (_, down) in wirings.items()}
assert grown["pre-norm"] < grown["post-norm"] < grown["no stream"]
title = (
    f"64 blocks scale a gradient by {grown['pre-norm']:.0f} with pre-norm, by {grown['no stream']:.0e} without stream"
)
plot_wirings(wirings, ["content", "ink", "wrong"], title)

# %% [markdown]
# Read the right board from right to left, as the gradient travels. Without a stream it grows by about the same factor
# in every block, a straight line on this scale. With the norm on the stream it grows too, more slowly. With the norm in
# the branch most of the growth is in the first few blocks: further on the stream has become large (left), so each
# answer is a small part of the whole. This is a measurement at the start of training, on random weights and one seed;
# it says nothing about where training ends.
#
# ## The experiment: who sat, at last
#
# Chapter 00 left a question open. In *the cat that heard the dog sat on the mat*, a model with a window of 16 letters
# cannot know at the verb who it was that heard. Now we build a language model from blocks, word by word, on the same
# 224 sentences. Besides the blocks it needs an embedding, a row for each **place** (attention knows no order; chapter
# 02 has a better way), a last norm, and a head. That is all of DeepSeek-V3's outline.

# %%
names, table, chance = story_words()
V, S, D = len(names), table.shape[1] - 1, 24
SMALL = BlockSizes(hidden_size=D, n_heads=2, key_dim=12, value_dim=12, intermediate_size=48)


def fresh_model(n_layers, seed=0):
    r = np.random.default_rng(seed)
    layers = [BlockWeights.init(r, SMALL) for _ in range(n_layers)]
    ends = {
        "embed": r.normal(size=(V, D)),
        "place": r.normal(size=(S, D)),
        "norm": np.ones(D),
        "head": r.normal(size=(V, D)) / 50,
    }
    return layers, ends


# %%
def model_forward(words, layers, ends):
    """Words [B, S] in, logits [B, S, V] out."""
    stream = ends["embed"][words] + ends["place"]
    stream, blocks = stack_forward(stream, layers, SMALL.n_heads)
    normed, norm = rms_norm_forward(stream, ends["norm"])
    return normed @ ends["head"].T, (words, blocks, norm, normed)


# %%
def model_backward(dlogits, cache, ends):
    words, blocks, norm, normed = cache
    dstream, dnorm = rms_norm_backward(dlogits @ ends["head"], norm)
    dstream, dlayers = stack_backward(dstream, blocks)
    dembed = np.zeros_like(ends["embed"])
    np.add.at(dembed, words, dstream)
    dhead = np.einsum("bsv,bsd->vd", dlogits, normed)
    return dlayers, {"embed": dembed, "place": dstream.sum(axis=0), "norm": dnorm, "head": dhead}


# %% [markdown]
# The loss is the surprise at the next word. Short sentences are filled up; what is filled up does not count.


# %%
def surprise(logits, target):
    """Mean over the words that count (target >= 0), and its gradient."""
    counts = target >= 0
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    came = np.take_along_axis(p, np.maximum(target, 0)[..., None], axis=-1)[..., 0]
    one_hot = np.eye(V)[np.maximum(target, 0)]
    return -np.log(came[counts]).mean(), counts[..., None] * (p - one_hot) / counts.sum()


# %%
def train(n_layers, steps=500, rate=0.01):
    layers, ends = fresh_model(n_layers)
    r, moments, losses = np.random.default_rng(1), {}, []
    for step in range(1, steps + 1):
        drawn = table[r.choice(len(table), size=32, p=chance)]
        logits, cache = model_forward(np.maximum(drawn[:, :-1], 0), layers, ends)
        loss, dlogits = surprise(logits, drawn[:, 1:])
        dlayers, dends = model_backward(dlogits, cache, ends)
        arrays, gradients = dict(ends), dict(dends)
        for i, (w, d) in enumerate(zip(layers, dlayers)):
            arrays |= list_arrays(w, f"{i}.")
            gradients |= list_arrays(d, f"{i}.")
        step_adam(arrays, gradients, moments, step, rate * (1 - step / (steps + 1)))
        losses.append(loss)
    return layers, ends, losses


# %%
floor, bigram = word_floors(table, chance, V)


def price(layers, ends):
    """Expected surprise of a word, over all 224 sentences with their probabilities: exact, no sampling."""
    logits, _ = model_forward(np.maximum(table[:, :-1], 0), layers, ends)
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    came = np.take_along_axis(log_p, np.maximum(table[:, 1:], 0)[..., None], axis=-1)[..., 0]
    counts = table[:, 1:] >= 0
    return -(chance @ (came * counts).sum(axis=1)) / (chance @ counts.sum(axis=1))


models = {n: train(n) for n in (1, 2)}
paid = {n: price(layers, ends) for n, (layers, ends, _) in models.items()}
print(f"floor {floor:.4f}, one block {paid[1]:.4f}, two blocks {paid[2]:.4f}, best without exchange {bigram:.4f}")

# %%
smooth = {f"{n} block{'s' * (n > 1)}": np.convolve(m[2], np.ones(20) / 20, mode="valid") for n, m in models.items()}
assert floor < paid[1] < floor + 0.02
title = f"One block pays {paid[1]:.3f} nats a word; the floor is {floor:.3f}; without attention {bigram:.3f}"
curves = {name: (range(len(v)), v) for name, v in smooth.items()}
curves["no exchange: knows the last word"] = (range(480), [bigram] * 480)
plot_to_floor(
    curves, ["content", "ink", "wrong"], floor, "nobody can pay less", title, "step", "nats a word", ylim=(0, 3.2)
)

# %% [markdown]
# Where does it look? We stop before the verb, at *the cat that heard the dog*, and ask for the next word. The row of
# *dog* must foretell what the **cat** does.

# %%
layers, ends, _ = models[1]
words = [names.index(w) for w in ["^", "the", "cat", "that", "heard", "the", "dog"]]
padded = np.array([words + [0] * (S - len(words))])
logits, cache = model_forward(padded, layers, ends)
p = np.exp(logits[0, 6]) / np.exp(logits[0, 6]).sum()
print("after “the cat that heard the dog”:", {names[i]: round(float(p[i]), 3) for i in np.argsort(-p)[:4]})
share = cache[1][0].attention[1][3][0][:, 6, :7]
lines = {f"head {h}": (["^", "the", "cat", "that", "heard", "the", "dog"], share[h], 6) for h in range(2)}
draw_who(lines, f"The row of “dog” foretells what the cat does: sat {p[names.index('sat')]:.0%} (true: 75%)")

# %% [markdown]
# The truth is 75 % *sat*, 25 % *slept*: what cats do. The dog, one word back, does not matter, and the model has
# learned to go past it.
#
# ### What has become of the two *the*?
#
# They enter with the same embedding. One asks for an actor, one for a place. In the stream they part:

# %%
line = [names.index(w) for w in ["^", "the", "cat", "sat", "on", "the", "mat", "."]]
padded = np.array([line + [0] * (S - len(line))])
logits, cache = model_forward(padded, layers, ends)
for place in (1, 5):
    p = np.exp(logits[0, place]) / np.exp(logits[0, place]).sum()
    print(f"“the” at place {place} foretells", {names[i]: round(float(p[i]), 2) for i in np.argsort(-p)[:4]})

# %%
_, cache = model_forward(padded, *models[2][:2])  # the model of two blocks
shares = [block.attention[1][3][0].mean(axis=0)[:7, :7] for block in cache[1]]
draw_lanes(
    ["^", "the", "cat", "sat", "on", "the", "mat"], shares, "Lanes listen to earlier ones, then each thinks alone"
)

# %% [markdown]
# ## Change this, predict, run
#
# The cells take the place rows away and train again. Attention knows no order; without places, *cat* and *dog* are just
# two actors that occur. Predict: what will the loss be near: the floor, the bigram's value, or between? And at which
# word of *the cat that heard the dog sat on the mat* must it pay more?
#
# <details><summary>Afterwards</summary>
#
# It stays near the floor! The row of *dog* does not need the order: it knows that it is the *dog* itself, and looks for
# the **other** actor. The mask helps too: a row sees only what came before it. It pays where the trick fails: at the
# row of the verb, which must foretell *on* or *at*, both actors are just others, and the verb does not always say who
# it was. (The first
# draft of this answer predicted more, until the cell was run.)
#
# </details>


# %%
def train_without_places(steps=500):
    layers, ends = fresh_model(1)
    ends["place"] *= 0
    r, moments = np.random.default_rng(1), {}
    for step in range(1, steps + 1):
        drawn = table[r.choice(len(table), size=32, p=chance)]
        logits, cache = model_forward(np.maximum(drawn[:, :-1], 0), layers, ends)
        dlayers, dends = model_backward(surprise(logits, drawn[:, 1:])[1], cache, ends)
        dends["place"] *= 0
        arrays, gradients = {**ends, **list_arrays(layers[0])}, {**dends, **list_arrays(dlayers[0])}
        step_adam(arrays, gradients, moments, step, 0.01 * (1 - step / (steps + 1)))
    return layers, ends


# %%
placeless = train_without_places()
print(f"without places {price(*placeless):.3f}, with {paid[1]:.3f}, floor {floor:.3f}, bigram {bigram:.3f}")

# %%
line = "^ the cat that heard the dog sat on the mat .".split()  # noqa: SIM905
words = np.array([[names.index(w) for w in line]])
for name, model in (("with places", models[1][:2]), ("without", placeless)):
    logits, _ = model_forward(words[:, :-1], *model)
    p = np.exp(logits[0]) / np.exp(logits[0]).sum(axis=1, keepdims=True)
    nats = -np.log(p[np.arange(len(line) - 1), words[0, 1:]])
    print(f"{name:12}", "  ".join(f"{w} {n:.2f}" for w, n in zip(line[1:], nats)))

# %% [markdown]
# ## What you can now do
#
# Build a decoder block, forward and backward, from matrix products alone; stack it; make a language model of it that
# learns in seconds; say what the stream is for and where the norm belongs. DeepSeek-V3 keeps this frame to the letter
# (report, Figure 2) and exchanges what stands in the two places: latent attention for the attention (chapter 02),
# routed experts for the SwiGLU in all layers but the first three (chapter 03).
#
# ## Exercises
#
# Graded: `block_forward`, `block_backward` and, last, `block_from_an_empty_file` (`make check CH=01`). By thought
# alone:
#
# 1. The answers have size $a$ each and are unrelated. How large is the stream after $L$ blocks? Compare with the left
#    board of the three wirings.
#
# <details><summary>Solution</summary>
#
# Squares of unrelated parts add: $\sqrt{1 + 2 L a^2}$. The board ends near 8 at $L = 64$, so $a \approx 0.7$: each
# reader says something a little smaller than one, as the initialisation with variance 1 / fan-in intends.
#
# </details>
#
# 2. Why can the stream do without a norm, and why must there be one before the head?
#
# <details><summary>Solution</summary>
#
# The readers are protected by their own norms, so the stream may grow. The head is the last reader, and it has no
# branch: its norm is the final `model.norm`. Without it, logits would grow with the depth.
#
# </details>
#
# 3. Attention and MLP could both read the same $x$ and be added together, $x + A(N(x)) + M(N(x))$. What is gained, what
#    is lost? Which planted mistake of this chapter is close to it?
#
# <details><summary>Solution</summary>
#
# The two can run at the same time, and one norm is saved; some models do so. Lost is that a token thinks about what it
# has just heard: the MLP hears of it one block later. The mistake "the MLP is added to what came before the attention"
# has the MLP hear, and then drops the attention's answer from the stream.
#
# </details>
