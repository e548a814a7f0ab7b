"""Training in FP8: moments in BF16, what a run records, checkpoints that any precision goes on from."""

import pytest
import torch
from torch import nn

from deepseek_v3.data.packing import PackedStream
from deepseek_v3.data.tokenizer import Tokenizer
from deepseek_v3.training.optimizer import ShortMomentsAdamW, build_optimizer
from deepseek_v3.training.options import OptionsError, TrainOptions
from deepseek_v3.training.results import Arithmetic
from deepseek_v3.training.trainer import Trainer

TEXTS = [f"passage {i}: " + " ".join(str((i * j) % 97) for j in range(60)) for i in range(23)]


def make_trainer(run, tiny_model, precision: str, **changes) -> Trainer:
    """A trainer over the smallest model; the same weights and data at every call."""
    options = TrainOptions(
        run=str(run),
        seq_len=13,
        batch_size=4,
        micro_batch=2,
        steps=6,
        warmup_steps=2,
        eval_every=0,
        save_every=3,
        seed=5,
    ).replace(precision=precision, **changes)
    tokenizer = Tokenizer.train(TEXTS, 300)
    stream = PackedStream(TEXTS, tokenizer, options.seq_len, seed=5, fim_rate=0.1, lanes=4)
    model = tiny_model(depth=1, vocab_size=307)
    return Trainer(model, tokenizer, stream, TEXTS[:2], options, arithmetic=Arithmetic(precision))


def exact_update(weight, gradient, moments, step: int, o: TrainOptions):
    """AdamW in FP64."""
    first = o.beta1 * moments[0] + (1 - o.beta1) * gradient
    second = o.beta2 * moments[1] + (1 - o.beta2) * gradient**2
    size = (second / (1 - o.beta2**step)).sqrt() + o.adam_eps
    weight = weight * (1 - o.lr * o.weight_decay) - o.lr * first / (1 - o.beta1**step) / size
    return weight, (first, second)


def test_moments_are_rounded_as_they_are_put_away_and_not_before():
    torch.manual_seed(0)
    options = TrainOptions(moments="bf16", lr=0.01)
    model = nn.Linear(19, 23, bias=False)
    optimizer = build_optimizer(model, options)
    assert isinstance(optimizer, ShortMomentsAdamW)
    weight = model.weight.detach().double()
    moments = torch.zeros_like(weight), torch.zeros_like(weight)
    for step in range(1, 6):
        model.weight.grad = torch.randn(23, 19)
        weight, exact = exact_update(weight, model.weight.grad.double(), moments, step, options)
        optimizer.step()
        state = optimizer.state[model.weight]
        torch.testing.assert_close(model.weight.detach().double(), weight, rtol=1e-6, atol=1e-7)
        moments = tuple(state[name].double() for name in ("exp_avg", "exp_avg_sq"))
        for kept, value in zip(moments, exact):
            assert ((kept - value).abs() <= 1.01 * 2.0**-8 * value.abs()).all()
        assert {state[name].dtype for name in ("exp_avg", "exp_avg_sq")} == {torch.bfloat16}
        weight = model.weight.detach().double()


@pytest.mark.parametrize(
    ("moments", "precision", "dtype"),
    [("auto", "fp8", torch.bfloat16), ("auto", "bf16", torch.float32), ("bf16", "bf16", torch.bfloat16),
     ("fp32", "fp8", torch.float32)],
)  # fmt: skip
def test_fp8_brings_moments_in_bf16_and_either_may_be_asked_for_alone(moments, precision, dtype, tmp_path, tiny_model):
    trainer = make_trainer(tmp_path, tiny_model, precision, moments=moments)
    trainer.run_step()
    states = trainer.optimizer.state.values()
    assert {state[name].dtype for state in states for name in ("exp_avg", "exp_avg_sq")} == {dtype}
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}


@pytest.mark.parametrize(("first", "second"), [("fp8", "bf16"), ("bf16", "fp8"), ("fp8", "fp32")])
def test_a_checkpoint_of_any_precision_goes_on_in_any_other(first, second, tmp_path, tiny_model):
    trainer = make_trainer(tmp_path, tiny_model, first, steps=3)
    folder = trainer.train().checkpoint
    weights = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    other = make_trainer(tmp_path, tiny_model, second)
    other.resume(folder)
    assert all(torch.equal(p, weights[name]) for name, p in other.model.named_parameters())
    before = {id(p): dict(trainer.optimizer.state[p]) for p in trainer.model.parameters()}
    for p, q in zip(trainer.model.parameters(), other.model.parameters()):
        for name in ("exp_avg", "exp_avg_sq"):
            moment = other.optimizer.state[q][name]
            assert moment.dtype == (torch.bfloat16 if second == "fp8" else torch.float32)
            assert torch.equal(moment, before[id(p)][name].to(moment.dtype))
    assert other.train().finished


def test_fp8_learns_as_bf16_does_and_is_not_bf16(tmp_path, tiny_model):
    losses = {}
    for precision in ("bf16", "fp8"):
        trainer = make_trainer(tmp_path / precision, tiny_model, precision, steps=25, lr=5e-3)
        losses[precision] = [trainer.run_step().loss for _ in range(25)]
    low, high = (torch.tensor(losses[precision]) for precision in ("fp8", "bf16"))
    assert low[-5:].mean() < low[0] - 0.7
    assert not torch.equal(low, high)
    assert (low / high - 1).abs().max() < 0.03


def test_variants_to_compare_with_are_others(tmp_path, tiny_model):
    seen = set()
    for variant in ("report", "whole-tensor", "e5m2-gradients", "square-gradients", "bf16-weights", "outliers",
                    "whole-tensor-outliers"):  # fmt: skip
        trainer = make_trainer(tmp_path / variant, tiny_model, "fp8", fp8_variant=variant)
        losses = tuple(trainer.run_step().loss for _ in range(3))
        assert losses not in seen
        seen.add(losses)
        rounded = all(torch.equal(p, p.bfloat16().float()) for p in trainer.model.parameters())
        assert rounded == (variant == "bf16-weights")


@pytest.mark.parametrize(
    "flags",
    [
        {"fp8_variant": "e5m2-gradients", "precision": "bf16"},
        {"fp8_variant": "bf16-weights", "precision": "fp32", "moments": "bf16"},
        {"fp8_variant": "whole-tensor"},
        {"fp8_variant": "bf16-weights", "precision": "fp8", "moments": "fp32"},
    ],
)
def test_a_variant_that_would_have_no_effect_is_refused(flags):
    with pytest.raises(OptionsError, match=f"--fp8-variant {flags['fp8_variant']} "):
        TrainOptions(**flags)


@pytest.mark.parametrize("flag", [{"precision": "fp4"}, {"moments": "fp8"}, {"fp8_variant": "paper"}])
def test_a_word_that_is_none_of_the_choices_is_refused_with_all_of_them(flag):
    with pytest.raises(OptionsError, match=r"must be .* or "):
        TrainOptions(**flag)
