"""A model with every mechanism, small enough for milliseconds a step."""

from collections.abc import Callable

import pytest
import torch

from deepseek_v3.config import ModelConfig
from deepseek_v3.model.transformer import DeepseekV3


@pytest.fixture(name="tiny_model")
def _tiny_model() -> Callable[..., DeepseekV3]:
    return build_tiny_model


def build_tiny_model(depth: int = 2, vocab_size: int = 31) -> DeepseekV3:
    """Return the same weights at every call."""
    torch.manual_seed(3)
    config = ModelConfig(
        vocab_size=vocab_size,
        hidden_size=22,
        intermediate_size=26,
        moe_intermediate_size=7,
        num_hidden_layers=2,
        first_k_dense_replace=1,
        num_attention_heads=2,
        kv_lora_rank=5,
        qk_nope_head_dim=7,
        qk_rope_head_dim=4,
        v_head_dim=3,
        n_routed_experts=6,
        num_experts_per_tok=2,
        num_nextn_predict_layers=depth,
        initializer_range=0.2,
    )
    return DeepseekV3(config)
