"""Products of codes on a GPU, promoted to FP32 every 128 of the summed axis; for one matrix and for sorted experts.

    Y[m, n] = sum over tiles t of  (scale_A[m, t] * scale_B[n, t]) * sum over k in t of A[m, k] * B[n, k]

The inner sum is one `tl.dot` into a sum of its own: four instructions of a tensor core that keeps 14 bits. Its result
goes to FP32 registers, where the scales meet it. Both operands lie along k, as FP8 units want them. The scales of B
belong to blocks of 128 rows (a weight), or to single rows (a gradient of a weight: `B_HEIGHT` 1).

Letters: M, N rows of A and B, K the summed axis, E experts.
Source: arXiv:2412.19437, 3.3.2 and Fig. 7(b).
"""

import triton
import triton.language as tl

TILE = tl.constexpr(128)  # of the summed axis: what is promoted together, and what shares a scale


@triton.jit
def scaled_tiles(
    a, b, a_scale, b_scale, row, column, rows_end, columns, k_width, a_stride, b_stride,
    a_scale_across, a_scale_along, b_scale_across, b_scale_along,
    HIGH: tl.constexpr, WIDE: tl.constexpr, B_HEIGHT: tl.constexpr, PROMOTE: tl.constexpr,
):  # fmt: skip
    """The FP32 sums of a block of HIGH x WIDE outputs; PROMOTE false leaves all to the tensor core, as a control."""
    k = tl.arange(0, TILE)
    row_inside, column_inside = row[:, None] < rows_end, column[None, :] < columns
    a_at = a + row[:, None] * a_stride + k[None, :]
    b_at = b + column[None, :] * b_stride + k[:, None]
    a_factor_at = a_scale + row * a_scale_across
    b_factor_at = b_scale + (column // B_HEIGHT) * b_scale_across
    total = tl.zeros((HIGH, WIDE), tl.float32)
    for tile in range(tl.cdiv(k_width, TILE)):
        left = k_width - tile * TILE
        a_part = tl.load(a_at, mask=row_inside & (k[None, :] < left), other=0.0)
        b_part = tl.load(b_at, mask=column_inside & (k[:, None] < left), other=0.0)
        if PROMOTE:
            a_factor = tl.load(a_factor_at + tile * a_scale_along, mask=row < rows_end, other=0.0)
            b_factor = tl.load(b_factor_at + tile * b_scale_along, mask=column < columns, other=0.0)
            total += tl.dot(a_part, b_part) * (a_factor[:, None] * b_factor[None, :])
        else:
            total = tl.dot(a_part, b_part, total)
        a_at += TILE
        b_at += TILE
    return total


@triton.jit
def multiply_kernel(
    a, b, c, a_scale, b_scale, rows, columns, k_width, a_stride, b_stride, c_stride,
    a_scale_across, a_scale_along, b_scale_across, b_scale_along,
    HIGH: tl.constexpr, WIDE: tl.constexpr, B_HEIGHT: tl.constexpr, PROMOTE: tl.constexpr, BAND: tl.constexpr,
):  # fmt: skip
    """One block of outputs a program, in bands of BAND blocks of rows so that neighbours share what they read."""
    high, wide = tl.cdiv(rows, HIGH), tl.cdiv(columns, WIDE)
    program = tl.program_id(0)
    band = program // (BAND * wide)
    band_height = tl.minimum(high - band * BAND, BAND)
    inside = program - band * BAND * wide
    row = ((band * BAND + inside % band_height) * HIGH + tl.arange(0, HIGH)).to(tl.int64)
    column = (inside // band_height * WIDE + tl.arange(0, WIDE)).to(tl.int64)
    total = scaled_tiles(
        a, b, a_scale, b_scale, row, column, rows, columns, k_width, a_stride, b_stride,
        a_scale_across, a_scale_along, b_scale_across, b_scale_along, HIGH, WIDE, B_HEIGHT, PROMOTE,
    )  # fmt: skip
    at = c + row[:, None] * c_stride + column[None, :]
    tl.store(at, total.to(c.dtype.element_ty), mask=(row[:, None] < rows) & (column[None, :] < columns))


@triton.jit
def multiply_experts_kernel(
    a, b, c, a_scale, b_scale, block_expert, block_row, block_end, columns, k_width, a_stride, b_stride, c_stride,
    b_expert, b_scale_expert, a_scale_across, a_scale_along, b_scale_across, b_scale_along,
    HIGH: tl.constexpr, WIDE: tl.constexpr, B_HEIGHT: tl.constexpr,
):  # fmt: skip
    """Rows sorted by expert, each by its expert's matrix; a list says which rows of which expert a block has.

    An expert without rows has no block. b [E, N, K], b_scale [E, ...]: `b_expert` and `b_scale_expert` apart.
    """
    block = tl.program_id(0)
    expert = tl.load(block_expert + block).to(tl.int64)
    start, end = tl.load(block_row + block), tl.load(block_end + block)
    row = (start + tl.arange(0, HIGH)).to(tl.int64)
    column = (tl.program_id(1) * WIDE + tl.arange(0, WIDE)).to(tl.int64)
    total = scaled_tiles(
        a, b + expert * b_expert, a_scale, b_scale + expert * b_scale_expert, row, column, end, columns, k_width,
        a_stride, b_stride, a_scale_across, a_scale_along, b_scale_across, b_scale_along, HIGH, WIDE, B_HEIGHT, True,
    )  # fmt: skip
    at = c + row[:, None] * c_stride + column[None, :]
    tl.store(at, total.to(c.dtype.element_ty), mask=(row[:, None] < end) & (column[None, :] < columns))
