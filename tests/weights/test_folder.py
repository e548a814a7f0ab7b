"""A folder is replaced as one, whatever kills the writer, and nothing of it stays behind."""

import os
import random
import resource
import signal
import subprocess
import tempfile
import time

import pytest
import torch

from deepseek_v3.weights import folder as folder_module
from deepseek_v3.weights.errors import CheckpointError, DigestError, SaveError
from deepseek_v3.weights.folder import UNFINISHED, atomic_folder, recover_folder
from deepseek_v3.weights.shards import load_tensors, save_tensors


def state(value: int) -> dict[str, torch.Tensor]:
    return {"a": torch.full((1009,), value), "b": torch.full((31, 7), float(value))}


def value_of(path) -> int:
    tensors = load_tensors(path)
    assert torch.all(tensors["a"] == tensors["b"][0, 0]), "a mixture of two states"
    return int(tensors["a"][0])


def names_in(path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def test_the_new_folder_takes_the_place_of_the_old_one(tmp_path):
    for value in (1, 2):
        save_tensors(state(value), tmp_path / "x")
        assert value_of(tmp_path / "x") == value
    assert names_in(tmp_path) == ["x"]
    assert names_in(tmp_path / "x") == ["manifest.json", "model.safetensors"]


def test_files_of_others_are_carried_over(tmp_path):
    save_tensors(state(1), tmp_path / "x", shard_bytes=2000)
    (tmp_path / "x" / "notes").mkdir()
    (tmp_path / "x" / "notes" / "today.txt").write_text("mine")
    save_tensors(state(2), tmp_path / "x")
    assert (tmp_path / "x" / "notes" / "today.txt").read_text() == "mine"
    assert value_of(tmp_path / "x") == 2
    assert names_in(tmp_path / "x") == ["manifest.json", "model.safetensors", "notes"]


def test_a_system_that_cannot_swap_renames_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_module, "_exchange", lambda a, b: False)
    for value in (1, 2):
        save_tensors(state(value), tmp_path / "x")
    assert value_of(tmp_path / "x") == 2
    assert names_in(tmp_path) == ["x"]


def test_an_exception_leaves_the_old_folder_and_nothing_else(tmp_path):
    def give_up_half_way():
        with atomic_folder(tmp_path / "x") as beside:
            (beside / "half.safetensors").write_bytes(b"half")
            raise KeyError("stop")

    save_tensors(state(1), tmp_path / "x")
    with pytest.raises(KeyError, match="stop"):
        give_up_half_way()
    assert value_of(tmp_path / "x") == 1
    assert names_in(tmp_path) == ["x"]


@pytest.mark.parametrize("step", ["write_manifest", "flush_folder", "_swap"])
def test_a_failing_disk_leaves_the_old_folder(tmp_path, monkeypatch, step):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    save_tensors(state(1), tmp_path / "x")
    with monkeypatch.context() as patch:
        patch.setattr(folder_module, step, fail)
        with pytest.raises(SaveError, match=r"/x: cannot be written: No space .* needs 1,\d{3},\d{3} bytes"):
            save_tensors(state(2), tmp_path / "x")
    assert value_of(tmp_path / "x") == 1
    assert names_in(tmp_path) == ["x"]


@pytest.mark.parametrize("leftover", ["saving", "old"])
@pytest.mark.parametrize("finished", [True, False])
def test_what_a_kill_left_is_cleared_by_the_next_load(tmp_path, leftover, finished):
    save_tensors(state(1), tmp_path / "x")
    save_tensors(state(2), tmp_path / f".x.{leftover}")
    (tmp_path / ".x.lock").touch()
    if not finished:
        (tmp_path / f".x.{leftover}" / UNFINISHED).touch()
    assert value_of(tmp_path / "x") == 1
    assert names_in(tmp_path) == ["x"]


def test_a_lock_alone_is_cleared_too(tmp_path):
    save_tensors(state(1), tmp_path / "x")
    (tmp_path / ".x.lock").touch()
    assert value_of(tmp_path / "x") == 1
    assert names_in(tmp_path) == ["x"]


def test_a_kill_between_two_renames_is_undone_and_before_a_first_rename_is_finished(tmp_path):
    save_tensors(state(1), tmp_path / ".x.old")
    save_tensors(state(2), tmp_path / ".x.saving")
    assert value_of(tmp_path / "x") == 1
    save_tensors(state(3), tmp_path / ".y.saving")
    assert value_of(tmp_path / "y") == 3
    assert names_in(tmp_path) == ["x", "y"]


