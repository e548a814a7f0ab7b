# %% [markdown]
# # The whole model
#
# **The question.** Five chapters, some forty functions, each with its backward pass. How much is missing between them
# and a DeepSeek-V3 that trains, writes, and reads the released file format?
#
# A river runs through the model: a row of numbers for each token. Mills stand on its banks. Each dips a *copy* of the
# water out (normed, so that all mills get it equally strong), does its work, and pours the result back *into* the
# river. Attention fetches from rows further up. The experts think about one row at a time. Nothing ever stops the river
# or replaces it. At its mouth a head reads off the next token, and a small weir, the MTP module, is told the next token
# and asked for the one after.
#
# What is missing is one page: the order of the mills, two tensors that are used twice, and the sum of three losses.
# This notebook writes that page, holds it equal to the module, and looks where the gradient of the one number at the
# end goes.

# %%
import numpy as np
from architecture import Config, init_model, trained_weights, view_layer, view_mtp
from decoupled_rope import decoupled_attention_forward
from deepseek_moe import DeepseekMoE, deepseek_moe_forward
from load_balancing import sequence_balance_forward
from model import layer_forward, loss_backward, loss_forward, predict_logits
from small_language_model import VOCAB_SIZE, AdamW, draw_windows, read_topics
from swiglu import swiglu_forward
from training import Recipe, take_step, unigram_entropy

from utils.gradient_check import central_difference, relative_error
from utils.plots_06 import draw_whole, plot_curves, plot_lengths

# %% [markdown]
# ## On the whiteboard: one window of text
#
# Grey is the river, the **residual stream**. Every layer adds to it twice: what attention fetched (blue, through the
# green latent that is all the cache keeps), and what the experts made of it (purple, with the shared one in gold). In
# crimson the module that looks one token further.

# %%
draw_whole()

# %% [markdown]
# ## Numbers to follow with a pencil
#
# **Who asks what?** A window of 9 tokens, $t_0$ to $t_8$. The main model reads $t_0$ to $t_7$ and is asked for the next
# token at each: 8 questions. The module at row $i$ gets the stream of row $i$ *and* $t_{i+1}$, and is asked for
# $t_{i+2}$: 7 questions, for $t_9$ is not there.
#
# **The sum.** A model that knows nothing pays $\ln 96 = 4.564$ nats a question, for there are 96 characters. The main
# loss is their mean, 4.564. The module's is a sum over 7 questions divided by **8** (V3, Eq. 24, divides every depth by
# the main model's count): $\tfrac78 \cdot 4.564 = 3.994$. With the weight 0.3 the total is $4.564 + 0.3 \cdot 3.994 =
# 5.762$. A balance loss adds $\alpha$ for each of three expert layers in perfect balance: with $\alpha = 0.01$, 5.792.
# The layers below are not quite in balance, so it is a little more.

# %%
rng = np.random.default_rng(0)
knows_nothing = init_model(rng, Config())
knows_nothing.weights["lm_head.weight"][:] = 0
losses, _ = loss_forward(knows_nothing, rng.integers(0, 96, (1, 9)), alpha=0.01)
print(f"main {losses.main:.3f}, module {losses.ahead[0]:.3f}, balance {losses.balance:.4f}, total {losses.total:.3f}")

# %% [markdown]
# ## Build it: one layer, and the river
#
# The mills come from the chapters: attention from 02, experts from 03, the wide network of the first layers from 01.
# The river is ours.


# %%
def norm(x, weight):
    return weight * x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6)


def naive_layer(x, layer, config):
    """Rows [B, S, D] in and out; also the scores of the router, if there is one."""
    x = x + decoupled_attention_forward(norm(x, layer.input_layernorm), layer.self_attn, config.attention)[0]
    normed = norm(x, layer.post_attention_layernorm)
    if not isinstance(layer.mlp, DeepseekMoE):
        return x + swiglu_forward(normed, layer.mlp)[0], None
    y, cache = deepseek_moe_forward(normed.reshape(-1, x.shape[-1]), layer.mlp, config.router)
    return x + y.reshape(x.shape), cache.score_NE.reshape(*x.shape[:2], -1)


