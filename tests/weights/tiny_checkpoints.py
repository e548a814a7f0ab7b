"""Small checkpoints for the tests of this folder, and the means to break them."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from deepseek_v3.config import ModelConfig
from deepseek_v3.model.transformer import DeepseekV3

V3 = {
    "vocab_size": 131,
    "hidden_size": 38,
    "intermediate_size": 149,
    "moe_intermediate_size": 23,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "q_lora_rank": 17,
    "kv_lora_rank": 13,
    "qk_nope_head_dim": 7,
    "qk_rope_head_dim": 6,
    "v_head_dim": 5,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 2.5,
    "num_nextn_predict_layers": 1,
    "initializer_range": 0.2,
}
YARN = {
    "type": "yarn",
    "factor": 40,
    "original_max_position_embeddings": 16,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
V2_LITE = {
    **V3,
    "model_type": "deepseek_v2",
    "q_lora_rank": None,
    "scoring_func": "softmax",
    "topk_method": "greedy",
    "norm_topk_prob": False,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 2,
    "num_nextn_predict_layers": 0,
    "routed_scaling_factor": 1.0,
}


def random_model(values: dict[str, Any] | None = None, **changes: Any) -> DeepseekV3:
    """A model whose every tensor, norms and biases too, is random: a swapped pair cannot hide."""
    torch.manual_seed(20241227)
    model = DeepseekV3(ModelConfig.from_dict({**(V3 if values is None else values), **changes})).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if "norm" in name:
                tensor.uniform_(0.5, 1.5)
            elif name.endswith("e_score_correction_bias"):
                tensor.normal_(0, 0.1)
    return model


def edit_json(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None deletes."""
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def folder_digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file; where two folders differ, pytest would take minutes to show the files' bytes."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
