"""The trainer of post-training: the one trainer, examined by held-out problems and dialogues in place of texts."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.post_training.examination import Examination
from deepseek_v3.post_training.rewards import RewardProcess
from deepseek_v3.training.results import StepResult
from deepseek_v3.training.signals import StopSignal
from deepseek_v3.training.trainer import Trainer


@dataclass
class Extras:
    """What post-training adds to a trainer.

    Attributes:
        examination: held-out problems.
        measure: nats and tokens of held-out answers, and the bytes that they stand for.
        meter: what sampler and trainer disagree on in the latest batch.
        stop_at: the share of held-out problems at which the training ends; 0: never.
        reference: a model that stays as it was; a checkpoint carries it.
        refresh: steps after which it becomes today's model; 0: never.
        process: to be closed at the end.
    """

    examination: Examination | None = None
    measure: Callable[[], tuple[float, int, int]] | None = None
    meter: Callable[[], dict[str, float]] | None = None
    stop_at: float = 0.0
    reference: DeepseekV3 | None = None
    refresh: int = 0
    process: RewardProcess | None = None


class PostTrainer(Trainer):
    """A trainer with something to examine."""

    def __init__(self, *parts: Any, extras: Extras, **more: Any) -> None:
        super().__init__(*parts, **more)
        self.extras = extras

    def run_step(self, stop: StopSignal | None = None) -> StepResult | None:
        """Do one step, and tell what the answers were like and where the time went."""
        started = time.perf_counter()
        result = super().run_step(stop)
        facts = getattr(getattr(self.stream, "latest", None), "facts", None)
        if result is not None and facts:
            writing = facts["rollout_s"] + facts["reward_s"]
            update_s = max(0.0, time.perf_counter() - started - writing)
            result.further = {**facts, **result.further, "update_s": update_s}
        if result is not None and self.extras.refresh and self.step % self.extras.refresh == 0:
            self._refresh_reference()
        return result

    def close(self) -> None:
        """End the process of the task."""
        if self.extras.process is not None:
            self.extras.process.close()

    @torch.no_grad()
    def _refresh_reference(self) -> None:
        if self.extras.reference is not None:
            own = dict(self.model.named_parameters())
            for name, parameter in self.extras.reference.named_parameters():
                parameter.copy_(own[name])

    def examine(self, stop: StopSignal) -> None:
        """Ask the held-out problems, measure the held-out answers, and read the meter of the experts."""
        if not stop and self.extras.measure is not None:
            self._measure_answers(self.extras.measure)
        if not stop and self.extras.examination is not None:
            self._ask(self.extras.examination)
        if not stop and self.extras.meter is not None and (found := self.extras.meter()):
            self.write("mismatch", step=self.step, **found)

    def _measure_answers(self, measure: Callable[[], tuple[float, int, int]]) -> None:
        with self.update.autocast():
            nats, count, n_bytes = measure()
        bits = nats / math.log(2) / max(1, n_bytes)
        self.write("heldout", step=self.step, bits_per_byte=bits, mtp_acceptance=None, nats=nats / max(1, count))
        self.progress.note(f"step {self.step}: {nats / max(1, count):.3f} nats a token of held-out answers")

    def _ask(self, examination: Examination) -> None:
        found = examination.ask()
        figures = {name: getattr(found, name) for name in ("greedy", "pass1", "passk", "k", "problems", "refused")}
        self.write("exam", step=self.step, **figures)
        for answer in found.shown:
            self.write("answer", step=self.step, prompt=answer.prompt, text=answer.text, reward=answer.reward)
        self.progress.note(f"step {self.step}: {found.describe()}")
        if self.extras.stop_at and found.greedy >= self.extras.stop_at and self.step:
            self.progress.note(f"step {self.step}: that is --stop-at {self.extras.stop_at:g}; the training ends here")
            self.options = self.options.replace(steps=self.step)

    def kept_tensors(self) -> dict[str, Tensor]:
        """Return the reference model, if it moves."""
        if self.extras.reference is None:
            return {}
        return {f"reference.{name}": p.detach() for name, p in self.extras.reference.named_parameters()}

    @torch.no_grad()
    def take_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Put the reference model back."""
        if self.extras.reference is not None:
            for name, parameter in self.extras.reference.named_parameters():
                parameter.copy_(tensors[f"reference.{name}"])
