"""From flags to a trainer that learns from dialogues: fine-tuning and distillation."""

from collections.abc import Iterator
from pathlib import Path

from deepseek_v3.data.tokenizer import Tokenizer
from deepseek_v3.post_training.dialogues import Dialogue, Messages, encode_dialogues, hold_out, read_dialogues
from deepseek_v3.post_training.distill import (
    DIVERGENCES,
    WRITTEN,
    Distillation,
    check_same_tokens,
    keep_lessons,
    solved_problems,
    write_lessons,
)
from deepseek_v3.post_training.options import DistillOptions, SftOptions
from deepseek_v3.post_training.rollout import Writer
from deepseek_v3.post_training.session import Desk, find_checkpoint, prepare, read_model, record_run
from deepseek_v3.post_training.sft import (
    POOL,
    DialogueStream,
    FineTuning,
    FreshDialogues,
    answer_labels,
    measure_answers,
    stack_rows,
)
from deepseek_v3.post_training.trainer import Extras, PostTrainer
from deepseek_v3.post_training.wording import Wording
from deepseek_v3.training.loss import IGNORED
from deepseek_v3.training.objective import Objective
from deepseek_v3.training.options import OptionsError
from deepseek_v3.training.progress import Progress

MEASURED = 256  # held-out dialogues at most
MEASURED_AT_ONCE = 32


def prepare_sft(options: SftOptions, progress: Progress | None = None) -> PostTrainer:
    """Build everything that fine-tuning needs."""
    return prepare(options, build_sft, progress)


def prepare_distill(options: DistillOptions, progress: Progress | None = None) -> PostTrainer:
    """Build everything that distillation needs."""
    return prepare(options, build_distill, progress)


def build_sft(desk: Desk) -> PostTrainer:
    """Read the dialogues, or the solved problems of the task: so many, or others in every epoch."""
    options = desk.options
    if not (options.data or options.examples or options.task.endswith(".py")):
        return build_on_fresh(desk)
    if options.data:
        rows, name = read_dialogues(options.data), options.data
    else:
        assert desk.process is not None
        rows, name = solved_problems(desk.process, options.examples or 1, options.seed), f"task {options.task}"
    return build_from_rows(desk, rows, name, FineTuning(options.sample_mask), options.mtp_weight)


def build_on_fresh(desk: Desk) -> PostTrainer:
    """Draw solved problems as the training needs them; what is measured is held out."""
    options, process, room = desk.options, desk.process, check_room(desk)
    assert process is not None

    def encode(rows: Iterator[tuple[str, Messages]]) -> list[Dialogue]:
        return encode_dialogues(desk.wording.template, desk.tokenizer, rows, room)

    def draw(epoch: int) -> list[Dialogue]:
        return encode(solved_problems(process, POOL, f"{options.seed} {epoch}"))

    where = {"held_out": True, "different": True}
    held_out = encode(solved_problems(process, MEASURED, "measured", **where)) if options.heldout_fraction else []
    name = f"task {options.task}, drawn anew"
    desk.say(f"{name}: {POOL:,} solved problems an epoch; {len(held_out):,} others are held out")
    stream = FreshDialogues(draw, name, room, desk.wording.pad, seed=options.seed, pack=options.pack)
    trainer = put_together(desk, stream, held_out, FineTuning(options.sample_mask), options.mtp_weight)
    record_run(desk, data=name)
    return trainer


def build_distill(desk: Desk) -> PostTrainer:
    """Read the teacher; let it write where there are no dialogues."""
    options = desk.options
    if not options.teacher.strip():
        raise OptionsError("name the teacher and the student, as in: deepseek-v3 distill runs/large runs/small")
    home = find_checkpoint(Path(options.teacher))
    teacher = read_model(home).requires_grad_(False).to(desk.arithmetic.device)
    wording = Wording(Tokenizer.from_file(home))
    if options.loss != "labels":
        check_same_tokens(wording.tokenizer, desk.tokenizer)
    path = Path(options.data) if options.data else teach(desk, teacher, wording)
    objective: Objective = FineTuning(options.sample_mask)
    if options.loss != "labels":
        divergence = DIVERGENCES[options.loss]
        objective = Distillation(teacher, divergence, options.temperature, options.sample_mask)
    return build_from_rows(desk, read_dialogues(path), str(path), objective, 0.0)


