"""Of two agents of torchrun one is killed; the other one goes on alone, with the same global batch."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deepseek_v3.cli import main
from deepseek_v3.training.training_state import list_checkpoints

STEPS = 40


def start_agent(port: int, words: list[str], log: Path, *, hosts: bool) -> subprocess.Popen:
    """An agent of one process, in a session of its own as on a machine of its own."""
    conf = f"is_host={int(hosts)},join_timeout=90,last_call_timeout=2,keep_alive_interval=1,keep_alive_max_attempt=3"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1:2", "--nproc-per-node", "1"]
    launcher += ["--max-restarts", "3", "--rdzv-backend", "c10d", "--rdzv-id", "test", "--rdzv-conf", conf]
    launcher += ["--rdzv-endpoint", f"localhost:{port}", "--local-addr", "localhost"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [*launcher, "-m", "--", "deepseek_v3", *words]
    with log.open("w") as out:
        return subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)


def family(agent: int) -> list[int]:
    """An agent and whatever it has started."""
    parents = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = [agent]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def steps(run: Path) -> list[dict]:
    """The lines of its steps."""
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if row["kind"] == "step"]


@pytest.mark.slow
def test_of_two_nodes_one_is_lost_and_the_other_goes_on_with_the_same_batch(words, tmp_path):
    run, alone = tmp_path / "run", tmp_path / "alone"
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    train = ["train", "--run", str(run), "--steps", str(STEPS), *words]
    agents = []
    try:
        for i in range(2):
            agents.append(start_agent(port, train, tmp_path / f"agent-{i}.log", hosts=i == 0))
            time.sleep(1)
        deadline = time.monotonic() + 120
        while not (found := list_checkpoints(run)) or int(found[-1].name[5:]) < 9:
            assert time.monotonic() < deadline, (tmp_path / "agent-0.log").read_text()[-2000:]
            time.sleep(0.05)
        assert (found[-1] / "shards").is_dir()  # two have written it
        killed = time.monotonic()
        for pid in family(agents[1].pid):
            os.kill(pid, signal.SIGKILL)
        agents[1].wait()
        assert agents[0].wait(timeout=150) == 0, (tmp_path / "agent-0.log").read_text()[-3000:]
        print(f"from the loss to the end: {time.monotonic() - killed:.1f} s")
    finally:
        for agent in agents:
            for pid in family(agent.pid) if agent.poll() is None else ():
                os.kill(pid, signal.SIGKILL)
    assert (list_checkpoints(run)[-1] / "model.safetensors").exists()  # one has written it
    assert main(["train", "--run", str(alone), "--steps", str(STEPS), "--sample-prompts", "x", *words]) == 0
    mine, known = steps(run)[-1], steps(alone)[-1]
    assert (mine["step"], mine["rows"], mine["tokens"]) == (known["step"], known["rows"], known["tokens"])
    assert mine["loss"] == pytest.approx(known["loss"], rel=1e-5)  # after 40 steps
