"""The released format, read and written by hand."""

import json
import struct

import numpy as np
import pytest
from architecture import BIAS, Config, init_model
from checkpoint import (
    load_checkpoint,
    read_safetensors,
    released_slots,
    released_tensors,
    save_checkpoint,
    write_safetensors,
)

TINY = Config(num_hidden_layers=2, hidden_size=8, n_routed_experts=4, n_group=2, moe_intermediate_size=3)


def test_what_was_saved_is_loaded_bit_for_bit(rng, tmp_path):
    for dtype in (np.float32, np.float64):
        model = init_model(rng, TINY, dtype)
        save_checkpoint(model, tmp_path / dtype.__name__)
        again = load_checkpoint(tmp_path / dtype.__name__, dtype)
        assert again.config == TINY
        assert again.weights.keys() == model.weights.keys()
        assert all(np.array_equal(again.weights[n], a) for n, a in model.weights.items())


def test_every_expert_has_tensors_of_its_own_and_the_mtp_layer_its_copies(rng):
    model = init_model(rng, TINY)
    tensors = released_tensors(TINY, model.weights)
    up = model.weights["model.layers.1.mlp.experts.up_proj.weight"]
    assert np.array_equal(tensors["model.layers.1.mlp.experts.3.up_proj.weight"], up[3])
    assert not [name for name in tensors if "experts.up_proj" in name and "shared" not in name]
    assert np.array_equal(tensors["model.layers.2.embed_tokens.weight"], tensors["model.embed_tokens.weight"])
    assert np.array_equal(tensors["model.layers.2.shared_head.head.weight"], tensors["lm_head.weight"])
    assert len(tensors) == len(list(released_slots(TINY)))


def test_the_bias_is_stored_in_float32_whatever_the_model_has(rng, tmp_path):
    save_checkpoint(init_model(rng, TINY), tmp_path / "one")
    stored = read_safetensors(tmp_path / "one" / "model.safetensors")
    assert {a.dtype for n, a in stored.items() if n.endswith(BIAS)} == {np.dtype("float32")}
    assert json.loads((tmp_path / "one" / "config.json").read_text())["torch_dtype"] == "float64"


def test_the_file_is_read_alike_by_the_safetensors_library(rng, tmp_path):
    safe = pytest.importorskip("safetensors.numpy")
    model = init_model(rng, TINY, np.float32)
    save_checkpoint(model, tmp_path / "one")
    theirs = safe.load_file(tmp_path / "one" / "model.safetensors")
    ours = read_safetensors(tmp_path / "one" / "model.safetensors")
    assert theirs.keys() == ours.keys()
    assert all(np.array_equal(theirs[n], ours[n]) for n in ours)


def test_bf16_is_the_upper_half_of_a_float32(tmp_path):
    numbers = np.array([1.0, -2.5, 3.0e38, 1e-40], np.float32)
    halves = (numbers.view(np.uint32) >> 16).astype(np.uint16)
    header = json.dumps({"w": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}}).encode()
    (tmp_path / "x").write_bytes(struct.pack("<Q", len(header)) + header + halves.tobytes())
    got = read_safetensors(tmp_path / "x")["w"]
    assert got.dtype == np.float32
    assert np.array_equal(got.view(np.uint32), halves.astype(np.uint32) << 16)


def test_saving_again_replaces_and_leaves_nothing_beside(rng, tmp_path):
    save_checkpoint(init_model(rng, TINY), tmp_path / "one")
    model = init_model(rng, TINY)
    save_checkpoint(model, tmp_path / "one")
    assert np.array_equal(load_checkpoint(tmp_path / "one").weights["lm_head.weight"], model.weights["lm_head.weight"])
    assert [p.name for p in tmp_path.iterdir()] == ["one"]


def test_a_directory_with_other_files_is_not_replaced(rng, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"thesis\.tex"):
        save_checkpoint(init_model(rng, TINY), tmp_path / "one")
    assert (tmp_path / "one" / "thesis.tex").exists()


def test_a_missing_a_foreign_and_a_misshapen_tensor_are_named(rng, tmp_path):
    model = init_model(rng, TINY)
    save_checkpoint(model, tmp_path / "one")
    path = tmp_path / "one" / "model.safetensors"
    tensors = {n: a.copy() for n, a in read_safetensors(path).items()}
    for change, word in (
        (lambda t: t.pop("model.layers.1.mlp.experts.2.up_proj.weight"), r"experts\.2\.up_proj"),
        (lambda t: t.update({"model.layers.7.extra": np.zeros(3)}), r"layers\.7\.extra"),
        (lambda t: t.update({"model.norm.weight": np.zeros(3)}), r"model\.norm\.weight: \(3,\) against \(8,\)"),
    ):
        changed = dict(tensors)
        change(changed)
        write_safetensors(path, changed)
        with pytest.raises(ValueError, match=word):
            load_checkpoint(tmp_path / "one")


def test_a_file_that_was_cut_short_is_refused(rng, tmp_path):
    save_checkpoint(init_model(rng, TINY), tmp_path / "one")
    path = tmp_path / "one" / "model.safetensors"
    whole = path.read_bytes()
    for length in (4, 100, len(whole) - 8):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"model\.safetensors"):
            load_checkpoint(tmp_path / "one")


def test_a_directory_without_weights_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(TINY.to_dict()))
    with pytest.raises(ValueError, match="neither"):
        load_checkpoint(tmp_path)
