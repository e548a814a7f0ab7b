"""A model that does not fit is refused before it is built, with the bytes needed and there."""

import pytest
import torch

from deepseek_v3 import memory
from deepseek_v3.config import ModelConfig
from deepseek_v3.memory import MemoryShort, available_bytes, check_memory
from deepseek_v3.training.options import TrainOptions
from deepseek_v3.training.session import prepare_training
from deepseek_v3.weights.load import build_empty


def test_what_the_system_has_is_read_or_unknown(monkeypatch):
    there = available_bytes()
    assert there is None or there > 2**20
    monkeypatch.setattr(memory, "available_bytes", lambda: None)
    check_memory("anything", 10**30)


def test_a_training_that_does_not_fit_is_refused_before_the_data_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 1009)
    with pytest.raises(MemoryShort, match=r"training this model needs [\d,]{9,} bytes of memory, 1,009 are free"):
        prepare_training(TrainOptions(run=str(tmp_path / "run"), preset="demo", data="nowhere"))
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_that_does_not_fit_is_refused_before_memory_is_taken(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 1009)
    with pytest.raises(MemoryShort, match="the model needs"):
        build_empty(ModelConfig.preset("v3-671b"), torch.bfloat16)
