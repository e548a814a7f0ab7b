"""Quantizers on a GPU: 1 x 128 tiles, and both directions of a matrix from one reading.

    scale = max|x| / 448, perhaps up to a power of two        code = E4M3(clamp(x / scale))

The divisions are rounded to nearest, so codes and scales are those of chapter 05, bit for bit. The clamp comes before
the cast: what a cast does beyond 448 differs between devices. Codes for the gradient of a weight are stored with the
tokens side by side ([C, R]): FP8 units read both operands along the summed axis.

Letters: R rows, C columns.
"""

import triton
import triton.language as tl

LARGEST = tl.constexpr(448.0)
TILE = tl.constexpr(128)
INFINITY = tl.constexpr(0x7F800000)  # its bits; those of NaN are larger


@triton.jit
def scale_of(amax, floor, UE8M0: tl.constexpr):
    """The scale that brings a maximum to 448; infinity and NaN stay what they are, so that the tile becomes NaN."""
    scale = tl.math.div_rn(tl.where(amax < floor, floor, amax), tl.full(amax.shape, LARGEST, tl.float32))
    if UE8M0:  # the exponent, one more if anything stands behind it
        bits = scale.to(tl.int32, bitcast=True)
        power = ((bits + 0x7FFFFF) & 0x7F800000).to(tl.float32, bitcast=True)
        scale = tl.where(bits < INFINITY, power, scale)
    return scale


@triton.jit
def largest_of(x, AXIS: tl.constexpr):
    """max|x| along an axis, NaN if there is one: by the bits of magnitudes, whose order is that of the numbers."""
    bits = tl.abs(x).to(tl.int32, bitcast=True)
    return tl.max(bits, AXIS).to(tl.float32, bitcast=True)


@triton.jit
def encode(x, scale):
    """Codes of numbers under scales of the same shape."""
    scaled = tl.math.div_rn(x, scale)
    clamped = tl.minimum(tl.maximum(scaled, -LARGEST), LARGEST)
    return tl.where(scaled == scaled, clamped, scaled).to(tl.float8e4nv)  # the clamp alone would hide a NaN


@triton.jit
def quantize_rows_kernel(x, code, scale, rows, columns, floor, UE8M0: tl.constexpr, HIGH: tl.constexpr):
    """HIGH rows by one tile of 128 columns a program; x [R, C], code [R, C], scale [R, ceil(C / 128)]."""
    row = tl.program_id(0).to(tl.int64) * HIGH + tl.arange(0, HIGH)
    tile = tl.program_id(1)
    column = tile * TILE + tl.arange(0, TILE)
    at = row[:, None] * columns + column[None, :]
    inside = (row[:, None] < rows) & (column[None, :] < columns)
    number = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    factor = scale_of(largest_of(number, 1), floor, UE8M0)
    tl.store(scale + row * tl.cdiv(columns, TILE) + tile, factor, mask=row < rows)
    tl.store(code + at, encode(number, tl.broadcast_to(factor[:, None], (HIGH, TILE))), mask=inside)


@triton.jit
def quantize_both_kernel(
    x, code, scale, turned, turned_scale, rows, columns, turned_stride, floor, UE8M0: tl.constexpr
):
    """One block of 128 x 128 a program; turned [C, turned_stride], turned_scale [ceil(R / 128), C]."""
    row = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    column = tl.program_id(1).to(tl.int64) * TILE + tl.arange(0, TILE)
    at = row[:, None] * columns + column[None, :]
    inside = (row[:, None] < rows) & (column[None, :] < columns)
    number = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    along = scale_of(largest_of(number, 1), floor, UE8M0)
    across = scale_of(largest_of(number, 0), floor, UE8M0)
    tl.store(scale + row * tl.cdiv(columns, TILE) + tl.program_id(1), along, mask=row < rows)
    tl.store(turned_scale + tl.program_id(0) * columns + column, across, mask=column < columns)
    tl.store(code + at, encode(number, tl.broadcast_to(along[:, None], (TILE, TILE))), mask=inside)
    upright = tl.trans(encode(number, tl.broadcast_to(across[None, :], (TILE, TILE))))
    at = column[:, None] * turned_stride + row[None, :]
    tl.store(turned + at, upright, mask=(column[:, None] < columns) & (row[None, :] < rows))
