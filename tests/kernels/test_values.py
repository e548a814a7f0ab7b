"""Triton's kernels in its interpreter, on the CPU, against chapter 05 and FP64: `make test-kernels`.

TRITON_INTERPRET=1 python -m pytest -m triton tests/kernels/test_values.py       a process of its own: it cannot do both
"""

import json

import accumulation
import fine_grained_quantization as fg
import numpy as np
import pytest
import torch
from accumulation_precision import gaussian_operands, multiply_on_tensor_core

pytestmark = pytest.mark.triton
FLOOR, GRADIENT_FLOOR = 1e-4, 2.0**-100


def wild_matrix(rng, shape) -> np.ndarray:
    """Rows of very different size, a tile of zeros, an outlier of 10^6."""
    x = (rng.standard_normal(shape) * np.exp(4 * rng.standard_normal((shape[0], 1)))).astype(np.float32)
    if shape[0] > 4:
        x[3], x[4, shape[1] // 2] = 0, 1e6
    return x


def assert_codes(code: torch.Tensor, scale: torch.Tensor, want: fg.Quantized) -> None:
    np.testing.assert_array_equal(scale.numpy(), want.scales)
    np.testing.assert_array_equal(code.contiguous().view(torch.uint8).numpy(), want.codes)


@pytest.mark.parametrize("ue8m0", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (37, 127), (131, 129), (17, 576)])
def test_the_quantizer_of_rows_is_the_chapters_bit_for_bit(shape, ue8m0, rng, launch):
    x = wild_matrix(rng, shape)
    for given in (torch.from_numpy(x), torch.from_numpy(x).bfloat16()):
        want = fg.quantize(given.float().numpy(), (1, 128), power_of_two=ue8m0, floor=FLOOR)
        assert_codes(*launch.quantize_rows(given, FLOOR, ue8m0=ue8m0), want)


@pytest.mark.parametrize("ue8m0", [False, True])
@pytest.mark.parametrize("shape", [(1, 129), (131, 127), (257, 300)])
def test_the_quantizer_of_both_directions_is_the_chapters_bit_for_bit(shape, ue8m0, rng, launch):
    x = 1e-7 * wild_matrix(rng, shape)
    code, scale, turned, turned_scale = launch.quantize_both(torch.from_numpy(x), GRADIENT_FLOOR, ue8m0=ue8m0)
    options = {"power_of_two": ue8m0, "floor": GRADIENT_FLOOR}
    assert_codes(code, scale, fg.quantize(x, (1, 128), **options))
    assert_codes(turned.T, turned_scale, fg.quantize(x, (128, 1), **options))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # infinity / infinity, in the interpreter's NumPy
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("ue8m0", [False, True])
def test_what_is_not_finite_spoils_its_whole_tile_and_no_other(bad, ue8m0, rng, launch):
    """Else a broken step would look sound, and be applied."""
    x = torch.from_numpy(rng.standard_normal((140, 300)).astype(np.float32))
    x[7, 130] = bad
    code, scale, turned, turned_scale = launch.quantize_both(x, FLOOR, ue8m0=ue8m0)
    rows_code, rows_scale = launch.quantize_rows(x, FLOOR, ue8m0=ue8m0)
    rows, columns = torch.zeros(140, 300, dtype=torch.bool), torch.zeros(140, 300, dtype=torch.bool)
    rows[7, 128:256] = columns[:128, 130] = True
    for got, spoilt in ((code.float() * scale.repeat_interleave(128, 1)[:, :300], rows),
                        (rows_code.float() * rows_scale.repeat_interleave(128, 1)[:, :300], rows),
                        (turned.T.float() * turned_scale.repeat_interleave(128, 0)[:140], columns)):  # fmt: skip
        assert torch.equal(~got.isfinite(), spoilt)


def draw_codes(rng, shape, tile) -> fg.Quantized:
    return fg.quantize(rng.standard_normal(shape) * np.exp(2 * rng.standard_normal((shape[0], 1))), tile)


