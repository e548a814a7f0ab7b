"""Checkpoints that other tools wrote: what they leave out, add, or store otherwise is read, and never in silence."""

import json
import logging
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent))
from tiny_checkpoints import edit_json, random_model

from deepseek_v3.data.tokenizer import Tokenizer
from deepseek_v3.weights.convert import convert_checkpoint
from deepseek_v3.weights.errors import CheckpointError
from deepseek_v3.weights.inspect import inspect_checkpoint
from deepseek_v3.weights.load import load_model, load_weights
from deepseek_v3.weights.save import save_model

BIAS, GATE = (f"model.layers.1.mlp.gate.{name}" for name in ("e_score_correction_bias", "weight"))
COPIES = ("model.layers.3.embed_tokens.weight", "model.layers.3.shared_head.head.weight")
TOKENS = torch.arange(2 * 17).view(2, 17) * 7 % 131


def saved(folder: Path, dtype: torch.dtype = torch.float32, **changes):
    """A random model, saved without a manifest, as a download has none."""
    model = random_model(**changes)
    save_model(model, folder, dtype=dtype)
    (folder / "manifest.json").unlink()
    return model


def rewrite(folder: Path, change) -> dict[str, torch.Tensor]:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return tensors


def loaded(folder: Path, caplog, **options):
    """The model, and what was told on loading it, once."""
    caplog.clear()
    with caplog.at_level(logging.WARNING, "deepseek_v3"):
        model, _ = load_model(folder, **options)
    assert len(caplog.messages) <= 1
    return model, " ".join(caplog.messages)


def test_a_whole_checkpoint_of_ours_is_loaded_without_a_word(tmp_path, caplog):
    saved(tmp_path / "a")
    assert loaded(tmp_path / "a", caplog)[1] == ""
    assert inspect_checkpoint(tmp_path / "a").notes == []


def test_rotary_frequencies_are_ignored_and_said_to_be(tmp_path, caplog):
    model = saved(tmp_path / "a")
    rewrite(
        tmp_path / "a",
        lambda t: t.update({f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(3) for i in (0, 2)}),
    )
    found, told = loaded(tmp_path / "a", caplog)
    assert torch.equal(found(TOKENS), model(TOKENS))
    assert "2 rotary frequencies (inv_freq): ignored" in told
    assert inspect_checkpoint(tmp_path / "a").notes == ["2 rotary frequencies (inv_freq): ignored"]


def test_a_bias_in_bf16_is_widened_exactly(tmp_path, caplog):
    saved(tmp_path / "a")
    tensors = rewrite(tmp_path / "a", lambda t: t.update({BIAS: t[BIAS].bfloat16()}))
    found, told = loaded(tmp_path / "a", caplog)
    bias = found.layers[1].mlp.gate.e_score_correction_bias
    assert bias.dtype == torch.float32
    assert torch.equal(
        bias, torch.from_numpy((tensors[BIAS].view(torch.int16).numpy().astype("<u4") << 16).view("<f4"))
    )
    assert "1 selection biases are stored in BF16: widened" in told
    assert inspect_checkpoint(tmp_path / "a").problems == []


@pytest.mark.parametrize("left_out", [COPIES, COPIES[:1], COPIES[1:]])
def test_copies_that_the_mtp_layer_leaves_out_are_shared(tmp_path, caplog, left_out):
    model = saved(tmp_path / "a")
    rewrite(tmp_path / "a", lambda t: [t.pop(name) for name in left_out])
    found, told = loaded(tmp_path / "a", caplog)
    assert torch.equal(found(TOKENS, mtp=True)[1][0], model(TOKENS, mtp=True)[1][0])
    assert f"{len(left_out)} copies of embedding and head" in told
    convert_checkpoint(tmp_path / "a", tmp_path / "b")
    assert (
        load_file(tmp_path / "a" / "model.safetensors").keys() == load_file(tmp_path / "b" / "model.safetensors").keys()
    )


def test_an_mtp_layer_that_is_wholly_absent_turns_drafting_off_with_one_warning(tmp_path, caplog):
    model = saved(tmp_path / "a")
    rewrite(tmp_path / "a", lambda t: [t.pop(name) for name in list(t) if name.startswith("model.layers.3.")])
    found, told = loaded(tmp_path / "a", caplog)
    assert torch.equal(found(TOKENS), model(TOKENS))
    assert "drafting is off" in told
    assert len(found.mtp) == 0
    assert inspect_checkpoint(tmp_path / "a").problems == []
    convert_checkpoint(tmp_path / "a", tmp_path / "b")
    assert json.loads((tmp_path / "b" / "config.json").read_text())["num_nextn_predict_layers"] == 0
    assert loaded(tmp_path / "b", caplog)[1] == ""


def test_an_mtp_layer_that_is_there_in_part_is_refused_with_flags_that_exist(tmp_path):
    from deepseek_v3.commands.generate import GenerateOptions

    saved(tmp_path / "a")
    rewrite(tmp_path / "a", lambda t: t.pop("model.layers.3.enorm.weight"))
    with pytest.raises(CheckpointError, match=r"in part.*--without-mtp.*--set num_nextn_predict_layers=0"):
        load_model(tmp_path / "a")
    load_model(tmp_path / "a", mtp=False)
    assert "without_mtp" in GenerateOptions.__dataclass_fields__
    load_weights(random_model(num_nextn_predict_layers=0), tmp_path / "a")  # what `train --set` builds


