"""Sections of rows in several processes (context parallelism), and replicas of weights, make the step of one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deepseek_v3.cli import main
from deepseek_v3.config import ModelConfig

HERE = Path(__file__).resolve().parent
LENGTH, TOP_K = 28, 4  # 28 tokens a row: two sections of 14, or four of 7


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """One step of one process."""
    out = tmp_path_factory.mktemp("alone")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "one_step.py"), str(out), f"length={LENGTH}"]
    subprocess.run(command, check=True, env=environment)
    return out


def put_together(out: Path, name: str, processes: int, cp: int) -> torch.Tensor:
    """What all processes made of their rows and sections, in the order of one process."""
    made = [load_file(out / f"made-{rank}.safetensors")[name] for rank in range(processes)]
    return torch.cat([torch.cat(made[i : i + cp], 1) for i in range(0, processes, cp)])


WAYS = {
    "sections": (2, {"cp": 2}, []),
    "replicas": (4, {"replicas": 2, "ep": 2}, []),
    "recomputed": (2, {"cp": 2, "ep": 2, "recompute": 1}, [pytest.mark.slow]),
    "four": (4, {"cp": 4}, [pytest.mark.slow]),
    "shared": (4, {"cp": 2, "ep": 2}, [pytest.mark.slow]),
    "all": (4, {"cp": 4, "ep": 2, "replicas": 2}, [pytest.mark.slow]),
}
RUNS = [pytest.param(*ways, id=name, marks=marks) for name, (*ways, marks) in WAYS.items()]


@pytest.mark.parametrize(("processes", "ways"), RUNS)
def test_what_is_made_and_its_gradients_and_counts_are_those_of_one_process(torchrun, alone, tmp_path, processes, ways):
    words = [f"{name}={value}" for name, value in ways.items()]
    torchrun(processes, str(HERE / "one_step.py"), str(tmp_path), f"length={LENGTH}", *words)
    for name, known in load_file(alone / "made-0.safetensors").items():
        mine = put_together(tmp_path, name, processes, ways.get("cp", 1))
        assert mine.shape == known.shape
        assert len(known) == 8
        assert (mine - known).abs().max() <= 1e-6 * known.abs().max()
    mine, known = (load_file(out / "grads-0.safetensors") for out in (tmp_path, alone))
    assert mine.keys() == known.keys()
    for name, grad in known.items():
        assert (mine[name] - grad).abs().max() <= 1e-5 * grad.abs().max()
    mine, known = (json.loads((out / "facts-0.json").read_text()) for out in (tmp_path, alone))
    assert mine["total"] == pytest.approx(known["total"], rel=1e-6)
    assert mine["norm"] == pytest.approx(known["norm"], rel=1e-5)
    assert mine["counts"] == known["counts"]
    tokens = [8 * LENGTH] * 5 + [8 * (LENGTH - 1)]  # the module has no input for a row's last token
    assert [sum(count) for count in mine["counts"].values()] == [n * TOP_K for n in tokens]
    latent = ModelConfig.preset("demo").kv_lora_rank + ModelConfig.preset("demo").qk_rope_head_dim
    assert mine["gathered"] == ([latent] if "cp" in ways else [])  # no keys, no values: 576 numbers a token in V3
    passes = 8 * ways.get("cp", 1) // processes
    assert set(mine["runs"].values()) == {passes * (1 + ways.get("recompute", 0))}


def test_what_sections_cannot_be_is_refused_by_name(torchrun, words, tmp_path, capsys):
    assert main(["train", "--run", str(tmp_path / "a"), "--cp", "2", *words]) == 1
    assert "--cp 2 needs several processes, started by torchrun" in capsys.readouterr().err
    assert main(["train", "--run", str(tmp_path / "a"), "--cp", "2", "--pp", "2", *words]) == 1
    assert "--cp 2 does not go with --pp 2" in capsys.readouterr().err
    said = torchrun(2, "train", "--run", str(tmp_path / "b"), "--steps", "1", *words, "--cp", "2", code=1)
    assert "--cp 2 must divide --seq-len 29" in said
