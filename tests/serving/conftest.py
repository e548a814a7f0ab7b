"""A tiny model that is served, and the words that it knows."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent))
from serving_harness import Running, run_server
from tiny import tiny_config

from deepseek_v3.data.tokenizer import Tokenizer
from deepseek_v3.model.transformer import DeepseekV3

TEXT = 'the quick brown fox jumps; héllo wörld, 你好世界 and 🙂🙃 again. {"a": [1, 2]} ' * 5


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([TEXT], 331)


@pytest.fixture(scope="session")
def model(tokenizer) -> DeepseekV3:
    torch.manual_seed(5)
    return DeepseekV3(tiny_config(vocab_size=tokenizer.vocab_size)).eval()


@pytest.fixture(scope="module")
def server(model, tokenizer) -> Iterator[Running]:
    """One server for a whole file of tests."""
    with run_server(model, tokenizer, max_rows=4, queue=60) as running:
        yield running
        assert running.wait_until(lambda: running.worker.load == 0)
        assert running.blocks_held() == 0
        running.worker.engine.check_integrity()
