"""The part of a .gguf file before its tensors: can the format hold this model at all, its sizes, its vocabulary.

Source: the deepseek2 architecture of llama.cpp, what its loader requires and its graph computes.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from deepseek_v3.config import ModelConfig
from deepseek_v3.weights.errors import CheckpointError

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # llama.cpp's kinds of tokens
LITE_DEPTHS = (26, 27)  # by which llama.cpp knows a model with a plain q_proj; and 48 with this vocabulary
LITE_48_VOCAB = 128256
LATENT_NORM_EPS = 1e-6  # of the two latent norms in the released code, whatever the config says
# llama.cpp's name of a way to split text, by the SHA-256 of its patterns, one a line.
PRE_TOKENIZERS = {"7d3db94dd3e37023ba4170e7de2f32348c1e4bac0a975d6de11c36406f75e309": "deepseek-v3"}


def refuse_unheld(c: ModelConfig, folder: Path) -> None:
    """Refuse a model that llama.cpp would reject, or read as another one.

    Raises:
        CheckpointError: with the key and the reason.
    """
    lite = c.num_hidden_layers in LITE_DEPTHS or (c.num_hidden_layers == 48 and c.vocab_size == LITE_48_VOCAB)
    reasons = [
        (not c.n_routed_experts, "n_routed_experts=null: llama.cpp rejects deepseek2 models without experts"),
        (not c.n_shared_experts, "n_shared_experts=0: llama.cpp rejects deepseek2 models without a shared expert"),
        (lite != (c.q_lora_rank is None), f"q_lora_rank={c.q_lora_rank} with {c.num_hidden_layers} layers: llama.cpp "
         "expects a plain q_proj at 26 and 27 layers, and nowhere else"),
        (c.rms_norm_eps != LATENT_NORM_EPS, f"rms_norm_eps={c.rms_norm_eps}: llama.cpp would use it for the latent "
         f"norms too, whose epsilon is {LATENT_NORM_EPS}"),
        (c.scoring_func == "softmax" and c.topk_method != "greedy" and c.n_group > 1,
         f"topk_method={c.topk_method!r}: llama.cpp ranks groups by their best two experts, V2 by the best one"),
        (c.num_nextn_predict_layers > 1, f"num_nextn_predict_layers={c.num_nextn_predict_layers}: llama.cpp holds one "
         "MTP layer; leave them out with --without-mtp"),
        *_rope_reasons(c.rope_scaling or {}),
    ]  # fmt: skip
    for refused, reason in reasons:
        if refused:
            raise CheckpointError(f"a .gguf file cannot hold it: {reason}", file=folder / "config.json")


def _rope_reasons(rope: dict[str, Any]) -> list[tuple[bool, str]]:
    scales = [rope.get(key) or 0.0 for key in ("mscale", "mscale_all_dim")]
    return [
        (bool(rope) and (scales[0] != scales[1] or not scales[0]), f"rope_scaling.mscale={rope.get('mscale')} and "
         f"mscale_all_dim={rope.get('mscale_all_dim')}: the format has one number for both"),
        (rope.get("attention_factor") is not None, "rope_scaling.attention_factor has no place in it"),
        (rope.get("truncate") is False, "rope_scaling.truncate=false has no place in it"),
    ]  # fmt: skip


def name_pre_tokenizer(content: dict[str, Any], path: Path) -> str:
    """Return llama.cpp's name for how a tokenizer.json splits text.

    Raises:
        CheckpointError: a way that this package does not know by a name of llama.cpp's.
    """
    found = content.get("pre_tokenizer") or {}
    steps = found.get("pretokenizers", [found])
    patterns = [step.get("pattern", {}).get("Regex", "") for step in steps if step.get("type") == "Split"]
    known = PRE_TOKENIZERS.get(hashlib.sha256("\n".join(patterns).encode()).hexdigest())
    others = {step.get("type") for step in steps} - {"Split", "ByteLevel"}
    if known is None or others or content.get("normalizer") not in (None, {"type": "Sequence", "normalizers": []}):
        problem = (
            "splits text in a way that this package has no llama.cpp name for, and a wrong one would change tokens"
        )
        raise CheckpointError(
            problem, file=path, mend="export without tokenizer.json, or with llama.cpp's own converter"
        )
    return known


def add_metadata(writer: Any, c: ModelConfig) -> None:
    """Write the sizes and settings."""
    import gguf

    writer.add_context_length(c.max_position_embeddings)
    writer.add_block_count(c.num_hidden_layers + c.num_nextn_predict_layers)
    if c.num_nextn_predict_layers:
        writer.add_nextn_predict_layers(c.num_nextn_predict_layers)
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_vocab_size(c.vocab_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    if c.q_lora_rank is not None:
        writer.add_q_lora_rank(c.q_lora_rank)
    writer.add_kv_lora_rank(c.kv_lora_rank)
    writer.add_key_length(c.kv_lora_rank + c.qk_rope_head_dim)
    writer.add_value_length(c.kv_lora_rank)
    writer.add_key_length_mla(c.qk_nope_head_dim + c.qk_rope_head_dim)
    writer.add_value_length_mla(c.v_head_dim)
    writer.add_rope_dimension_count(c.qk_rope_head_dim)
    writer.add_rope_freq_base(c.rope_theta)
    writer.add_leading_dense_block_count(c.first_k_dense_replace)
    if c.n_routed_experts:
        sigmoid = c.scoring_func == "sigmoid"
        writer.add_expert_count(c.n_routed_experts)
        writer.add_expert_used_count(c.num_experts_per_tok)
        writer.add_expert_shared_count(c.n_shared_experts or 0)
        writer.add_expert_feed_forward_length(c.moe_intermediate_size)
        writer.add_expert_weights_scale(c.routed_scaling_factor)
        writer.add_expert_weights_norm(c.norm_topk_prob)
        kinds = gguf.ExpertGatingFuncType
        writer.add_expert_gating_func(kinds.SIGMOID if sigmoid else kinds.SOFTMAX)
        if c.n_group > 1:
            writer.add_expert_group_count(c.n_group)
            writer.add_expert_group_used_count(c.topk_group)
    if c.rope_scaling is not None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(float(c.rope_scaling["factor"]))
        writer.add_rope_scaling_orig_ctx_len(int(c.rope_scaling["original_max_position_embeddings"]))
        writer.add_rope_scaling_yarn_log_mul(0.1 * float(c.rope_scaling.get("mscale_all_dim", 0.0)))
        writer.add_rope_scaling_yarn_beta_fast(float(c.rope_scaling.get("beta_fast") or 32))
        writer.add_rope_scaling_yarn_beta_slow(float(c.rope_scaling.get("beta_slow") or 1))


def add_vocabulary(writer: Any, path: Path, c: ModelConfig) -> None:
    """Byte-level BPE of tokenizer.json, padded to the embedding's rows; without a file, token ids only."""
    ends = [*c.eos_token_ids, None, None]
    for value, add in ((c.bos_token_id, "bos"), (ends[0], "eos"), (ends[1], "eot"), (c.pad_token_id, "pad")):
        if value is not None:
            getattr(writer, f"add_{add}_token_id")(value)
    _add_settings(writer, path.parent)
    if not path.is_file():
        writer.add_tokenizer_model("none")
        return
    content = json.loads(path.read_text(encoding="utf-8"))
    tokens = {i: (text, NORMAL) for text, i in content["model"]["vocab"].items()}
    for added in content.get("added_tokens", []):
        tokens[added["id"]] = (added["content"], CONTROL if added.get("special") else USER_DEFINED)
    rows = [tokens.get(i, (f"[PAD{i}]", UNUSED)) for i in range(c.vocab_size)]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in content["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name_pre_tokenizer(content, path))
    writer.add_token_list([text for text, _ in rows])
    writer.add_token_types([kind for _, kind in rows])
    writer.add_token_merges(merges)


def _add_settings(writer: Any, folder: Path) -> None:
    """Write whether a begin token is added, and the chat template, as the tokenizer's files say."""
    path, template = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if isinstance(settings.get("add_bos_token"), bool):
        writer.add_add_bos_token(settings["add_bos_token"])
    text = template.read_text(encoding="utf-8") if template.is_file() else settings.get("chat_template")
    if isinstance(text, str):
        writer.add_chat_template(text)