def teach(desk: Desk, teacher, wording: Wording) -> Path:
    """Return the file of what the teacher wrote; a resumed run has it already."""
    path, options = desk.run / WRITTEN, desk.options
    if not (options.resume and path.is_file()):
        assert desk.process is not None
        writer = Writer(teacher, stop_tokens=wording.tokenizer.stop_ids, max_new_tokens=desk.answer_tokens())
        lessons = write_lessons(
            desk.process, writer, wording, problems=options.problems, answers=options.answers, seed=options.seed
        )
        record_run(desk)  # so that what the teacher writes is not taken for somebody else's
        count = keep_lessons(path, lessons)
        desk.say(f"the teacher wrote {count:,} right answers to {options.problems:,} problems")
    return path


def build_from_rows(
    desk: Desk, rows: Iterator[tuple[str, Messages]], name: str, objective: Objective, mtp_weight: float
) -> PostTrainer:
    """Encode and split the dialogues, and put the trainer together."""
    options, room = desk.options, check_room(desk)
    dialogues = encode_dialogues(desk.wording.template, desk.tokenizer, rows, room)
    learned, held_out = hold_out(dialogues, options.heldout_fraction)
    desk.say(f"{name}: {len(learned):,} dialogues, and {len(held_out):,} held out")
    stream = DialogueStream(learned, room, desk.wording.pad, seed=options.seed, pack=options.pack)
    trainer = put_together(desk, stream, held_out[:MEASURED], objective, mtp_weight)
    record_run(desk, data=f"{name}: {len(dialogues):,} dialogues", digest=stream.identity[-1])
    return trainer


def check_room(desk: Desk) -> int:
    """Return the tokens that a row is cut from: one more than it reads.

    Raises:
        OptionsError: the model does not reach so far.
    """
    options, most = desk.options, desk.model.config.max_position_embeddings
    if options.seq_len > most:
        raise OptionsError(f"--seq-len {options.seq_len} exceeds max_position_embeddings={most}")
    return options.seq_len + 1


def put_together(
    desk: Desk, stream: DialogueStream, held_out: list[Dialogue], objective: Objective, mtp_weight: float
) -> PostTrainer:
    """Build the trainer of a stream of dialogues."""
    options, model = desk.options, desk.model.to(desk.arithmetic.device)
    examiner = Writer(model, stop_tokens=desk.tokenizer.stop_ids, max_new_tokens=desk.answer_tokens())
    extras = Extras(
        desk.examination(examiner),
        measure=measure_on(desk, held_out) if held_out else None,
        stop_at=options.stop_at,
    )
    return PostTrainer(
        model, desk.tokenizer, stream, [], options.training(options.batch_size, options.seq_len, mtp_weight),
        arithmetic=desk.arithmetic, objective=objective, progress=desk.progress, extras=extras,
    )  # fmt: skip


def measure_on(desk: Desk, held_out: list[Dialogue]):
    """Return what measures held-out answers: nats, tokens, bytes."""
    pieces = [held_out[i : i + MEASURED_AT_ONCE] for i in range(0, len(held_out), MEASURED_AT_ONCE)]
    batches = [stack_rows([[d] for d in piece], desk.wording.pad) for piece in pieces]
    sizes = desk.tokenizer.byte_lengths(desk.model.config.vocab_size)
    labels = [label for batch in batches for label in answer_labels(batch).flatten().tolist() if label != IGNORED]
    n_bytes = sum(sizes[label] for label in labels)

    def measure() -> tuple[float, int, int]:
        device = desk.model.norm.weight.device
        return *measure_answers(desk.model, [b.to(device) for b in batches], sample_mask=True), n_bytes

    return measure
