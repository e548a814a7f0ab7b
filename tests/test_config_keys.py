"""Other people's config.json: a key is applied as `transformers` applies it, has no meaning, or is refused by name."""

import pytest
import torch

from deepseek_v3.config import ConfigError, ModelConfig
from deepseek_v3.model.rope import rope_frequencies, rotation_magnitude, softmax_scale

NANO = {key: value for key, value in ModelConfig.preset("nano").to_dict().items() if key != "architectures"}
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
YARN = {"type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096}


def read(**changes) -> ModelConfig:
    return ModelConfig.from_dict({**NANO, "qk_rope_head_dim": 64, **changes})


def drop(*keys: str, **changes) -> ModelConfig:
    return ModelConfig.from_dict({key: value for key, value in {**NANO, **changes}.items() if key not in keys})


@pytest.mark.parametrize(
    "rope",
    [
        {"beta_fast": 1.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0},  # Kimi K2
        {"beta_fast": None, "beta_slow": None},
        {"beta_fast": 17, "beta_slow": 3, "mscale": 0.707, "mscale_all_dim": 1.0},
        {"attention_factor": 1.7, "mscale_all_dim": 1.0},
        {"attention_factor": 1.3, "mscale": 2.0, "mscale_all_dim": 1.0},
        {"truncate": False},
        {"truncate": False, "beta_fast": 5.0, "beta_slow": 5.0},
        {"rope_theta": 50000.0},
        {"original_max_position_embeddings": None},
        {"mscale_all_dim": 0.0},
        {"partial_rotary_factor": 1.0},
    ],
)
@pytest.mark.parametrize("name", ["rope_scaling", "rope_parameters"])
def test_rotary_settings_mean_what_transformers_makes_of_them(name, rope):
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import yarn_apply_mscale

    settings = {k: v for k, v in {**YARN, **rope}.items() if v is not None or "beta" in k}
    config = read(**{name: settings, "max_position_embeddings": 8192, "rope_theta": 30000.0})
    theirs = transformers.DeepseekV3Config(
        **{**NANO, "qk_rope_head_dim": 64, "max_position_embeddings": 8192, "rope_theta": 30000.0, name: dict(settings)}
    )
    frequency, magnitude = ROPE_INIT_FUNCTIONS["yarn"](theirs)
    assert torch.allclose(rope_frequencies(config).float(), frequency, rtol=1e-6)  # theirs is float32
    assert rotation_magnitude(config) == pytest.approx(magnitude, rel=1e-12)
    width = config.qk_head_dim
    assert softmax_scale(config) == pytest.approx(yarn_apply_mscale(theirs.rope_parameters, width**-0.5), rel=1e-12)


def test_equal_betas_make_a_ramp_of_one_pair():
    """The pair that turns once in 4096: 64 ln(4096 / 2 pi) / (2 ln 50000) = 19.16, between 19 and 20."""
    found = rope_frequencies(read(rope_scaling={**YARN, "beta_fast": 1, "beta_slow": 1}, rope_theta=50000.0))
    plain = 50000.0 ** (-torch.arange(0, 64, 2, dtype=torch.float64) / 64)
    expected = torch.cat((plain[:20], plain[20:] / 32))
    assert torch.allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rope_scaling": {**YARN, "low_freq_factor": 1.0}}, ["rope_scaling", "low_freq_factor"]),
        ({"rope_scaling": {**YARN, "attention_factor": -1.0}}, ["attention_factor=-1.0"]),
        ({"rope_scaling": {**YARN, "truncate": 3}}, ["truncate=3"]),
        ({"rope_scaling": {**YARN, "beta_fast": 1, "beta_slow": 2}}, ["beta_fast=1", "beta_slow=2"]),
        ({"rope_scaling": {**YARN, "partial_rotary_factor": 0.5}}, ["partial_rotary_factor=0.5"]),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, ["'llama3'", "yarn"]),
        ({"rope_scaling": {"factor": 8.0}}, ["factor=8.0", "rope_type"]),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, ["quant_method='compressed-tensors'", "FP8"]),
        ({"quantization_config": {**FP8, "weight_block_size": [64, 64]}}, ["weight_block_size=[64, 64]"]),
        ({"quantization_config": {"quant_method": "fp8"}}, ["weight_block_size=None"]),
        ({"quantization_config": {**FP8, "activation_scheme": "static"}},
         ["activation_scheme='static'"]),
        ({"quantization_config": {**FP8, "bits": 4}}, ["'bits'"]),
        ({"n_group": None}, ["n_group=null"]),
        ({"mlp_bias": True}, ["mlp_bias", "False"]),
        ({"sliding_window": 4096}, ["sliding_window"]),
        ({"pruned_heads": {"1": [0]}}, ["pruned_heads"]),
        ({"num_local_experts": 5}, ["num_local_experts=5", "n_routed_experts"]),
        ({"mlp_layer_types": ["sparse", "dense"]}, ["mlp_layer_types"]),
        ({"eos_token_id": []}, ["eos_token_id=[]"]),
        ({"eos_token_id": [1, 2.5]}, ["eos_token_id=[1, 2.5]"]),
        ({"eos_token_id": [1, 99999]}, ["eos_token_id=99999"]),
    ],
)  # fmt: skip
def test_a_key_that_would_change_a_number_is_refused_by_name(changes, words):
    with pytest.raises(ConfigError) as error:
        read(**changes)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "deepseek_v32"}, "sparse"),
        ({"model_type": "glm_moe_dsa"}, "sparse"),
        ({"model_type": "deepseek_v4"}, "hyper-connections"),
        ({"model_type": "kimi_k3"}, "latent attention"),
        ({"index_topk": 2048}, "sparse"),
        ({"index_n_heads": 64}, "sparse"),
        ({"gated_attention": True}, "output gate"),
        ({"use_attn_output_gate": True}, "output gate"),
        ({"model_type": "llama"}, "this package builds"),
    ],
)
def test_an_architecture_that_only_looks_like_v3_is_refused_with_the_reason(changes, reason):
    with pytest.raises(ConfigError, match=reason) as error:
        read(**changes)
    assert next(iter(changes)) in str(error.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_return_sequences", 1),
        ("output_scores", False),
        ("prefix", None),
        ("torchscript", False),
        ("_attn_implementation", "eager"),
        ("unsloth_fixed", True),
        ("mlp_bias", False),
        ("sliding_window", None),
        ("router_aux_loss_coef", 0.001),
        ("tf_legacy_loss", False),
        ("pruned_heads", {}),
        ("partial_rotary_factor", 1.0),
        ("gated_attention", False),
    ],
)
def test_keys_of_the_base_class_and_of_tools_change_nothing(key, value):
    assert read(**{key: value}) == read()