def test_a_folder_that_is_not_ours_is_not_replaced(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "readme.txt").write_text("mine")
    save_tensors(state(1), tmp_path / "x")  # no checkpoint in it: welcome
    assert (tmp_path / "x" / "readme.txt").exists()
    (tmp_path / "x" / "manifest.json").unlink()
    with pytest.raises(SaveError, match="was not written here"):
        save_tensors(state(2), tmp_path / "x")
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError, match="is a file"):
        save_tensors(state(2), tmp_path / "file")


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_the_folder_one_is_in_is_not_replaced_nor_one_above_it(tmp_path, monkeypatch, name):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "readme.txt").write_text("mine")
    monkeypatch.chdir(tmp_path / "a" / "b")
    with pytest.raises(SaveError, match="is the folder you are in, or holds it; name a new one below it"):
        save_tensors(state(1), name)
    assert names_in(tmp_path / "a") == ["b", "readme.txt"]
    save_tensors(state(1), "c")
    assert value_of("c") == 1


def test_two_writers_at_once_and_the_second_is_told(tmp_path):
    with atomic_folder(tmp_path / "x") as beside:
        (beside / "a").write_text("1")
        with pytest.raises(SaveError, match="another process is saving here"):
            save_tensors(state(2), tmp_path / "x")
        recover_folder(tmp_path / "x")  # leaves the living writer alone
        save_tensors(state(3), tmp_path / "y")  # another folder is free
    assert names_in(tmp_path / "x") == ["a", "manifest.json"]
    assert names_in(tmp_path) == ["x", "y"]


def test_a_disk_that_is_too_small_is_told_before_the_first_byte(tmp_path):
    with pytest.raises(SaveError, match=r"/x: needs 1,000,001,048,576 bytes, [\d,]+ are free") as refusal:
        atomic_folder(tmp_path / "x", n_bytes=10**12).__enter__()
    assert isinstance(refusal.value, OSError)
    assert isinstance(refusal.value, CheckpointError)
    assert names_in(tmp_path) == []


def test_a_file_size_limit_reached_while_writing_leaves_the_old_folder(tmp_path):
    save_tensors(state(1), tmp_path / "x")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
    try:
        with pytest.raises(SaveError, match=r"File too large \(the checkpoint needs"):
            save_tensors(state(2), tmp_path / "x")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert value_of(tmp_path / "x") == 1
    assert names_in(tmp_path) == ["x"]


def test_a_full_tmpfs_leaves_the_old_folder(tmp_path, monkeypatch):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(tmp_path)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    try:
        save_tensors(state(1), tmp_path / "x")
        big = {**state(2), "big": torch.zeros(2**20)}
        with pytest.raises(SaveError, match=r"needs 5,\d{3},\d{3} bytes, [34],\d{3},\d{3} are free"):
            save_tensors(big, tmp_path / "x")
        monkeypatch.setattr(folder_module, "_check_room", lambda *_: None)  # as if it filled up meanwhile
        with pytest.raises(SaveError, match=r"No space left on device \(the checkpoint needs 5,\d{3},\d{3} bytes\)"):
            save_tensors(big, tmp_path / "x")
        assert value_of(tmp_path / "x") == 1
        assert names_in(tmp_path) == ["x"]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_read_only_parent_is_told_and_can_still_be_read():
    with tempfile.TemporaryDirectory() as parent:
        save_tensors(state(1), f"{parent}/x")
        os.chmod(parent, 0o555)
        reader, writer = os.pipe()
        if (child := os.fork()) == 0:
            try:
                if os.geteuid() == 0:  # permissions do not hold for root
                    os.setgroups([])
                    os.setuid(65534)
                save_tensors(load_tensors(f"{parent}/x"), f"{parent}/x")
            except BaseException as error:
                os.write(writer, repr(error).encode())
            finally:
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as answer:
            said = answer.read()
        os.waitpid(child, 0)
        os.chmod(parent, 0o755)
        assert "SaveError" in said
        assert f"{parent}/x: cannot be written: Permission denied; nothing was changed there" in said
        assert os.listdir(parent) == ["x"]


