"""Rollouts beside the plain engine: python -m benchmarks.rollouts [--run runs/reason/grpo]

One batch, 32 questions of `addition:2` and 16 answers to each, drawn at temperature 1 until each ends; both draw the
same tokens. Tokens a second, medians of rounds in turns, and the median of the rounds' ratios.

    rollout    `post_training.rollout`: log pi and experts of every token, a question shared by its answers
    plain      the engine alone: requests one by one, no log pi, no experts

Without `--run` the weights of the preset `reason` are random, and an answer is as long as it may be.
"""

import argparse
import statistics
from pathlib import Path

import torch

from benchmarks.machine import interleave, median_ratio
from deepseek_v3.config import ModelConfig
from deepseek_v3.data.tokenizer import SMALLEST_VOCAB, Tokenizer
from deepseek_v3.engine.engine import Engine
from deepseek_v3.engine.request import EngineOptions, Request
from deepseek_v3.engine.sampler import SamplingRule
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.post_training.rollout import Writer
from deepseek_v3.post_training.session import find_checkpoint, read_model
from deepseek_v3.post_training.tasks import different_problems, find_task
from deepseek_v3.post_training.wording import Wording

TASK, SEED = "addition:2", 7


class Plain:
    """The engine as any caller would use it."""

    def __init__(self, model: DeepseekV3, stop_tokens: tuple[int, ...], new: int, rows: int, longest: int) -> None:
        self.stop_tokens, self.new = stop_tokens, new
        blocks = rows * -(-(longest + new) // 16)
        options = EngineOptions(n_blocks=blocks, block_size=16, step_tokens=max(64, rows), max_rows=rows, modules=0)
        self.engine = Engine(model, options)

    def write(self, prompts: list[list[int]], group: int) -> list[list[int]]:
        """Write `group` answers to every prompt, without their stop tokens."""
        self.engine.refresh()
        ask = {"rule": SamplingRule(1.0), "max_new_tokens": self.new, "stop_tokens": self.stop_tokens}
        requests = [Request(p, seed=SEED + i * group + j, **ask) for i, p in enumerate(prompts) for j in range(group)]
        sequences = [self.engine.admit(request) for request in requests]
        while self.engine.sequences:
            self.engine.step()
        return [sequence.text for sequence in sequences]


def measure(model: DeepseekV3, wording: Wording, questions: int, group: int, rounds: int) -> dict[str, float]:
    """Return tokens a second of both, and how many times the plain engine's rate rollouts have."""
    problems = different_problems(find_task(TASK), "benchmark", questions, held_out=True)
    prompts, new = [wording.ask(problem["prompt"]) for problem in problems], find_task(TASK).longest + 1
    stops = tuple(wording.tokenizer.stop_ids)
    writer = Writer(model, stop_tokens=stops, max_new_tokens=new, choices=True)
    plain = Plain(model, stops, new, len(prompts) * group, max(map(len, prompts)))
    rollouts = writer.write(prompts, group, temperature=1.0, seed=SEED)
    assert [r.text_tokens for r in rollouts] == plain.write(prompts, group), "both must draw the same tokens"
    tokens = sum(len(rollout.tokens) for rollout in rollouts)
    ways = {
        "rollout": lambda: writer.write(prompts, group, temperature=1.0, seed=SEED),
        "plain": lambda: plain.write(prompts, group),
    }
    times = interleave(ways, rounds, warm=1)
    rates = {name: tokens / statistics.median(seconds) for name, seconds in times.items()}
    return {**rates, "times as fast": median_ratio(times, "plain", "rollout")}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", help="a run of grpo or sft whose answers come to their end")
    parser.add_argument("--rounds", type=int, default=9)
    asked = parser.parse_args()
    if asked.run:
        home = find_checkpoint(Path(asked.run))
        model, wording = read_model(home), Wording(Tokenizer.from_file(home))
    else:
        torch.manual_seed(0)
        model = DeepseekV3(ModelConfig.preset("reason"))
        wording = Wording(Tokenizer.train([], SMALLEST_VOCAB))
    print(f"rollouts: 32 questions of {TASK}, 16 answers to each; threads {torch.get_num_threads()}")
    for name, value in measure(model, wording, 32, 16, asked.rounds).items():
        print(f"  {name:<14}{value:12,.2f}" if name == "times as fast" else f"  {name:<14}{value:12,.0f} tokens/s")


if __name__ == "__main__":
    main()
