"""Freed memory: kept once asked for, unless the user has chosen; every long command asks."""

import ctypes
import os
import subprocess
import sys

import pytest

from deepseek_v3.cli import main
from deepseek_v3.native import heap

FAULTS = """
import resource, sys
import numpy as np
from deepseek_v3.native.heap import keep_freed_memory
said = keep_freed_memory() if sys.argv[1] == "keep" else None
faults = []
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(37_000_003, dtype=np.uint8)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(said, faults[-1])
"""
PAGES = 8  # a large array takes 9,033 pages of 4 kB, or 18 huge ones


def count_faults(word: str, **environment: str) -> tuple[str, int]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, word], env=kept | environment, capture_output=True, text=True, check=True
    )
    said, faults = done.stdout.split()
    return said, int(faults)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="another C library")
def test_an_array_takes_the_pages_of_the_one_before_unless_the_user_has_chosen():
    assert count_faults("not")[1] > PAGES
    said, faults = count_faults("keep")
    assert said == "True"
    assert faults < PAGES
    for choice in ({"MALLOC_TRIM_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_max=65536"}):
        said, faults = count_faults("keep", **choice)
        assert said == "False"
        assert faults > PAGES


def test_where_the_c_library_has_no_such_function_nothing_is_kept(monkeypatch):
    monkeypatch.setattr(heap, "users_choice", lambda: "")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert heap.keep_freed_memory() is False


class Kept(Exception):
    """Where a command asks."""


@pytest.mark.parametrize("command", ["train", "demo", "generate", "evaluate"])
def test_every_long_command_keeps_freed_memory(command, monkeypatch, tmp_path, capsys):
    def stop() -> bool:
        raise Kept

    class Model:
        class config:
            max_position_embeddings = 997

    monkeypatch.setattr(heap, "keep_freed_memory", stop)
    monkeypatch.setattr("deepseek_v3.model_io.load", lambda *_, **__: (Model, object()))
    words = {"train": ["--run", "r"], "demo": ["--run", "r"], "generate": ["r"], "evaluate": ["r", "--data", "t.txt"]}
    (tmp_path / "t.txt").write_text("some text")
    monkeypatch.chdir(tmp_path)
    assert main([command, *words[command]]) == 1
    assert "Kept" in capsys.readouterr().err
