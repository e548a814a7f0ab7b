"""A checkpoint as one .gguf file of llama.cpp's `deepseek2` architecture; `gguf_reader.py` is the way back.

    export_gguf("DIR", "model.gguf")

What differs from the released layout: experts are stacked; `kv_b_proj` is split per head into a transposed key part
[H, C, K] and a value part [H, U, C], for the absorbed form; the MTP layer follows the others, without
its copies of embedding and head; norms, router and bias are F32.
The rope rows stay as they are: llama.cpp rotates the same consecutive pairs. `yarn_log_multiplier` is 0.1 times the
released `mscale_all_dim`. Needs the `gguf` package (the extra `gguf`).

Letters: H heads, K content, U value, C latent.
Source: the deepseek2 architecture of llama.cpp.
"""

import os
from collections.abc import Callable, Iterator
from math import prod
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from deepseek_v3.config import ModelConfig
from deepseek_v3.weights.checkpoint import Checkpoint
from deepseek_v3.weights.errors import SaveError
from deepseek_v3.weights.folder import recover_folder
from deepseek_v3.weights.gguf_header import add_metadata, add_vocabulary, refuse_unheld
from deepseek_v3.weights.manifest import verify_manifest
from deepseek_v3.weights.names import iterate_slots
from deepseek_v3.weights.opening import open_checkpoint
from deepseek_v3.weights.shards import raw_bytes
from deepseek_v3.weights.stored import count_bytes

NUMBER_TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
ATTENTION = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
}
FEED_FORWARD = {
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
    "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
}
GLOBAL = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
NEXTN = {
    "eh_proj": "nextn.eh_proj",
    "enorm": "nextn.enorm",
    "hnorm": "nextn.hnorm",
    "shared_head.norm": "nextn.shared_head_norm",
}


def export_gguf(
    source: str | PathLike,
    target: str | PathLike,
    *,
    number_type: str = "bf16",
    mtp: bool = True,
    skip_verify: bool = False,
    follow_links: bool = False,
    advance: Callable[[int, int], None] | None = None,
) -> None:
    """Check the folder `source` and write it as the file `target`, streamed, atomic and durable.

    Raises:
        CheckpointError: whatever is wrong with the source, or a model that the format cannot hold; SaveError: the
            target cannot be written.
    """
    if number_type not in NUMBER_TYPES:
        raise ValueError(f"number_type={number_type!r} is not one of {', '.join(NUMBER_TYPES)}")
    recover_folder(source)
    verify_manifest(source, skip=skip_verify)
    target = Path(target)
    beside = target.with_name(f".{target.name}.saving")
    with open_checkpoint(source, mtp=mtp, follow_links=follow_links) as checkpoint:
        refuse_unheld(checkpoint.config, Path(source))
        checkpoint.check_numbers(checkpoint.check())
        try:
            _write_file(checkpoint, Path(source), beside, NUMBER_TYPES[number_type], advance)
            with beside.open("rb") as stream:
                os.fsync(stream.fileno())
            os.replace(beside, target)
        except OSError as error:
            raise SaveError(f"cannot be written: {error.strerror or error}", file=target) from error
        finally:
            beside.unlink(missing_ok=True)


