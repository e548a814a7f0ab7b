"""GGUF files: there and back, what llama.cpp wants in them, and what is refused."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from tiny_checkpoints import YARN, folder_digests, random_model

from deepseek_v3.weights.errors import CheckpointError
from deepseek_v3.weights.gguf import export_gguf
from deepseek_v3.weights.gguf_reader import import_gguf
from deepseek_v3.weights.save import save_model

gguf = pytest.importorskip("gguf")


@pytest.mark.parametrize("number_type", ["f32", "bf16"])
def test_gguf_there_and_back_is_byte_equal(tmp_path, number_type):
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[number_type]
    said = {"rope_scaling": YARN, "max_position_embeddings": 640, "initializer_range": 0.02}  # the last is not stored
    model = random_model(num_nextn_predict_layers=0, **said).to(dtype)
    for module in model.modules():  # norms and router are always F32 in the file: make them representable in both
        if hasattr(module, "eps") or hasattr(module, "e_score_correction_bias"):
            module.weight.data = module.weight.data.bfloat16().to(dtype)
    save_model(model, tmp_path / "a")
    export_gguf(tmp_path / "a", tmp_path / "m.gguf", number_type=number_type)
    import_gguf(tmp_path / "m.gguf", tmp_path / "b")
    assert folder_digests(tmp_path / "a") == folder_digests(tmp_path / "b")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "m.gguf"}


def test_the_file_holds_what_the_architecture_wants(tmp_path):
    save_model(random_model(rope_scaling=YARN), tmp_path / "a")
    export_gguf(tmp_path / "a", tmp_path / "m.gguf", number_type="f32")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    value = {name: field.contents() for name, field in reader.fields.items()}
    assert value["general.architecture"] == "deepseek2"
    assert value["deepseek2.attention.head_count_kv"] == 1
    assert value["deepseek2.attention.key_length"] == 13 + 6
    assert value["deepseek2.attention.value_length"] == 13
    assert value["deepseek2.attention.key_length_mla"] == 7 + 6
    assert value["deepseek2.attention.value_length_mla"] == 5
    assert value["deepseek2.rope.scaling.yarn_log_multiplier"] == pytest.approx(0.1)
    assert value["deepseek2.expert_gating_func"] == 2
    tensors = {t.name: t for t in reader.tensors}
    kv_b = random_model().layers[2].self_attn.kv_b_proj.weight.view(3, 7 + 5, 13)
    key = torch.from_numpy(tensors["blk.2.attn_k_b.weight"].data.copy())
    assert torch.equal(key, kv_b[:, :7].transpose(1, 2))  # transposed per head
    assert torch.equal(torch.from_numpy(tensors["blk.2.attn_v_b.weight"].data.copy()), kv_b[:, 7:])
    assert not any(name.startswith("blk.3.") for name in tensors)  # no MTP layer


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF\x03\0\0\0" + b"\xff" * 64, bytes(500)])
def test_a_broken_gguf_file_is_refused(tmp_path, content):
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"m\.gguf"):
        import_gguf(tmp_path / "m.gguf", tmp_path / "a")


def test_another_architecture_and_a_quantised_tensor_are_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match="'llama', not 'deepseek2'"):
        import_gguf(tmp_path / "m.gguf", tmp_path / "a")
