"""Mistakes planted in Triton's kernels (PITFALLS row J): each fails a test of `test_values.py`.

The bug zoo plants in the package; these kernels run only in a process of their own, so theirs are planted here.
"""

# ruff: noqa: E501  one mistake a line
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import test_values as values

pytestmark = pytest.mark.triton
ROWS = values.test_the_quantizer_of_rows_is_the_chapters_bit_for_bit
BOTH = values.test_the_quantizer_of_both_directions_is_the_chapters_bit_for_bit
PRODUCTS = values.test_products_are_the_chapters_in_all_three_directions
EXPERTS = values.test_products_sorted_by_expert_skip_those_without_rows
ATTENTION = values.test_attention_over_a_block_table_is_that_over_the_rows_in_order
SHAPED = {"shape": (131, 129), "ue8m0": True}
SIZED = {"sizes": (37, 140, 300), "block": (64, 128), "dtype": values.torch.float32}
PLANTED = [  # what it is, file, line, what is planted, the test that fails, its arguments
    ("rounds to integers", "quantize", "scaled = tl.math.div_rn(x, scale)", "scaled = tl.floor(tl.math.div_rn(x, scale) + 0.5)", ROWS, SHAPED),
    ("a tile of zeros is divided by zero", "quantize", "tl.maximum(amax, floor)", "amax", ROWS, SHAPED),
    ("the power of two is rounded to the nearest", "quantize", "bits + 0x7FFFFF", "bits + 0x3FFFFF", ROWS, SHAPED),
    ("the scale becomes a power of two after dividing", "quantize", "encode(number, tl.broadcast_to(factor[:, None],",
     "encode(number, tl.broadcast_to(scale_of(tl.max(tl.abs(number), 1), floor, False)[:, None],", ROWS, SHAPED),
    ("columns take the scales of rows", "quantize", "across = scale_of(tl.max(size, 0)", "across = scale_of(tl.max(size, 1)", BOTH, SHAPED),
    ("every tile is scaled like the first", "multiply", "b_factor_at + tile * b_scale_along", "b_factor_at", PRODUCTS, SIZED),
    ("what lies behind the width is read", "multiply", "row_inside & (k[None, :] < left)", "row_inside", PRODUCTS, SIZED),
    ("all experts are the first", "multiply", "b + expert * b_expert", "b", EXPERTS, {}),
    ("positions behind a row's end are attended to", "latent_attention", "seen = position < length", "seen = position < length + 1",
     ATTENTION, {"dtype": values.torch.float32}),
    ("the running sum is not scaled to the new maximum", "latent_attention", "total = total * rest +", "total = total +",
     ATTENTION, {"dtype": values.torch.float32}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "file", "line", "plant", "test", "arguments"), PLANTED, ids=[p[0] for p in PLANTED])
def test_a_planted_mistake_is_caught(name, file, line, plant, test, arguments, launch, rng, tmp_path, monkeypatch):
    source = Path(launch.__file__).with_name(f"{file}.py").read_text(encoding="utf-8")
    assert source.count(line) == 1, f"{name}: the line stands {source.count(line)} times in {file}.py"
    path = tmp_path / f"{file}.py"
    path.write_text(source.replace(line, plant), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(f"planted_{file}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    test(**arguments, rng=np.random.default_rng(7), launch=launch)  # sound before
    for kernel in [n for n in vars(launch) if n.endswith("_kernel") and hasattr(module, n)]:
        monkeypatch.setattr(launch, kernel, getattr(module, kernel))
    with pytest.raises(Exception):  # noqa: B017  an assertion, or the interpreter's own word
        test(**arguments, rng=np.random.default_rng(7), launch=launch)
