"""Weights as drawn: nothing without need, the same by name wherever they live, the wanted distribution."""

import subprocess
import sys

import pytest
import torch

from deepseek_v3.model.initialize import allocate, draw_in_turn
from deepseek_v3.model.moe import Experts
from deepseek_v3.model.transformer import DeepseekV3
from tests.tiny import tiny_config

TINY = tiny_config(initializer_range=0.07)


def test_a_new_model_is_drawn_from_the_generator_and_a_seed_repeats_it():
    torch.manual_seed(5)
    one = DeepseekV3(TINY).state_dict()
    torch.manual_seed(5)
    other = DeepseekV3(TINY).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    matrices = torch.cat([t.flatten() for name, t in one.items() if t.dim() > 1])
    assert matrices.std() == pytest.approx(0.07, rel=0.01)
    assert all((t == 1).all() for name, t in one.items() if "norm" in name)
    assert all((t == 0).all() for name, t in one.items() if name.endswith("e_score_correction_bias"))


def test_on_meta_nothing_is_drawn_and_the_compiler_is_not_imported():
    code = """if True:
        import sys, torch
        from deepseek_v3.config import ModelConfig
        from deepseek_v3.model.transformer import DeepseekV3
        before = torch.get_rng_state()
        with torch.device("meta"):
            model = DeepseekV3(ModelConfig.preset("v3-671b"))
        assert all(p.is_meta for p in model.parameters())
        assert torch.equal(before, torch.get_rng_state())
        assert "torch._dynamo" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_by_name_the_weights_are_those_of_the_seed_whatever_was_drawn_before():
    torch.manual_seed(1)
    one = DeepseekV3(TINY).initialize_weights(seed=7).state_dict()
    torch.manual_seed(2)
    other = DeepseekV3(TINY)
    other.layers[1].post_attention_layernorm.weight.data.zero_()
    state = torch.get_rng_state()
    other.initialize_weights(seed=7)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[name], t) for name, t in other.state_dict().items())
    third = DeepseekV3(TINY).initialize_weights(seed=8).state_dict()
    assert not any(torch.equal(one[name], t) for name, t in third.items() if t.dim() > 1)


def test_by_name_a_layer_does_not_feel_how_many_others_there_are():
    """A stage of a pipeline holds some layers, a rank some experts: what they hold is what one process has there."""
    whole = DeepseekV3(TINY).initialize_weights(seed=7)
    part = DeepseekV3(TINY.replace(num_hidden_layers=2, num_nextn_predict_layers=0)).initialize_weights(seed=7)
    wanted = whole.state_dict()
    assert all(torch.equal(wanted[name], t) for name, t in part.state_dict().items())
    experts = [module for module in whole.modules() if isinstance(module, Experts)]
    drawn = torch.cat([module.gate_up_proj.detach() for module in experts])
    assert len({matrix.double().sum().item() for matrix in drawn}) == len(drawn)  # no two experts alike
    assert drawn.std() == pytest.approx(0.07, rel=0.02)


@pytest.mark.parametrize("tied", [False, True])
def test_what_is_drawn_in_turn_for_a_model_on_meta_is_what_its_constructor_draws(tied):
    config = TINY.replace(tie_word_embeddings=tied)
    torch.manual_seed(5)
    known, after = DeepseekV3(config).state_dict(), torch.get_rng_state()
    with torch.device("meta"):
        model = DeepseekV3(config)
    torch.manual_seed(5)
    drawn = draw_in_turn(model, config.initializer_range)
    allocate(model, lambda planned: torch.full_like(planned, torch.nan, device="cpu"))
    places = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    with torch.no_grad():
        for name, value in drawn:
            places.pop(name).copy_(value)
    assert not places
    assert torch.equal(torch.get_rng_state(), after)
    assert all(torch.equal(value, known[name]) for name, value in model.state_dict().items())
    assert (model.lm_head.weight is model.embed_tokens.weight) == tied
