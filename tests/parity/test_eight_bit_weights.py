"""Weights in 8 bits for decoding: what the kernel computes with them is what chapter 05 says that they stand for."""

import copy

import fine_grained_quantization as chapter
import pytest
import torch

from deepseek_v3.engine.decode_step import DecodeStep, Rows
from deepseek_v3.engine.engine import Engine
from deepseek_v3.engine.request import EngineOptions, Request
from deepseek_v3.fp8.quantize import CODE
from deepseek_v3.model.cache import LatentCache
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.native.build import have_kernels
from deepseek_v3.weights.load import hold_in_fp8
from tests.tiny import tiny_config

pytestmark = pytest.mark.skipif(not have_kernels(), reason="no C++ compiler here")
WIDE = {
    "hidden_size": 2 * 67,
    "vocab_size": 257,
    "moe_intermediate_size": 2 * 71,
}  # more than a block, and a part of one


def draw(**changes) -> DeepseekV3:
    torch.manual_seed(0)
    return DeepseekV3(tiny_config(**WIDE, **changes)).eval()


def as_the_chapter_says(weight: torch.Tensor) -> torch.Tensor:
    """Quantize and dequantize a matrix in NumPy."""
    there_and_back = chapter.dequantize(chapter.quantize_weight(weight.detach().float().numpy()))
    return torch.from_numpy(there_and_back).to(weight.dtype)


def rounded_by_the_chapter(model: DeepseekV3) -> DeepseekV3:
    """A copy whose matrices went through 8 bits, all but those that the report keeps."""
    model = copy.deepcopy(model)
    for name, weight in model.named_parameters():
        if name == "embed_tokens.weight" or weight.dim() == 1 or name.endswith(("eh_proj.weight", "gate.weight")):
            continue
        matrices = weight.data.view(-1, *weight.shape[-2:])
        if name.endswith("gate_up_proj"):
            matrices = weight.data.view(-1, weight.shape[-2] // 2, weight.shape[-1])
        for matrix in matrices:
            matrix.copy_(as_the_chapter_says(matrix))
    return model


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=["fp32", "bf16"])
def test_a_model_held_in_8_bits_computes_with_the_chapters_numbers(dtype, bound):
    model = draw().to(dtype)
    wanted = rounded_by_the_chapter(model.float())
    model = model.to(dtype)  # the same numbers again: `float` above widened them
    hold_in_fp8(model)
    kept = {"embed_tokens.weight"} | {n for n, p in model.named_parameters() if p.dim() == 1 or "gate.weight" in n}
    assert {name for name, p in model.named_parameters() if p.dtype != CODE} == kept | {"mtp.0.eh_proj.weight"}
    step, tokens = DecodeStep(model), [3, 200, 7, 11]
    assert step.native.ready
    _, got = step.read(Rows(tokens, [4]), LatentCache.dense(model.config, 1, 8, dtype=torch.float32))
    with torch.inference_mode():
        theirs = wanted(torch.tensor([tokens]))[0]
    assert (got - theirs).abs().max() <= bound * theirs.abs().max()


def test_modules_draft_with_a_head_in_8_bits_and_the_main_model_does_not():
    model, tokens = draw(), [3, 200, 7, 11]
    found = {}
    for fp8_drafts in (False, True):
        step, cache = DecodeStep(model, fp8_drafts=fp8_drafts), LatentCache.dense(model.config, 1, 8, layers=4)
        hidden_ND, logits = step.read(Rows(tokens, [4]), cache)
        module = cache.module(0)
        found[fp8_drafts] = logits, *step.read(Rows(tokens[1:], [3]), module, depth=0, below_ND=hidden_ND[:3])
    with torch.inference_mode():
        theirs = model(torch.tensor([tokens]))[0]
    assert (found[True][0] - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    assert torch.equal(found[False][0], found[True][0])
    assert torch.equal(found[False][1], found[True][1])
    wanted = found[True][1] @ as_the_chapter_says(model.lm_head.weight).T
    assert (found[True][2] - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert not torch.equal(found[False][2], found[True][2])


def test_greedy_text_stays_when_drafts_come_from_8_bits():
    model = draw(num_nextn_predict_layers=2)
    texts = []
    for drafts, fp8_drafts in ((0, False), (2, False), (2, True)):
        engine = Engine(model, EngineOptions(n_blocks=32, fp8_drafts=fp8_drafts))
        rows = [engine.admit(Request([i, 2 * i + 1], max_new_tokens=24, drafts=drafts)) for i in range(4)]
        while engine.sequences:
            engine.step()
        texts.append([row.tokens for row in rows])
    assert texts[0] == texts[1] == texts[2]


def test_what_is_not_a_number_has_no_8_bits():
    model = draw()
    model.layers[1].mlp.experts.down_proj.data[5, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinity has no FP8 form"):
        hold_in_fp8(model)
