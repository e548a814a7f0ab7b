# %% [markdown]
# # How much may one outlier cost?
#
# **The question.** E4M3 is accurate between $2^{-6}$ and 448. A tensor is moved there by a **scale**: divide by it,
# round, and multiply again when reading. Whoever chooses the scale must make room for the largest number. What does
# that do to all the others?
#
# A photographer takes one picture of a whole street at night. Someone in it holds a lamp to the lens. The camera sets
# its exposure by the brightest point; the lamp is fine, and the street is black. He could take a picture of *every
# house* instead, each with an exposure of its own. Then the lamp spoils one house. It costs him a note of the exposure
# beside each picture, and some care when he puts the street together again.
#
# DeepSeek-V3 takes small pictures: every token has a scale for each 128 numbers of its row, every weight matrix one for
# each block of 128 x 128. This notebook holds a lamp to the lens and counts the black houses.

# %%
import numpy as np
from fine_grained_quantization import (
    dequantize,
    multiply_quantized,
    product_bound,
    quantize,
    quantize_activation,
    quantize_tensor,
    quantize_weight,
    relative_rms,
)
from float_formats import E4M3, decode, round_to
from mantissa_exponent import train_exactly

# %%
from utils.drawings_05 import draw_tiles
from utils.plots_02 import plot_lines
from utils.plots_05 import draw_error_maps, plot_error_by_size

# %%
draw_tiles()

# %% [markdown]
# Here a tile is 4 wide, not 128; each grey cell is the scale of the blue cells that it stands for.
#
# ## Numbers to follow with a pencil
#
# A tile of four numbers: $0.001,\ 0.0025,\ -0.004,\ 0.3$.
#
# 1. **The scale.** The largest magnitude is 0.3 and shall become 448: $s = 0.3 / 448 = 0.00066964$.
# 2. **Divide and round.** $0.001 / s = 1.493$, the nearest marks of E4M3 are 1.375 and 1.5: 1.5. Then
#    $0.0025 / s = 3.733 \to 3.75$, $-0.004 / s = -5.973 \to -6$, and $0.3 / s = 448$.
# 3. **Read back.** $1.5\,s = 0.0010045$, $3.75\,s = 0.0025112$, $-6\,s = -0.0040179$, $448\,s = 0.3$.
#
# The number 300 times smaller than the largest is off by half a percent. So far nothing is lost.

# %%
tile = np.zeros((1, 128))
tile[0, :4] = [0.001, 0.0025, -0.004, 0.3]
q = quantize_activation(tile)
print(f"scale {q.scales[0, 0]:.6e}   codes say {decode(q.codes[0, :4], E4M3)}   back {dequantize(q)[0, :4]}")

# %% [markdown]
# ## Build it
#
# Letters: $x$ a number, $s$ the scale of its tile, $q$ what the code says. A product of two matrices, $Y = A B^\top$,
# sums over $K$ columns.


# %%
def quantize_tile(tile):
    """One tile of any shape: what the codes say, and the scale. A floor keeps an empty tile from 0 / 0."""
    scale = max(np.abs(tile).max(), 1e-4) / 448
    return round_to(np.float32(tile) / np.float32(scale), E4M3), np.float32(scale)


def naive_quantize(x, rows, columns):
    """Every tile by itself; returns what is read back."""
    back = np.zeros(x.shape, np.float32)
    for i in range(0, x.shape[0], rows):
        for j in range(0, x.shape[1], columns):
            values, scale = quantize_tile(x[i : i + rows, j : j + columns])
            back[i : i + rows, j : j + columns] = values * scale
    return back


# %%
rng = np.random.default_rng(0)
x = rng.standard_normal((5, 300))  # the last tile of a row is short: 44 columns
assert np.allclose(naive_quantize(x, 1, 128), dequantize(quantize_activation(x)), rtol=1e-6)
w = rng.standard_normal((200, 300))
assert np.allclose(naive_quantize(w, 128, 128), dequantize(quantize_weight(w)), rtol=1e-6)
print("naive and module agree, with tiles cut short at the edges")


# %% [markdown]
# The product. Inside one tile of $K$ both scales are constants and can wait outside the sum: the machine multiplies and
# adds codes only, and each tile costs one multiplication more.


