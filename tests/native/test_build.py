"""The compiled kernels: made once, kept, switched off, and done without."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from deepseek_v3.native import build

needs_compiler = pytest.mark.skipif(not build.have_kernels(), reason="no C++ compiler here")
FOUND = {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}  # where the package is, if it is not installed
COUNT = "from deepseek_v3.native.build import have_kernels; print(have_kernels())"


def run_with(**environment: str) -> subprocess.CompletedProcess:
    """Ask a new process whether it has kernels."""
    names = {"PATH": os.environ["PATH"], **FOUND, **environment}
    return subprocess.run([sys.executable, "-c", COUNT], env=names, capture_output=True, text=True)


@needs_compiler
def test_several_processes_that_start_at_once_leave_one_library(tmp_path):
    home = {"PATH": os.environ["PATH"], **FOUND, "XDG_CACHE_HOME": str(tmp_path)}
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


def test_without_a_compiler_it_is_said_once_and_how_to_mend_it(tmp_path):
    ask = "from deepseek_v3.native.build import have_kernels, why_no_kernels as why; have_kernels(); print(why())"
    names = {"PATH": str(tmp_path), **FOUND, "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", ask], env=names, capture_output=True, text=True)
    assert done.stdout == "no C++ compiler; install g++, or name one in CXX\n"
    assert done.stderr.count("\n") == 1
    assert "install g++" in done.stderr


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache with a library of one small source in it."""
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources" / "answer.cpp").write_text('extern "C" long answer() { return 7; }\n')
    monkeypatch.setattr(build, "HERE", tmp_path / "sources")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert count_compilations(tmp_path) == 2  # an object and the library
    return tmp_path


def count_compilations(cache: Path) -> int:
    """Find or make the library of this cache; how often that calls the compiler."""
    log, compiler = cache / "calls", cache / "compiler"
    log.write_text("")
    compiler.write_text(f'#!/bin/sh\n[ "$1" = --version ] || echo >> {log}\nexec g++ "$@"\n')
    compiler.chmod(0o755)
    assert build.is_whole(build._compile([str(compiler)]))
    return log.read_text().count("\n")


@needs_compiler
@pytest.mark.parametrize("left", [0, 3_000])
def test_a_library_that_was_cut_is_made_again(left, cache):
    (library,) = (cache / "deepseek-v3").glob("*.so")
    os.truncate(library, left)
    assert count_compilations(cache) == 2
    assert count_compilations(cache) == 0
    assert build.is_whole(library)


@needs_compiler
def test_a_cache_that_others_could_write_to_is_closed_and_made_once(cache):
    (cache / "deepseek-v3").chmod(0o775)
    assert count_compilations(cache) == 2  # what lay there may be somebody else's
    assert count_compilations(cache) == 0
    assert (cache / "deepseek-v3").stat().st_mode & 0o777 == 0o700


@needs_compiler
def test_a_cache_that_cannot_be_written_is_read_or_replaced_by_one_that_stays(cache, monkeypatch):
    (library,) = (cache / "deepseek-v3").glob("*.so")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    assert build.choose_folder(library.name) == cache / "deepseek-v3"
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(cache))
    stays = cache / f"deepseek-v3-{os.getuid()}"
    assert [build.choose_folder("another.so") for _ in range(2)] == [stays, stays]


def test_the_compiler_may_have_words_before_it(monkeypatch):
    monkeypatch.setenv("CXX", "ccache g++ -m64")
    assert build.compiler_command() == ["ccache", "g++", "-m64"]


@needs_compiler
def test_pytorch_and_the_kernels_share_one_pool_of_threads():
    """Two pools would fight for the cores: each spins for a while before it sleeps."""
    torch.zeros(1)
    with open("/proc/self/maps") as maps:
        assert len({line.split()[-1] for line in maps if "libgomp" in line}) == 1


@pytest.mark.slow
@needs_compiler
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
    files = ["tests/ops/test_kernels.py", "tests/fp8/test_decode.py", "tests/fp8/test_quantize.py"]
    files += ["tests/engine/test_decode_step.py", "tests/weights/test_keep_fp8.py"]
    tests = [sys.executable, "-m", "pytest", *files, "-p", "no:cacheprovider"]
    more = {"XDG_CACHE_HOME": str(tmp_path), "DEEPSEEK_V3_NATIVE_FLAGS": flags}
    done = subprocess.run(tests, env={**os.environ, **more}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    assert len(list((tmp_path / "deepseek-v3").glob("*.so"))) == 1