def test_a_list_of_end_tokens_is_kept_and_each_of_them_ends_a_text():
    config = read(eos_token_id=[1, 3])
    assert config.eos_token_ids == (1, 3)
    assert config.to_dict()["eos_token_id"] == [1, 3]
    assert read(eos_token_id=None).eos_token_ids == ()


def test_the_language_model_of_a_wrapped_config_is_read():
    inner = {**NANO, "model_type": "kimi_k2"}
    config = ModelConfig.from_dict({"model_type": "kimi_k25", "text_config": inner, "vision_config": {"a": 1}})
    assert config == ModelConfig.from_dict(inner)
    with pytest.raises(ConfigError, match="text_config=None"):
        ModelConfig.from_dict({"model_type": "kimi_k25"})


def test_v2_as_transformers_5_writes_it_is_softmax(tmp_path):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.DeepseekV2Config(num_experts_per_tok=6, q_lora_rank=None)
    theirs.save_pretrained(tmp_path)
    config = ModelConfig.from_json(tmp_path / "config.json")
    assert (config.scoring_func, config.topk_method, config.norm_topk_prob) == ("softmax", "greedy", False)
    assert (config.q_lora_rank, config.n_group) == (None, 1)


def test_a_key_without_a_default_anywhere_is_refused_by_name():
    with pytest.raises(ConfigError, match="missing keys: routed_scaling_factor; kimi_k2"):
        drop("routed_scaling_factor", model_type="kimi_k2")
    with pytest.raises(ConfigError, match="missing keys: num_experts_per_tok"):
        drop("num_experts_per_tok", model_type="deepseek_v2", scoring_func="softmax", topk_method="greedy")
    with pytest.raises(ConfigError, match="missing keys: n_group, topk_group"):
        drop("n_group", "topk_group", model_type="deepseek_v2", scoring_func="softmax",
             topk_method="group_limited_greedy")  # fmt: skip


def test_dense_and_sparse_layers_by_name_are_read():
    kinds = ["dense", "dense", *["sparse"] * (NANO["num_hidden_layers"] - 2)]
    config = drop("first_k_dense_replace", model_type="glm4_moe_lite", mlp_layer_types=kinds)
    assert config.first_k_dense_replace == 2
    assert config.to_dict()["mlp_layer_types"] == kinds