def as_operand(q: fg.Quantized) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Codes with NaN behind each row and below the last, which nobody may read."""
    (rows, columns), height = q.codes.shape, q.tile[0]
    room = np.full((rows + 1, columns + -columns % 128 + 16), 0x7F, np.uint8)
    room[:rows, :columns] = q.codes
    code = torch.from_numpy(room).view(torch.float8_e4m3fn)[:rows, :columns]
    return code, torch.from_numpy(np.ascontiguousarray(q.scales)), height


def close_to(got: torch.Tensor, want: np.ndarray, a: fg.Quantized, b: fg.Quantized) -> None:
    """Sums of FP32 in another order: a few last bits of the sum of magnitudes; and the rounding of BF16."""
    size = np.abs(fg.dequantize(a)) @ np.abs(fg.dequantize(b)).T
    step = 2.0**-8 if got.dtype == torch.bfloat16 else 0
    assert (np.abs(got.float().numpy() - want) <= 2.0**-17 * size + step * np.abs(want)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("sizes", "block"), [((128, 128, 256), (64, 128)), ((131, 257, 576), (128, 128)), ((1, 7, 127), (64, 128))]
)
def test_products_are_the_chapters_in_all_three_directions(sizes, block, dtype, rng, launch):  # fmt: skip
    m, n, k = sizes
    a = draw_codes(rng, (m, k), (1, 128))
    for b in (draw_codes(rng, (n, k), (128, 128)), draw_codes(rng, (n, k), (1, 128))):
        out = torch.empty(m, n, dtype=dtype)
        launch.multiply(as_operand(a), as_operand(b), out, block=block)
        close_to(out, fg.multiply_quantized(a, b), a, b)


def test_products_sorted_by_expert_skip_those_without_rows(rng, launch):
    counts, n, k = [70, 0, 1, 64, 0], 130, 300
    a = draw_codes(rng, (sum(counts), k), (1, 128))
    experts = [draw_codes(rng, (n, k), (128, 128)) for _ in counts]
    code, scale, _ = zip(*map(as_operand, experts))
    out = torch.full((sum(counts), n), float("nan"))
    stacked = torch.stack([c.view(torch.uint8) for c in code]).view(torch.float8_e4m3fn), torch.stack(scale)
    launch.multiply_experts(as_operand(a)[:2], stacked, counts, out)
    start = 0
    for expert, count in zip(experts, counts):
        part = fg.Quantized(a.codes[start : start + count], a.scales[start : start + count], a.tile, a.fmt)
        if count:
            close_to(out[start : start + count], fg.multiply_quantized(part, expert), part, expert)
        start += count


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_over_a_block_table_is_that_over_the_rows_in_order(dtype, rng, launch):
    heads, latent, rotary, block_size, lengths = 5, 64, 16, 7, [1, 40, 131]
    width, scale = latent + rotary, 0.17
    need = [-(-length // block_size) for length in lengths]
    blocks = torch.from_numpy(rng.permutation(sum(need) + 2))
    tables, taken = torch.full((len(lengths), max(need)), -1, dtype=torch.int64), 0
    for row, count in enumerate(need):
        tables[row, :count] = blocks[taken : taken + count]
        taken += count
    cache = torch.from_numpy(rng.standard_normal((sum(need) + 2, block_size, width))).to(dtype)
    query = torch.from_numpy(rng.standard_normal((len(lengths), heads, width))).to(dtype)
    got = launch.attend_latents(query, cache, tables, torch.tensor(lengths), latent, scale, parts=4)
    for row, length in enumerate(lengths):
        rows = cache[tables[row, : need[row]]].flatten(0, 1)[:length].double()
        weight = (query[row].double() @ rows.T * scale).softmax(-1)
        want = weight @ rows[:, :latent]
        assert (got[row].double() - want).abs().max() < (1e-5 if dtype == torch.float32 else 3e-2) * want.abs().max()


# -- on chapter 05's tensor core ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("terms", [128, 4096])
def test_the_kernel_on_the_chapters_tensor_core_gives_the_chapters_sums_bit_for_bit(terms, rng, launch):  # V3 Fig. 7
    a, b = gaussian_operands(70, terms, seed=int(rng.integers(100)))
    for promote in (False, True):
        got = accumulation.run_kernel(launch, a, b, promote=promote)
        want = multiply_on_tensor_core(a, b, promote_every=128 if promote else None)
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("outputs", [64, 256, pytest.param(1024, marks=pytest.mark.slow)])
def test_the_committed_errors_are_those_of_the_kernel_now(outputs, launch):
    """The file that the chapter's notebook reads. 1024 x 1024 outputs take a minute: `make kernel-errors`."""
    held = json.loads(accumulation.FILE.read_text(encoding="utf-8"))
    now = accumulation.measure_all(launch, (outputs,))
    assert {key: held[key] for key in ("what", "again by", "K")} == {k: now[k] for k in ("what", "again by", "K")}
    assert held["outputs"][str(outputs)] == pytest.approx(now["outputs"][str(outputs)], rel=1e-9)


def test_the_errors_are_those_of_the_report():
    """Nearly 2 % without promotion at K = 4096; with it a twentieth."""
    held = json.loads(accumulation.FILE.read_text(encoding="utf-8"))["outputs"]["1024"]
    assert 0.015 < held["largest, without"] < 0.025
    assert held["largest, every 128"] < 0.001
