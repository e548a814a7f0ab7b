"""Fixtures that every test may use, and the chapters on the path (they are scripts, not packages)."""

import logging
import os
import sys
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # one worker per core: more threads would only fight
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent
for folder in [ROOT, *sorted(ROOT.glob("0[0-8]_*"))]:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


@pytest.fixture(autouse=True)
def warnings_stay_on():
    """A test that silences the process's logging is the one to fail, not whichever comes after it."""
    yield
    assert logging.root.manager.disable == logging.NOTSET, "this test left logging.disable behind"
    assert logging.getLogger("deepseek_v3").level == logging.NOTSET, "this test left our logger's level changed"


@pytest.fixture
def rng() -> np.random.Generator:
    """The one source of randomness of a test, the same on every run."""
    return np.random.default_rng(20241227)


@pytest.fixture
def check_gradients():
    """`utils.gradient_check.check_gradients`: analytic against central differences, 1e-6 relative."""
    from utils.gradient_check import check_gradients

    return check_gradients
