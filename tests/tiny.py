"""DeepSeek-V3 in small, the config that tests change: every mechanism, milliseconds a step.

No two sizes are equal and each is a prime, so that a swapped axis cannot hide; doubled where pairs of a rotation or
BF16 kernels want even widths.
"""

from typing import Any

from deepseek_v3.config import ModelConfig

SIZES: dict[str, Any] = {
    "vocab_size": 53, "hidden_size": 2 * 19, "intermediate_size": 2 * 29, "moe_intermediate_size": 2 * 13,
    "num_hidden_layers": 3, "num_attention_heads": 3, "q_lora_rank": 2 * 17, "kv_lora_rank": 2 * 11,
    "qk_nope_head_dim": 2 * 7, "qk_rope_head_dim": 2 * 5, "v_head_dim": 2 * 3, "initializer_range": 0.1,
    "first_k_dense_replace": 1, "n_routed_experts": 12, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2,
    "n_shared_experts": 1, "routed_scaling_factor": 2.5, "num_nextn_predict_layers": 1, "max_position_embeddings": 256,
}  # fmt: skip


def tiny_config(**changes: Any) -> ModelConfig:
    """V3 in small, with changes by the keys of config.json."""
    return ModelConfig(**{**SIZES, **changes})


def predict(step: Any, depth: int, hidden_BSD: Any, tokens_BS: Any, cache: Any) -> tuple[Any, Any]:
    """Let an MTP module read as many tokens of every row; return [B, S, D], and of each row's last token [B, V]."""
    from deepseek_v3.engine.decode_step import Rows

    batch, count = tokens_BS.shape
    rows, last = Rows(tokens_BS.flatten().tolist(), [count] * batch), range(count - 1, batch * count, count)
    hidden_ND, logits_BV = step.read(rows, cache, depth=depth, below_ND=hidden_BSD.flatten(0, 1), logits_of=last)
    return hidden_ND.view(batch, count, -1), logits_BV
