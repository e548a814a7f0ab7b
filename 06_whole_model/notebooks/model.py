# %% [markdown]
# # The whole model
#
# **The question.** Five chapters, some forty functions, each with its backward pass. How much is missing between them
# and a DeepSeek-V3 that trains, writes, and reads the released file format?
#
# **The answer** is one page: an embedding, a loop over layers, a norm, a head, and a module that looks one token
# further. Everything else is named by a line that begins with `import`.

# %%
import matplotlib.pyplot as plt
import numpy as np
from architecture import V3, Config, count_parameters, init_model, tensor_shapes, trained_weights, view_layer
from checkpoint import released_tensors
from generation import LatentSession, write_tokens, write_without_cache
from model import layer_forward, loss_backward, loss_forward, predict_logits

# %%
from small_language_model import VOCAB_SIZE, AdamW, decode_text, draw_prompts, draw_windows, read_topics
from speculative_decoding import GreedyRule
from training import Recipe, take_step, unigram_entropy

from utils.whiteboard import COLORS, arrow, board, box, note, use_style

use_style()

# %% [markdown]
# ## On the whiteboard: one window of text
#
# Grey is the residual stream. Every layer adds to it twice: what attention fetched from earlier rows (blue, through
# the green latent that is all the cache keeps), and what the experts made of it (purple, with the shared one in gold).
# In crimson the module that is told the next token and asked for the one after.


# %%
def draw_branch(ax, x: float, node, kind: str) -> None:
    """One branch: it reads the stream before its sum, and adds to it."""
    norm = box(ax, x - 1.15, 5.35, "norm", width=0.95, height=0.55, size=9)
    routed = kind == "routed"
    part = box(ax, x - 0.15 * routed, 6.75, "experts" if routed else "MLA", kind, width=1.3)
    arrow(ax, (x - 1.15, 4.32), norm)
    arrow(ax, norm, part)
    arrow(ax, part, node, kind=kind)
    name = ("shared expert", "shared") if routed else ("latent cache", "latent")
    extra = box(ax, x + 0.1 * routed, 8.15, *name, width=2.1, height=0.6, size=9)
    start, end, bend = ((x + 0.7, 7.85), (x + 0.22, 4.62), -0.2) if routed else (part, extra, 0.0)
    arrow(ax, start, end, kind=name[1], bend=bend)


# %%
def draw_module(ax, norm, head) -> None:
    """The MTP module: from the normed stream, beside the next token, to the same head."""
    pair = box(ax, 13.6, 1.6, "pair with embed($t_{i+1}$)", "draft", width=3.9)
    block = box(ax, 17.4, 1.6, "one more layer", "draft", width=2.6)
    for start, end in ((norm, pair), (pair, block), (block, head)):
        arrow(ax, start, end, kind="draft")


# %%
fig, ax = board(20.5, 8.8, "Two layers drawn, 61 in V3: every branch adds to one stream", inches=10.5)
line = [box(ax, 1.1, 4.3, "tokens $t_i$", width=1.7), box(ax, 3.3, 4.3, "embed", width=1.5)]
for x, kind in ((6.3, "content"), (9.1, "routed"), (11.9, "content"), (14.7, "routed")):
    line.append(box(ax, x, 4.3, "+", width=0.6, height=0.6))
    draw_branch(ax, x, line[-1], kind)
line += [box(ax, 16.9, 4.3, "norm", width=1.3), box(ax, 19.2, 4.3, "head", width=1.5)]
for i in range(7):
    arrow(ax, line[i], line[i + 1])
draw_module(ax, line[-2], line[-1])
for x, y, text in ((19.2, 5.2, "$t_{i+1}$"), (19.3, 2.75, "$t_{i+2}$"), (7.7, 3.3, "layer 1"), (13.3, 3.3, "layer 2")):
    note(ax, x, y, text, size=11)
plt.show()