def _write_file(checkpoint: Checkpoint, source: Path, path: Path, dtype: torch.dtype, advance) -> None:
    import gguf

    raw_types = {
        torch.float32: gguf.GGMLQuantizationType.F32,
        torch.float16: gguf.GGMLQuantizationType.F16,
        torch.bfloat16: gguf.GGMLQuantizationType.BF16,
    }
    writer = gguf.GGUFWriter(path, "deepseek2")
    add_metadata(writer, checkpoint.config)
    add_vocabulary(writer, source / "tokenizer.json", checkpoint.config)
    plan = plan_tensors(checkpoint.config)
    stored = {name: torch.float32 if len(shape) == 1 or "ffn_gate_inp" in name else dtype for name, shape, _ in plan}
    for name, shape, _ in plan:
        kind = stored[name]
        n_bytes = prod(shape) * kind.itemsize
        # The shape is given in bytes, and the type beside it: NumPy has no BF16.
        byte_shape = (*shape[:-1], shape[-1] * kind.itemsize)
        writer.add_tensor_info(name, byte_shape, _uint8(), n_bytes, raw_types[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    total = count_bytes(checkpoint.entries)
    for name, _, released in plan:
        tensor = build_tensor(checkpoint, name, released, stored[name])
        writer.write_tensor_data(_bytes_as_array(tensor))
        checkpoint.release()
        if advance is not None:
            advance(sum(checkpoint.entries[source].n_bytes for source in released) // (1 + ("_b." in name)), total)
    writer.close()


def _uint8():
    import numpy

    return numpy.dtype(numpy.uint8)


def _bytes_as_array(tensor: Tensor):
    import numpy

    return numpy.frombuffer(raw_bytes(tensor), dtype=numpy.uint8)


def plan_tensors(config: ModelConfig) -> list[tuple[str, tuple[int, ...], list[str]]]:
    """List the file's tensors: name, shape, and the released tensors that each is made of."""
    shapes = {slot.name: slot.shape for slot in iterate_slots(config)}
    plan = [(new, shapes[old], [old]) for old, new in GLOBAL.items() if old in shapes]
    H, K = config.num_attention_heads, config.qk_nope_head_dim
    U, C = config.v_head_dim, config.kv_lora_rank
    for i in range(config.num_hidden_layers + config.num_nextn_predict_layers):
        for old, new in {**ATTENTION, **FEED_FORWARD, **NEXTN}.items():
            name = f"model.layers.{i}.{old}.weight"
            if name in shapes:
                plan.append((f"blk.{i}.{new}.weight", shapes[name], [name]))
        kv_b = f"model.layers.{i}.self_attn.kv_b_proj.weight"
        plan.append((f"blk.{i}.attn_k_b.weight", (H, C, K), [kv_b]))
        plan.append((f"blk.{i}.attn_v_b.weight", (H, U, C), [kv_b]))
        bias = f"model.layers.{i}.mlp.gate.e_score_correction_bias"
        if bias in shapes:
            plan.append((f"blk.{i}.exp_probs_b.bias", shapes[bias], [bias]))
        if config.is_moe_layer(i):
            for kind in ("gate", "up", "down"):
                names = [
                    f"model.layers.{i}.mlp.experts.{e}.{kind}_proj.weight" for e in range(config.n_routed_experts or 0)
                ]
                plan.append((f"blk.{i}.ffn_{kind}_exps.weight", (len(names), *shapes[names[0]]), names))
    return plan


def build_tensor(checkpoint: Checkpoint, name: str, released: list[str], dtype: torch.dtype) -> Tensor:
    """Make one tensor of the file from the released ones."""
    config = checkpoint.config
    weights = [checkpoint.weight(source, dtype) for source in released]
    if "_exps." in name:
        return torch.stack(weights)
    if name.endswith(("attn_k_b.weight", "attn_v_b.weight")):
        kv_b = weights[0].view(config.num_attention_heads, config.qk_nope_head_dim + config.v_head_dim, -1)
        if "attn_k_b" in name:
            return kv_b[:, : config.qk_nope_head_dim].transpose(1, 2).contiguous()
        return kv_b[:, config.qk_nope_head_dim :].contiguous()
    return weights[0]


def iterate_sources(config: ModelConfig) -> Iterator[tuple[str, str, int | None]]:
    """Yield, for every released tensor but kv_b_proj, the file's tensor that holds it, and which expert it is."""
    for name, _, released in plan_tensors(config):
        if name.endswith(("attn_k_b.weight", "attn_v_b.weight")):
            continue
        for i, source in enumerate(released):
            yield source, name, i if "_exps." in name else None
