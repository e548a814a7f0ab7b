"""Every kernel against PyTorch in FP64: results and gradients, in each dtype, at sizes that fit no vector."""

import pytest
import torch
from torch.nn import functional as F

import deepseek_v3.ops as ops
from deepseek_v3.model.router import Router
from deepseek_v3.native.build import have_kernels
from deepseek_v3.ops.choice import kernel_serves
from deepseek_v3.ops.grouped import run_experts_together, sort_by_expert

pytestmark = pytest.mark.skipif(not have_kernels(), reason="no C++ compiler here")

FP32, BF16 = torch.float32, torch.bfloat16
TOLERANCE = {FP32: 2e-6, BF16: 1e-2}  # of the largest value; bf16 rounds every stored number to 1 in 256


def dtypes():
    """(activations, weights): those the kernels know."""
    return [(FP32, FP32), (BF16, FP32), (BF16, BF16)]


def draw(*shapes, dtype=FP32, scale=1.0):
    return [(torch.randn(shape) * scale).to(dtype) for shape in shapes]


def agree(ours, theirs, leaves, dtype):
    """Compare a result and all its gradients with the same computed in FP64 from the very same numbers."""
    mine = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    got, want = ours(*mine), theirs(*exact)
    probe = torch.randn(want.shape).to(got.dtype)
    pairs = [(got, want)]
    pairs += zip(torch.autograd.grad(got, mine, probe), torch.autograd.grad(want, exact, probe.double()))
    for a, b in pairs:
        assert a.shape == b.shape
        assert (a.double() - b).abs().max() <= TOLERANCE[dtype] * b.abs().max()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize(("dtype", "weight_dtype"), dtypes())
@pytest.mark.parametrize(("rows", "width", "out"), [(40, 34, 6), (601, 96, 80), (33, 700, 32), (130, 16, 46)])
def test_linear(dtype, weight_dtype, rows, width, out):
    x, w = draw((rows, width), dtype=dtype)[0], draw((out, width), dtype=weight_dtype, scale=width**-0.5)[0]
    assert kernel_serves(x, w)
    agree(ops.linear, lambda x, w: x @ w.T, [x, w], dtype)


@pytest.mark.parametrize(("dtype", "weight_dtype"), dtypes())
@pytest.mark.parametrize(("rows", "width", "hidden"), [(50, 24, 10), (300, 64, 150)])
def test_swiglu(dtype, weight_dtype, rows, width, hidden):
    x = draw((rows, width), dtype=dtype)[0]
    gate, up = draw((hidden, width), (hidden, width), dtype=weight_dtype, scale=width**-0.5)
    down = draw((width, hidden), dtype=weight_dtype, scale=hidden**-0.5)[0]
    agree(ops.swiglu, lambda x, g, u, d: (F.silu(x @ g.T) * (x @ u.T)) @ d.T, [x, gate, up, down], dtype)


