"""Block and tile quantization against golden numbers, an independent table of E4M3, and the stated formula."""

import ml_dtypes
import numpy as np
import pytest
import torch

from deepseek_v3.fp8 import quantize
from deepseek_v3.fp8.decode import dequantize_weight
from deepseek_v3.fp8.quantize import (
    block_scales,
    cast_e4m3,
    dequantize_tiles,
    quantize_tiles,
    quantize_weight,
    quantize_with_scales,
    scale_from_amax,
)
from deepseek_v3.native.build import have_kernels


def table() -> np.ndarray:
    """Value of every code, by the formula: 2^(e-7) (1 + m/8), and 2^-6 m/8 below."""
    code = np.arange(256)
    sign, exponent, mantissa = 1 - 2.0 * (code >> 7), code >> 3 & 15, code & 7
    value = np.where(exponent == 0, 2.0**-6 * mantissa / 8, 2.0 ** (exponent - 7.0) * (1 + mantissa / 8))
    value = sign * value
    value[(code & 0x7F) == 0x7F] = np.nan
    return value


ALL_CODES = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)


def test_all_256_codes_have_their_value():
    assert np.array_equal(ALL_CODES.float().numpy(), table().astype(np.float32), equal_nan=True)
    assert np.array_equal(np.arange(256).astype(np.uint8).view(ml_dtypes.float8_e4m3fn).astype(float), table(), True)


def test_every_bf16_value_is_cast_as_the_nearest_code():
    """Ties to even; beyond 448 it saturates; compared with ml_dtypes, which gives NaN there."""
    x = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    x = x[torch.isfinite(x)]
    expected = x.float().numpy().clip(-448, 448).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    assert np.array_equal(cast_e4m3(x.float()).view(torch.uint8).numpy(), expected)


@pytest.mark.parametrize(
    ("value", "rounded"),
    [
        (0.3, 0.3125),
        (0.1, 0.1015625),
        (1 / 3, 0.34375),
        (17.0, 16.0),
        (19.0, 20.0),
        (449.0, 448.0),
        (1e30, 448.0),
        (-500.0, -448.0),
        (0.0005, 0.0),
        (2.0**-10, 0.0),
        (0.00098, 2.0**-9),
    ],
)
def test_golden_roundings(value, rounded):
    assert cast_e4m3(torch.tensor([value])).float().item() == rounded


GOLDEN = [0.001, 0.0025, -0.004, 0.3]


def test_the_golden_tile():
    x = torch.zeros(1, 128)
    x[0, :4] = torch.tensor(GOLDEN)
    code, scale = quantize_tiles(x)
    assert scale.item() == pytest.approx(6.696429e-4, rel=1e-6)
    assert code.float()[0, :4].tolist() == [1.5, 3.75, -6, 448]
    back = dequantize_tiles(code, scale)[0, :4].tolist()
    assert back == pytest.approx([0.00100446, 0.00251116, -0.00401786, 0.3], abs=2e-8)  # float32 at 0.3


def test_the_golden_tile_with_a_power_of_two():
    x = torch.zeros(1, 128)
    x[0, :4] = torch.tensor(GOLDEN)
    code, scale = quantize_tiles(x, ue8m0=True)
    assert scale.item() == 2.0**-10
    assert code.float()[0, :4].tolist() == [1, 2.5, -4, 320]
    back = dequantize_tiles(code, scale)[0, :4].tolist()
    assert back == pytest.approx([0.00097656, 0.00244141, -0.00390625, 0.3125], abs=1e-8)


def test_power_of_two_scales_are_rounded_up_and_stay_when_exact():
    amax = torch.tensor([448.0, 449.0, 447.0, 448 * 2.0**-7, 1e3, 3e-3])
    scale = scale_from_amax(amax, ue8m0=True)
    assert scale[:4].tolist() == [1.0, 2.0, 1.0, 2.0**-7]
    assert torch.all(amax / scale <= 448)
    assert torch.all(amax / scale > 224)


