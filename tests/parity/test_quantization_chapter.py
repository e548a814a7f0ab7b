"""Chapter 05 against PyTorch's own 8-bit types, and against the package's quantizer bit for bit."""

import fine_grained_quantization as fg
import mixed_precision as mp
import numpy as np
import pytest
import torch
from float_formats import BF16, E4M3, E5M2, FP16, OVERFLOW_TO_NAN, SATURATE, decode, encode, round_to

from deepseek_v3.fp8 import quantize as package
from deepseek_v3.fp8.decode import dequantize_weight

TYPES = {"E4M3": torch.float8_e4m3fn, "E5M2": torch.float8_e5m2}
EIGHT_BITS = pytest.mark.parametrize("fmt", [E4M3, E5M2], ids=lambda f: f.name)


def torch_codes(x: np.ndarray, fmt) -> np.ndarray:
    return torch.from_numpy(np.ascontiguousarray(x)).to(TYPES[fmt.name]).view(torch.uint8).numpy()


def every_16_bit_number() -> np.ndarray:
    bits = torch.arange(65536, dtype=torch.int32).to(torch.uint16)
    return torch.cat([bits.view(torch.bfloat16).float(), bits.view(torch.float16).float()]).numpy()


def assert_same(got, want, fmt):
    both_nan = np.isnan(decode(got, fmt)) & np.isnan(decode(want, fmt))
    assert not ((got != want) & ~both_nan).any()


@EIGHT_BITS
def test_every_code_means_the_same_in_pytorch(fmt):
    theirs = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(TYPES[fmt.name]).double().numpy()
    np.testing.assert_array_equal(decode(np.arange(256), fmt), theirs)


@EIGHT_BITS
@pytest.mark.parametrize("policy", [SATURATE, OVERFLOW_TO_NAN])
def test_every_16_bit_number_in_range_is_cast_as_pytorch_does(fmt, policy):
    x = every_16_bit_number()
    x = x[~(np.abs(x) > fmt.largest)]  # NaN stays in
    assert_same(encode(x, fmt, overflow=policy), torch_codes(x, fmt), fmt)


@EIGHT_BITS
def test_saturation_is_clamping_before_the_cast(fmt):
    x = every_16_bit_number()
    clamped = torch.from_numpy(x).clamp(-fmt.largest, fmt.largest).numpy()
    assert_same(encode(x, fmt, overflow=SATURATE), torch_codes(clamped, fmt), fmt)


@EIGHT_BITS
def test_an_unclamped_cast_of_pytorch_follows_one_of_the_two_policies(fmt):
    """Which one depends on its version: E4M3 saturates since 2026, E5M2 does not. Hence: clamp yourself."""
    x = every_16_bit_number()
    theirs = torch_codes(x, fmt)
    same = []
    for policy in (SATURATE, OVERFLOW_TO_NAN):
        ours = encode(x, fmt, overflow=policy)
        both_nan = np.isnan(decode(ours, fmt)) & np.isnan(decode(theirs, fmt))
        same.append(bool(((ours == theirs) | both_nan).all()))
    assert any(same)


@pytest.mark.parametrize(("fmt", "dtype"), [(BF16, torch.bfloat16), (FP16, torch.float16)], ids=["bf16", "fp16"])
def test_sixteen_bit_casts_are_those_of_pytorch(fmt, dtype, rng):
    x = rng.integers(0, 2**32, 100_003, dtype=np.uint64).astype(np.uint32).view(np.float32)
    theirs = torch.from_numpy(x).to(dtype).view(torch.uint16).numpy()
    assert_same(encode(x, fmt, overflow=OVERFLOW_TO_NAN), theirs, fmt)


