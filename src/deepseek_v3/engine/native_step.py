"""The decoding step as one call of a C++ kernel, for a model on a CPU in FP32, BF16 or FP8 (native/decode.cpp).

    native = NativeStep(model)
    if native.serves(cache):
        hidden_ND, logits_MV = native.run(rows, cache, depth, below_ND, wanted)

The kernel reads every weight where the model keeps it; this file hands it the addresses, in the structures of
native/decode_layout.py. Activations are FP32 in there, whatever the weights are.

Letters: B rows, N new tokens, M of which logits are wanted, D width, V vocabulary, T positions, R rotary width.
"""

import ctypes
from array import array
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deepseek_v3.config import ModelConfig
from deepseek_v3.fp8.quantize import CODE, quantize_weight
from deepseek_v3.fp8.weight import HoldsFP8
from deepseek_v3.model.block import Block
from deepseek_v3.model.cache import LatentCache
from deepseek_v3.model.mlp import SwiGLU
from deepseek_v3.model.model_parts import describe_parts, promised_parts
from deepseek_v3.model.moe import MixtureOfExperts
from deepseek_v3.model.mtp import MultiTokenPredictor
from deepseek_v3.model.norm import LATENT_NORM_EPS
from deepseek_v3.model.rope import Rotation, rotation_at, softmax_scale
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.native.build import have_kernels, run_kernel
from deepseek_v3.native.decode_layout import CallAddresses, LayerAddresses, ModelSizes, StackAddresses, WeightAddress
from deepseek_v3.native.threads import threads_now
from deepseek_v3.ops.checks import check_scales

DTYPES = (torch.float32, torch.bfloat16)


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


