"""The compiled kernels: made once, kept, switched off, and done without."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from deepseek_v3.native import build

COUNT = "from deepseek_v3.native.build import have_kernels; print(have_kernels())"


def run_with(**environment: str) -> subprocess.CompletedProcess:
    """Ask a new process whether it has kernels."""
    names = {"PATH": os.environ["PATH"], **environment}
    return subprocess.run([sys.executable, "-c", COUNT], env=names, capture_output=True, text=True)


@pytest.mark.skipif(not build.have_kernels(), reason="no C++ compiler here")
def test_several_processes_that_start_at_once_leave_one_library(tmp_path):
    home = {"PATH": os.environ["PATH"], "XDG_CACHE_HOME": str(tmp_path)}
    started = [subprocess.Popen([sys.executable, "-c", COUNT], env=home, stdout=subprocess.PIPE) for _ in range(3)]
    assert [p.communicate()[0].strip() for p in started] == [b"True"] * 3
    assert len(list((tmp_path / "deepseek-v3").glob("*.so"))) == 1
    assert not list((tmp_path / "deepseek-v3").glob("*.part"))


def test_the_switch_turns_them_off(tmp_path):
    done = run_with(XDG_CACHE_HOME=str(tmp_path), DEEPSEEK_V3_NATIVE="0")
    assert done.stdout.strip() == "False"
    assert not list(tmp_path.iterdir())


def test_a_compiler_that_fails_is_told_once_and_done_without(tmp_path):
    done = run_with(XDG_CACHE_HOME=str(tmp_path), CXX="false")
    assert done.stdout.strip() == "False"
    assert "PyTorch serves" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not build.have_kernels(), reason="no C++ compiler here")
def test_pytorch_and_the_kernels_share_one_pool_of_threads():
    """Two pools would fight for the cores: each spins for a while before it sleeps."""
    torch.zeros(1)
    with open("/proc/self/maps") as maps:
        assert len({line.split()[-1] for line in maps if "libgomp" in line}) == 1


@pytest.mark.slow
@pytest.mark.skipif(not build.have_kernels(), reason="no C++ compiler here")
@pytest.mark.parametrize(
    ("flags", "needs"),
    [
        ("-mno-amx-tile", "amx_tile"),
        ("-march=x86-64-v4", "avx512bw"),
        ("-march=x86-64-v3 -mtune=znver2", "avx2"),  # tuned so, GCC takes some products and sums apart
        ("-march=x86-64", ""),
    ],
)
def test_the_kernels_of_a_lesser_processor_are_right_too(flags, needs, tmp_path):
    """A form for AMX, AVX-512, AVX2 and neither: each is a compilation of its own."""
    if "x86_64" not in os.uname().machine or needs not in Path("/proc/cpuinfo").read_text():
        pytest.skip("flags of another processor")
    files = ["tests/native/test_functions.py", "tests/fp8/test_decode.py", "tests/fp8/test_quantize.py"]
    files += ["tests/serving/test_decode_step.py", "tests/weights/test_keep_fp8.py"]
    tests = [sys.executable, "-m", "pytest", *files, "-p", "no:cacheprovider"]
    more = {"XDG_CACHE_HOME": str(tmp_path), "DEEPSEEK_V3_NATIVE_FLAGS": flags}
    done = subprocess.run(tests, env={**os.environ, **more}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    assert len(list((tmp_path / "deepseek-v3").glob("*.so"))) == 1
