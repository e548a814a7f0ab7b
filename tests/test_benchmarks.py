"""Benchmarks do what they say: a kernel called with a wrong count would end, a reader that reads less be fast."""

import os

import pytest
import torch

from benchmarks import loading
from benchmarks.products import measure
from deepseek_v3.native.build import have_kernels


@pytest.mark.skipif(not have_kernels(), reason="no C++ compiler here")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_products_are_measured(dtype):
    rates = measure(dtype, 64, 8, 16, rounds=1)
    assert len(rates) == 6
    assert all(rate > 0 for rate in rates.values())


@pytest.mark.parametrize("read", [loading.read_files, loading.copy_files])
def test_readers_read_every_byte(read, tmp_path):
    wanted = [os.urandom(size) for size in (1, 5_000_000, 9_000_001)]
    for i, content in enumerate(wanted):
        (tmp_path / f"{i}").write_bytes(content)
    loading.forget_files(tmp_path)
    found = [content.numpy().tobytes() for content in read(tmp_path)]
    assert [a == b for a, b in zip(found, wanted, strict=True)] == [True, True, True]
