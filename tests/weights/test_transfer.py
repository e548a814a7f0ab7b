"""Loading through the kernel that moves several tensors in one call gives what loading one by one gives."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from tiny_checkpoints import random_model

from deepseek_v3.native.build import SWITCH, have_kernels
from deepseek_v3.weights import load
from deepseek_v3.weights.errors import ScaleError
from deepseek_v3.weights.load import load_model
from deepseek_v3.weights.safetensors_file import read_header
from deepseek_v3.weights.save import save_model
from deepseek_v3.weights.shards import read_tensors
from deepseek_v3.weights.transfer import GROUP_BYTES, Transfer, group_transfers

pytestmark = pytest.mark.skipif(not have_kernels(), reason="no C++ compiler here")


def states_with_and_without(folder: Path, monkeypatch, **options) -> list[dict[str, torch.Tensor]]:
    """Load twice; the first time through the kernel, which must have been used."""
    used, run = [], load.run_transfers
    monkeypatch.setattr(load, "run_transfers", lambda transfers: used.extend(transfers) or run(transfers))
    ours = load_model(folder, **options)[0].state_dict()
    assert used
    used.clear()
    monkeypatch.setenv(SWITCH, "0")
    theirs = load_model(folder, **options)[0].state_dict()
    assert not used
    return [ours, theirs]


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype
        assert torch.equal(tensor.view(torch.uint8), theirs[name].view(torch.uint8)), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("stored", [{"fp8": True}, {"dtype": torch.float32}, {"dtype": torch.bfloat16}], ids=str)
@pytest.mark.parametrize("keep", [True, False])
def test_the_same_bits_in_every_form(tmp_path, monkeypatch, dtype, stored, keep):
    model = random_model(hidden_size=158, intermediate_size=263, moe_intermediate_size=137)
    save_model(model, tmp_path / "a", **{"dtype": torch.bfloat16, **stored}, shard_bytes=100_000)
    assert_same(*states_with_and_without(tmp_path / "a", monkeypatch, dtype=dtype, keep_fp8=keep))


def write_unaligned(source: Path, target: Path) -> bool:
    """One shard in alphabetical order, without a thought of alignment; return whether a scale has lost it."""
    target.mkdir()
    (target / "config.json").write_bytes((source / "config.json").read_bytes())
    header, data, tensors = {}, b"", read_tensors(source)
    names = {torch.float8_e4m3fn: "F8_E4M3", torch.bfloat16: "BF16", torch.float32: "F32"}
    for name in sorted(tensors):
        raw = tensors[name].contiguous().view(torch.uint8).numpy().tobytes()
        place = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": names[tensors[name].dtype], "shape": list(tensors[name].shape), "data_offsets": place}
        data += raw
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    (target / "model.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return any(entry["data_offsets"][0] % 4 for name, entry in header.items() if name.endswith("_scale_inv"))


@pytest.mark.parametrize("keep", [True, False])
def test_a_file_that_aligns_nothing_is_read(tmp_path, monkeypatch, keep):
    save_model(random_model(), tmp_path / "a", dtype=torch.bfloat16, fp8=True)
    assert write_unaligned(tmp_path / "a", tmp_path / "b")
    ours, theirs = states_with_and_without(tmp_path / "b", monkeypatch, keep_fp8=keep)
    assert_same(ours, theirs)
    assert_same(ours, load_model(tmp_path / "a", keep_fp8=keep)[0].state_dict())


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize(("dtype", "keep"), [(torch.bfloat16, True), (torch.bfloat16, False), (torch.float32, False)])
@pytest.mark.parametrize("kernels", ["1", "0"])
def test_the_first_wrong_number_of_a_group_is_named(tmp_path, monkeypatch, scale, dtype, keep, kernels):
    monkeypatch.setenv(SWITCH, kernels)
    save_model(random_model(), tmp_path / "a", dtype=torch.bfloat16, fp8=True)
    path = tmp_path / "a" / "model.safetensors"
    entries, content = read_header(path).entries, bytearray(path.read_bytes())
    wrong = [name for name in entries if name + "_scale_inv" in entries][4:8:3]
    for name in wrong:
        start = entries[name + "_scale_inv"].start
        content[start : start + 4] = torch.tensor([scale]).numpy().tobytes()
    path.write_bytes(content)
    with pytest.raises(ScaleError, match=rf"block \(0, 0\) has the scale {scale}") as caught:
        load_model(tmp_path / "a", keep_fp8=keep, dtype=dtype, skip_verify=True)
    assert caught.value.tensor == wrong[0] + "_scale_inv"


def test_groups_hold_every_transfer_once_in_the_order_of_the_file():
    sizes = [3, 5, GROUP_BYTES * 2, 7, GROUP_BYTES // 2, GROUP_BYTES // 2 - 1, 9, GROUP_BYTES]
    transfers, end = [], 0
    for i, size in enumerate(sizes):
        end += size
        transfers.append((end, Transfer(str(i), end - size, 0, 0, 0, 1, size, 0)))
    groups = list(group_transfers(reversed(transfers)))
    assert [t.name for _, group in groups for t in group] == [str(i) for i in range(len(sizes))]
    for end, group in groups:
        assert end == group[-1].start + group[-1].columns
        assert len(group) == 1 or sum(t.columns for t in group) <= GROUP_BYTES
    assert len(groups) < len(sizes)
    assert list(group_transfers([])) == []
