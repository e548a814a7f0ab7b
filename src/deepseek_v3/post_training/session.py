"""From flags to a trainer of post-training that stands ready, and what a run folder records of it."""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from deepseek_v3.data.tokenizer import Tokenizer
from deepseek_v3.device import choose_device
from deepseek_v3.memory import check_memory
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.post_training.examination import Examination
from deepseek_v3.post_training.grpo import RolloutStream, choose_rule
from deepseek_v3.post_training.options import GrpoOptions, PostTrainingOptions
from deepseek_v3.post_training.policy import PolicyGradient, measure_mismatch, score_in_pieces
from deepseek_v3.post_training.rewards import RewardProcess
from deepseek_v3.post_training.rollout import Writer
from deepseek_v3.post_training.trainer import Extras, PostTrainer
from deepseek_v3.post_training.wording import Wording
from deepseek_v3.sizing import count_parameters
from deepseek_v3.training.machine import choose_precision
from deepseek_v3.training.options import OptionsError, TrainOptions
from deepseek_v3.training.progress import Progress, Silent
from deepseek_v3.training.record import describe_run, recorded_precision
from deepseek_v3.training.results import Arithmetic
from deepseek_v3.training.run_folder import OPTIONS, RunLock, write_files
from deepseek_v3.training.session import bytes_per_weight, choose_options
from deepseek_v3.training.training_state import newest_checkpoint
from deepseek_v3.weights.load import build_empty, load_weights
from deepseek_v3.weights.opening import read_stored_config

SPARE_TOKENS = 1  # of an answer, beyond what its task calls the longest: its end


@dataclass
class Desk:
    """What every kind of post-training begins with.

    Attributes:
        run: the run folder.
        say: tells a line.
        arithmetic: precision and device.
    """

    run: Path
    options: Any
    model: DeepseekV3
    wording: Wording
    arithmetic: Arithmetic
    progress: Progress
    process: RewardProcess | None

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's."""
        return self.wording.tokenizer

    def say(self, text: str) -> None:
        """Tell a line."""
        self.progress.note(text)

    def examination(self, writer: Writer) -> Examination | None:
        """Return the held-out problems of the task, if there is one."""
        if self.process is None or not self.options.exam_problems:
            return None
        problems = self.process.draw("examination", self.options.exam_problems, held_out=True, different=True)
        problems = problems[: self.options.exam_problems]
        if not problems:
            self.say("the task has no held-out problem; nothing is examined")
            return None
        return Examination(writer, self.process, self.wording, problems, self.options.exam_answers, self.options.shown)

    def answer_tokens(self) -> int:
        """Return how many tokens an answer may have: as the options say, or as the task does."""
        asked = getattr(self.options, "max_new_tokens", 0)
        return asked or (self.process.about()["longest"] + SPARE_TOKENS if self.process else 64)


def prepare(options: PostTrainingOptions, build: Callable[[Desk], PostTrainer], progress: Progress | None = None):
    """Build a trainer; a resumed run takes its recorded options, changed where a flag was given.

    The run folder is locked until the training ends.

    Raises:
        OptionsError, DataError, ConfigError, CheckpointError: what cannot work, in one line.
    """
    run = Path(options.run)
    options = choose_options(run, options)
    lock = RunLock(run)
    process = None
    try:
        process = open_task(options)
        trainer = build(lay_out(run, options, process, progress or Silent()))
        if options.resume:
            trainer.resume(newest_checkpoint(run))
            trainer.progress.note(f"going on from step {trainer.step}")
    except BaseException:
        if process is not None:
            process.close()
        lock.give_up()
        raise
    trainer.lock, trainer.extras.process = lock, process
    return trainer


def open_task(options: Any) -> RewardProcess | None:
    """Return the process of the task, if the options name one."""
    return RewardProcess(options.task, options.limit_s) if options.task else None


