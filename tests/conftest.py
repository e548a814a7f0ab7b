"""What several folders of tests share."""

import pytest


@pytest.fixture(params=["native", "PyTorch"])
def form(request, monkeypatch):
    """Run a test with our C++ kernels, and with PyTorch's operations in their place."""
    from deepseek_v3.native.build import SWITCH, have_kernels

    if request.param == "PyTorch":
        monkeypatch.setenv(SWITCH, "0")
    elif not have_kernels():
        pytest.skip("no C++ compiler here")
    return request.param
