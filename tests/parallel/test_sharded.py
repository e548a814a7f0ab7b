"""Checkpoints that many processes wrote are read like those of one; what one process meets, all act on."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from threading import Event

import pytest
import torch
from safetensors.torch import save_file

from deepseek_v3.cli import main
from deepseek_v3.config import ModelConfig
from deepseek_v3.data.tokenizer import Tokenizer
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.training.run_folder import RunLock
from deepseek_v3.training.sharded_state import ShardedSave
from deepseek_v3.training.training_state import list_checkpoints, read_training_state
from deepseek_v3.weights.errors import CheckpointError
from deepseek_v3.weights.load import load_model
from deepseek_v3.weights.save import save_model
from deepseek_v3.weights.sharded import PLACES, PartsReader

HERE = Path(__file__).resolve().parent
START_S = 200  # of two processes up to their first checkpoint, on a machine that is busy with others
CONFIG = ModelConfig.preset("demo").replace(
    num_hidden_layers=3, hidden_size=40, vocab_size=331, n_routed_experts=8, moe_intermediate_size=24,
    num_nextn_predict_layers=1, n_group=2, topk_group=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A checkpoint in one piece."""
    torch.manual_seed(5)
    model = DeepseekV3(CONFIG)
    for router in (m for m in model.modules() if hasattr(m, "e_score_correction_bias")):
        router.e_score_correction_bias.normal_()
    folder = tmp_path_factory.mktemp("whole") / "model"
    save_model(model, folder, Tokenizer.train(["the otter sits, the heron eats a pike, toads run"] * 9, 331))
    return folder


@pytest.fixture(scope="module")
def saved(torchrun, whole, tmp_path_factory) -> tuple[Path, str]:
    """The same, cut over four processes and written by them, two of which share the experts; and what they said."""
    run = tmp_path_factory.mktemp("parts") / "run"
    return run, torchrun(4, str(HERE / "place_and_save.py"), str(whole), str(run))


@pytest.fixture
def parts(saved, tmp_path) -> Path:
    """A copy of it, to spoil."""
    return Path(shutil.copytree(list_checkpoints(saved[0])[-1], tmp_path / "parts"))


def test_four_processes_wrote_a_file_each_and_no_number_twice(parts):
    assert len(list((parts / "shards").iterdir())) == 4
    stored = sum(p.numel() for p in DeepseekV3(CONFIG).parameters()) + 3 * 8  # biases of two layers and the MTP module
    with PartsReader(parts) as reader:
        headers = reader.headers.values()
        assert sum(e.n_bytes for h in headers for e in h.entries.values()) == 4 * stored
        cut = reader.tensors["model.layers.1.mlp.experts.gate_up_proj"]
        assert sorted(part.begins for part in cut.parts) == [(0, 0, 0), (0, 24, 0), (4, 0, 0), (4, 24, 0)]


@pytest.mark.parametrize("to", ["keep", "bf16", "fp8"])
def test_what_four_wrote_and_what_one_wrote_export_the_same_bytes(whole, parts, tmp_path, to):
    for source, target in ((whole, "a"), (parts, "b")):
        assert main(["export", str(source), str(tmp_path / target), "--to", to, "--quiet"]) == 0
    one, four = ({p.name: p.read_bytes() for p in (tmp_path / t).iterdir()} for t in ("a", "b"))
    assert one == four
    assert one.keys() > {"model.safetensors", "config.json", "tokenizer.json", "manifest.json"}


def test_what_four_wrote_is_loaded_inspected_and_generated_from(whole, saved, parts, capsys):
    known, mine = (load_model(folder)[0].state_dict() for folder in (whole, parts))
    assert known.keys() == mine.keys()
    assert all(torch.equal(mine[name], value) for name, value in known.items())
    assert load_model(parts, mtp=False)[0].config.num_nextn_predict_layers == 0
    assert main(["inspect", str(saved[0])]) == 0
    said = capsys.readouterr().out
    assert "every tensor is there" in said
    assert "4 shards" in said
    words = ["--prompt", "the otter", "--max-new-tokens", "9", "--temperature", "0"]
    texts = []
    for folder in (whole, saved[0]):
        assert main(["generate", str(folder), *words]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]


def test_a_full_disk_on_one_process_is_known_to_all_and_the_older_checkpoint_stands(saved):
    run, said = saved
    lines = [line for line in said.splitlines() if "REFUSED" in line]
    assert len(lines) == 4
    assert all("process 1: File too large" in line for line in lines)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000001"]
    assert read_training_state(run / "checkpoints" / "step-00000001")[1] == {"step": 1}


