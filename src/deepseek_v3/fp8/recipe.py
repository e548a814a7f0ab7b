"""How the operands of one linear operation are quantized: the report's ways, and others to compare with.

    PLAIN             every linear operation but those below: FP32 scales
    AFTER_ATTENTION   its input also belongs to attention's backward pass: kept in E5M6, scales are powers of two
    DISPATCHED        a routed expert: what is sent to it is FP8 with powers of two, forward and backward

Source: arXiv:2412.19437, 3.3.2 and 3.3.3; that gradients in 128 x 128 blocks diverge: appendix B.2.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from deepseek_v3.fp8.quantize import scale_from_amax
from deepseek_v3.fp8.tiles import (
    COLUMNS,
    E4M3,
    E5M2,
    E5M6,
    GRADIENT_FLOOR,
    ROWS,
    SQUARES,
    Format,
    Tile,
    Tiled,
    bytes_of,
    encode,
    quantize,
    quantize_both,
)


@dataclass(frozen=True)
class Recipe:
    """Of one linear operation.

    Attributes:
        input_ue8m0, gradient_ue8m0, weight_ue8m0: whether scales of inputs, of gradients by outputs, of weights are
            powers of two.
        keep_e5m6: the input is kept for the backward pass in E5M6, not in the codes that were multiplied.
        gradients_in: the format of gradients by outputs; the report: E4M3.
        square_gradients: gradients by outputs in 128 x 128 blocks.
        whole_tensor: one scale a tensor.
        outliers: inputs and gradients are quantized beside a number of OUTLIER times their largest, which takes no part
            in the product itself: what it does to the scale is all that is seen of it.
    """

    input_ue8m0: bool = False
    gradient_ue8m0: bool = False
    weight_ue8m0: bool = False
    keep_e5m6: bool = False
    gradients_in: Format = E4M3
    square_gradients: bool = False
    whole_tensor: bool = False
    outliers: bool = False

    def inner(self) -> "Recipe":
        """The same within a network, where nothing is sent anywhere: FP32 scales."""
        return replace(self, input_ue8m0=False, gradient_ue8m0=False, keep_e5m6=False)

    def kernel_quantizes(self) -> bool:
        """Whether inputs are quantized as the kernel of the middle does it."""
        return not (self.whole_tensor or self.outliers)

    def is_as_reported(self) -> bool:
        """Whether gradients are E4M3 in tiles of 1 x 128."""
        return self.gradients_in is E4M3 and not (self.square_gradients or self.whole_tensor or self.outliers)


OUTLIER = 2.0**17  # about 10^6 times the mean magnitude: E4M3 spans 2^17.8 from its smallest number to its largest
PLAIN = Recipe()
AFTER_ATTENTION = Recipe(input_ue8m0=True, keep_e5m6=True)
DISPATCHED = Recipe(input_ue8m0=True, gradient_ue8m0=True)
VARIANTS = {
    "report": {},
    "whole-tensor": {"whole_tensor": True},
    "e5m2-gradients": {"gradients_in": E5M2},
    "square-gradients": {"square_gradients": True},
    "bf16-weights": {},  # the optimizer's part
    "outliers": {"outliers": True},
    "whole-tensor-outliers": {"whole_tensor": True, "outliers": True},
}  # what each changes of the three above


def vary(recipe: Recipe, variant: str) -> Recipe:
    """A recipe with what a variant changes of it."""
    return replace(recipe, **VARIANTS[variant])


def quantize_input(x_ND: Tensor, recipe: Recipe, tile: Tile = ROWS) -> Tiled:
    """Codes of an input for the forward product."""
    if recipe.outliers:
        plain = replace(recipe, outliers=False)
        return _take_out(quantize_input(_put_in(x_ND), plain, tile))
    if recipe.whole_tensor:
        return _quantize_whole(x_ND, tile, E4M3, ue8m0=recipe.input_ue8m0)
    return quantize(x_ND, tile, ue8m0=recipe.input_ue8m0)


def quantize_matrix(weight: Tensor, recipe: Recipe) -> Tiled:
    """Codes of a weight [..., out, in] in square blocks, which serve the forward product and the gradient of inputs."""
    make = _quantize_whole if recipe.whole_tensor else quantize
    return make(weight, SQUARES, E4M3, ue8m0=recipe.weight_ue8m0)


def keep_input(x_ND: Tensor, multiplied: Tiled, recipe: Recipe) -> Tiled:
    """What is kept of an input for the gradient of the weight."""
    return quantize(x_ND, ROWS, E5M6, ue8m0=True) if recipe.keep_e5m6 else multiplied


def quantize_gradient(dy_NO: Tensor, recipe: Recipe) -> tuple[Tiled, Tiled]:
    """Codes of a gradient by outputs, for the gradient of inputs and for that of the weight."""
    ue8m0, fmt = recipe.gradient_ue8m0, recipe.gradients_in
    if recipe.outliers:
        row, column = quantize_gradient(_put_in(dy_NO), replace(recipe, outliers=False))
        return _take_out(row), _take_out(column)
    if recipe.whole_tensor:
        return tuple(_quantize_whole(dy_NO, tile, fmt, ue8m0=ue8m0, floor=GRADIENT_FLOOR) for tile in (ROWS, COLUMNS))  # type: ignore[return-value]
    if recipe.square_gradients:
        square = quantize(dy_NO, SQUARES, fmt, ue8m0=ue8m0, floor=GRADIENT_FLOOR)
        return square, square
    if fmt is not E4M3:
        row, column = (quantize(dy_NO, tile, fmt, ue8m0=ue8m0, floor=GRADIENT_FLOOR) for tile in (ROWS, COLUMNS))
        return row, column
    return quantize_both(dy_NO, ue8m0=ue8m0, floor=GRADIENT_FLOOR)


def _put_in(x: Tensor) -> Tensor:
    """A copy with an outlier at the first place."""
    x = x.float().clone()
    if x.numel():
        x[0, 0] = OUTLIER * x.abs().amax()
    return x


def _take_out(q: Tiled) -> Tiled:
    """Let the first code be 0."""
    if q.code.numel():
        bytes_of(q.code)[0, 0] = 0
    return q


def _quantize_whole(x: Tensor, tile: Tile, fmt: Format, *, ue8m0: bool = False, floor: float = GRADIENT_FLOOR) -> Tiled:
    """One scale for all tiles of a matrix, or of each of a stack."""
    *lead, rows, columns = x.shape
    amax = x.float().abs().flatten(-2).amax(-1)[..., None, None] if x.numel() else x.new_zeros(*lead, 1, 1)
    scale = scale_from_amax(amax, ue8m0=ue8m0, floor=floor, largest=fmt.largest)
    counts = -(-rows // tile[0]), -(-columns // tile[1])
    return Tiled(encode(x.float() / scale, fmt), scale.expand(*lead, *counts).contiguous(), tile)