def torch_blocks(x: torch.Tensor, tile: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize with plain torch: pad to whole tiles, one maximum for each, clamp, cast. Returns codes and scales."""
    rows, columns = x.shape
    padded = torch.nn.functional.pad(x, (0, -columns % tile[1], 0, -rows % tile[0]))
    view = padded.view(padded.shape[0] // tile[0], tile[0], padded.shape[1] // tile[1], tile[1])
    scales = view.abs().amax(dim=(1, 3)).clamp(min=1e-4) / 448.0
    scaled = (view / scales[:, None, :, None]).clamp(-448.0, 448.0).to(torch.float8_e4m3fn)
    return scaled.view(padded.shape)[:rows, :columns], scales


@pytest.mark.parametrize("tile", [(1, 128), (128, 128), (128, 1)])
@pytest.mark.parametrize("shape", [(131, 576), (1, 1), (129, 127), (576, 257)])
def test_tiles_and_blocks_are_those_of_a_plain_torch_quantizer(tile, shape, rng):
    x = (rng.standard_normal(shape) * np.exp(2 * rng.standard_normal((shape[0], 1)))).astype(np.float32)
    x[0] = 0
    q = fg.quantize(x, tile)
    codes, scales = torch_blocks(torch.from_numpy(x), tile)
    np.testing.assert_array_equal(q.scales, scales.numpy())
    np.testing.assert_array_equal(q.codes, codes.contiguous().view(torch.uint8).numpy())
    spread = scales.repeat_interleave(tile[0], 0).repeat_interleave(tile[1], 1)[: shape[0], : shape[1]]
    np.testing.assert_array_equal(fg.dequantize(q), (codes.float() * spread).numpy())


def test_the_three_products_are_those_of_torch_on_dequantized_operands(rng):
    """Autograd through `x_hat @ w_hat.T` gives Dgrad and Wgrad of the dequantized operands, if dY is exact in E4M3."""
    x = rng.standard_normal((131, 257)).astype(np.float32)
    weight = rng.standard_normal((129, 257)).astype(np.float32)
    dy = np.exp2(rng.integers(-3, 4, (131, 129))).astype(np.float32)
    recipe = mp.Recipe(power_of_two=True)  # then dY and the turned X are read back exactly, subnormals aside
    y, (x_q, weight_q) = mp.fp8_forward(x, weight, recipe)
    dx, dweight = mp.fp8_backward(dy, (x_q, weight_q), recipe)
    x_hat = torch.tensor(fg.dequantize(x_q), dtype=torch.float64, requires_grad=True)
    weight_hat = torch.tensor(fg.dequantize(weight_q), dtype=torch.float64, requires_grad=True)
    product = x_hat @ weight_hat.T
    product.backward(torch.tensor(dy, dtype=torch.float64))
    for got, want, bits in ((y, product.detach(), 8), (dx, x_hat.grad, 8), (dweight, weight_hat.grad, 20)):
        want = want.numpy()
        np.testing.assert_allclose(got, want, rtol=2.0**-bits, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("ue8m0", [False, True])
@pytest.mark.parametrize("shape", [(131, 576), (1, 1), (129, 127), (576, 257)])
def test_the_packages_weight_blocks_are_the_chapters_bit_for_bit(shape, ue8m0, rng):
    weight = (rng.standard_normal(shape) * np.exp(2 * rng.standard_normal((shape[0], 1)))).astype(np.float32)
    weight[0] = 0
    codes, scales = package.quantize_weight(torch.from_numpy(weight), ue8m0=ue8m0)
    q = fg.quantize_weight(weight, power_of_two=ue8m0)
    np.testing.assert_array_equal(scales.numpy(), q.scales)
    np.testing.assert_array_equal(codes.view(torch.uint8).numpy(), q.codes)
    back = dequantize_weight(codes, scales, torch.float32)
    np.testing.assert_array_equal(back.numpy(), fg.dequantize(q))
    in_bf16 = dequantize_weight(codes, scales, torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(in_bf16, round_to(fg.dequantize(q), BF16))


@pytest.mark.parametrize("ue8m0", [False, True])
@pytest.mark.parametrize("shape", [(131, 384), (1, 128), (7, 640)])
def test_the_packages_activation_tiles_are_the_chapters_bit_for_bit(shape, ue8m0, rng):
    x = (rng.standard_normal(shape) * np.exp(4 * rng.standard_normal((shape[0], 1)))).astype(np.float32)
    x[0, :128] = 0
    codes, scales = package.quantize_tiles(torch.from_numpy(x), ue8m0=ue8m0)
    q = fg.quantize_activation(x, power_of_two=ue8m0)
    np.testing.assert_array_equal(scales.numpy(), q.scales)
    np.testing.assert_array_equal(codes.view(torch.uint8).numpy(), q.codes)
    np.testing.assert_array_equal(package.dequantize_tiles(codes, scales).numpy(), fg.dequantize(q))


def test_the_packages_cast_is_the_chapters_for_every_16_bit_number():
    x = every_16_bit_number()
    assert_same(encode(x, E4M3), package.cast_e4m3(torch.from_numpy(x)).view(torch.uint8).numpy(), E4M3)
