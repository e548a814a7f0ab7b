"""The command and the other scripts: they run from any folder with nothing but NumPy."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import train
from architecture import Config, init_model
from checkpoint import load_checkpoint, save_checkpoint

CHAPTER = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("script", ["architecture", "checkpoint", "generation", "model", "training"])
def test_the_script_runs_from_any_folder_without_a_warning(script, tmp_path):
    command = [sys.executable, "-W", "error", str(CHAPTER / f"{script}.py")]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("\n") >= 4


def test_the_command_trains_writes_saves_and_goes_on_from_there(tmp_path, capsys):
    train.main(["--steps", "2", "--length", "12", "--save", str(tmp_path / "run")])
    text = capsys.readouterr().out
    for word in ("unigram entropy is", "MTP module", " + ", "of them pass", "saved in"):
        assert word in text
    assert load_checkpoint(tmp_path / "run", np.float32).config == train.LAPTOP
    train.main(["--seconds", "0", "--length", "12", "--load", str(tmp_path / "run"), "--float64"])
    assert "float64" in capsys.readouterr().out


def test_a_checkpoint_with_other_tokens_is_refused_with_a_way_out(tmp_path, rng):
    save_checkpoint(init_model(rng, Config(vocab_size=101)), tmp_path / "other")
    with pytest.raises(ValueError, match=r"101 tokens, this text has 96.*predict_logits"):
        train.main(["--seconds", "0", "--load", str(tmp_path / "other")])


def test_the_chapters_are_put_on_the_path_by_one_file_only():
    files = [p for p in CHAPTER.glob("*.py") if "sys.path" in p.read_text(encoding="utf-8")]
    assert [p.name for p in files] == ["chapters.py"]
