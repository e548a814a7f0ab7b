# %% [markdown]
# # The size of the cache
#
# **The question.** How many bytes does one token cost, for as long as it is remembered?

# %%
import matplotlib.pyplot as plt
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
from decoupled_rope import MLAConfig, MLAWeights, decoupled_attention_forward
from kv_cache import TokenCache

from utils.whiteboard import COLORS, bars, board, matrix, note, use_style

use_style()

# %% [markdown]
# ## On the whiteboard: what one token leaves behind in one layer
#
# One cell is 64 numbers (BF16, 128 bytes). Multi-head attention at V3's widths needs 512 cells; here they are, and what
# the others need.

# %%
look = {"cell": 0.36, "limit": 1.4}
fig, ax = board(27, 7.4)
note(ax, 6.4, 6.9, "multi-head: 512 cells", size=12)
matrix(ax, 0.6, 6.4, np.ones((16, 32)), "content", **look)
for y, cells, name in [(5.6, 32, "8 key-value heads: 32 cells"), (3.4, 4, "multi-query: 4 cells"), (1.2, 8, "")]:
    matrix(ax, 14, y, np.ones((1, cells)), "content" if name else "latent", **look)
    note(ax, 14, y + 0.5, name or "latent attention: 8 cells of latent, 1 of rotary key", align="left", size=12)
matrix(ax, 14 + 8 * 0.36, 1.2, np.ones((1, 1)), "rope", **look)
plt.show()

# %% [markdown]
# ## Derivation
#
# Values per token and layer:
#
# 1. multi-head: a key and a value for every head, $H(K+U) = 128 \cdot 256 = 32768$;
# 2. grouped: $2 J K$, with 8 key-value heads $2048$; 3. multi-query: $2K = 256$;
# 4. latent: $C + R = 512 + 64 = 576$. No factor 2 (the latent is key and value at once), no heads, and **do not forget
#    R**.
# 5. Bytes per token of the model: $\times\, L = 61$ **layers** $\times\, 2$ bytes: $576 \cdot 61 \cdot 2 = 70272$.
#
# ## Check in numbers: the arithmetic is the size of a real cache

# %%
small = MLAConfig(32, 4, kv_lora_rank=12, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8)
past, rng = TokenCache(10), np.random.default_rng(0)
decoupled_attention_forward(rng.standard_normal((1, 10, 32)), MLAWeights.init(rng, small), small, past=past)
assert past.nbytes == 10 * cache_bytes_per_token({**vars(small), "num_hidden_layers": 1}, bytes_per_value=8)
print(f"V3: {count_latent(V3)} values per layer, {cache_bytes_per_token(V3):,} bytes per token")
print(f"with an FP8 latent: {fp8_latent_bytes_per_layer(V3)} bytes per layer instead of {2 * count_latent(V3)}")

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

# %%
tokens = np.linspace(0, 131072, 50)[1:]
fig, ax = plt.subplots(figsize=(9, 4.6))
for name, (values, kind) in kinds.items():
    gigabytes = values * 61 * 2 * tokens / 1e9
    ax.semilogy(tokens / 1024, gigabytes, color=COLORS[kind])
    ax.text(130, gigabytes[-1], f"{name}: {gigabytes[-1]:,.1f} GB", va="center")
ax.axhline(80, color="#BBBBBB", lw=1, ls="--")
ax.text(70, 90, "one 80 GB GPU", color="#888888")
ax.set(xlabel="context of one sequence, thousand tokens", ylabel="cache, GB", xlim=(0, 182), xticks=range(0, 129, 32))
ax.set_title(f"V3's cache: latent attention keeps {ratio:.0f} times less than multi-head")
plt.show()

# %%
models = {"Llama-3.1-405B": LLAMA_405B, "Qwen2.5-72B": QWEN_72B, "DeepSeek-V3": V3}
fig, ax = plt.subplots(figsize=(8, 2.4))
sizes = [cache_bytes_per_token(c) for c in models.values()]
bars(ax, list(models), sizes, ["content", "content", "latent"], " bytes")
ax.set(xlabel="bytes per token, BF16", xticks=[])
ax.set_title(f"DeepSeek-V3 keeps {sizes[0] / sizes[2]:.1f} times less per token than Llama-3.1-405B")
plt.show()

# %% [markdown]
# What it buys is sequences side by side. In 16 GiB of cache:

# %%
for name, config in models.items():
    print(f"{name:<15} {tokens_that_fit(config, 16 * 2**30):>8,} tokens")

# %% [markdown]
# ## What this chapter changed
#
# From 32,768 numbers per layer and token to 576, with a key and a value of its own for every head, positions included,
# and a decoding step that reads nothing but the cache. The V2 paper reports that quality does not suffer (its Table 1
# calls MLA stronger than multi-head attention); we have not trained at a size that could confirm it here.
#
# ## Exercises
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
# attention.
#
# </details>