def test_a_router_in_fp32_beside_bf16_weights_stays_so_there_and_back(tmp_path, caplog):
    model = saved(tmp_path / "a", torch.bfloat16)
    gate = model.layers[1].mlp.gate.weight.detach()
    rewrite(tmp_path / "a", lambda t: t.update({GATE: gate.clone()}))
    found, told = loaded(tmp_path / "a", caplog)
    assert torch.equal(found.layers[1].mlp.gate.weight, gate)
    assert found.layers[2].mlp.gate.weight.dtype == torch.bfloat16
    assert "1 routers are stored in F32" in told
    save_model(found, tmp_path / "b")
    for to in ("keep", "bf16", "fp8"):
        convert_checkpoint(tmp_path / "a", tmp_path / to, to=to)
    for name in ("b", "keep", "bf16", "fp8"):
        assert torch.equal(load_file(tmp_path / name / "model.safetensors")[GATE], gate)


@pytest.mark.parametrize("metadata", [{}, {"total_size": None}, None])
def test_an_index_without_a_total_is_read(tmp_path, metadata):
    model = random_model()
    save_model(model, tmp_path / "a", shard_bytes=40_000)
    (tmp_path / "a" / "manifest.json").unlink()
    index = tmp_path / "a" / "model.safetensors.index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "metadata": metadata}))
    assert torch.equal(load_model(tmp_path / "a")[0](TOKENS), model(TOKENS))


def test_the_language_model_of_a_wrapped_checkpoint_is_read_and_written_alone(tmp_path, caplog):
    said = {"n_shared_experts": 1, "norm_topk_prob": True, "max_position_embeddings": 640}
    model = saved(tmp_path / "a", model_type="kimi_k2", num_nextn_predict_layers=0, **said)
    inner = json.loads((tmp_path / "a" / "config.json").read_text())
    (tmp_path / "a" / "config.json").write_text(json.dumps({"model_type": "kimi_k25", "text_config": inner}))
    tensors = load_file(tmp_path / "a" / "model.safetensors")
    wrapped = {f"language_model.{name}": tensor for name, tensor in tensors.items()}
    save_file({**wrapped, "vision_tower.a": torch.ones(2)}, tmp_path / "a" / "model.safetensors")
    found, told = loaded(tmp_path / "a", caplog)
    assert torch.equal(found(TOKENS), model(TOKENS))
    assert "1 tensors of the model for images (vision_tower): ignored" in told
    convert_checkpoint(tmp_path / "a", tmp_path / "b")
    assert json.loads((tmp_path / "b" / "config.json").read_text())["model_type"] == "kimi_k2"
    written = load_file(tmp_path / "b" / "model.safetensors")
    assert written.keys() == tensors.keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in tensors.items())


def test_attention_with_an_output_gate_is_refused_with_the_reason(tmp_path):
    saved(tmp_path / "a")
    rewrite(tmp_path / "a", lambda t: t.update({"model.layers.0.self_attn.gate_proj.weight": torch.ones(3)}))
    with pytest.raises(CheckpointError, match="output gate"):
        load_model(tmp_path / "a")


def test_what_quantization_config_says_is_what_was_written(tmp_path):
    """A BF16 folder whose config still speaks of powers of two: new scales are such; in BF16 nothing is said of FP8."""
    saved(tmp_path / "a", torch.bfloat16)
    said = {"quant_method": "fp8", "weight_block_size": [128, 128], "scale_fmt": "ue8m0", "dequantize": True}
    edit_json(tmp_path / "a" / "config.json", quantization_config=said)
    convert_checkpoint(tmp_path / "a", tmp_path / "fp8", to="fp8")
    written = json.loads((tmp_path / "fp8" / "config.json").read_text())["quantization_config"]
    assert written["scale_fmt"] == "ue8m0"
    assert "dequantize" not in written
    tensors = load_file(tmp_path / "fp8" / "model.safetensors")
    scales = torch.cat([t.flatten() for name, t in tensors.items() if name.endswith("_scale_inv")])
    assert bool((torch.frexp(scales).mantissa == 0.5).all())
    convert_checkpoint(tmp_path / "fp8", tmp_path / "bf16", to="bf16")
    assert "quantization_config" not in json.loads((tmp_path / "bf16" / "config.json").read_text())


def test_files_beside_the_weights_come_through_load_save_and_convert(tmp_path):
    import deepseek_v3

    model = random_model(vocab_size=389)
    tokenizer = Tokenizer.train(["the quick brown fox"] * 9, 300)
    save_model(model, tmp_path / "a", tokenizer)
    (tmp_path / "a" / "manifest.json").unlink()
    edit_json(tmp_path / "a" / "tokenizer_config.json", add_bos_token=True, model_max_length=512)
    (tmp_path / "a" / "chat_template.jinja").write_bytes(b"{{ bos_token }}\r\n")
    (tmp_path / "a" / "generation_config.json").write_text('{"eos_token_id": [1, 7]}')
    (tmp_path / "a" / "special_tokens_map.json").write_text("{}")
    found, theirs = deepseek_v3.load(tmp_path / "a")
    deepseek_v3.save(found, tmp_path / "saved", theirs)
    convert_checkpoint(tmp_path / "a", tmp_path / "converted")
    for copy in ("saved", "converted"):
        for path in (tmp_path / "a").iterdir():
            if path.name != "config.json" or copy == "converted":
                assert (tmp_path / copy / path.name).read_bytes() == path.read_bytes(), path.name
