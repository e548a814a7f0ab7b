"""The training loop: one step after another until done, told to stop, or past help.

    trainer = Trainer(model, tokenizer, stream, heldout, options, run)
    outcome = trainer.train()

What a step does: read the scheduled values; add up gradients over micro-batches; if loss and gradient are finite, clip,
update, move the routing biases and the averaged weights; if not, change nothing and count. All that the next step
depends on goes into a checkpoint, so that stop and resume give the bits of an unbroken run.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from deepseek_v3.data.tokenizer import Tokenizer
from deepseek_v3.model.fp8_products import use_fp8_products
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.parallel.layout import Layout, Solo, Weights
from deepseek_v3.training.balance import LoadCounter
from deepseek_v3.training.evaluate import Measurement, measure_model
from deepseek_v3.training.machine import autocast_for
from deepseek_v3.training.metrics import MetricsLog
from deepseek_v3.training.objective import Objective, Pretraining
from deepseek_v3.training.optimizer import AveragedWeights, build_optimizer, moments_by_name
from deepseek_v3.training.options import TrainOptions
from deepseek_v3.training.progress import Clock, Progress, Silent
from deepseek_v3.training.recompute import recompute_blocks
from deepseek_v3.training.results import Arithmetic, Outcome, StepResult, describe_step
from deepseek_v3.training.run_folder import RunLock
from deepseek_v3.training.saving import Saving, TrainingError, last_good
from deepseek_v3.training.schedule import move_end, settings_at
from deepseek_v3.training.sharded_state import ShardedSave, read_training, save_training
from deepseek_v3.training.signals import StopSignal
from deepseek_v3.training.step import Update
from deepseek_v3.training.training_state import checkpoint_folder, newest_checkpoint

FAILURES_IN_A_ROW = 3
LOADS_KEPT = 200  # about so many lines of metrics carry the load of every expert

Sampler = Callable[[DeepseekV3, Tokenizer, str], str]


class Stream(Protocol):
    """Where batches come from; its whole state is what JSON can hold."""

    def next_batch(self, n_rows: int) -> Any: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


Replan = Callable[[int, Clock], int]


class Trainer:
    """A model, its optimizer and its data, and where they stand."""

    def __init__(
        self,
        model: DeepseekV3,
        tokenizer: Tokenizer,
        stream: Stream,
        heldout: Sequence[str],
        options: TrainOptions,
        *,
        arithmetic: Arithmetic | None = None,
        layout: Layout | None = None,
        weights: Weights = (),
        objective: Objective | None = None,
        sampler: Sampler | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.tokenizer, self.heldout, self.options = tokenizer, heldout, options
        self.stream: Any = stream  # what else it offers is between its maker and those who ask
        self.run = Path(options.run)
        self.arithmetic = arithmetic or Arithmetic()
        self.sampler, self.progress = sampler, progress or Silent()
        self.layout = layout = layout or Solo(options.micro_batch, self.arithmetic.device)
        self.model = layout.place(model, weights)
        if options.recompute:
            recompute_blocks(self.model)
        if self.arithmetic.precision == "fp8":
            use_fp8_products(self.model, options.fp8_variant)
        self.optimizer = build_optimizer(self.model, options, self.arithmetic.precision)
        self.averaged = AveragedWeights(self.model, options.ema_decay) if options.ema_decay else None
        self.update = Update(
            self.model,
            self.optimizer,
            objective or Pretraining(options.balance_alpha),
            layout,
            LoadCounter(self.model),
            self.averaged,
            autocast_for(self.arithmetic.precision, self.arithmetic.device),
            torch.tensor(tokenizer.byte_lengths(model.config.vocab_size), device=layout.device),
            options.clip_norm,
        )
        self.step, self.tokens_seen, self.skipped, self.failures = 0, 0, 0, 0
        self.metrics: MetricsLog | None = None
        self.lock: RunLock | None = None

    # -- the loop ------------------------------------------------------------------------------------------------------

    def train(self, replan: Replan | None = None) -> Outcome:
        """Run to the last step, or until SIGTERM or Ctrl-C, and save.

        Args:
            replan: asked after each step how many there shall be; without, as many as the options say.
        Raises:
            TrainingError: the loss was not finite three times in a row, or the last checkpoint could not be written.
        """
        if self.layout.leads:
            self.metrics = MetricsLog(self.run / "metrics.jsonl", resume_at=self.step if self.step else None)
        saving = Saving(self.save, self.run, self._tell_unsaved, at=self.step if self.step else -1)
        self.progress.start(self.step, self.options.steps)
        stop = StopSignal()
        try:
            with stop:
                if self.step == 0:
                    self.examine(stop)
                clock = Clock()
                while self.step < self.options.steps and not self.layout.any(bool(stop)):
                    result = self.run_step(stop)
                    if result is None:
                        break
                    clock.tick(result.tokens)
                    if replan:
                        self.options = move_end(self.step, replan(self.step, clock), self.options)
                    self._tell(result, clock)
                    paused = time.perf_counter()
                    if self._due(self.options.eval_every, apart=self.options.eval_every // 2):
                        self.examine(stop)
                    if self._due(self.options.save_every):
                        saving.on_the_way(self.step)
                    clock.pause(time.perf_counter() - paused)
                saving.at_the_end(self.step)
        finally:
            saving.abandon()
            self.progress.finish()
            if self.metrics is not None and (problem := self.metrics.close()):
                self.progress.note(problem)
            if self.lock is not None:
                self.lock.release()
        return Outcome(self.step >= self.options.steps, stop.name, self.step, newest_checkpoint(self.run))

    def run_step(self, stop: StopSignal | None = None) -> StepResult | None:
        """Do one step; None if it was told to stop half-way, and then nothing has changed.

        Raises:
            TrainingError: the third step in a row whose loss or gradient is not finite.
        """
        settings = settings_at(self.step, self.options)
        before = self.stream.state_dict()
        batch = self.stream.next_batch(settings.rows)
        result = self.update.run(batch, settings, lambda: bool(stop))
        if result is None:
            self.stream.load_state_dict(before)
            return None
        self.step += 1
        self.tokens_seen += result.tokens
        self._count_failures(result)
        return result

    def _count_failures(self, result: StepResult) -> None:
        self.failures = 0 if result.applied else self.failures + 1
        self.skipped += not result.applied
        if not result.applied:
            self.write("skipped", step=self.step, loss=str(result.loss), grad_norm=str(result.grad_norm))
            self.progress.note(f"step {self.step}: the loss or its gradient is not finite; nothing was changed")
        if self.failures >= FAILURES_IN_A_ROW:
            raise TrainingError(
                f"loss or gradient was not finite in {FAILURES_IN_A_ROW} steps in a row, the last of them {self.step}; "
                f"{last_good(self.run)} with a lower --lr (it was {self.options.lr:g})"
            )

    # -- what is told --------------------------------------------------------------------------------------------------

    def _tell(self, result: StepResult, clock: Clock) -> None:
        row = describe_step(result, clock, self.arithmetic, self.model.config, self.options, self.step)
        self.progress.update(self.step, self.options.steps, row)
        if not result.applied or self.step % self.options.log_every:
            return
        del row["left_s"]
        loads_every = max(1, self.options.steps // LOADS_KEPT)
        self.write(
            "step",
            step=self.step,
            **row,
            balance_loss=result.balance_loss,
            lr=result.settings.lr,
            grad_norm=result.grad_norm,
            rows=result.settings.rows,
            tokens=self.tokens_seen,
            max_vio=result.max_vio,
            **({"loads": result.loads} if self.step % loads_every == 0 else {}),
        )

    def measure(self, should_stop: Callable[[], bool] = lambda: False) -> Measurement | None:
        """Measure the model on the held-out texts; None if there is none, or it was told to stop."""
        if not self.heldout:
            return None  # and no process of a pipeline gathers the whole model
        return measure_model(
            self.layout.readable(self.model),
            self.tokenizer,
            self.heldout,
            self.options.seq_len,
            context=self.update.autocast,
            should_stop=should_stop,
        )

    def examine(self, stop: StopSignal) -> None:
        """Measure on held-out text and let the model write; a training of another kind has its own."""
        found = self.measure(lambda: self.layout.any(bool(stop)))
        if found is None:
            return
        acceptance = found.mtp_acceptance
        self.write("heldout", step=self.step, bits_per_byte=found.bits_per_byte, mtp_acceptance=acceptance)
        text = f"step {self.step}: {found.bits_per_byte:.3f} bits per byte on held-out text"
        if acceptance is not None:
            text += f", {acceptance:.0%} of MTP drafts would stand"
        if self.averaged and self.step:
            with self.averaged.applied_to(self.model):
                smooth = self.measure(lambda: self.layout.any(bool(stop)))
            if smooth is not None:
                self.write("averaged", step=self.step, bits_per_byte=smooth.bits_per_byte)
                text += f", {smooth.bits_per_byte:.3f} with averaged weights"
        self.progress.note(text)
        for prompt in self.options.sample_prompts if self.sampler else ():
            if not stop:
                assert self.sampler is not None
                self.write(
                    "sample", step=self.step, prompt=prompt, text=self.sampler(self.model, self.tokenizer, prompt)
                )

    def _tell_unsaved(self, problem: str) -> None:
        self.write("unsaved", step=self.step, problem=problem)
        self.progress.note(f"step {self.step}: {problem}; the training goes on")

    def write(self, kind: str, **values: Any) -> None:
        """Add a line to metrics.jsonl."""
        if self.metrics is not None:
            self.metrics.write(kind, **values)

    def _due(self, every: int, *, apart: int = 0) -> bool:
        """Whether a step is the last, or one of every so many that stands `apart` from the last."""
        left = self.options.steps - self.step
        return left <= 0 or bool(every and self.step % every == 0 and left >= apart)

    # -- where it stands -----------------------------------------------------------------------------------------------

    def save(self) -> ShardedSave | None:
        """Write a checkpoint; many processes begin to write one, each its parts, and return what is on its way.

        Raises:
            SaveError: no room or no permission; the older checkpoints still stand. All processes raise it.
        """
        tensors = moments_by_name(self.model, self.optimizer)
        if self.averaged:
            tensors |= {f"averaged.{name}": value for name, value in self.averaged.shadow.items()}
        tensors |= {"random_state": torch.get_rng_state(), **self.kept_tensors()}
        counters = {name: getattr(self, name) for name in ("step", "tokens_seen", "skipped", "failures")}
        state = counters | {
            "stream": self.stream.state_dict(),
            "precision": self.arithmetic.precision,
            "saved": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        place = self.layout, checkpoint_folder(self.run, self.step)
        return save_training(*place, self.model, self.tokenizer, tensors, state, self.options.keep)

    def kept_tensors(self) -> dict[str, Tensor]:
        """Return what else of this kind of training belongs into a checkpoint."""
        return {}

    def take_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `kept_tensors` returned."""

    def resume(self, folder: Path) -> None:
        """Go to where a checkpoint stood.

        Raises:
            CheckpointError, ResumeError, DataError: damaged, without training state, or of other data.
        """
        tensors, state = read_training(self.layout, folder, self.model, self.optimizer, self.averaged)
        self.stream.load_state_dict(state["stream"])
        torch.set_rng_state(tensors["random_state"])
        self.take_tensors(tensors)
        self.step, self.tokens_seen = state["step"], state["tokens_seen"]
        self.skipped, self.failures = state["skipped"], state["failures"]
