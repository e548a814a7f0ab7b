"""The commands import, export, convert and inspect, as a user types them."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from tiny_checkpoints import YARN, folder_digests, random_model

from deepseek_v3.cli import main
from deepseek_v3.weights.errors import CheckpointError
from deepseek_v3.weights.gguf import export_gguf, import_gguf
from deepseek_v3.weights.load import load_model
from deepseek_v3.weights.save import save_model

gguf = pytest.importorskip("gguf")


def test_import_export_convert_and_inspect(tmp_path, capsys):
    model = random_model()
    save_model(model.bfloat16(), tmp_path / "ours")
    (tmp_path / "ours" / "manifest.json").rename(tmp_path / "kept.json")  # as if downloaded
    a, b, c = (str(tmp_path / name) for name in "abc")
    assert main(["import", str(tmp_path / "ours"), a, "--shard-mb", "0.02"]) == 0
    assert main(["export", a, b, "--to", "fp8"]) == 0
    assert main(["convert", b, c, "--to", "bf16"]) == 0
    assert load_model(c)[0].config == load_model(a)[0].config
    assert main(["inspect", b, "--verify"]) == 0
    assert "every tensor is there" in capsys.readouterr().out
    assert main(["inspect", b, "--json"]) == 0
    assert main(["export", a, str(tmp_path / "model.gguf")]) == 0
    assert main(["import", str(tmp_path / "model.gguf"), str(tmp_path / "d")]) == 0
    assert torch.equal(load_model(tmp_path / "d")[0].lm_head.weight, model.lm_head.weight)


def test_a_refusal_is_one_line_and_exit_code_1(tmp_path, capsys):
    save_model(random_model(), tmp_path / "a")
    (tmp_path / "a" / "model.safetensors").write_bytes(b"")
    assert main(["convert", str(tmp_path / "a"), str(tmp_path / "b")]) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert "model.safetensors: has 0 bytes, not" in said[0]
    assert not (tmp_path / "b").exists()
    assert main(["convert", str(tmp_path / "a"), str(tmp_path / "b"), "--shard-mb", "0"]) == 1


def test_a_command_that_does_not_fit_exits_with_1(tmp_path, capsys):
    save_model(random_model(num_nextn_predict_layers=0), tmp_path / "a")
    config = tmp_path / "a" / "config.json"
    config.write_text(config.read_text().replace('"num_nextn_predict_layers": 0', '"num_nextn_predict_layers": 1'))
    assert main(["inspect", str(tmp_path / "a")]) == 1
    assert "model.layers.3.enorm.weight" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "a"), "--without-mtp"]) == 0


def test_the_options_import_no_pytorch():
    code = "import sys, deepseek_v3.weights.options; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


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


def test_a_run_folder_stands_for_its_newest_checkpoint(tmp_path):
    from deepseek_v3.weights.options import newest_of_run

    for step in (2, 10):
        (tmp_path / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    assert newest_of_run(str(tmp_path)) == str(tmp_path / "checkpoints" / "step-00000010")
    assert newest_of_run(str(tmp_path / "checkpoints")) == str(tmp_path / "checkpoints")