def test_zeros_stay_zeros():
    code, scale = quantize_weight(torch.zeros(131, 257))
    assert torch.all(code.view(torch.uint8) == 0)
    assert torch.all(torch.isfinite(scale) & (scale > 0))
    assert torch.all(dequantize_weight(code, scale) == 0)
    tile, tile_scale = quantize_tiles(torch.zeros(3, 128))
    assert torch.all(dequantize_tiles(tile, tile_scale) == 0)


@pytest.mark.parametrize("shape", [(1, 1), (127, 129), (128, 128), (257, 131), (576, 300), (5, 1021)])
@pytest.mark.parametrize("ue8m0", [False, True])
def test_a_block_is_scaled_by_its_own_maximum(shape, ue8m0):
    torch.manual_seed(0)
    weight = torch.randn(shape) * torch.rand(shape[0], 1)
    code, scale = quantize_weight(weight, ue8m0=ue8m0)
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            rows, columns = slice(128 * i, 128 * (i + 1)), slice(128 * j, 128 * (j + 1))
            block = weight[rows, columns]
            expected = scale_from_amax(block.abs().max(), ue8m0=ue8m0)
            assert scale[i, j] == expected
            assert torch.equal(code[rows, columns].float(), cast_e4m3(block / expected).float())
    back = dequantize_weight(code, scale, torch.float32)
    step = scale.repeat_interleave(128, 0)[: shape[0]].repeat_interleave(128, 1)[:, : shape[1]]
    assert torch.all((back - weight).abs() <= torch.maximum(weight.abs() / 16, step * 2.0**-10) * (1 + 1e-6))


@pytest.mark.skipif(not have_kernels(), reason="no C++ compiler here")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_kernels_quantize_as_pytorch_does_bit_for_bit(monkeypatch, dtype):
    """Every finite BF16 value, so ties and subnormals; FP32 values between them; tiles with NaN and infinity."""
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    finite = every[torch.isfinite(every)].to(dtype)
    if dtype == torch.float32:
        finite = torch.cat([finite, finite * (1 + 2.0**-9), torch.randn(2**16)])
    finite = finite[torch.isfinite(finite)]
    shuffled = finite[torch.randperm(len(finite), generator=torch.Generator().manual_seed(0))]
    weights = [finite[: 2 * 131 * 199].view(-1, 199), shuffled[: 300 * 200].view(300, 200), shuffled[:7].view(7, 1)]
    tiles = torch.cat([finite[: 128 * 300], torch.tensor([float("nan"), -1.0, float("inf")] * 128).to(dtype)])
    unit = torch.ones(3, 2)  # scales of 1: the values themselves are rounded

    def forms() -> list[torch.Tensor]:
        found = [tensor for weight in weights for tensor in quantize_weight(weight)]
        found += quantize_tiles(tiles.view(3, -1, 128)) + quantize_tiles(tiles.view(-1, 128), ue8m0=True)
        return [*found, quantize_with_scales(finite[: 300 * 200].view(300, 200), unit)]

    compiled = forms()
    monkeypatch.setattr(quantize, "have_kernels", lambda: False)
    for ours, plain in zip(compiled, forms(), strict=True):
        assert ours.dtype == plain.dtype
        assert torch.equal(ours.float().isnan(), plain.float().isnan())
        assert torch.equal(ours.float().nan_to_num(3.0), plain.float().nan_to_num(3.0))
        assert torch.equal(
            ours.float().signbit() | ours.float().isnan(), plain.float().signbit() | plain.float().isnan()
        )


def test_quantizing_what_was_dequantized_in_fp32_changes_nothing():
    torch.manual_seed(0)
    code, scale = quantize_weight(torch.randn(300, 200))
    again = quantize_with_scales(dequantize_weight(code, scale, torch.float32), scale)
    assert torch.equal(again.view(torch.uint8), code.view(torch.uint8))


def test_refusals_name_the_numbers():
    with pytest.raises(ValueError, match="must be a matrix"):
        block_scales(torch.ones(3))
    with pytest.raises(ValueError, match="NaN or infinity"):
        block_scales(torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(ValueError, match=r"scales of shape \(2, 1\) do not cover 128 x 129"):
        dequantize_weight(torch.zeros(128, 129).to(torch.float8_e4m3fn), torch.ones(2, 1))
    with pytest.raises(ValueError, match="pad it to 256"):
        quantize_tiles(torch.ones(2, 130))
