"""Sizes, names and views of the model."""

import json

import numpy as np
import pytest
from architecture import BIAS, V3, Config, count_parameters, init_model, tensor_shapes, trained_weights, view_layer

TINY = Config()


def test_v3_has_its_671_billion_parameters_by_the_same_table():
    assert count_parameters(V3) == (671_026_419_200, 11_610_068_224)


def test_every_tensor_has_the_shape_of_the_table_and_the_dtype_that_was_asked_for(rng):
    for dtype in (np.float32, np.float64):
        model = init_model(rng, TINY, dtype)
        assert {name: array.shape for name, array in model.weights.items()} == tensor_shapes(TINY)
        assert {array.dtype.type for array in model.weights.values()} == {dtype}


def test_matrices_are_drawn_with_the_configs_deviation_and_norms_and_biases_are_not(rng):
    weights = init_model(rng, Config(initializer_range=0.006)).weights
    for name, array in weights.items():
        if array.ndim > 1:
            assert array.std() == pytest.approx(0.006, rel=0.15), name
        else:
            assert (array == (0 if name.endswith(BIAS) else 1)).all(), name


def test_a_layer_is_views_so_that_a_step_on_the_dictionary_is_a_step_of_the_model(rng):
    model = init_model(rng, TINY)
    layer = view_layer(model, 1)
    model.weights["model.layers.1.mlp.experts.up_proj.weight"][3, 2, 1] = 7.0
    model.weights["model.layers.1.self_attn.kv_b_proj.weight"][0, 0] = 5.0
    assert layer.mlp.experts.up_proj[3, 2, 1] == 7.0
    assert layer.self_attn.kv_b_proj[0, 0] == 5.0


def test_the_bias_is_no_trained_weight_and_everything_else_is(rng):
    weights = init_model(rng, TINY).weights
    left_out = weights.keys() - trained_weights(weights).keys()
    assert left_out == {f"model.layers.{i}.mlp.gate.{BIAS}" for i in (1, 2, 3)}  # layer 3 is the MTP module's


def test_a_config_survives_its_json():
    config = Config(q_lora_rank=None, num_nextn_predict_layers=2)
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"scoring_func": "softmax"}, "softmax"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"n_routed_experts": None}, "n_routed_experts"),
        ({"n_shared_experts": 0}, "n_shared_experts"),
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps"),
        ({"model_type": "deepseek_v2"}, "deepseek_v2"),
    ],
)
def test_another_model_is_refused_by_the_key_that_makes_it_one(change, word):
    with pytest.raises(ValueError, match=word):
        Config.from_dict({**TINY.to_dict(), **change})


def test_a_missing_key_is_named():
    with pytest.raises(ValueError, match="lacks kv_lora_rank"):
        Config.from_dict({k: v for k, v in TINY.to_dict().items() if k != "kv_lora_rank"})
