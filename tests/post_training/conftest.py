"""A model with every mechanism and a tokenizer of single bytes, small enough for milliseconds a step."""

from pathlib import Path

import pytest
import torch

from deepseek_v3.config import ModelConfig
from deepseek_v3.data.tokenizer import SMALLEST_VOCAB, Tokenizer
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.weights.save import save_model


def build_model(seed: int = 3, **changes) -> DeepseekV3:
    """Return the same weights at every call."""
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": 271, "hidden_size": 38, "intermediate_size": 58, "moe_intermediate_size": 14,
        "num_hidden_layers": 3, "first_k_dense_replace": 1, "num_attention_heads": 2, "q_lora_rank": 22,
        "kv_lora_rank": 10, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 6, "n_routed_experts": 8,
        "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5,
        "num_nextn_predict_layers": 1, "max_position_embeddings": 64, "initializer_range": 0.15,
    }  # fmt: skip
    return DeepseekV3(ModelConfig(**{**sizes, **changes}))


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([], SMALLEST_VOCAB)


@pytest.fixture(name="model")
def _model() -> DeepseekV3:
    return build_model()


@pytest.fixture(name="build_model")
def _build_model():
    return build_model


@pytest.fixture(scope="session")
def start(tmp_path_factory, tokenizer) -> Path:
    """A checkpoint to begin with."""
    folder = tmp_path_factory.mktemp("start") / "model"
    model = build_model()
    model.config = model.config.replace(
        bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id
    )
    save_model(model, folder, tokenizer)
    return folder
