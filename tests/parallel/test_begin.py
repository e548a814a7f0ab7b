"""Many processes draw a model part by part, and it is the model that one process draws."""

from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent / "begin.py"
WAYS = {2: ["fsdp=1", "ep=2"], 4: ["fsdp=1", "ep=2", "ep=4", "replicas=2,ep=2", "pp=2,ep=2"]}


@pytest.mark.parametrize("processes", WAYS)
def test_what_is_drawn_part_by_part_has_the_bits_of_the_whole_and_one_tensor_is_there_at_a_time(torchrun, processes):
    said = torchrun(processes, str(SCRIPT), *WAYS[processes])
    assert "UNEQUAL" not in said
    assert "KEPT" not in said
    held = [line.split() for line in said.splitlines() if line.startswith("HELD")]
    assert sorted(way for _, way, *_ in held) == sorted(WAYS[processes] * processes)
    assert all(int(count) > 10_000 for *_, count in held)
    assert all(float(here) == (2 if "replicas=2" in way else 1) for _, way, here, _ in held)  # models on this machine
