"""A model with every mechanism, small enough for milliseconds a step."""

from collections.abc import Callable

import pytest
import torch

from deepseek_v3.model.transformer import DeepseekV3
from tests.tiny import tiny_config


@pytest.fixture(name="tiny_model")
def _tiny_model() -> Callable[..., DeepseekV3]:
    return build_tiny_model


def build_tiny_model(depth: int = 2, vocab_size: int = 31) -> DeepseekV3:
    """Return the same weights at every call."""
    torch.manual_seed(3)
    sizes = {"vocab_size": vocab_size, "num_hidden_layers": 2, "num_nextn_predict_layers": depth}
    return DeepseekV3(tiny_config(**sizes, initializer_range=0.2))
