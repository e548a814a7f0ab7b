"""Bytes that a micro-batch of FP8 training keeps from its forward pass for its backward pass, by arithmetic alone.

    kept = fp8_kept_bytes(ModelConfig.preset("demo"), rows=4, length=256)

What the kernels keep, each tensor once, the weights themselves not at all; a test counts it with PyTorch's hooks.

Letters: B rows, S positions, N tokens, D width, H heads, K content, R rotary, U value, C latent, Q query latent,
E experts, A experts per token, F hidden width, V vocabulary.
"""

from deepseek_v3.config import ModelConfig
from deepseek_v3.config_values import FP8_BLOCK

BF16, FP32, INDEX = 2, 4, 8
CODE, E5M6 = 1, 2  # E5M6 has 12 bits and is held in 16


def count_blocks(length: int) -> int:
    """Blocks of 128 that cover a length."""
    return -(-length // FP8_BLOCK)


def tile_bytes(tokens: int, width: int, code: int = CODE) -> int:
    """Codes and FP32 scales of tokens in tiles of 1 x 128."""
    return tokens * (code * width + FP32 * count_blocks(width))


def matrix_bytes(rows: int, columns: int) -> int:
    """Codes and FP32 scales of a weight in blocks of 128 x 128."""
    return CODE * rows * columns + FP32 * count_blocks(rows) * count_blocks(columns)


def network_bytes(width: int, hidden: int) -> int:
    """Of the three weights of a SwiGLU network."""
    return 2 * matrix_bytes(hidden, width) + matrix_bytes(width, hidden)


def fp8_kept_bytes(c: ModelConfig, rows: int, length: int) -> dict[str, int]:
    """Bytes by kind: codes of weights, codes of activations, and what is no FP8.

    Args:
        rows, length: of the micro-batch, B and S. Below 32 tokens, where products read weights as they lie, and at odd
            widths more is kept than this says.
    """
    layers, depths = c.num_hidden_layers, c.num_nextn_predict_layers
    blocks = [(i, rows * length, FP32) for i in range(layers)]
    blocks += [
        (layers + k, rows * max(0, length - k - 1), BF16) for k in range(depths)
    ]  # their residual stream is BF16
    weights = sum(_attention_weights(c) + _feed_forward_weights(c, i) for i, _, _ in blocks)
    codes = sum(_attention_codes(c, n) + _feed_forward_codes(c, i, n) for i, n, _ in blocks)
    other = sum(_attention_other(c, n, residual) + _router_other(c, i, rows, n) for i, n, residual in blocks)
    tokens, d = rows * length, c.hidden_size
    other += INDEX * rows * (length + 1) + FP32 * tokens * (d + 1)  # the tokens, and the final norm
    other += FP32 * length * c.qk_rope_head_dim * (1 + (depths > 0))  # cosines and sines, of the modules once more
    other += (1 + depths) * (BF16 * tokens * d + FP32 * c.vocab_size * d)  # gradients that the head makes at once
    if rows == 1:  # module k + 1 keeps a view of what is k + 1 positions longer; of several rows that is a copy
        other += sum(range(1 + depths)) * BF16 * d
    for _, n, _ in blocks[layers:]:  # enorm, hnorm, eh_proj, shared_head.norm
        other += n * ((FP32 + BF16) * d + BF16 * 2 * d + BF16 * d + 3 * FP32)
    return {"codes of weights": weights, "codes of activations": codes, "BF16 and FP32": other}


def block_kept_bytes(c: ModelConfig, layer: int, rows: int, length: int) -> int:
    """Bytes that one block keeps of a micro-batch, its weights' codes aside: they are made once for all that follow."""
    n = rows * length
    codes = _attention_codes(c, n) + _feed_forward_codes(c, layer, n)
    return codes + _attention_other(c, n, FP32) + _router_other(c, layer, rows, n)


def _attention_weights(c: ModelConfig) -> int:
    d, low, heads = c.hidden_size, c.q_lora_rank, c.num_attention_heads
    query = heads * c.qk_head_dim
    queries = matrix_bytes(query, d) if low is None else matrix_bytes(low, d) + matrix_bytes(query, low)
    up = matrix_bytes(heads * (c.qk_nope_head_dim + c.v_head_dim), c.kv_lora_rank)
    return queries + matrix_bytes(c.cache_width, d) + up + matrix_bytes(d, heads * c.v_head_dim)


def _attention_codes(c: ModelConfig, n: int) -> int:
    queries = tile_bytes(n, c.hidden_size) + (tile_bytes(n, c.q_lora_rank) if c.q_lora_rank is not None else 0)
    out = tile_bytes(n, c.num_attention_heads * c.v_head_dim, E5M6)
    return queries + tile_bytes(n, c.hidden_size) + tile_bytes(n, c.kv_lora_rank) + out


def _attention_other(c: ModelConfig, n: int, residual: int) -> int:
    """The norms' inputs and inverse roots, both of the block's too; queries, keys, values of the core."""
    heads = c.num_attention_heads
    norms = 2 * (residual * c.hidden_size + FP32) + BF16 * c.cache_width + FP32
    if c.q_lora_rank is not None:
        norms += BF16 * c.q_lora_rank + FP32
    core = heads * (c.qk_head_dim + c.qk_nope_head_dim + c.v_head_dim) + c.cache_width  # outputs are codes: E5M6
    return n * (norms + BF16 * core + FP32 * heads)


def _feed_forward_weights(c: ModelConfig, layer: int) -> int:
    if not c.is_moe_layer(layer):
        return network_bytes(c.hidden_size, c.intermediate_size)
    shared = (c.n_shared_experts or 0) * c.moe_intermediate_size
    routed = (c.n_routed_experts or 0) * network_bytes(c.hidden_size, c.moe_intermediate_size)
    return routed + (network_bytes(c.hidden_size, shared) if shared else 0)


def _feed_forward_codes(c: ModelConfig, layer: int, n: int) -> int:
    """The input once, and what SwiGLU reads: gate and up."""
    inputs = tile_bytes(n, c.hidden_size)
    if not c.is_moe_layer(layer):
        return inputs + 2 * tile_bytes(n, c.intermediate_size)
    shared = (c.n_shared_experts or 0) * c.moe_intermediate_size
    routed = inputs + 2 * tile_bytes(n * c.num_experts_per_tok, c.moe_intermediate_size)
    return routed + (inputs + 2 * tile_bytes(n, shared) if shared else 0)


def _router_other(c: ModelConfig, layer: int, rows: int, n: int) -> int:
    """Input, scores, choice and weights in FP32, the plan of the experts, and the balance loss."""
    if not c.is_moe_layer(layer):
        return 0
    experts, chosen = c.n_routed_experts or 0, c.num_experts_per_tok
    router = FP32 * c.hidden_size + FP32 * experts + INDEX * chosen
    if c.norm_topk_prob:
        router += FP32 * (1 + chosen)
    plan = (2 * INDEX + FP32) * chosen
    return n * (router + plan + FP32) + FP32 * rows * experts
