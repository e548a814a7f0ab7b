"""FP8 layers against the straight-through rule in FP64: gradients of the quantized operands, taken exactly."""

import pytest
import torch
from torch import Tensor

import deepseek_v3.ops as ops
from deepseek_v3.config import ModelConfig
from deepseek_v3.fp8.recipe import (
    AFTER_ATTENTION,
    DISPATCHED,
    PLAIN,
    VARIANTS,
    quantize_gradient,
    quantize_input,
    vary,
)
from deepseek_v3.fp8.tiles import COLUMNS, E5M6, GRADIENT_FLOOR, ROWS, SQUARES, dequantize, quantize, turn
from deepseek_v3.model.fp8_products import use_fp8_products
from deepseek_v3.model.linear import Linear
from deepseek_v3.model.mlp import SwiGLU
from deepseek_v3.model.moe import Experts
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.native.build import have_kernels
from deepseek_v3.ops import attention
from deepseek_v3.weights.names import iterate_slots

BF16_STEP, FP32_SUM = 2.0**-8, 1e-6  # of a value; of the largest one


def exact(q) -> Tensor:
    return dequantize(q).double()


def agree(got: Tensor, want: Tensor, step: float) -> None:
    """Up to the rounding to BF16, if `step` says so, and sums in FP32."""
    assert got.shape == want.shape
    assert ((got.double() - want).abs() <= step * want.abs() + FP32_SUM * want.abs().max()).all()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("recipe", [PLAIN, AFTER_ATTENTION, DISPATCHED], ids=["plain", "attention", "dispatched"])
def test_a_linear_layer_has_the_gradients_of_its_quantized_operands(recipe, form):
    x, weight = torch.randn(139, 257) * torch.randn(139, 1).exp(), torch.randn(131, 257)
    dy = 1e-5 * torch.randn(139, 131)
    leaves = x.clone().requires_grad_(), weight.clone().requires_grad_()
    y = ops.linear_in_fp8(*leaves, recipe)
    y.backward(dy)
    x_row, w = quantize(x, ue8m0=recipe.input_ue8m0), quantize(weight, SQUARES)
    how = {"ue8m0": recipe.gradient_ue8m0, "floor": GRADIENT_FLOOR}
    kept = quantize(x, ROWS, E5M6, ue8m0=True) if recipe.keep_e5m6 else x_row
    agree(y.detach(), exact(x_row) @ exact(w).T, BF16_STEP)
    agree(leaves[0].grad, exact(quantize(dy, **how)) @ exact(w), BF16_STEP)
    x_column = exact(turn(kept, ue8m0=recipe.input_ue8m0))
    agree(leaves[1].grad, exact(quantize(dy, COLUMNS, **how)).T @ x_column, 0)


def test_what_is_kept_in_e5m6_turns_over_without_a_second_error(form):
    """Of E5M6 in powers of two little is lost but what E4M3 cannot say; of E4M3 every value is rounded twice."""
    x = torch.randn(256, 128) * torch.randn(256, 1).exp()

    def error(q) -> float:
        return float(((dequantize(q) - x).abs() / x.abs()).mean())

    once = error(quantize(x, COLUMNS, ue8m0=True))
    assert error(turn(quantize(x, ROWS, E5M6, ue8m0=True), ue8m0=True)) < 1.05 * once
    assert error(turn(quantize(x, ROWS))) > 1.25 * once


def attention_inputs(dtype: torch.dtype) -> tuple[list[Tensor], ops.Rotation]:
    """Queries, keys beside values, rope keys and W_O of 2 rows of 37 tokens, 3 heads; angles."""
    shapes = [(2, 37, 3, 24), (2, 37, 3, 30), (2, 37, 10), (22, 48)]
    leaves = [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]
    angle = torch.arange(37)[:, None] * torch.rand(5)
    return leaves, ops.Rotation(angle.cos(), angle.sin())


