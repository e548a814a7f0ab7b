"""Every size and every tensor of the model: the released config keys, names and shapes, and what a layer is made of.

    python architecture.py      the tensors of a tiny model; the 671 billion parameters of V3, counted the same way

Notebook: model.ipynb. Source: arXiv:2412.19437, sections 2 and 4.2; the released config.json and tensor index.
Letters: D model width, E routed experts, F hidden width, V vocabulary.

The model is a flat dictionary, released tensor name -> array, and so are its gradients and the optimiser's moments.
Only the experts differ from the released files: in memory those of a layer are one stacked array, whose name leaves
the expert's number out (`mlp.experts.up_proj.weight`, [E, F, D]). Layer `num_hidden_layers + k - 1` is MTP depth k.
"""

from dataclasses import asdict, dataclass, fields
from functools import cached_property
from math import prod
from typing import Any, NamedTuple

import chapters  # noqa: F401
import numpy as np
from decoupled_rope import MLAConfig, MLAWeights, weight_shapes
from deepseek_moe import DeepseekMoE, GateWeights, RouterConfig, SharedWeights
from fine_grained_experts import SwiGLUExperts
from mtp_module import EPS, MtpWeights
from swiglu import SwigluWeights

Weights = dict[str, np.ndarray]
NETWORK = ("gate_proj", "up_proj", "down_proj")
BIAS = "e_score_correction_bias"
# keys that a config.json may carry and what they must say for this to be the model that is built here
FIXED = {
    "model_type": "deepseek_v3",
    "hidden_act": "silu",
    "attention_bias": False,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "norm_topk_prob": True,
    "moe_layer_freq": 1,
    "tie_word_embeddings": False,
    "rms_norm_eps": EPS,
}


@dataclass(frozen=True)
class Config:
    """The keys of the released config.json that decide what is computed; the defaults make a tiny model."""

    vocab_size: int = 96
    hidden_size: int = 64
    intermediate_size: int = 128
    moe_intermediate_size: int = 32
    num_hidden_layers: int = 3
    first_k_dense_replace: int = 1
    num_attention_heads: int = 4
    q_lora_rank: int | None = 32
    kv_lora_rank: int = 24
    qk_nope_head_dim: int = 16
    qk_rope_head_dim: int = 8
    v_head_dim: int = 16
    n_routed_experts: int = 8
    n_shared_experts: int = 1
    num_experts_per_tok: int = 2
    n_group: int = 4
    topk_group: int = 2
    routed_scaling_factor: float = 2.5
    num_nextn_predict_layers: int = 1
    rope_theta: float = 10000.0
    rope_scaling: dict | None = None
    max_position_embeddings: int = 1024
    initializer_range: float = 0.02

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Config":
        """Read a released config.json.

        Raises:
            ValueError: a key is missing, or says that this is another model (V2's router, tied embeddings, ...).
        """
        wrong = {key: values[key] for key, wanted in FIXED.items() if values.get(key, wanted) != wanted}
        wrong |= {k: values[k] for k in ("n_routed_experts", "n_shared_experts") if k in values and not values[k]}
        if wrong:
            raise ValueError(f"{wrong} is another model than the DeepSeek-V3 of this chapter; use the package for it")
        names = [field.name for field in fields(cls)]
        missing = [name for name in names if name not in values]
        if missing:
            raise ValueError(
                f"config lacks {', '.join(missing)}; give a config.json as released or as the package saves it"
            )
        return cls(**{name: values[name] for name in names})

    def to_dict(self) -> dict[str, Any]:
        """Return what goes into config.json: these keys, and the fixed ones that other programs ask for."""
        other = {"architectures": ["DeepseekV3ForCausalLM"], "num_key_value_heads": self.num_attention_heads}
        return dict(sorted({**other, **FIXED, **asdict(self)}.items()))

    @cached_property
    def attention(self) -> MLAConfig:
        """The part that chapter 02 reads."""
        names = [field.name for field in fields(MLAConfig) if field.name != "rms_norm_eps"]
        return MLAConfig(**{name: getattr(self, name) for name in names})

    @cached_property
    def router(self) -> RouterConfig:
        """The part that chapter 03 reads."""
        return RouterConfig(**{field.name: getattr(self, field.name) for field in fields(RouterConfig)})

    @property
    def n_layers(self) -> int:
        """Layers of the main model and of the MTP modules behind them."""
        return self.num_hidden_layers + self.num_nextn_predict_layers

    def is_moe(self, index: int) -> bool:
        """Whether a layer has experts; the first few are dense, the MTP layers never are (unless all layers are)."""
        return index >= self.first_k_dense_replace


class Model(NamedTuple):
    """A config and the arrays that go with it, by released name."""

    config: Config
    weights: Weights


class Layer(NamedTuple):
    """One decoder layer as the chapters want it: views into the flat dictionary, nothing is copied."""

    input_layernorm: np.ndarray
    self_attn: MLAWeights
    post_attention_layernorm: np.ndarray
    mlp: SwigluWeights | DeepseekMoE


def network_shapes(prefix: str, D: int, F: int, *stack: int) -> dict[str, tuple[int, ...]]:
    """Shapes of one gated MLP, or of a stack of experts."""
    return {f"{prefix}.{name}.weight": (*stack, *((D, F) if name == "down_proj" else (F, D))) for name in NETWORK}


