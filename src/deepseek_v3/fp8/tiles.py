"""Matrices as codes in tiles with a scale each: 1 x 128, 128 x 1, 128 x 128, ragged at the edges. And tiles turned.

    scale = max|x| / largest of the format        code = encode(x / scale)        x ~ code * scale

What FP8 training makes of every operand, online: the scales come from the tensor at hand. Kernels of `native/` where
there is a compiler, Triton's of `kernels/` on a GPU, PyTorch's operations elsewhere, with the same bits; those of
chapter 05.

Letters: R rows, C columns of any matrix, N tokens, D width.
Source: arXiv:2412.19437, 3.3.2 and 3.3.3.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from deepseek_v3.fp8.forms import TRITON, why_no_form
from deepseek_v3.fp8.quantize import BLOCK, TINIEST_AMAX, cast_e4m3, scale_from_amax
from deepseek_v3.native.build import have_kernels, run_kernel

Tile = tuple[int, int]
ROWS, COLUMNS, SQUARES = (1, BLOCK), (BLOCK, 1), (BLOCK, BLOCK)  # V3 Fig. 7
KERNEL_TILES = {ROWS: 0, COLUMNS: 1, SQUARES: 2}  # the numbers by which the kernels know them
GRADIENT_FLOOR = 2.0**-100  # under max|x|: gradients are small, and 1e-4 would push whole tiles below 2^-9


class Format(NamedTuple):
    """A number format: what holds its codes, and its largest number."""

    name: str
    dtype: torch.dtype
    largest: float


E4M3 = Format("E4M3", torch.float8_e4m3fn, 448.0)
E5M2 = Format("E5M2", torch.float8_e5m2, 57344.0)
E5M6 = Format("E5M6", torch.int16, 65024.0)  # 12 bits, held in 16: the IEEE layout, FP16 without its last four bits


class Tiled(NamedTuple):
    """Codes [..., R, C], FP32 scales [..., R / rows of a tile, C / columns of a tile], and the tile."""

    code: Tensor
    scale: Tensor
    tile: Tile

    def part(self, *at: int | slice) -> "Tiled":
        """One matrix of a stack, or one of each."""
        return Tiled(self.code[at], self.scale[at], self.tile)

    def transposed(self) -> "Tiled":
        """The same codes and scales read the other way round; nothing is rounded."""
        return Tiled(self.code.mT, self.scale.mT, (self.tile[1], self.tile[0]))

    def rows(self, start: int, stop: int) -> "Tiled":
        """Some rows; of tiles one row high."""
        assert self.tile[0] == 1
        return Tiled(self.code[start:stop], self.scale[start:stop], self.tile)

    def picked(self, index: Tensor) -> "Tiled":
        """Rows by their index, copied; of tiles one row high."""
        assert self.tile[0] == 1
        code = bytes_of(self.code).index_select(0, index).view(self.code.dtype)
        return Tiled(code, self.scale.index_select(0, index), self.tile)


def bytes_of(code: Tensor) -> Tensor:
    """8-bit codes as bytes, which every operation of PyTorch takes."""
    return code.view(torch.uint8) if code.dtype.itemsize == 1 else code


def quantize(
    x: Tensor,
    tile: Tile = ROWS,
    fmt: Format = E4M3,
    *,
    ue8m0: bool = False,
    floor: float = TINIEST_AMAX,
) -> Tiled:
    """Quantize a matrix, or each of a stack, with one scale for each tile.

    Args:
        x: [..., R, C]. What is not finite makes its whole tile NaN, so that a step which meets it is skipped.
        ue8m0: scales are taken up to powers of two.
        floor: the least max|x| that a scale is made from.
    """
    *lead, rows, columns = x.shape
    counts = -(-rows // tile[0]), -(-columns // tile[1])
    if fmt is not E5M2 and kernels_serve(x) and x.dtype in (torch.float32, torch.bfloat16):
        x = x.contiguous()
        code = torch.empty(x.shape, dtype=fmt.dtype)
        scale = torch.empty(*lead, *counts)
        run_kernel(
            "fp8_quantize", int(x.dtype == torch.bfloat16), int(fmt is E5M6), x, x.numel() // max(1, rows * columns),
            rows, columns, KERNEL_TILES[tile], floor, int(ue8m0), code, scale, torch.get_num_threads(),
        )  # fmt: skip
        return Tiled(code, scale, tile)
    if tile == ROWS and fmt is E4M3 and not lead and _triton_serves(x):
        code, scale = _triton().quantize_rows(x, floor, ue8m0=ue8m0)
        return Tiled(code, scale, tile)
    wide = x.float()
    padded = F.pad(wide, (0, counts[1] * tile[1] - columns, 0, counts[0] * tile[0] - rows))
    amax = padded.unflatten(-1, (counts[1], tile[1])).unflatten(-3, (counts[0], tile[0])).abs().amax((-3, -1))
    scale = scale_from_amax(amax, ue8m0=ue8m0, floor=floor, largest=fmt.largest)
    return Tiled(encode(wide / spread(scale, tile, rows, columns), fmt), scale, tile)


def quantize_both(x_RC: Tensor, *, ue8m0: bool = False, floor: float = TINIEST_AMAX) -> tuple[Tiled, Tiled]:
    """Quantize a matrix by 1 x 128 and by 128 x 1, reading it once."""
    rows, columns = x_RC.shape
    if _triton_serves(x_RC):
        code, scale, turned, turned_scale = _triton().quantize_both(x_RC, floor, ue8m0=ue8m0)
        return Tiled(code, scale, ROWS), Tiled(turned.T, turned_scale, COLUMNS)
    if not (kernels_serve(x_RC) and x_RC.dtype in (torch.float32, torch.bfloat16)):
        return quantize(x_RC, ROWS, ue8m0=ue8m0, floor=floor), quantize(x_RC, COLUMNS, ue8m0=ue8m0, floor=floor)
    x_RC = x_RC.contiguous()
    code, turned = torch.empty(2, rows, columns, dtype=E4M3.dtype).unbind()
    scale, turned_scale = torch.empty(rows, -(-columns // BLOCK)), torch.empty(-(-rows // BLOCK), columns)
    run_kernel(
        "fp8_quantize_both", int(x_RC.dtype == torch.bfloat16), x_RC, rows, columns, floor, int(ue8m0), code, scale,
        turned, turned_scale, torch.get_num_threads(),
    )  # fmt: skip
    return Tiled(code, scale, ROWS), Tiled(turned, turned_scale, COLUMNS)


def turn(q: Tiled, index: Tensor | None = None, *, ue8m0: bool = False, floor: float = TINIEST_AMAX) -> Tiled:
    """From 1 x 128 tiles to E4M3 in 128 x 1: read back, and quantize once more along the other axis.

    With powers of two on both sides a value is rounded again only where its new code is subnormal.

    Args:
        index: int64, the rows to take, in their order; None for all.
    """
    assert q.tile == ROWS
    if not (kernels_serve(q.code) and q.code.dtype in (E4M3.dtype, E5M6.dtype)):
        return quantize(dequantize(q if index is None else q.picked(index)), COLUMNS, ue8m0=ue8m0, floor=floor)
    rows, columns = len(q.code) if index is None else len(index), q.code.shape[1]
    code, scale = torch.empty(rows, columns, dtype=E4M3.dtype), torch.empty(-(-rows // BLOCK), columns)
    run_kernel(
        "fp8_turn", int(q.code.dtype == E5M6.dtype), q.code.contiguous(), q.scale.contiguous(), index, rows, columns,
        floor, int(ue8m0), code, scale, torch.get_num_threads(),
    )  # fmt: skip
    return Tiled(code, scale, COLUMNS)


def dequantize(q: Tiled) -> Tensor:
    """Read the values back, FP32: each code's number times its scale, once."""
    return decode(q.code).float() * spread(q.scale, q.tile, *q.code.shape[-2:])


