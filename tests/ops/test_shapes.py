"""Tensors that do not fit: every operation raises, as PyTorch's operations do, or computes what they compute."""

import os
import random
import subprocess
import sys

import pytest
import torch
from torch import nn

import deepseek_v3.ops as ops
from deepseek_v3.config import ModelConfig
from deepseek_v3.engine.decode_step import DecodeStep
from deepseek_v3.model.cache import LatentCache
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.native.build import SWITCH, have_kernels
from deepseek_v3.ops import dense, normalization

needs_kernels = pytest.mark.skipif(not have_kernels(), reason="no C++ compiler here")
WRONG = (ValueError, IndexError, RuntimeError)


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


def draw_call(r: random.Random):
    """An operation with shapes of which some may be wrong."""

    torch.manual_seed(r.randrange(10**6))

    def size(right: int) -> int:
        return right if r.random() < 0.85 else r.choice([1, 2, right + 1, right + 64, max(1, right - 1)])

    dtype = r.choice([torch.float32, torch.float32, torch.bfloat16, torch.float64])

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*map(size, shape), dtype=dtype)

    n, d, f, e, a = r.randint(33, 50), 2 * r.randint(3, 20), 2 * r.randint(3, 20), r.randint(2, 6), 2
    index = torch.randint(0, size(e), (size(n), size(a)))
    s, h, k, rot, u = r.randint(33, 40), 3, 6, 4, 5
    rotation = ops.Rotation(torch.rand(size(s), size(rot // 2)), torch.rand(size(s), size(rot // 2)))
    return r.choice(
        [
            lambda: ops.linear(draw(n, d), draw(f, d)),
            lambda: ops.swiglu(draw(n, d), draw(f, d), draw(f, d), draw(d, f)),
            lambda: ops.rms_norm(draw(n, d), draw(d), 1e-6),
            lambda: ops.run_experts(draw(n, d), draw(n, a).float(), index, draw(e, 2 * f, d), draw(e, d, f)),
            lambda: (
                ops.choose_experts(draw(n, 12).float(), draw(12).float(), size(2), size(3), size(2), best_two=True)
                .sort(-1)
                .values
            ),
            lambda: ops.sum_nats(draw(n, d), draw(f, d), torch.randint(0, size(f), (size(n),)), -100),
            lambda: ops.attend_expanded(draw(1, s, h, k + rot), draw(1, s, h, k + u), draw(1, s, rot), rotation, 0.3),
        ]
    )


def outcome(call, seed: int):
    torch.manual_seed(seed)
    try:
        return call()
    except WRONG as error:
        return error


def run_fuzz(seeds: range) -> None:
    """Every call raises, or equals PyTorch's operations."""
    for seed in seeds:
        with pytest.MonkeyPatch.context() as patch:
            got = outcome(draw_call(random.Random(seed)), seed)
            patch.setenv(SWITCH, "0")
            want = outcome(draw_call(random.Random(seed)), seed)
        if isinstance(got, torch.Tensor):
            assert isinstance(want, torch.Tensor), f"seed {seed}: {want}"
            assert got.shape == want.shape
            assert torch.allclose(got.double(), want.double(), rtol=0.05, atol=0.05 * float(want.abs().max())), seed


@needs_kernels
def test_random_shapes_raise_or_equal_pytorch():
    run_fuzz(range(400))


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


@needs_kernels
@pytest.mark.parametrize(
    "name", ["embed_tokens.weight", "layers.1.mlp.gate.weight", "layers.1.mlp.gate.e_score_correction_bias"]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_decoding_with_what_is_not_finite_says_where(model, name, value):
    dict([*model.named_parameters(), *model.named_buffers()])[name].data.fill_(value)
    with pytest.raises(FloatingPointError, match=name.replace(".", r"\.")):
        DecodeStep(model)(torch.tensor([[1, 2]]), LatentCache.dense(model.config, 1, 7))


@needs_kernels
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_scores_that_are_not_finite_choose_experts_that_exist(value):
    scores, bias = torch.rand(64, 12), torch.zeros(12)
    for score_NE, bias_E in ((torch.full_like(scores, value), bias), (scores, torch.full_like(bias, value))):
        index_NA = ops.choose_experts(score_NE, bias_E, 4, 3, 2, best_two=True)
        assert 0 <= int(index_NA.min()) <= int(index_NA.max()) < 12


@pytest.mark.slow
@needs_kernels
def test_no_kernel_reads_or_writes_beyond_its_tensors(tmp_path):
    """The address sanitizer over random shapes, right and wrong, in a process of its own."""
    library = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    if not os.path.isabs(library):
        pytest.skip("no address sanitizer here")
    environment = {
        **os.environ, "LD_PRELOAD": library, "ASAN_OPTIONS": "detect_leaks=0", "XDG_CACHE_HOME": str(tmp_path),
        "DEEPSEEK_V3_NATIVE_FLAGS": "-fsanitize=address -O1", "OMP_NUM_THREADS": "2",
    }  # fmt: skip
    code = "from tests.ops.test_shapes import run_fuzz; run_fuzz(range(1000, 1300)); print('clean')"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=900)
    assert "clean" in done.stdout, done.stderr[-3000:]
