"""What a kernel cannot see: shapes and dtypes, looked at before an address leaves Python.

Each costs a few comparisons of whole numbers. What PyTorch's operations would refuse is refused here too, with the
numbers; where a tensor lies and how is for `choice.py`.

Letters: N tokens, D width, F hidden width, E experts, A experts per token, V vocabulary, as in the operations.
"""

import torch
from torch import Tensor

from deepseek_v3.fp8.quantize import count_blocks
from deepseek_v3.ops.choice import CODE


def check_product(x: Tensor, weight_OI: Tensor, scale: Tensor | None = None) -> None:
    """Refuse a product whose inner widths differ."""
    if weight_OI.dim() != 2 or x.dim() == 0 or x.shape[-1] != weight_OI.shape[1]:
        raise ValueError(f"no product of {shape_of(x)} with a weight [out, in] of {shape_of(weight_OI)}")
    if x.device != weight_OI.device:  # PyTorch itself multiplies with memory that a weight on `meta` does not have
        raise ValueError(f"a product of rows on {x.device} with a weight on {weight_OI.device}")
    if scale is not None or weight_OI.dtype == CODE:
        check_scales(weight_OI, scale)


def check_scales(weight: Tensor, scale: Tensor | None, parts: int = 1) -> None:
    """Refuse E4M3 codes without the scales of their blocks, and scales that are not theirs."""
    if scale is None or weight.dtype != CODE or scale.dtype != torch.float32:
        kinds = f"{weight.dtype} with scales {'None' if scale is None else f'in {scale.dtype}'}"
        raise ValueError(f"a weight in FP8 is E4M3 codes with scales in FP32, not {kinds}")
    *stack, rows, columns = weight.shape
    needed = (*stack, *([parts] if parts > 1 else []), count_blocks(rows // parts), count_blocks(columns))
    if tuple(scale.shape) != needed:
        raise ValueError(f"scales of {shape_of(scale)} do not cover codes of {shape_of(weight)}; needed: {needed}")


def check_swiglu(x: Tensor, gate_FD: Tensor, up_FD: Tensor, down_DF: Tensor) -> None:
    """Refuse three matrices that are not one network, or not for rows of this width."""
    if gate_FD.dim() != 2 or gate_FD.shape != up_FD.shape or down_DF.shape != gate_FD.shape[::-1]:
        shapes = ", ".join(map(shape_of, (gate_FD, up_FD, down_DF)))
        raise ValueError(f"gate, up and down of {shapes} are not [F, D], [F, D] and [D, F]")
    if x.dim() == 0 or x.shape[-1] != gate_FD.shape[1]:
        raise ValueError(f"rows of {shape_of(x)} for a gate [F, D] of {shape_of(gate_FD)}")


def check_norm(x: Tensor, weight_D: Tensor) -> None:
    """Refuse a norm of another width."""
    if weight_D.dim() != 1 or x.dim() == 0 or x.shape[-1] != weight_D.shape[0]:
        raise ValueError(f"a norm with a weight of {shape_of(weight_D)} for rows of {shape_of(x)}")


def check_experts(x_ND: Tensor, weight_NA: Tensor, index_NA: Tensor, up_EFD: Tensor, down_EDF: Tensor) -> None:
    """Refuse stacks that are not of each other, tokens of another width or number, and an expert that is not there."""
    if up_EFD.dim() != 3 or up_EFD.shape[1] % 2:
        raise ValueError(f"gate above up of {shape_of(up_EFD)} is not [E, 2F, D]")
    experts, double, width = up_EFD.shape
    if down_EDF.shape != (experts, width, double // 2):
        raise ValueError(f"down of {shape_of(down_EDF)} is not {(experts, width, double // 2)}, as gate and up are")
    if x_ND.dim() != 2 or x_ND.shape[1] != width:
        raise ValueError(f"tokens of {shape_of(x_ND)} for experts of width {width}")
    if index_NA.dim() != 2 or len(index_NA) != len(x_ND) or weight_NA.shape != index_NA.shape:
        shapes = f"weights of {shape_of(weight_NA)} and choices of {shape_of(index_NA)}"
        raise ValueError(f"{shapes} for {len(x_ND)} tokens: both must be [N, A]")
    if index_NA.dtype != torch.int64:
        raise ValueError(f"choices of experts in {index_NA.dtype} must be in int64")
    if index_NA.numel() and not index_NA.is_meta:
        least, most = map(int, index_NA.aminmax())
        if least < 0 or most >= experts:
            raise IndexError(f"experts {least} to {most} are chosen of {experts}")


def check_choice(score_NE: Tensor, bias_E: Tensor | None, per_token: int, groups: int, kept: int) -> None:
    """Refuse scores that do not fall into the groups, a bias of another length, and more choices than there are."""
    if score_NE.dim() != 2 or (bias_E is not None and bias_E.shape != score_NE.shape[1:]):
        bias = "no bias" if bias_E is None else f"a bias of {shape_of(bias_E)}"
        raise ValueError(f"scores of {shape_of(score_NE)} with {bias}: they must be [N, E] and [E]")
    experts = score_NE.shape[1]
    if groups < 1 or experts % groups or not 1 <= kept <= groups or not 1 <= per_token <= experts // groups * kept:
        raise ValueError(f"{per_token} of {experts} experts in {kept} of {groups} groups cannot be chosen")


def check_attention(query_BSHW: Tensor, key_value_BTHE: Tensor, rope_BTR: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Refuse queries, keys and angles that are not of one attention."""
    shapes = ", ".join(map(shape_of, (query_BSHW, key_value_BTHE, rope_BTR, cos, sin)))
    if query_BSHW.dim() != 4 or key_value_BTHE.dim() != 4 or rope_BTR.dim() != 3:
        raise ValueError(f"queries, keys, rope keys, cosines and sines of {shapes}: the first must be [B, S, H, W]")
    batch, queries, heads, width = query_BSHW.shape
    rotary, keys = rope_BTR.shape[2], rope_BTR.shape[1]
    same = key_value_BTHE.shape[:3] == (batch, keys, heads) and rope_BTR.shape[0] == batch
    angles = (queries, rotary // 2) if cos.dim() == 2 else (batch, queries, rotary // 2)
    fits = rotary % 2 == 0 and rotary < width and width - rotary < key_value_BTHE.shape[3] and queries <= keys
    if not (same and fits and cos.shape == sin.shape == angles):
        raise ValueError(f"queries, keys, rope keys, cosines and sines of {shapes} do not belong together")


def check_labels(hidden_BSD: Tensor, labels_BS: Tensor) -> None:
    """Refuse labels that are not one for each row."""
    if labels_BS.dtype != torch.int64 or labels_BS.numel() * hidden_BSD.shape[-1] != hidden_BSD.numel():
        raise ValueError(f"{labels_BS.dtype} labels of {shape_of(labels_BS)} for rows of {shape_of(hidden_BSD)}")


def shape_of(x: Tensor) -> str:
    """A shape as it is read aloud: 64 x 1000."""
    return " x ".join(map(str, x.shape)) or "no axes"
