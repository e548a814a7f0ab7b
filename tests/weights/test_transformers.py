"""What we save, Hugging Face's own implementation loads with nothing missing and nothing unexpected, and agrees."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from tiny_checkpoints import V2_LITE, V3, YARN, random_model

from deepseek_v3.weights.convert import convert_checkpoint
from deepseek_v3.weights.load import load_model
from deepseek_v3.weights.save import save_model

transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-5  # float32 log-probabilities, sums in another order
# Its grouped products want rows of whole 16 bytes, and its config a width that the heads divide.
SIZES = {
    "hidden_size": 44,
    "kv_lora_rank": 14,
    "moe_intermediate_size": 20,
    "num_attention_heads": 4,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 8,
    "num_nextn_predict_layers": 0,
    "initializer_range": 0.1,
}
MODELS = {
    "groups": {**V3, **SIZES},
    "YaRN": {**V3, **SIZES, "rope_scaling": YARN, "max_position_embeddings": 640},
    "no query latent": {**V3, **SIZES, "q_lora_rank": None, "n_group": 1, "topk_group": 1},
    "tied": {**V3, **SIZES, "tie_word_embeddings": True},
    "v2-lite": {**V2_LITE, **SIZES},
}


def load_theirs(folder: Path):
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32, attn_implementation="eager"
    )
    return theirs.eval(), {key: set(value) for key, value in info.items() if key.endswith("_keys")}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("shard_bytes", [None, 10_000])
def test_transformers_loads_it_whole_and_says_the_same(tmp_path, kind, shard_bytes):
    model = random_model(MODELS[kind])
    save_model(model, tmp_path / "a", shard_bytes=shard_bytes)
    theirs, info = load_theirs(tmp_path / "a")
    assert info["missing_keys"] == info["unexpected_keys"] == info["mismatched_keys"] == set()
    tokens = (torch.arange(2 * 29).view(2, 29) * 7) % 131
    with torch.no_grad():
        ours = model(tokens).log_softmax(-1)
        difference = (ours - theirs(tokens).logits.log_softmax(-1)).abs().max()
    assert difference <= TOLERANCE


def test_the_mtp_layer_is_the_one_thing_that_transformers_leaves_out(tmp_path):
    """It ignores layer 61 by name; at any other depth it calls the MTP layer unexpected."""
    save_model(random_model({**V3, **SIZES, "num_nextn_predict_layers": 1}), tmp_path / "a")
    _, info = load_theirs(tmp_path / "a")
    assert info["missing_keys"] == set()
    assert {name.split(".")[2] for name in info["unexpected_keys"]} == {"3"}
    deep = random_model({**V3, **SIZES, "num_nextn_predict_layers": 1, "num_hidden_layers": 61, "vocab_size": 29})
    save_model(deep, tmp_path / "b")
    _, info = load_theirs(tmp_path / "b")
    assert info["missing_keys"] == info["unexpected_keys"] == set()


def test_what_transformers_saves_we_load(tmp_path):
    model = random_model({**V3, **SIZES, "rope_scaling": YARN, "max_position_embeddings": 640})
    save_model(model, tmp_path / "a")
    theirs, _ = load_theirs(tmp_path / "a")
    theirs.save_pretrained(tmp_path / "b")
    again, _ = load_model(tmp_path / "b")
    ours, found = model.state_dict(), again.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in ours.items())
    convert_checkpoint(tmp_path / "b", tmp_path / "c", mtp=False)
    assert load_model(tmp_path / "c")[0].config == model.config