@pytest.mark.parametrize(("dtype", "weight_dtype"), dtypes())
@pytest.mark.parametrize("load", ["random", "idle experts", "small experts"])
@pytest.mark.parametrize(("tokens", "width", "hidden"), [(45, 24, 10), (700, 64, 150)])
def test_experts(dtype, weight_dtype, load, tokens, width, hidden):
    experts, per_token = 16 if load == "small experts" else 6, 3
    x = draw((tokens, width), dtype=dtype)[0]
    up = draw((experts, 2 * hidden, width), dtype=weight_dtype, scale=width**-0.5)[0]
    down = draw((experts, width, hidden), dtype=weight_dtype, scale=hidden**-0.5)[0]
    most = per_token + 1 if load == "idle experts" else experts
    index = torch.stack([torch.randperm(most)[:per_token] for _ in range(tokens)])
    plan = sort_by_expert(index, experts)
    agree(
        lambda x, w, u, d: ops.run_experts(x, w, index, u, d),
        lambda x, w, u, d: run_experts_together(x, w, u, d, plan),
        [x, torch.rand(tokens, per_token), up, down],
        dtype,
    )


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_small_experts_are_each_one_threads_work_and_their_numbers_the_same(threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    x, weight = torch.randn(500, 24), torch.rand(500, 3)
    up, down = draw((60, 28, 24), (60, 24, 14))
    index = torch.stack([torch.randperm(60)[:3] for _ in range(500)])
    found = ops.run_experts(x, weight, index, up, down)
    for token in (0, 7, 499):
        together = ops.run_experts(x, weight, index[token].expand(500, 3).contiguous(), up, down)
        assert torch.equal(found[token], together[token])


def attend_plainly(query, key_value, rope, cos, sin, scale, content):
    """Attention by the book: rotate, join, mask, softmax."""
    rotary = rope.shape[-1]
    turned = ops.rotate_pairs(query[..., content:], ops.Rotation(cos, sin))
    q = torch.cat((query[..., :content], turned), -1).transpose(1, 2)
    k = torch.cat((key_value[..., :content], rope.unsqueeze(2).expand(-1, -1, query.shape[2], rotary)), -1)
    score = q @ k.permute(0, 2, 3, 1) * scale
    queries, keys = score.shape[-2:]
    future = torch.ones(queries, keys, dtype=torch.bool).triu(keys - queries + 1)
    weight = score.masked_fill(future, float("-inf")).softmax(-1)
    return (weight @ key_value[..., content:].transpose(1, 2)).transpose(1, 2)


@pytest.mark.parametrize("dtype", sorted({dtype for dtype, _ in dtypes()}, key=str))
@pytest.mark.parametrize(
    ("batch", "queries", "keys", "heads", "content", "rotary", "value"),
    [(2, 37, 37, 3, 12, 8, 10), (1, 200, 200, 2, 32, 16, 32), (2, 70, 99, 3, 16, 4, 24), (1, 40, 333, 1, 7, 6, 35)],
)
@pytest.mark.parametrize("own_positions", [False, True])
def test_attention(dtype, batch, queries, keys, heads, content, rotary, value, own_positions):
    query = draw((batch, queries, heads, content + rotary), dtype=dtype)[0]
    key_value = draw((batch, keys, heads, content + value), dtype=dtype)[0]
    rope = draw((batch, keys, rotary), dtype=dtype)[0]
    angle = torch.rand(*([batch] if own_positions else []), queries, rotary // 2) * 6
    cos, sin, scale = angle.cos(), angle.sin(), (content + rotary) ** -0.5
    agree(
        lambda q, kv, r: ops.attend_expanded(q, kv, r, ops.Rotation(cos, sin), scale),
        lambda q, kv, r: attend_plainly(q, kv, r, cos.double(), sin.double(), scale, content),
        [query, key_value, rope],
        dtype,
    )


def test_attention_with_scores_beyond_what_an_exponential_holds():
    query, key_value, rope = draw((1, 64, 1, 10)), draw((1, 64, 1, 14)), draw((1, 64, 2))
    cos, sin = torch.ones(64, 1), torch.zeros(64, 1)
    got = ops.attend_expanded(query[0] * 200, key_value[0], rope[0], ops.Rotation(cos, sin), 1.0)
    want = attend_plainly(query[0] * 200, key_value[0], rope[0], cos, sin, 1.0, 8)
    assert (got - want).abs().max() <= 1e-4


@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("width", [6, 64, 250])
def test_rms_norm(dtype, width):
    x, w = draw((3, 50, width), dtype=dtype)[0], draw((width,), dtype=dtype)[0]

    def plain(x, w):
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w

    agree(lambda x, w: ops.rms_norm(x, w, 1e-6), plain, [x, w], dtype)
    part = draw((3, 50, width + 9), dtype=dtype)[0]  # rows of a wider matrix, as a split leaves them
    agree(
        lambda x, w: ops.rms_norm(x[..., 3:-6], w, 1e-6),
        lambda x, w: plain(x[..., 3:-6], w),
        [part, w],
        dtype,
    )


@pytest.mark.parametrize(("dtype", "weight_dtype"), dtypes())
@pytest.mark.parametrize(("rows", "width", "vocab"), [(40, 10, 6), (70, 34, 1004), (2500, 16, 250)])
def test_head_loss(dtype, weight_dtype, rows, width, vocab):
    hidden, head = draw((rows, width), dtype=dtype)[0], draw((vocab, width), dtype=weight_dtype, scale=width**-0.5)[0]
    labels = torch.randint(vocab, (rows,))
    labels[::7] = -100

    def plain(h, w):
        return F.cross_entropy(h @ w.T, labels, ignore_index=-100, reduction="sum")

    agree(lambda h, w: ops.sum_nats(h[None], w, labels[None], -100), plain, [hidden, head], dtype)
    with torch.no_grad():
        alone = ops.sum_nats(hidden, head, labels, -100)
    assert (alone.double() - plain(hidden.double(), head.double())).abs() <= 1e-2 * rows


@pytest.mark.parametrize("label", [-1, 6])
def test_a_label_beyond_the_head_is_refused(label):
    hidden, head = draw((40, 10), (6, 10))
    with pytest.raises(IndexError, match="6 logits"):
        ops.sum_nats(hidden, head, torch.full((40,), label), -100)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(bad):
    """The trainer skips a step by its loss; a kernel that swallowed a NaN would hide it."""
    x, w = draw((40, 32), (16, 32))
    x[3, 5] = bad
    assert not ops.linear(x, w)[3].isfinite().any()
    assert not ops.rms_norm(x, torch.ones(32), 1e-6)[3].isfinite().all()
    assert not ops.sum_nats(x, w, torch.zeros(40, dtype=torch.int64), -100).isfinite()
    assert ops.linear(x, w)[4].isfinite().all()


@pytest.mark.parametrize(("groups", "kept"), [(1, 1), (4, 2), (3, 3)])
@pytest.mark.parametrize("rule", ["v3", "v2"])
def test_chosen_experts(groups, kept, rule, monkeypatch):
    from deepseek_v3.config import ModelConfig

    v2 = {"model_type": "deepseek_v2", "scoring_func": "softmax", "topk_method": "group_limited_greedy"}
    v2["norm_topk_prob"] = False
    sizes = {"n_routed_experts": 12, "n_group": groups, "topk_group": kept, "num_experts_per_tok": 3, "hidden_size": 20}
    router = Router(ModelConfig.preset("demo").replace(**sizes, **(v2 if rule == "v2" else {})))
    score = torch.rand(500, 12)
    if rule == "v3":
        router.e_score_correction_bias.normal_(0, 0.3)
    ours = router.choose_experts(score).sort(-1).values
    monkeypatch.setenv("DEEPSEEK_V3_NATIVE", "0")
    assert torch.equal(ours, router.choose_experts(score).sort(-1).values)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_no_bit(threads):
    """Resuming is bitwise, also on a machine that has other cores."""

    def run():
        torch.manual_seed(1)
        x, up, down = draw((300, 32), (5, 40, 32), (5, 32, 20))
        leaves = [t.requires_grad_() for t in (x, torch.rand(300, 2), up, down)]
        index = torch.stack([torch.randperm(5)[:2] for _ in range(300)])
        y = ops.rms_norm(ops.run_experts(leaves[0], leaves[1], index, *leaves[2:]), torch.ones(32), 1e-6)
        y = ops.linear(y, draw((64, 32))[0])
        return [y.detach(), *torch.autograd.grad(y.square().sum(), leaves)]

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    want = run()
    torch.set_num_threads(threads)
    try:
        assert all(torch.equal(a, b) for a, b in zip(run(), want))
    finally:
        torch.set_num_threads(before)
