"""Parameters, FLOPs, cache bytes and memory of any config, by arithmetic alone: nothing is built.

`deepseek-v3 size` prints them (`commands/size.py`).

Letters: T context, H heads, K content, R rotary, U value, C latent.
Source: arXiv:2412.19437, section 4.2; every count is held to the real module tree by a test.
"""

from dataclasses import dataclass

from deepseek_v3.config import ModelConfig
from deepseek_v3.config_values import FP8_BLOCK

BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "float8": 1}


@dataclass(frozen=True)
class Parameters:
    """Counts of stored values, selection biases included.

    Attributes:
        main: without the MTP modules.
        mtp: of the MTP modules alone; embedding and head are shared and not counted again.
        active: that one token uses in the main model, embedding and head included.
        active_mtp: that one token uses in the MTP modules alone.
        embedding: one embedding (or head) matrix.
    """

    main: int
    mtp: int
    active: int
    active_mtp: int
    embedding: int

    @property
    def total(self) -> int:
        """Everything that is stored once."""
        return self.main + self.mtp


def attention_parameters(c: ModelConfig) -> int:
    """Projections and latent norms of one attention layer."""
    query = c.num_attention_heads * c.qk_head_dim
    if c.q_lora_rank is None:
        queries = c.hidden_size * query
    else:
        queries = c.hidden_size * c.q_lora_rank + c.q_lora_rank + c.q_lora_rank * query
    keys = c.hidden_size * c.cache_width + c.kv_lora_rank
    up = c.kv_lora_rank * c.num_attention_heads * (c.qk_nope_head_dim + c.v_head_dim)
    return queries + keys + up + c.num_attention_heads * c.v_head_dim * c.hidden_size


def feed_forward_parameters(c: ModelConfig, layer: int, *, active: bool = False) -> int:
    """One layer's feed-forward half: dense, or router and experts (only those that a token uses, if `active`)."""
    if not c.is_moe_layer(layer):
        return 3 * c.hidden_size * c.intermediate_size
    assert c.n_routed_experts is not None
    expert = 3 * c.hidden_size * c.moe_intermediate_size
    bias = c.n_routed_experts if c.scoring_func == "sigmoid" else 0
    used = c.num_experts_per_tok if active else c.n_routed_experts
    return (used + (c.n_shared_experts or 0)) * expert + c.n_routed_experts * c.hidden_size + bias


def count_parameters(c: ModelConfig) -> Parameters:
    """Count what a model of this config stores and uses."""
    embedding = c.vocab_size * c.hidden_size
    ends = embedding * (1 if c.tie_word_embeddings else 2) + c.hidden_size
    layer = attention_parameters(c) + 2 * c.hidden_size
    layers = range(c.num_hidden_layers)
    extra = range(c.num_hidden_layers, c.num_hidden_layers + c.num_nextn_predict_layers)
    module = layer + 3 * c.hidden_size + 2 * c.hidden_size**2  # enorm, hnorm, shared_head.norm, eh_proj
    return Parameters(
        main=ends + sum(layer + feed_forward_parameters(c, i) for i in layers),
        mtp=sum(module + feed_forward_parameters(c, i) for i in extra),
        active=ends + sum(layer + feed_forward_parameters(c, i, active=True) for i in layers),
        active_mtp=sum(module + feed_forward_parameters(c, i, active=True) for i in extra),
        embedding=embedding,
    )


def attention_flops(c: ModelConfig, context: float) -> float:
    """FLOPs of scores and weighted sums for one token that sees `context` tokens, all main layers, expanded form."""
    return 2.0 * c.num_hidden_layers * c.num_attention_heads * (c.qk_head_dim + c.v_head_dim) * context


def training_flops(c: ModelConfig, length: int) -> float:
    """FLOPs per token of forward and backward of the main model: 6 per active weight, plus causal attention.

    The embedding is a look-up and does not count; a causal token sees half of the sequence on average.
    """
    count = count_parameters(c)
    weights = count.active - (0 if c.tie_word_embeddings else count.embedding)
    return 6.0 * weights + 3 * attention_flops(c, length / 2)


