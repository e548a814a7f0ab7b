"""The command as a new user types it: whatever is wrong, one line that names it and the mend, and no traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deepseek_v3.cli import COMMANDS, main


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("train --steps 0", "deepseek-v3 train: --steps 0 must be at least 1"),
        ("demo --minutes 0", "deepseek-v3 demo: --minutes 0.0 must be a positive number"),
        ("train --lr nan", "deepseek-v3 train: --lr nan must be a positive number"),
        ("train --precision fp4", "deepseek-v3 train: --precision fp4 must be fp32, bf16, fp8 or auto"),
        ("train --batch-size-start 99", "deepseek-v3 train: --batch-size-start 99 exceeds --batch-size 16"),
    ],
)
def test_an_option_out_of_range_is_one_line(words, line, capsys):
    assert main(words.split()) == 1
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", line + "\n")


@pytest.mark.parametrize(
    ("words", "hint"),
    [("train --steps many", "--steps"), ("train --stepz 5", "--steps"), ("train --steps", "--steps")],
)
def test_words_that_cannot_be_read_are_answered_with_a_hint_and_exit_code_2(words, hint, capsys):
    with pytest.raises(SystemExit) as end:
        main(words.split())
    assert end.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert hint in said.err


def test_a_command_that_does_not_exist_names_its_neighbour(capsys):
    assert main(["trian"]) == 2
    assert capsys.readouterr().err == "deepseek-v3: unknown command 'trian'; did you mean 'train'?\n"


def test_a_command_that_is_gone_names_those_that_do_its_work(capsys):
    assert main(["convert", "a", "b"]) == 2
    said = capsys.readouterr().err
    assert said == "deepseek-v3: unknown command 'convert'; `export` writes every format, `import` reads a .gguf file\n"


def test_the_version_is_that_of_the_installed_package(capsys):
    import deepseek_v3

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"deepseek-v3 {deepseek_v3.__version__}\n"


def test_help_and_every_set_of_options_import_no_pytorch():
    homes = [f"deepseek_v3.commands.{command.module}" for command in COMMANDS.values()]
    code = f"import sys, {', '.join(homes)}; from deepseek_v3.cli import main; main(['--help'])"
    code += "; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder with what a new user may point at by mistake, and nothing of ours; the command runs in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("\n\n".join(f"passage {i} of some words" for i in range(40)))
    (tmp_path / "empty.json").touch()
    (tmp_path / "counts.jsonl").write_text('{"n": 1}\n{"n": 2}\n')
    (tmp_path / "folder").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("train --run= ", "--run is empty; leave it out for 'runs/train', or name one"),
        ("train --data= ", "--data is empty; leave it out for 'stdlib', or name one"),
        ("train --run notes.txt", "--run notes.txt: {desk}/notes.txt is not a folder; name another folder"),
        ("train --run notes.txt/new", "--run notes.txt/new: {desk}/notes.txt is not a folder; name another folder"),
        ("train --config nowhere.json", "nowhere.json cannot be read: no such file or directory; give the config.json"),
        ("train --config folder", "folder cannot be read: is a directory; give the config.json"),
        ("train --config empty.json", "empty.json is not JSON"),
        ("train --init-from folder", "folder/config.json: does not exist; give a run folder"),
        ("train --set num_hidden_layers=two", "num_hidden_layers='two' must be a whole number"),
        ("train --data counts.jsonl --text-key n", "row 1: int, not text, under 'n'; it has ['n']; name the column"),
        ("demo --run notes.txt", "--run notes.txt: {desk}/notes.txt is not a folder; name another folder"),
        ("demo --run .", "--run . holds something that is no demo; name another folder"),
        ("generate nowhere", "nowhere: does not exist; give a run folder, or one that holds config.json and"),
        ("generate folder", "folder/config.json: does not exist; give a run folder, or one that holds"),
        ("generate notes.txt", "notes.txt: is a file, not a folder; give a run folder"),
        ("inspect folder", "folder/config.json: does not exist; give a run folder"),
        ("export nowhere out", "nowhere: does not exist; give a run folder"),
        ("export folder out.gguf --to fp8", "--to fp8 does not go into a .gguf file; choose its numbers with"),
        ("export folder = --to gguf", "SOURCE and TARGET must have a name; the target is a new folder or a .gguf file"),
        ("size --config folder", "folder cannot be read: is a directory; give the config.json"),
    ],
)
def test_a_wrong_path_or_value_is_one_line(words, said, desk, capsys):
    assert main(["" if word == "=" else word for word in words.split()]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"deepseek-v3 {words.split()[0]}: ")
    assert said.format(desk=desk) in error
    assert error.count("\n") == 1
    assert sorted(path.name for path in desk.iterdir()) == ["counts.jsonl", "empty.json", "folder", "notes.txt"]


def test_a_run_folder_that_cannot_be_written_is_said_before_the_data_is_read(desk, monkeypatch, capsys):
    monkeypatch.setattr(
        os, "access", lambda path, mode: Path(path).absolute() != desk / "folder"
    )  # root may write anywhere
    assert main(["train", "--run", "folder/run", "--data", "nowhere"]) == 1
    assert capsys.readouterr().err.endswith(f"--run folder/run: {desk}/folder cannot be written; name another folder\n")
    assert main(["train", "--data", "folder"]) == 1
    assert capsys.readouterr().err.endswith("folder cannot be read: permission denied\n")
