"""`deepseek_v3.load` and `deepseek_v3.save`: the rooms of weights, data and training behind two plain functions."""

from os import PathLike
from pathlib import Path
from typing import Any

from deepseek_v3.data.tokenizer import Tokenizer
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.training.training_state import newest_checkpoint
from deepseek_v3.weights.load import load_model
from deepseek_v3.weights.save import save_model


def load(folder: str | PathLike, **options: Any) -> tuple[DeepseekV3, Tokenizer | None]:
    """Load a run folder (its newest checkpoint) or a Hugging Face directory.

    Args:
        options: of `deepseek_v3.weights.load.load_model`, such as `dtype`.
    Returns:
        the model in eval mode, and the tokenizer, None if there is none.
    Raises:
        CheckpointError: it is missing, damaged or foreign; the message names the file and the mend.
    """
    path = Path(folder)
    if (path / "checkpoints").is_dir():
        path = newest_checkpoint(path)
    return load_model(path, tokenizer_from=Tokenizer.from_file, **options)


def save(model: DeepseekV3, folder: str | PathLike, tokenizer: Tokenizer | None = None, **options: Any) -> None:
    """Write a Hugging Face directory: config, safetensors, tokenizer, manifest; all or nothing.

    Args:
        options: of `deepseek_v3.weights.save.save_model`, such as `dtype` or `fp8`.
    """
    save_model(model, folder, tokenizer, **options)