# %%
def naive_product(a, b, tile=128):
    """a in tiles of 1 x 128, b in blocks of 128 x 128; the inner sums see nothing but codes."""
    y = np.zeros((len(a), len(b)))
    for k in range(0, a.shape[1], tile):
        for n in range(len(a)):
            qa, sa = quantize_tile(a[n, k : k + tile])
            for f in range(0, len(b), tile):
                qb, sb = quantize_tile(b[f : f + tile, k : k + tile])
                y[n, f : f + tile] += sa * sb * (qb.astype(float) @ qa.astype(float))
    return y


ours = multiply_quantized(quantize_activation(x), quantize_weight(w))
assert np.allclose(ours, naive_product(x, w), rtol=1e-5, atol=1e-5)
print("naive and module agree:", ours.shape)

# %% [markdown]
# ## The derivation
#
# 1. $s = \max |x| / 448$ over the tile, $q = \text{round}(x / s)$, read back $\hat x = s\,q$.
# 2. **How far off?** A normal code by at most half a gap, $2^{-4} |q|$; a subnormal one by half of the step $2^{-9}$.
#    So $|\hat x - x| \le \max\big(2^{-4} |x|,\ 2^{-10} s\big)$.
# 3. **When does a neighbour hurt?** The second term wins where $|x| < 2^{-6} s$: when the tile holds something
#    $448 \cdot 2^6 = 28{,}672$ times larger. At sixteen times more than that, $x$ is read back as zero. Below it a
#    neighbour costs *nothing*, however it stands out: E4M3 forgives a lot by itself.
# 4. **The product.** $y = \sum_k a_k b_k = \sum_{\text{tiles } t} s^a_t s^b_t \sum_{k \in t} q^a_k q^b_k$.
# 5. **Its error.** If $\delta$ is the bound of step 2, $|\hat y - y| \le \sum_k |a_k| \delta^b_k + \delta^a_k |b_k| +
#    \delta^a_k \delta^b_k$, and the FP32 sum over tiles comes on top: `product_bound`.
# 6. **Scales that are powers of two.** Round $s$ *up* to $2^n$ first, then divide. To round it after the division would
#    leave the codes wrong by up to a factor of two; to round it down would push the largest number beyond 448.
#
# Step 5 on random data:

# %%
a, b = rng.standard_normal((64, 1024)), 0.02 * rng.standard_normal((96, 1024))
a_q, b_q = quantize_activation(a), quantize_weight(b)
error = np.abs(multiply_quantized(a_q, b_q) - a @ b.T)
bound = product_bound(a, b, a_q, b_q)
assert np.all(error <= bound)
print(f"largest error / bound {np.max(error / bound):.3f}, typical {np.median(error / bound):.4f}")
each = [relative_rms(m, dequantize(q)) for m, q in ((a, a_q), (b, b_q))]
product = relative_rms(a @ b.T, multiply_quantized(a_q, b_q))
print(f"operands off by {each[0]:.2%} and {each[1]:.2%}, the product by {product:.2%} = √2 times that")

# %% [markdown]
# The bound lets all errors point the same way. In 1,024 terms they do not, so even the worst output is far inside. But
# the relative error of a product does **not** shrink with more terms: error and result both grow like $\sqrt K$.
#
# ## The experiment: a lamp at the lens
#
# 256 tokens of ordinary numbers, and one number that is a million times larger. The shade is each number's own relative
# error.

# %%
x = rng.standard_normal((256, 512))
x[37, 300] = 1e6
shapes = {"one scale": x.shape, "128 x 128": (128, 128), "1 x 128": (1, 128)}
maps = {name: np.abs(dequantize(quantize(x, shape)) - x) / np.abs(x) for name, shape in shapes.items()}
lost = {name: np.mean(error > 0.5) for name, error in maps.items()}
assert lost["1 x 128"] < 0.005 < 0.1 < lost["128 x 128"]
draw_error_maps(maps, f"One outlier: lost {lost['one scale']:.0%}, {lost['128 x 128']:.1%} or {lost['1 x 128']:.2%}")

