"""Numbers of this checkout against another one's, to the bit: python -m benchmarks.bits OTHER_CHECKOUT

    git worktree add ../before 6fed670
    python -m benchmarks.bits ../before

Twelve drawn configs (groups, shared experts, dense layers, low-rank queries or none, up to two MTP modules), each in
FP32, in BF16 and from a checkpoint kept in FP8: logits, greedy and drawn tokens with and without drafts; and in FP32
and under BF16 autocast four steps of training, its losses, norms and weights. A line says BITS, or how far apart they
are: kernels that sum in another order are as right, and then FP32 must be within 1e-5. Exit code 1 if it is not, or if
tokens differ.
"""

import argparse
import dataclasses
import os
import pickle
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CONFIGS, STEPS = 12, 4
HERE = Path(__file__).resolve().parent.parent


def draw_config(seed: int) -> dict[str, Any]:
    """A config by the keys of config.json, sizes that fit no vector among them."""
    draw = random.Random(seed)
    groups, size = draw.choice([1, 2, 4]), draw.choice([2, 3, 4])
    kept = draw.randint(1, groups)
    choices = {
        "vocab_size": [97, 256, 509], "hidden_size": [32, 60, 96, 128], "num_hidden_layers": [2, 3, 4],
        "num_attention_heads": [2, 3, 4], "q_lora_rank": [None, 24, 48], "kv_lora_rank": [16, 40, 64],
        "qk_nope_head_dim": [16, 24, 32], "qk_rope_head_dim": [8, 16], "v_head_dim": [16, 20, 32],
        "intermediate_size": [96, 150, 256], "moe_intermediate_size": [32, 48, 72], "n_shared_experts": [0, 1, 2],
        "first_k_dense_replace": [0, 1], "num_nextn_predict_layers": [0, 1, 2], "routed_scaling_factor": [1.0, 2.5],
    }  # fmt: skip
    config = {key: draw.choice(values) for key, values in choices.items()}
    routing = {"n_routed_experts": groups * size, "n_group": groups, "topk_group": kept}
    most = min(4, kept * size)
    return config | routing | {"num_experts_per_tok": draw.randint(1, most), "max_position_embeddings": 128}


# -- in the process of one side: only names that both checkouts have, or either


def answer(folder: Path) -> dict[tuple, Any]:
    """All figures of the package that is imported here."""
    import torch

    from deepseek_v3 import DeepseekV3, ModelConfig, generate, load, save

    found: dict[tuple, Any] = {}
    for index in range(CONFIGS):
        config = ModelConfig(**draw_config(index))
        for form in ("fp32", "bf16", "fp8"):
            torch.manual_seed(index)
            model = DeepseekV3(config).to(torch.bfloat16 if form == "bf16" else torch.float32).eval()
            if form == "fp8":
                save(model.to(torch.bfloat16), folder / str(index), fp8=True)
                model, _ = load(folder / str(index), keep_fp8=True)
            prompt = torch.randint(0, config.vocab_size, (2, 19))
            with torch.inference_mode():
                found[index, form, "logits"] = model(prompt).float().numpy()
            for temperature in (0.0, 0.8):
                for drafts in range(config.num_nextn_predict_layers + 1):
                    drawn = generate(model, prompt[0], max_new_tokens=16, temperature=temperature, seed=3,
                                     speculative=drafts, stop_tokens=())  # fmt: skip
                    found[index, form, f"tokens at {temperature}, {drafts} drafts"] = list(drawn)
        for form in ("fp32", "bf16"):
            found[index, form, "training"], weights = train(index, form)
            found[index, form, "weights"] = {name: weight.float().numpy() for name, weight in weights.items()}
    return found


def train(index: int, form: str) -> tuple[list[tuple[float, float]], dict]:
    """Losses and norms of some steps, and the weights behind them."""
    import torch

    from deepseek_v3 import DeepseekV3, ModelConfig
    from deepseek_v3.data.packing import Batch
    from deepseek_v3.training import results
    from deepseek_v3.training.options import TrainOptions
    from deepseek_v3.training.trainer import Trainer

    config = ModelConfig(**draw_config(index))
    torch.manual_seed(index)

    class Stream:
        """Drawn rows, cut into documents here and there."""

        generator = torch.Generator().manual_seed(index)

        def next_batch(self, rows: int) -> Batch:
            tokens = torch.randint(0, config.vocab_size, (rows, 34), generator=self.generator)
            return Batch(tokens, torch.randint(0, 8, (rows, 34), generator=self.generator).eq(0).cumsum(1))

        def state_dict(self) -> dict:
            return {}

        def load_state_dict(self, state: dict) -> None:
            pass

    class OneByte:
        """A tokenizer whose tokens are one byte long."""

        def byte_lengths(self, vocab_size: int) -> list[int]:
            return [1] * vocab_size

    now = hasattr(results, "Arithmetic")
    kind = {"arithmetic" if now else "machine": (results.Arithmetic if now else results.Machine)(form)}
    options = TrainOptions(run="none", batch_size=6, micro_batch=3, seq_len=33, steps=50, warmup_steps=2)
    if index % 2:
        options = dataclasses.replace(options, ema_decay=0.9)
    trainer = Trainer(DeepseekV3(config), OneByte(), Stream(), ["x"], options, **kind)  # type: ignore[arg-type]
    steps = [trainer.run_step() for _ in range(STEPS)]
    return [(float(step.loss), float(step.grad_norm)) for step in steps if step], trainer.model.state_dict()


# -- in the process that compares


def ask(checkout: Path) -> dict[tuple, Any]:
    """Let a process that imports this checkout's package answer."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(Path(__file__).resolve()), "--answer", folder]
        env = {**os.environ, "PYTHONPATH": str(checkout / "src")}
        subprocess.run(command, check=True, env=env, cwd=folder)
        return pickle.loads((Path(folder) / "answer.pickle").read_bytes())


def distance(ours: Any, theirs: Any) -> float:
    """The largest difference, against the largest number there is."""
    import numpy as np

    if isinstance(ours, dict):
        return max(distance(ours[name], theirs[name]) for name in ours)
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30)) if a.shape == b.shape else float("inf")


def main(other: Path) -> int:
    """Print a line for each config and form; return the exit code."""
    ours, theirs = ask(HERE), ask(other)
    wrong = 0
    for index in range(CONFIGS):
        for form in ("fp32", "bf16", "fp8"):
            apart = {k[2]: distance(ours[k], theirs[k]) for k in ours if k[:2] == (index, form)}
            off = [n for n, d in apart.items() if ("tokens" in n and d) or (form == "fp32" and d > 1e-5)]
            wrong += len(off)
            said = (
                ", ".join(f"{name} {far:.1e}" for name, far in apart.items() if far) or f"BITS ({len(apart)} results)"
            )
            print(f"config {index:2} {form}: {said}" + (f"  WRONG: {', '.join(off)}" if off else ""))
    print(f"{wrong} results are wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    if sys.argv[1:2] == ["--answer"]:
        sys.path.remove(str(Path(__file__).resolve().parent))  # its `profile` is not the standard library's
        place = Path(sys.argv[2])
        (place / "answer.pickle").write_bytes(pickle.dumps(answer(place)))
    else:
        sys.exit(main(parser.parse_args().checkout.resolve()))
