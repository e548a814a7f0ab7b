"""E4M3 with fine-grained scales: 128 x 128 blocks for weights, 1 x 128 tiles for activations.

    scale = max|x| / 448        code = cast(clamp(x / scale, -448, 448))        x ~ code * scale

The released tensors call the scale `weight_scale_inv`, and still it multiplies. A scale may be rounded up to a power of
two (`ue8m0`, as V3.1 stores them) before dividing, never after. A block of zeros has scale 1e-4 / 448: no 0 / 0.
Blocks at the edges are smaller than 128: their scale is that of what is there.

Letters: O rows (out), I columns (in), N tokens, D width.
Source: arXiv:2412.19437, section 3.3.2; the released kernels act_quant and weight_dequant.
"""

import torch
from torch import Tensor

from deepseek_v3.config_values import FP8_BLOCK as BLOCK
from deepseek_v3.native.build import have_kernels, run_kernel

CODE = torch.float8_e4m3fn
E4M3_MAX = 448.0
TINIEST_AMAX = 1e-4  # what a smaller maximum counts as: the released kernel's floor
E4M3_NAN = 0x7F  # and 0xFF: the only codes that are no numbers


def count_blocks(length: int) -> int:
    """Blocks of 128 that cover `length`, the last one perhaps in part."""
    return -(-length // BLOCK)


def scale_from_amax(
    amax: Tensor, *, ue8m0: bool = False, floor: float = TINIEST_AMAX, largest: float = E4M3_MAX
) -> Tensor:
    """FP32 scales that bring `amax` to the largest number of a format; powers of two, rounded up, if `ue8m0`.

    Args:
        floor: what a smaller maximum counts as. NaN and infinity stay: whatever they scale becomes NaN.
    """
    scale = amax.float().clamp_min(floor) / largest
    if not ue8m0:
        return scale
    mantissa, exponent = torch.frexp(scale)  # scale = mantissa * 2^exponent, mantissa in [0.5, 1)
    power = torch.ldexp(torch.ones_like(scale), torch.where(mantissa == 0.5, exponent - 1, exponent))
    return torch.where(scale.isfinite(), power, scale)


def cast_e4m3(x: Tensor) -> Tensor:
    """Round to E4M3, ties to even, saturating at +-448 (a cast alone may give NaN)."""
    return x.clamp(-E4M3_MAX, E4M3_MAX).to(CODE)


def block_scales(weight_OI: Tensor, *, ue8m0: bool = False) -> Tensor:
    """FP32 scale of every 128 x 128 block, [ceil(O / 128), ceil(I / 128)].

    Raises:
        ValueError: not a matrix, or a value that is not finite.
    """
    if weight_OI.dim() != 2:
        raise ValueError(f"a weight of shape {tuple(weight_OI.shape)} must be a matrix [out, in]")
    amax = block_amax(weight_OI, BLOCK)
    if not torch.isfinite(amax).all():
        raise ValueError("a weight with NaN or infinity has no FP8 form; find out where training broke")
    return scale_from_amax(amax, ue8m0=ue8m0)


def quantize_weight(weight_OI: Tensor, *, ue8m0: bool = False) -> tuple[Tensor, Tensor]:
    """Quantize a matrix by 128 x 128 blocks.

    Returns:
        code_OI: E4M3.
        scale: FP32, what each block is multiplied by to return (`weight_scale_inv`).
    Raises:
        ValueError: as `block_scales`.
    """
    scale = block_scales(weight_OI, ue8m0=ue8m0)
    return quantize_with_scales(weight_OI, scale), scale


def quantize_with_scales(weight_OI: Tensor, scale: Tensor) -> Tensor:
    """E4M3 codes of a matrix under given block scales."""
    code_OI = torch.empty(weight_OI.shape, dtype=CODE, device=weight_OI.device)
    if kernel := _kernel_for(weight_OI):
        run_kernel(f"quantize_{kernel}", weight_OI, scale.float().contiguous(), code_OI, *weight_OI.shape, BLOCK)
        return code_OI
    for i, scale_row in enumerate(scale):
        rows = slice(i * BLOCK, (i + 1) * BLOCK)
        code_OI[rows] = cast_e4m3(weight_OI[rows].float() / spread_scales(scale_row, weight_OI.shape[1]))
    return code_OI


def block_amax(x_OI: Tensor, height: int) -> Tensor:
    """FP32 largest magnitude of every block of height x 128; NaN where the block holds one."""
    rows, columns = x_OI.shape
    amax = torch.zeros(-(-rows // height), count_blocks(columns), device=x_OI.device)
    if kernel := _kernel_for(x_OI):
        run_kernel(f"amax_{kernel}", x_OI, amax, rows, columns, height)
        return amax
    for i in range(len(amax)):
        column_amax = x_OI[i * height : (i + 1) * height].abs().amax(0).float()
        amax[i] = torch.nn.functional.pad(column_amax, (0, -columns % BLOCK)).view(-1, BLOCK).amax(1)
    return amax


def _kernel_for(x: Tensor) -> str | None:
    """The suffix of the kernels that take this tensor, if any do."""
    suffix = {torch.bfloat16: "bf16", torch.float32: "fp32"}.get(x.dtype)
    return suffix if x.device.type == "cpu" and x.is_contiguous() and have_kernels() else None


def spread_scales(scale_row: Tensor, columns: int) -> Tensor:
    """Repeat the scales of one row of blocks for each of its columns."""
    return scale_row.repeat_interleave(BLOCK)[:columns]


def quantize_tiles(x_ND: Tensor, *, ue8m0: bool = False) -> tuple[Tensor, Tensor]:
    """Quantize activations by 1 x 128 tiles along the last axis, each with its own scale.

    Returns:
        code_ND: E4M3.
        scale: FP32 [..., D / 128].
    Raises:
        ValueError: the last axis is not a multiple of 128.
    """
    width = x_ND.shape[-1]
    if width % BLOCK:
        raise ValueError(f"width {width} is not a multiple of {BLOCK}; pad it to {width + -width % BLOCK}")
    if kernel := _kernel_for(x_ND):
        shape = (x_ND.numel() // width, width, 1)
        amax, code_ND = torch.empty(*x_ND.shape[:-1], width // BLOCK), torch.empty_like(x_ND, dtype=CODE)
        run_kernel(f"amax_{kernel}", x_ND, amax, *shape)
        scale = scale_from_amax(amax, ue8m0=ue8m0)
        run_kernel(f"quantize_{kernel}", x_ND, scale, code_ND, *shape)
        return code_ND, scale
    tiles = x_ND.unflatten(-1, (-1, BLOCK)).float()
    scale = scale_from_amax(tiles.abs().amax(-1), ue8m0=ue8m0)
    return cast_e4m3(tiles / scale[..., None]).flatten(-2), scale


def dequantize_tiles(code_ND: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Undo `quantize_tiles`: float32(code) * scale, rounded once to `dtype`."""
    return (code_ND.unflatten(-1, (-1, BLOCK)).float() * scale[..., None]).flatten(-2).to(dtype)


def find_nan_code(code_OI: Tensor) -> int | None:
    """Flat position of the first code that is no number, or None."""
    if not code_OI.numel():
        return None
    code_OI = code_OI.contiguous().view(torch.uint8)
    if code_OI.device.type == "cpu" and have_kernels():
        first = torch.empty(1, dtype=torch.int64)
        run_kernel("find_nan_e4m3", code_OI, first, code_OI.numel())
        return None if int(first) == code_OI.numel() else int(first)
    payload = code_OI.flatten() & E4M3_NAN
    return int(payload.argmax()) if int(payload.amax()) == E4M3_NAN else None
