"""The three products of FP8 training, each with tiles along the axis that it sums over.

    Fprop   Y  = X  W^T      X in 1 x 128 along its width,   W in 128 x 128       sums over in-features
    Dgrad   dX = dY W        dY in 1 x 128 along its width,  W the same codes     sums over out-features
    Wgrad   dW = dY^T X      dY and X in 128 x 1 along N                          sums over tokens

    Y[m, n] = sum over tiles t of  (scale_A[m, t] * scale_B[n, t]) * sum over k in t of A[m, k] * B[n, k]

One signature for all three, whatever computes it (`forms.py` decides). PyTorch's operations sum a tile exactly, in
FP64: bit for bit what chapter 05 computes. The C++ kernel sums a tile in FP32 and is otherwise the same, so the two
agree bit for bit where FP32 holds a tile's sum, and to an error of a few 2^-24 of |A| |B|^T elsewhere, far below the
rounding to E4M3. So does Triton's kernel but for the tensor core's own sum of 128, which keeps fewer bits on Hopper.

Letters: M, N rows of the operands, K the summed axis, E experts.
Source: arXiv:2412.19437, 3.3.1, 3.3.2, Fig. 6 and 7.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from deepseek_v3.fp8.forms import EXACT, NATIVE, SCALED_MM, TRITON, which_form
from deepseek_v3.fp8.quantize import BLOCK
from deepseek_v3.fp8.scaled_mm import multiply_scaled
from deepseek_v3.fp8.tiles import E4M3, E5M2, Tiled, decode
from deepseek_v3.native.build import run_kernel


def multiply_tiles(
    a: Tiled, b: Tiled, dtype: torch.dtype = torch.float32, out: Tensor | None = None, *, form: str | None = None
) -> Tensor:
    """a @ b.T of two matrices in tiles of the same width along the last axis.

    Args:
        a, b: codes [M, K] and [N, K], either of them perhaps a transposed view.
        dtype: FP32, or BF16, to which the FP32 sum over tiles is rounded once.
        out: contiguous [M, N] of that dtype, to be filled.
        form: of `forms.py`; by default the one that serves on the device of `a`.
    Raises:
        ValueError: the summed axes differ, or their tiles do.
    """
    if a.code.dim() != 2 or b.code.dim() != 2 or a.code.shape[1] != b.code.shape[1] or a.tile[1] != b.tile[1]:
        raise ValueError(
            f"a {tuple(a.code.shape)} in tiles of {a.tile} and b {tuple(b.code.shape)} in tiles of {b.tile} must agree "
            "on the summed (last) axis, in length and in tile width"
        )
    if out is None:
        out = torch.empty(a.code.shape[0], b.code.shape[0], dtype=dtype, device=a.code.device)
    if 0 in (*a.code.shape, *b.code.shape):
        return out.zero_()
    form = form or form_for(a, b)
    if form == NATIVE:
        _multiply_natively(a, b, out)
    elif form == TRITON:
        from deepseek_v3.kernels import launch  # Triton takes a second to import, and most machines have none

        launch.multiply(_along_the_sum(a), _along_the_sum(b), out)
    elif form == SCALED_MM:
        out.copy_(multiply_scaled(a, b, out.dtype))
    else:
        out.copy_(_multiply_exactly(a, b))
    return out


def multiply_sorted(a: Tiled, b: Tiled, counts: Sequence[int], out: Tensor, *, form: str | None = None) -> Tensor:
    """Rows sorted by expert, each by the transpose of its expert's matrix; an expert without rows does nothing.

    Args:
        a: codes [M, K] in tiles of 1 x 128.
        b: codes [E, N, K] in tiles of 128 x 128.
        counts: rows of each expert.
        out: contiguous [M, N], FP32 or BF16, to be filled.
    """
    form = form or form_for(a, b.part(0))
    if form == TRITON and len(out):
        from deepseek_v3.kernels import launch  # as above

        (code_a, scale_a, _), (code_b, scale_b, _) = _along_the_sum(a), _along_the_sum(b)
        return launch.multiply_experts((code_a, scale_a), (code_b, scale_b), list(counts), out)
    start = 0
    for expert, count in enumerate(counts):
        if count:
            rows = a.rows(start, start + count)
            multiply_tiles(rows, b.part(expert), out.dtype, out[start : start + count], form=form)
        start += count
    return out


def form_for(a: Tiled, b: Tiled) -> str:
    """The form that takes these operands: that of their device, if it knows their format and tiles."""
    form, kinds = which_form(a.code.device.type), {a.code.dtype, b.code.dtype}
    knows = form == NATIVE or kinds == {E4M3.dtype}
    return form if knows and a.tile[1] == BLOCK else EXACT


def _multiply_natively(a: Tiled, b: Tiled, out: Tensor) -> None:
    sizes = (*out.shape, a.code.shape[1])
    left, right = _as_operand(a), _as_operand(b)
    run_kernel("fp8_multiply", *left, *right, int(out.dtype == torch.bfloat16), out, *sizes, torch.get_num_threads())


def _as_operand(q: Tiled) -> tuple[Tensor | int, ...]:
    """The arguments by which a kernel finds codes and scales; E5M2, which it does not know, as numbers in BF16."""
    code = q.code.to(torch.bfloat16) if q.code.dtype == E5M2.dtype else q.code
    if 1 not in code.stride():
        code = code.contiguous()
    return code, q.scale, int(code.dtype == torch.bfloat16), *code.stride(), q.tile[0], *q.scale.stride()


def _along_the_sum(q: Tiled) -> tuple[Tensor, Tensor, int]:
    """Codes that lie along the summed axis, as FP8 units read them; scales, and the rows that share one."""
    code = q.code if q.code.stride(-1) == 1 else q.code.contiguous()
    return code, q.scale, q.tile[0]


def _multiply_exactly(a: Tiled, b: Tiled) -> Tensor:
    """In PyTorch's operations; FP64 holds the sum of a tile of products exactly, so their order does not matter."""
    wide_a, wide_b = decode(a.code).double(), decode(b.code).double()
    scale_a = a.scale.repeat_interleave(a.tile[0], 0)[: len(wide_a)]
    scale_b = b.scale.repeat_interleave(b.tile[0], 0)[: len(wide_b)]
    sum_MN = torch.zeros(len(wide_a), len(wide_b), device=wide_a.device)
    for t, k in enumerate(range(0, wide_a.shape[1], a.tile[1])):
        inner = wide_a[:, k : k + a.tile[1]] @ wide_b[:, k : k + a.tile[1]].T
        sum_MN += inner.float() * (scale_a[:, t, None] * scale_b[:, t])  # V3 Fig. 7
    return sum_MN
