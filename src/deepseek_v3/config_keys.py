"""The keys of other people's config.json, brought into the released form, with nothing dropped that changes a number.

Each key is applied as `transformers` applies it, has no meaning for what the model computes, or is refused by name.
"""

import re
from typing import Any

from deepseek_v3.config_values import FP8_BLOCK, FP32_LARGEST, ConfigError, is_number, spell, suggest
from deepseek_v3.family import ARCHITECTURES, FOREIGN_KEYS, REFUSED, WRAPPED, Architecture

# Keys of real config.json files that change no number that the model computes.
IGNORED_KEYS = frozenset(
    """
    architectures auto_map transformers_version use_cache pretraining_tp ep_size output_router_logits head_dim
    qk_head_dim return_dict output_hidden_states output_attentions output_scores is_encoder_decoder is_decoder
    chunk_size_feed_forward id2label label2id problem_type _name_or_path _commit_hash _attn_implementation
    _attn_implementation_autoset _experts_implementation aux_loss_alpha seq_aux router_aux_loss_coef router_z_loss_coef
    cls_token_id sep_token_id decoder_start_token_id tokenizer_class prefix torchscript use_bfloat16 tf_legacy_loss
    finetuning_task task_specific_params return_dict_in_generate num_return_sequences max_length min_length do_sample
    early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p typical_p repetition_penalty
    length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids remove_invalid_values
    exponential_decay_length_penalty suppress_tokens begin_suppress_tokens forced_bos_token_id forced_eos_token_id
    unsloth_fixed unsloth_version
    """.split()  # noqa: SIM905
)
# Keys that we accept at some values only: anything else would be another model.
FIXED_KEYS: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "attention_dropout": (0, 0.0, None),
    "rope_interleave": (True, None),
    "moe_layer_freq": (1, None),
    "partial_rotary_factor": (1.0, None),
    "sliding_window": (None,),
    "pruned_heads": ({}, None),
    "add_cross_attention": (False, None),
    "cross_attention_hidden_size": (None,),
    "tie_encoder_decoder": (False, None),
}
YARN_NUMBERS = ["beta_fast", "beta_slow", "mscale", "mscale_all_dim", "attention_factor"]
YARN_KEYS = ["type", "rope_type", "factor", "original_max_position_embeddings", *YARN_NUMBERS, "truncate"]
QUANTIZATION_KEYS: dict[str, tuple[Any, ...] | None] = {  # None: any value, for the tensors themselves say it
    "quant_method": ("fp8",),
    "fmt": ("e4m3", None),
    "activation_scheme": ("dynamic", None),
    "weight_block_size": ([FP8_BLOCK, FP8_BLOCK], (FP8_BLOCK, FP8_BLOCK)),
    "scale_fmt": ("ue8m0", "float", None),
    "expert_dtype": ("fp8", None),
    "modules_to_convert": ([], None),
    "kv_cache_scheme": (None,),
    "modules_to_not_convert": None,
    "ignored_layers": None,
    "dequantize": None,
}
ATTENTION_GATE = re.compile(r"gated?_?(attn|attention)|(attn|attention)_?\w*_gated?", re.IGNORECASE)
NULLABLE = ("q_lora_rank", "n_routed_experts", "n_shared_experts", "bos_token_id", "eos_token_id", "pad_token_id",
            "rope_scaling", "quantization_config")  # fmt: skip

# What keys of experts mean in a model without any: nothing, but they have a value.
DENSE: dict[str, Any] = {
    "moe_intermediate_size": 0,
    "num_experts_per_tok": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 0,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
}


def read_keys(values: dict[str, Any], known: list[str]) -> dict[str, Any]:
    """Return the released keys of a config.json as one value for each name in `known`.

    Raises:
        ConfigError: another architecture, or a key that is unknown, contradicts another, or is needed and left out.
    """
    values = unwrap_text_config(values)
    architecture = choose_architecture(values)
    rename_keys(values, architecture)
    read_rope(values)
    read_layer_types(values)
    for key, allowed in FIXED_KEYS.items():
        if key in values and values.pop(key) not in allowed:
            raise ConfigError(f"{key} must be {allowed[0]!r} here; the released models have no other")
    heads = values.pop("num_key_value_heads", None)
    if heads not in (None, values.get("num_attention_heads", architecture.defaults.get("num_attention_heads"))):
        raise ConfigError(f"num_key_value_heads={heads} must equal num_attention_heads: the latent serves every head")
    values = {key: value for key, value in values.items() if key not in IGNORED_KEYS}
    for key, value in values.items():
        if key not in known:
            refuse_key(key, value, known)
    return fill_in(values, architecture, known)


