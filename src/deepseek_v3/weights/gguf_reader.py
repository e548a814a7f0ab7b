"""The way back: an unquantized .gguf file of the `deepseek2` architecture as a folder in the released layout.

    import_gguf("model.gguf", "DIR")

Source: the deepseek2 architecture of llama.cpp; `gguf.py` of this package writes what this file reads.
"""

from collections.abc import Callable
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from deepseek_v3.config import ConfigError, ModelConfig
from deepseek_v3.weights.errors import CheckpointError, DtypeError, MissingTensorError, ShapeError
from deepseek_v3.weights.folder import atomic_folder
from deepseek_v3.weights.gguf import iterate_sources
from deepseek_v3.weights.names import iterate_slots
from deepseek_v3.weights.save import METADATA
from deepseek_v3.weights.shards import Spec, plan_shards, write_shards

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
SIGMOID = 2


def _whole(number: float) -> float:
    """The file stores float32; what is whole was whole in config.json."""
    return int(number) if number == int(number) else round(number, 6)


def import_gguf(
    source: str | PathLike, target: str | PathLike, *, to: str = "keep", shard_bytes: int | None = None
) -> None:
    """Write an unquantized .gguf file of this architecture as a folder in the released layout (weights only).

    Raises:
        CheckpointError: another architecture, a quantized or missing tensor; SaveError: the target cannot be written.
    """
    GgufCheckpoint(source).write(target, to=to, shard_bytes=shard_bytes)


