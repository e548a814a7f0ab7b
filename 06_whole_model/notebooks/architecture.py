# %% [markdown]
# # Every tensor of the model
#
# **The question.** 671 billion numbers lie in a file. What is each of them for? And can one small function tell, from
# a page of settings, the name and the shape of every array, for a model of any size?
#
# Think of a kit with a parts list. The list of this model is short, because all layers are built alike: two norms, an
# attention, and either one wide network or many thin ones. Whoever can write the list can build the model, count it,
# and see at once when a part in somebody else's box does not fit. This notebook writes the list, checks it against the
# module, counts V3 to the last parameter, and asks which settings the parameters are in.

# %%
from dataclasses import replace

import numpy as np
from architecture import (
    V3,
    Config,
    count_parameters,
    init_model,
    layer_shapes,
    tensor_shapes,
    view_layer,
)

from utils.plots_06 import plot_parts

# %% [markdown]
# ## Numbers to follow with a pencil
#
# **One expert of V3.** Three matrices of $7168 \times 2048$: 44,040,192 numbers.
#
# **One expert layer.** 257 experts (256 routed, one shared): 11,318,329,344. The router: $256 \cdot 7168 = 1,835,008$,
# and 256 biases. Attention, by the widths of chapter 02:
#
# | | shape | numbers |
# |---|---|---|
# | `q_a_proj`, `q_a_layernorm` | 1536 × 7168, 1536 | 11,011,584 |
# | `q_b_proj` | 128 · (128 + 64) × 1536 | 37,748,736 |
# | `kv_a_proj_with_mqa`, `kv_a_layernorm` | (512 + 64) × 7168, 512 | 4,129,280 |
# | `kv_b_proj` | 128 · (128 + 128) × 512 | 16,777,216 |
# | `o_proj` | 7168 × 128 · 128 | 117,440,512 |
#
# together 187,107,328. Two norms of 7168. So an expert layer has $11,318,329,344 + 1,835,264 + 187,107,328 + 14,336 =
# 11,507,286,272$ numbers, and 58 of them are 667 billion. The rest of the model is small change.

# %%
expert, attention = 3 * 7168 * 2048, 11_011_584 + 37_748_736 + 4_129_280 + 16_777_216 + 117_440_512
layer = 257 * expert + 256 * 7168 + 256 + attention + 2 * 7168
shapes = layer_shapes(V3, 10)
counted = sum(int(np.prod(shape, dtype=np.int64)) for shape in shapes.values())
print(f"by pencil {layer:,}, by the module {counted:,}; 58 such layers: {58 * layer:,}")

# %% [markdown]
# ## Build it: the parts list of one layer
#
# Letters as everywhere: $D$ model width, $H$ heads, $K$, $R$, $U$ the widths of content key, rotary key and value, $C$
# and $Q$ the latents, $E$ experts of hidden width $F$.


# %%
def list_attention(c):
    K, R, U, H, D = c.qk_nope_head_dim, c.qk_rope_head_dim, c.v_head_dim, c.num_attention_heads, c.hidden_size
    return {
        "q_a_proj": (c.q_lora_rank, D),
        "q_a_layernorm": (c.q_lora_rank,),
        "q_b_proj": (H * (K + R), c.q_lora_rank),
        "kv_a_proj_with_mqa": (c.kv_lora_rank + R, D),
        "kv_a_layernorm": (c.kv_lora_rank,),
        "kv_b_proj": (H * (K + U), c.kv_lora_rank),
        "o_proj": (D, H * U),
    }


# %%
def list_network(c, i):
    """One wide network in the first layers, many thin ones and a shared one in the others."""
    D, E, F = c.hidden_size, c.n_routed_experts, c.moe_intermediate_size
    if i < c.first_k_dense_replace:
        return {f"{n}.weight": shape for n, shape in list_three(D, c.intermediate_size).items()}
    parts = {"gate.weight": (E, D), "gate.e_score_correction_bias": (E,)}
    parts |= {f"experts.{n}.weight": (E, *shape) for n, shape in list_three(D, F).items()}
    shared = list_three(D, c.n_shared_experts * F)
    return parts | {f"shared_experts.{n}.weight": shape for n, shape in shared.items()}


def list_three(D, F):
    return {"gate_proj": (F, D), "up_proj": (F, D), "down_proj": (D, F)}


# %%
def list_model(c):
    """Every array by its name; experts stacked."""
    D = c.hidden_size
    parts = {"model.embed_tokens.weight": (c.vocab_size, D)}
    for i in range(c.num_hidden_layers + c.num_nextn_predict_layers):
        mine = {f"self_attn.{n}.weight": shape for n, shape in list_attention(c).items()}
        mine |= {f"mlp.{n}": shape for n, shape in list_network(c, i).items()}
        norms = ["input_layernorm", "post_attention_layernorm"]
        if i >= c.num_hidden_layers:  # an MTP module: one more layer, and four parts of its own (chapter 04)
            norms += ["enorm", "hnorm", "shared_head.norm"]
            mine["eh_proj.weight"] = (D, 2 * D)
        mine |= {f"{n}.weight": (D,) for n in norms}
        parts |= {f"model.layers.{i}.{n}": shape for n, shape in mine.items()}
    return parts | {"model.norm.weight": (D,), "lm_head.weight": (c.vocab_size, D)}