def unwrap_text_config(values: dict[str, Any]) -> dict[str, Any]:
    """Return the language model's part of a config that holds a model for images too; anything else as it is."""
    wrapped = WRAPPED.get(str(values.get("model_type")))
    if wrapped is None:
        return dict(values)
    text = values.get(wrapped[0])
    if not isinstance(text, dict):
        raise ConfigError(f"{wrapped[0]}={text!r} must be an object: the language model's configuration")
    outer = ("bos_token_id", "eos_token_id", "pad_token_id", "quantization_config", "dtype", "torch_dtype")
    return {**{key: values[key] for key in outer if key in values}, **text}


def choose_architecture(values: dict[str, Any]) -> Architecture:
    """Return the architecture that `model_type` (or, without it, `architectures`) names; fills `model_type` in.

    Raises:
        ConfigError: another one, with the reason where it is known.
    """
    names = values.get("architectures") or []
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ConfigError(f"architectures={names!r} must be a list of names")
    if not isinstance(values.get("model_type", ""), str | None):
        raise ConfigError(f"model_type={values['model_type']!r} must be a word")
    by_name = {architecture.name: kind for kind, architecture in reversed(ARCHITECTURES.items())}
    kind = values.get("model_type") or next((by_name[name] for name in names if name in by_name), None)
    if kind is None and names:
        kind = names[0]
    kind = values["model_type"] = kind or "deepseek_v3"
    if kind not in ARCHITECTURES:
        why = REFUSED.get(str(kind), f"this package builds {', '.join(ARCHITECTURES)}")
        raise ConfigError(f"model_type={kind!r} is another architecture: {why}")
    return ARCHITECTURES[kind]


def rename_keys(values: dict[str, Any], architecture: Architecture) -> None:
    """Give keys that are known under several names the released one.

    Raises:
        ConfigError: two names of one key, with different values.
    """
    aliases = {"dtype": "torch_dtype", "num_mtp_layers": "num_nextn_predict_layers", **architecture.aliases}
    for alias, name in aliases.items():
        if alias in values:
            value = values.pop(alias)
            if value is not None and values.setdefault(name, value) not in (value, None):
                raise ConfigError(f"{alias}={value!r} contradicts {name}={values[name]!r}, of which it is another name")
    if values.get("torch_dtype", "") is None:
        del values["torch_dtype"]


def read_rope(values: dict[str, Any]) -> None:
    """Bring `rope_parameters` (Transformers 5) or `rope_scaling` into `rope_theta` and `rope_scaling`, in place.

    Raises:
        ConfigError: not an object, or a key in it that has no meaning here.
    """
    found = values.pop("rope_scaling", None) or values.pop("rope_parameters", None)
    values.pop("rope_parameters", None)
    if not found:
        if found not in (None, {}):
            raise ConfigError(f"rope_parameters={found!r} must be an object with rope_theta and rope_type")
        return
    if not isinstance(found, dict):
        raise ConfigError(f"rope_parameters={found!r} must be an object with rope_theta and rope_type")
    rope = {key: value for key, value in found.items() if value is not None}
    if rope.pop("partial_rotary_factor", 1.0) != 1.0:
        raise ConfigError(f"rope_scaling.partial_rotary_factor={found['partial_rotary_factor']!r} must be 1.0 here")
    if "rope_theta" in rope:
        values["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type", rope.get("type", "default"))
    if kind != "default":
        values["rope_scaling"] = {**rope, "type": kind}
        if kind == "yarn" and "max_position_embeddings" in values:
            outer = values.pop("original_max_position_embeddings", None)
            length = outer or rope.get("original_max_position_embeddings", values["max_position_embeddings"])
            values["rope_scaling"]["original_max_position_embeddings"] = length
    elif rope.keys() - {"type"}:
        key = min(rope.keys() - {"type"})
        raise ConfigError(
            f"rope_scaling.{key}={rope[key]!r} has no meaning without a rope_type; say 'yarn', or drop it"
        )


