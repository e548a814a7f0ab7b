"""The benchmark that calls kernels by their arguments calls them as they are: a wrong count ends the process."""

import pytest
import torch

from benchmarks.products import measure
from deepseek_v3.native.build import have_kernels


@pytest.mark.skipif(not have_kernels(), reason="no C++ compiler here")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_products_are_measured(dtype):
    rates = measure(dtype, 64, 8, 16, rounds=1)
    assert len(rates) == 6
    assert all(rate > 0 for rate in rates.values())
