"""The decoding step as one call of a C++ kernel, for a model on a CPU in FP32, BF16 or FP8 (native/decode.cpp).

    native = NativeStep(ModelParts.of(model))
    if native.serves(tokens_BS, cache):
        hidden_ND, logits_NV = native.run(-1, None, tokens_BS, cache)      depth -1: the main model; 0, 1, ...: a module

The kernel reads every weight where the model keeps it; this file hands it the addresses, in structures that have the
fields of those in decode.cpp in the same order. Activations are FP32 in there, whatever the weights are.

Letters: B rows, S new tokens of each, N = B * S, D width, V vocabulary, T positions, R rotary width.
"""

import ctypes
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from deepseek_v3.config import ModelConfig
from deepseek_v3.fp8.quantize import CODE
from deepseek_v3.fp8.weight import HoldsFP8
from deepseek_v3.model.block import Block
from deepseek_v3.model.cache import LatentCache
from deepseek_v3.model.mlp import SwiGLU
from deepseek_v3.model.moe import MixtureOfExperts
from deepseek_v3.model.mtp import MultiTokenPredictor
from deepseek_v3.model.norm import LATENT_NORM_EPS, RMSNorm
from deepseek_v3.model.rope import rotation_at, softmax_scale
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.native.build import have_kernels, run_kernel

SERVES_UP_TO = 64  # tokens of a step; 1.7 times as fast as matrix kernels at 64 (`nano`), and more are a prompt's
DTYPES = (torch.float32, torch.bfloat16)
POINTER, INTEGER, FRACTION = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double


class WeightAddress(ctypes.Structure):
    """`Weight` of rows.hpp: without a scale numbers, else FP8 codes."""

    _fields_ = (("data", POINTER), ("scale", POINTER))


def fields(**kinds: str) -> list[tuple[str, type]]:
    """Lay out a structure: names by the kind that they are of; keyword order is the order in memory."""
    kind_of = {"pointers": POINTER, "weights": WeightAddress, "integers": INTEGER, "fractions": FRACTION}
    return [(name, kind_of[kind.rstrip("_")]) for kind, names in kinds.items() for name in names.split()]


class LayerAddresses(ctypes.Structure):
    """`Layer` of decode.cpp."""

    _fields_ = fields(
        pointers="input_norm query_norm latent_norm post_norm router bias",
        weights="query_down query_up latent_down key_value_up out expert_gate_up expert_down gate up down",
        integers="dense_width",
    )


class ModelSizes(ctypes.Structure):
    """`Model` of decode.cpp."""

    _fields_ = fields(
        pointers="embedding head",
        integers="D V H K R U C Q E A F groups kept_groups dense_width bfloat16 sigmoid normalise",
        fractions="eps latent_eps softmax_scale routed_scale",
    )


class StackAddresses(ctypes.Structure):
    """`Stack` of decode.cpp."""

    _fields_ = fields(pointers="layers", integers="count", pointers_="norm embedding_norm hidden_norm join")


class CallAddresses(ctypes.Structure):
    """`Call` of decode.cpp."""

    _fields_ = fields(
        pointers="tokens lengths below cache hidden logits cos sin", integers="B S capacity bfloat16_cache threads"
    )


def list_sizes(c: ModelConfig) -> dict[str, int | float]:
    """Name a config's sizes by their letters, and the rest as `ModelSizes` does."""
    experts = c.n_routed_experts or 0
    return {
        "D": c.hidden_size, "V": c.vocab_size, "H": c.num_attention_heads, "K": c.qk_nope_head_dim,
        "R": c.qk_rope_head_dim, "U": c.v_head_dim, "C": c.kv_lora_rank, "Q": c.q_lora_rank or 0, "E": experts,
        "A": c.num_experts_per_tok if experts else 0, "F": c.moe_intermediate_size,
        "groups": c.n_group if c.topk_method != "greedy" else 1, "kept_groups": c.topk_group,
        "dense_width": max(c.intermediate_size, (c.n_shared_experts or 0) * c.moe_intermediate_size),
        "sigmoid": c.scoring_func == "sigmoid", "normalise": c.norm_topk_prob,
        "eps": c.rms_norm_eps, "latent_eps": LATENT_NORM_EPS,
        "softmax_scale": softmax_scale(c), "routed_scale": c.routed_scaling_factor,
    }  # fmt: skip


