"""Gradients of weights that are put off are the same bits, and are made when they are asked for, not before."""

import itertools
from collections import Counter

import pytest
import torch
from torch import Tensor
from torch.distributed.pipelining._backward import stage_backward_input, stage_backward_weight
from torch.utils.checkpoint import checkpoint

import deepseek_v3.ops as ops
from deepseek_v3.config import ModelConfig
from deepseek_v3.fp8.recipe import DISPATCHED, PLAIN
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.native.build import why_no_kernels
from deepseek_v3.ops import dense, experts
from deepseek_v3.ops.deferral import defer_weights
from deepseek_v3.training.recompute import recompute_blocks

D, F, E, A = 44, 28, 5, 2  # even, as BF16 wants them


def case(name: str, rows: int, dtype: torch.dtype):
    """An operation as a function of x and weights."""
    draw = torch.Generator().manual_seed(3)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype).requires_grad_()

    x_ND, index_NA = random(rows, D), torch.rand(rows, E, generator=draw).topk(A).indices
    gates_NA = random(rows, A).detach().abs()
    if name.startswith("linear"):
        weights = [random(F, D)]
    elif name.startswith("swiglu"):
        weights = [random(F, D), random(F, D), random(D, F)]
    else:
        weights = [random(E, 2 * F, D), random(E, D, F)]
    run = {
        "linear": ops.linear,
        "linear in FP8": lambda x, w: ops.linear_in_fp8(x, w, PLAIN),
        "swiglu": ops.swiglu,
        "swiglu in FP8": lambda x, *w: ops.swiglu_in_fp8(x, *w, PLAIN),
        "experts": lambda x, *w: ops.run_experts(x, gates_NA.clone().requires_grad_(), index_NA, *w),
        "experts in FP8": lambda x, *w: ops.experts_in_fp8(x, gates_NA, index_NA, *w, DISPATCHED),
    }[name]  # fmt: skip
    return run, x_ND, weights


NAMES = ["linear", "swiglu", "experts", "linear in FP8", "swiglu in FP8", "experts in FP8"]
# rows for kernels, and fewer, or FP64, for PyTorch's operations
KINDS = [(37, torch.float32, False), (37, torch.float32, True), (7, torch.float32, False), (7, torch.float32, True)]
KINDS += [(37, torch.float64, False)]
CASES = [c for c in itertools.product(NAMES, KINDS) if not ("FP8" in c[0] and c[1][1] == torch.float64)]


@pytest.mark.parametrize("again", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_weights_part_is_made_when_it_is_asked_for_and_has_the_same_bits(name, kind, again):
    rows, dtype, autocast = kind
    run, x, weights = case(name, rows, dtype)

    def go() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = checkpoint(run, x, *weights, use_reentrant=False) if again else run(x, *weights)
        assert isinstance(y, Tensor)
        return y

    inputs = [x, *weights]
    dy = torch.randn(go().shape, generator=torch.Generator().manual_seed(8)).to(go().dtype)
    go().backward(dy)
    known = [t.grad for t in inputs]
    for t in inputs:
        t.grad = None
    with defer_weights() as queue:
        y = go()
        assert not queue.waiting
        y.backward(dy)
        if rows == 7 and autocast:  # PyTorch's autocast adds both of SwiGLU's gradients up in BF16
            torch.testing.assert_close(x.grad, known[0], rtol=2**-7, atol=2**-7)
        else:
            assert torch.equal(x.grad, known[0])
        assert all(w.grad is None for w in weights)
        part = queue.take()
    assert not queue.waiting
    part()
    assert all(torch.equal(w.grad, k) for w, k in zip(weights, known[1:]))
    part()  # it is done once
    assert all(torch.equal(w.grad, k) for w, k in zip(weights, known[1:]))


def test_parts_wait_in_their_order_and_add_up_through_whatever_made_the_weight():
    run, x, (weight,) = case("linear", 37, torch.float64)
    with defer_weights() as queue:
        parts = []
        for scale in (1.0, 10.0):
            run(x, 2 * weight).backward(scale * torch.ones(37, F, dtype=torch.float64))
            parts.append(queue.take())
    assert weight.grad is None
    parts[1]()
    first = weight.grad.clone()
    parts[0]()
    torch.testing.assert_close(weight.grad, first * 1.1)
    torch.testing.assert_close(first, 20 * x.detach().sum(0).expand(F, -1))


def test_what_has_no_gradient_to_hand_on_puts_nothing_off():
    run, x, (weight,) = case("linear", 37, torch.float32)
    with defer_weights() as queue:
        run(x.detach(), weight).sum().backward()  # nobody waits for dx
        assert weight.grad is not None
        with torch.no_grad():
            run(x, weight)
    assert not queue.waiting


@pytest.fixture
def products(monkeypatch) -> Counter:
    """How often backward passes ran which kernel."""
    calls: Counter = Counter()
    for module in (dense, experts):

        def counted(name: str, *words, plain=module.run_kernel) -> None:
            calls.update([name] if "gradient" in name or "backward" in name else [])
            plain(name, *words)

        monkeypatch.setattr(module, "run_kernel", counted)
    return calls


@pytest.mark.skipif(why_no_kernels() is not None, reason="counts kernels")
@pytest.mark.parametrize("recompute", [False, True])
def test_pytorchs_split_runs_every_product_twice_and_recomputes_for_each_weight_ours_once(products, recompute):
    config = ModelConfig.preset("demo").replace(num_hidden_layers=1, first_k_dense_replace=0)
    torch.manual_seed(0)
    model, forwards = DeepseekV3(config), [0, 0]
    block = model.layers[0]
    x_BSD = torch.randn(1, 64, config.hidden_size, requires_grad=True)
    rotation, _ = model.place_tokens(64, None)

    def count(*_) -> None:
        forwards[-1] += 1

    block.self_attn.register_forward_hook(count)
    if recompute:
        recompute_blocks(block)

    def go() -> Tensor:
        forwards.append(0)
        y_BSD = block(x_BSD, rotation)
        products.clear()
        return y_BSD

    y_BSD = go()
    y_BSD.backward(torch.ones_like(y_BSD))
    whole = Counter(products)
    grads = [p.grad for p in block.parameters()]
    block.zero_grad()
    assert whole["linear_weight_gradient"] > whole["experts_backward"] == 2
    with defer_weights() as queue:
        y_BSD = go()
        y_BSD.backward(torch.ones_like(y_BSD))
        assert products == Counter(experts_backward=2)
        queue.take()()
    renamed = Counter(linear_weight_gradient=whole["linear_weight_gradient"], experts_weight_gradient=2)
    assert products == renamed + Counter(experts_backward=2)
    assert all(torch.equal(p.grad, grad) for p, grad in zip(block.parameters(), grads))
    assert forwards[-1] == 1 + recompute
    y_BSD = go()
    _, groups = stage_backward_input([y_BSD], [torch.ones_like(y_BSD)], [x_BSD], block.parameters())
    assert products == whole  # the weights' too: a Function written by hand does not know what it is asked for
    stage_backward_weight(block.parameters(), groups)
    assert products == whole + whole
    assert forwards[-1] == (14 if recompute else 1)  # one for the inputs, one for each of 12 groups of weights