def test_attentions_backward_pass_reads_the_e5m6_that_is_kept_for_the_linear_after_it(monkeypatch):
    """V3 3.3.3: the kernel is given just those numbers, and its gradients are nearly those by the output in BF16."""
    if not have_kernels():
        pytest.skip("PyTorch's form needs no output")
    leaves, rotation = attention_inputs(torch.bfloat16)
    *inputs, weight = leaves
    read, run = [], attention.run_kernel
    monkeypatch.setattr(attention, "run_kernel", lambda name, *a: read.append(a) or run(name, *a))
    out = ops.attend_expanded(*inputs, rotation, 0.2).flatten(0, 1).flatten(1).detach()
    dy = torch.randn(2, 37, 22).bfloat16()
    got = torch.autograd.grad(
        ops.attend_and_project_in_fp8(*inputs, rotation, 0.2, weight.float(), AFTER_ATTENTION), inputs, dy
    )
    kept = dequantize(quantize(out, ROWS, E5M6, ue8m0=True))
    assert torch.equal(read[-1][8].float(), kept)  # the kernel was given just that
    assert not torch.equal(kept, out.float())
    plain = torch.autograd.grad(
        ops.linear_in_fp8(ops.attend_expanded(*inputs, rotation, 0.2).flatten(2), weight.float(), AFTER_ATTENTION),
        inputs, dy,
    )  # fmt: skip
    for a, b in zip(got, plain):
        assert 0 <= (a.float() - b.float()).norm() < 0.02 * b.float().norm()
    assert not torch.equal(got[0], plain[0])


def test_attention_and_its_projection_are_the_same_with_and_without_the_kernel(form):
    leaves, rotation = attention_inputs(torch.float32)
    dy, found = torch.randn(2, 37, 22), []
    for call in (
        lambda q, kv, r, w: ops.attend_and_project_in_fp8(q, kv, r, rotation, 0.2, w, AFTER_ATTENTION),
        lambda q, kv, r, w: ops.attend_expanded(q, kv, r, rotation, 0.2).flatten(2) @ w.T,
    ):
        y = call(*leaves)
        found.append((y.detach(), *torch.autograd.grad(y, leaves, dy)))
    for a, b in zip(*found):
        assert (a - b).norm() < 0.08 * b.norm()


@pytest.mark.parametrize("variant", [name for name in VARIANTS if "outliers" not in name])
def test_every_variant_computes_nearly_what_is_computed_without_fp8(variant, form):
    x, dy = torch.randn(139, 131), torch.randn(139, 131)
    gate, up, down = torch.randn(3, 131, 131).mul(0.1).unbind()
    index = torch.stack([torch.randperm(5)[:2] for _ in range(139)])
    weight, stack = torch.rand(139, 2), torch.stack([torch.cat([gate, up])] * 5)
    calls = [
        (ops.linear, lambda *t: ops.linear_in_fp8(*t, vary(AFTER_ATTENTION, variant)), [x, gate]),
        (ops.swiglu, lambda *t: ops.swiglu_in_fp8(*t, vary(PLAIN, variant)), [x, gate, up, down]),
        (
            lambda x, w, u, d: ops.run_experts(x, w, index, u, d),
            lambda x, w, u, d: ops.experts_in_fp8(x, w, index, u, d, vary(DISPATCHED, variant)),
            [x, weight, stack, torch.stack([down] * 5)],
        ),
    ]  # fmt: skip
    for plain, low, inputs in calls:
        results = []
        for call in (plain, low):
            leaves = [t.clone().requires_grad_() for t in inputs]
            y = call(*leaves)
            results.append((y.detach(), *torch.autograd.grad(y, leaves, dy)))
        for want, got in zip(*results):
            assert (got - want).norm() < 0.15 * want.norm()
            assert not torch.equal(got, want)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("recipe", [PLAIN, AFTER_ATTENTION, DISPATCHED], ids=["plain", "attention", "dispatched"])
def test_what_is_not_finite_stays_so(bad, recipe, form):
    """Else a broken step would look sound: it must be skipped."""
    x = torch.randn(33, 130)
    x[7, 3] = bad
    leaves = x.requires_grad_(), torch.randn(34, 130).requires_grad_()
    y = ops.linear_in_fp8(*leaves, recipe)
    assert not y[7].isfinite().any()
    assert y[8].isfinite().all()
    y = ops.linear_in_fp8(leaves[0].detach().nan_to_num(0, 0, 0).requires_grad_(), leaves[1], recipe)
    dy = torch.randn(33, 34)
    dy[5, 2] = bad
    y.backward(dy)
    assert not leaves[1].grad[2].isfinite().any()


