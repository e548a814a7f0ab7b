"""FP8 training by Triton's kernels, whole layers in the interpreter, against PyTorch's operations: `make test-kernels`.

What a GPU would be given by `fp8/products.py` and `fp8/tiles.py` is given to the interpreter, on the CPU. Quantizers
are the same bit for bit; a product is the same to the last bits of FP32, so a value that is rounded to E4M3 or BF16
afterwards may fall on the other side, seldom.
"""

import pytest
import torch

import deepseek_v3.fp8.gating as gating
import deepseek_v3.fp8.products as products
import deepseek_v3.fp8.tiles as tiles
import deepseek_v3.ops as ops
from deepseek_v3.fp8.forms import EXACT, TRITON
from deepseek_v3.fp8.recipe import AFTER_ATTENTION, DISPATCHED, PLAIN
from deepseek_v3.fp8.tiles import COLUMNS, SQUARES, quantize

pytestmark = pytest.mark.triton


@pytest.fixture
def serve(launch, monkeypatch):
    """Let a form serve here, as it would on a GPU."""

    def put(form: str) -> None:
        monkeypatch.setattr(products, "which_form", lambda device: form)
        monkeypatch.setattr(tiles, "_triton_serves", lambda x: form == TRITON and x.numel() > 0)
        for module in (tiles, gating):
            monkeypatch.setattr(module, "kernels_serve", lambda x: False)

    return put


@pytest.mark.parametrize("sizes", [(1, 7, 127), (70, 129, 300)])
def test_one_signature_gives_one_product_in_all_three_directions(sizes, launch):
    m, n, k = sizes
    torch.manual_seed(0)
    pairs = [
        (quantize(torch.randn(m, k)), quantize(torch.randn(n, k), SQUARES)),
        (quantize(torch.randn(m, k)), quantize(torch.randn(k, n), SQUARES).transposed()),
        (quantize(torch.randn(k, m), COLUMNS).transposed(), quantize(torch.randn(k, n), COLUMNS).transposed()),
    ]
    for a, b in pairs:
        want = products.multiply_tiles(a, b, form=EXACT)
        got = products.multiply_tiles(a, b, form=TRITON)
        torch.testing.assert_close(got, want, rtol=0, atol=float(2.0**-17 * k**0.5 * want.std().nan_to_num(1)) + 1e-4)


def gradients(call, inputs, dy) -> list[torch.Tensor]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    y = call(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


@pytest.mark.parametrize("layer", ["plain", "after attention", "swiglu", "experts"])
def test_a_layer_forward_and_backward_is_that_of_pytorchs_operations(layer, serve):
    torch.manual_seed(0)
    x, dy = torch.randn(70, 130), 1e-5 * torch.randn(70, 130)
    gate, up, down = torch.randn(3, 130, 130).mul(0.1).unbind()
    index = torch.stack([torch.tensor([0, 3]), torch.tensor([3, 1])] * 35)  # expert 2 has no rows
    stack = torch.stack([torch.cat([gate, up]) * (1 + e) for e in range(4)])
    call, inputs = {
        "plain": (lambda *t: ops.linear_in_fp8(*t, PLAIN), [x, gate]),
        "after attention": (lambda *t: ops.linear_in_fp8(*t, AFTER_ATTENTION), [x, gate]),
        "swiglu": (lambda *t: ops.swiglu_in_fp8(*t, PLAIN), [x, gate, up, down]),
        "experts": (
            lambda x, w, u, d: ops.experts_in_fp8(x, w, index, u, d, DISPATCHED),
            [x, torch.rand(70, 2), stack, torch.stack([down] * 4)],
        ),
    }[layer]
    serve(EXACT)
    want = gradients(call, inputs, dy)
    serve(TRITON)
    got = gradients(call, inputs, dy)
    for a, b in zip(got, want):
        assert (a - b).norm() < 2e-3 * b.norm()
    if layer == "experts":
        assert not got[3][2].any()
