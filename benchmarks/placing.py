"""What a process needs to begin among others: python -m benchmarks.placing [PRESET]

Two processes (`--ep 2`) begin a model of a preset's shape (`small`) twice: each builds the whole and cuts it then, and
each draws it part by part, as `train` does. Printed is what the larger process of both took at most beyond what it had
before (resident memory as the system tells it), and how long it took.
"""

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WAYS = {"whole": "each builds the whole, and cuts it", "parts": "each draws part by part"}


def peak() -> int:
    """Return the most bytes that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1024 if sys.platform == "linux" else 1)


def begin(way: str, preset: str) -> None:
    """Be one of the processes."""
    import torch

    from deepseek_v3.config import ModelConfig
    from deepseek_v3.model.initialize import draw_in_turn
    from deepseek_v3.model.transformer import DeepseekV3
    from deepseek_v3.parallel.mesh import Mesh, leave

    config, mesh = ModelConfig.preset(preset), Mesh(1, ep=2)
    with torch.device("meta"):
        outline = DeepseekV3(config)
    sizes = [4 * weight.numel() for weight in outline.parameters()]
    before, begun = peak(), time.perf_counter()
    torch.manual_seed(0)
    if way == "whole":
        model = mesh.place(DeepseekV3(config))
    else:
        model = mesh.place(outline, draw_in_turn(outline, config.initializer_range))
    seconds = time.perf_counter() - begun
    part = sum(4 * weight.to_local().numel() for weight in model.parameters())  # type: ignore[operator]
    sys.stdout.write(f"BEGUN {sum(sizes)} {max(sizes)} {part} {peak() - before} {seconds}\n")
    sys.stdout.flush()
    mesh.close()
    leave(0)


def main(preset: str = "small") -> None:
    """Print a line for each way."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    for way, text in WAYS.items():
        command = [*launcher, "benchmarks.placing", preset, way]
        said = subprocess.run(command, env=environment, cwd=ROOT, check=True, capture_output=True, text=True).stdout
        told = [tuple(map(float, line.split()[1:])) for line in said.splitlines() if line.startswith("BEGUN")]
        whole, largest, part, taken, seconds = (max(values) for values in zip(*told))
        if way == "whole":
            sizes = f"largest weight {largest / 1e6:,.0f} MB, part {part / 1e6:,.0f} MB"
            print(f"{preset} in FP32: {whole / 1e6:,.0f} MB, {sizes}")
        print(f"  {text:<36}{taken / 1e6:8,.0f} MB at most, {seconds:6.1f} s")


if __name__ == "__main__":
    if sys.argv[2:]:
        begin(sys.argv[2], sys.argv[1])
    else:
        main(*sys.argv[1:])