def test_one_scale_for_a_tensor_flushes_what_lies_beside_an_outlier_and_tiles_do_not(form):
    """The control at the level of a layer: 3.3.2 of the report in one product."""
    x, weight = torch.randn(256, 256), torch.randn(128, 256)
    x[7, 100] = 1e6
    want, error = x @ weight.T, {}
    for variant in ("report", "whole-tensor"):
        got = ops.linear_in_fp8(x, weight, vary(PLAIN, variant))
        rest = torch.arange(256) != 7
        error[variant] = float((got - want)[rest].norm() / want[rest].norm())
    assert error["report"] < 0.05 < 0.5 < error["whole-tensor"]


@pytest.mark.parametrize("tile", [ROWS, COLUMNS])
def test_a_variant_with_outliers_shows_only_what_they_do_to_the_scales(tile, form):
    """Tiles: all but the first are as without. One scale a tensor: hardly a number is left."""
    x = torch.randn(256, 384)
    plain, beside = (exact(quantize_input(x, vary(PLAIN, name), tile)) for name in ("report", "outliers"))
    first = torch.zeros(256, 384, dtype=torch.bool)
    first[: tile[0], : tile[1]] = True
    assert torch.equal(plain[~first], beside[~first])
    assert beside[0, 0] == 0
    assert (beside[first] == 0).double().mean() > 0.5
    whole = exact(quantize_input(x, vary(PLAIN, "whole-tensor-outliers"), tile))
    assert whole[0, 0] == 0
    assert (whole == 0).double().mean() > 0.5
    assert whole.abs().max() < 1.5 * x.abs().max()  # the outlier itself takes no part
    row, column = quantize_gradient(1e-6 * x, vary(PLAIN, "outliers"))
    assert dequantize(row)[0, 0] == dequantize(column)[0, 0] == 0
    assert torch.equal(row.scale[1:], quantize_gradient(1e-6 * x, PLAIN)[0].scale[1:])


def test_autocast_gives_bf16_and_a_gradient_in_fp32(form):
    x, weight = torch.randn(40, 66, requires_grad=True), torch.randn(34, 66, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = ops.linear_in_fp8(x, weight, PLAIN)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert weight.grad.dtype == x.grad.dtype == torch.float32


def small_model(**changes) -> DeepseekV3:
    torch.manual_seed(3)
    sizes = {"hidden_size": 22, "intermediate_size": 26, "moe_intermediate_size": 7, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 2, "kv_lora_rank": 5, "qk_nope_head_dim": 7, "qk_rope_head_dim": 4, "v_head_dim": 3}
    experts = {"n_routed_experts": 6, "num_experts_per_tok": 2, "first_k_dense_replace": 1, "n_shared_experts": 1}
    config = ModelConfig(vocab_size=31, num_nextn_predict_layers=1, **sizes, **heads, **experts, **changes)
    return DeepseekV3(config)


@pytest.mark.parametrize("changes", [{}, {"q_lora_rank": None}])
def test_the_products_in_fp8_are_those_whose_weights_the_released_checkpoint_has_in_fp8(changes):
    model = small_model(**changes)
    use_fp8_products(model)
    ours = set()
    for name, module in model.named_modules():
        if isinstance(module, (Linear, SwiGLU, Experts)) and module.recipe is not None:
            ours |= {f"{name}.{part}" for part, _ in module.named_parameters()}
    assert ours == {slot.memory for slot in iterate_slots(model.config) if slot.fp8}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_product_has_its_recipe(variant):
    """Powers of two where something is sent, E5M6 after attention; a variant changes the three and mixes none up."""
    model, found = small_model(), {}
    use_fp8_products(model, variant)
    for name, module in model.named_modules():
        if isinstance(module, (Linear, SwiGLU, Experts)) and module.recipe is not None:
            kind = "Experts" if isinstance(module, Experts) else "o_proj" if name.endswith("o_proj") else "else"
            found.setdefault(kind, set()).add(module.recipe)
    wanted = {"Experts": DISPATCHED, "o_proj": AFTER_ATTENTION, "else": PLAIN}
    assert found == {kind: {vary(recipe, variant)} for kind, recipe in wanted.items()}
