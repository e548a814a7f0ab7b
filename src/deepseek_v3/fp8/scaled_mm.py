"""Products of codes by PyTorch's `scaled_mm`: operands and scales as cuBLAS wants them for blocks of 128.

    A   [M, K] by rows, scales [M, K / 128] by columns                                     BlockWise1x128
    B   [K, N] by columns, scales [N, K / 128] by columns                                  BlockWise1x128
        or of 128 x 128: [L, N / 128] by columns, L = K / 128 up to a multiple of 4        BlockWise128x128

What is ragged is filled with codes of 0: K and N up to multiples of 16, M of 4. The scales of B in square blocks once
took another number of rows in PyTorch and gave wrong numbers without a word, so its tests look at the very layout.

Letters: M, N rows of the operands, K the summed axis.
Source: PyTorch, torch.nn.functional.scaled_mm; cuBLAS 12.9, 1D and 2D block scaling.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from deepseek_v3.fp8.quantize import BLOCK
from deepseek_v3.fp8.tiles import Tiled, bytes_of

ROWS_OF_A, WIDTHS, ROWS_OF_SCALES = 4, 16, 4


def multiply_scaled(a: Tiled, b: Tiled, dtype: torch.dtype) -> Tensor:
    """a @ b.T, [M, N], in FP32 or BF16.

    Args:
        a, b: E4M3 codes [M, K] and [N, K] in tiles of 128 along K.
    """
    rows, columns = len(a.code), len(b.code)
    kind = F.ScalingType
    code_a, code_b = pad_codes(a.code, ROWS_OF_A), pad_codes(b.code, WIDTHS)
    if b.tile[0] == BLOCK:
        scale_b, kind_b = lay_square_scales(b.scale), kind.BlockWise128x128
    else:
        scale_b, kind_b = lay_row_scales(b, len(code_b)), kind.BlockWise1x128
    out = F.scaled_mm(
        code_a, code_b.T, lay_row_scales(a, len(code_a)), kind.BlockWise1x128, scale_b, kind_b, output_dtype=dtype
    )
    return out[:rows, :columns]


def pad_codes(code: Tensor, height: int) -> Tensor:
    """Codes by rows, with 0 up to a multiple of `height` rows and of 16 columns."""
    rows, columns = code.shape
    filled = F.pad(bytes_of(code).contiguous(), (0, -columns % WIDTHS, 0, -rows % height))
    return filled.view(code.dtype)


def lay_row_scales(q: Tiled, rows: int) -> Tensor:
    """One scale a row and tile, [rows, K / 128], a column after the other; those of padded rows are 0."""
    scale = q.scale.repeat_interleave(q.tile[0], 0)[: len(q.code)]
    return F.pad(scale.T, (0, rows - len(scale))).contiguous().T


def lay_square_scales(scale: Tensor) -> Tensor:
    """One scale a square, from [N / 128, K / 128] to [L, N / 128], a column after the other."""
    return F.pad(scale, (0, -scale.shape[1] % ROWS_OF_SCALES)).contiguous().T