# %%
config = Config(initializer_range=0.12)
model = init_model(rng, config)
tokens = rng.integers(0, VOCAB_SIZE, (2, 33))
x = model.weights["model.embed_tokens.weight"][tokens[:, :-1]]
for i in range(config.num_hidden_layers):
    layer = view_layer(model, i)
    naive, _ = naive_layer(x, layer, config)
    x, cache = layer_forward(x, layer, config)
    assert np.allclose(naive, x, rtol=0, atol=1e-12)
    what = "one wide network" if cache.load_E is None else f"experts got {cache.load_E.tolist()} tokens"
    print(f"after layer {i} naive and module agree: {x.shape}, {what}")

# %% [markdown]
# ## Build it: to the mouth, and one token further


# %%
def naive_hidden(model, tokens):
    """Tokens [B, S] -> what the head reads [B, S, D], and the routers' scores."""
    x, scores = model.weights["model.embed_tokens.weight"][tokens], []
    for i in range(model.config.num_hidden_layers):
        x, score = naive_layer(x, view_layer(model, i), model.config)
        scores.append(score)
    return norm(x, model.weights["model.norm.weight"]), [s for s in scores if s is not None]


# %%
def naive_ahead(model, hidden, told):
    """Hidden rows [B, S, D] and the tokens that come after them [B, S] -> what the head reads for the ones after."""
    module = view_mtp(model, 1)
    token = norm(model.weights["model.embed_tokens.weight"][told], module.enorm)
    pair = np.concatenate([token, norm(hidden, module.hnorm)], axis=-1) @ module.eh_proj.T
    y, score = naive_layer(pair, view_layer(model, model.config.num_hidden_layers), model.config)
    return norm(y, module.shared_head_norm), score


# %%
main_logits, ahead_logits = predict_logits(model, tokens[:, :-1])
head = model.weights["lm_head.weight"]
hidden, _ = naive_hidden(model, tokens[:, :-1])
further, _ = naive_ahead(model, hidden[:, :-1], tokens[:, 1:-1])
assert np.allclose(hidden @ head.T, main_logits, rtol=0, atol=1e-12)
assert np.allclose(further @ head.T, ahead_logits, rtol=0, atol=1e-12)
print(f"naive and module agree: logits {main_logits.shape}, one token further {ahead_logits.shape}")

# %% [markdown]
# ## Build it: the loss


# %%
def surprise(logits, target):
    """Sum over all questions, in nats."""
    log_sum = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    return (log_sum - np.take_along_axis(logits, target[..., None], axis=-1)[..., 0]).sum()


def naive_loss(model, tokens, mtp_weight=0.3, alpha=0.01):
    head, asked = model.weights["lm_head.weight"], tokens[:, 1:].size
    hidden, scores = naive_hidden(model, tokens[:, :-1])
    further, score = naive_ahead(model, hidden[:, :-1], tokens[:, 1:-1])
    main = surprise(hidden @ head.T, tokens[:, 1:]) / asked
    ahead = surprise(further @ head.T, tokens[:, 2:]) / asked
    balance = sum(sequence_balance_forward(s, config.num_experts_per_tok, alpha)[0] for s in [*scores, score])
    return main + mtp_weight * ahead + balance


# %%
losses, cache = loss_forward(model, tokens, alpha=0.01)
assert np.isclose(naive_loss(model, tokens), losses.total, rtol=1e-13)
print(f"main {losses.main:.4f} + 0.3 x {losses.ahead[0]:.4f} + {losses.balance:.4f} = {losses.total:.4f}")

