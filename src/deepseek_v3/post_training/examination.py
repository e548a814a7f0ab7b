"""How well does it answer what it has never learned from: greedily, by a draw, and by the best of several draws.

greedy    share of held-out problems whose likeliest answer is right
pass@1    share of drawn answers that are right
pass@k    share of problems of which one of k drawn answers is right
"""

from collections.abc import Sequence
from typing import NamedTuple

from deepseek_v3.post_training.grpo import judge_rollouts
from deepseek_v3.post_training.rewards import RewardProcess
from deepseek_v3.post_training.rollout import Writer, mix_seed
from deepseek_v3.post_training.tasks import Problem
from deepseek_v3.post_training.wording import Wording

RIGHT = 1.0  # the reward of an answer that counts as right; a rule may give parts below


class Shown(NamedTuple):
    """The likeliest answer to one problem."""

    prompt: str
    text: str
    reward: float


class Result(NamedTuple):
    """Of one examination."""

    greedy: float
    pass1: float
    passk: float
    k: int
    problems: int
    refused: int
    shown: list[Shown]

    def describe(self) -> str:
        """One line for a reader."""
        text = f"{self.greedy:.1%} of {self.problems} held-out problems right"
        return text + (f", pass@1 {self.pass1:.1%}, pass@{self.k} {self.passk:.1%}" if self.k else "")


class Examination:
    """The held-out problems of a task, asked again and again; the same draws for the same weights."""

    def __init__(
        self, writer: Writer, process: RewardProcess, wording: Wording, problems: Sequence[Problem], k: int, shown: int
    ) -> None:
        self.writer, self.process, self.wording, self.k, self.n_shown = writer, process, wording, k, shown
        self.problems = list(problems)

    def ask(self) -> Result:
        """Ask all problems."""
        prompts = [self.wording.ask(problem["prompt"]) for problem in self.problems]
        greedy = self.writer.write(prompts, 1, temperature=0.0, seed=0)
        right, refusals = judge_rollouts(self.process, self.wording, self.problems, greedy)
        shown = [
            Shown(problem["prompt"], self.wording.read(rollout.text_tokens), reward)
            for problem, rollout, reward in zip(self.problems, greedy, right)
        ][: self.n_shown]
        drawn, refused = [], sum(refusals.values())
        if self.k:
            rollouts = self.writer.write(prompts, self.k, temperature=1.0, seed=mix_seed("examination"))
            asked = [problem for problem in self.problems for _ in range(self.k)]
            drawn, refusals = judge_rollouts(self.process, self.wording, asked, rollouts)
            refused += sum(refusals.values())
        groups = [drawn[i : i + self.k] for i in range(0, len(drawn), self.k)] if self.k else []
        return Result(
            share(right),
            share(drawn),
            share([max(group) for group in groups]),
            self.k,
            len(self.problems),
            refused,
            shown,
        )


def share(rewards: Sequence[float]) -> float:
    """Return how many answers are right, of all."""
    return sum(reward >= RIGHT for reward in rewards) / max(1, len(rewards))