class ModelParts(NamedTuple):
    """What a step reads of a model: not the model itself, so that `prepare_step` may forget it."""

    config: ModelConfig
    embed_tokens: nn.Embedding
    layers: list[Block]
    norm: RMSNorm
    lm_head: nn.Linear
    modules: list[MultiTokenPredictor]
    frequency_R: Tensor
    rope_magnitude: float

    @classmethod
    def of(cls, model: DeepseekV3) -> "ModelParts":
        """Name the parts of a model."""
        layers: list[Block] = list(model.layers)  # type: ignore[assignment]
        modules: list[MultiTokenPredictor] = list(model.mtp)  # type: ignore[assignment]
        place = model.frequency_R, model.rope_magnitude
        return cls(model.config, model.embed_tokens, layers, model.norm, model.lm_head, modules, *place)


class NativeStep:
    """The addresses of a model's weights, and the call.

    Attributes:
        ready: whether the kernel can read this model here; `refresh` looks again.
    """

    def __init__(self, parts: ModelParts) -> None:
        self.parts = parts
        self.cos_TR = self.sin_TR = torch.empty(0, 0)
        self.refresh()

    def refresh(self) -> None:
        """Take over where the weights lie now."""
        parts = self.parts
        self.dtype = parts.lm_head.weight.dtype
        self.kept: list[Tensor] = []  # what is read stays allocated, even if the model turns to other tensors
        self.biases: list[Tensor] = []
        self.scales: list[Tensor] = []
        self.sizes = ModelSizes(
            embedding=self._address(parts.embed_tokens), head=self._address(parts.lm_head),
            bfloat16=self.dtype == torch.bfloat16, **list_sizes(parts.config),
        )  # fmt: skip
        self.stacks = [self._stack(parts.layers, norm=parts.norm)]
        for module in parts.modules:
            joined = {"embedding_norm": module.enorm, "hidden_norm": module.hnorm, "join": module.eh_proj}
            self.stacks.append(self._stack([module.block], norm=module.shared_head_norm, **joined))
        weights = [*self.kept, *self.scales]
        lies_well = all(w.device.type == "cpu" and w.is_contiguous() for w in weights)
        uniform = self.dtype in DTYPES and all(w.dtype == self.dtype for w in self.kept if w.dtype != CODE)
        self.ready = lies_well and uniform and have_kernels()

    def serves(self, tokens_BS: Tensor, cache: LatentCache) -> bool:
        """Whether the kernel can take this step."""
        latent = cache.latent_LBTW
        fits = tokens_BS.numel() <= SERVES_UP_TO and tokens_BS.device.type == latent.device.type == "cpu"
        return self.ready and fits and latent.dtype in DTYPES and latent.is_contiguous()

    def run(self, depth: int, below_ND: Tensor | None, tokens_BS: Tensor, cache: LatentCache) -> tuple[Tensor, Tensor]:
        """Read the next tokens of every row and append to the cache.

        Args:
            depth: -1 for the main model, else the module, which reads the hidden states `below_ND`.
        Returns:
            Normed hidden states [N, D] in the model's dtype, and logits in FP32: [N, V], of a module [B, V].
        Raises:
            IndexError: a token outside the vocabulary.
            ValueError: they do not fit into the cache.
        """
        (batch, count), tokens = tokens_BS.shape, tokens_BS.flatten().tolist()
        if min(tokens) < 0 or max(tokens) >= self.sizes.V:
            raise IndexError(f"a token of {tokens} is not below vocab_size={self.sizes.V}")
        if len(cache.lengths) != batch or max(cache.lengths) + count > cache.capacity:
            cache.positions(count)  # says what does not fit
            raise ValueError(f"{batch} rows of tokens for a cache of {len(cache.lengths)} rows")
        self._grow_rotation(cache.capacity)
        below_ND = None if below_ND is None else below_ND.to(self.dtype).contiguous()
        hidden_ND = torch.empty(batch * count, self.sizes.D, dtype=self.dtype)
        logits_NV = torch.empty(batch * count if depth < 0 else batch, self.sizes.V)
        call = CallAddresses(
            tokens=ctypes.addressof(tokens_N := (INTEGER * len(tokens))(*tokens)),
            lengths=ctypes.addressof(lengths_B := (INTEGER * batch)(*cache.lengths)),
            below=None if below_ND is None else below_ND.data_ptr(),
            cache=cache.latent_LBTW.data_ptr(), hidden=hidden_ND.data_ptr(), logits=logits_NV.data_ptr(),
            cos=self.cos_TR.data_ptr(), sin=self.sin_TR.data_ptr(), B=batch, S=count, capacity=cache.capacity,
            bfloat16_cache=cache.latent_LBTW.dtype == torch.bfloat16, threads=torch.get_num_threads(),
        )  # fmt: skip
        stack, _ = self.stacks[depth + 1]
        run_kernel("decode_step", *(ctypes.addressof(block) for block in (self.sizes, stack, call)))
        del tokens_N, lengths_B
        cache.advance(count)
        return hidden_ND, logits_NV

    def _grow_rotation(self, positions: int) -> None:
        """Cosines and sines of every position, FP32, kept from step to step."""
        if self.cos_TR.shape[0] < positions:
            rotation = rotation_at(torch.arange(positions), self.parts.frequency_R, self.parts.rope_magnitude)
            self.cos_TR, self.sin_TR = rotation.cos.float().contiguous(), rotation.sin.float().contiguous()

    def _address(self, weight: nn.Module | Tensor | None) -> int | None:
        """Where a weight lies; it is kept from being freed."""
        if weight is None:
            return None
        tensor = weight.weight if isinstance(weight, nn.Module) else weight
        self.kept.append(tensor.detach())  # type: ignore[union-attr,operator]
        return self.kept[-1].data_ptr()

    def _stack(self, blocks: list[Block], **weights: nn.Module) -> tuple[StackAddresses, ctypes.Array]:
        """The layers of the main model or of a module, and the array that holds them."""
        layers = (LayerAddresses * len(blocks))(*map(self._layer, blocks))
        addresses = {name: self._address(weight) for name, weight in weights.items()}
        return StackAddresses(layers=ctypes.addressof(layers), count=len(blocks), **addresses), layers

    def _weight(self, module: HoldsFP8, name: str = "weight") -> WeightAddress:
        """Where a matrix lies, and its block scales if it is held in FP8."""
        scale = module.scales(name)
        if scale is not None:
            self.scales.append(scale)
        return WeightAddress(self._address(getattr(module, name)), None if scale is None else scale.data_ptr())

    def _layer(self, block: Block) -> LayerAddresses:
        a, mlp = block.self_attn, block.mlp
        low_rank = a.low_rank_query
        norms: dict[str, nn.Module | Tensor | None] = {
            "input_norm": block.input_layernorm, "post_norm": block.post_attention_layernorm,
            "query_norm": a.q_a_layernorm if low_rank else None, "latent_norm": a.kv_a_layernorm,
        }  # fmt: skip
        addresses: dict[str, Any] = {name: self._address(norm) for name, norm in norms.items()}
        projections = {
            "query_up": a.q_b_proj if low_rank else a.q_proj, "latent_down": a.kv_a_proj_with_mqa,
            "key_value_up": a.kv_b_proj, "out": a.o_proj,
        }  # fmt: skip
        if low_rank:
            projections["query_down"] = a.q_a_proj
        dense = mlp
        if isinstance(mlp, MixtureOfExperts):
            dense = mlp.shared_experts
            addresses["router"] = self._address(mlp.gate.weight)
            addresses["expert_gate_up"] = self._weight(mlp.experts, "gate_up_proj")
            addresses["expert_down"] = self._weight(mlp.experts, "down_proj")
            if mlp.gate.sigmoid:  # FP32 whatever the model is
                self.biases.append(mlp.gate.e_score_correction_bias)
                addresses["bias"] = self.biases[-1].data_ptr()
        if isinstance(dense, SwiGLU):
            projections |= {"gate": dense.gate_proj, "up": dense.up_proj, "down": dense.down_proj}
            addresses["dense_width"] = dense.gate_proj.weight.shape[0]
        return LayerAddresses(**addresses, **{name: self._weight(part) for name, part in projections.items()})
