"""Tensors that do not fit: every operation raises, as PyTorch's operations do, or computes what they compute."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

import deepseek_v3.ops as ops
from deepseek_v3.config import ModelConfig
from deepseek_v3.engine.decode_step import DecodeStep
from deepseek_v3.engine.generate import generate
from deepseek_v3.engine.sampler import BrokenLogits
from deepseek_v3.model.cache import LatentCache
from deepseek_v3.model.head import sum_nats
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.native.build import SWITCH, have_kernels
from deepseek_v3.ops import dense, normalization
from tests.ops.fuzz import WRONG, hold_in_fp8, run_decode_fuzz, run_fuzz
from tests.tiny import predict

needs_kernels = pytest.mark.skipif(not have_kernels(), reason="no C++ compiler here")


@pytest.fixture
def model() -> DeepseekV3:
    torch.manual_seed(3)
    return DeepseekV3(ModelConfig.preset("demo").replace(num_hidden_layers=2, vocab_size=131))


def parts(model: DeepseekV3):
    mlp = model.layers[1].mlp
    return model.lm_head, model.layers[0].mlp, model.norm, mlp.gate, model.layers[0].self_attn.q_a_proj


@needs_kernels
@pytest.mark.parametrize("width", [1, 100, 1000])
def test_rows_of_another_width_are_refused_with_the_numbers(model, width):
    for part in parts(model):
        with pytest.raises(ValueError, match=f"64 x {width}"):
            part(torch.randn(64, width))
    with pytest.raises(ValueError, match=f"1 x 64 x {width}"):
        model.lm_head.sum_nats(torch.randn(1, 64, width), torch.zeros(1, 64, dtype=torch.long))


@needs_kernels
def test_experts_refuse_tokens_and_choices_that_do_not_fit(model):
    experts, width = model.layers[1].mlp.experts, model.config.hidden_size
    index = torch.zeros(64, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="64 x 100"):
        experts(torch.randn(64, 100), torch.rand(64, 4), index)
    for wrong in (10**6, -1):
        with pytest.raises(IndexError, match=str(wrong)):
            experts(torch.randn(64, width), torch.rand(64, 4), index + wrong)
    for weight, choice in (
        (torch.rand(64, 3), index),
        (torch.rand(64, 4), index[:40]),
        (torch.rand(64, 4), index.int()),
    ):
        with pytest.raises(ValueError, match="choices"):
            experts(torch.randn(64, width), weight, choice)


@needs_kernels
@pytest.mark.parametrize("count", [20, 65])
def test_labels_that_are_not_one_a_row_are_refused(model, count):
    with pytest.raises(ValueError, match=f"1 x {count}"):
        model.lm_head.sum_nats(torch.randn(1, 64, model.config.hidden_size), torch.zeros(1, count, dtype=torch.long))


@needs_kernels
def test_a_weight_elsewhere_or_of_another_dtype_is_not_given_to_a_kernel():
    x, weight = torch.randn(64, 7), torch.rand(7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(normalization, "run_kernel", None)
        patch.setattr(dense, "run_kernel", None)
        assert ops.rms_norm(x, weight.double(), 1e-6).shape == x.shape
        with pytest.raises(ValueError, match="meta"):
            ops.linear(x, torch.empty(5, 7, device="meta"))


@needs_kernels
def test_random_shapes_raise_or_equal_pytorch():
    run_fuzz(range(400))


@needs_kernels
def test_decoding_steps_of_random_models_equal_the_model():
    run_decode_fuzz(range(12))


@needs_kernels
@pytest.mark.parametrize("change", ["head", "embedding", "experts", "norm"])
def test_a_model_with_parts_of_other_sizes_is_not_given_to_the_decoding_kernel(model, change):
    layer, width = model.layers[1], model.config.hidden_size
    if change == "head":
        model.lm_head.weight.data = model.lm_head.weight.data[:100].clone()
    if change == "embedding":
        model.embed_tokens = nn.Embedding(100, width)
    if change == "experts":
        experts = layer.mlp.experts
        experts.gate_up_proj.data, experts.down_proj.data = experts.gate_up_proj.data[:2], experts.down_proj.data[:2]
    if change == "norm":
        layer.input_layernorm.weight.data = torch.ones(width - 2)
    step = DecodeStep(model)
    assert not step.native.ready
    if change == "norm":
        with pytest.raises(ValueError):
            step(torch.tensor([[1, 2]]), LatentCache.dense(model.config, 1, 7))


@needs_kernels
@pytest.mark.parametrize("change", [{"num_hidden_layers": 1}, {"kv_lora_rank": 8}])
def test_a_cache_of_another_model_is_refused(model, change):
    cache = LatentCache.dense(model.config.replace(**change), 1, 10)
    with pytest.raises(WRONG):
        DecodeStep(model)(torch.tensor([[1, 2]]), cache)


WEIGHTS = ["embed_tokens.weight", "layers.1.mlp.gate.weight", "norm.weight", "lm_head.weight"]
BIAS = "layers.1.mlp.gate.e_score_correction_bias"


@pytest.mark.parametrize("name", [*WEIGHTS, BIAS])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("kernel", ["0", pytest.param("1", marks=needs_kernels)])
def test_generating_with_what_is_not_finite_says_where(model, name, value, kernel, monkeypatch):
    monkeypatch.setenv(SWITCH, kernel)
    dict([*model.named_parameters(), *model.named_buffers()])[name].data.fill_(value)
    with pytest.raises((BrokenLogits, FloatingPointError), match=name.replace(".", r"\.")):
        list(generate(model, [1, 2], max_new_tokens=3))


@needs_kernels
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_scores_that_are_not_finite_choose_experts_that_exist(value):
    scores, bias = torch.rand(64, 12), torch.zeros(12)
    for score_NE, bias_E in ((torch.full_like(scores, value), bias), (scores, torch.full_like(bias, value))):
        index_NA = ops.choose_experts(score_NE, bias_E, 4, 3, 2, best_two=True)
        assert 0 <= int(index_NA.min()) <= int(index_NA.max()) < 12


def test_a_frozen_head_hands_the_gradient_on(model):
    """Its weight wants none; the gradient of a sum arrives as one number, spread."""
    hidden = torch.randn(64, model.config.hidden_size, requires_grad=True)
    model.lm_head.requires_grad_(False)
    model.lm_head(hidden).sum().backward()
    assert hidden.grad is not None
    assert model.lm_head.weight.grad is None
    want = model.lm_head.weight.sum(0).expand(64, -1)
    assert torch.allclose(hidden.grad, want, atol=1e-5)
    hidden.grad = None
    model.lm_head.sum_nats(hidden, torch.zeros(64, dtype=torch.long)).backward()
    assert hidden.grad is not None
    assert model.lm_head.weight.grad is None


def swap_linear(model: DeepseekV3, name: str, *, bias: bool) -> nn.Linear:
    """Put PyTorch's own layer in a matrix's place, with the same numbers."""
    old = model.get_submodule(name)
    out, width = old.weight.shape
    swapped = nn.Linear(width, out, bias=bias)
    swapped.weight.data.copy_(old.weight.data)
    owner, _, key = name.rpartition(".")
    setattr(model.get_submodule(owner), key, swapped)
    return swapped


MATRICES = ["lm_head", "layers.0.mlp.up_proj", "layers.1.mlp.shared_experts.down_proj"]
MATRICES += [
    f"layers.1.self_attn.{key}" for key in ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
]


@pytest.mark.parametrize("name", [*MATRICES, "mtp.0.eh_proj"])
def test_a_layer_of_pytorchs_own_serves_in_every_form(model, name):
    tokens = torch.randint(0, 131, (2, 41))

    def run() -> list[torch.Tensor]:
        cache, step = LatentCache.dense(model.config, 2, 50, layers=3), DecodeStep(model)
        model.zero_grad()
        hidden = model.hidden_states(tokens)
        ahead = model.mtp_hidden_states(tokens, hidden)
        loss = sum_nats(model.lm_head, hidden, tokens) + sum_nats(model.lm_head, ahead[0], tokens)
        loss.backward()
        grad = model.embed_tokens.weight.grad
        assert grad is not None
        read, logits = step(tokens[:, :3], cache)
        one, more = step(tokens[:, 3:4], cache)
        drafted = predict(step, 0, read, tokens[:, 1:4], cache.module(0))
        long = model(tokens[:, 4:], cache=cache)
        return [loss.detach(), grad.clone(), read, logits, one, more, *drafted, long.detach()]

    want = run()
    swapped = swap_linear(model, name, bias=True)
    nn.init.zeros_(swapped.bias)
    for a, b in zip(run(), want):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))
    nn.init.ones_(swapped.bias)
    assert all(
        (a - b).abs().max() > 1e-4 for a, b in zip(run(), want) if a.numel() > 1 and name.startswith("layers.")
    ), "its bias was left out"


@needs_kernels
def test_codes_where_the_decoding_kernel_reads_numbers_are_left_to_the_model(model):
    """Of a join it would read four bytes each: beyond their end. A head in codes it reads as such."""
    for name, ready in (("mtp.0.eh_proj", False), ("lm_head", True)):
        changed = DeepseekV3(model.config).requires_grad_(False)
        hold_in_fp8(changed, [name])
        assert DecodeStep(changed).native.ready is ready
        cache = LatentCache.dense(model.config, 1, 7)
        got = DecodeStep(changed)(torch.tensor([[1, 2]]), cache)[1]
        assert torch.allclose(got, changed(torch.tensor([[1, 2]])), atol=1e-4)


@needs_kernels
def test_scales_that_do_not_cover_their_codes_are_refused(model):
    hold_in_fp8(model.requires_grad_(False), ["layers.0.mlp.up_proj"])
    layer = model.get_submodule("layers.0.mlp.up_proj")
    layer.weight_scale_inv = layer.weight_scale_inv[:2]
    with pytest.raises(ValueError, match="do not cover"):
        DecodeStep(model)


@pytest.mark.slow
@needs_kernels
def test_no_kernel_reads_or_writes_beyond_its_tensors():
    """The address sanitizer over random shapes, right and wrong, in a process of its own."""
    library = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    if not os.path.isabs(library):
        pytest.skip("no address sanitizer here")
    environment = {
        **os.environ, "LD_PRELOAD": library, "ASAN_OPTIONS": "detect_leaks=0",
        "DEEPSEEK_V3_NATIVE_FLAGS": "-fsanitize=address -O1", "OMP_NUM_THREADS": "2",
    }  # fmt: skip
    code = "from tests.ops.fuzz import *; run_fuzz(range(1000, 1400)); run_decode_fuzz(range(100, 112)); print('clean')"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=900)
    assert "clean" in done.stdout, done.stderr[-3000:]
