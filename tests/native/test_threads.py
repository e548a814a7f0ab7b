"""How threads wait and how many serve: by what other processes do, unless the user has chosen."""

import math
import os
import subprocess
import sys
import time

import pytest

from deepseek_v3.native import threads
from deepseek_v3.native.threads import choose_waiting, cores_in_use, describe_waiting, others_running, threads_now


@pytest.fixture
def ticks(monkeypatch):
    """Tell what the system counts, in hundredths of a second of two cores: before, and a second later."""

    def tell(before: list[int], after: list[int]) -> None:
        answers = iter([before, after])
        monkeypatch.setattr(threads, "_read_ticks", lambda: next(answers))
        monkeypatch.setattr(threads, "usable_cores", lambda: {0, 1})

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


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux alone")
def test_only_the_cores_that_this_process_may_use_are_looked_at(monkeypatch, tmp_path):
    lines = ["cpu 9 9 9 9 9 9 9 9 0 0", "cpu0 1 2 3 4 5 6 7 8 0 0", "cpu1 8 7 6 5 4 3 2 1 0 0", "cpu10 1 0 0 0 0 0 0 0"]
    (tmp_path / "stat").write_text("\n".join(lines))
    monkeypatch.setattr("builtins.open", lambda *_: (tmp_path / "stat").open())
    for cores, want in (({0}, [1, 2, 3, 4, 5, 6, 7, 8]), ({0, 1}, [9] * 8)):
        monkeypatch.setattr(threads, "usable_cores", lambda cores=cores: cores)
        assert threads._read_ticks() == want


def test_a_system_that_does_not_say_counts_as_busy(monkeypatch, ticks):
    ticks([5] * 8, [5] * 8)
    assert cores_in_use(0) == math.inf
    monkeypatch.setattr(threads, "_read_ticks", lambda: (_ for _ in ()).throw(FileNotFoundError("/proc/stat")))
    assert cores_in_use(0) == math.inf


def test_threads_that_run_now_are_counted_without_this_one(monkeypatch, tmp_path):
    assert others_running() >= 0
    monkeypatch.setattr("builtins.open", lambda *_: (_ for _ in ()).throw(FileNotFoundError("/proc/loadavg")))
    assert others_running() == math.inf


@pytest.fixture
def unset(monkeypatch):
    """An environment in which nobody has chosen, before PyTorch is imported."""
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    monkeypatch.delitem(sys.modules, "torch", raising=False)


@pytest.mark.parametrize(("running", "spins"), [(0, "20000"), (1, None), (math.inf, None)])
def test_threads_spin_for_a_while_only_where_cores_are_free(running, spins, monkeypatch, unset):
    monkeypatch.setattr(threads, "others_running", lambda: running)
    choose_waiting()
    assert (os.environ["OMP_WAIT_POLICY"], os.environ.get("GOMP_SPINCOUNT")) == ("PASSIVE", spins)
    assert describe_waiting().endswith("GOMP_SPINCOUNT 20000" if spins else "PASSIVE")


def test_what_the_user_chose_stands(monkeypatch, unset):
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.setattr(threads, "others_running", lambda: 0)
    choose_waiting()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
    assert "GOMP_SPINCOUNT" not in os.environ


def test_it_is_chosen_when_the_package_is_imported():
    code = "import os, sys, deepseek_v3; sys.exit('torch' in sys.modules or os.environ['OMP_WAIT_POLICY'] != 'PASSIVE')"
    names = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    assert subprocess.run([sys.executable, "-c", code], env=names).returncode == 0


@pytest.fixture
def clocks(monkeypatch):
    """A machine of two cores whose clocks go as told; returns the function that says how many of two threads serve."""
    now = {"time": 50.0, "own": 7.0, "ticks": [100, 0, 0, 900, 0, 0, 0, 0], "running": 0}
    monkeypatch.setattr(threads, "usable_cores", lambda: {0, 1})
    monkeypatch.setattr(os, "getpriority", lambda *_: 0)
    monkeypatch.setattr(time, "monotonic", lambda: now["time"])
    monkeypatch.setattr(time, "process_time", lambda: now["own"])
    monkeypatch.setattr(threads, "_read_ticks", lambda: list(now["ticks"]))
    monkeypatch.setattr(threads, "others_running", lambda _: now["running"])
    monkeypatch.setattr(threads, "_watch", threads._Watch())

    def pass_time(seconds: float, own: float, others: float, *, nice: float = 0.0, running: int = 0) -> int:
        now["running"] = running
        now["time"] += seconds
        now["own"] += own * seconds
        for index, cores in ((0, own + others), (1, nice), (3, 2 - own - others - nice)):
            now["ticks"][index] += round(cores * seconds * 100)
        return threads_now(2)

    return pass_time


def test_as_many_threads_serve_as_there_are_cores_that_nobody_else_wants(clocks):
    assert clocks(0, 0, 0) == 2
    assert clocks(0.2, 1.9, 0) == 2  # its own threads are not others
    assert clocks(0.2, 1.3, 0.7) == 1  # a neighbour that fights for a core with ours
    assert clocks(0.2, 1.0, 1.0) == 1
    assert clocks(0.05, 1.0, 0.0) == 1  # too short a time to tell
    assert clocks(0.2, 1.0, 0.0) == 2  # it is gone
    assert clocks(0.2, 1.0, 0.0, nice=1.0) == 2  # that one gives way by itself
    assert clocks(0.2, 0.0, 2.0) == 1  # one thread there must be


def test_after_a_long_while_what_runs_now_counts_and_not_what_ran_meanwhile(clocks):
    clocks(0, 0, 0)
    assert clocks(60.0, 0.0, 0.0, running=1) == 1
    assert clocks(60.0, 0.0, 2.0, running=0) == 2


def test_who_asks_for_one_thread_gets_it_and_a_system_that_does_not_say_changes_nothing(clocks, monkeypatch):
    assert threads_now(1) == 1
    monkeypatch.setattr(threads, "_read_ticks", lambda: (_ for _ in ()).throw(FileNotFoundError("/proc/stat")))
    assert clocks(5.0, 1.0, 1.0) == 2
