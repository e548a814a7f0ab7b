"""A config that is taken can be counted, built and run; one that cannot is refused by key, value and mend."""

import json
import re

import pytest
import torch

from deepseek_v3.cli import main
from deepseek_v3.config import ConfigError, ModelConfig
from deepseek_v3.model.transformer import DeepseekV3

YARN = {"type": "yarn", "factor": 4, "original_max_position_embeddings": 64}
TINY = {
    "vocab_size": 31,
    "hidden_size": 22,
    "intermediate_size": 26,
    "moe_intermediate_size": 7,
    "num_hidden_layers": 2,
}
TINY |= {"num_attention_heads": 2, "kv_lora_rank": 5, "qk_nope_head_dim": 7, "qk_rope_head_dim": 4, "v_head_dim": 3}
TINY |= {"n_routed_experts": 6, "num_experts_per_tok": 2, "first_k_dense_replace": 1, "num_nextn_predict_layers": 1}
TINY |= {
    "q_lora_rank": 11,
    "eos_token_id": 1,
    "max_position_embeddings": 97,
    "rope_scaling": YARN,
    "n_group": 1,
    "topk_group": 1,
}
ODD = [None, "x", "", True, -1, 0, 1, 3, 0.5, 1e-46, 1e46, 10**8, 10**12, 10**400, float("inf"), float("nan"), [1], {}]
SCALING = [f"rope_scaling.{key}" for key in ("factor", "beta_fast", "mscale", "mscale_all_dim", "type", "truncate")]
KEYS = [*ModelConfig.__dataclass_fields__, *SCALING, "architectures", "num_key_value_heads", "moe_layer_freq"]
KEYS += ["rope_parameters", "mlp_layer_types", "dtype", "hidden_act", "attention_bias"]
WIDE = 10**5  # what has more is a real model, not built in a test


def changed(key: str, value: object) -> dict:
    outer, _, inner = key.partition(".")
    return {**TINY, outer: {**YARN, inner: value} if inner else value}


@pytest.mark.parametrize("key", KEYS)
def test_an_odd_value_is_refused_or_works_everywhere(key, tmp_path, capsys):
    torch.manual_seed(3)
    for value in ODD:
        path = tmp_path / "config.json"
        path.write_text(json.dumps(changed(key, value)))
        code = main(["size", "--config", str(path), "--json"])
        said = capsys.readouterr().err
        assert "nobody foresaw" not in said, (value, said)
        if code:
            with pytest.raises(ConfigError, match=re.escape(str(path))):
                ModelConfig.from_json(path)
            continue
        config = ModelConfig.from_json(path)
        if max(v for v in config.to_dict().values() if type(v) is int) > WIDE:
            continue
        logits = DeepseekV3(config)(torch.tensor([[0, 5, 7][: config.vocab_size]]) % config.vocab_size)
        assert logits.isfinite().all(), (key, value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"vocab_size": 5, "vocab_size": 7}', "the key 'vocab_size' occurs twice; keep one"),
        ('{"rope_theta": NaN}', "NaN is not JSON"),
        ('{"vocab_size": ' + "9" * 5000 + "}", "is not JSON (Exceeds the limit"),
        ("[" * 100_000, "is not JSON"),
        ('{"architectures": 5}', "architectures=5 must be a list of names"),
        ('{"model_type": ["deepseek_v3"]}', "model_type=['deepseek_v3'] must be a word"),
    ],
)
def test_what_json_allows_and_a_config_does_not_is_named(text, words, tmp_path):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(ConfigError) as error:
        ModelConfig.from_json(tmp_path / "c.json")
    assert words in str(error.value)
    assert str(tmp_path / "c.json") in str(error.value)
