"""Mistakes planted in Triton's kernels (PITFALLS row J): each fails a test of `test_values.py`.

The bug zoo plants in the package; these kernels run only in a process of their own, so theirs are planted here.
"""

# ruff: noqa: E501  one mistake a line
import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import test_values as values

pytestmark = [pytest.mark.triton, pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")]
ROWS = values.test_the_quantizer_of_rows_is_the_chapters_bit_for_bit
BOTH = values.test_the_quantizer_of_both_directions_is_the_chapters_bit_for_bit
SPOILT = values.test_what_is_not_finite_spoils_its_whole_tile_and_no_other
PRODUCTS = values.test_products_are_the_chapters_in_all_three_directions
EXPERTS = values.test_products_sorted_by_expert_skip_those_without_rows
TILL = values.test_the_kernel_on_the_chapters_tensor_core_gives_the_chapters_sums_bit_for_bit
ATTENTION = values.test_attention_over_a_block_table_is_that_over_the_rows_in_order
SHAPED = {"shape": (131, 129), "ue8m0": True}
SIZED = {"sizes": (37, 140, 300), "block": (64, 128), "dtype": values.torch.float32}
PLANTED = [  # what it is, file, line, what is planted, the test that fails, its arguments
    ("rounds to integers", "quantize", "scaled = tl.math.div_rn(x, scale)", "scaled = tl.floor(tl.math.div_rn(x, scale) + 0.5)", ROWS, SHAPED),
    ("no subnormals", "quantize", "scaled = tl.math.div_rn(x, scale)", "scaled = tl.math.div_rn(x, scale)\n    scaled = tl.where(tl.abs(scaled) < 0.015625, 0.0, scaled)",
     ROWS, SHAPED),
    ("a tile of zeros is divided by zero", "quantize", "tl.where(amax < floor, floor, amax)", "amax", ROWS, SHAPED),
    ("the power of two is rounded to the nearest", "quantize", "bits + 0x7FFFFF", "bits + 0x3FFFFF", ROWS, SHAPED),
    ("the scale becomes a power of two after dividing", "quantize", "encode(number, tl.broadcast_to(factor[:, None],",
     "encode(number, tl.broadcast_to(scale_of(largest_of(number, 1), floor, False)[:, None],", ROWS, SHAPED),
    ("the maximum passes over a NaN", "quantize", "tl.max(bits, AXIS).to(tl.float32, bitcast=True)",
     "tl.max(tl.where(bits > 0x7F800000, 0, bits), AXIS).to(tl.float32, bitcast=True)", SPOILT, {"bad": float("nan"), "ue8m0": False}),
    ("infinity is scaled away under a power of two", "quantize", "tl.where(bits < INFINITY, power, scale)", "tl.where(bits < INFINITY, power, 1.0)", SPOILT,
     {"bad": float("inf"), "ue8m0": True}),
    ("columns take the scales of rows", "quantize", "across = scale_of(largest_of(number, 0)", "across = scale_of(largest_of(number, 1)", BOTH, SHAPED),
    ("every tile is scaled like the first", "multiply", "b_factor_at + tile * b_scale_along", "b_factor_at", PRODUCTS, SIZED),
    ("the promoted sum goes on in the tensor core", "multiply", "total += tl.dot(a_part, b_part) * (", "total = tl.dot(a_part, b_part, total) * (", TILL, {"terms": 4096}),
    ("what lies behind the width is read", "multiply", "row_inside & (k[None, :] < left)", "row_inside", PRODUCTS, SIZED),
    ("all experts are the first", "multiply", "b + expert * b_expert", "b", EXPERTS, {}),
    ("positions behind a row's end are attended to", "latent_attention", "seen = position < length", "seen = position < length + 1",
     ATTENTION, {"dtype": values.torch.float32}),
    ("the running sum is not scaled to the new maximum", "latent_attention", "total = total * rest +", "total = total +",
     ATTENTION, {"dtype": values.torch.float32}),
]  # fmt: skip


def load_planted(folder: Path, file: str, source: str) -> ModuleType:
    """A module of kernels with this text."""
    path = folder / f"{file}.py"
    path.write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(f"planted_{file}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ENCODE = """

@triton.jit
def encode_kernel(x, scale, code, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(code + at, encode(tl.load(x + at), tl.load(scale + at)))
"""


def test_the_clamp_before_the_cast_is_what_keeps_numbers_beyond_448(launch, tmp_path):
    """No scale that is made from the tile lets a number through; so the line is asked alone, and without its clamp."""
    source = Path(launch.__file__).with_name("quantize.py").read_text(encoding="utf-8") + ENCODE
    line, plant = "clamped = tl.minimum(tl.maximum(scaled, -LARGEST), LARGEST)", "clamped = scaled"
    assert source.count(line) == 1
    x, found = values.torch.tensor([449.0, -500.0, 1e6, 3.0]), {}
    for name, text in (("sound", source), ("planted", source.replace(line, plant))):
        (tmp_path / name).mkdir()
        code = values.torch.empty(4, dtype=values.torch.float8_e4m3fn)
        load_planted(tmp_path / name, "quantize", text).encode_kernel[(1,)](x, values.torch.ones(4), code, N=4)
        found[name] = code.float().tolist()
    assert found["sound"] == [448.0, -448.0, 448.0, 3.0]
    assert found["planted"] != found["sound"]


@pytest.mark.parametrize(("name", "file", "line", "plant", "test", "arguments"), PLANTED, ids=[p[0] for p in PLANTED])
def test_a_planted_mistake_is_caught(name, file, line, plant, test, arguments, launch, rng, tmp_path, monkeypatch):
    source = Path(launch.__file__).with_name(f"{file}.py").read_text(encoding="utf-8")
    assert source.count(line) == 1, f"{name}: the line stands {source.count(line)} times in {file}.py"
    module = load_planted(tmp_path, file, source.replace(line, plant))
    test(**arguments, rng=np.random.default_rng(7), launch=launch)  # sound before
    for kernel in [n for n in vars(launch) if n.endswith("_kernel") and hasattr(module, n)]:
        monkeypatch.setattr(launch, kernel, getattr(module, kernel))
    with pytest.raises(Exception):  # noqa: B017  an assertion, or the interpreter's own word
        test(**arguments, rng=np.random.default_rng(7), launch=launch)
