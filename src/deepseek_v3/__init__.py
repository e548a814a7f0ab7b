"""DeepSeek-V3 in PyTorch: train, convert, generate.

    config = deepseek_v3.ModelConfig.preset("demo")
    model = deepseek_v3.DeepseekV3(config)             weights drawn; torch.manual_seed repeats them
    logits = model(tokens)
    model, tokenizer = deepseek_v3.load("DIR")
    deepseek_v3.save(model, "DIR", tokenizer)
    for token in deepseek_v3.generate(model, tokens, max_new_tokens=64): ...

The names are imported when first used: `import deepseek_v3` alone does not load PyTorch; it chooses how
PyTorch's threads are to wait for each other (native/threads.py).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from deepseek_v3.native.threads import choose_waiting

if TYPE_CHECKING:
    from deepseek_v3.config import ConfigError, ModelConfig
    from deepseek_v3.engine.generate import generate
    from deepseek_v3.model.cache import LatentCache
    from deepseek_v3.model.router import RoutingRecord
    from deepseek_v3.model.transformer import DeepseekV3
    from deepseek_v3.model_io import load, save

__version__ = "0.1.0"
__all__ = ["ConfigError", "DeepseekV3", "LatentCache", "ModelConfig", "RoutingRecord", "generate", "load", "save"]

_HOMES = {
    "ConfigError": "config",
    "ModelConfig": "config",
    "DeepseekV3": "model.transformer",
    "LatentCache": "model.cache",
    "RoutingRecord": "model.router",
    "generate": "engine.generate",
    "load": "model_io",
    "save": "model_io",
}

choose_waiting()  # now, for it must be before PyTorch is imported


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"deepseek_v3.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'deepseek_v3' has no attribute {name!r}")
