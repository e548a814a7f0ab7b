"""FP8 training on a GPU is that of a CPU: quantizers bit for bit, products and layers up to the tensor core's own sum.

    make test-gpu                                       where PyTorch sees a GPU

The quantizers, products and layers run on the CPU too, in the default tests: a GPU is rarely at hand. Every form that
the GPU offers is asked by name, whichever of them would serve.
"""

import pytest
import torch

import deepseek_v3.ops as ops
from deepseek_v3.fp8.forms import EXACT, FORMS, TRITON, which_form, why_no_form
from deepseek_v3.fp8.products import multiply_sorted, multiply_tiles
from deepseek_v3.fp8.recipe import AFTER_ATTENTION, DISPATCHED, PLAIN
from deepseek_v3.fp8.tiles import COLUMNS, SQUARES, Tiled, quantize, quantize_both

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
TENSOR_CORE = 1e-3  # of a product's norm: 14 bits, promoted every 128 (1.3e-4 was modelled); and BF16 where asked


@pytest.fixture(params=DEVICES)
def device(request) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("PyTorch sees no GPU here")
    torch.manual_seed(0)
    return request.param


def wild(rows: int, columns: int) -> torch.Tensor:
    """Rows and columns of very different size, a row of zeros, an outlier."""
    x = torch.randn(rows, columns) * torch.randn(rows, 1).exp() * torch.randn(columns).exp()
    if rows > 4:
        x[3], x[4, columns // 2] = 0, 1e6
    return x


def same_codes(got: Tiled, want: Tiled) -> None:
    assert torch.equal(got.scale.cpu(), want.scale)
    assert torch.equal(got.code.cpu().contiguous().view(torch.uint8), want.code.contiguous().view(torch.uint8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("ue8m0", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (37, 127), (131, 129), (300, 576), (1024, 1024)])
def test_quantizers_are_those_of_the_cpu_bit_for_bit(shape, ue8m0, dtype, device):
    x = wild(*shape).to(dtype)
    same_codes(quantize(x.to(device), ue8m0=ue8m0), quantize(x, ue8m0=ue8m0))
    for got, want in zip(quantize_both(x.to(device), ue8m0=ue8m0), quantize_both(x, ue8m0=ue8m0)):
        same_codes(got, want)


def moved(q: Tiled, device: str) -> Tiled:
    return Tiled(q.code.to(device), q.scale.to(device), q.tile)


@pytest.mark.parametrize("sizes", [(1, 7, 127), (130, 257, 576), (512, 512, 4096)])
def test_every_form_gives_one_product_in_all_three_directions(sizes, device):
    m, n, k = sizes
    pairs = [
        (quantize(wild(m, k)), quantize(torch.randn(n, k), SQUARES)),
        (quantize(wild(m, k)), quantize(torch.randn(k, n), SQUARES).transposed()),
        (quantize(torch.randn(k, m), COLUMNS).transposed(), quantize(torch.randn(k, n), COLUMNS).transposed()),
    ]
    forms = [form for form in FORMS if why_no_form(form, device) is None]
    for a, b in pairs:
        want = multiply_tiles(a, b, form=EXACT).double()
        for form in forms:
            for dtype, room in ((torch.float32, TENSOR_CORE), (torch.bfloat16, TENSOR_CORE + 2.0**-8)):
                got = multiply_tiles(moved(a, device), moved(b, device), dtype, form=form)
                assert got.device.type == device
                rest = want.norm(dim=1) > 0
                error = (got.cpu().double() - want).norm(dim=1)[rest] / want.norm(dim=1)[rest]
                assert error.max() < room, form


def test_products_sorted_by_expert_are_those_of_each(device):
    counts, x, stack = [70, 0, 1, 64, 0], quantize(wild(135, 300)), quantize(torch.randn(5, 130, 300), SQUARES)
    want = multiply_sorted(x, stack, counts, torch.empty(135, 130), form=EXACT)
    got = multiply_sorted(moved(x, device), moved(stack, device), counts, torch.empty(135, 130, device=device))
    assert (got.cpu() - want).norm() < TENSOR_CORE * want.norm()


@pytest.mark.parametrize("layer", ["plain", "after attention", "swiglu", "experts"])
def test_a_layer_forward_and_backward_is_that_of_the_cpu(layer, device):
    x, dy = torch.randn(300, 130), 1e-5 * torch.randn(300, 130)
    gate, up, down = torch.randn(3, 130, 130).mul(0.1).unbind()
    index = torch.stack([torch.tensor([0, 3]), torch.tensor([3, 1])] * 150)
    stack = torch.stack([torch.cat([gate, up]) * (1 + e) for e in range(4)])
    calls = {
        "plain": (lambda *t: ops.linear_in_fp8(*t, PLAIN), [x, gate]),
        "after attention": (lambda *t: ops.linear_in_fp8(*t, AFTER_ATTENTION), [x, gate]),
        "swiglu": (lambda *t: ops.swiglu_in_fp8(*t, PLAIN), [x, gate, up, down]),
        "experts": (
            lambda x, w, u, d: ops.experts_in_fp8(x, w, index.to(x.device), u, d, DISPATCHED),
            [x, torch.rand(300, 2), stack, torch.stack([down] * 4)],
        ),
    }
    call, inputs = calls[layer]
    found = []
    for place in ("cpu", device):
        leaves = [t.detach().to(place).requires_grad_() for t in inputs]
        y = call(*leaves)
        found.append([y.detach().cpu(), *(g.cpu() for g in torch.autograd.grad(y, leaves, dy.to(place)))])
    for want, got in zip(*found):
        assert (got - want).norm() < 5e-3 * want.norm()


@pytest.mark.gpu
@pytest.mark.parametrize("heads", [16, 128])
def test_attention_over_a_block_table_is_that_of_the_rows_in_order(heads):
    if not torch.cuda.is_available() or why_no_form(TRITON, "cuda"):
        pytest.skip("no GPU for Triton's kernels here")
    from deepseek_v3.kernels import launch

    torch.manual_seed(0)
    latent, rotary, size, lengths = 512, 64, 64, [1, 700, 4096]
    need = [-(-length // size) for length in lengths]
    blocks, tables, taken = torch.randperm(sum(need) + 3), torch.zeros(3, max(need), dtype=torch.int64), 0
    for row, count in enumerate(need):
        tables[row, :count] = blocks[taken : taken + count]
        taken += count
    cache = torch.randn(len(blocks), size, latent + rotary).bfloat16()
    query = torch.randn(3, heads, latent + rotary).bfloat16()
    given = (query.cuda(), cache.cuda(), tables.cuda(), torch.tensor(lengths).cuda())
    got = launch.attend_latents(*given, latent, 0.07).cpu().double()
    for row, length in enumerate(lengths):
        rows = cache[tables[row, : need[row]]].flatten(0, 1)[:length].double()
        want = (query[row].double() @ rows.T * 0.07).softmax(-1) @ rows[:, :latent]
        assert (got[row] - want).norm() < 1e-2 * want.norm()


@pytest.mark.gpu
def test_a_gpu_with_e4m3_units_has_more_than_pytorchs_operations():
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("no such GPU here")
    assert which_form("cuda") != EXACT
