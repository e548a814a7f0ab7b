"""Every write, flush and rename of a training fails once, a kill comes at each: the run goes on to the same bits."""

import subprocess
import sys

import pytest


def check_faults(folder, how: str, every: int) -> None:
    command = [sys.executable, "-m", "tests.training.faults", str(folder), how, str(every)]
    done = subprocess.run(command, capture_output=True, text=True)
    *problems, last = done.stdout.splitlines() or [done.stderr]
    assert not problems, "\n".join(problems)
    assert "calls: fsync, pwrite, rename, replace, write" in last, last + done.stderr


@pytest.mark.parametrize(("how", "every"), [("ENOSPC", 53), ("KILL", 67)])
def test_a_fault_here_and_there_loses_nothing(tmp_path, how, every):
    check_faults(tmp_path, how, every)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ENOSPC", "EIO", "EFBIG", "KILL"])
def test_a_fault_at_every_write_flush_and_rename_loses_nothing(tmp_path, how):
    check_faults(tmp_path, how, 1)