def test_a_damaged_manifest_is_noticed(tmp_path):
    save_tensors(state(1), tmp_path / "x")
    path = tmp_path / "x" / "manifest.json"
    good = path.read_bytes()
    for bad in (b"", b"[]", b'{"format": 1, "files": []}', good + b" ", good.replace(b'"format": 2', b'"format": 3')):
        path.write_bytes(bad)
        with pytest.raises(DigestError, match=r"manifest.json: (is not|was damaged)"):
            load_tensors(tmp_path / "x")
    path.write_bytes(good)
    (tmp_path / "x" / "extra.safetensors").write_bytes(b"")
    with pytest.raises(DigestError, match="was not written with the rest"):
        load_tensors(tmp_path / "x")
    (tmp_path / "x" / "extra.safetensors").unlink()
    (tmp_path / "x" / "model.safetensors").unlink()
    with pytest.raises(DigestError, match="it is not there"):
        load_tensors(tmp_path / "x")


def save_forever(path, value: int, report: int) -> None:
    while True:
        save_tensors(state(value), path, shard_bytes=4000)
        os.write(report, b"%d\n" % value)
        value += 1


@pytest.mark.parametrize("n_kills", [5, pytest.param(100, marks=pytest.mark.slow)])
def test_kill_nine_at_any_moment_leaves_a_whole_checkpoint(tmp_path, n_kills):
    """A child saves 1, 2, 3, ...; whatever it had reported before the kill is there, or the one after."""
    randomness = random.Random(n_kills)
    reported = 0
    for _ in range(n_kills):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                save_forever(tmp_path / "x", reported + 1, writer)
            finally:
                os._exit(1)
        os.close(writer)
        with os.fdopen(reader) as reports:
            reported = int(reports.readline())
            time.sleep(randomness.uniform(0, 0.06))
            os.kill(child, signal.SIGKILL)
            reported = max([reported, *map(int, reports)])
        os.waitpid(child, 0)
        reported = value_of(tmp_path / "x") if value_of(tmp_path / "x") == reported + 1 else reported
        assert value_of(tmp_path / "x") == reported
        assert names_in(tmp_path) == ["x"]


def test_what_is_somebodys_in_a_replaced_folder_is_carried_over_as_it_is(tmp_path):
    import stat

    target = tmp_path / "out"
    with atomic_folder(target) as beside:
        (beside / "config.json").write_text("old")
    for folder in (".git/objects/ab", "empty", "notes"):
        (target / folder).mkdir(parents=True)
    (target / "notes" / "a.txt").write_text("mine")
    (target / "notes" / "a.txt").chmod(0o640)
    (target / "link").symlink_to("nowhere")
    (target / "run.sh").write_text("mine")
    (target / "run.sh").chmod(0o755)
    target.chmod(0o750)
    with atomic_folder(target) as beside:
        (beside / "config.json").write_text("new")
    assert (target / "config.json").read_text() == "new"
    assert (target / ".git/objects/ab").is_dir()
    assert (target / "empty").is_dir()
    assert os.readlink(target / "link") == "nowhere"
    modes = {name: stat.S_IMODE((target / name).stat().st_mode) for name in ("run.sh", "notes/a.txt", "")}
    assert modes == {"run.sh": 0o755, "notes/a.txt": 0o640, "": 0o750}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_mount_point_is_refused_before_the_first_byte(tmp_path, monkeypatch):
    target = tmp_path / "out"
    target.mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: str(path) == str(target))
    with pytest.raises(SaveError, match="mount point"), atomic_folder(target):
        raise AssertionError("written")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_swap_that_the_system_refuses_leaves_the_old_folder_and_nothing_beside(tmp_path, monkeypatch):
    import errno

    from deepseek_v3.weights import folder as module

    target = tmp_path / "out"
    with atomic_folder(target) as beside:
        (beside / "a").write_text("old")
    monkeypatch.setattr(module, "_exchange", lambda *_: False)
    rename = type(target).rename

    def busy(self, other):
        if self.name.endswith(".saving"):
            raise OSError(errno.EBUSY, "Device or resource busy")
        return rename(self, other)

    monkeypatch.setattr(type(target), "rename", busy)
    with pytest.raises(SaveError, match="busy"), atomic_folder(target) as beside:
        (beside / "a").write_text("new")
    assert (target / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
