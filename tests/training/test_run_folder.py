"""A run folder is written whole, by one training at a time, and never over something of somebody's."""

import errno
import os
import subprocess
import sys

import pytest

from deepseek_v3.training.options import OptionsError, TrainOptions
from deepseek_v3.training.record import merge_options
from deepseek_v3.training.run_folder import RunLock
from deepseek_v3.training.saving import TrainingError
from deepseek_v3.training.session import prepare_training
from deepseek_v3.training.training_state import list_checkpoints
from deepseek_v3.weights.files import replace_file
from tests.training.test_session import TINY


@pytest.fixture
def options(tmp_path) -> TrainOptions:
    text = "\n\n".join(f"passage {i}: " + " ".join(str(i * j % 89) for j in range(40)) for i in range(60))
    (tmp_path / "text.txt").write_text(text)
    sizes = {"seq_len": 13, "batch_size": 2, "micro_batch": 2, "eval_kilobytes": 1, "sample_prompts": ()}
    return TrainOptions(
        run=str(tmp_path / "run"), data=str(tmp_path / "text.txt"), set=TINY, steps=2, precision="fp32", **sizes
    )


def contents(folder) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("failing", ["write", "fsync", "replace"])
def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch, failing):
    path = tmp_path / "a.json"
    assert replace_file(path, b"old")
    inode = path.stat().st_ino
    assert not replace_file(path, b"old")
    assert path.stat().st_ino == inode

    def refuse(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    if failing == "write":
        monkeypatch.setattr("pathlib.Path.open", refuse)
    else:
        monkeypatch.setattr(os, failing, refuse)
    with pytest.raises(OSError, match="No space"):
        replace_file(path, b"new")
    monkeypatch.undo()
    assert contents(tmp_path) == {"a.json": b"old"}


def test_a_resume_that_cannot_write_leaves_config_tokenizer_and_options_as_they_were(options, tmp_path, monkeypatch):
    prepare_training(options).train()
    before = contents(tmp_path / "run")

    def refuse(*_, **__):
        raise OSError(errno.EFBIG, "File too large")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OptionsError, match=r"options.json cannot be written \(file too large, [\d,]+ bytes\)"):
        prepare_training(TrainOptions(run=options.run, resume=True, steps=7))
    monkeypatch.undo()
    assert contents(tmp_path / "run") == before
    prepare_training(TrainOptions(run=options.run, resume=True, steps=3)).train()


def test_a_second_training_in_a_folder_is_refused_until_the_first_is_over_or_dead(options, tmp_path):
    first = prepare_training(options)
    with pytest.raises(OptionsError, match="another training is at work"):
        prepare_training(options)
    first.train()
    assert list_checkpoints(options.run)
    code = "from deepseek_v3.training.run_folder import RunLock; from pathlib import Path; import os\n"
    code += f"lock = RunLock(Path({str(tmp_path / 'other')!r})); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    RunLock(tmp_path / "other").give_up()


@pytest.mark.parametrize("name", ["model.safetensors", "notes.txt", "config.json", "sub/file", "options.json"])
def test_a_folder_that_holds_something_of_somebodys_is_no_run_folder(options, tmp_path, name):
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(OptionsError, match=r"which no training put there|options.json cannot be read"):
        prepare_training(options)
    assert contents(tmp_path / "run") == {name: b"mine"}


def test_a_start_that_fails_leaves_no_folder_behind(options, tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        prepare_training(options.replace(run=str(tmp_path / "deep" / "run"), data="nowhere"))
    assert not (tmp_path / "deep").exists()


def test_a_checkpoint_that_fails_on_the_way_is_told_and_the_training_goes_on(options, monkeypatch):
    trainer = prepare_training(options.replace(steps=4, save_every=2, eval_every=0))
    save, calls = trainer.save, []

    def fail_once():
        calls.append(trainer.step)
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return save()

    trainer.save = fail_once
    assert trainer.train().finished
    assert calls == [2, 4]
    assert "No space left" in (trainer.run / "metrics.jsonl").read_text()


def test_a_training_that_saved_nothing_does_not_advise_to_go_on_from_it(options, monkeypatch):
    trainer = prepare_training(options)

    def fail():
        raise OSError(errno.ENOSPC, "No space left on device")

    trainer.save = fail
    with pytest.raises(TrainingError, match="no checkpoint had been written yet, so begin again"):
        trainer.train()


def test_a_flag_on_resume_is_obeyed_or_refused_by_name_also_where_it_equals_the_default():
    recorded = TrainOptions(lr=1e-2, steps=77, preset="demo")

    def given(*names: str, **values) -> TrainOptions:
        options = TrainOptions(run="runs/x", resume=True, **values)
        object.__setattr__(options, "given", frozenset({"resume", "run", *names}))
        return options

    assert merge_options(recorded, given("lr", lr=2e-3)).lr == TrainOptions.lr == 2e-3
    assert merge_options(recorded, given()).lr == 1e-2
    assert merge_options(recorded, given("preset", preset="demo")).preset == "demo"
    for name, value, word in (("preset", "nano", "nano"), ("set", ("a=1",), "a=1"), ("tokenizer", "t.json", "t.json")):
        with pytest.raises(OptionsError, match=f"--{name} {word} cannot change on the way"):
            merge_options(recorded, given(name, **{name: value}))
    with pytest.raises(OptionsError, match="--init-from x cannot change on the way, the run began with none"):
        merge_options(recorded, given("init_from", init_from="x"))