def spread(scale: Tensor, tile: Tile, rows: int, columns: int) -> Tensor:
    """Repeat each scale over its tile, cut to a shape."""
    return scale.repeat_interleave(tile[0], -2).repeat_interleave(tile[1], -1)[..., :rows, :columns]


def encode(x: Tensor, fmt: Format) -> Tensor:
    """Round FP32 numbers to codes, ties to even, saturating; NaN stays NaN."""
    if fmt is E4M3:
        return cast_e4m3(x)
    x = x.clamp(-fmt.largest, fmt.largest)
    return x.to(fmt.dtype) if fmt is E5M2 else _encode_e5m6(x)


def _encode_e5m6(x: Tensor) -> Tensor:
    """By the bits of FP32: 17 of the mantissa's 23 go; below 2^-14 the codes are multiples of 2^-20."""
    bits = x.float().contiguous().view(torch.int32)
    magnitude = bits & 0x7FFFFFFF
    normal = ((magnitude + 0xFFFF + ((magnitude >> 17) & 1)) >> 17) - ((127 - 15) << 6)
    step = torch.tensor(8.0, device=x.device)
    subnormal = (x.abs().float() + step).view(torch.int32) - step.view(torch.int32)
    number = torch.where(magnitude < ((127 - 14) << 23), subnormal, normal)
    number = torch.where(x.isnan(), 0x7E0, number)
    return (number | torch.where(bits < 0, 0x800, 0)).to(torch.int16)


def decode(code: Tensor) -> Tensor:
    """The numbers of codes of any format; exact."""
    if code.dtype != E5M6.dtype:
        return code.float()
    return (code << 4).view(torch.float16).float()


def _triton_serves(x: Tensor) -> bool:
    """Whether the quantizers of `kernels/` take a matrix: on a GPU, in FP32 or BF16."""
    known = x.is_cuda and x.dtype in (torch.float32, torch.bfloat16) and x.numel() > 0
    return known and why_no_form(TRITON, "cuda") is None


def _triton() -> Any:
    from deepseek_v3.kernels import launch  # Triton takes a second to import, and most machines have none

    return launch


def kernels_serve(x: Tensor) -> bool:
    """Whether the kernels of FP8 training take a tensor: on a CPU, with a compiler, outside of torch.compile."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and have_kernels()