# %% [markdown]
# ## The derivation
#
# 1. $x = E[t]$. Its gradient is a sum over equal tokens.
# 2. In each layer $x \leftarrow x + \mathrm{MLA}(\mathrm{norm}(x))$, then $x \leftarrow x + \mathrm{FFN}(\mathrm{norm}
#    (x))$. So $dx = dy + (\text{what the branch sends back})$, twice.
# 3. $h = \mathrm{norm}(x)$, logits $= h W_{head}^\top$, $\;L_{main}$ = mean surprise.
# 4. The module pairs $h_i$ with $E[t_{i+1}]$, runs one layer of its own, and is asked for $t_{i+2}$ by the same head.
#    It sends gradients into $h$, into $E$ and into $W_{head}$: the tensors that are used twice get the *sum*.
# 5. $L = L_{main} + \lambda L_{ahead} + \alpha \sum_{layers} \sum_i f_i P_i$. Backwards: the module first, then the
#    head, then the layers from last to first.
#
# The backward passes of all mills exist. Is the page around them right? Nudge some numbers of every sort of tensor, and
# all of them at once:

# %%
grads = loss_backward(cache)
for name in ("model.embed_tokens.weight", "model.layers.1.mlp.gate.weight", "model.layers.3.eh_proj.weight"):
    row = int(np.abs(grads[name]).sum(axis=1).argmax())  # one that is used
    part = model.weights[name][row, :3]  # a view: three numbers are tried
    tried = central_difference(lambda: naive_loss(model, tokens), part)
    print(f"{name}: central differences of our page agree:", relative_error(grads[name][row, :3], tried) < 1e-6)

# %%
nudges = {name: 1e-7 * rng.standard_normal(g.shape) for name, g in grads.items()}
sides = []
for sign in (1, -1):
    moved = {name: array + sign * nudges.get(name, 0) for name, array in model.weights.items()}
    sides.append(naive_loss(model._replace(weights=moved), tokens))
predicted = sum((grads[n] * nudges[n]).sum() for n in grads)
assert np.isclose((sides[0] - sides[1]) / 2, predicted, rtol=1e-5)
print(f"{len(grads)} tensors nudged at once: measured {(sides[0] - sides[1]) / 2:.6e}, predicted {predicted:.6e}")

# %% [markdown]
# ## The experiment: a hundred steps
#
# A model of this size on characters of the Python documentation: a few seconds of what `python train.py` does for two
# minutes. On the way we note the length of the gradient of every tensor.

# %%
text, rng = read_topics(), np.random.default_rng(0)
model = init_model(rng, config, np.float32)
optimizer, recipe, history, lengths = AdamW(trained_weights(model.weights)), Recipe(n_tokens=50), [], []
for step in range(100):
    windows = draw_windows(rng, text, recipe.n_windows, recipe.n_tokens)
    if step in (10, 90):
        now = loss_backward(loss_forward(model, *windows)[1])
        lengths.append({name: float((g * g).sum()) for name, g in now.items()})
    rate = 1e-2 * min(1, (step + 1) / 20) * (0.55 + 0.45 * np.cos(np.pi * step / 100))
    history.append(take_step(model, optimizer, windows, recipe, rate))

# %%
entropy, last = unigram_entropy(text, VOCAB_SIZE), np.mean([step.main for step in history[-10:]])
assert last < entropy - 0.3
curves = {
    "next character (main model)": np.array([step.main for step in history]),
    "the one after (MTP module)": np.array([step.ahead for step in history]),
}
title = f"100 steps: {last:.2f} nats a character; who knows frequencies alone pays {entropy:.2f}"
plot_curves(curves, ["content", "draft"], ("frequencies alone", entropy), title, "nats a character")

# %% [markdown]
# ## The experiment: where does the gradient go?
#
# All of it comes from one number, the loss. How much of it arrives at each part?

# %%
PLACES = ("layer 0", "layer 1", "layer 2", "module")
ROWS = ["embedding", *(f"{p}: {part}" for p in PLACES for part in ("attention", "network")), "head"]


