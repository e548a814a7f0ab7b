"""Several processes on this machine, started by torchrun."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
LIMIT_S = 240
ROWS, LENGTH, EXPERTS = 8, 29, 8
SHAPE = ["num_hidden_layers=3", "hidden_size=40", "vocab_size=331", f"n_routed_experts={EXPERTS}"]
SHAPE += ["moe_intermediate_size=24", "num_nextn_predict_layers=1", "n_group=2", "topk_group=1"]


@pytest.fixture(scope="session")
def torchrun():
    """Run `python -m deepseek_v3 ...`, or a file, in so many processes; return what it printed."""

    def run(processes: int, *words: str, more: tuple[str, ...] = (), code: int = 0) -> str:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", *more]
        script = ("--", *words) if words[0].endswith(".py") else ("-m", "--", "deepseek_v3", *words)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
        environment |= {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*launcher, "--nproc-per-node", str(processes), *script],
            env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout + done.stderr

    return run


@pytest.fixture(scope="session")
def words(tmp_path_factory) -> list[str]:
    """The options that every run has."""
    draw, folder = random.Random(7), tmp_path_factory.mktemp("text")
    names = ["otter", "heron", "fox", "wren", "pike", "toad"]
    lines = [
        " ".join(draw.choice(names) + draw.choice([" sits", " runs", " eats"]) for _ in range(9)) for _ in range(400)
    ]
    (folder / "text.txt").write_text("\n\n".join(lines), encoding="utf-8")
    known = ["--preset", "demo", "--set", *SHAPE, "--data", str(folder / "text.txt"), "--precision", "fp32"]
    known += ["--batch-size", str(ROWS), "--micro-batch", "2", "--seq-len", str(LENGTH), "--eval-kilobytes", "1"]
    return [*known, "--threads", "1", "--balance-alpha", "0.1", "--warmup-steps", "1", "--save-every", "3"]
