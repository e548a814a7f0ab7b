"""The one table between the released tensor names and our memory.

    model.layers.5.mlp.experts.7.up_proj.weight   [F, D]  ->  layers.5.mlp.experts.gate_up_proj[7, F:2F]
    model.layers.61.enorm.weight                  [D]     ->  mtp.0.enorm.weight
    model.layers.61.embed_tokens.weight           [V, D]  ->  embed_tokens.weight, of which it is a copy

A released layer `num_hidden_layers + k` is MTP module k; it carries copies of embedding and head, which memory holds
once. Every layer's projection may be stored in FP8, with `weight_scale_inv` beside it; embedding, head, gate, norms and
`eh_proj` never are. V2-Lite has a plain `q_proj` and no bias.

Letters: V vocabulary, D width, E experts, F hidden width.
Source: the released model.safetensors.index.json (91,991 names).
"""

from collections.abc import Iterator
from dataclasses import dataclass

from deepseek_v3.config import ModelConfig
from deepseek_v3.config_values import FP8_BLOCK

SCALE_SUFFIX = "_scale_inv"


@dataclass(frozen=True)
class Slot:
    """One released tensor: its shape [out, in], and where its numbers lie in our memory.

    Attributes:
        part: the row of `deepseek-v3 inspect` that counts it.
        memory: name in the model's state dict.
        expert: which expert of the stacked tensor, if it is one.
        rows: which rows of that expert's matrix, if not all.
        copy: another released tensor holds the same numbers.
        fp8: may be stored in FP8 with block scales.
        fp32: is always stored in FP32.
    """

    name: str
    shape: tuple[int, ...]
    part: str
    memory: str
    expert: int | None = None
    rows: tuple[int, int] | None = None
    copy: bool = False
    fp8: bool = False
    fp32: bool = False


def scale_name(name: str) -> str:
    """Name of the block scales that belong to a weight."""
    return name + SCALE_SUFFIX


