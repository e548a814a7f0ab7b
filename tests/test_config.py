"""Configs: read as released and as Transformers 5 writes them, refused with a mend when they cannot work."""

import json

import pytest

from deepseek_v3.config import ConfigError, ModelConfig, preset_names

NANO = ModelConfig.preset("nano")


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_survives_its_own_json(name, tmp_path):
    config = ModelConfig.preset(name)
    config.to_json(tmp_path / "config.json")
    assert ModelConfig.from_json(tmp_path / "config.json") == config


def test_what_transformers_5_writes_is_read(tmp_path):
    transformers = pytest.importorskip("transformers")
    v3 = ModelConfig.preset("v3-671b").replace(quantization_config=None)
    values = {k: v for k, v in v3.to_dict().items() if k not in ("architectures", "torch_dtype")}
    transformers.DeepseekV3Config(**values, dtype="bfloat16").save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert "rope_parameters" in written
    assert ModelConfig.from_json(tmp_path / "config.json") == v3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_group": 3}, ["n_group=3", "divide", "16"]),
        ({"topk_group": 5}, ["topk_group=5", "at most", "4"]),
        ({"num_experts_per_tok": 9}, ["num_experts_per_tok=9", "8"]),
        ({"qk_rope_head_dim": 7}, ["qk_rope_head_dim=7", "even"]),
        ({"hidden_size": 0}, ["hidden_size=0", "at least 1"]),
        ({"hidden_size": 2.5}, ["hidden_size=2.5", "whole number"]),
        ({"vocab_size": True}, ["vocab_size=True", "whole number"]),
        ({"n_group": 16, "topk_group": 8}, ["n_group=16", "best two"]),
        ({"scoring_func": "relu"}, ["scoring_func='relu'", "sigmoid"]),
        ({"topk_method": "greedy"}, ["topk_method='greedy'", "noaux_tc"]),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, ["rope_scaling.type='linear'", "yarn"]),
        ({"rope_scaling": {"type": "yarn", "factor": 40}}, ["original_max_position_embeddings=None"]),
        ({"eos_token_id": 4096}, ["eos_token_id=4096", "vocab_size=4096"]),
        ({"torch_dtype": "int8"}, ["torch_dtype='int8'", "bfloat16"]),
        ({"rms_norm_eps": 0.0}, ["rms_norm_eps=0.0", "positive"]),
        ({"hiden_size": 3}, ["unknown key 'hiden_size'", "hidden_size"]),
    ],
)
def test_what_cannot_work_is_refused_with_key_value_and_mend(changes, words):
    with pytest.raises(ConfigError) as error:
        NANO.replace(**changes)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"model_type": "llama"}, "llama"),
        ({"hidden_act": "gelu"}, "silu"),
        ({"index_topk": 2048}, "index_topk"),
        ({"num_key_value_heads": 2}, "num_key_value_heads=2"),
        ({"rope_parameters": 3}, "rope_parameters"),
    ],
)
def test_another_architecture_is_refused(changes, word):
    with pytest.raises(ConfigError, match=word):
        ModelConfig.from_dict({**NANO.to_dict(), **changes})


@pytest.mark.parametrize("text", ["", "[1]", "{", "\xff", "[" * 100_000])
def test_a_file_that_is_no_config_is_refused(text, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=r"config\.json"):
        ModelConfig.from_json(path)


def test_an_unknown_preset_names_the_near_one():
    with pytest.raises(ConfigError, match="did you mean 'nano'"):
        ModelConfig.preset("nanno")
    with pytest.raises(ConfigError, match="unknown preset"):
        ModelConfig.preset("../presets/nano")