# %% [markdown]
# ## The trained model speaks: how much does it lose?
#
# The model that runs through the book (`make book`) was trained in BF16. Here every matrix of its attention and experts
# is put into E4M3 and taken out again, by tensor, and by blocks of 128 x 128 as V3 stores its weights (these matrices
# are small: at most eight blocks each). First the matrices themselves:

# %%
from utils.plots_04 import plot_bars
from utils.story_model import new_stories, open_book

book, kept = open_book(), ("embed_tokens", "lm_head", "gate.weight", "eh_proj", "norm", "bias")
matrices = {n: w for n, w in book.model.weights.items() if w.ndim > 1 and not any(word in n for word in kept)}
families = {}
for name, stack in matrices.items():
    for matrix in stack if stack.ndim == 3 else [stack]:
        family = name.split(".")[-2] + (" of experts" if ".experts." in name else "")
        errors = [relative_rms(matrix, dequantize(q(matrix))) for q in (quantize_tensor, quantize_weight)]
        families.setdefault(family, []).append(errors)
for family, errors in families.items():
    whole, blocks = 100 * np.mean(errors, axis=0)
    print(f"{family:<22} {len(errors):>3} matrices: {whole:.2f} % off by tensor, {blocks:.2f} % by blocks")

# %% [markdown]
# A number of E4M3 is off by two or three per cent wherever it lies in range (`float_formats`), and these matrices hold
# no lamp: one scale serves as well as many. What does it cost the *model*? Surprise at 20 new stories, in nats a token.

# %%
texts = [story.text for story in new_stories(20, first=900)]


def surprise(changed):
    """Nats a token, with some matrices changed."""
    reader, paid = book.with_weights(changed), []
    for text in texts:
        seen = reader.read(text)
        logits, came = seen.logits[:-1], seen.tokens[1:]
        top = logits.max(axis=1)
        paid.extend(np.log(np.exp(logits - top[:, None]).sum(axis=1)) + top - logits[range(len(came)), came])
    return float(np.mean(paid))


# %%
def in_eight_bits(quantized, weights):
    """Every matrix through its codes; experts one by one."""
    rounded = lambda w: dequantize(quantized(w))  # noqa: E731
    return {n: np.stack([rounded(m) for m in w]) if w.ndim == 3 else rounded(w) for n, w in weights.items()}


exact = surprise({})
rules = {"tensor": quantize_tensor, "blocks": quantize_weight}
added = {f"by {n}": surprise(in_eight_bits(q, matrices)) - exact for n, q in rules.items()}
print(f"{exact:.4f} nats a token as trained;", ", ".join(f"{n} {more:+.4f}" for n, more in added.items()))

# %% [markdown]
# Now the lamp. In the first layer's gated MLP one row of `up_proj` is multiplied by a million, and the column of
# `down_proj` that reads it divided by a million. That is *the same model* in another spelling: their product stays.

# %%
up, down = (f"model.layers.0.mlp.{name}_proj.weight" for name in ("up", "down"))
lit = {up: matrices[up].copy(), down: matrices[down].copy()}
lit[up][5] *= 1e6
lit[down][:, 5] /= 1e6
assert abs(surprise(lit) - exact) < 1e-9
with_lamp = {**matrices, **lit}
for name, q in rules.items():
    added[f"by {name}, with the lamp"] = surprise(in_eight_bits(q, with_lamp)) - exact

# %%
lit_by = [added[f"by {n}, with the lamp"] for n in rules]
title = f"One row in another unit: {lit_by[0]:+.3f} nats by tensor, {lit_by[1]:+.3f} by blocks"
plot_bars(
    added, ["ink", "content"] * 2, title, f"added to {exact:.3f} nats a token", xlim=(0, 1.25 * max(added.values()))
)

