"""Which form computes the products of FP8 training: decided in one place, said by doctor; what is said is what runs.

There is no GPU here: what PyTorch would say of one is put in its place, and so is its `scaled_mm`, by one that looks
at shapes and strides as the real one does and then computes.
"""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from deepseek_v3.commands.doctor import describe_fp8
from deepseek_v3.fp8 import forms, products
from deepseek_v3.fp8.forms import EXACT, FORMS, NATIVE, SCALED_MM, TRITON, Gpu, explain_forms, which_form, why_no_form
from deepseek_v3.fp8.products import multiply_sorted, multiply_tiles
from deepseek_v3.fp8.tiles import COLUMNS, E5M2, ROWS, SQUARES, Tiled, quantize
from deepseek_v3.native.build import SWITCH, have_kernels

H200 = Gpu((9, 0), (13, 0), True, True)


@pytest.fixture
def gpu(monkeypatch):
    """Let PyTorch say this of the GPU at hand."""

    def put(found: Gpu) -> None:
        monkeypatch.setattr(forms, "describe_gpu", lambda: found)

    return put


@pytest.mark.parametrize(
    ("found", "chosen", "form", "words"),
    [
        (H200, TRITON, SCALED_MM, None),
        (H200._replace(has_triton=False), SCALED_MM, TRITON, "not installed"),
        (Gpu((9, 0), (12, 8), False, True), EXACT, SCALED_MM, "CUDA 12.9; PyTorch is built with 12.8"),
        (Gpu((9, 0), (13, 0), False, False), EXACT, SCALED_MM, "has no torch.nn.functional.scaled_mm"),
        (Gpu((10, 0), (13, 0), False, True), EXACT, SCALED_MM, "9.x; this GPU has 10.0"),
        (Gpu((10, 0), (13, 0), True, True), TRITON, SCALED_MM, "9.x; this GPU has 10.0"),
        (Gpu((8, 9), (12, 4), True, True), TRITON, SCALED_MM, "9.x; this GPU has 8.9"),
        (Gpu((8, 0), (12, 9), True, True), EXACT, TRITON, "8.9; this GPU has 8.0"),
        (Gpu(None, (0,), True, True), EXACT, TRITON, "PyTorch sees no GPU"),
    ],
)
def test_a_gpu_decides_the_form(found, chosen, form, words, gpu):
    gpu(found)
    assert which_form("cuda") == chosen
    why = why_no_form(form, "cuda")
    assert why is None if words is None else words in why
    assert explain_forms("cuda")[chosen] == "serves"
    assert list(explain_forms("cuda").values()).count("serves") == 1
    assert "not on cuda" in explain_forms("cuda")[NATIVE]


def test_a_cpu_has_the_kernel_or_pytorch(monkeypatch):
    assert which_form("cpu") == (NATIVE if have_kernels() else EXACT)
    monkeypatch.setenv(SWITCH, "0")
    assert which_form("cpu") == EXACT
    assert SWITCH in explain_forms("cpu")[NATIVE]
    assert all("not on cpu" in explain_forms("cpu")[form] for form in (TRITON, SCALED_MM))


def test_doctor_says_of_every_form_whether_it_serves_and_why_not(gpu):
    gpu(H200)
    told = describe_fp8("cuda")
    assert list(told) == list(FORMS)
    assert told[TRITON] == "serves"
    assert told[SCALED_MM] == "could serve; Triton comes first"
    assert all(told.values())


# -- what runs ---------------------------------------------------------------------------------------------------------