# %%
for config in (Config(), V3, Config(num_nextn_predict_layers=2, n_shared_experts=3)):
    assert list_model(config) == tensor_shapes(config)
total = sum(int(np.prod(shape, dtype=np.int64)) for shape in list_model(V3).values())
main, ahead = count_parameters(V3)
assert total == main + ahead
print(f"naive list and module agree; V3: {main:,} in the main model, {ahead:,} in its MTP module")

# %% [markdown]
# ## The derivation
#
# Why is the model a flat dictionary, and not a tree of objects?
#
# 1. **Names are the contract** with every other program (`checkpoint`), so they should exist once, in one place.
# 2. **Gradients and moments have the same names and shapes.** A gradient is a dictionary with the same keys; Adam is a
#    loop over keys. Nothing has to be walked.
# 3. **A layer is a view.** The chapters want their own little classes (`MLAWeights`, `DeepseekMoE`); these are made on
#    the spot from the arrays, without a copy. So an optimiser that changes an array in place changes what the layer
#    sees.
# 4. **Shared is shared.** Embedding and head exist once; the MTP modules are handed the same arrays.
#
# Points 3 and 4, shown:

# %%
model = init_model(np.random.default_rng(0), Config())
view = view_layer(model, 1)
assert view.mlp.experts.up_proj is model.weights["model.layers.1.mlp.experts.up_proj.weight"]
model.weights["model.layers.1.self_attn.o_proj.weight"][0, 0] = 42.0
print("the layer sees a change of the dictionary at once:", view.self_attn.o_proj[0, 0])

# %% [markdown]
# ## The experiment: where are the parameters?
#
# Count by what a part is for, in three models: the tiny one of this chapter, V3, and V3 without experts of its own
# (each layer one network as wide as what a token meets, $9 \cdot 2048 = 18432$).


# %%
PARTS = ("embedding and head", "attention", "dense networks", "shared experts", "routed experts", "MTP module")


def part_of(name, config):
    if name.startswith(f"model.layers.{config.num_hidden_layers}."):
        return "MTP module"
    for word, part in (("self_attn", "attention"), ("shared", "shared experts"), ("experts", "routed experts")):
        if word in name:
            return part
    return "dense networks" if ".mlp." in name and ".gate." not in name else "embedding and head"


# %%
def count_parts(config):
    sizes = dict.fromkeys(PARTS, 0)
    for name, shape in tensor_shapes(config).items():
        sizes[part_of(name, config)] += int(np.prod(shape, dtype=np.int64))
    return sizes


dense = replace(V3, first_k_dense_replace=62)
counts = {"tiny": count_parts(Config()), "V3": count_parts(V3), "V3, all layers dense": count_parts(dense)}
share = counts["V3"]["routed experts"] / sum(counts["V3"].values())
smaller = sum(counts["V3"].values()) / sum(counts["V3, all layers dense"].values())
plot_parts(
    counts, f"{share:.0%} of V3 are routed experts; all dense, it would have {smaller:.0f} times fewer parameters"
)

# %% [markdown]
# Both large models do the same work for a token. The tiny one is built the other way round: that is why small models
# teach little about what a large one costs.
#
# ## Change this, predict, run
#
# `setting` is one key of the config, made twice as large. Predict by what factor the parameters of V3 grow: for twice
# as many experts, for a twice as wide model, for a latent of twice the width (`kv_lora_rank`), for a twice as large
# vocabulary. Which of these also makes the cache larger?
#
# <details><summary>Afterwards</summary>
#
# Twice the experts: 1.97. Twice the width: 2.00, for nearly all matrices have the width on one side. Twice the latent:
# 1.002, as only two thin matrices know of it; but it is the *cache* that nearly doubles, $(1024 + 64)/(512 + 64) =
# 1.89$. Twice the vocabulary: 1.003. What costs parameters and what costs memory while writing are different keys.
#
# </details>

# %%
setting = "n_routed_experts"
grown = replace(V3, **{setting: 2 * getattr(V3, setting)})
factor = sum(count_parameters(grown)) / sum(count_parameters(V3))
cache = [c.kv_lora_rank + c.qk_rope_head_dim for c in (V3, grown)]
print(f"{setting} doubled: {factor:.3f} times the parameters, {cache[1] / cache[0]:.2f} times the cache of a token")

# %% [markdown]
# ## What you can now do
#
# Read a configuration and say what every tensor of the checkpoint is for, how large it is and which setting made it
# so; count a model of any size to the last parameter; say what a layer shares with the dictionary and why.
#
# ## Exercises
#
# Graded: `count_layer` (`make check CH=06`). By thought alone:
#
# 1. The index of the released files names no `q_proj`. When would there be one?
#
# <details><summary>Solution</summary>
#
# With `q_lora_rank` null, as in V2-Lite: the query is made from the hidden state by one matrix, and `q_a_proj`,
# `q_a_layernorm` and `q_b_proj` are missing.
#
# </details>
#
# 2. Which tensors of V3 does a single token not use at all?
#
# <details><summary>Solution</summary>
#
# In each of the 58 expert layers 248 of 256 routed experts, and all rows of the embedding but its own. That leaves
# 36.6 billion of 671.
#
# </details>