# %% [markdown]
# A good model on a good day hardly notices eight bits: errors of two or three per cent, up and down by chance, cancel
# in the sums. With the lamp, one scale for the tensor pushes all other numbers of two matrices below the smallest that
# there is, and the first layer's MLP falls silent. Blocks keep the damage to those that the lamp lies in. That is what
# V3 buys with one scale a block: no better result on average, but one bad row stays one bad row.
#
# ## Change this, predict, run
#
# That lamp was a million times too bright. Real outliers of activations are more like a thousand times. Predict the
# error of the *other* tokens for an outlier of 1,000 under each of the three: one scale, blocks, tiles. Then look at
# the whole range.
#
# <details><summary>Afterwards</summary>
#
# All three are the same, and unharmed: step 3 says that nothing happens below 28,672. What a single scale cannot stand
# is not a large number, but a large *ratio*. Trouble begins when ten thousand is reached somewhere in a tensor of
# millions, as it is in gradients, or with formats of less reach. It is worth knowing before FP8 is blamed for anything.
#
# </details>

# %%
quiet = np.arange(256) != 37


def error_of_others(size, shape):
    x[37, 300] = size
    return relative_rms(x[quiet], dequantize(quantize(x, shape))[quiet])


print("outlier of 1,000:", {name: f"{error_of_others(1e3, shape):.2%}" for name, shape in shapes.items()})

# %%
sizes = 10.0 ** np.arange(0, 8.1, 0.5)
curves = {name: (sizes, [error_of_others(size, shape) for size in sizes]) for name, shape in shapes.items()}
tiles = curves["1 x 128"][1]
assert max(tiles) < 1.05 * min(tiles)
title = f"Tokens in tiles of their own stay at {max(tiles):.1%}; the others pay from 28,672 on"
labels = "size of the outlier (the rest is of size 1)", "relative error of the other tokens"
plot_lines(curves, ["wrong", "ink", "content"], title, *labels, log="x")

# %% [markdown]
# ## What the error looks like
#
# A matrix of the small trained network of `mantissa_exponent.py`: each weight's error over its size, in E4M3 and in
# eight-bit integers, both with one scale for each block of 128 x 128.

# %%
weight = train_exactly()[0].gate_proj


def naive_integers(x, tile=128):
    back = np.zeros_like(x)
    for i in range(0, x.shape[0], tile):
        for j in range(0, x.shape[1], tile):
            scale = np.abs(x[i : i + tile, j : j + tile]).max() / 127
            back[i : i + tile, j : j + tile] = np.round(x[i : i + tile, j : j + tile] / scale) * scale
    return back


# %%
as_float, as_integer = dequantize(quantize_weight(weight)), naive_integers(weight)
errors = [relative_rms(weight, back) for back in (as_float, as_integer)]
title = f"Floats: the error follows the weight ({errors[0]:.1%} of all); integers: one for all ({errors[1]:.1%})"
plot_error_by_size(weight, {"E4M3": as_float, "8-bit integers": as_integer}, ["content", "ink"], title)

# %% [markdown]
# Integers are better for the large weights and drown the small ones. Which is better *on the whole* depends on how far
# the numbers of a block spread: a matrix whose weights are all of one size, as here, is kinder to integers than an
# activation with outliers.
#
# ## What you can now do
#
# Quantize a matrix in tiles and multiply two of them so that the machine sees only codes; bound the error of a number
# and of a product; say from which ratio on a neighbour hurts, and what that has to do with the shape of the tile.
#
# ## Exercises
#
# Graded: `scale_tile`, `multiply_tiles` (`make check CH=05`). By thought alone:
#
# 1. The matrix `kv_a_proj_with_mqa` is [576, 7168]. How many scales does it have?
#
# <details><summary>Solution</summary>
#
# $\lceil 576/128 \rceil \times 7168/128 = 5 \times 56$. The last row of blocks has only 64 rows of weights. Code that
# divides 576 by 128 and drops the rest loses them.
#
# </details>
#
# 2. A token of padding is all zeros. What is its scale, and what would it be without the floor of $10^{-4}$?
#
# <details><summary>Solution</summary>
#
# $10^{-4} / 448 = 2.2 \cdot 10^{-7}$, and the codes are 0. Without the floor $s = 0$, and $0/0$ is NaN.
#
# </details>
#
# 3. Why not tiles of 1 x 128 for the weights too?
#
# <details><summary>Solution</summary>
#
# They would be more accurate, but the gradient of the input sums over the *out*-features, where such tiles lie across
# the sum, so a second copy of the codes in 128 x 1 would be needed. Square blocks serve both (`mixed_precision`).
#
# </details>
