"""Parameters, FLOPs, cache bytes and memory of any config, by arithmetic alone: nothing is built.

    deepseek-v3 size --preset v3-671b

Letters: T context, H heads, K content, R rotary, U value, C latent.
Source: arXiv:2412.19437, section 4.2; every count is held to the real module tree by a test.
"""

from dataclasses import dataclass

from deepseek_v3.config import ModelConfig

BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "float8": 1}
FP8_BLOCK = 128


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
    biases = moe * (c.n_routed_experts or 0) if c.scoring_func == "sigmoid" else 0
    norms = c.hidden_size + layers * (2 * c.hidden_size + c.kv_lora_rank + (c.q_lora_rank or 0))
    extra = c.num_nextn_predict_layers * (3 * c.hidden_size + 2 * c.hidden_size**2)
    wide = count.embedding * (1 if c.tie_word_embeddings else 2) + gates + norms + extra
    return (count.total - wide - biases) + 2 * wide + 4 * biases + 4 * fp8_scales(c)


def training_bytes(c: ModelConfig) -> dict[str, int]:
    """Bytes of weights, gradients and optimizer, activations aside.

    fp32: what this package's trainer keeps (weights 4, gradient 4, two moments 8). report: the V3 framework (FP32
    master weights and gradients, BF16 moments, and a BF16 copy of the weights for the products).
    """
    total = count_parameters(c).total
    return {"fp32": 16 * total, "report": (4 + 4 + 2 + 2 + 2) * total}


def format_bytes(count: float) -> str:
    """Write a byte count in the binary unit that leaves 1 to 4 digits before the point."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:,.2f} {unit}"
        count /= 1024
    return f"{count:,.2f} TiB"


def describe(c: ModelConfig, *, context: int, batch: int) -> list[tuple[str, list[tuple[str, str]]]]:
    """Lay out every figure as titled tables of (name, text)."""
    count, values = count_parameters(c), cache_values(c)
    width = BYTES[c.torch_dtype]
    per_token = {kind: n * c.num_hidden_layers * width for kind, n in values.items()}
    training = training_bytes(c)
    billion = 1e9
    cache = batch * context * per_token["MLA"]
    return [
        (
            "parameters",
            [
                ("main model", f"{count.main:,}"),
                (f"MTP modules ({c.num_nextn_predict_layers})", f"{count.mtp:,}"),
                ("active per token", f"{count.active:,} ({count.active / billion:.2f} B)"),
                ("active without embedding", f"{count.active - count.embedding:,}"),
            ],
        ),
        (
            f"FLOPs per token (context {context:,})",
            [
                ("training, causal", f"{training_flops(c, context) / billion:,.4g} GFLOP"),
                ("decoding, absorbed", f"{decoding_flops(c, context) / billion:,.4g} GFLOP"),
            ],
        ),
        (
            f"cache per token ({c.torch_dtype}, {c.num_hidden_layers} layers)",
            [
                (kind, f"{size:,} B, {values[kind]:,} values per layer ({size / per_token['MLA']:.1f} x MLA)")
                for kind, size in per_token.items()
            ],
        ),
        (
            "memory for training (weights, gradients, moments)",
            [
                ("fp32, this trainer", f"{format_bytes(training['fp32'])} (16 B a parameter)"),
                ("as in the V3 report", f"{format_bytes(training['report'])} (14 B a parameter)"),
            ],
        ),
        (
            f"memory for serving (batch {batch}, context {context:,})",
            [
                (f"weights, {c.torch_dtype}", format_bytes(count.total * width)),
                ("weights, FP8 with block scales", format_bytes(fp8_bytes(c))),
                ("latent cache", format_bytes(cache)),
            ],
        ),
    ]


@dataclass(frozen=True)
class SizeOptions:
    """Print parameters, FLOPs, cache bytes and memory of a config, without building the model.

    Attributes:
        preset: a named shape.
        config: a config.json instead of a preset.
        context: tokens that a query sees; the model's 4,096 of pre-training by default.
        batch: sequences served at once.
        json: print one JSON object instead of tables.
    """

    preset: str = "v3-671b"
    config: str | None = None
    context: int = 4096
    batch: int = 1
    json: bool = False


def run_size(options: SizeOptions) -> None:
    """Print the tables, or JSON."""
    if options.context < 1 or options.batch < 1:
        raise ValueError(f"--context {options.context} and --batch {options.batch} must be at least 1")
    config = ModelConfig.from_json(options.config) if options.config else ModelConfig.preset(options.preset)
    if options.json:
        import dataclasses
        import json

        count = count_parameters(config)
        figures = {
            "parameters": {**dataclasses.asdict(count), "total": count.total},
            "training_flops_per_token": training_flops(config, options.context),
            "decoding_flops_per_token": decoding_flops(config, options.context),
            "cache_values_per_token_and_layer": cache_values(config),
            "cache_bytes_per_token": config.cache_width * config.num_hidden_layers * BYTES[config.torch_dtype],
            "training_bytes": training_bytes(config),
            "fp8_bytes": fp8_bytes(config),
            "fp8_scales": fp8_scales(config),
        }
        print(json.dumps(figures, indent=2))
        return
    print(options.config or options.preset)
    for title, rows in describe(config, context=options.context, batch=options.batch):
        print(f"\n  {title}")
        for name, text in rows:
            print(f"    {name:<32}{text}")
