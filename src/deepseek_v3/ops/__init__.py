"""Every operation of the model once: what it computes in PyTorch's operations beside the call of a kernel.

    import deepseek_v3.ops as ops
    y = ops.linear(x, weight_OI, scale)          whichever form serves; `choice.py` decides, and `explain` says why

Both forms compute the same, up to rounding. Weights may be E4M3 codes with the scales of their blocks beside them.
"""

from deepseek_v3.ops.attention import attend_absorbed, attend_and_project_in_fp8, attend_expanded
from deepseek_v3.ops.choice import absorbs
from deepseek_v3.ops.dense import linear, swiglu
from deepseek_v3.ops.experts import run_experts
from deepseek_v3.ops.explain import Form, explain
from deepseek_v3.ops.fp8_experts import Delivery, experts_in_fp8
from deepseek_v3.ops.fp8_linear import linear_in_fp8, swiglu_in_fp8
from deepseek_v3.ops.head_loss import sum_nats
from deepseek_v3.ops.normalization import rms_norm
from deepseek_v3.ops.rotation import Rotation, rotate_pairs
from deepseek_v3.ops.routing import choose_experts

__all__ = [
    "Delivery", "Form", "Rotation", "absorbs", "attend_absorbed", "attend_and_project_in_fp8", "attend_expanded",
    "choose_experts", "experts_in_fp8", "explain", "linear", "linear_in_fp8", "rms_norm", "rotate_pairs", "run_experts",
    "sum_nats", "swiglu", "swiglu_in_fp8",
]  # fmt: skip
