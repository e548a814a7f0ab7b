# %% [markdown]
# # The size of the cache
#
# **The question.** How many bytes does one token cost, for as long as it is remembered?
#
# You are asked to serve DeepSeek-V3 to a hundred people at once, each with a text of 32,000 tokens. The weights fit, a
# colleague has checked. And the drawers? You need one number before the meeting, bytes per token, and you need to know
# that it is right. Three people have computed it for you: 1,152, 62,464 and 140,544. All three are wrong, each in a way
# that is easy to fall into.

# %%
import numpy as np
from cache_size import (
    LLAMA_405B,
    QWEN_72B,
    V3,
    cache_bytes_per_token,
    count_grouped_query,
    count_latent,
    count_multi_head,
    fp8_latent_bytes_per_layer,
    tokens_that_fit,
)

# %%
from decoupled_rope import MLAConfig, MLAWeights, decoupled_attention_forward
from kv_cache import TokenCache

from utils.drawings_02 import draw_cells
from utils.plots_02 import plot_memory, plot_sizes

# %% [markdown]
# ## Intuition: what one token leaves behind in one layer
#
# One cell of the drawing is 64 numbers (16 bits each, so 128 bytes). Multi-head attention at V3's widths needs 512
# cells; here they are, and what the others need.

# %%
draw_cells()

# %% [markdown]
# ## Numbers to follow with a pencil
#
# V3 has $L = 61$ layers. In each, a token leaves a latent of $C = 512$ numbers and a rotary key of $R = 64$, nothing
# else: no heads (all 128 read the same latent), no factor 2 (the latent is key and value at once). A number in BF16 has
# 2 bytes.
# $$(512 + 64) \cdot 61 \cdot 2 = 576 \cdot 122 = 70{,}272 \text{ bytes per token.}$$
#
# And the three wrong answers: $1{,}152 = 576 \cdot 2$ is *one layer*. $62{,}464 = 512 \cdot 122$ *forgets the rotary
# key*. $140{,}544 = 2 \cdot 70{,}272$ counts the latent *twice*, as K and as V.
#
# ## Build it
#
# Values per token and layer, for the four kinds of attention of this chapter. $H$ heads, keys of width $K$, values of
# width $U$, $J$ key-value heads.


# %%
def values_per_layer(kind, H=128, K=128, U=128, C=512, R=64, J=8):
    """Numbers that one token leaves behind in one layer."""
    if kind == "multi-head":
        return H * (K + U)
    if kind == "grouped":
        return J * (K + U)
    if kind == "multi-query":
        return K + U
    return C + R


for kind in ("multi-head", "grouped", "multi-query", "latent"):
    per_layer = values_per_layer(kind)
    print(f"{kind:<11} {per_layer:>6,} values per layer, {per_layer * 61 * 2:>9,} bytes per token")

# %% [markdown]
# ## The derivation
#
# 1. What is read again later must be kept: keys and values, or what they can be made from. Queries are not (notebook
#    `kv_cache`).
# 2. Multi-head: a key and a value for every head, $H(K+U) = 128 \cdot 256 = 32{,}768$ values per token and layer.
# 3. Grouped with $J$ key-value heads: $J(K+U)$, for $J = 8$ it is 2,048. Multi-query is $J = 1$: 256.
# 4. Latent: keys and values are made from the latent, so the latent is enough, $C$; the rotary key must be kept beside
#    it, $R$. Together $512 + 64 = 576$.
# 5. Each layer has its own: times $L$. Each value has its bytes: times 2 in BF16.
#
# ## The module agrees, and so does a real cache
#
# Arithmetic about memory should be held against memory. Fill a real cache and ask it.

# %%
assert values_per_layer("multi-head") == count_multi_head(V3)
assert values_per_layer("grouped") == count_grouped_query(8, 128)
assert values_per_layer("latent") == count_latent(V3)

small = MLAConfig(32, 4, kv_lora_rank=12, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8)
past, rng = TokenCache(10), np.random.default_rng(0)
decoupled_attention_forward(rng.standard_normal((1, 10, 32)), MLAWeights.init(rng, small), small, past=past)
assert past.nbytes == 10 * cache_bytes_per_token({**vars(small), "num_hidden_layers": 1}, bytes_per_value=8)
print(f"10 tokens, one layer, float64: {past.nbytes} bytes = 10 * (12 + 4) * 8")
print(f"V3: {cache_bytes_per_token(V3):,} bytes per token")

# %% [markdown]
# ## The finding: four kinds of attention on one axis

