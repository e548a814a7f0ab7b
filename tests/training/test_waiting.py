"""How threads wait: chosen by what other processes do, before PyTorch is imported, unless the user has chosen."""

import math
import os
import subprocess
import sys

import pytest

from deepseek_v3.training import waiting
from deepseek_v3.training.waiting import choose_waiting, cores_in_use


@pytest.fixture
def ticks(monkeypatch):
    """Tell what the system counts, in hundredths of a second of two cores: before, and a second later."""

    def tell(before: list[int], after: list[int]) -> None:
        answers = iter([before, after])
        monkeypatch.setattr(waiting, "_read_ticks", lambda: next(answers))
        monkeypatch.setattr(os, "cpu_count", lambda: 2)

    return tell


@pytest.mark.parametrize(
    ("after", "cores"),
    [
        ([5, 0, 3, 290, 10, 0, 0, 0], 0.0),
        ([45, 0, 3, 200, 60, 0, 0, 0], 0.4),  # a disk that is waited for needs no core
        ([105, 0, 3, 200, 0, 0, 0, 0], 1.0),
        ([5, 0, 3, 200, 0, 0, 0, 100], 1.0),  # stolen by the machine's host
    ],
)
def test_cores_in_use_are_those_that_do_not_idle(after, cores, ticks):
    ticks([5, 0, 3, 100, 0, 0, 0, 0], after)
    assert cores_in_use(0) == pytest.approx(cores)


def test_a_system_that_does_not_say_counts_as_busy(monkeypatch, ticks):
    ticks([5] * 8, [5] * 8)
    assert cores_in_use(0) == math.inf
    monkeypatch.setattr(waiting, "_read_ticks", lambda: (_ for _ in ()).throw(FileNotFoundError("/proc/stat")))
    assert cores_in_use(0) == math.inf


@pytest.mark.parametrize(("cores", "looks"), [(0.1, "20000"), (1.0, None), (math.inf, None)])
def test_threads_look_for_a_while_only_where_cores_are_free(cores, looks, monkeypatch):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    monkeypatch.setattr(waiting, "cores_in_use", lambda: cores)
    choose_waiting()
    assert (os.environ["OMP_WAIT_POLICY"], os.environ.get("GOMP_SPINCOUNT")) == ("PASSIVE", looks)


def test_what_the_user_chose_stands(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.setattr(waiting, "cores_in_use", lambda: 0.0)
    choose_waiting()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
    assert "GOMP_SPINCOUNT" not in os.environ


def test_it_is_chosen_before_pytorch_is_imported():
    code = "import sys, deepseek_v3.commands.demo, deepseek_v3.commands.train; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