class SlowDisk:
    """A layout of one process whose parts are written when the test says so."""

    leads = True

    def __init__(self) -> None:
        self.may_write = Event()

    def agree(self, value):
        return value

    def any(self, value: bool) -> bool:
        return value

    def stage(self, tensors, folder: Path) -> "SlowDisk":
        self.folder = folder
        return self

    def write(self) -> None:
        assert self.may_write.wait(30)
        self.folder.mkdir()


def test_training_goes_on_while_a_checkpoint_is_written_and_there_is_none_until_it_is(tmp_path):
    disk, target = SlowDisk(), tmp_path / "checkpoints" / "step-00000005"
    target.parent.mkdir()
    save = ShardedSave(disk, target, {}, lambda folder: (folder / "config.json").touch(), keep=1)
    assert save.thread.is_alive()  # and yet we are here
    assert not target.exists()
    disk.may_write.set()
    save.finish()
    assert sorted(path.name for path in target.iterdir()) == ["config.json", "manifest.json", "shards"]


def test_damage_is_noticed(parts):
    file = sorted((parts / "shards").iterdir())[2]
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="SHA-256"):
        load_model(parts)


def test_a_file_of_another_process_that_is_missing_or_came_later_is_noticed(parts):
    files = sorted((parts / "shards").iterdir())
    shutil.copy(files[0], parts / "shards" / "shard-00009-model-00001-of-00001.safetensors")
    with pytest.raises(CheckpointError, match="does not list it"):
        load_model(parts)
    with pytest.raises(CheckpointError, match="its parts hold"):
        load_model(parts, skip_verify=True)
    (parts / "shards" / "shard-00009-model-00001-of-00001.safetensors").unlink()
    files[1].unlink()
    with pytest.raises(CheckpointError, match="it is not there"):
        load_model(parts)
    with pytest.raises(CheckpointError, match="its parts hold"):
        load_model(parts, skip_verify=True)


def test_a_config_of_another_model_is_refused(parts):
    for key, value, word in (("num_hidden_layers", 4, "missing"), ("num_hidden_layers", 2, "unexpected"),
                             ("n_routed_experts", 12, "shape"), ("hidden_size", 20, "shape")):  # fmt: skip
        keys = json.loads((parts / "config.json").read_text())
        (parts / "config.json").write_text(json.dumps({**keys, key: value}))
        with pytest.raises(CheckpointError, match=word):
            load_model(parts, skip_verify=True, mtp=key != "num_hidden_layers")
        (parts / "config.json").write_text(json.dumps(keys))


def test_any_box_of_a_tensor_is_put_together_from_any_cut(tmp_path):
    draw = random.Random(3)
    for trial in range(20):
        shape = [draw.randint(1, 7) for _ in range(draw.randint(1, 3))]
        value = torch.randn(shape)
        cuts = [sorted({0, n, *(draw.randint(0, n) for _ in range(2))}) for n in shape]
        boxes: list[tuple[list[int], list[int]]] = [([], [])]
        for points in cuts:
            boxes = [([*a, x], [*b, y]) for a, b in boxes for x, y in pairwise(points)]
        folder = tmp_path / str(trial)
        (folder / "shards").mkdir(parents=True)
        for i, (low, high) in enumerate(boxes):
            piece = value[tuple(slice(a, b) for a, b in zip(low, high))].contiguous()
            words = {PLACES: json.dumps({"w": {"saved_offsets": low}})}
            save_file({"w": piece}, folder / "shards" / f"{i}.safetensors", words)
        with PartsReader(folder) as reader:
            assert torch.equal(reader.read("w"), value)
            low = [draw.randrange(n) for n in shape]
            size = [draw.randint(1, n - a) for a, n in zip(low, shape)]
            box = value[tuple(slice(a, a + n) for a, n in zip(low, size))]
            assert torch.equal(reader.read("w", low, size), box)


# -- what one process meets --------------------------------------------------------------------------------------------


def rows_of(run: Path, kind: str) -> list[dict]:
    return [row for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if row["kind"] == kind]


