"""The kernels as functions on tensors: shapes are checked here, and grids and blocks are chosen.

Letters: R rows, C columns, M, N rows of the operands, K the summed axis, E experts, B rows of a step, H heads.
"""

# pyright: reportCallIssue=false, reportIndexIssue=false
import torch
import triton
from torch import Tensor

from deepseek_v3.kernels.latent_attention import attend_part_kernel, merge_parts_kernel
from deepseek_v3.kernels.multiply import multiply_experts_kernel, multiply_kernel
from deepseek_v3.kernels.quantize import quantize_both_kernel, quantize_rows_kernel

TILE, CODE = 128, torch.float8_e4m3fn
QUANTIZED_ROWS = 16  # of a program
STAGES, TOKENS = 4, 32  # tiles on their way; latents at once
BLOCKS = {128: (128, 128), 1: (64, 128)}  # of a product, by the height of B's scales: nothing spills
BAND = 8


def quantize_rows(x_RC: Tensor, floor: float, *, ue8m0: bool) -> tuple[Tensor, Tensor]:
    """Codes [R, C] and scales [R, ceil(C / 128)] of a matrix in FP32 or BF16."""
    rows, columns = x_RC.shape
    x_RC = x_RC.contiguous()
    code, scale = torch.empty_like(x_RC, dtype=CODE), x_RC.new_empty(rows, -(-columns // TILE), dtype=torch.float32)
    grid = (triton.cdiv(rows, QUANTIZED_ROWS), triton.cdiv(columns, TILE))
    quantize_rows_kernel[grid](x_RC, code, scale, rows, columns, floor, ue8m0, QUANTIZED_ROWS, num_warps=4)
    return code, scale


def quantize_both(x_RC: Tensor, floor: float, *, ue8m0: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `quantize_rows`, and codes [C, R] (a view: rows begin at multiples of 16) with scales [ceil(R / 128), C]."""
    rows, columns = x_RC.shape
    x_RC = x_RC.contiguous()
    code, scale = torch.empty_like(x_RC, dtype=CODE), x_RC.new_empty(rows, -(-columns // TILE), dtype=torch.float32)
    stride = -(-rows // 16) * 16
    turned = x_RC.new_empty(columns, stride, dtype=CODE)
    turned_scale = x_RC.new_empty(-(-rows // TILE), columns, dtype=torch.float32)
    grid = (triton.cdiv(rows, TILE), triton.cdiv(columns, TILE))
    quantize_both_kernel[grid](
        x_RC, code, scale, turned, turned_scale, rows, columns, stride, floor, ue8m0, num_warps=8
    )
    return code, scale, turned[:, :rows], turned_scale


def multiply(
    a: tuple[Tensor, Tensor, int],
    b: tuple[Tensor, Tensor, int],
    out_MN: Tensor,
    *,
    block: tuple[int, int] | None = None,
    promote: bool = True,
) -> Tensor:
    """Fill `out_MN` with a @ b.T.

    Args:
        a, b: codes [M, K] and [N, K] along K, scales [M / height, K / 128] (any strides), and that height, 1 or 128.
        promote: False leaves the sum to the tensor core and takes no scale: a control.
    """
    (code_a, scale_a, height_a), (code_b, scale_b, height_b) = a, b
    if height_a == TILE:  # one scale a row is all the same: the kernel has scales of single rows on the left
        scale_a = scale_a.repeat_interleave(TILE, 0)[: len(code_a)]
    rows, columns = out_MN.shape
    block = block or BLOCKS[height_b]
    grid = (triton.cdiv(rows, block[0]) * triton.cdiv(columns, block[1]),)
    multiply_kernel[grid](
        code_a, code_b, out_MN, scale_a, scale_b, rows, columns, code_a.shape[1], code_a.stride(0), code_b.stride(0),
        out_MN.stride(0), *scale_a.stride(), *scale_b.stride(), HIGH=block[0], WIDE=block[1], B_HEIGHT=height_b,
        PROMOTE=promote, BAND=BAND, num_warps=8 if block[0] * block[1] > 64 * 128 else 4, num_stages=STAGES,
    )  # fmt: skip
    return out_MN


def multiply_experts(
    a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], counts: list[int], out_MN: Tensor, *, high: int = 64
) -> Tensor:
    """Fill `out_MN` with each run of rows times the transpose of its expert's matrix.

    Args:
        a: codes [M, K] sorted by expert, scales [M, K / 128].
        b: codes [E, N, K], scales [E, N / 128, K / 128].
        counts: rows of each expert.
    """
    (code_a, scale_a), (code_b, scale_b) = a, b
    blocks, start = [], 0
    for expert, count in enumerate(counts):
        blocks += [(expert, row, start + count) for row in range(start, start + count, high)]
        start += count
    if not blocks:
        return out_MN
    expert, row, end = torch.tensor(blocks, dtype=torch.int32).T.contiguous().to(out_MN.device).unbind()
    columns = out_MN.shape[1]
    multiply_experts_kernel[(len(blocks), triton.cdiv(columns, 128))](
        code_a, code_b, out_MN, scale_a, scale_b, expert, row, end, columns, code_a.shape[1], code_a.stride(0),
        code_b.stride(1), out_MN.stride(0), code_b.stride(0), scale_b.stride(0), *scale_a.stride(),
        *scale_b.stride()[1:], HIGH=high, WIDE=128, B_HEIGHT=TILE, num_warps=4, num_stages=STAGES,
    )  # fmt: skip
    return out_MN


def attend_latents(
    query_BHW: Tensor, cache: Tensor, tables: Tensor, lengths_B: Tensor, latent: int, scale: float, *, parts: int = 8
) -> Tensor:
    """Attend with absorbed queries to the latents of each row, [B, H, C].

    Args:
        query_BHW: content in the latent's space beside the turned rope query.
        cache: [blocks, block_size, W], one layer.
        tables: int32 or int64 [B, most blocks of a row].
        lengths_B: latents of each row, at least 1.
        parts: a power of two: programs that share a row's latents.
    """
    batch, heads, width = query_BHW.shape
    part_out = query_BHW.new_empty(batch, heads, parts, latent, dtype=torch.float32)
    part_log = query_BHW.new_empty(batch, heads, parts, dtype=torch.float32)
    out_BHC = query_BHW.new_empty(batch, heads, latent)
    group = 16 if heads <= 16 else 64
    attend_part_kernel[(batch, triton.cdiv(heads, group), parts)](
        query_BHW.contiguous(), cache, tables, lengths_B, part_out, part_log, scale, heads, tables.stride(0),
        cache.shape[1], HEADS=group, TOKENS=TOKENS, C=latent, R=width - latent, PARTS=parts,
        num_warps=4 if group == 16 else 8, num_stages=2,
    )  # fmt: skip
    merge_parts_kernel[(batch * heads,)](part_out, part_log, out_BHC, C=latent, PARTS=parts, num_warps=4)
    return out_BHC