# %% [markdown]
# ## The derivation, in five steps
#
# 1. $x = E[t]$. Its gradient is a sum over equal tokens.
# 2. In each layer $x \leftarrow x + \mathrm{MLA}(\mathrm{norm}(x))$, then
#    $x \leftarrow x + \mathrm{FFN}(\mathrm{norm}(x))$. So $dx = dy + (\text{what the branch sends back})$, twice.
# 3. $h = \mathrm{norm}(x)$, logits $= h W_{head}^\top$, $\;L_{main}$ = cross-entropy.
# 4. Depth $k$ pairs $h^{k-1}_i$ with $E[t_{i+k}]$, runs one layer of its own, and is scored on $t_{i+k+1}$ by the same
#    head. It sends gradients into $h$, into $E$ and into $W_{head}$.
# 5. $L = L_{main} + \frac{\lambda}{D}\sum_k L_k + \alpha \sum_{layers} \sum_i f_i P_i$. Backwards: the depths first,
#    then the head, then the layers from last to first. After the step the biases move by the signs of the shortfalls.

# %%
rng = np.random.default_rng(0)
config = Config(initializer_range=0.12)
model = init_model(rng, config)
tokens_BS = rng.integers(0, VOCAB_SIZE, (2, 33))
x_BSD = model.weights["model.embed_tokens.weight"][tokens_BS[:, :-1]]
print(f"tokens {tokens_BS[:, :-1].shape} -> embedded {x_BSD.shape}")

# %%
for i in range(config.num_hidden_layers):
    x_BSD, cache = layer_forward(x_BSD, view_layer(model, i), config)
    what = "dense" if cache.load_E is None else f"experts got {cache.load_E.tolist()} tokens"
    print(f"after layer {i}: {x_BSD.shape}, {what}")
main_logits, ahead_logits = predict_logits(model, tokens_BS[:, :-1])
print(f"logits {main_logits.shape}, one token further {ahead_logits.shape}")

# %% [markdown]
# ## Where the parameters are
#
# The same table of shapes counts the tiny model and the 671 billion of V3. Almost all of V3 is routed experts, of which
# a token sees 8 in 256. The tiny model is built the other way round, which is why small models teach little about
# what a large one costs.

# %%
PARTS = {
    "embedding and head": "ink",
    "attention": "content",
    "dense layers": "ink",
    "shared experts": "shared",
    "routed experts": "routed",
    "MTP module": "draft",
}


# %%
def part_of(name: str, config: Config) -> str:
    if name.startswith(f"model.layers.{config.num_hidden_layers}."):
        return "MTP module"
    for word, part in (("self_attn", "attention"), ("shared", "shared experts"), ("experts", "routed experts")):
        if word in name:
            return part
    return "dense layers" if ".mlp." in name and "gate.weight" not in name else "embedding and head"


# %%
def share_of_parts(config: Config) -> dict[str, float]:
    sizes = dict.fromkeys(PARTS, 0)
    for name, shape in tensor_shapes(config).items():
        sizes[part_of(name, config)] += int(np.prod(shape, dtype=np.int64))
    return {part: 100 * size / sum(sizes.values()) for part, size in sizes.items()}


# %%
shares = {"tiny": share_of_parts(config), "V3": share_of_parts(V3)}


def draw_shares(ax, name: str, counted: int) -> None:
    parts = shares[name]
    ax.barh(list(parts), list(parts.values()), color=[COLORS[PARTS[p]] for p in parts])
    ax.set(xlabel="% of the parameters", xlim=(0, 112))
    ax.set_title(f"{name}: {counted:,}", fontsize=11)
    for i, value in enumerate(parts.values()):
        ax.text(value + 1, i, f"{value:.1f}", va="center", fontsize=9.5)


# %%
fig, axes = plt.subplots(1, 2, figsize=(10, 3.1), sharey=True)
draw_shares(axes[0], "tiny", sum(count_parameters(config)))
draw_shares(axes[1], "V3", sum(count_parameters(V3)))
axes[0].invert_yaxis()
title = f"{shares['V3']['routed experts']:.0f}% of V3 are routed experts, {shares['tiny']['routed experts']:.0f}% here"
fig.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
fig.tight_layout()
plt.show()