def test_a_loss_of_one_process_that_is_no_number_skips_the_step_of_all(torchrun, words, tmp_path):
    # the first forward pass of step 2, before there is any gradient, and the last one of step 4
    for processes, run, passes in ((2, tmp_path / "two", "2,6"), (1, tmp_path / "one", "4,12")):
        script = (str(HERE / "one_is_ill.py"), passes, "train", "--run", str(run), "--steps", "5")
        more = ("--sample-prompts", "x") if processes == 1 else ("--ep", "2")
        if processes == 1:
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
            subprocess.run([sys.executable, *script, *words, *more], check=True, env=environment, capture_output=True)
        else:
            torchrun(2, *script, *words, *more)
        assert [row["step"] for row in rows_of(run, "skipped")] == [2, 4]
    two, one = (rows_of(tmp_path / name, "step")[-1] for name in ("two", "one"))
    assert two["step"] == one["step"] == 5
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-6)  # steps 2 and 4 have changed nothing, in either


@pytest.mark.slow
def test_three_steps_that_are_no_number_on_one_process_end_all(torchrun, words, tmp_path):
    script = (str(HERE / "one_is_ill.py"), "4-999", "train", "--run", str(tmp_path / "run"), "--steps", "9")
    said = torchrun(2, *script, *words, code=1)
    assert "3 steps in a row" in said
    assert [row["step"] for row in rows_of(tmp_path / "run", "skipped")] == [3, 4, 5]


@pytest.mark.slow
def test_a_second_training_in_the_folder_is_refused_by_all(torchrun, words, tmp_path):
    lock = RunLock(tmp_path / "run")
    began = time.monotonic()
    said = torchrun(2, "train", "--run", str(tmp_path / "run"), "--steps", "1", *words, code=1)
    assert "another training is at work in it" in said
    assert "nobody foresaw this" not in said  # no process met a connection that had gone
    assert time.monotonic() - began < 60
    lock.release()


# -- kills -------------------------------------------------------------------------------------------------------------


def start_two(words: list[str], run: Path, *more: str) -> subprocess.Popen:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [*launcher, "-m", "--", "deepseek_v3", "train", "--run", str(run), "--ep", "2", *words, *more]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, env=environment, start_new_session=True, **quiet)


def workers_of(run: Path) -> dict[int, int]:
    """Process ids of a run's workers, by their rank."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            environment = (process / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        rank = [int(entry[11:]) for entry in environment if entry.startswith(b"LOCAL_RANK=")]
        if rank and str(run).encode() in words:
            found[rank[0]] = int(process.name)
    return found


def half_written(run: Path) -> set[Path]:
    """What saves are writing, or were when they were killed."""
    return set((run / "checkpoints").glob(".*.saving")) if run.exists() else set()


@pytest.mark.slow
def test_twenty_kills_in_a_save_leave_the_newest_checkpoint_whole(words, tmp_path):
    run, draw, reached, in_a_save = tmp_path / "run", random.Random(1), 0, 0
    for _ in range(40):
        more = ["--resume"] if list_checkpoints(run) else []
        before = half_written(run)
        training = start_two(words, run, "--save-every", "1", "--steps", "100000", "--eval-every", "0", *more)
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            steps = [int(path.name[5:]) for path in (run / "checkpoints").glob("step-*")] if run.exists() else []
            if steps and max(steps) > reached:
                break
            time.sleep(0.002)
        time.sleep(draw.random() * 0.05)
        while time.monotonic() < deadline and not half_written(run) - before:
            time.sleep(0.0005)
        for rank in workers_of(run).values():
            os.kill(rank, signal.SIGKILL)
        os.killpg(training.pid, signal.SIGKILL)
        training.wait()
        in_a_save += bool(half_written(run) - before)  # nobody lived to finish it
        newest = list_checkpoints(run)[-1]
        load_model(newest)
        assert read_training_state(newest)[1]["step"] == int(newest.name[5:]) > reached
        reached = int(newest.name[5:])
        if in_a_save == 20:
            return
    raise AssertionError(f"only {in_a_save} of 40 kills met a save")


@pytest.mark.slow
def test_a_lost_process_ends_all_and_the_newest_checkpoint_stands(words, tmp_path):
    run = tmp_path / "run"
    training = start_two(words, run, "--save-every", "2", "--steps", "100000", "--eval-every", "0")
    deadline = time.monotonic() + START_S
    while not list_checkpoints(run) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(workers_of(run)[1], signal.SIGKILL)
    assert training.wait(timeout=60) != 0
    assert not workers_of(run)
    assert read_training_state(list_checkpoints(run)[-1])[1]["step"] >= 2
