"""The family's table: defaults read from the classes in transformers, counts from published configs."""

import pytest

from deepseek_v3.config import ModelConfig
from deepseek_v3.family import ARCHITECTURES

CLASSES = {"deepseek_v3": "DeepseekV3Config", "deepseek_v2": "DeepseekV2Config", "glm4_moe_lite": "Glm4MoeLiteConfig"}


@pytest.mark.parametrize("kind", CLASSES)
def test_a_key_left_out_has_the_default_of_its_class_in_transformers(kind):
    theirs = getattr(pytest.importorskip("transformers"), CLASSES[kind])(
        **({"num_experts_per_tok": 6} if kind == "deepseek_v2" else {})
    ).to_dict()
    needed = {} if ARCHITECTURES[kind].defaults.get("num_experts_per_tok") else {"num_experts_per_tok": 6}
    ours = ModelConfig.from_dict({"model_type": kind, **needed}).to_dict()
    theirs["rope_theta"] = theirs.pop("rope_parameters")["rope_theta"]
    not_theirs = {"torch_dtype", "rope_scaling", "scoring_func", "moe_layer_freq", "architectures"}
    if kind != "deepseek_v2":
        not_theirs |= {"topk_method"}
    if kind != "deepseek_v3":
        not_theirs |= {"num_nextn_predict_layers"}
    if kind == "glm4_moe_lite":
        not_theirs |= {"first_k_dense_replace"}
    greedy = {"n_group", "topk_group"} if kind == "deepseek_v2" else set()  # null there: greedy knows no groups
    assert {key: ours[key] for key in ours.keys() - not_theirs - greedy} == {
        key: theirs[key] for key in ours.keys() - not_theirs - greedy
    }
    assert all(theirs[key] is None and ours[key] == 1 for key in greedy)
