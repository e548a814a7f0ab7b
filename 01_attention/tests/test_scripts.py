"""Every module of the chapter runs alone, from any folder, and its printed gradient check agrees."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

CHAPTER = Path(__file__).resolve().parent.parent
MODULES = [p for p in sorted(CHAPTER.glob("*.py")) if not p.stem.startswith("exercise")]


@pytest.mark.parametrize("module", MODULES, ids=lambda p: p.stem)
def test_the_module_runs_alone_and_its_gradient_check_agrees(module, tmp_path):
    command = [sys.executable, "-W", "error", str(module)]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    lines = [line for line in run.stdout.splitlines() if line.startswith("gradient check")]
    assert lines
    for line in lines:
        numbers = [float(n) for n in re.findall(r"[-+]?\d+\.\d+", line)]
        want = numbers[1] if len(numbers) == 2 else 1.0
        assert abs(numbers[0] - want) < 1e-5 * max(1.0, abs(want)), line
