"""Triton's kernels without a GPU: the interpreter, mended, behind a fixture."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="module")
def launch():
    """`deepseek_v3.kernels.launch` in Triton's interpreter; it and the compiler cannot share a process."""
    pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("the interpreter wants a process of its own: make test-kernels")
    from shim import mend_interpreter

    mend_interpreter()
    import deepseek_v3.kernels.launch

    return deepseek_v3.kernels.launch


@pytest.fixture
def dot_with():
    """Run `tl.dot` by another function, inside a `with`."""
    from shim import dot_with

    return dot_with