def layer_shapes(config: Config, index: int) -> dict[str, tuple[int, ...]]:
    """Shapes [out, in] of the tensors of one layer, by the name behind `model.layers.{index}.`."""
    D, E, F = config.hidden_size, config.n_routed_experts, config.moe_intermediate_size
    shapes = {"input_layernorm.weight": (D,), "post_attention_layernorm.weight": (D,)}
    shapes |= {f"self_attn.{name}.weight": shape for name, shape in weight_shapes(config.attention).items()}
    if config.is_moe(index):
        shapes |= {"mlp.gate.weight": (E, D), f"mlp.gate.{BIAS}": (E,)}
        shapes |= network_shapes("mlp.experts", D, F, E)
        shapes |= network_shapes("mlp.shared_experts", D, config.n_shared_experts * F)
    else:
        shapes |= network_shapes("mlp", D, config.intermediate_size)
    if index >= config.num_hidden_layers:
        shapes |= {f"{name}.weight": (D,) for name in ("enorm", "hnorm", "shared_head.norm")}
        shapes["eh_proj.weight"] = (D, 2 * D)
    return shapes


def tensor_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Shapes of every tensor of the model, embedding first, head last."""
    V, D = config.vocab_size, config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (V, D)}
    for i in range(config.n_layers):
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer_shapes(config, i).items()}
    return {**shapes, "model.norm.weight": (D,), "lm_head.weight": (V, D)}


def init_model(rng: np.random.Generator, config: Config, dtype: type = np.float64) -> Model:
    """Draw every matrix from N(0, initializer_range^2); norms start at 1, the balancing biases at 0."""

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if len(shape) == 1:
            return np.zeros(shape, dtype) if name.endswith(BIAS) else np.ones(shape, dtype)
        return (rng.standard_normal(shape) * config.initializer_range).astype(dtype)

    return Model(config, {name: draw(name, shape) for name, shape in tensor_shapes(config).items()})


def trained_weights(weights: Weights) -> Weights:
    """The arrays that an optimiser may change: all but the balancing biases."""
    return {name: array for name, array in weights.items() if not name.endswith(BIAS)}


def view_layer(model: Model, index: int) -> Layer:
    """Gather the arrays of one layer into the dataclasses of chapters 01, 02 and 03."""

    def at(name: str) -> np.ndarray:
        return model.weights[f"model.layers.{index}.{name}"]

    attention = MLAWeights(**{n: at(f"self_attn.{n}.weight") for n in weight_shapes(model.config.attention)})
    if model.config.is_moe(index):
        experts = SwiGLUExperts(*(at(f"mlp.experts.{n}.weight") for n in NETWORK))
        shared = SharedWeights(*(at(f"mlp.shared_experts.{n}.weight") for n in NETWORK))
        mlp = DeepseekMoE(GateWeights(at("mlp.gate.weight"), at(f"mlp.gate.{BIAS}")), experts, shared)
    else:
        mlp = SwigluWeights(*(at(f"mlp.{n}.weight") for n in NETWORK))
    return Layer(at("input_layernorm.weight"), attention, at("post_attention_layernorm.weight"), mlp)


def view_mtp(model: Model, depth: int) -> MtpWeights:
    """Gather what MTP depth 1, 2, ... owns beside its layer, as chapter 04 wants it."""
    prefix = f"model.layers.{model.config.num_hidden_layers + depth - 1}"
    names = ("enorm", "hnorm", "eh_proj", "shared_head.norm")
    return MtpWeights(*(model.weights[f"{prefix}.{name}.weight"] for name in names))


V3 = Config(
    vocab_size=129280,
    hidden_size=7168,
    intermediate_size=18432,
    moe_intermediate_size=2048,
    num_hidden_layers=61,
    first_k_dense_replace=3,
    num_attention_heads=128,
    q_lora_rank=1536,
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
    n_routed_experts=256,
    num_experts_per_tok=8,
    n_group=8,
    topk_group=4,
    max_position_embeddings=163840,
)


def count_parameters(config: Config) -> tuple[int, int]:
    """Count the elements of the main model and of its MTP modules, the biases with them."""
    mtp = tuple(f"model.layers.{i}." for i in range(config.num_hidden_layers, config.n_layers))
    sizes = {name: prod(shape) for name, shape in tensor_shapes(config).items()}
    ahead = sum(size for name, size in sizes.items() if name.startswith(mtp)) if mtp else 0
    return sum(sizes.values()) - ahead, ahead


def main() -> None:
    """Print the tensors of the tiny model, then count V3 with the same table."""
    tiny = Config()
    for i, kind in enumerate(["dense", "MoE", "MoE", "MTP"]):
        if i != 2:
            print(f"layer {i} ({kind})")
            for name, shape in layer_shapes(tiny, i).items():
                print(f"   {name:<40} {list(shape)}")
    print(
        "and model.embed_tokens.weight, model.norm.weight, lm_head.weight:",
        f"{sum(count_parameters(tiny)):,} parameters",
    )
    main_model, ahead = count_parameters(V3)
    print(f"DeepSeek-V3 by the same table: {main_model:,} in the main model, {ahead:,} in its MTP module")
    assert (main_model, ahead) == (671_026_419_200, 11_610_068_224)


if __name__ == "__main__":
    main()
