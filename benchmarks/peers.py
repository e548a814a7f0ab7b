"""The peer: the same weights in transformers' `DeepseekV3ForCausalLM`, in its fastest setting for the job."""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from deepseek_v3.config import ModelConfig
from deepseek_v3.model.transformer import DeepseekV3


class Setting(NamedTuple):
    """One way to run the peer.

    Attributes:
        attention: `sdpa` or `eager`.
        experts: `eager` (a loop), `batched_mm` or `grouped_mm`.
        compiled: by torch.compile, about a minute before the first step.
    """

    attention: str
    experts: str
    compiled: bool = False

    def __str__(self) -> str:
        return f"{self.attention}+{self.experts}" + ("+compiled" if self.compiled else "")


def make_peer(model: DeepseekV3, dtype: torch.dtype, setting: Setting):
    """Build the transformers model with the weights of `model`."""
    import transformers

    transformers.logging.set_verbosity_error()  # its own logger: the rest of the process keeps its warnings

    values = {k: v for k, v in model.config.to_dict().items() if k not in ("architectures", "torch_dtype")}
    config = transformers.DeepseekV3Config(**values)
    config._attn_implementation = setting.attention
    config._experts_implementation = setting.experts
    peer = transformers.DeepseekV3ForCausalLM(config)
    state = {k if k.startswith("lm_head") else f"model.{k}": v for k, v in model.state_dict().items()}
    missing, _ = peer.load_state_dict({k: v for k, v in state.items() if ".mtp." not in k}, strict=False)
    assert not [k for k in missing if f".layers.{model.config.num_hidden_layers}." not in k and "mtp" not in k], missing
    peer = peer.to(dtype)
    if setting.compiled:
        peer.compile(dynamic=False)
    return peer


def tell_compiling(name: str, run: Callable[[], object]) -> Callable[[], object]:
    """Return `run`; its first call, which compiles, says so and how long it took."""
    told = False

    def first() -> None:
        nonlocal told
        if not told:
            print(f"  compiling {name} ...", end="", flush=True)
            start = time.perf_counter()
        run()
        if not told:
            told = True
            print(f" {time.perf_counter() - start:.0f} s", flush=True)

    return first


def nano(dtype: torch.dtype = torch.float32, **changes) -> DeepseekV3:
    """The model that is timed, seeded, without MTP modules unless asked for: transformers trains none."""
    torch.manual_seed(0)
    return DeepseekV3(ModelConfig.preset("nano").replace(**{"num_nextn_predict_layers": 0, **changes})).to(dtype)
