"""The same on every device: training, generation and export on a GPU are those on a CPU, to 1e-4 in FP32.

    make test-gpu                                       where PyTorch sees a GPU
    PYTHONPATH=src python -m pytest tests/gpu -m gpu    where only PyTorch, safetensors and pytest are installed

Every body runs on the CPU too, in the default tests: a GPU is rarely at hand.
"""

import pytest
import torch

from deepseek_v3.config import ModelConfig
from deepseek_v3.engine.generate import generate, generate_batch
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.weights.load import load_model
from deepseek_v3.weights.save import save_model

STEPS, CLOSE = 10, 1e-4


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("PyTorch sees no GPU here")
    return request.param


def make_model() -> DeepseekV3:
    """The same weights at every call, by every mechanism."""
    torch.manual_seed(3)
    shape = {"vocab_size": 31, "hidden_size": 22, "intermediate_size": 26, "moe_intermediate_size": 7}
    heads = {"num_attention_heads": 2, "kv_lora_rank": 5, "qk_nope_head_dim": 7, "qk_rope_head_dim": 4, "v_head_dim": 3}
    experts = {"n_routed_experts": 6, "num_experts_per_tok": 2, "first_k_dense_replace": 1, "num_hidden_layers": 3}
    return DeepseekV3(ModelConfig(num_nextn_predict_layers=2, initializer_range=0.2, **shape, **heads, **experts))


def train(device: str, *, recompute: bool) -> tuple[list[float], dict[str, torch.Tensor], list[dict]]:
    """Losses, weights and load counts of ten updates."""
    pytest.importorskip("tokenizers")  # the data's room needs it, and the objective the data's
    from deepseek_v3.data.packing import Batch
    from deepseek_v3.parallel.layout import Solo
    from deepseek_v3.training.balance import LoadCounter
    from deepseek_v3.training.machine import autocast_for
    from deepseek_v3.training.objective import Pretraining
    from deepseek_v3.training.optimizer import AveragedWeights, build_optimizer
    from deepseek_v3.training.options import TrainOptions
    from deepseek_v3.training.recompute import recompute_blocks
    from deepseek_v3.training.schedule import Settings
    from deepseek_v3.training.step import Update

    layout = Solo(2, device)
    model = layout.place(make_model())
    if recompute:
        recompute_blocks(model)
    byte_length = torch.ones(31, dtype=torch.int64, device=device)
    update = Update(
        model, build_optimizer(model, TrainOptions()), Pretraining(1e-3), layout, LoadCounter(model),
        AveragedWeights(model, 0.9), autocast_for("fp32", device), byte_length, 1.0,
    )  # fmt: skip
    draw, losses, loads = torch.Generator().manual_seed(1), [], []
    for _ in range(STEPS):
        tokens = torch.randint(0, 31, (5, 14), generator=draw)
        batch, settings = Batch(tokens, torch.zeros_like(tokens)), Settings(1e-3, 5, 0.3, 1e-3)
        result = update.run(batch, settings, lambda: False)
        assert result is not None
        assert result.applied
        losses.append(result.loss)
        loads.append(result.loads)
    assert all(p.device.type == device for p in model.parameters())
    return losses, {name: tensor.cpu() for name, tensor in model.state_dict().items()}, loads


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[name].double() - b[name].double()).abs().max().item() for name in a)


@pytest.fixture(scope="module")
def on_the_cpu():
    return train("cpu", recompute=False)


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_ten_updates_are_those_of_the_cpu(device, recompute, on_the_cpu):
    losses, weights, loads = train(device, recompute=recompute)
    assert losses == pytest.approx(on_the_cpu[0], abs=CLOSE)
    assert largest_difference(weights, on_the_cpu[1]) < CLOSE
    assert loads == on_the_cpu[2]


def test_logits_and_drafts_are_those_of_the_cpu(device):
    model = make_model().eval()
    tokens = torch.randint(0, 31, (3, 17), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        want, want_drafts = model(tokens, mtp=True)
        found, drafts = model.to(device)(tokens.to(device), mtp=True)
    for a, b in zip([found, *drafts], [want, *want_drafts], strict=True):
        assert a.device.type == device
        torch.testing.assert_close(a.cpu(), b, atol=CLOSE, rtol=0)


def test_greedy_tokens_are_those_of_the_cpu_with_drafts_and_without(device):
    prompts = [[3, 1, 4, 1, 5], [9, 2], list(range(29)) * 3]
    want = [list(generate(make_model().eval(), prompt, max_new_tokens=19, stop_tokens=())) for prompt in prompts]
    model = make_model().eval().to(device)
    for drafts in (0, 1, 3):
        found = [list(generate(model, p, max_new_tokens=19, stop_tokens=(), speculative=drafts)) for p in prompts]
        assert found == want
    assert generate_batch(model, prompts, max_new_tokens=19, stop_tokens=(), speculative=2) == want


def test_drawn_tokens_come_again_with_their_seed(device):
    model = make_model().eval().to(device)
    rule = {"max_new_tokens": 13, "temperature": 0.8, "top_k": 11, "top_p": 0.9, "seed": 7, "speculative": 2}
    first, again = (list(generate(model, [3, 1, 4], stop_tokens=(), **rule)) for _ in range(2))
    assert first == again
    assert len(first) == 13


@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
def test_what_is_exported_from_it_is_what_the_cpu_exports(device, fp8, tmp_path):
    model = make_model().eval()
    save_model(model, tmp_path / "cpu", dtype=torch.bfloat16, fp8=fp8)
    save_model(model.to(device), tmp_path / "device", dtype=torch.bfloat16, fp8=fp8)
    cpu, other = (load_model(tmp_path / name, dtype=torch.float32)[0].state_dict() for name in ("cpu", "device"))
    assert largest_difference(other, cpu) == 0


def test_an_export_in_fp32_comes_back_to_the_device_bit_for_bit(device, tmp_path):
    model = make_model().eval().to(device)
    save_model(model, tmp_path / "model", dtype=torch.float32)
    again = load_model(tmp_path / "model")[0].to(device)
    state = again.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(tensor.device.type == device for tensor in state.values())
