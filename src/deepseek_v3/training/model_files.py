"""Weights, config and tokenizer of a checkpoint; for now under our own tensor names."""

from pathlib import Path

from deepseek_v3.data.tokenizer import Tokenizer
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.weights.shards import read_tensors, write_tensors


def write_model(model: DeepseekV3, folder: Path, tokenizer: Tokenizer | None) -> None:
    """Write into an existing folder."""
    model.config.to_json(folder / "config.json")
    write_tensors(model.state_dict(), folder)
    if tokenizer is not None:
        tokenizer.save(folder)


def read_model(model: DeepseekV3, folder: Path) -> None:
    """Read the weights of a verified folder."""
    model.load_state_dict(read_tensors(folder))
