"""Every chapter module runs as a script, from any folder, on NumPy alone, without a warning."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = [
    path
    for chapter in sorted(ROOT.glob("0[0-8]_*"))
    for path in sorted(chapter.glob("*.py"))
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
]
SHORT = {"train": ["--seconds", "2"], "speculative_decoding": ["20"]}  # the trainings run longer when a reader asks
RUNNER = """
import runpy, sys
path, sys.argv = sys.argv[1], sys.argv[1:]
sys.path.insert(0, path.rpartition("/")[0])
try:
    runpy.run_path(path, run_name="__main__")
except SystemExit as stop:
    assert not stop.code, stop.code
foreign = {"torch", "matplotlib", "utils", "deepseek_v3"} & set(sys.modules)
assert not foreign, f"it imported {sorted(foreign)}"
"""


def test_there_are_scripts_of_every_chapter():
    assert {path.parent for path in SCRIPTS} == set(ROOT.glob("0[0-8]_*"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_the_script_runs_alone(path, tmp_path):
    command = [sys.executable, "-W", "error", "-c", RUNNER, str(path), *SHORT.get(path.stem, [])]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr[-2000:]
    assert len(run.stdout.splitlines()) >= 3, "it prints too little to follow"
    assert not list(tmp_path.iterdir()), "it left files in the folder that it was started from"
