"""The configuration of a model: the keys of the released config.json, checked.

    ModelConfig.preset("nano")              a named shape (the TOML files in presets/)
    ModelConfig.from_json("config.json")    a released file, also as Transformers 5 writes it
    config.replace(num_hidden_layers=4)     a changed copy, checked again

Source: deepseek-ai/DeepSeek-V3 config.json; arXiv:2412.19437, section 4.2.
"""

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepseek_v3.config_keys import check_quantization, check_rope_scaling, read_keys
from deepseek_v3.config_values import (
    FP32_LARGEST,
    FP32_SMALLEST,
    ConfigError,
    check_not_huge,
    clip_number,
    read_json,
    suggest,
)
from deepseek_v3.family import ARCHITECTURES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["ConfigError", "ModelConfig", "preset_names"]
PRESETS = Path(__file__).with_name("presets")


@dataclass(frozen=True)
class ModelConfig:
    """A DeepSeek-V3 (or V2) model, by the keys of its config.json; sizes are in elements."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    q_lora_rank: int | None = None
    moe_intermediate_size: int = 0
    n_routed_experts: int | None = None
    n_shared_experts: int | None = 1
    num_experts_per_tok: int = 1
    first_k_dense_replace: int = 0
    n_group: int = 1
    topk_group: int = 1
    scoring_func: str = "sigmoid"
    topk_method: str = "noaux_tc"
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.0
    num_nextn_predict_layers: int = 0
    max_position_embeddings: int = 4096
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 1
    pad_token_id: int | None = 2
    model_type: str = "deepseek_v3"
    torch_dtype: str = "float32"
    quantization_config: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        check_config(self)

    @property
    def qk_head_dim(self) -> int:
        """Joint query-key width per head: content and rotary."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def cache_width(self) -> int:
        """Values that the cache holds per token and layer."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Every token that ends a text; a config names none, one or several."""
        found = self.eos_token_id
        return () if found is None else (found,) if isinstance(found, int) else tuple(found)

    def is_moe_layer(self, index: int) -> bool:
        """Whether layer `index` has routed experts; the layers past `num_hidden_layers` are the MTP layers."""
        return self.n_routed_experts is not None and index >= self.first_k_dense_replace

    @classmethod
    def preset(cls, name: str) -> "ModelConfig":
        """Load a named shape from presets/.

        Raises:
            ConfigError: there is no such preset.
        """
        path = PRESETS / f"{name}.toml"
        if path.parent != PRESETS or not path.exists():
            known = preset_names()
            raise ConfigError(f"unknown preset {name!r}{suggest(name, known)}; there are: {', '.join(known)}")
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        return cls.from_dict({key: None if value == "null" else value for key, value in values.items()})

    @classmethod
    def from_json(cls, path: str | Path) -> "ModelConfig":
        """Read a released config.json.

        Raises:
            ConfigError: not JSON, not an object, or a model that this package does not build.
        """
        path = Path(path)
        try:
            values = read_json(path.read_text(encoding="utf-8"))
        except OSError as error:
            problem = (error.strerror or str(error)).lower()
            raise ConfigError(
                f"{path} cannot be read: {problem}; give the config.json of a DeepSeek-V3 model"
            ) from None
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
        except (ValueError, RecursionError) as error:  # a number of thousands of digits too
            raise ConfigError(f"{path} is not JSON ({error}); give the config.json of a DeepSeek-V3 model") from None
        if not isinstance(values, dict):
            raise ConfigError(f"{path} holds a JSON {type(values).__name__}, not an object")
        try:
            return cls.from_dict(values)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ModelConfig":
        """Build from the keys of a config.json; one that is left out has the default of its class in `transformers`.

        Raises:
            ConfigError: another architecture, or a key that is unknown or has no default.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        return cls(**read_keys(values, known))

    def replace(self, **changes: Any) -> "ModelConfig":
        """Return a changed copy, checked again.

        Raises:
            ConfigError: an unknown key, or a value that cannot work.
        """
        fields = [f.name for f in dataclasses.fields(self)]
        for key in changes:
            if key not in fields:
                raise ConfigError(f"unknown key {key!r}{suggest(key, fields)}")
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return the released form: what `transformers` and the serving engines read."""
        values = {
            "architectures": [ARCHITECTURES[self.model_type].name],
            "attention_bias": False,
            "hidden_act": "silu",
            "moe_layer_freq": 1,
            "num_key_value_heads": self.num_attention_heads,
            **dataclasses.asdict(self),
        }
        if self.quantization_config is None:
            del values["quantization_config"]
        if self.model_type == "glm4_moe_lite":  # what its class reads in place of first_k_dense_replace
            kinds = [self.is_moe_layer(i) for i in range(self.num_hidden_layers)]
            values["mlp_layer_types"] = ["sparse" if sparse else "dense" for sparse in kinds]
        return dict(sorted(values.items()))

    def to_json(self, path: str | Path) -> None:
        """Write the released config.json."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")


def preset_names() -> list[str]:
    """List the presets, smallest first."""
    order = ["reason", "demo", "nano", "small", "v2-lite-16b", "v3-671b"]
    found = [p.stem for p in PRESETS.glob("*.toml")]
    return sorted(found, key=lambda n: (order.index(n) if n in order else len(order), n))


def check_config(c: ModelConfig) -> None:
    """Refuse what cannot work, naming key, value and mend."""
    _check_types(c)
    sizes = (
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads kv_lora_rank qk_nope_head_dim"
    )
    for key in [*sizes.split(), "qk_rope_head_dim", "v_head_dim", "max_position_embeddings"]:
        if getattr(c, key) < 1:
            raise ConfigError(f"{key}={getattr(c, key)} must be at least 1")
    check_not_huge(c)
    if c.qk_rope_head_dim % 2:
        raise ConfigError(f"qk_rope_head_dim={c.qk_rope_head_dim} must be even: dimensions turn in pairs")
    if c.q_lora_rank is not None and c.q_lora_rank < 1:
        raise ConfigError(f"q_lora_rank={c.q_lora_rank} must be at least 1, or null for a plain q_proj")
    if c.first_k_dense_replace < 0:
        raise ConfigError(f"first_k_dense_replace={c.first_k_dense_replace} must be at least 0")
    if c.num_nextn_predict_layers < 0:
        raise ConfigError(f"num_nextn_predict_layers={c.num_nextn_predict_layers} must be at least 0")
    for key in ("rms_norm_eps", "rope_theta", "initializer_range", "routed_scaling_factor"):
        if not FP32_SMALLEST <= getattr(c, key) <= FP32_LARGEST:
            raise ConfigError(f"{key}={clip_number(getattr(c, key))} must be a positive number that FP32 can hold")
    if c.torch_dtype not in ("float32", "bfloat16", "float16", "float64"):
        raise ConfigError(f"torch_dtype={c.torch_dtype!r} must be float32, bfloat16, float16 or float64")
    if c.model_type not in ARCHITECTURES:
        raise ConfigError(f"model_type={c.model_type!r} must be one of {', '.join(ARCHITECTURES)}")
    tokens = [("bos_token_id", c.bos_token_id), ("pad_token_id", c.pad_token_id)]
    for key, value in [*tokens, *(("eos_token_id", token) for token in c.eos_token_ids)]:
        if value is not None and not 0 <= value < c.vocab_size:
            raise ConfigError(
                f"{key}={value} is not a token of vocab_size={c.vocab_size}; set it to null or enlarge the vocabulary"
            )
    check_rope_scaling(c.rope_scaling)
    if c.rope_scaling is not None and c.rope_theta <= 1:
        raise ConfigError(f"rope_theta={c.rope_theta} must be above 1 for YaRN: it divides by its logarithm")
    check_quantization(c.quantization_config)
    if c.n_routed_experts is not None:
        _check_experts(c)


KINDS = {
    "int": (int, "a whole number"),
    "float": ((int, float), "a number"),
    "str": (str, "a word"),
    "bool": (bool, "true or false"),
    "dict": (dict, "an object"),
}


def _check_types(c: ModelConfig) -> None:
    for f in dataclasses.fields(c):
        value, kind = getattr(c, f.name), str(f.type).replace("<class '", "")
        if value is None and "None" in kind:
            continue
        if f.name == "eos_token_id" and isinstance(value, list):
            if not value or not all(type(token) is int for token in value):
                raise ConfigError(f"eos_token_id={value!r} must be a token or a list of tokens")
            continue
        expected, words = next(t for name, t in KINDS.items() if kind.startswith(name))
        if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
            raise ConfigError(f"{f.name}={value!r} must be {words}")


def _check_experts(c: ModelConfig) -> None:
    assert c.n_routed_experts is not None
    for key in ("n_routed_experts", "moe_intermediate_size", "num_experts_per_tok", "n_group", "topk_group"):
        if getattr(c, key) is None or getattr(c, key) < 1:
            raise ConfigError(f"{key}={getattr(c, key)} must be at least 1 in a model with routed experts")
    if c.n_routed_experts % c.n_group:
        raise ConfigError(
            f"n_group={c.n_group} does not divide n_routed_experts={c.n_routed_experts}; groups must be of equal size"
        )
    per_group = c.n_routed_experts // c.n_group
    if c.topk_group > c.n_group:
        raise ConfigError(f"topk_group={c.topk_group} must be at most n_group={c.n_group}")
    if c.num_experts_per_tok > c.topk_group * per_group:
        raise ConfigError(
            f"num_experts_per_tok={c.num_experts_per_tok} exceeds the {c.topk_group * per_group} experts in "
            f"topk_group={c.topk_group} groups of {per_group}; keep more groups or activate fewer experts"
        )
    _check_routing(c)
    if c.topk_method == "noaux_tc" and c.n_group > 1 and per_group < 2:
        raise ConfigError(
            f"n_group={c.n_group} leaves {per_group} expert a group; a group's score is the sum of its best two"
        )
    if c.n_shared_experts is not None and c.n_shared_experts < 0:
        raise ConfigError(f"n_shared_experts={c.n_shared_experts} must be at least 0")


def _check_routing(c: ModelConfig) -> None:
    """Refuse rules that nobody has, and those that the class of this `model_type` in `transformers` does not read."""
    methods = {"sigmoid": ("noaux_tc",), "softmax": ("greedy", "group_limited_greedy")}
    if c.scoring_func not in methods:
        raise ConfigError(f"scoring_func={c.scoring_func!r} must be 'sigmoid' (V3) or 'softmax' (V2)")
    ignored = f"in model_type={c.model_type!r}, whose class in transformers takes no notice of the key"
    rule = ARCHITECTURES[c.model_type].defaults["scoring_func"]
    if c.scoring_func != rule:
        other = "deepseek_v2" if rule == "sigmoid" else "deepseek_v3"
        mend = f"take {rule!r}, or model_type={other!r} if that is what was trained"
        raise ConfigError(f"scoring_func={c.scoring_func!r} {ignored}; {mend}")
    if c.norm_topk_prob and c.model_type == "deepseek_v2":
        raise ConfigError(f"norm_topk_prob=true {ignored}; set it to false if the weights are as released")
    if c.topk_method not in methods[c.scoring_func]:
        raise ConfigError(
            f"topk_method={c.topk_method!r} does not go with {c.scoring_func!r}: choose {methods[c.scoring_func]}"
        )
