"""The flags of `sft`, `grpo` and `distill`: what all three share, and what each adds. Imports no PyTorch.

Each becomes the options of the one trainer by `training()`; what of them may change on a resume is said by `fixed`.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar

import tyro

from deepseek_v3.post_training.option_checks import (
    check_choice,
    check_counts,
    check_fractions,
    check_numbers,
    check_shared,
)
from deepseek_v3.training.options import OptionsError, TrainOptions

LOSSES = ("grpo", "dr_grpo", "dapo", "gspo", "cispo")
DISTILLATIONS = ("forward_kl", "reverse_kl", "labels")
CONTROLS = ("none", "random", "flipped")
SAMPLERS = ("fp32", "bf16", "fp8")


@dataclass(frozen=True)
class PostTrainingOptions:
    """What every kind of post-training is told.

    Attributes:
        run: the run folder: config, tokenizer, checkpoints, metrics.jsonl, report.html.
        resume: go on from the newest checkpoint of the run folder.
        steps: updates in all.
        lr: peak learning rate.
        lr_end: where a cosine from the peak ends, as part of it; 1 keeps the rate constant.
        warmup_steps: linear from 0.
        micro_batch: rows per forward pass; a step accumulates as many as it needs.
        weight_decay: on matrices.
        clip_norm: the gradient's norm is cut to this.
        bias_speed: gamma, the step of the routing bias; 0 keeps the experts' loads as they were learned.
        exam_problems: held-out problems that every examination asks.
        exam_answers: drawn answers to each of them, for pass@1 and pass@k.
        shown: held-out problems whose answers stand in the report.
        stop_at: end once this share of held-out problems is answered right greedily; 0 never does.
        limit_s: what the rule may take for one answer, in seconds.
        precision: fp32, bf16, or auto: bf16 where this machine multiplies it 1.5 times faster.
        device: cpu, cuda, or auto: a GPU where PyTorch sees one.
        threads: of PyTorch; 0 leaves its choice.
        seed: of the order of data, of problems and of everything drawn.
        eval_every: steps between examinations; 0 for only the last.
        save_every: steps between checkpoints; 0 for only the last.
        keep: how many checkpoints stay.
        log_every: steps between lines of metrics.jsonl.
    """

    run: str = "runs/post"
    resume: bool = False
    steps: int = 200
    lr: float = 1e-3
    lr_end: float = 1.0
    warmup_steps: int = 5
    micro_batch: int = 64
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    bias_speed: float = 0.0
    exam_problems: int = 200
    exam_answers: int = 8
    shown: int = 4
    stop_at: float = 0.0
    limit_s: float = 2.0
    precision: str = "fp32"
    device: str = "auto"
    threads: int = 0
    seed: int = 0
    eval_every: int = 20
    save_every: int = 100
    keep: int = 2
    log_every: int = 1

    given: ClassVar[frozenset[str]] = frozenset()  # set on an instance: the flags of its command line
    command: ClassVar[str] = "post"
    fixed: ClassVar[tuple[str, ...]] = ("seed",)

    def __post_init__(self) -> None:
        check_shared(self)

    def replace(self, **changes):
        """Return a changed copy, checked again."""
        return dataclasses.replace(self, **changes)

    def training(self, rows: int, seq_len: int, mtp_weight: float = 0.0) -> TrainOptions:
        """Return what the trainer is told; `rows` of a step and their length are of the kind."""
        own, known = ({f.name for f in dataclasses.fields(kind)} for kind in (PostTrainingOptions, TrainOptions))
        falls = 0.0 if self.lr_end < 1 else 1.0
        return TrainOptions(
            **{name: getattr(self, name) for name in own & known - {"lr_end"}},
            batch_size=rows,
            seq_len=seq_len,
            mtp_weight=mtp_weight,
            mtp_weight_final=mtp_weight,
            constant_fraction=falls,
            decay_fraction=1.0,
            final_fraction=1.0,
            lr_end=min(1.0, self.lr_end),
            bias_stop_fraction=1.0,
            balance_alpha=0.0,
        )


@dataclass(frozen=True)
class SftOptions(PostTrainingOptions):
    """Fine-tune on dialogues: the loss is on answers only.

    Attributes:
        start: the run folder or checkpoint to begin with.
        data: dialogues.jsonl: a line has messages, or prompt and completion.
        task: a task whose held-out problems are asked; without --data its solved problems are the dialogues.
        examples: solved problems to learn from, without --data: drawn once; 0 draws others as long as it learns.
        heldout_fraction: part of the dialogues that is measured and never learned from.
        seq_len: tokens per row.
        batch_size: rows per step.
        pack: several dialogues in a row.
        sample_mask: dialogues of a row do not see each other, as in the report.
        mtp_weight: lambda of the multi-token prediction modules, on answers too.
    """

    start: tyro.conf.Positional[str] = ""
    run: str = "runs/sft"
    data: str = ""
    task: str = ""
    examples: int = 0
    heldout_fraction: float = 0.05
    seq_len: int = 256
    batch_size: int = 16
    micro_batch: int = 16
    pack: bool = True
    sample_mask: bool = True
    mtp_weight: float = 0.1
    lr_end: float = 0.2  # 5e-6 to 1e-6 in the report

    command: ClassVar[str] = "sft"
    fixed: ClassVar[tuple[str, ...]] = ("seed", "start", "data", "examples", "heldout_fraction", "seq_len", "pack")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "batch_size")
        check_counts(self, "examples", least=0)
        check_counts(self, "seq_len", least=2)
        check_fractions(self, "heldout_fraction")
        check_numbers(self, "mtp_weight")
        if not self.resume and not (self.data or self.task):
            raise OptionsError("name --data dialogues.jsonl, or a --task to learn from its solved problems")


@dataclass(frozen=True)
class GrpoOptions(PostTrainingOptions):
    """Learn from right and wrong: answers are judged against the others of their group.

    Attributes:
        start: the run folder or checkpoint to begin with.
        task: addition, reverse, sort, countdown, countdown-search, sized as in addition:2; or a .py file of your own.
        loss: grpo, dr_grpo, dapo, gspo or cispo.
        questions: per step.
        group: answers to each.
        updates: steps that the answers of one rollout are spread over; beyond 1 the ratio moves and the clip acts.
        max_new_tokens: of an answer; 0 takes what the task says.
        temperature: of the draws; the policy is what is drawn from.
        clip: the lower edge of the ratio, of grpo and dr_grpo the upper one too; 0 takes the loss's own.
        clip_high: the upper edge of dapo, gspo and cispo; 0 takes the loss's own.
        beta: weight of the divergence from the model at the start; 0 keeps no reference.
        refresh_reference: steps after which the reference becomes today's model; 0 never.
        dynamic: draw further questions in place of those whose answers are all alike (DAPO).
        replay: the trainer takes the sampler's choice of experts and computes the gates again.
        importance: tokens weigh min(pi of the trainer / pi of the sampler, this); 0 weighs them alike.
        drafts: tokens that the multi-token prediction modules propose a step; the draws stay exact.
        sampler: the number format of the weights that write: fp32, bf16, or fp8.
        control: random rewards or flipped advantages, for an experiment that must not learn.
    """

    start: tyro.conf.Positional[str] = ""
    run: str = "runs/grpo"
    task: str = "addition"
    loss: str = "grpo"
    questions: int = 32
    group: int = 16
    updates: int = 1
    max_new_tokens: int = 0
    temperature: float = 1.0
    clip: float = 0.0
    clip_high: float = 0.0
    beta: float = 0.0
    refresh_reference: int = 0
    dynamic: bool = False
    replay: bool = True
    importance: float = 2.0
    drafts: int = 0
    sampler: str = "fp32"
    control: str = "none"
    lr: float = 3e-4
    micro_batch: int = 256

    command: ClassVar[str] = "grpo"
    fixed: ClassVar[tuple[str, ...]] = ("seed", "start", "task", "questions", "group", "updates", "control")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "questions", "updates")
        check_counts(self, "group", least=2)
        check_counts(self, "max_new_tokens", "drafts", "refresh_reference", least=0)
        check_numbers(self, "clip", "clip_high", "beta", "importance")
        check_choice(self, loss=LOSSES, sampler=SAMPLERS, control=CONTROLS)
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise OptionsError(f"--temperature {self.temperature} must be a positive number: rewards need draws")
        if not self.task.strip():
            raise OptionsError("--task is empty; leave it out for 'addition', or name one")
        if self.clip_high and self.loss in ("grpo", "dr_grpo"):
            raise OptionsError(f"--loss {self.loss} has one edge for both sides: give --clip, not --clip-high")
        if self.questions * self.group % self.updates:
            raise OptionsError(
                f"--updates {self.updates} must divide {self.questions} questions x {self.group} answers"
            )


@dataclass(frozen=True)
class DistillOptions(PostTrainingOptions):
    """Teach a student by a teacher: along texts, by its whole distribution or by what it writes.

    Attributes:
        teacher: the run folder or checkpoint that teaches.
        student: the run folder or checkpoint that learns.
        data: dialogues.jsonl to learn along; without it the teacher writes answers to problems of --task.
        task: a task: what the teacher's answers are held against, and what the student is examined in.
        loss: forward_kl (cover what the teacher may say), reverse_kl (say nothing else), or labels (texts alone).
        temperature: both distributions are softened by it.
        problems: that the teacher answers, without --data.
        answers: to each; the right ones are kept, each once.
        heldout_fraction: part of the dialogues that is measured and never learned from.
        seq_len: tokens per row.
        batch_size: rows per step.
        pack: several dialogues in a row.
        sample_mask: dialogues of a row do not see each other.
    """

    teacher: tyro.conf.Positional[str] = ""
    student: tyro.conf.Positional[str] = ""
    run: str = "runs/distill"
    data: str = ""
    task: str = ""
    loss: str = "forward_kl"
    temperature: float = 1.0
    problems: int = 1000
    answers: int = 4
    heldout_fraction: float = 0.05
    seq_len: int = 256
    batch_size: int = 16
    micro_batch: int = 16
    pack: bool = True
    sample_mask: bool = True

    command: ClassVar[str] = "distill"
    fixed: ClassVar[tuple[str, ...]] = (
        *("seed", "teacher", "student", "data", "task", "problems", "answers"),
        *("heldout_fraction", "seq_len", "pack"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "problems", "answers", "batch_size")
        check_counts(self, "seq_len", least=2)
        check_fractions(self, "heldout_fraction")
        check_choice(self, loss=DISTILLATIONS)
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise OptionsError(f"--temperature {self.temperature} must be a positive number")
        if not self.resume and not (self.data or self.task):
            raise OptionsError("name --data dialogues.jsonl, or a --task whose problems the teacher answers")
