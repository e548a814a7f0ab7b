"""SHA-256 in pieces: the kernel against hashlib, files cut at every kind of length, and manifests of both formats."""

import hashlib
import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from tiny_checkpoints import random_model

from deepseek_v3.native.build import ask_kernel, have_kernels, run_kernel
from deepseek_v3.weights import digests, load
from deepseek_v3.weights.digests import Piece, cut_file, digest_group, digest_pieces
from deepseek_v3.weights.errors import DigestError
from deepseek_v3.weights.load import load_model
from deepseek_v3.weights.manifest import MANIFEST, spell_manifest, verify_manifest, write_manifest
from deepseek_v3.weights.save import save_model
from deepseek_v3.weights.shards import load_tensors, save_tensors

BYTES = torch.randint(0, 256, (200_000,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def hash_by_kernel(pieces: list[torch.Tensor]) -> list[str]:
    """The digests of some pieces of memory, all given to the kernel at once."""
    address, n_bytes = (torch.tensor(numbers) for numbers in zip(*[(p.data_ptr(), len(p)) for p in pieces]))
    digest = torch.empty(len(pieces), 32, dtype=torch.uint8)
    run_kernel("sha256_pieces", address, n_bytes, digest, len(pieces))
    return [bytes(row.tolist()).hex() for row in digest]


needs_unit = pytest.mark.skipif(
    not have_kernels() or not ask_kernel("sha256_lanes"), reason="no C++ compiler here, or no SHA-256 instructions"
)


@needs_unit
def test_two_digests_at_once_are_those_of_hashlib():
    """Lengths around a block of 64 bytes, where the padding takes one block more, at odd addresses, and unequal."""
    for a_bytes in (*range(130), 4095, 70_001):
        for b_bytes in (0, 1, 55, 56, 63, 64, 119, 120, 128, 1000, 70_001):
            pair = [BYTES[3 : 3 + a_bytes], BYTES[100_000 : 100_000 + b_bytes]]
            assert hash_by_kernel(pair) == [sha256(bytes(x.tolist())) for x in pair]


@needs_unit
@pytest.mark.parametrize("count", [1, 2, 3, 12, 13, 15, 16])
def test_up_to_sixteen_digests_at_once_are_those_of_hashlib(count):
    """Alike in length but for some: those of the last pieces of files, which leave their lanes early or late."""
    for odd in ([], [0], [count - 1], [0, count // 2], list(range(0, count, 3))):
        for other in (0, 63, 700, 9_999):
            lengths = [other if i in odd else 5_000 for i in range(count)]
            pieces = [BYTES[7_001 * i : 7_001 * i + n] for i, n in enumerate(lengths)]
            assert hash_by_kernel(pieces) == [sha256(bytes(x.tolist())) for x in pieces]


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("n_bytes", [0, 1, 65_536, 65_537, 200_000])
def test_the_pieces_of_a_file_are_hashed_each_by_itself(tmp_path, monkeypatch, compiled, n_bytes):
    if not compiled:
        monkeypatch.setattr(digests, "have_kernels", lambda: False)
    content = bytes(BYTES[:n_bytes].tolist())
    (tmp_path / "x").write_bytes(content)
    pieces = cut_file(tmp_path / "x", n_bytes, 65_536)
    assert sum(piece.n_bytes for piece in pieces) == n_bytes
    assert digest_pieces(pieces) == [sha256(content[piece.start : piece.stop]) for piece in pieces]
    assert digest_group(pieces[-1:]) == [sha256(content[pieces[-1].start :])]


def test_a_file_that_ends_early_has_another_digest(tmp_path):
    (tmp_path / "x").write_bytes(b"half")
    assert digest_group([Piece(tmp_path / "x", 0, 8)]) == [sha256(b"half")]


@pytest.fixture
def small_pieces(monkeypatch):
    """Pieces of 64 KB, so that a small file has several."""
    monkeypatch.setattr("deepseek_v3.weights.manifest.PIECE_BYTES", 65_536)


def test_a_flipped_bit_in_any_piece_is_noticed(tmp_path, small_pieces):
    (tmp_path / "a.bin").write_bytes(bytes(BYTES.tolist()))
    (tmp_path / "b.bin").write_bytes(b"")
    write_manifest(tmp_path)
    content = json.loads((tmp_path / MANIFEST).read_text())
    assert [len(entry["sha256"]) for entry in content["files"].values()] == [4, 1]
    assert verify_manifest(tmp_path)
    for position in (0, 65_535, 65_536, 130_000, 199_999):
        broken = BYTES.clone()
        broken[position] ^= 1
        (tmp_path / "a.bin").write_bytes(bytes(broken.tolist()))
        with pytest.raises(DigestError, match=r"a\.bin: its bytes are not"):
            verify_manifest(tmp_path)


def test_a_manifest_of_format_1_is_still_read(tmp_path):
    """One digest for all of a file, as `sha256sum` prints it."""
    save_tensors({"a": BYTES}, tmp_path / "x")
    path = tmp_path / "x" / "model.safetensors"
    raw = path.read_bytes()
    first = {"model.safetensors": {"bytes": len(raw), "sha256": sha256(raw)}}
    (tmp_path / "x" / MANIFEST).write_text(json.dumps({"format": 1, "files": first}, indent=1) + "\n")
    assert torch.equal(load_tensors(tmp_path / "x")["a"], BYTES)
    path.write_bytes(raw[:-1] + b"\0")
    with pytest.raises(DigestError, match="its bytes are not"):
        load_tensors(tmp_path / "x")


@pytest.mark.parametrize("piece_bytes", [65_536, 2**24])
def test_a_manifest_of_other_pieces_is_still_read(tmp_path, piece_bytes):
    save_tensors({"a": BYTES}, tmp_path / "x")
    path = tmp_path / "x" / "model.safetensors"
    raw = path.read_bytes()
    shas = [sha256(raw[start : start + piece_bytes]) for start in range(0, len(raw), piece_bytes)]
    content = {
        "format": 2,
        "piece_bytes": piece_bytes,
        "files": {"model.safetensors": {"bytes": len(raw), "sha256": shas}},
    }
    (tmp_path / "x" / MANIFEST).write_text(json.dumps(content, indent=1) + "\n")
    assert torch.equal(load_tensors(tmp_path / "x")["a"], BYTES)
    path.write_bytes(raw[:-1] + b"\0")
    with pytest.raises(DigestError, match="its bytes are not"):
        load_tensors(tmp_path / "x")


@pytest.mark.parametrize("piece_bytes", [0, -1, 2**25, "x", True, 1.5, None])
def test_a_manifest_of_impossible_pieces_is_refused(tmp_path, piece_bytes):
    save_tensors({"a": BYTES}, tmp_path / "x")
    path = tmp_path / "x" / MANIFEST
    content = json.loads(path.read_text()) | {"piece_bytes": piece_bytes}
    path.write_text(json.dumps(content, indent=1) + "\n")
    with pytest.raises(DigestError, match="is not a manifest"):
        verify_manifest(tmp_path / "x")


def test_a_manifest_with_a_digest_too_few_or_of_a_mixed_format_is_refused(tmp_path):
    save_tensors({"a": BYTES}, tmp_path / "x")
    path = tmp_path / "x" / MANIFEST
    content = json.loads(path.read_text())
    entry = content["files"]["model.safetensors"]
    for sha in ([], entry["sha256"] * 2, entry["sha256"][0]):
        entry["sha256"] = sha
        path.write_text(json.dumps(content, indent=1) + "\n")
        with pytest.raises(DigestError, match="is not a manifest"):
            verify_manifest(tmp_path / "x")


def test_damage_behind_the_first_piece_is_noticed_while_the_model_is_filled(tmp_path, monkeypatch, small_pieces):
    """Headers are verified before they count, the rest of a file as it comes in; both say damage, not a symptom."""
    save_model(random_model(), tmp_path / "x", fp8=True)
    path = tmp_path / "x" / "model.safetensors"
    raw = path.read_bytes()
    assert len(raw) > 2 * 65_536
    before = []
    monkeypatch.setattr(load, "verify_pieces", lambda expected: before.extend(expected))
    load_model(tmp_path / "x")
    assert {(piece.path.name, piece.start) for piece, _ in before} == {("config.json", 0), ("model.safetensors", 0)}
    for position in (65_536, len(raw) - 1):
        path.write_bytes(raw[:position] + bytes([raw[position] ^ 1]) + raw[position + 1 :])
        with pytest.raises(DigestError, match=r"model.safetensors: its bytes are not"):
            load_model(tmp_path / "x")


def test_an_index_of_several_pieces_is_verified_before_it_counts(tmp_path):
    assert load.is_head(Piece(tmp_path / "model.safetensors.index.json", 2**22, 2**23))
    assert not load.is_head(Piece(tmp_path / "model-00001-of-00163.safetensors", 2**22, 2**23))


def test_the_spelling_of_both_formats_differs_in_the_format_only():
    assert json.loads(spell_manifest({}, 1)) == {"format": 1, "files": {}}
    assert json.loads(spell_manifest({})) == {"format": 2, "piece_bytes": 2**22, "files": {}}
