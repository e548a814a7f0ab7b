"""Tensors in a folder: whole, in shards, and an index that has to tell the truth."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deepseek_v3.weights.errors import CheckpointError, DigestError, DtypeError, IndexFileError, UnsafePathError
from deepseek_v3.weights.shards import load_tensors, plan_shards, read_headers, read_tensors, save_tensors


def some_tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "a": torch.randn(7, 11),
        "b": torch.randn(13, 5).to(torch.bfloat16).T,  # not contiguous
        "c": torch.randn(3, 17).to(torch.float8_e4m3fn),
        "step": torch.tensor(3),
        "none": torch.empty(0, 2),
    }


def same_tensors(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype
        and a[k].shape == b[k].shape
        and torch.equal(
            a[k].contiguous().reshape(-1).view(torch.uint8), b[k].contiguous().reshape(-1).view(torch.uint8)
        )
        for k in a
    )


@pytest.fixture
def sharded(tmp_path) -> Path:
    save_tensors(some_tensors(), tmp_path / "x", shard_bytes=150)
    return tmp_path / "x"


@pytest.mark.parametrize("shard_bytes", [None, 1, 150, 10**9])
def test_what_is_saved_is_loaded(tmp_path, shard_bytes):
    save_tensors(some_tensors(), tmp_path / "x", metadata={"format": "pt"}, shard_bytes=shard_bytes)
    assert same_tensors(load_tensors(tmp_path / "x"), some_tensors())


def test_the_library_reads_the_shards_and_the_total_is_exact(sharded):
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    found = {}
    for file in set(index["weight_map"].values()):
        shard = load_file(sharded / file)
        assert all(index["weight_map"][name] == file for name in shard)
        found.update(shard)
    assert same_tensors(found, some_tensors())
    assert index["metadata"]["total_size"] == sum(t.numel() * t.itemsize for t in found.values())


def test_a_shard_is_at_most_as_large_as_asked_unless_one_tensor_is_larger():
    specs = [(str(i), torch.float32, (n,)) for i, n in enumerate([3, 5, 2, 30, 1, 1])]
    plan = plan_shards(specs, shard_bytes=32)
    assert [[n for n, _, _ in files] for files in plan.files.values()] == [["0", "1"], ["2"], ["3"], ["4", "5"]]
    assert next(iter(plan.files)) == "model-00001-of-00004.safetensors"
    assert plan.total_size == 4 * 42


def test_files_have_the_mode_that_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        save_tensors(some_tensors(), tmp_path / "x", shard_bytes=150)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "x").iterdir()} == {0o640}
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o750


def test_nothing_is_stored_that_has_no_code():
    with pytest.raises(DtypeError, match="complex64"):
        plan_shards([("z", torch.complex64, (1,))])
    with pytest.raises(ValueError, match="shard_bytes=0"):
        plan_shards([], shard_bytes=0)


def test_the_same_tensors_give_the_same_bytes(tmp_path):
    for name in ("x", "y"):
        save_tensors(some_tensors(), tmp_path / name, shard_bytes=150)
    for path in (tmp_path / "x").iterdir():
        assert path.read_bytes() == (tmp_path / "y" / path.name).read_bytes()


@pytest.mark.parametrize(
    ("file", "error", "said"),
    [
        ("../x.safetensors", UnsafePathError, "not a plain name"),
        ("/etc/x.safetensors", UnsafePathError, "not a plain name"),
        ("a/b.safetensors", UnsafePathError, "not a plain name"),
        ("a\0.safetensors", UnsafePathError, "not a plain name"),
        ("a\\b.safetensors", UnsafePathError, "not a plain name"),
        (".hidden.safetensors", UnsafePathError, "not a plain name"),
        ("model.bin", UnsafePathError, "not a plain name"),
        ("", UnsafePathError, "not a plain name"),
        ("x" * 10**7 + ".safetensors", UnsafePathError, "10000014 characters"),
        (7, IndexFileError, "int 7"),
        (None, IndexFileError, "NoneType"),
        (["a"], IndexFileError, "list"),
        ("absent.safetensors", IndexFileError, "not there"),
        ("model-00001-of-00003.safetensors", IndexFileError, "where the index puts it"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_name_in_the_index_that_cannot_be_is_refused(sharded, file, error, said):
    path = sharded / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["step"] = file
    path.write_text(json.dumps(index))
    with pytest.raises(error, match=said) as refusal:
        read_headers(sharded)
    assert refusal.value.tensor == "step"
    assert len(str(refusal.value)) < 1000


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "not JSON"),
        ("[]", "a JSON list"),
        ("{}", "weight_map"),
        ('{"weight_map": []}', "weight_map"),
        ('{"weight_map": {}}', "weight_map"),
        ('{"weight_map": {"a": "b"}, "metadata": 3}', "metadata"),
        ('{"weight_map": {"a": "b.safetensors", "a": "b.safetensors"}}', "twice"),
        ('{"weight_map": {"a": NaN}}', "NaN"),
        ("[" * 10**6, "pieces"),
        ('{"a":' * 10**6, "pieces"),
        ("[" * 999, "nested|not JSON"),
        ("[" + "1," * 10**6, "pieces"),
        ('{"weight_map": {"a": ' + "1" * 10**6 + "}}", "1,000,000 digits"),
        (" " * (2**24 + 1), "larger than"),
        ("\ud800", "UTF-8"),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_an_index_that_is_malformed_is_refused(sharded, content, said):
    (sharded / "model.safetensors.index.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(CheckpointError, match=said):
        read_headers(sharded)


@pytest.mark.parametrize("total", [1, -1, True, "9", 1.5, 10**30])
def test_a_total_that_is_wrong_is_refused(sharded, total):
    path = sharded / "model.safetensors.index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "metadata": {"total_size": total}}))
    with pytest.raises(IndexFileError, match=r"total_size|digits"):
        read_headers(sharded)


def test_an_index_without_a_total_or_with_a_float_one_is_read(sharded):
    path = sharded / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    for metadata in ({}, {"total_size": float(index["metadata"]["total_size"])}):
        path.write_text(json.dumps({**index, "metadata": metadata}))
        assert same_tensors(read_tensors(sharded), some_tensors())


def test_a_tensor_that_the_index_forgets_or_puts_elsewhere_is_refused(sharded):
    path = sharded / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    forgotten = {k: v for k, v in index["weight_map"].items() if k != "step"}
    path.write_text(json.dumps({**index, "weight_map": forgotten}))
    with pytest.raises(IndexFileError, match="tensor step: lies in this shard, but the index does not name it"):
        read_headers(sharded)


def test_a_shard_that_links_out_of_the_folder_is_refused_unless_allowed(sharded, tmp_path):
    file = sharded / "model-00001-of-00003.safetensors"
    shutil.move(file, tmp_path / "outside.safetensors")
    file.symlink_to("../outside.safetensors")
    with pytest.raises(UnsafePathError, match="leaves the folder"):
        read_headers(sharded)
    assert read_headers(sharded, follow_links=True)


def test_two_answers_or_none_are_refused(sharded, tmp_path):
    shutil.copy(sharded / "model-00001-of-00003.safetensors", sharded / "model.safetensors")
    with pytest.raises(IndexFileError, match="which one counts"):
        read_headers(sharded)
    with pytest.raises(CheckpointError, match="holds neither"):
        read_headers(tmp_path)


def test_a_flipped_bit_is_noticed_and_the_check_can_be_skipped_aloud(sharded, caplog):
    path = sharded / "model-00001-of-00003.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DigestError, match=r"00001-of-00003.safetensors: its bytes are not"):
        load_tensors(sharded)
    assert load_tensors(sharded, skip_verify=True).keys() == some_tensors().keys()
    assert "NOT verified" in caplog.text