class GgufCheckpoint:
    """The file opened: its config in released keys, its tensors memory-mapped."""

    def __init__(self, path: str | PathLike):
        import gguf

        self.path = path
        try:
            reader = gguf.GGUFReader(path)
        except OSError as error:
            raise CheckpointError(f"cannot be read: {error.strerror or error}", file=path) from None
        except Exception as error:  # the package raises whatever its parsing runs into
            raise CheckpointError(
                f"is not a readable .gguf file ({type(error).__name__}: {error})", file=path
            ) from None
        self.fields = {name: field.contents() for name, field in reader.fields.items()}
        self.tensors = {tensor.name: tensor for tensor in reader.tensors}
        architecture = self.fields.get("general.architecture")
        if architecture != "deepseek2":
            raise CheckpointError(f"holds the architecture {architecture!r}, not 'deepseek2'", file=path)
        self.config = self._read_config()
        self.sources = {released: (name, expert) for released, name, expert in iterate_sources(self.config)}
        slots = list(iterate_slots(self.config))
        originals = {slot.memory: slot.name for slot in slots if not slot.copy}
        self.copies = {slot.name: originals[slot.memory] for slot in slots if slot.copy}

    def _read_config(self) -> ModelConfig:
        try:
            return ModelConfig.from_dict(self._released_keys())
        except (ConfigError, KeyError) as error:
            raise CheckpointError(f"its metadata do not make a config: {error}", file=self.path) from None

    def _released_keys(self) -> dict[str, Any]:
        def get(key: str, *default: Any) -> Any:
            return self.fields.get(f"deepseek2.{key}", *default) if default else self.fields[f"deepseek2.{key}"]

        rope, modules = get("rope.dimension_count"), get("nextn_predict_layers", 0)
        # Before April 2025 the lengths were those of the expanded heads, and kv_b_proj was whole.
        older = "blk.0.attn_kv_b.weight" in self.tensors
        key, value = (get(f"attention.{part}_length" + ("" if older else "_mla")) for part in ("key", "value"))
        values = {
            "vocab_size": get("vocab_size", None) or int(self.tensors["token_embd.weight"].shape[1]),
            "hidden_size": get("embedding_length"),
            "intermediate_size": get("feed_forward_length"),
            "num_hidden_layers": get("block_count") - modules,
            "num_nextn_predict_layers": modules,
            "num_attention_heads": get("attention.head_count"),
            "q_lora_rank": get("attention.q_lora_rank", None),
            "kv_lora_rank": get("attention.kv_lora_rank"),
            "qk_nope_head_dim": key - rope,
            "qk_rope_head_dim": rope,
            "v_head_dim": value,
            "rms_norm_eps": round(get("attention.layer_norm_rms_epsilon"), 12),
            "rope_theta": get("rope.freq_base"),
            "max_position_embeddings": get("context_length"),
            "tie_word_embeddings": "output.weight" not in self.tensors,
        }
        for role, field in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
            values[f"{role}_token_id"] = self.fields.get(f"tokenizer.ggml.{field}_token_id")
        if (second := self.fields.get("tokenizer.ggml.eot_token_id")) not in (None, values["eos_token_id"]):
            values["eos_token_id"] = [values["eos_token_id"], second]
        if not get("expert_count", 0):
            values["n_routed_experts"] = None
        if experts := get("expert_count", 0):
            sigmoid = get("expert_gating_func", 1) == SIGMOID
            groups = get("expert_group_count", 1)
            method = "noaux_tc" if sigmoid else "group_limited_greedy" if groups > 1 else "greedy"
            values |= {
                "model_type": "deepseek_v3" if sigmoid else "deepseek_v2",
                "n_routed_experts": experts,
                "num_experts_per_tok": get("expert_used_count"),
                "n_shared_experts": get("expert_shared_count", 0),
                "moe_intermediate_size": get("expert_feed_forward_length"),
                "routed_scaling_factor": round(get("expert_weights_scale", 1.0), 6),
                "norm_topk_prob": bool(get("expert_weights_norm", False)),
                "scoring_func": "sigmoid" if sigmoid else "softmax",
                "topk_method": method,
                "n_group": groups,
                "topk_group": get("expert_group_used_count", 1),
                "first_k_dense_replace": get("leading_dense_block_count", 0),
            }
        if get("rope.scaling.type", None) == "yarn":
            values["rope_scaling"] = self._read_yarn(get)
        return values

    @staticmethod
    def _read_yarn(get: Callable[..., Any]) -> dict[str, Any]:
        mscale = round(10 * get("rope.scaling.yarn_log_multiplier", 0.0), 6)
        return {
            "type": "yarn",
            "factor": _whole(get("rope.scaling.factor")),
            "original_max_position_embeddings": get("rope.scaling.original_context_length"),
            "beta_fast": _whole(get("rope.scaling.yarn_beta_fast", 32.0)),
            "beta_slow": _whole(get("rope.scaling.yarn_beta_slow", 1.0)),
            "mscale": mscale,
            "mscale_all_dim": mscale,
        }

    def tensor(self, name: str) -> Tensor:
        """One tensor of the file, its bytes shared with the mapping where that is possible.

        Raises:
            CheckpointError: missing or quantized.
        """
        found = self.tensors.get(name)
        if found is None:
            raise MissingTensorError("is missing", file=self.path, tensor=name)
        kind = found.tensor_type.name
        if kind not in DTYPES:
            mend = "take the F32, F16 or BF16 file"
            raise DtypeError(f"is quantized ({kind})", file=self.path, tensor=name, mend=mend)
        shape = [int(length) for length in reversed(found.shape)]
        flat = torch.from_numpy(found.data.copy().reshape(-1)).view(torch.uint8)
        return flat.view(DTYPES[kind]).view(shape)

    def released(self, name: str) -> Tensor:
        """One released tensor, put together again."""
        if name in self.copies:
            name = self.copies[name]
        if not name.endswith("self_attn.kv_b_proj.weight"):
            source, expert = self.sources[name]
            tensor = self.tensor(source)
            return tensor if expert is None else tensor[expert]
        layer = name.split(".")[2]
        if f"blk.{layer}.attn_kv_b.weight" in self.tensors:
            return self.tensor(f"blk.{layer}.attn_kv_b.weight")
        key_HCK, value_HUC = (self.tensor(f"blk.{layer}.attn_{part}_b.weight") for part in "kv")
        return torch.cat((key_HCK.transpose(1, 2), value_HUC), 1).flatten(0, 1)

    def write(self, target: str | PathLike, *, to: str, shard_bytes: int | None) -> None:
        """Write the folder; the stored format is that of the projections, or the one asked for."""
        dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}.get(to, self.tensor("blk.0.attn_output.weight").dtype)
        slots = {slot.name: slot for slot in iterate_slots(self.config)}
        specs: list[Spec] = [(n, torch.float32 if s.fp32 else dtype, s.shape) for n, s in slots.items()]

        def fetch(name: str) -> Tensor:
            tensor = self.released(name)
            if tuple(tensor.shape) != slots[name].shape:
                problem = f"has the shape {list(tensor.shape)}, not {list(slots[name].shape)}"
                raise ShapeError(problem, file=self.path, tensor=name)
            return tensor.to(torch.float32 if slots[name].fp32 else dtype)

        plan = plan_shards(specs, shard_bytes=shard_bytes)
        with atomic_folder(target, n_bytes=plan.total_size) as beside:
            self.config.replace(torch_dtype=str(dtype).removeprefix("torch.")).to_json(beside / "config.json")
            write_shards(plan, fetch, beside, metadata=METADATA)