def read_layer_types(values: dict[str, Any]) -> None:
    """Read GLM's list of dense and sparse layers as `first_k_dense_replace`, in place.

    Raises:
        ConfigError: dense layers behind sparse ones, or another number than `first_k_dense_replace`.
    """
    kinds = values.pop("mlp_layer_types", None)
    if kinds is None:
        return
    dense = kinds.count("dense") if isinstance(kinds, list) else -1
    if dense < 0 or kinds != ["dense"] * dense + ["sparse"] * (len(kinds) - dense):
        raise ConfigError("mlp_layer_types must be 'dense' for the first layers and 'sparse' for all others")
    if len(kinds) != values.get("num_hidden_layers", len(kinds)) or values.get("first_k_dense_replace", dense) != dense:
        raise ConfigError(f"mlp_layer_types has {dense} dense of {len(kinds)} layers, other keys say otherwise")
    values["first_k_dense_replace"] = dense


def refuse_key(key: str, value: Any, known: list[str]) -> None:
    """Refuse a key that is not ours, with the reason where it belongs to another architecture."""
    why = next((reason for part, reason in FOREIGN_KEYS.items() if part in key), None)
    if ATTENTION_GATE.search(key):
        if not value:
            return
        why = "its attention has an output gate, which V3 has not"
    if why is not None:
        raise ConfigError(f"{key}={value!r} is of another architecture: {why}")
    raise ConfigError(f"unknown key {key!r}{suggest(key, known)}")


def fill_in(values: dict[str, Any], architecture: Architecture, known: list[str]) -> dict[str, Any]:
    """Give every key that was left out its architecture's default.

    Raises:
        ConfigError: there is none, or a null where a value is needed.
    """
    defaults = architecture.defaults
    if values.get("n_routed_experts", 0) is None:
        defaults = {**defaults, **DENSE}
        values = {key: value for key, value in values.items() if value is not None or key not in DENSE}
    filled = {key: value for key, value in {**defaults, **values}.items() if key in known}
    if filled.get("topk_method") == "greedy":  # chooses among all: groups have no meaning
        for key in ("n_group", "topk_group"):
            filled[key] = 1 if filled.get(key) is None else filled[key]
    missing = [key for key in known if key not in filled]
    if missing:
        kind = filled["model_type"]
        raise ConfigError(f"missing keys: {', '.join(missing)}; {kind} has no default for them that this package knows")
    empty = next((key for key in known if filled[key] is None and key not in NULLABLE), None)
    if empty:
        raise ConfigError(f"{empty}=null has no meaning; give a value, or leave the key out")
    return filled


def check_rope_scaling(scaling: dict[str, Any] | None) -> None:
    """Refuse what is not YaRN, by key, value and mend."""
    if scaling is None:
        return
    kind = scaling.get("type", scaling.get("rope_type"))
    if kind != "yarn":
        raise ConfigError(f"rope_scaling.type={kind!r} must be 'yarn', as released, or rope_scaling null")
    for key in scaling:
        if key not in YARN_KEYS:
            raise ConfigError(f"rope_scaling: unknown key {key!r}{suggest(key, YARN_KEYS)}")
    for key in ("factor", "original_max_position_embeddings"):
        if not is_number(scaling.get(key)) or not 1 <= scaling[key] <= FP32_LARGEST:
            raise ConfigError(f"rope_scaling.{key}={spell(scaling.get(key))} must be a number of at least 1 (FP32)")
    for key in YARN_NUMBERS:
        if scaling.get(key) is not None and not (is_number(scaling[key]) and 0 <= scaling[key] <= FP32_LARGEST):
            raise ConfigError(f"rope_scaling.{key}={spell(scaling[key])} must be a number of at least 0 (FP32)")
    if not isinstance(scaling.get("truncate", True), bool):
        raise ConfigError(f"rope_scaling.truncate={scaling['truncate']!r} must be true or false")
    fast, slow = scaling.get("beta_fast") or 32, scaling.get("beta_slow") or 1
    if not fast >= slow > 0:
        problem = f"rope_scaling.beta_fast={fast} must be at least beta_slow={slow}"
        raise ConfigError(f"{problem} > 0 (rotations over the trained length)")


def check_quantization(found: dict[str, Any] | None) -> None:
    """Refuse every way of storing numbers but the released one: E4M3 with a scale for 128 x 128."""
    if found is None:
        return
    for key, value in {"quant_method": None, "weight_block_size": None, **found}.items():
        if key not in QUANTIZATION_KEYS:
            raise ConfigError(f"quantization_config: unknown key {key!r}{suggest(key, list(QUANTIZATION_KEYS))}")
        allowed = QUANTIZATION_KEYS[key]
        if allowed is not None and value not in allowed:
            raise ConfigError(
                f"quantization_config.{key}={value!r} must be {allowed[0]!r}: other stored forms are not read; "
                "take the BF16 or the FP8 files"
            )