def scale_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the block scales of a matrix."""
    return tuple(-(-length // FP8_BLOCK) for length in shape)


def iterate_slots(config: ModelConfig) -> Iterator[Slot]:
    """Yield every tensor that a checkpoint of this config holds, layer by layer, scales not included."""
    V, D = config.vocab_size, config.hidden_size
    yield Slot("model.embed_tokens.weight", (V, D), "embedding", "embed_tokens.weight")
    for i in range(config.num_hidden_layers):
        yield from _layer_slots(config, i, f"layers.{i}", "")
    yield Slot("model.norm.weight", (D,), "norms", "norm.weight")
    if not config.tie_word_embeddings:
        yield Slot("lm_head.weight", (V, D), "head", "lm_head.weight")
    for k in range(config.num_nextn_predict_layers):
        yield from _mtp_slots(config, config.num_hidden_layers + k, f"mtp.{k}")


def _mtp_slots(config: ModelConfig, index: int, memory: str) -> Iterator[Slot]:
    V, D = config.vocab_size, config.hidden_size
    released = f"model.layers.{index}"
    head = "embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    yield Slot(f"{released}.embed_tokens.weight", (V, D), "MTP copies", "embed_tokens.weight", copy=True)
    yield Slot(f"{released}.enorm.weight", (D,), "MTP glue", f"{memory}.enorm.weight")
    yield Slot(f"{released}.hnorm.weight", (D,), "MTP glue", f"{memory}.hnorm.weight")
    yield Slot(f"{released}.eh_proj.weight", (D, 2 * D), "MTP glue", f"{memory}.eh_proj.weight")
    yield Slot(f"{released}.shared_head.norm.weight", (D,), "MTP glue", f"{memory}.shared_head_norm.weight")
    yield Slot(f"{released}.shared_head.head.weight", (V, D), "MTP copies", head, copy=True)
    yield from _layer_slots(config, index, f"{memory}.block", "MTP ")


def _layer_slots(config: ModelConfig, index: int, memory: str, prefix: str) -> Iterator[Slot]:
    released, D = f"model.layers.{index}", config.hidden_size
    for norm in ("input_layernorm", "post_attention_layernorm"):
        yield Slot(f"{released}.{norm}.weight", (D,), prefix + "norms", f"{memory}.{norm}.weight")
    for name, shape in _attention_shapes(config).items():
        part = prefix + ("norms" if len(shape) == 1 else "attention")
        name = f"self_attn.{name}.weight"
        yield Slot(f"{released}.{name}", shape, part, f"{memory}.{name}", fp8=len(shape) == 2)
    if config.is_moe_layer(index):
        yield from _moe_slots(config, f"{released}.mlp", f"{memory}.mlp", prefix)
    else:
        F = config.intermediate_size
        yield from _network_slots(f"{released}.mlp", f"{memory}.mlp", D, F, prefix + "dense layers")


def _attention_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    D, heads, latent, low = config.hidden_size, config.num_attention_heads, config.kv_lora_rank, config.q_lora_rank
    query = heads * (config.qk_nope_head_dim + config.qk_rope_head_dim)
    if low is None:
        queries: dict[str, tuple[int, ...]] = {"q_proj": (query, D)}
    else:
        queries = {"q_a_proj": (low, D), "q_a_layernorm": (low,), "q_b_proj": (query, low)}
    return {
        **queries,
        "kv_a_proj_with_mqa": (latent + config.qk_rope_head_dim, D),
        "kv_a_layernorm": (latent,),
        "kv_b_proj": (heads * (config.qk_nope_head_dim + config.v_head_dim), latent),
        "o_proj": (D, heads * config.v_head_dim),
    }


def _network_slots(released: str, memory: str, D: int, F: int, part: str) -> Iterator[Slot]:
    for name, shape in {"gate_proj": (F, D), "up_proj": (F, D), "down_proj": (D, F)}.items():
        yield Slot(f"{released}.{name}.weight", shape, part, f"{memory}.{name}.weight", fp8=True)


def _moe_slots(config: ModelConfig, released: str, memory: str, prefix: str) -> Iterator[Slot]:
    assert config.n_routed_experts is not None
    D, E, F = config.hidden_size, config.n_routed_experts, config.moe_intermediate_size
    yield Slot(f"{released}.gate.weight", (E, D), prefix + "routers", f"{memory}.gate.weight")
    if config.scoring_func == "sigmoid":
        bias = "gate.e_score_correction_bias"
        yield Slot(f"{released}.{bias}", (E,), prefix + "routers", f"{memory}.{bias}", fp32=True)
    for e in range(E):
        for name, stacked, rows, shape in (
            ("gate_proj", "gate_up_proj", (0, F), (F, D)),
            ("up_proj", "gate_up_proj", (F, 2 * F), (F, D)),
            ("down_proj", "down_proj", None, (D, F)),
        ):
            target = f"{memory}.experts.{stacked}"
            full = f"{released}.experts.{e}.{name}.weight"
            yield Slot(full, shape, prefix + "routed experts", target, e, rows, fp8=True)
    if config.n_shared_experts:
        width = config.n_shared_experts * F
        part = prefix + "shared experts"
        yield from _network_slots(f"{released}.shared_experts", f"{memory}.shared_experts", D, width, part)


def released_name(stored: str, prefix: str = "") -> tuple[str | None, str]:
    """Return a stored tensor's released name; None and what it is, if it has no meaning for the language model.

    Args:
        prefix: of the language model's tensors, in a file that holds a model for images too.
    """
    if stored.endswith("rotary_emb.inv_freq"):  # computed from the config
        return None, "rotary frequencies (inv_freq)"
    if not prefix:
        return stored, ""
    for start in (prefix, f"model.{prefix}"):
        if stored.startswith(start):
            rest = stored.removeprefix(start)
            return rest if rest.startswith(("model.", "lm_head.")) else f"model.{rest}", ""
    return (
        (stored, "")
        if stored.startswith("lm_head.")
        else (None, f"tensors of the model for images ({stored.split('.')[0]})")
    )


def mtp_layer_of(name: str, config: ModelConfig) -> bool:
    """Whether a released tensor lies in a layer behind the main model's."""
    pieces = name.split(".")
    if len(pieces) < 3 or pieces[:2] != ["model", "layers"] or not pieces[2].isdecimal():
        return False
    return int(pieces[2]) >= config.num_hidden_layers