# %% [markdown]
# ## A numeric check: the parts of the loss, and one nudge of everything
#
# The three parts add up, and the gradient of all tensors together predicts what a small random step of *all* of them
# does to the total.

# %%
losses, cache = loss_forward(model, tokens_BS, alpha=0.01)
grads = loss_backward(cache)
print(f"main {losses.main:.4f} + 0.3 x {losses.ahead[0]:.4f} + {losses.balance:.4f} = {losses.total:.4f}")

# %%
nudges = {name: 1e-7 * rng.standard_normal(g.shape) for name, g in grads.items()}
sides = []
for sign in (1, -1):
    moved = {name: array + sign * nudges.get(name, 0) for name, array in model.weights.items()}
    sides.append(loss_forward(model._replace(weights=moved), tokens_BS, alpha=0.01)[0].total)
print(f"{len(grads)} tensors nudged: measured {(sides[0] - sides[1]) / 2:.6e}")
print(f"                   predicted {sum((grads[n] * nudges[n]).sum() for n in grads):.6e}")

# %% [markdown]
# ## Training it
#
# A model of this size on characters of the Python documentation: a few seconds of what `python train.py` does for two
# minutes. The dashed line is the best that a guess without context can do.

# %%
text = read_topics()
rng = np.random.default_rng(0)
model = init_model(rng, config, np.float32)
optimizer, recipe, history, lengths = AdamW(trained_weights(model.weights)), Recipe(n_tokens=50), [], []

# %%
for step in range(100):
    windows = draw_windows(rng, text, recipe.n_windows, recipe.n_tokens)
    if step % 10 == 0:
        now = loss_backward(loss_forward(model, *windows)[1])
        lengths.append({name: float(np.sqrt((g * g).sum())) for name, g in now.items()})
    rate = 1e-2 * min(1, (step + 1) / 20) * (0.55 + 0.45 * np.cos(np.pi * step / 100))
    history.append(take_step(model, optimizer, windows, recipe, rate))

# %%
entropy = unigram_entropy(text, VOCAB_SIZE)
last = np.mean([step.main for step in history[-10:]])
assert last < entropy - 0.3
fig, ax = plt.subplots(figsize=(9, 3.4))
ax.plot([step.main for step in history], color=COLORS["content"], label="main model: next character")
ax.plot([step.ahead for step in history], color=COLORS["draft"], label="MTP module: the one after", linewidth=1.2)
ax.axhline(entropy, color=COLORS["ink"], linestyle="--", label="unigram entropy")
ax.set(xlabel="step", ylabel="loss, nats per character", ylim=(1.8, 4.8))
ax.set_title(f"100 steps: {last:.2f} nats; a guess without context pays {entropy:.2f}")
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# The module's curve lies below the main model's although it looks further ahead. It is told the next character, and has
# one more layer; chapter 04 takes the advantage apart with two controls.
#
# ## Where the gradient goes
#
# The length of the gradient of every part, at ten moments of the run. All of it comes from one number, the
# loss, and reaches the first layer through the stream, not through the branches.

# %%
rows = ["embed_tokens", *(f"layer {i}: {p}" for i in range(4) for p in ("attention", "feed-forward")), "lm_head"]


def row_of(name: str) -> str:
    if "layers." not in name:
        return "embed_tokens" if "embed" in name else "lm_head"
    part = "feed-forward" if ".mlp." in name or "post_attention" in name else "attention"
    return f"layer {name.split('.')[2]}: {part}"


# %%
table = np.zeros((len(rows), len(lengths)))
for column, moment in enumerate(lengths):
    for name, length in moment.items():
        table[rows.index(row_of(name)), column] += length**2
table = np.sqrt(table)

