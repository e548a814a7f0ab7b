"""Several processes on this machine, started by torchrun."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
LIMIT_S = 240


@pytest.fixture(scope="session")
def torchrun():
    """Run `python -m deepseek_v3 ...`, or a file, in so many processes; return what it printed."""

    def run(processes: int, *words: str, more: tuple[str, ...] = (), code: int = 0) -> str:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", *more]
        script = words if words[0].endswith(".py") else ("-m", "--", "deepseek_v3", *words)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
        environment |= {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*launcher, "--nproc-per-node", str(processes), *script],
            env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout + done.stderr

    return run
