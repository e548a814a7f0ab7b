"""GRPO on a task: questions, a group of answers to each, rewards by rule, advantages; batches to learn from.

    phase k: draw questions from (seed, k) -> write -> judge -> compare within groups -> as many batches as updates

All that is drawn in a phase hangs on the seed and the number of the phase, so that a resumed run goes on bit by bit.
What is left of a phase when a checkpoint is written lies in it.

Letters: P questions, M answers to each, B = P M.
Source: arXiv:2412.19437, section 5.2.2.
"""

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deepseek_v3.data.documents import DataError
from deepseek_v3.post_training import losses
from deepseek_v3.post_training.losses import Answers
from deepseek_v3.post_training.options import GrpoOptions
from deepseek_v3.post_training.policy import AnswerBatch, PolicyLoss, stack_answers
from deepseek_v3.post_training.rewards import RewardProcess
from deepseek_v3.post_training.rollout import Rollout, Writer, mix_seed
from deepseek_v3.post_training.tasks import Problem
from deepseek_v3.post_training.wording import Wording

METERED, METERED_GROUP = 32, 4  # questions and answers by which sampler and trainer are compared
MOST_ROUNDS = 3  # of dynamic sampling in one phase
EDGES = {"grpo": (0.2, 0.2), "dr_grpo": (0.2, 0.2), "dapo": (0.2, 0.28), "gspo": (3e-4, 4e-4), "cispo": (1.0, 0.28)}


class Rule(NamedTuple):
    """A loss, where it clips, and how a group is judged for it."""

    loss: PolicyLoss
    clipped: Callable[[Tensor, Answers], Tensor]
    judge: Callable[[Tensor], Tensor]


def choose_rule(options: GrpoOptions, max_length: int) -> Rule:
    """Return the loss that the options name, with its edges and the weight of the divergence."""
    name = options.loss
    one_edge, low = name in ("grpo", "dr_grpo"), options.clip or EDGES[name][0]
    high = low if one_edge else options.clip_high or EDGES[name][1]
    edges = {"clip": low} if one_edge else {"low": low, "high": high}
    length = {"max_length": max_length} if name == "dr_grpo" else {}
    loss = partial(getattr(losses, f"{name}_loss"), **length, **edges, beta=options.beta)

    def clipped(logp_BS: Tensor, answers: Answers) -> Tensor:
        ratio_BS = (logp_BS - answers.old_BS).exp()
        if name == "gspo":
            ratio_BS = losses.sequence_ratio(logp_BS, answers)[:, None].expand_as(logp_BS)
        advantage_B1 = answers.advantage_B[:, None]
        beyond_BS = losses.beyond_the_edge(ratio_BS, advantage_B1, low, high)
        return (beyond_BS if name != "cispo" else (ratio_BS > 1 + high) & (advantage_B1 != 0)) & answers.written_BS

    return Rule(loss, clipped, losses.centered_advantages if name == "dr_grpo" else losses.group_advantages)


class Judged(NamedTuple):
    """The answers to some questions, and what they were worth."""

    rollouts: list[Rollout]
    reward_PM: Tensor
    refused: dict[str, int]