# %%
fig, ax = plt.subplots(figsize=(9.5, 4.2))
image = ax.imshow(np.log10(table), aspect="auto", cmap="Purples")
ax.set_yticks(range(len(rows)), [r.replace("layer 3", "MTP layer") for r in rows])
ax.set_xticks(range(len(lengths)), [10 * i for i in range(len(lengths))])
ax.set_xlabel("step")
ax.grid(visible=False)
longest = rows[1 + table[1:-1, -1].argmax()]
ax.set_title(f"After 90 steps the longest gradient of all layers is that of {longest}")
fig.colorbar(image, ax=ax, label="log10 of the length")
plt.show()

# %% [markdown]
# The first layers are not starved, whatever lies between them and the loss: $dx = dy + \dots$ hands them the
# gradient of the last layer undiminished, and each branch on the way adds to it.
#
# ## Writing
#
# Three ways to the same greedy text: running everything again for each token; reading one token at a time against the
# latent cache, in the absorbed form; letting the module draft and the main model check.

# %%
(prompt,) = draw_prompts(rng, read_topics(held_out=True), 1)
wide = model._replace(weights={name: array.astype(np.float64) for name, array in model.weights.items()})
again = write_without_cache(wide, prompt, 40)
plain = write_tokens(wide, prompt, 40, GreedyRule())
drafted = write_tokens(wide, prompt, 40, GreedyRule(), n_drafts=2)
print("all the same:", again == plain.tokens == drafted.tokens)
print(f"main passes: 40 without drafts, {1 + len(drafted.n_accepted)} with two of them")
print(f"after {decode_text(prompt)!r} it wrote {decode_text(plain.tokens[len(prompt) :])!r}")

# %%
session = LatentSession(wide, len(prompt))
session.read(prompt)
values = session.nbytes // 8 // len(prompt) // config.num_hidden_layers
heads = config.num_attention_heads * (config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim)
print(f"cached for each token and layer: {values} numbers, {heads} if keys and values of all heads were kept")

# %% [markdown]
# ## One checkpoint, three implementations
#
# `checkpoint.save_checkpoint` writes the released format. The names, and nothing else, are the contract: the package
# and Hugging Face read the same file, and `tests/parity/test_whole_model.py` compares logits, losses, every gradient
# and the biases after a step.

# %%
names = list(released_tensors(config, model.weights))
print(f"{len(model.weights)} arrays in memory, {len(names)} tensors in the file; the MTP layer holds")
for name in [n for n in names if n.startswith("model.layers.3.") and "self_attn" not in n and ".mlp." not in n]:
    print("  ", name)

# %% [markdown]
# ## What changed since the last chapter
#
# Nothing was derived. What is new are the joints: the order of the gradients, the two places where a tensor is used
# twice (embedding, head), the three where something must *not* be touched (the stream by a norm, the gates by the bias,
# the positions by the module).
#
# ## Exercises
#
# **1.** Which tensors get a gradient from the main loss alone, which from the MTP loss alone, which from both?
#
# <details><summary>Solution</summary>
#
# From the MTP loss alone: everything in its layer (`enorm`, `hnorm`, `eh_proj`, `shared_head.norm`, the decoder layer).
# From the main loss alone: nothing. The module reads the main model's normed output, so every tensor of the main model
# hears of both. That is the point of MTP as a training objective: "plan ahead" reaches all layers.
#
# </details>
#
# **2.** V3's embedding and head have 1.85 billion parameters. The module uses both. Why are they in the released file a
# second time, and what must a loader check?
#
# <details><summary>Solution</summary>
#
# So that layer 61 can be served by itself, without the main model's shards. A loader that shares them in memory should
# check that the copies are there and of the right shape; one that trains both apart would have another model.
#
# </details>
#
# **3.** The stream of this model is never normed, only copies of it are. What would happen to the gradient of layer 0
# in a model of 61 layers that norms the stream after each addition (post-norm)?
#
# <details><summary>Solution</summary>
#
# Each norm multiplies the gradient by $w / \mathrm{rms}$ and removes its part along the row. 122 such factors lie
# between the loss and layer 0; unless all are close to 1 the product vanishes or explodes. With pre-norm the factor of
# the direct path is exactly 1. Chapter 01 compares the wirings.
#
# </details>