class ModelAddresses:
    """Where a model's weights lie at one moment; never changed, so that a thread may read while another looks anew.

    Attributes:
        ready: whether the kernel can read this model here.
    """

    def __init__(self, model: DeepseekV3, fp8_drafts: bool) -> None:
        """Note where all lies; classes and shapes are what the config says, which is all that the kernel knows.

        Args:
            fp8_drafts: the modules read an FP8 copy of the head.
        Raises:
            ValueError: scales that do not cover their codes.
        """
        self.dtype: torch.dtype = model.embed_tokens.weight.dtype
        self.kept: list[Tensor] = []  # what is read stays allocated, even if the model turns to other tensors
        self.ready = self.dtype in DTYPES
        self.sizes = ModelSizes(
            embedding=self._address(model.embed_tokens), bfloat16=self.dtype == torch.bfloat16,
            **list_sizes(model.config),
        )  # fmt: skip
        self.stacks = [self._stack(model.layers, self._weight(model.lm_head), norm=model.norm)]
        modules: list[MultiTokenPredictor] = list(model.mtp)  # type: ignore[assignment]
        drafting = (self._quantized if fp8_drafts and modules else self._weight)(model.lm_head)
        for module in modules:
            joined = {"embedding_norm": module.enorm, "hidden_norm": module.hnorm, "join": module.eh_proj}
            self.stacks.append(self._stack([module.block], drafting, norm=module.shared_head_norm, **joined))
        self.ready = self.ready and have_kernels()

    def _keep(self, tensor: Tensor, *dtypes: torch.dtype) -> int:
        """Where a tensor lies, kept from being freed; the kernel reads it only there, so, and in these formats."""
        self.kept.append(tensor)
        self.ready &= tensor.device.type == "cpu" and tensor.is_contiguous() and tensor.dtype in dtypes
        return tensor.data_ptr()

    def _address(self, weight: Any) -> int | None:
        """Where a weight, or that of a module, lies, if there is one."""
        tensor: Any = weight.weight if isinstance(weight, nn.Module) else weight
        return None if tensor is None else self._keep(tensor.detach(), self.dtype)

    def _stack(self, blocks: Any, head: WeightAddress, **weights: nn.Module) -> tuple[StackAddresses, ctypes.Array]:
        """The layers of the main model or of a module, and the array that holds them."""
        layers = (LayerAddresses * len(blocks))(*map(self._layer, blocks))
        addresses = {name: self._address(weight) for name, weight in weights.items()}
        return StackAddresses(layers=ctypes.addressof(layers), count=len(blocks), head=head, **addresses), layers

    def _weight(self, module: HoldsFP8, name: str = "weight", parts: int = 1) -> WeightAddress:
        """Where a matrix lies, and its block scales if it is held in FP8."""
        weight, scale = getattr(module, name).detach(), module.scales(name)
        if scale is None:
            return WeightAddress(self._address(weight))
        check_scales(weight, scale, parts)
        return WeightAddress(self._keep(weight, CODE), self._keep(scale, torch.float32))

    def _quantized(self, module: HoldsFP8) -> WeightAddress:
        """A copy of a matrix in FP8, or where it lies if it is held so already."""
        if module.scales("weight") is not None:
            return self._weight(module)
        code_OI, scale = quantize_weight(module.weight.detach())  # type: ignore[arg-type,union-attr]
        return WeightAddress(self._keep(code_OI, CODE), self._keep(scale, torch.float32))

    def _layer(self, block: Block) -> LayerAddresses:
        a, mlp = block.self_attn, block.mlp
        low_rank = a.low_rank_query
        addresses: dict[str, Any] = {
            "input_norm": self._address(block.input_layernorm), "latent_norm": self._address(a.kv_a_layernorm),
            "post_norm": self._address(block.post_attention_layernorm),
            "query_norm": self._address(a.q_a_layernorm if low_rank else None),
        }  # fmt: skip
        projections = {
            "query_up": a.q_b_proj if low_rank else a.q_proj, "latent_down": a.kv_a_proj_with_mqa,
            "key_value_up": a.kv_b_proj, "out": a.o_proj,
        }  # fmt: skip
        if low_rank:
            projections["query_down"] = a.q_a_proj
        dense = mlp
        if isinstance(mlp, MixtureOfExperts):
            dense = mlp.shared_experts
            router = mlp.gate.weight.detach()  # in the model's dtype or in FP32, each as it likes
            addresses |= {"router": self._keep(router, self.dtype, torch.float32)}
            addresses["wide_router"] = router.dtype == torch.float32
            addresses["expert_gate_up"] = self._weight(mlp.experts, "gate_up_proj", parts=2)
            addresses["expert_down"] = self._weight(mlp.experts, "down_proj")
            if mlp.gate.sigmoid:  # FP32 whatever the model is
                addresses["bias"] = self._keep(mlp.gate.e_score_correction_bias, torch.float32)
        if isinstance(dense, SwiGLU):
            projections |= {"gate": dense.gate_proj, "up": dense.up_proj, "down": dense.down_proj}
            addresses["dense_width"] = dense.gate_proj.weight.shape[0]
        return LayerAddresses(**addresses, **{name: self._weight(part) for name, part in projections.items()})


