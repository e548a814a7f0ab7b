"""The kernel of the middle of a SwiGLU network in FP8, and what is built on it, beside PyTorch's operations."""

import pytest
import torch

import deepseek_v3.ops as ops
from deepseek_v3.fp8.gating import gate_backward, gate_forward
from deepseek_v3.fp8.recipe import DISPATCHED, PLAIN
from deepseek_v3.fp8.tiles import Tiled, dequantize, quantize
from deepseek_v3.native.build import have_kernels

ULP = 2.0**-23  # of FP32, of a number between 1 and 2

pytestmark = pytest.mark.skipif(not have_kernels(), reason="no kernels: there is one form only")


def both(monkeypatch, call):
    """What the kernel makes, and PyTorch's operations."""
    found = []
    for value in ("1", "0"):
        monkeypatch.setenv("DEEPSEEK_V3_NATIVE", value)
        found.append(call())
    return zip(*found)


@pytest.mark.parametrize("size", [1.0, 30.0, 1e-3, 1e-9])
@pytest.mark.parametrize("shape", [(7, 128), (5, 131), (3, 1), (2, 576)])
def test_codes_and_scales_of_the_middle(shape, size, monkeypatch):
    torch.manual_seed(0)
    gate, up = (size * torch.randn(2, *shape)).bfloat16()
    pairs = list(both(monkeypatch, lambda: gate_forward(gate, up)))
    for got, want in pairs[1:]:  # of g and u themselves
        assert torch.equal(got.code.view(torch.uint8), want.code.view(torch.uint8))
        assert torch.equal(got.scale, want.scale)
    got, want = pairs[0]
    assert ((got.scale - want.scale).abs() <= 4 * ULP * want.scale).all()
    far = (dequantize(got) - dequantize(want)).abs() > 4 * ULP * dequantize(want).abs()
    assert far.double().mean() <= 2e-3  # between two codes: the last bit of a sigmoid decides


def test_its_exponential_is_right_to_the_last_places(monkeypatch):
    """silu of every code at many scales, from the kernel that makes h again; u is 1."""
    monkeypatch.setenv("DEEPSEEK_V3_NATIVE", "1")
    code = torch.arange(256, dtype=torch.uint8)
    code = code[(code & 127) != 127].view(torch.float8_e4m3fn)[None].expand(400, -1).contiguous()
    scale = torch.logspace(-6, -1, 400)[:, None].expand(-1, 2).contiguous()
    one = quantize(torch.ones(code.shape).bfloat16())
    gate = dequantize(Tiled(code, scale, (1, 128)))
    got = gate_backward(Tiled(code, scale, (1, 128)), one, torch.ones(code.shape).bfloat16())
    ones, wide = dequantize(one), gate.double()
    want = wide * wide.sigmoid() * ones
    known = want.abs() > 1e-30
    assert ((got.hidden_MF - want).abs() / want.abs())[known].max() <= 4 * ULP


@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_of_the_middle(weighted, monkeypatch):
    torch.manual_seed(0)
    gate, up = (quantize(t) for t in 2 * torch.randn(2, 37, 259).bfloat16())
    dhidden, weight = torch.randn(37, 259).bfloat16(), torch.rand(37) if weighted else None
    g, u, dh = dequantize(gate).double(), dequantize(up).double(), dhidden.double()
    reach = [(g * u).abs(), (dh * u).abs() * (1 + g.abs()), (dh * g).abs(), (dh * g * u).abs().sum(1)]
    for (got, want), size in zip(both(monkeypatch, lambda: gate_backward(gate, up, dhidden, weight)), reach):
        assert ((got - want).abs() <= 8 * ULP * size).all()


def test_whole_networks_and_routed_experts_of_both_forms_are_the_same(monkeypatch):
    torch.manual_seed(0)
    x, dy = torch.randn(139, 131), 1e-5 * torch.randn(139, 131)
    gate, up, down = torch.randn(3, 131, 131).mul(0.1).unbind()
    index = torch.stack([torch.randperm(5)[:2] for _ in range(139)])
    weight, stack = torch.rand(139, 2), torch.stack([torch.cat([gate, up])] * 5)

    def run(layer, inputs):
        leaves = [t.clone().requires_grad_() for t in inputs]
        y = layer(*leaves)
        return y.detach(), *torch.autograd.grad(y, leaves, dy)

    for layer, inputs in (
        (lambda *t: ops.swiglu_in_fp8(*t, PLAIN), [x, gate, up, down]),
        (
            lambda x, w, u, d: ops.experts_in_fp8(x, w, index, u, d, DISPATCHED),
            [x, weight, stack, torch.stack([down] * 5)],
        ),
    ):
        for got, want in both(monkeypatch, lambda layer=layer, inputs=inputs: run(layer, inputs)):
            assert (got - want).norm() <= 1e-3 * want.norm()