def row_of(name):
    if "layers." not in name:
        return "embedding" if "embed" in name else "head"
    place = name.split(".")[2]
    part = "network" if ".mlp." in name or "post_attention" in name else "attention"
    return f"{'module' if place == '3' else 'layer ' + place}: {part}"


# %%
table = {row: [sum(v for n, v in moment.items() if row_of(n) == row) ** 0.5 for moment in lengths] for row in ROWS}
firsts = table["layer 0: attention"][1] / table["layer 2: attention"][1]
plot_lengths(
    table,
    ("after 10 steps", "after 90 steps"),
    f"The first layer's attention gets {firsts:.1f} times what the last one's gets",
)

# %% [markdown]
# The first layer is not starved, whatever lies between it and the loss: $dx = dy + \dots$ hands it the gradient of the
# last layer undiminished, and each branch on the way adds to it. That is what the river is for.
#
# ## Change this, predict, run
#
# The cell lets the module go wrong in one place: it is told the token of its *own* row, $t_i$, not the one after it,
# $t_{i+1}$. Predict: does the untrained model's loss change much? Does anything complain? And what will the module have
# learned after training: can it still be asked for $t_{i+2}$ at all?
#
# <details><summary>Afterwards</summary>
#
# Shapes are the same, the loss of an untrained model is the same but for noise, and nothing complains. It can even be
# trained: it then has to foretell two tokens ahead from what the main model knows, which is harder than what the main
# model itself is asked; chapter 04 measures a module that is told nothing. In the figure above the right module pays
# *less* than the main model. A curve on the wrong side of another is sometimes the only sign of a shift by one.
#
# </details>

# %%
shift = 0  # 1 is right
fresh = init_model(np.random.default_rng(0), config)
hidden, _ = naive_hidden(fresh, tokens[:, :-1])
for told in (tokens[:, 1:-1], tokens[:, shift : shift + 31]):
    further, _ = naive_ahead(fresh, hidden[:, :-1], told)
    pays = surprise(further @ fresh.weights["lm_head.weight"].T, tokens[:, 2:]) / 62
    print(f"told {told[0, :3]} ...: the module pays {pays:.4f}")

# %% [markdown]
# ## What you can now do
#
# Write the page that joins the chapters, forward, and say in which order everything goes back; say which tensors are
# used twice and what that does to their gradient; recognise a shift by one from two curves. Next: `architecture` names
# every tensor, `training` takes a step, `generation` writes, `checkpoint` sends it away.
#
# ## Exercises
#
# Graded: `run_layer`, `pass_layer_back`, `total_loss`, `whole_backward` and, last, `model_from_an_empty_file` (`make
# check CH=06`). By thought alone:
#
# 1. Which tensors get a gradient from the main loss alone, which from the module's loss alone, which from both?
#
# <details><summary>Solution</summary>
#
# From the module's alone: everything in its layer (`enorm`, `hnorm`, `eh_proj`, `shared_head.norm`, the decoder layer).
# From the main loss alone: nothing. The module reads the main model's normed output, so every tensor of the main model
# hears of both. That is the point of MTP as a training objective: *plan ahead* reaches all layers.
#
# </details>
#
# 2. V3's embedding and head have 1.85 billion parameters, and the module uses both. Why are they in the released file a
#    second time, and what must a loader check?
#
# <details><summary>Solution</summary>
#
# So that layer 61 can be served by itself, without the main model's shards. A loader that shares them in memory should
# check that the copies are there and of the right shape; one that trains both apart would have another model.
#
# </details>
#
# 3. What would happen to the gradient of layer 0 in a model of 61 layers that norms the river itself after each
#    addition (post-norm)?
#
# <details><summary>Solution</summary>
#
# Each norm multiplies the gradient by $w / \mathrm{rms}$ and removes its part along the row. 122 such factors lie
# between the loss and layer 0; unless all are close to 1 the product vanishes or explodes. With pre-norm the factor of
# the direct path is exactly 1. Chapter 01 compares the wirings.
#
# </details>