class NativeStep:
    """The kernel's view of a model, and the call. Several threads may call at once, each with rows of its own."""

    def __init__(self, model: DeepseekV3, fp8_drafts: bool = False) -> None:
        self.model, self.fp8_drafts = model, fp8_drafts
        self.rotation_TR = Rotation(*torch.empty(2, 0, 0, device="cpu"))
        self.refresh()

    def refresh(self) -> None:
        """Take over where the weights lie now."""
        fits = describe_parts(self.model) == promised_parts(self.model.config)
        self.addresses = ModelAddresses(self.model, self.fp8_drafts) if fits else None

    @property
    def ready(self) -> bool:
        """Whether the kernel can read this model here; `refresh` looks again."""
        return self.addresses is not None and self.addresses.ready

    def serves(self, cache: LatentCache) -> bool:
        """Whether the kernel can read this model, and this cache."""
        latent = cache.store.latent_LPTW
        return self.ready and latent.device.type == "cpu" and latent.dtype in DTYPES and latent.is_contiguous()

    def run(
        self,
        rows: tuple[list[int], list[int]],
        cache: LatentCache,
        depth: int,
        below_ND: Tensor | None,
        wanted: Sequence[int],
        choice_LNA: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Read tokens that `DecodeStep.read` has checked: see there.

        Raises:
            IndexError: a table names a block that the store does not have.
        """
        addresses, (tokens, counts) = self.addresses, rows
        assert addresses is not None, "ask serves() first"
        store, first = cache.store, cache.first_layer
        self._check_cache(cache, addresses.stacks[depth + 1][0].count, below_ND, len(tokens), depth)
        rotation_TR = self._rotation(max(map(int.__add__, cache.lengths, counts)))
        below_ND = None if below_ND is None else below_ND.to(addresses.dtype).contiguous()
        hidden_ND = torch.empty(len(tokens), addresses.sizes.D, dtype=addresses.dtype)
        logits_MV = torch.empty(len(wanted), addresses.sizes.V)
        tables = [table if isinstance(table, array) else array("q", table) for table in cache.tables]
        integers, N = [*tokens, *cache.lengths, *counts, *wanted], len(tokens)
        integers += (table.buffer_info()[0] for table in tables)
        B, M, held = len(counts), len(wanted), array("q", integers)  # in one array: at one row Python is what costs
        at, latent = held.buffer_info()[0], store.latent_LPTW
        call = CallAddresses(
            tokens=at, lengths=at + 8 * N, counts=at + 8 * (N + B), wanted=at + 8 * (N + 2 * B),
            tables=at + 8 * (N + 2 * B + M), below=None if below_ND is None else below_ND.data_ptr(),
            cache=latent.data_ptr() + first * latent.stride(0) * latent.element_size(), hidden=hidden_ND.data_ptr(),
            logits=logits_MV.data_ptr(), cos=rotation_TR.cos.data_ptr(), sin=rotation_TR.sin.data_ptr(),
            choices=None if choice_LNA is None else choice_LNA.data_ptr(), N=N, B=B, M=M,
            blocks=store.n_blocks, block_size=store.block_size,
            bfloat16_cache=latent.dtype == torch.bfloat16, threads=threads_now(torch.get_num_threads()),
        )  # fmt: skip
        stack, _ = addresses.stacks[depth + 1]
        run_kernel("decode_step", *(ctypes.addressof(block) for block in (addresses.sizes, stack, call)))
        if call.foreign:
            raise IndexError(f"{call.foreign} blocks of the cache's tables are not below n_blocks={store.n_blocks}")
        cache.advance(counts)
        return hidden_ND, logits_MV

    def _check_cache(self, cache: LatentCache, layers: int, below_ND: Tensor | None, tokens: int, depth: int) -> None:
        """Refuse a cache of another model, and hidden states that are not one a token."""
        held, _, _, width = cache.store.latent_LPTW.shape
        if width != self.model.config.cache_width or not 0 <= cache.first_layer <= held - layers:
            wanted = f"{layers} layers of {self.model.config.cache_width} values"
            raise ValueError(f"a cache of {held} layers of {width} values, from {cache.first_layer} on, for {wanted}")
        if depth >= 0 and (below_ND is None or below_ND.shape != (tokens, self.model.config.hidden_size)):
            shape = None if below_ND is None else tuple(below_ND.shape)
            raise ValueError(f"hidden states of {shape} for {tokens} tokens of {self.model.config.hidden_size}")

    def _rotation(self, positions: int) -> Rotation:
        """Cosines and sines of every position, FP32, kept from step to step."""
        rotation_TR = self.rotation_TR
        if rotation_TR.cos.shape[0] < positions:
            room = torch.arange(max(256, 1 << (positions - 1).bit_length()))
            cos_TR, sin_TR = rotation_at(room, self.model.frequency_R, self.model.rope_magnitude)
            self.rotation_TR = rotation_TR = Rotation(cos_TR.float().contiguous(), sin_TR.float().contiguous())
        return rotation_TR
