"""Which form serves: asked in advance, the answer is what then runs."""

import pytest
import torch

from deepseek_v3.config import ModelConfig
from deepseek_v3.native.build import SWITCH, have_kernels, why_no_kernels
from deepseek_v3.ops import dense
from deepseek_v3.ops.choice import FEWEST_ROWS, why_no_kernel
from deepseek_v3.ops.explain import explain

needs_kernels = pytest.mark.skipif(not have_kernels(), reason="no C++ compiler here")


def forms_of(**changes) -> dict[str, str]:
    return {f.operation: f.why for f in explain(ModelConfig.preset("demo"), **changes)}


@needs_kernels
def test_every_operation_is_explained_and_a_kernel_needs_no_reason():
    many, few = forms_of(tokens=128), forms_of(tokens=1)
    assert not any(why for name, why in many.items() if name != "decoding step")
    assert "more than 64 tokens" in many["decoding step"]
    assert "fewer than 32 rows" in few["linear"]
    assert not few["decoding step"]


@pytest.mark.parametrize(
    ("changes", "words"), [({"device": "cuda"}, "not on cuda"), ({"dtype": torch.float64}, "not in torch.float64")]
)
def test_the_reason_is_named(changes, words):
    assert words in forms_of(**changes)["linear"]


def test_kernels_that_are_switched_off_are_the_reason(monkeypatch):
    monkeypatch.setenv(SWITCH, "0")
    assert all(why_no_kernels() in why for why in forms_of(tokens=33).values())


@needs_kernels
@pytest.mark.parametrize("rows", [FEWEST_ROWS - 1, FEWEST_ROWS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_what_is_said_is_what_runs(rows, dtype, monkeypatch):
    called = []
    run = dense.run_kernel
    monkeypatch.setattr(dense, "run_kernel", lambda *arguments: called.append(arguments[0]) or run(*arguments))
    x, weight = torch.randn(rows, 7, dtype=dtype), torch.randn(5, 7, dtype=dtype)
    dense.linear(x, weight)
    assert bool(called) == (why_no_kernel(x, weight) is None) == (rows == FEWEST_ROWS and dtype == torch.float32)
