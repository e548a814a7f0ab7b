"""Random calls of every kernel, right and wrong: each must raise, or equal PyTorch's operations, gradients included.

run_fuzz(range(400))                operations in every dtype, FP8 weights too
run_decode_fuzz(range(20))          decoding steps of small models, of ragged rows, in FP32, BF16 and FP8
"""

import random
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

import deepseek_v3.ops as ops
from deepseek_v3.config import ModelConfig
from deepseek_v3.engine.decode_step import DecodeStep, Rows
from deepseek_v3.fp8.decode import dequantize_weight
from deepseek_v3.fp8.quantize import CODE, count_blocks, quantize_tiles, quantize_weight
from deepseek_v3.fp8.weight import HoldsFP8
from deepseek_v3.model.cache import LatentCache, LatentStore
from deepseek_v3.model.moe import Experts
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.native.build import SWITCH

KEPT_WIDE = ("lm_head", "eh_proj")
WRONG = (ValueError, IndexError, RuntimeError)


class Draw:
    """Sizes of which some are wrong, and tensors of them; `leaves` are those that may want a gradient."""

    def __init__(self, seed: int) -> None:
        self.r = random.Random(seed)
        torch.manual_seed(seed)
        self.dtype = self.r.choice([torch.float32, torch.float32, torch.bfloat16, torch.float64])
        self.graded = self.r.random() < 0.6
        self.leaves: list[Tensor] = []

    def size(self, right: int) -> int:
        """Mostly what is right."""
        return right if self.r.random() < 0.9 else self.r.choice([1, 2, right + 1, right + 64, max(1, right - 1)])

    def reals(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Numbers, in rows or (as a transposed view) not, with a gradient or without."""
        sizes = [self.size(s) for s in shape]
        x = torch.randn(sizes)
        if len(sizes) > 1 and self.r.random() < 0.1:
            x = x.mT.contiguous().mT
        x = x.to(dtype or self.dtype)
        if self.graded and self.r.random() < 0.8:
            self.leaves.append(x.requires_grad_())
        return x

    def codes(self, *shape: int, parts: int = 1) -> tuple[Tensor, Tensor]:
        """E4M3 codes that are numbers, and scales."""
        *stack, rows, columns = (self.size(s) for s in shape)
        code = (
            torch.randint(0, 0x7F, (*stack, rows, columns)) + 128 * torch.randint(0, 2, (*stack, rows, columns))
        ).to(torch.uint8)
        blocks = [*stack, *([parts] if parts > 1 else []), count_blocks(max(1, rows // parts)), count_blocks(columns)]
        return code.view(CODE), torch.rand([self.size(s) if self.r.random() < 0.1 else s for s in blocks]) * 1e-3


def draw_call(d: Draw) -> Callable[[], Tensor]:
    """An operation on what was drawn."""
    return d.r.choice([draw_dense, draw_dense, draw_experts, draw_attention, draw_head, draw_held, draw_number_format])(
        d
    )


def draw_dense(d: Draw) -> Callable[[], Tensor]:
    """A product, a network, a norm."""
    n, width, hidden = d.r.randint(33, 50), 2 * d.r.randint(3, 20), 2 * d.r.randint(3, 20)
    kind, x = d.r.randrange(3), d.reals(n, width)
    if kind == 0:
        weight = d.reals(hidden, width)
        return lambda: ops.linear(x, weight)
    if kind == 1:
        matrices = d.reals(hidden, width), d.reals(hidden, width), d.reals(width, hidden)
        return lambda: ops.swiglu(x, *matrices)
    weight = d.reals(width)
    return lambda: ops.rms_norm(x, weight, 1e-6)


def draw_experts(d: Draw) -> Callable[[], Tensor]:
    """Choosing experts, or going through them."""
    n, width, hidden, experts = d.r.randint(33, 50), 2 * d.r.randint(3, 20), 2 * d.r.randint(3, 20), d.r.randint(2, 6)
    if d.r.random() < 0.3:
        score, bias = torch.randn(d.size(n), d.size(12)), torch.randn(d.size(12))
        per_token, groups, kept = d.size(2), d.size(3), d.size(2)
        chosen = ops.choose_experts
        return lambda: chosen(score, bias, per_token, groups, kept, best_two=True).sort(-1).values
    index = torch.randint(0, d.size(experts), (d.size(n), d.size(2)))
    x, weight = d.reals(n, width), d.reals(n, 2, dtype=torch.float32)
    up, down = d.reals(experts, 2 * hidden, width), d.reals(experts, width, hidden)
    return lambda: ops.run_experts(x, weight, index, up, down)


def draw_attention(d: Draw) -> Callable[[], Tensor]:
    """Attention in its expanded form, some keys before the queries."""
    batch, s, heads, content, rotary, value = d.r.randint(1, 2), d.r.randint(33, 70), 3, 6, 4, 5
    keys = s + d.r.choice([0, 0, 1, 30])
    lead = [batch] if d.r.random() < 0.3 else []
    angles = [torch.rand(*lead, d.size(s), d.size(rotary // 2)) for _ in "cs"]
    query, key_value = d.reals(batch, s, heads, content + rotary), d.reals(batch, keys, heads, content + value)
    rope = d.reals(batch, keys, rotary)
    return lambda: ops.attend_expanded(query, key_value, rope, ops.Rotation(*angles), 0.3)


def draw_head(d: Draw) -> Callable[[], Tensor]:
    """The loss of labels, some of which do not count."""
    n, width, vocabulary = d.r.randint(33, 400), 2 * d.r.randint(3, 20), 2 * d.r.randint(3, 90)
    hidden, head = d.reals(n, width), d.reals(vocabulary, width)
    labels = torch.randint(0, d.size(vocabulary), (d.size(n),))
    labels[::5] = -100
    return lambda: ops.sum_nats(hidden, head, labels, -100)


def draw_held(d: Draw) -> Callable[[], Tensor]:
    """Products with weights that are held in FP8, of more than one block."""
    n, width, hidden, experts = d.r.randint(33, 50), 2 * d.r.randint(3, 90), 2 * d.r.randint(3, 90), d.r.randint(2, 4)
    kind, x = d.r.randrange(4), d.reals(n, width)
    if kind == 0:
        weight, scale = d.codes(hidden, width)
        return lambda: ops.linear(x, weight, scale)
    if kind == 1:
        weight, scale = d.codes(hidden, width)
        labels = torch.randint(0, d.size(hidden), (d.size(n),))
        return lambda: ops.sum_nats(x, weight, labels, -100, scale)
    if kind == 2:
        matrices, scales = zip(d.codes(hidden, width), d.codes(hidden, width), d.codes(width, hidden))
        return lambda: ops.swiglu(x, *matrices, *scales)
    index, weight = torch.randint(0, d.size(experts), (n, 2)), d.reals(n, 2, dtype=torch.float32)
    up, up_scale = d.codes(experts, 2 * hidden, width, parts=2)
    down, down_scale = d.codes(experts, width, hidden)
    return lambda: ops.run_experts(x, weight, index, up, down, up_scale, down_scale)


def draw_number_format(d: Draw) -> Callable[[], Tensor]:
    """To E4M3 and back."""
    rows, columns, dtype = d.r.randint(1, 300), d.r.randint(1, 300), d.r.choice([torch.float32, torch.bfloat16])
    if d.r.random() < 0.4:
        code, scale = d.codes(rows, columns)
        return lambda: dequantize_weight(code, scale, dtype)
    x, quantize = torch.randn(rows, d.r.choice([columns, 128, 256])).to(dtype), quantize_weight
    if d.r.random() < 0.5:
        quantize = quantize_tiles
    return lambda: quantize(x)[0].float() + quantize(x)[1].sum()


def outcome(seed: int) -> list[Tensor | None] | Exception:
    """What a call gives and its gradients, or the error it raises."""
    d = Draw(seed)
    try:
        call = draw_call(d)
        y = call()
        if not y.requires_grad:
            return [y]
        dy = torch.randn(y.shape).to(y.dtype)
        if y.dim() == 2 and seed % 3 == 0:
            dy = dy.mT.contiguous().mT if seed % 2 else dy[:1, :1].expand(y.shape)
        return [y.detach(), *torch.autograd.grad(y, d.leaves, dy, allow_unused=True)]
    except WRONG as error:
        return error


def run_fuzz(seeds: range) -> None:
    """Every call raises, or equals PyTorch's operations."""
    for seed in seeds:
        with pytest.MonkeyPatch.context() as patch:
            got = outcome(seed)
            patch.setenv(SWITCH, "0")
            want = outcome(seed)
        if isinstance(got, Exception) or isinstance(want, Exception):
            assert isinstance(got, Exception), f"seed {seed}: {want}"
            continue
        for a, b in zip(got, want, strict=True):
            assert (a is None) == (b is None), f"seed {seed}"
            if a is not None and b is not None:
                assert a.shape == b.shape
                assert torch.allclose(a.double(), b.double(), rtol=0.05, atol=0.05 * float(b.abs().max())), seed


def draw_model(r: random.Random) -> DeepseekV3:
    """A model of sizes that fit no vector and no block."""
    experts = r.choice([None, 6])
    config = ModelConfig.preset("demo").replace(
        num_hidden_layers=2, vocab_size=r.randint(30, 90), hidden_size=2 * r.randint(5, 80),
        intermediate_size=2 * r.randint(3, 70), moe_intermediate_size=2 * r.randint(3, 70),
        num_attention_heads=r.randint(1, 5), q_lora_rank=r.choice([None, 2 * r.randint(3, 70)]),
        kv_lora_rank=2 * r.randint(3, 70), qk_nope_head_dim=2 * r.randint(2, 20), qk_rope_head_dim=2 * r.randint(1, 9),
        v_head_dim=2 * r.randint(2, 20), n_routed_experts=6 if experts else 16,
        n_group=r.choice([1, 3]) if experts else 4, topk_group=1 if experts else 2, num_experts_per_tok=2,
        n_shared_experts=r.choice([None, 1, 2]), num_nextn_predict_layers=1,
    )  # fmt: skip
    return DeepseekV3(config).requires_grad_(False)


def hold_in_fp8(model: DeepseekV3, only: Sequence[str] = ()) -> DeepseekV3:
    """Hold every matrix in FP8, but those that the released weights keep in BF16; or only some."""
    for name, module in model.named_modules():
        if not isinstance(module, HoldsFP8) or not (name in only if only else name.split(".")[-1] not in KEPT_WIDE):
            continue
        for key, parts in (
            {"gate_up_proj": 2, "down_proj": 1}.items() if isinstance(module, Experts) else [("weight", 1)]
        ):
            numbers = getattr(module, key).data.clone()
            pieces = numbers.unflatten(-2, (parts, -1)).reshape(-1, numbers.shape[-2] // parts, numbers.shape[-1])
            codes, scales = zip(*map(quantize_weight, pieces))
            module.hold_fp8(key, parts)
            held, scale = getattr(module, key), module.scales(key)
            assert scale is not None
            held.data.view(torch.uint8).copy_(torch.stack([c.view(torch.uint8) for c in codes]).view(held.shape))
            scale.copy_(torch.stack(scales).view(scale.shape))
    return model


def read_steps(seed: int) -> list[Tensor]:
    """Some steps of rows with tokens of their own number, through tables in any order, then one of the module."""
    r = random.Random(seed)
    torch.manual_seed(seed)
    model, form = draw_model(r), r.choice(["fp32", "bf16", "fp8"])
    model = hold_in_fp8(model) if form == "fp8" else model.bfloat16() if form == "bf16" else model
    batch, size, blocks = r.randint(1, 9), r.choice([1, 3, 16]), 20
    kind = torch.bfloat16 if form == "bf16" else torch.float32
    store = LatentStore(model.config, batch * blocks, size, layers=3, dtype=kind)
    order = r.sample(range(batch * blocks), batch * blocks)
    cache = LatentCache(store, [order[i::batch] for i in range(batch)])
    modules, step, out = cache.module(0), DecodeStep(model), []
    for _ in range(3):
        counts = [r.choice([0, 1, 1, 2, 5]) for _ in range(batch)]
        counts[0] = max(1, counts[0])
        rows = Rows([r.randrange(model.config.vocab_size) for _ in range(sum(counts))], counts)
        hidden, logits = step.read(rows, cache, logits_of=sorted(r.sample(range(sum(counts)), min(3, sum(counts)))))
        drafted, further = step.read(rows, modules, depth=0, below_ND=hidden)
        out += [hidden, logits, drafted, further]
    return out


def run_decode_fuzz(seeds: range) -> None:
    """The kernel's steps are the model's; in BF16, where a choice of experts may fall otherwise, they are numbers."""
    for seed in seeds:
        with pytest.MonkeyPatch.context() as patch:
            got = read_steps(seed)
            patch.setenv(SWITCH, "0")
            want = read_steps(seed)
        for a, b in zip(got, want, strict=True):
            assert a.shape == b.shape
            assert a.isfinite().all(), seed
            if a.dtype == torch.float32 and got[0].dtype == torch.float32:
                assert (a - b).abs().max() <= 1e-3 * b.abs().max(), (seed, float((a - b).abs().max()))
