"""The peer: the same weights in transformers' `DeepseekV3ForCausalLM`, in its fastest setting for the job."""

import logging
import warnings

import torch

from deepseek_v3.config import ModelConfig
from deepseek_v3.model.transformer import DeepseekV3


def make_peer(model: DeepseekV3, dtype: torch.dtype, *, attention: str, experts: str):
    """Build the transformers model with the weights of `model`.

    Args:
        attention: `sdpa` or `eager`.
        experts: `eager` (a loop), `batched_mm` or `grouped_mm`.
    """
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    import transformers

    values = {k: v for k, v in model.config.to_dict().items() if k not in ("architectures", "torch_dtype")}
    config = transformers.DeepseekV3Config(**values)
    config._attn_implementation = attention
    config._experts_implementation = experts
    peer = transformers.DeepseekV3ForCausalLM(config)
    state = {k if k.startswith("lm_head") else f"model.{k}": v for k, v in model.state_dict().items()}
    missing, _ = peer.load_state_dict({k: v for k, v in state.items() if ".mtp." not in k}, strict=False)
    assert not [k for k in missing if f".layers.{model.config.num_hidden_layers}." not in k and "mtp" not in k], missing
    return peer.to(dtype)


def nano(dtype: torch.dtype = torch.float32, **changes) -> DeepseekV3:
    """The model that is timed, seeded, without MTP modules unless asked for: transformers trains none."""
    torch.manual_seed(0)
    return DeepseekV3(ModelConfig.preset("nano").replace(**{"num_nextn_predict_layers": 0, **changes})).to(dtype)
