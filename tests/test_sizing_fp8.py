"""What a training in FP8 keeps in memory, counted by hooks and by arithmetic: the same to the byte."""

import pytest
import torch

from deepseek_v3.config import ModelConfig
from deepseek_v3.data.packing import Batch
from deepseek_v3.model.fp8_products import use_fp8_products
from deepseek_v3.model.router import RoutingRecord
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.native.build import have_kernels
from deepseek_v3.sizing import training_bytes
from deepseek_v3.sizing_fp8 import fp8_kept_bytes
from deepseek_v3.training.machine import autocast_for
from deepseek_v3.training.objective import Pretraining
from deepseek_v3.training.optimizer import build_optimizer
from deepseek_v3.training.options import TrainOptions
from deepseek_v3.training.schedule import Settings

pytestmark = pytest.mark.skipif(not have_kernels(), reason="no C++ compiler here")
ROWS, LENGTH = 3, 37
SMALL = {
    "vocab_size": 2 * 29, "hidden_size": 2 * 67, "intermediate_size": 2 * 71, "moe_intermediate_size": 2 * 13,
    "num_hidden_layers": 3, "num_attention_heads": 3, "q_lora_rank": 2 * 17, "kv_lora_rank": 2 * 11,
    "qk_nope_head_dim": 2 * 7, "qk_rope_head_dim": 2 * 5, "v_head_dim": 2 * 3, "first_k_dense_replace": 1,
    "n_routed_experts": 12, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2, "num_nextn_predict_layers": 2,
}  # fmt: skip


def count_kept(model: DeepseekV3, rows: int = ROWS, length: int = LENGTH) -> int:
    """Bytes of the storages that a forward pass keeps, but for the weights."""
    weights = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes(), tensor.detach()  # the tensor too: no address comes twice
        return tensor

    tokens = torch.randint(0, model.config.vocab_size, (rows, length + 1))
    batch, settings = Batch(tokens, torch.zeros_like(tokens)), Settings(1e-3, rows, 0.3, 1e-3, rows * length)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), autocast_for("fp8")():
        parts = Pretraining(1e-4)(model, batch, RoutingRecord(), settings)
    parts.total.backward()
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize(("rows", "length"), [(1, 37), (1, 64), (2, 34)])
@pytest.mark.parametrize("depths", [0, 1, 2, 3])
def test_saved_tensors_of_one_row_and_of_several_are_what_size_says(rows, length, depths):
    config = ModelConfig(**{**SMALL, "num_nextn_predict_layers": depths})
    model = DeepseekV3(config)
    use_fp8_products(model)
    assert count_kept(model, rows, length) == sum(fp8_kept_bytes(config, rows, length).values())


@pytest.mark.parametrize(
    "changes",
    [{}, {"q_lora_rank": None}, {"norm_topk_prob": False, "n_shared_experts": 0}, {"num_nextn_predict_layers": 0}],
)
def test_saved_tensors_weights_gradients_and_moments_are_what_size_says(changes):
    torch.manual_seed(0)
    config = ModelConfig(**{**SMALL, **changes})
    model = DeepseekV3(config)
    use_fp8_products(model)
    optimizer = build_optimizer(model, TrainOptions(), "fp8")
    assert count_kept(model) == sum(fp8_kept_bytes(config, ROWS, LENGTH).values())
    optimizer.step()
    held = [*model.parameters(), *(b for name, b in model.named_buffers() if name.endswith("bias"))]
    held += [p.grad for p in model.parameters()]
    held += [s[name] for s in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert sum(tensor.nbytes for tensor in held) == training_bytes(config)["fp8"]