def lay_out(run: Path, options: Any, process: RewardProcess | None, progress: Progress) -> Desk:
    """Read the model to begin with, or that of the run, and its tokenizer."""
    if options.threads:
        torch.set_num_threads(options.threads)
    start = getattr(options, "student", "") or getattr(options, "start", "")
    if not options.resume and not start.strip():
        raise OptionsError("name the run folder or checkpoint to begin with, as in: deepseek-v3 grpo runs/sft")
    home = find_checkpoint(run if options.resume else Path(start))
    model = read_model(home)
    wish = recorded_precision(run) if options.resume and options.precision == "auto" else options.precision
    device = choose_device(options.device)
    precision = wish if wish != "auto" else choose_precision(wish, device)[0]
    torch.manual_seed(options.seed)
    wording = Wording(Tokenizer.from_file(home))
    return Desk(run, options, model, wording, Arithmetic(precision, 0.0, device), progress, process)


def find_checkpoint(path: Path) -> Path:
    """Return a checkpoint folder: the newest of a run, or the folder itself."""
    return newest_checkpoint(path) if (path / "checkpoints").is_dir() else path


def read_model(home: Path) -> DeepseekV3:
    """Return a model in FP32, ready to learn.

    Raises:
        CheckpointError, ConfigError: it is missing, damaged or foreign.
    """
    config = read_stored_config(home).replace(torch_dtype="float32", quantization_config=None)
    check_memory("training this model", count_parameters(config).total * bytes_per_weight(TrainOptions()))
    model = build_empty(config, torch.float32)
    load_weights(model, home)
    return model


def record_run(desk: Desk, **facts: Any) -> None:
    """Write what the run folder records."""
    record = describe_run(
        desk.options, command=type(desk.options).command, precision=desk.arithmetic.precision, **facts
    )
    text = json.dumps(desk.model.config.to_dict(), indent=2) + "\n"
    write_files(desk.run, {OPTIONS: record, "config.json": text, **desk.tokenizer.files()})


def prepare_grpo(options: GrpoOptions, progress: Progress | None = None) -> PostTrainer:
    """Build everything that GRPO on a task needs."""
    return prepare(options, build_grpo, progress)


def build_grpo(desk: Desk) -> PostTrainer:
    """Put rollouts, rewards, the loss and the examination together."""
    options, process, longest = desk.options, desk.process, desk.answer_tokens()
    assert process is not None
    rows, rule = options.questions * options.group // options.updates, choose_rule(options, longest)
    objective = PolicyGradient(rule.loss, rule.clipped, options.temperature, options.importance, options.replay)
    model = desk.model.to(desk.arithmetic.device)
    stops = desk.tokenizer.stop_ids
    writer = Writer(
        model, stop_tokens=stops, max_new_tokens=longest, choices=True, drafts=options.drafts,
        number_format=options.sampler,
    )  # fmt: skip
    reference = copy.deepcopy(model).requires_grad_(False) if options.beta else None
    trainer: PostTrainer

    def score(judge: DeepseekV3, batch, *, replay: bool):
        with trainer.update.autocast():
            return score_in_pieces(judge, batch, options.micro_batch, options.temperature, replay=replay)

    stream = RolloutStream(
        writer, process, desk.wording, options, rule.judge,
        score_old=partial(score, model, replay=options.replay) if options.updates > 1 else None,
        score_reference=partial(score, reference, replay=options.replay) if reference else None,
    )  # fmt: skip

    def meter() -> dict[str, float]:
        batch = stream.write_for_meter()  # by today's weights: those of a step's batch have moved since
        with trainer.update.autocast():
            return measure_mismatch(model, batch, options.micro_batch, options.temperature)

    examiner = Writer(model, stop_tokens=stops, max_new_tokens=longest)
    extras = Extras(
        desk.examination(examiner), meter=meter, stop_at=options.stop_at, reference=reference,
        refresh=options.refresh_reference,
    )  # fmt: skip
    trainer = PostTrainer(
        model, desk.tokenizer, stream, [], options.training(rows, desk.model.config.max_position_embeddings),
        arithmetic=desk.arithmetic, objective=objective, progress=desk.progress, extras=extras,
    )  # fmt: skip
    record_run(desk, data=f"task {options.task}, {options.questions} questions x {options.group} answers a step")
    return trainer
