"""Our reader of .safetensors files agrees with the library on good files and is stricter on all others."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from deepseek_v3.weights.errors import CheckpointError, HeaderError, MissingTensorError
from deepseek_v3.weights.safetensors_file import DTYPES, SafetensorsFile, layout_header, parse_header, read_header


def some_tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    tensors = {f"t.{code}": torch.randint(0, 120, (3, 5)).to(dtype) for code, dtype in DTYPES.items() if code != "BOOL"}
    return {
        **tensors,
        "flag": torch.tensor(True),
        "empty": torch.empty(0, 7),
        "odd.bytes": torch.arange(3).to(torch.int8),
    }


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def test_every_dtype_written_by_the_library_is_read_back(tmp_path):
    tensors = some_tensors()
    save_file(tensors, tmp_path / "a.safetensors", metadata={"format": "pt", "note": 'a "quoted" \\ é'})
    with SafetensorsFile(tmp_path / "a.safetensors") as shard:
        assert shard.header.metadata == {"format": "pt", "note": 'a "quoted" \\ é'}
        assert shard.header.entries.keys() == tensors.keys()
        assert all(same(shard.view(name), tensor) for name, tensor in tensors.items())


def test_the_library_reads_what_our_header_lays_out(tmp_path):
    tensors = some_tensors()
    head, order = layout_header([(n, t.dtype, tuple(t.shape)) for n, t in tensors.items()], {"format": "pt"})
    data = b"".join(tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes() for name in order)
    (tmp_path / "a.safetensors").write_bytes(head + data)
    assert len(head) % 8 == 0
    assert all(same(load_file(tmp_path / "a.safetensors")[name], tensor) for name, tensor in tensors.items())
    for entry in read_header(tmp_path / "a.safetensors").entries.values():
        assert entry.start % DTYPES[entry.dtype].itemsize == 0


def test_a_view_is_the_files_own_memory_and_release_keeps_it_valid(tmp_path):
    save_file({"w": torch.arange(7.0)}, tmp_path / "a.safetensors")
    shard = SafetensorsFile(tmp_path / "a.safetensors")
    view = shard.view("w")
    shard.release()
    assert view.tolist() == list(range(7))
    with pytest.raises(MissingTensorError, match="tensor v: is not in this file"):
        shard.view("v")


def test_a_header_may_have_its_fields_in_any_order_and_white_space():
    raw = b'{ "w" :\n{ "data_offsets" : [ 0 , 8 ] ,"shape":[ 2 ],\t"dtype":"F32"} , "__metadata__":{ "a" : "b" } }  '
    header = parse_header(raw, 8 + len(raw) + 8, "a")
    assert header.entries["w"].shape == (2,)
    assert header.metadata == {"a": "b"}


def test_a_file_without_tensors_is_well_formed():
    assert parse_header(b"{}", 10, "a").entries == {}
    assert parse_header(b'{"__metadata__":{}}   ', 30, "a").entries == {}


W = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "not a JSON object"),
        (b"[]", "not a JSON object"),
        (b'{"w":', "not a JSON object"),
        (b"{}}", "malformed entry"),
        (b'{"__metadata__":{}}}', "closing"),
        (b"\xff{}", "UTF-8"),
        (b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}x}', "closing"),
        (b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},}', "malformed entry"),
        (b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]} "v":{}}', "closing"),
        (b'{"w":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}}', "malformed entry"),
        (b'{"w":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}', "malformed entry"),
        (b'{"w":{"dtype":"F32","shape":[02],"data_offsets":[0,8]}}', "malformed entry"),
        (b'{"w":{"dtype":"F32","shape":[1e1],"data_offsets":[0,8]}}', "malformed entry"),
        (b'{"w":{"dtype":"F32","shape":["2"],"data_offsets":[0,8]}}', "malformed entry"),
        (b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1}}', "malformed entry"),
        (b'{"w":{"dtype":"F32","shape":[2],"shape":[2]}}', "each once"),
        (b'{"w":{"dtype":"F32","shape":[2],"shape":[2],"data_offsets":[0,8]}}', "malformed entry"),
        (b'{"w":{"dtype":"F32","shape":[2],"dtype":"F32"}}', "each once"),
        (b'{"w":{"dtype":"F32","shape":[2],"dtype":"F32" }, "__metadata__":{}}', "each once"),
        (b'{"w":{"dtype":"F32","dtype":"F32","data_offsets":[0,8]}}', "each once"),
        (b'{"w":{"dtype":[2],"shape":[2],"data_offsets":[0,8]}}', "each once"),
        (b'{"w":{"dtype":"F32","shape":"F32","data_offsets":[0,8]}}', "each once"),
        (b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0]}}', "1 numbers"),
        (b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8,8]}}', "3 numbers"),
        (b'{"w":{"dtype":"F31","shape":[2],"data_offsets":[0,8]}}', "dtype 'F31'"),
        (b'{"w":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}', "takes 12 bytes"),
        (b'{"w":{"dtype":"F32","shape":[9999999999999999999],"data_offsets":[0,8]}}', "takes 39"),
        (b'{"w":{"dtype":"F32","shape":[99999999999999999999],"data_offsets":[0,8]}}', "malformed entry"),
        (b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}', "span -8"),
        (b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}', "truncated"),
        (b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', "belong to none"),
        (b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', "hole"),
        (
            b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"v":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
            "overlap",
        ),
        (
            b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
            "twice",
        ),
        (
            b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"v":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
            "overlap",
        ),
        (b'{"":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', "malformed entry"),
        (b'{"a\\u0062":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', "malformed entry"),
        (b'{"a\x01":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', "malformed entry"),
        (b'{"' + b"a" * 513 + b'":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', "malformed entry"),
        (b'{"w":{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,2],"data_offsets":[0,8]}}', "malformed entry"),
        (b'{"__metadata__":{"a":1}}', "flat map"),
        (b'{"__metadata__":{"a":"b","a":"b"}}', "twice"),
        (b'{"__metadata__":{},"__metadata__":{}}', "twice"),
        (b'{"__metadata__":{"a":"\\u12"}}', "malformed text"),
        (b'{"__metadata__":{"a":{}}}', "flat map"),
        (b'{"__metadata__":[]}', "malformed entry"),
        (b"[" * 10**6, "not a JSON object"),
        (b"{" + b"[" * 10**6 + b"}", "malformed entry"),
        (b'{"w":' * 10**6 + b"}" * 10**6, "malformed entry"),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_a_header_that_breaks_a_rule_is_refused(raw, said):
    with pytest.raises(CheckpointError, match=said) as refusal:
        parse_header(raw, 8 + len(raw) + 8, "a.safetensors")
    assert refusal.value.file == "a.safetensors"
    assert len(str(refusal.value)) < 600


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "too few"),
        (b"\x02\0\0\0\0\0\0", "too few"),
        (b"\x03\0\0\0\0\0\0\0{}", "does not fit"),
        (b"\xff" * 8 + b"{}", "above the limit"),
        ((2**24 + 1).to_bytes(8, "little") + b"{}", "above the limit"),
        (b"\x00" * 8, "not a JSON object"),
    ],
)
def test_a_length_that_cannot_be_is_refused(tmp_path, content, said):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(HeaderError, match=said):
        read_header(tmp_path / "a.safetensors")


def test_a_file_that_is_not_there_or_is_a_folder_is_refused(tmp_path):
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(HeaderError, match="cannot be read"):
            read_header(path)


def test_the_good_header_of_the_refused_ones_is_read():
    raw = json.dumps({"w": W}, separators=(",", ":")).encode()
    assert parse_header(raw, 8 + len(raw) + 8, "a").entries["w"].n_bytes == 8
