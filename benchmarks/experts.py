"""What many experts cost a step of training that a dense network would not: python -m benchmarks.experts

A model 512 wide with 64 experts, of which a token goes to 4 and the shared one, and a dense model that multiplies as
much for a token: its networks are as wide as those five together. A step of 2,048 tokens brings an expert 128 on
average. The parts of a step take turns, one model after the other, and each figure is the median of the rounds; beside
them stand the bytes that clip and AdamW must move (a gradient read for the norm; weight, gradient and two moments read,
all but the gradient written), by the bandwidth that a copy reaches in this run.
"""

import statistics
from collections.abc import Callable

import torch

from benchmarks.asking import read_values
from benchmarks.machine import seconds
from deepseek_v3.config import ModelConfig
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.native.heap import keep_freed_memory
from deepseek_v3.parallel.layout import Solo
from deepseek_v3.training.optimizer import build_optimizer
from deepseek_v3.training.options import TrainOptions

ROWS, LENGTH, EXPERTS, CHOSEN, WIDTH, HIDDEN = 4, 512, 64, 4, 512, 256
PARTS = ("forward", "backward", "clip", "AdamW")


def make_config(*, dense: bool, **sizes: int) -> ModelConfig:
    """Experts in every layer, or a network as wide as those that a token goes to."""
    shape = {
        "vocab_size": 4096, "hidden_size": WIDTH, "moe_intermediate_size": HIDDEN, "num_hidden_layers": 4,
        "intermediate_size": (CHOSEN + 1) * HIDDEN, "first_k_dense_replace": 4 if dense else 0,
        "num_attention_heads": 8, "q_lora_rank": 192, "kv_lora_rank": 128, "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 16, "v_head_dim": 32, "n_routed_experts": EXPERTS, "num_experts_per_tok": CHOSEN,
        "n_group": 1, "topk_group": 1, "num_nextn_predict_layers": 0,
    }  # fmt: skip
    return ModelConfig.preset("nano").replace(**shape | sizes)


def make_parts(model: DeepseekV3, rows: int = ROWS, length: int = LENGTH) -> dict[str, Callable[[], object]]:
    """The parts of a step, to be called in their order."""
    tokens_BS = torch.randint(
        0, model.config.vocab_size, (rows, length + 1), generator=torch.Generator().manual_seed(0)
    )
    optimizer, layout, losses = build_optimizer(model, TrainOptions()), Solo(micro_batch=ROWS), []

    def forward() -> None:
        hidden_BSD = model.hidden_states(tokens_BS[:, :-1])
        losses.append(model.lm_head.sum_nats(hidden_BSD, tokens_BS[:, 1:].contiguous()) / tokens_BS.numel())

    def update() -> None:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    steps = (forward, lambda: losses.pop().backward(), lambda: layout.clip(model.parameters(), 1.0), update)
    return dict(zip(PARTS, steps))


def measure(models: dict[str, DeepseekV3], rounds: int = 7, **sizes: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each part, by the model's name."""
    parts = {name: make_parts(model, **sizes) for name, model in models.items()}
    times: dict[str, dict[str, list[float]]] = {name: {part: [] for part in PARTS} for name in models}
    for i in range(rounds + 1):
        for name, steps in parts.items():
            for part, step in steps.items():
                taken = seconds(step)
                if i:  # the first round makes the moments
                    times[name][part].append(taken * 1e3)
    return {name: {part: statistics.median(taken) for part, taken in each.items()} for name, each in times.items()}


def copy_bandwidth(megabytes: int = 256, rounds: int = 7) -> float:
    """Bytes/s, read and written."""
    source = torch.zeros(megabytes * 2**18)
    target = torch.zeros_like(source)
    return 2 * source.nbytes / min(seconds(lambda: target.copy_(source)) for _ in range(rounds))


def main() -> None:
    """Print a line a model."""
    keep_freed_memory()
    models = {}
    for name in ("experts", "dense"):
        torch.manual_seed(0)
        models[name] = DeepseekV3(make_config(dense=name == "dense"))
    bandwidth = copy_bandwidth()
    print(f"{WIDTH} wide, {ROWS * LENGTH} tokens a step, {torch.get_num_threads()} threads; ms")
    for name, found in measure(models).items():
        count = sum(p.numel() for p in models[name].parameters())
        least = count * 32 / bandwidth * 1e3
        figures = "  ".join(f"{part} {found[part]:6.1f}" for part in PARTS)
        print(f"  {name:8} {count / 1e6:6.1f} M parameters: {figures}  = {sum(found.values()):6.1f}", end="")
        print(f"; clip and AdamW move {count * 32 / 1e9:.2f} GB: {least:.0f} ms at {bandwidth / 1e9:.1f} GB/s")


if __name__ == "__main__":
    read_values(__doc__)
    main()
