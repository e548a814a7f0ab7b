"""What is written is read back byte for byte: our memory, the released layout, BF16, FP8, shards, MTP, tied weights."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent))
from tiny_checkpoints import V2_LITE, V3, YARN, edit_json, folder_digests, random_model

from deepseek_v3.config import ModelConfig
from deepseek_v3.fp8.decode import dequantize_weight
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.native.build import SWITCH
from deepseek_v3.weights.convert import convert_checkpoint
from deepseek_v3.weights.errors import CheckpointError, ConfigFileError, UnexpectedTensorError
from deepseek_v3.weights.load import load_model, load_weights, stream_weights
from deepseek_v3.weights.manifest import verify_manifest
from deepseek_v3.weights.save import save_model
from deepseek_v3.weights.shards import read_tensors


def same_state(a, b) -> bool:
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize(
    ("values", "changes"),
    [(V3, {}), (V3, {"tie_word_embeddings": True}), (V3, {"num_nextn_predict_layers": 2}), (V2_LITE, {})],
    ids=["v3", "tied", "two MTP", "v2-lite"],
)
@pytest.mark.parametrize("shard_bytes", [None, 10_000])
def test_ours_to_released_to_ours_is_byte_equal(tmp_path, values, changes, shard_bytes):
    model = random_model(values, **changes)
    save_model(model, tmp_path / "a", shard_bytes=shard_bytes)
    loaded, tokenizer = load_model(tmp_path / "a")
    assert tokenizer is None
    assert loaded.config == model.config
    assert same_state(loaded, model)
    save_model(loaded, tmp_path / "b", shard_bytes=shard_bytes)
    assert folder_digests(tmp_path / "a") == folder_digests(tmp_path / "b")


def test_a_model_that_is_loaded_in_inference_mode_is_like_any_other(tmp_path):
    """Other threads fill it, which are in no such mode."""
    model = random_model(hidden_size=250)
    save_model(model, tmp_path / "a", shard_bytes=10**5)
    with torch.inference_mode():
        loaded, _ = load_model(tmp_path / "a")
    assert same_state(loaded, model)
    assert not any(p.is_inference() for p in loaded.parameters())


def test_shards_of_one_megabyte_keep_the_mtp_layer(tmp_path):
    model = random_model(hidden_size=250, intermediate_size=509)
    save_model(model, tmp_path / "a", shard_bytes=10**6)
    assert len(list((tmp_path / "a").glob("*.safetensors"))) > 2
    assert same_state(load_model(tmp_path / "a")[0], model)
    names = read_tensors(tmp_path / "a").keys()
    assert {"model.layers.3.eh_proj.weight", "model.layers.3.shared_head.head.weight"} <= names


def test_the_mtp_layer_carries_copies_of_embedding_and_head(tmp_path):
    save_model(random_model(), tmp_path / "a")
    tensors = read_tensors(tmp_path / "a")
    assert torch.equal(tensors["model.layers.3.embed_tokens.weight"], tensors["model.embed_tokens.weight"])
    assert torch.equal(tensors["model.layers.3.shared_head.head.weight"], tensors["lm_head.weight"])


def test_a_copy_that_differs_is_refused(tmp_path):
    save_model(random_model(), tmp_path / "a")
    tensors = read_tensors(tmp_path / "a")
    tensors["model.layers.3.shared_head.head.weight"][5, 7] += 1
    save_file(tensors, tmp_path / "a" / "model.safetensors")
    (tmp_path / "a" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"differs from lm_head\.weight"):
        load_model(tmp_path / "a")
    assert load_model(tmp_path / "a", mtp=False)[0].config.num_nextn_predict_layers == 0


@pytest.mark.parametrize("shard_bytes", [None, 10_000])
def test_fp8_to_bf16_is_the_formula_bit_for_bit(tmp_path, shard_bytes):
    """Shapes are no multiples of 128; with small shards a scale often lies in another file than its weight."""
    model = random_model(hidden_size=158, intermediate_size=263)
    save_model(model, tmp_path / "fp8", dtype=torch.bfloat16, fp8=True, shard_bytes=shard_bytes)
    stored = read_tensors(tmp_path / "fp8")
    convert_checkpoint(tmp_path / "fp8", tmp_path / "bf16", to="bf16", shard_bytes=shard_bytes)
    found = read_tensors(tmp_path / "bf16")
    assert found.keys() == {name for name in stored if not name.endswith("_scale_inv")}
    quantized = 0
    for name, weight in found.items():
        if f"{name}_scale_inv" in stored:
            rows, columns = weight.shape
            scale = stored[f"{name}_scale_inv"].repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
            expected = (stored[name].float() * scale).bfloat16()
            quantized += 1
        else:
            expected = stored[name]
        assert torch.equal(weight.view(torch.uint8), expected.view(torch.uint8)), name
    assert quantized > 50
    loaded, _ = load_model(tmp_path / "fp8")
    again, _ = load_model(tmp_path / "bf16")
    assert same_state(loaded, again)
    assert loaded.config.quantization_config is None
    verify_manifest(tmp_path / "bf16")


@pytest.mark.parametrize("kernels", ["1", "0"])
def test_a_scale_in_another_shard_than_its_weight_is_found(tmp_path, monkeypatch, kernels):
    """PITFALLS Q: pair them by name over all shards, not within one."""
    monkeypatch.setenv(SWITCH, kernels)
    save_model(random_model(), tmp_path / "a", dtype=torch.bfloat16, fp8=True)
    tensors = read_tensors(tmp_path / "a")
    reference, _ = load_model(tmp_path / "a")
    (tmp_path / "b").mkdir()
    scales = {name: t for name, t in tensors.items() if name.endswith("_scale_inv")}
    weights = {name: t for name, t in tensors.items() if name not in scales}
    save_file(weights, tmp_path / "b" / "model-00001-of-00002.safetensors")
    save_file(scales, tmp_path / "b" / "model-00002-of-00002.safetensors")
    weight_map = {n: f"model-0000{1 + n.endswith('_scale_inv')}-of-00002.safetensors" for n in tensors}
    (tmp_path / "b" / "config.json").write_bytes((tmp_path / "a" / "config.json").read_bytes())
    (tmp_path / "b" / "model.safetensors.index.json").write_text("{}")
    edit_json(tmp_path / "b" / "model.safetensors.index.json", weight_map=weight_map)
    assert same_state(load_model(tmp_path / "b")[0], reference)


def test_fp8_to_fp8_copies_every_byte(tmp_path):
    save_model(random_model(), tmp_path / "a", dtype=torch.bfloat16, fp8=True)
    for to in ("keep", "fp8"):
        convert_checkpoint(tmp_path / "a", tmp_path / to, to=to)
        assert folder_digests(tmp_path / "a") == folder_digests(tmp_path / to)


def test_bf16_to_fp8_is_what_saving_in_fp8_writes(tmp_path):
    model = random_model().bfloat16()
    save_model(model, tmp_path / "bf16")
    save_model(model, tmp_path / "fp8", fp8=True)
    convert_checkpoint(tmp_path / "bf16", tmp_path / "converted", to="fp8")
    assert folder_digests(tmp_path / "fp8") == folder_digests(tmp_path / "converted")
    config = ModelConfig.from_json(tmp_path / "converted" / "config.json")
    assert config.quantization_config == ModelConfig.preset("v3-671b").quantization_config


def test_only_what_the_released_layout_quantizes_is_quantized(tmp_path):
    save_model(random_model(), tmp_path / "a", dtype=torch.bfloat16, fp8=True)
    stored = read_tensors(tmp_path / "a")
    codes = {name for name, tensor in stored.items() if tensor.dtype == torch.float8_e4m3fn}
    wide = ("norm", "embed", "lm_head", "shared_head", "eh_proj", "mlp.gate.", "scale_inv")
    assert codes == {name for name in stored if not any(word in name for word in wide)}
    assert {t.dtype for n, t in stored.items() if n.endswith("e_score_correction_bias")} == {torch.float32}
    name = "model.layers.0.self_attn.o_proj.weight"
    back = dequantize_weight(stored[name], stored[name + "_scale_inv"], torch.float32)
    weight = random_model().layers[0].self_attn.o_proj.weight
    assert (back - weight).abs().max() <= weight.abs().max() / 28  # half a step in the top binade: 16 of 448


def test_a_model_in_another_dtype_keeps_its_bias_in_fp32(tmp_path):
    save_model(random_model(), tmp_path / "a")
    loaded, _ = load_model(tmp_path / "a", dtype=torch.bfloat16)
    assert loaded.layers[1].mlp.gate.weight.dtype == torch.bfloat16
    assert torch.equal(
        loaded.layers[1].mlp.gate.e_score_correction_bias, random_model().layers[1].mlp.gate.e_score_correction_bias
    )
    with pytest.raises(CheckpointError, match="int64"):
        load_model(tmp_path / "a", dtype=torch.int64)


def test_the_loaded_model_speaks_as_the_saved_one_did(tmp_path):
    """Rope frequencies are no tensors of the checkpoint: they come from the config."""
    model = random_model(rope_scaling=YARN, max_position_embeddings=640)
    save_model(model, tmp_path / "a")
    tokens = torch.arange(2 * 31).view(2, 31) % 131
    loaded, _ = load_model(tmp_path / "a")
    assert torch.equal(loaded(tokens), model(tokens))
    assert torch.equal(loaded(tokens, mtp=True)[1][0], model(tokens, mtp=True)[1][0])


def test_an_mtp_layer_that_the_config_does_not_count_is_named(tmp_path):
    save_model(random_model(), tmp_path / "a")
    edit_json(tmp_path / "a" / "config.json", num_nextn_predict_layers=0)
    (tmp_path / "a" / "manifest.json").unlink()
    with pytest.raises(UnexpectedTensorError, match="does not count"):
        load_model(tmp_path / "a")


def test_loading_into_another_model_is_refused_and_into_the_same_is_exact(tmp_path):
    model, other = random_model(), random_model(num_hidden_layers=4)
    save_model(model, tmp_path / "a")
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(ConfigFileError, match="num_hidden_layers is 3, the model has 4"):
        load_weights(other, tmp_path / "a")
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())
    fresh = random_model()
    fresh.initialize_weights()
    load_weights(fresh, tmp_path / "a")
    assert same_state(fresh, model)


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}], ids=["v3", "tied"])
@pytest.mark.parametrize("fp8", [False, True])
def test_a_folder_read_weight_by_weight_for_a_model_on_meta_gives_what_loading_gives(tmp_path, changes, fp8):
    save_model(random_model(**changes), tmp_path / "a", fp8=fp8, shard_bytes=10_000)
    known = load_model(tmp_path / "a", dtype=torch.float32)[0]
    with torch.device("meta"):
        model = DeepseekV3(known.config)
    found = dict(stream_weights(model, tmp_path / "a"))
    names = dict(known.named_parameters()).keys() | dict(known.named_buffers()).keys()
    assert found.keys() == names  # what two share once
    assert all(torch.equal(value, known.state_dict()[name]) for name, value in found.items())
    with torch.device("meta"):
        other = DeepseekV3(known.config.replace(num_hidden_layers=4))
    with pytest.raises(ConfigFileError, match="num_hidden_layers is 3, the model has 4"):
        next(stream_weights(other, tmp_path / "a"))


def test_tokenizer_files_travel_and_code_does_not(tmp_path):
    class Spy:
        def save(self, folder):
            (folder / "tokenizer.json").write_text('{"model": {}}')

    save_model(random_model(), tmp_path / "a", Spy())
    (tmp_path / "a" / "tokenizer_config.json").write_text('{"chat_template": "{{ 1/0 }}"}')
    (tmp_path / "a" / "modeling_evil.py").write_text("raise SystemExit")
    (tmp_path / "a" / "pytorch_model.bin").write_bytes(b"pickle")
    (tmp_path / "a" / "manifest.json").unlink()
    _, path = load_model(tmp_path / "a")
    assert path == tmp_path / "a" / "tokenizer.json"
    assert load_model(tmp_path / "a", tokenizer_from=lambda path: path.read_text())[1] == '{"model": {}}'
    convert_checkpoint(tmp_path / "a", tmp_path / "b")
    assert {p.name for p in (tmp_path / "b").iterdir()} == {
        "config.json",
        "manifest.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_progress_adds_up_and_a_wrong_format_is_refused(tmp_path):
    save_model(random_model(), tmp_path / "a")
    told = []
    convert_checkpoint(tmp_path / "a", tmp_path / "b", advance=lambda n, total: told.append((n, total)))
    assert sum(n for n, _ in told) == told[0][1]
    with pytest.raises(ValueError, match="to='int4'"):
        convert_checkpoint(tmp_path / "a", tmp_path / "c", to="int4")


def test_a_weight_that_is_not_finite_has_no_fp8_form(tmp_path):
    model = random_model()
    with torch.no_grad():
        model.layers[0].self_attn.o_proj.weight[0, 0] = float("nan")
    with pytest.raises(CheckpointError, match=r"tensor model.layers.0.self_attn.o_proj.weight: a weight with NaN"):
        save_model(model, tmp_path / "a", fp8=True)
    assert list(tmp_path.iterdir()) == []