def scaled_mm(a, b, scale_a, kind_a, scale_b, kind_b, *, output_dtype):
    """PyTorch's on Hopper: its checks (ScaledBlas.cpp), then the product in FP64."""
    kind, (rows, width), columns = F.ScalingType, a.shape, b.shape[1]
    tiles = -(-width // 128)
    assert rows % 4 == width % 16 == columns % 16 == 0
    assert a.dtype == b.dtype == torch.float8_e4m3fn
    assert a.stride() == (width, 1)
    assert b.stride() == (1, width)
    assert scale_a.dtype == scale_b.dtype == torch.float32
    assert kind_a is kind.BlockWise1x128
    assert scale_a.shape == (rows, tiles)
    assert scale_a.stride() == (1, rows)
    if kind_b is kind.BlockWise128x128:
        padded = -(-tiles // 4) * 4
        assert scale_b.shape == (padded, -(-columns // 128))
        assert scale_b.stride() == (1, padded)
        by_row = scale_b[:tiles].T.repeat_interleave(128, 0)[:columns]
    else:
        assert kind_b is kind.BlockWise1x128
        assert scale_b.shape == (columns, tiles)
        assert scale_b.stride() == (1, columns)
        by_row = scale_b
    left, right = (
        code.double() * scale.double().repeat_interleave(128, 1)[:, :width]
        for code, scale in ((a, scale_a), (b.T, by_row))
    )
    return (left @ right.T).to(output_dtype)


def wild(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns) * torch.randn(rows, 1).exp() * torch.randn(columns).exp()


def directions(m: int, n: int, k: int) -> dict[str, tuple[Tiled, Tiled]]:
    """The operands of the three products that give [m, n] by summing over k."""
    torch.manual_seed(0)
    return {
        "forward": (quantize(wild(m, k)), quantize(wild(n, k), SQUARES)),
        "input": (quantize(wild(m, k)), quantize(wild(k, n), SQUARES).transposed()),
        "weight": (quantize(wild(k, m), COLUMNS).transposed(), quantize(wild(k, n), COLUMNS).transposed()),
        "square gradients": (quantize(wild(m, k), SQUARES), quantize(wild(n, k))),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sizes", [(1, 1, 1), (3, 127, 129), (130, 257, 576), (128, 128, 640), (5, 129, 1000)])
def test_scaled_mm_gets_what_it_takes_and_gives_the_same_product(sizes, dtype, monkeypatch):
    monkeypatch.setattr(F, "scaled_mm", scaled_mm)
    for a, b in directions(*sizes).values():
        want = multiply_tiles(a, b, form=EXACT)
        got = multiply_tiles(a, b, dtype, form=SCALED_MM)
        size = multiply_tiles(a._replace(code=a.code.float().abs().to(a.code.dtype)),
                              b._replace(code=b.code.float().abs().to(b.code.dtype)), form=EXACT)  # fmt: skip
        assert got.dtype == dtype
        step = 2.0**-8 if dtype == torch.bfloat16 else 0
        assert ((got.double() - want.double()).abs() <= 2.0**-20 * size + step * want.abs()).all()


def test_what_serves_on_a_gpu_is_what_is_called(gpu, monkeypatch):
    """On tensors of a CPU, taken for those of a GPU; a format that the kernels do not know is left to PyTorch."""
    called = []
    launch = SimpleNamespace(
        multiply=lambda a, b, out: called.append((TRITON, a[0].stride(-1), b[0].stride(-1))),
        multiply_experts=lambda a, b, counts, out: called.append(("experts", b[0].stride(-1), counts)),
    )
    monkeypatch.setitem(sys.modules, "deepseek_v3.kernels", SimpleNamespace(launch=launch))
    monkeypatch.setattr(F, "scaled_mm", lambda *a, **k: called.append(SCALED_MM) or scaled_mm(*a, **k))
    monkeypatch.setattr(products, "which_form", lambda device: which_form("cuda"))
    operands = directions(5, 33, 130)
    gpu(H200)
    for a, b in operands.values():
        multiply_tiles(a, b)
    assert called == [(TRITON, 1, 1)] * 4  # both along the sum, as FP8 units read them
    called.clear()
    stack = quantize(torch.randn(3, 33, 130), SQUARES)
    multiply_sorted(quantize(wild(5, 130)), stack, [3, 0, 2], torch.empty(5, 33))
    multiply_sorted(quantize(wild(5, 33)), stack.transposed(), [3, 0, 2], torch.empty(5, 130))
    assert called == [("experts", 1, [3, 0, 2])] * 2
    called.clear()
    gpu(H200._replace(has_triton=False))
    for a, b in operands.values():
        multiply_tiles(a, b)
    multiply_sorted(quantize(wild(5, 130)), stack, [3, 0, 2], torch.empty(5, 33))
    assert called == [SCALED_MM] * 6
    called.clear()
    multiply_tiles(quantize(wild(5, 130), ROWS, E5M2), operands["forward"][1])
    assert called == []


@pytest.mark.parametrize("form", [NATIVE, SCALED_MM, EXACT])
def test_products_of_sorted_rows_are_those_of_each_expert(form, monkeypatch):
    if form == NATIVE and not have_kernels():
        pytest.skip("no C++ compiler here")
    monkeypatch.setattr(F, "scaled_mm", scaled_mm)
    counts, x, stack = [3, 0, 4, 0], quantize(wild(7, 257)), quantize(torch.randn(4, 31, 257), SQUARES)
    out = multiply_sorted(x, stack, counts, torch.full((7, 31), float("nan")), form=form)
    assert torch.equal(out[:3], multiply_tiles(x.rows(0, 3), stack.part(0), form=form))
    assert torch.equal(out[3:], multiply_tiles(x.rows(3, 7), stack.part(2), form=form))
