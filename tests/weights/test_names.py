"""The table of released names, against the counts of the released checkpoint and the real module tree."""

from math import prod

import pytest
import torch

from deepseek_v3.config import ModelConfig
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.sizing import count_parameters
from deepseek_v3.weights.load import place_of
from deepseek_v3.weights.names import iterate_slots, mtp_layer_of, scale_name, scale_shape

V3, LITE = ModelConfig.preset("v3-671b"), ModelConfig.preset("v2-lite-16b")


def test_the_released_checkpoint_has_91991_tensors():
    slots = list(iterate_slots(V3))
    assert len(slots) + sum(slot.fp8 for slot in slots) == 91_991
    assert sum(prod(slot.shape) for slot in slots) == 684_489_845_504
    assert sum(prod(scale_shape(slot.shape)) for slot in slots if slot.fp8) == 41_540_496
    assert sum(prod(slot.shape) for slot in slots if slot.fp8) == 680_571_043_840


def test_the_parts_add_up_to_the_known_counts():
    slots = list(iterate_slots(V3))
    main = sum(prod(slot.shape) for slot in slots if not mtp_layer_of(slot.name, V3))
    mtp = sum(prod(slot.shape) for slot in slots if mtp_layer_of(slot.name, V3) and not slot.copy)
    assert (main, mtp) == (671_026_419_200, 11_610_068_224)
    assert (main, mtp) == (count_parameters(V3).main, count_parameters(V3).mtp)
    assert sum(prod(slot.shape) for slot in iterate_slots(LITE)) == 15_706_484_224


@pytest.mark.parametrize(
    ("name", "shape", "scales"),
    [
        ("model.layers.0.self_attn.kv_a_proj_with_mqa.weight", (576, 7168), (5, 56)),
        ("model.layers.61.mlp.experts.255.down_proj.weight", (7168, 2048), (56, 16)),
        ("model.layers.2.mlp.gate_proj.weight", (18432, 7168), (144, 56)),
        ("model.layers.60.mlp.shared_experts.up_proj.weight", (2048, 7168), (16, 56)),
        ("model.layers.61.eh_proj.weight", (7168, 14336), None),
        ("model.layers.61.shared_head.head.weight", (129280, 7168), None),
        ("model.layers.3.mlp.gate.e_score_correction_bias", (256,), None),
    ],
)
def test_a_released_tensor_has_its_released_shape(name, shape, scales):
    slot = next(slot for slot in iterate_slots(V3) if slot.name == name)
    assert slot.shape == shape
    assert (scale_shape(shape) if slot.fp8 else None) == scales
    assert scale_name("a.weight") == "a.weight_scale_inv"


SIZES = {
    "vocab_size": 97,
    "hidden_size": 22,
    "intermediate_size": 29,
    "moe_intermediate_size": 13,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "kv_lora_rank": 11,
    "qk_nope_head_dim": 7,
    "qk_rope_head_dim": 4,
    "v_head_dim": 5,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": None,
    "num_nextn_predict_layers": 0,
    "first_k_dense_replace": 1,
}


@pytest.mark.parametrize(
    "changes",
    [
        {"q_lora_rank": 17, "num_nextn_predict_layers": 2, "n_shared_experts": 2},
        {"n_shared_experts": 0, "tie_word_embeddings": True, "num_nextn_predict_layers": 1},
        {"n_routed_experts": None},
        {"scoring_func": "softmax", "topk_method": "greedy", "model_type": "deepseek_v2", "norm_topk_prob": False},
    ],
    ids=["v3", "tied", "dense", "v2-lite"],
)
def test_the_slots_tile_the_memory_of_the_model_exactly(changes):
    """Number every element through the slots: each is written once, none is left."""
    config = ModelConfig.from_dict({**SIZES, **changes})
    state = {name: torch.zeros_like(t) for name, t in DeepseekV3(config).state_dict(keep_vars=False).items()}
    if config.tie_word_embeddings:
        del state["lm_head.weight"]
    for slot in iterate_slots(config):
        place = place_of(slot, state)
        assert tuple(place.shape) == slot.shape
        if not slot.copy:
            place += 1
    assert all(torch.all(tensor == 1) for tensor in state.values())
