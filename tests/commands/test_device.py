"""`--device`: chosen before anything is read, refused in one line, and no tensor is made without saying where."""

import sys

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

from deepseek_v3.cli import main
from deepseek_v3.config import ModelConfig
from deepseek_v3.data.packing import Batch
from deepseek_v3.engine.generate import generate
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.native.build import SWITCH
from deepseek_v3.parallel.layout import Solo
from deepseek_v3.training.balance import LoadCounter
from deepseek_v3.training.machine import autocast_for
from deepseek_v3.training.objective import Pretraining
from deepseek_v3.training.optimizer import AveragedWeights, build_optimizer
from deepseek_v3.training.options import TrainOptions
from deepseek_v3.training.recompute import recompute_blocks
from deepseek_v3.training.schedule import Settings
from deepseek_v3.training.step import Update


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("command", [["generate", "no_such_run"], ["evaluate", "no_such_run"], ["train"]])
def test_a_gpu_that_is_not_there_is_refused_in_one_line(command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*command, "--device", "cuda"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "--device cuda: PyTorch sees no GPU here" in said
    assert main([*command, "--device", "tpu"]) == 1
    assert "--device tpu must be auto, cpu, cuda" in capsys.readouterr().err


class NoteHomeless(TorchFunctionMode):
    """Notes calls of the package that make a tensor and do not say on which device.

    Without one a tensor lies on the CPU, and meets a model on a GPU there only.
    """

    def __init__(self) -> None:
        super().__init__()
        self.makers, self.calls, self.found = _device_constructors(), 0, set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        caller = sys._getframe(1)
        if func in self.makers and "deepseek_v3" in caller.f_code.co_filename:
            self.calls += 1
            if (kwargs or {}).get("device") is None:
                self.found.add(f"{caller.f_code.co_filename}:{caller.f_lineno}")
        return func(*args, **(kwargs or {}))


@pytest.fixture
def model(monkeypatch):
    """By PyTorch's operations, as on a GPU."""
    monkeypatch.setenv(SWITCH, "0")
    torch.manual_seed(3)
    shape = {"vocab_size": 31, "hidden_size": 22, "intermediate_size": 26, "moe_intermediate_size": 7}
    heads = {"num_attention_heads": 2, "kv_lora_rank": 5, "qk_nope_head_dim": 7, "qk_rope_head_dim": 4, "v_head_dim": 3}
    experts = {"n_routed_experts": 6, "num_experts_per_tok": 2, "first_k_dense_replace": 1, "num_hidden_layers": 2}
    return DeepseekV3(ModelConfig(num_nextn_predict_layers=2, initializer_range=0.2, **shape, **heads, **experts))


@pytest.mark.parametrize("recompute", [False, True])
def test_an_update_says_of_every_tensor_where_it_lies(model, recompute):
    options, layout = TrainOptions(), Solo(2, "cpu")
    if recompute:
        recompute_blocks(model)
    update = Update(
        model, build_optimizer(model, options), Pretraining(1e-3), layout, LoadCounter(model),
        AveragedWeights(model, 0.9), autocast_for("fp32"), torch.ones(31, dtype=torch.int64), 1.0,
    )  # fmt: skip
    tokens = torch.randint(0, 31, (5, 14))
    with NoteHomeless() as seen:
        result = update.run(Batch(tokens, torch.zeros_like(tokens)), Settings(1e-3, 5, 0.3, 1e-3, 65), lambda: False)
    assert result is not None
    assert result.applied
    assert seen.calls > 0
    assert not seen.found


@pytest.mark.parametrize("rule", [{}, {"temperature": 0.8, "top_p": 0.9, "seed": 5}])
def test_the_engine_says_of_every_tensor_where_it_lies(model, rule):
    with NoteHomeless() as seen:
        tokens = list(generate(model.eval(), [3, 1, 4, 1, 5], max_new_tokens=11, speculative=2, stop_tokens=(), **rule))
    assert len(tokens) == 11
    assert seen.calls > 0
    assert not seen.found
