"""The family: which architectures are V3's or V2's, what each one's class assumes, and which only look like it.

    ARCHITECTURES["kimi_k2"].name            what `architectures` says in its config.json
    ARCHITECTURES["deepseek_v2"].defaults    what a key that was left out means

The defaults are those of the class in `transformers`; `tests/test_family.py` reads them there and compares. Kimi's and
JoyAI's have no class there, so a key that was left out is refused by name. `docs/checkpoints.md` lists the models.
"""

from dataclasses import dataclass, field
from typing import Any

# The same in every class of the family.
COMMON: dict[str, Any] = {
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "quantization_config": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
SIGMOID: dict[str, Any] = {"scoring_func": "sigmoid", "topk_method": "noaux_tc"}  # fixed in the classes of V3 and GLM
V3: dict[str, Any] = {
    **COMMON,
    **SIGMOID,
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "n_group": 8,
    "topk_group": 4,
    "first_k_dense_replace": 3,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "num_nextn_predict_layers": 1,
    "max_position_embeddings": 4096,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
V2: dict[str, Any] = {  # without `num_experts_per_tok`: its class has no value for it
    **COMMON,
    "scoring_func": "softmax",
    "topk_method": "greedy",
    "vocab_size": 102400,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "moe_intermediate_size": 1407,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "first_k_dense_replace": 0,
    "norm_topk_prob": False,
    "routed_scaling_factor": 1.0,
    "num_nextn_predict_layers": 0,
    "max_position_embeddings": 2048,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GLM_LITE: dict[str, Any] = {
    **V3,
    "vocab_size": 154880,
    "hidden_size": 2048,
    "intermediate_size": 10240,
    "moe_intermediate_size": 1536,
    "num_hidden_layers": 47,
    "num_attention_heads": 20,
    "q_lora_rank": 768,
    "qk_nope_head_dim": 192,
    "v_head_dim": 256,
    "n_routed_experts": 64,
    "num_experts_per_tok": 4,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.8,
    "num_nextn_predict_layers": 0,
    "max_position_embeddings": 202752,
    "rms_norm_eps": 1e-5,
}


@dataclass(frozen=True)
class Architecture:
    """One `model_type` that this package builds.

    Attributes:
        name: what `architectures` says.
        defaults: of keys that a config.json leaves out.
        aliases: other names of keys, as its class maps them.
    """

    name: str
    defaults: dict[str, Any]
    aliases: dict[str, str] = field(default_factory=dict)


ARCHITECTURES = {
    "deepseek_v3": Architecture("DeepseekV3ForCausalLM", V3, {"num_local_experts": "n_routed_experts"}),
    "deepseek_v2": Architecture("DeepseekV2ForCausalLM", V2, {"num_experts": "n_routed_experts"}),
    "glm4_moe_lite": Architecture(
        "Glm4MoeLiteForCausalLM", GLM_LITE, {"num_local_experts": "n_routed_experts", "head_dim": "qk_rope_head_dim"}
    ),
    "kimi_k2": Architecture("DeepseekV3ForCausalLM", {**COMMON, **SIGMOID}),
    "joyai_llm_flash": Architecture("JoyAILLMFlashForCausalLM", {**COMMON, **SIGMOID}),
}
# Those whose config.json holds the language model's under this key, and whose tensors carry this prefix.
WRAPPED = {"kimi_k25": ("text_config", "language_model.")}

SPARSE = "its attention is sparse: an indexer chooses which keys a query sees"
REFUSED = {
    "deepseek_v32": SPARSE,
    "glm_moe_dsa": SPARSE,
    "deepseek_v4": "its attention compresses keys and its layers are joined by hyper-connections",
    "kimi_linear": "most of its layers have linear attention",
    "kimi_k3": "its attention is not latent attention as V3's",
}
# Keys that only another architecture has, by what their name holds, whatever `model_type` says.
FOREIGN_KEYS = {
    "index_": SPARSE,
    "indexer": SPARSE,
    "linear_attn": REFUSED["kimi_linear"],
    "kda_": REFUSED["kimi_linear"],
    "compress_ratio": REFUSED["deepseek_v4"],
    "hc_mult": REFUSED["deepseek_v4"],
}
