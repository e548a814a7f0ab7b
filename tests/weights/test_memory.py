"""Converting needs memory for a few million elements, whatever the size of the checkpoint."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[2])
from tiny_checkpoints import random_model
from deepseek_v3.weights.convert import convert_checkpoint
from deepseek_v3.weights.save import save_model

folder = Path(sys.argv[1])
if sys.argv[3] == "save":
    model = random_model(vocab_size=40_001, hidden_size=3000, num_hidden_layers=1, first_k_dense_replace=0)
    save_model(model.bfloat16(), folder / "bf16", shard_bytes=10**8)
else:
    import deepseek_v3.weights.load
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    convert_checkpoint(folder / sys.argv[4], folder / sys.argv[3], to=sys.argv[3])
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_converting_a_gigabyte_takes_less_than_512_mb(tmp_path):
    def run(to: str, source: str = "") -> int:
        here = str(__file__).rsplit("/", 1)[0]
        command = [sys.executable, "-c", SCRIPT, str(tmp_path), here, to, source]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return int(done.stdout.split()[-1]) if source else 0

    run("save")
    total = sum(path.stat().st_size for path in (tmp_path / "bf16").iterdir())
    assert total > 0.9 * 10**9
    for to, source in (("fp8", "bf16"), ("fp32", "fp8")):
        assert run(to, source) < 512 * 1024  # KiB