def decoding_flops(c: ModelConfig, context: int) -> float:
    """FLOPs of one decoded token behind `context` cached ones, absorbed form."""
    count = count_parameters(c)
    weights = count.active - (0 if c.tie_word_embeddings else count.embedding)
    scores = c.num_attention_heads * (c.cache_width + c.kv_lora_rank) * context
    return 2.0 * weights + 2.0 * c.num_hidden_layers * scores


def cache_values(c: ModelConfig) -> dict[str, int]:
    """Values that each kind of attention caches per token and layer, at this model's heads and widths."""
    pair = c.qk_nope_head_dim + c.v_head_dim
    kinds = {"MHA": c.num_attention_heads * pair}
    if c.num_attention_heads >= 8:
        kinds["GQA, 8 groups"] = 8 * pair
    return {**kinds, "MQA": pair, "MLA": c.cache_width}


def fp8_scales(c: ModelConfig) -> int:
    """FP32 scales of the released FP8 form: one per 128 x 128 block of every layer's matrices but the gate's."""

    def blocks(rows: int, columns: int) -> int:
        return -(-rows // FP8_BLOCK) * -(-columns // FP8_BLOCK)

    def network(hidden: int) -> int:
        return 2 * blocks(hidden, d) + blocks(d, hidden)

    d, heads = c.hidden_size, c.num_attention_heads
    query = heads * c.qk_head_dim
    low = c.q_lora_rank
    attention = blocks(query, d) if low is None else blocks(low, d) + blocks(query, low)
    attention += blocks(c.cache_width, d) + blocks(d, heads * c.v_head_dim)
    attention += blocks(heads * (c.qk_nope_head_dim + c.v_head_dim), c.kv_lora_rank)
    total = 0
    for i in range(c.num_hidden_layers + c.num_nextn_predict_layers):
        total += attention
        if not c.is_moe_layer(i):
            total += network(c.intermediate_size)
            continue
        assert c.n_routed_experts is not None
        total += c.n_routed_experts * network(c.moe_intermediate_size)
        if c.n_shared_experts:
            total += network(c.n_shared_experts * c.moe_intermediate_size)
    return total


def fp8_bytes(c: ModelConfig) -> int:
    """Bytes of the weights in the released FP8 form, embedding and head stored once."""
    count = count_parameters(c)
    layers = c.num_hidden_layers + c.num_nextn_predict_layers
    moe = sum(c.is_moe_layer(i) for i in range(layers))
    gates = moe * (c.n_routed_experts or 0) * c.hidden_size
    biases = _selection_biases(c)
    norms = c.hidden_size + layers * (2 * c.hidden_size + c.kv_lora_rank + (c.q_lora_rank or 0))
    extra = c.num_nextn_predict_layers * (3 * c.hidden_size + 2 * c.hidden_size**2)
    wide = count.embedding * (1 if c.tie_word_embeddings else 2) + gates + norms + extra
    return (count.total - wide - biases) + 2 * wide + 4 * biases + 4 * fp8_scales(c)


def _selection_biases(c: ModelConfig) -> int:
    """Values of the routing biases, in FP32."""
    layers = range(c.num_hidden_layers + c.num_nextn_predict_layers)
    moe = sum(c.is_moe_layer(i) for i in layers)
    return moe * (c.n_routed_experts or 0) if c.scoring_func == "sigmoid" else 0


def training_bytes(c: ModelConfig) -> dict[str, int]:
    """Bytes of weights, gradients and optimizer, activations aside.

    fp32: what this package's trainer keeps (weights 4, gradient 4, two moments 8); fp8: the same with moments in BF16
    (4), as `--moments bf16` alone. Weights' codes come and go with each micro-batch: see `sizing_fp8.py`.
    report: the V3 framework (FP32 master weights and gradients, BF16 moments, and a BF16 copy of the weights for the
    products).
    """
    total = count_parameters(c).total
    biases = _selection_biases(c)  # buffers: they have neither gradient nor moments
    return {
        "fp32": 16 * total - 12 * biases,
        "fp8": 12 * total - 8 * biases,
        "report": (4 + 4 + 2 + 2 + 2) * total,
    }