# %%
kinds = {
    "multi-head": (count_multi_head(V3), "ink"),
    "grouped, 8 heads": (count_grouped_query(8, 128), "content"),
    "latent (MLA)": (count_latent(V3), "latent"),
    "multi-query": (count_grouped_query(1, 128), "content"),
}
ratio = count_multi_head(V3) / count_latent(V3)
plot_memory(kinds, 61, f"V3's cache: latent attention keeps {ratio:.0f} times less than multi-head")

# %%
models = {"Llama-3.1-405B": LLAMA_405B, "Qwen2.5-72B": QWEN_72B, "DeepSeek-V3": V3}
sizes = [cache_bytes_per_token(c) for c in models.values()]
title = f"DeepSeek-V3 keeps {sizes[0] / sizes[2]:.1f} times less per token than Llama-3.1-405B"
plot_sizes(list(models), sizes, ["content", "content", "latent"], title)

# %% [markdown]
# What it buys is texts side by side. In 16 GiB of cache, all texts together:

# %%
for name, config in models.items():
    print(f"{name:<15} {tokens_that_fit(config, 16 * 2**30):>8,} tokens")
need = 100 * 32_000 * cache_bytes_per_token(V3) / 1e9
print(f"the hundred people of the beginning: {need:.0f} GB; with multi-head {need * ratio:,.0f} GB")
print(f"one layer with an FP8 latent: {fp8_latent_bytes_per_layer(V3)} bytes instead of {2 * count_latent(V3)}")

# %% [markdown]
# ## A reader's question: how much does MLA save at small size?
#
# "57 times" is V3. The ratio is $H(K + U)$ against $C + R$; it grows with the number of heads, and at small size there
# are few. Take GPT-2's shape, 12 heads of width 64: multi-head keeps $12 \cdot 128 = 1{,}536$ values per layer. What
# would a latent keep? That depends on how wide it must be, which no arithmetic says. V2 and V3 use $C = 4 K$ and
# $R = K / 2$, a latent as wide as four heads:

# %%
for heads in (2, 4, 8, 12, 16, 32, 128):
    K = 128 if heads > 16 else 64
    multi_head, latent = heads * 2 * K, 4 * K + K // 2
    needed = latent / (2 * K)
    print(f"{heads:>3} heads of {K:>3}: {multi_head:>6,} against {latent:>3}, {multi_head / latent:>5.1f} times less")
print(f"the same cache as grouped-query attention with {needed} key-value heads, at every size")

# %% [markdown]
# With two heads a latent of that width keeps *more* than multi-head attention, with twelve 5 times less. MLA is a
# method for models with many heads. And it is not free: a step does more arithmetic per byte (notebook
# `absorbed_attention`), which small models on small machines may not have to spare.
#
# ## Change this, predict, run
#
# V3 with half as many layers, but rotary keys of 128 and 16 more heads: predict whether the cache grows or shrinks, and
# what the heads contribute. Then write your prediction into the assert.
#
# <details><summary>Afterwards</summary>
#
# It shrinks, from 70,272 bytes to 38,400. Half as many layers halve it; the rotary key's 64 further numbers add a ninth
# (640 for 576). The heads contribute nothing: however many there are, they read the same latent.
#
# </details>

# %%
changed = {**V3, "num_hidden_layers": 30, "qk_rope_head_dim": 128, "num_attention_heads": 144}
print(f"{cache_bytes_per_token(changed):,} bytes per token")
assert cache_bytes_per_token(changed) == (512 + 128) * 30 * 2

# %% [markdown]
# ## What this chapter changed
#
# From 32,768 numbers per layer and token to 576, with a key and a value of its own for every head, positions included,
# and a decoding step that reads nothing but the cache. The V2 paper reports that quality does not suffer (its Table 1
# calls MLA stronger than multi-head attention); we have not trained at a size that could confirm it here.
#
# ## What you can now do
#
# Compute the cache of any model from its `config.json`; recognise the three usual errors by their numbers; and say at
# which size a latent pays.
#
# ## Exercises
#
# Graded: `cache_bytes` (`make check CH=02`). By thought alone:
#
# 1. A colleague plans V3 serving with 62,464 bytes per token. What was forgotten, and what happens?
#
# <details><summary>Solution</summary>
#
# The rotary key: $512 \cdot 61 \cdot 2 = 62464$. The plan is 11 percent short, and the server runs out of memory at
# full load.
#
# </details>
#
# 2. What would a grouped-query V3 with the same cache look like?
#
# <details><summary>Solution</summary>
#
# 2.25 key-value heads of width 128 for 128 query heads: it cannot be built, and 2 heads would be nearly multi-query
# attention. (V2's Table 1 has this number.)
#
# </details>