class RolloutStream:
    """Batches of judged answers; its state is the number of the phase and what is left of it."""

    def __init__(
        self,
        writer: Writer,
        process: RewardProcess,
        wording: Wording,
        options: GrpoOptions,
        judge: Callable[[Tensor], Tensor],
        *,
        score_old: Callable[[AnswerBatch], Tensor] | None = None,
        score_reference: Callable[[AnswerBatch], Tensor] | None = None,
    ) -> None:
        """Begin at phase 0.

        Args:
            score_old: how likely the trainer finds what was written, before it learns; needed for several updates.
            score_reference: how likely the reference model finds it.
        """
        self.writer, self.process, self.wording, self.options, self.judge = writer, process, wording, options, judge
        self.score_old, self.score_reference = score_old, score_reference
        self.phase = 0
        self.pending: list[AnswerBatch] = []
        self.latest: AnswerBatch | None = None
        self.listed = process.draw("", 0) if options.task.endswith(".py") else []
        if options.task.endswith(".py") and not self.listed:
            raise DataError(f"{options.task} has no problem to learn from")

    def next_batch(self, n_rows: int) -> AnswerBatch:
        """Return the next answers to learn from; write new ones where none are left."""
        if not self.pending:
            self.pending = self._roll_out(n_rows)
            self.phase += 1
        self.latest = self.pending.pop(0)
        return self.latest

    def state_dict(self) -> dict[str, Any]:
        """Return where the stream stands."""
        return {"phase": self.phase, "pending": [batch.dump() for batch in self.pending]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to where it stood."""
        self.phase, self.pending = state["phase"], [AnswerBatch.load(held) for held in state["pending"]]

    def questions(self, round: int) -> list[Problem]:
        """Return the questions of this phase, by seed, phase and round alone."""
        seed = f"{self.options.seed} {self.phase} {round}"
        if not self.listed:
            return self.process.draw(seed, self.options.questions)
        return random.Random(seed).choices(self.listed, k=self.options.questions)

    def write_for_meter(self) -> AnswerBatch:
        """Let today's weights answer the first questions once more, for nobody to learn from."""
        problems = (self.process.draw("meter", METERED, held_out=True) or self.listed)[:METERED]
        prompts = [self.wording.ask(problem["prompt"]) for problem in problems]
        rollouts = self.writer.write(
            prompts, METERED_GROUP, temperature=self.options.temperature, seed=mix_seed("meter")
        )
        return stack_answers(rollouts, torch.zeros(len(rollouts)), self.wording.pad)

    def _roll_out(self, n_rows: int) -> list[AnswerBatch]:
        options, spent = self.options, {"rollout_s": 0.0, "reward_s": 0.0}
        judged = self._write_and_judge(0, spent)
        for round in range(1, MOST_ROUNDS if options.dynamic else 1):
            told = losses.informative_groups(judged.reward_PM)
            if bool(told.all()):
                break
            judged = self._replace_groups(judged, told, self._write_and_judge(round, spent))
        advantage_B = self.judge(judged.reward_PM).flatten()
        batch = stack_answers(
            judged.rollouts, -advantage_B if options.control == "flipped" else advantage_B, self.wording.pad
        )
        batch = replace(batch, facts={**describe_answers(judged), **spent})
        if self.score_old is not None:
            batch = replace(batch, old=self.score_old(batch))
        if self.score_reference is not None:
            batch = replace(batch, reference=self.score_reference(batch))
        return self._cut(batch, n_rows)

    def _cut(self, batch: AnswerBatch, n_rows: int) -> list[AnswerBatch]:
        """Spread the answers over the updates, in an order of the seed."""
        if len(batch) == n_rows:
            return [batch]
        order = torch.tensor(
            random.Random(f"{self.options.seed} {self.phase} cut").sample(range(len(batch)), len(batch))
        )
        mixed = batch.pick(order)
        pieces = [mixed.part(start, start + n_rows) for start in range(0, len(batch), n_rows)]
        return [replace(piece, n_answers=0) for piece in pieces]  # each update divides by its own

    def _write_and_judge(self, round: int, spent: dict[str, float]) -> Judged:
        options, clock = self.options, time.perf_counter()
        problems = self.questions(round)
        prompts = [self.wording.ask(problem["prompt"]) for problem in problems]
        seed = mix_seed(options.seed, self.phase, round)
        rollouts = self.writer.write(prompts, options.group, temperature=options.temperature, seed=seed)
        written = time.perf_counter()
        asked = [problem for problem in problems for _ in range(options.group)]
        rewards, refused = judge_rollouts(self.process, self.wording, asked, rollouts)
        if options.control == "random":
            chance = random.Random(f"{options.seed} {self.phase} {round} control")
            rewards = [float(chance.random() < 0.5) for _ in rewards]
        spent["rollout_s"] += written - clock
        spent["reward_s"] += time.perf_counter() - written
        return Judged(rollouts, torch.tensor(rewards).view(-1, options.group), refused)

    def _replace_groups(self, judged: Judged, told: Tensor, fresh: Judged) -> Judged:
        """Put groups that teach something in the place of those that do not."""
        group, rollouts, reward_PM = self.options.group, list(judged.rollouts), judged.reward_PM.clone()
        better = losses.informative_groups(fresh.reward_PM).nonzero().flatten().tolist()
        for place, source in zip((~told).nonzero().flatten().tolist(), better):
            rollouts[place * group : (place + 1) * group] = fresh.rollouts[source * group : (source + 1) * group]
            reward_PM[place] = fresh.reward_PM[source]
        return Judged(rollouts, reward_PM, dict(Counter(judged.refused) + Counter(fresh.refused)))


def judge_rollouts(
    process: RewardProcess, wording: Wording, problems: list[Problem], rollouts: list[Rollout]
) -> tuple[list[float], dict[str, int]]:
    """Return the reward of every answer, each for its own question; one that did not end is worth nothing."""
    ended = [i for i, rollout in enumerate(rollouts) if rollout.ended]
    tally = process.judge([problems[i] for i in ended], [wording.read(rollouts[i].text_tokens) for i in ended])
    rewards = [0.0] * len(rollouts)
    for i, reward in zip(ended, tally.rewards):
        rewards[i] = reward
    return rewards, tally.refused


def describe_answers(judged: Judged) -> dict[str, Any]:
    """Return what a person watches of a phase."""
    lengths = [len(rollout.tokens) for rollout in judged.rollouts]
    return {
        "reward": float(judged.reward_PM.mean()),
        "length": sum(lengths) / len(lengths),
        "ended": sum(rollout.ended for rollout in judged.rollouts) / len(lengths),
        "alike": 1 - float(losses.informative_groups(judged.reward_PM).float().mean()),
        "new_tokens": sum(lengths),
        "refused": sum(judged.refused.values()),
        "refusals": judged.refused,
    }
