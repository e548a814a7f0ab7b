"""Decoding E4M3: the kernel and the PyTorch form against ml_dtypes and the stated formula, bit for bit."""

import ml_dtypes
import numpy as np
import pytest
import torch

from deepseek_v3.fp8 import decode, quantize
from deepseek_v3.fp8.decode import decode_blocks, decode_by_pytorch, dequantize_into, dequantize_weight
from deepseek_v3.fp8.quantize import find_nan_code
from deepseek_v3.native.build import have_kernels

ALL_CODES = torch.arange(256, dtype=torch.uint8)
BITS = {2: torch.int16, 4: torch.int32}
SCALES = [
    *(1.0, 3.0, 0.5, 1 / 3, 1 + 2.0**-23, 6.696429e-4),
    *(2.0**120, 2.0**127, 1e38, 7.5e35),  # the largest codes overflow under them
    *(2.0**-120, 2.0**-126, 1e-38, 1e-39, 1e-45),  # results, and scales, below the smallest normal number
    *(-2.0, 0.0, -0.0, float("inf"), float("nan")),
]
kernel = pytest.param(decode_blocks, marks=pytest.mark.skipif(not have_kernels(), reason="no C++ compiler here"))
both_forms = pytest.mark.parametrize("form", [kernel, decode_by_pytorch])


def assert_same_bits(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal in every bit, -0 and subnormals too; any NaN is as good as another."""
    assert torch.equal(found.isnan(), expected.isnan())
    view = BITS[found.dtype.itemsize]
    assert torch.equal(found.nan_to_num(7.0).view(view), expected.nan_to_num(7.0).view(view))


def formula(code: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The released weight_dequant, written out with the numbers of ml_dtypes."""
    rows, columns = code.shape
    value = code.view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    spread = scale.numpy().repeat(128, 0)[:rows].repeat(128, 1)[:, :columns]
    with np.errstate(all="ignore"):
        product = value * spread
        if dtype == torch.bfloat16:
            return torch.from_numpy(product.astype(ml_dtypes.bfloat16).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(product).to(dtype)


@both_forms
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
def test_all_codes_under_all_kinds_of_scales(form, dtype):
    """One block of 2 x 128 for each scale: every code, NaN too, under each."""
    code = ALL_CODES.view(2, 128).repeat(1, len(SCALES)).view(torch.float8_e4m3fn)
    scale = torch.tensor([SCALES])
    out = torch.empty(code.shape, dtype=dtype)
    form(code, scale, out)
    assert_same_bits(out, formula(code, scale, dtype))


# The last two are large enough for several threads, and the last for stores past the cache.
SHAPES = [(1, 1), (1, 7), (128, 128), (127, 33), (300, 513), (577, 2000), (129, 70001), (1025, 4160)]


@both_forms
@pytest.mark.parametrize("shape", [(3, 7), (5, 96), (130, 129), (300, 513)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_one_code_that_is_no_number_is_reported(form, shape, dtype):
    code = torch.arange(shape[0] * shape[1]).remainder(0x7F).to(torch.uint8).view(shape)
    scale, out = torch.ones(-(-shape[0] // 128), -(-shape[1] // 128)), torch.empty(shape, dtype=dtype)
    assert form(code.view(torch.float8_e4m3fn), scale, out)
    for position in ((0, 0), (shape[0] - 1, shape[1] - 1), (1, shape[1] // 2)):
        for nan in (0x7F, 0xFF):
            kept, code[position] = code[position].item(), nan
            assert not form(code.view(torch.float8_e4m3fn), scale, out)
            code[position] = kept


@both_forms
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_blocks_at_the_edges_may_be_smaller(form, shape, dtype):
    generator = torch.Generator().manual_seed(0)
    code = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).view(torch.float8_e4m3fn)
    blocks = (-(-shape[0] // 128), -(-shape[1] // 128))
    scale = torch.exp2(torch.empty(blocks).uniform_(-100, 110, generator=generator))
    out = torch.empty(shape, dtype=dtype)
    form(code, scale, out)
    assert_same_bits(out, formula(code, scale, dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_only_the_given_memory_is_written(dtype):
    """Into rows of a stacked tensor, at an address that is a multiple of nothing but the number's size."""
    code = torch.randint(0, 127, (130, 131), dtype=torch.uint8).view(torch.float8_e4m3fn)
    scale = torch.rand(2, 2)
    stacked = torch.full((3, 130, 131), 5.0, dtype=dtype)
    dequantize_into(code, scale, stacked[1])
    assert_same_bits(stacked[1], formula(code, scale, dtype))
    assert torch.all(stacked[0] == 5)
    assert torch.all(stacked[2] == 5)


def test_what_no_kernel_takes_is_decoded_all_the_same():
    """Strides, FP16 and FP64, scales stored as powers of two."""
    code = torch.randint(0, 127, (260, 300), dtype=torch.uint8).view(torch.float8_e4m3fn)
    scale = torch.exp2(torch.randint(-9, 9, (3, 3)).float())
    turned = code.view(torch.uint8).T.contiguous().T.view(torch.float8_e4m3fn)
    expected = formula(code, scale, torch.float32)
    assert torch.equal(dequantize_weight(turned, scale, torch.float32), expected)
    assert torch.equal(dequantize_weight(code, scale, torch.float64), expected.double())
    assert torch.equal(dequantize_weight(code, scale.to(torch.float8_e8m0fnu), torch.float32), expected)
    out = torch.empty(300, 260)
    dequantize_into(code, scale, out.T)
    assert torch.equal(out.T, expected)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("length", [1, 5, 4097, 300_007])
def test_the_first_code_that_is_no_number_is_found(monkeypatch, compiled, length):
    if not compiled:
        monkeypatch.setattr(quantize, "have_kernels", lambda: False)
    code = torch.arange(length).remainder(0x7F).to(torch.uint8)  # every code but NaN
    assert find_nan_code(code.view(torch.float8_e4m3fn)) is None
    for position, bad in ((length - 1, 0xFF), (length // 2, 0x7F), (0, 0xFF)):
        code[position] = bad
        assert find_nan_code(code.view(torch.float8_e4m3fn)) == position
    assert find_nan_code(code[:0].view(torch.float8_e4m3fn)) is None


@pytest.mark.skipif(not have_kernels(), reason="no C++ compiler here")
def test_the_kernel_serves_the_released_formats(monkeypatch):
    """No silent way round it: a BF16 or FP32 weight never takes the slow form."""
    monkeypatch.setattr(decode, "decode_by_pytorch", None)
    code, scale = quantize.quantize_weight(torch.randn(257, 129))
    for dtype in (torch.bfloat16, torch.float32):
        dequantize_weight(code, scale, dtype)
