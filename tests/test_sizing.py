"""Sizes by arithmetic equal the real module tree, the released checkpoints and the real cache."""

import pytest
import torch

from deepseek_v3 import sizing
from deepseek_v3.commands.size import SizeOptions, run_size
from deepseek_v3.config import ModelConfig
from deepseek_v3.model.cache import LatentCache
from deepseek_v3.model.router import Router
from deepseek_v3.model.transformer import DeepseekV3


def count_tree(config: ModelConfig) -> tuple[int, int]:
    """Count parameters and selection biases of the built (weightless) model: all, and those of the MTP modules."""
    with torch.device("meta"):
        model = DeepseekV3(config)

    def count(module: torch.nn.Module) -> int:
        biases = [m.e_score_correction_bias for m in module.modules() if isinstance(m, Router) and m.sigmoid]
        return sum(p.numel() for p in [*module.parameters(), *biases])

    return count(model), count(model.mtp)


@pytest.mark.parametrize("preset", ["demo", "nano", "small", "v2-lite-16b", "v3-671b"])
def test_the_arithmetic_equals_the_module_tree(preset):
    config = ModelConfig.preset(preset)
    count = sizing.count_parameters(config)
    assert (count.total, count.mtp) == count_tree(config)


@pytest.mark.parametrize("changes", [{"tie_word_embeddings": True}, {"q_lora_rank": None}, {"n_routed_experts": None},
                                     {"num_nextn_predict_layers": 3}, {"n_shared_experts": 0}])  # fmt: skip
def test_the_arithmetic_holds_for_every_option(changes):
    config = ModelConfig.preset("demo").replace(**changes)
    assert sizing.count_parameters(config).total == count_tree(config)[0]


def test_the_released_counts():
    v3 = sizing.count_parameters(ModelConfig.preset("v3-671b"))
    assert (v3.main, v3.mtp, v3.active) == (671_026_419_200, 11_610_068_224, 37_552_297_472)
    assert v3.active - v3.embedding == 36_625_618_432
    assert sizing.count_parameters(ModelConfig.preset("v2-lite-16b")).main == 15_706_484_224


def test_the_released_flops_scales_and_bytes():
    v3 = ModelConfig.preset("v3-671b")
    assert sizing.training_flops(v3, 4096) == pytest.approx(250.5e9, rel=1e-3)
    assert sizing.fp8_scales(v3) == 41_540_496
    # the released 688.57 GB store embedding and head a second time, in BF16, beside the MTP layer
    assert sizing.fp8_bytes(v3) + 2 * 2 * v3.vocab_size * v3.hidden_size == pytest.approx(688.57e9, rel=1e-4)


def test_the_cache_bytes_are_those_of_the_real_cache():
    v3 = ModelConfig.preset("v3-671b")
    assert sizing.cache_values(v3) == {"MHA": 32768, "GQA, 8 groups": 2048, "MQA": 256, "MLA": 576}
    for config in (v3, ModelConfig.preset("nano")):
        real = LatentCache.dense(config, batch=1, capacity=1, dtype=torch.bfloat16)
        assert real.store.bytes_per_token == sizing.cache_values(config)["MLA"] * config.num_hidden_layers * 2
        assert real.store.latent_LPTW.nbytes == real.store.bytes_per_token
    assert LatentCache.dense(v3, 1, 1, dtype=torch.bfloat16).store.bytes_per_token == 70_272


def test_size_prints_the_released_figures(capsys):
    run_size(SizeOptions())
    text = capsys.readouterr().out
    for figure in ("671,026,419,200", "11,610,068,224", "37.55 B", "70,272 B", "56.9 x MLA"):
        assert figure in text
    with pytest.raises(ValueError, match="--context 0"):
        run_size(SizeOptions(context=0))


def test_the_count_of_the_chapter_on_cost_is_that_of_the_package():
    from cost_of_training import ModelSizes, active_parameters, flops_per_token, total_parameters

    v3, chapter = ModelConfig.preset("v3-671b"), ModelSizes()
    count = sizing.count_parameters(v3)
    assert (total_parameters(chapter), sum(active_parameters(chapter).values())) == (
        count.main,
        count.active - count.embedding,
    )
    assert flops_per_token(chapter, 4096) == pytest.approx(sizing.training_flops(v3, 4096), rel=1e-12)
