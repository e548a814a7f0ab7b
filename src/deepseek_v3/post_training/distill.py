"""Distillation: a student learns from a teacher's whole distribution, or from the texts that it writes.

    forward KL   t^2 / n  sum_rows sum_v p_v (log p_v - log q_v)     the student must cover what the teacher may say
    reverse KL   t^2 / n  sum_rows sum_v q_v (log q_v - log p_v)     the student must say nothing else than the teacher
    p = softmax(z_teacher / t),  q = softmax(z_student / t),  over the n rows that a token of an answer follows

On the level of texts the teacher writes, the rule throws wrong answers away, and the student is fine-tuned on the rest:
that needs no common vocabulary.

Letters: B rows of dialogues, S rows that predict, M of them that count, V vocabulary; p teacher, q student.
Source: arXiv:1503.02531 (temperature); arXiv:1606.07947 (texts); arXiv:2412.19437, section 5.1. By hand:
07_post_training/distillation.py.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from deepseek_v3.data.documents import DataError
from deepseek_v3.data.tokenizer import Tokenizer
from deepseek_v3.model.router import RoutingRecord
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.post_training.dialogues import Messages, make_messages
from deepseek_v3.post_training.grpo import judge_rollouts
from deepseek_v3.post_training.rewards import RewardProcess
from deepseek_v3.post_training.rollout import Writer, mix_seed
from deepseek_v3.post_training.sft import DialogueBatch, answer_labels, count_real_tokens, real_inputs, see_own_dialogue
from deepseek_v3.post_training.wording import Wording
from deepseek_v3.training.loss import IGNORED, LossParts
from deepseek_v3.training.options import OptionsError
from deepseek_v3.training.schedule import Settings
from deepseek_v3.weights.files import replace_file

WRITTEN = "written.jsonl"  # in the run folder: what the teacher wrote
AT_ONCE = 64  # problems
Divergence = Callable[[Tensor, Tensor, float], Tensor]


def forward_kl(teacher_MV: Tensor, student_MV: Tensor, temperature: float = 1.0) -> Tensor:
    """Sum KL(p || q) over rows, both softened; t^2 keeps the size of the gradient when t changes."""
    logp_MV, logq_MV = soften(teacher_MV, student_MV, temperature)
    return temperature**2 * (logp_MV.exp() * (logp_MV - logq_MV)).sum()


def reverse_kl(teacher_MV: Tensor, student_MV: Tensor, temperature: float = 1.0) -> Tensor:
    """Sum KL(q || p) over rows: the divergence seen from the student."""
    logp_MV, logq_MV = soften(teacher_MV, student_MV, temperature)
    return temperature**2 * (logq_MV.exp() * (logq_MV - logp_MV)).sum()


def soften(teacher_MV: Tensor, student_MV: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return both log-probabilities at a temperature, FP32 at least; the teacher's is given and gets no gradient.

    Raises:
        ValueError: other vocabularies, or a temperature that is not above 0.
    """
    if teacher_MV.shape != student_MV.shape or temperature <= 0:
        shapes = f"{tuple(teacher_MV.shape)} and {tuple(student_MV.shape)}"
        raise ValueError(f"logits of {shapes} at temperature={temperature}: they must fit, and it must be above 0")
    wide = torch.promote_types(student_MV.dtype, torch.float32)
    both = (teacher_MV.detach().to(wide) / temperature, student_MV.to(wide) / temperature)
    return both[0].log_softmax(-1), both[1].log_softmax(-1)


DIVERGENCES: dict[str, Divergence] = {"forward_kl": forward_kl, "reverse_kl": reverse_kl}


@dataclass(frozen=True)
class Distillation:
    """Come close to a teacher's distributions along dialogues: an objective of the trainer."""

    teacher: DeepseekV3
    divergence: Divergence
    temperature: float = 1.0
    sample_mask: bool = True

    def labels(self, batch: DialogueBatch) -> Tensor:
        """Return the tokens of answers that follow each row."""
        return answer_labels(batch)

    def __call__(self, model: DeepseekV3, batch: DialogueBatch, record: RoutingRecord, settings: Settings) -> LossParts:
        """Read the same rows by both models and compare them where a token of an answer follows."""
        inputs_BS, within = batch.tokens[:, :-1], see_own_dialogue(batch, sample_mask=self.sample_mask)
        labels_BS = answer_labels(batch)
        counted_BS = labels_BS != IGNORED
        with torch.no_grad():
            teacher_MV = self.teacher.lm_head(self.teacher.hidden_states(inputs_BS, within=within)[counted_BS])
        student_MV = model.lm_head(model.hidden_states(inputs_BS, record=record, within=within)[counted_BS])
        count_real_tokens(record, real_inputs(batch), model)
        divergence = self.divergence(teacher_MV, student_MV, self.temperature)
        nats = torch.nn.functional.cross_entropy(student_MV.detach().float(), labels_BS[counted_BS], reduction="sum")
        rows = int(counted_BS.sum())
        return LossParts(
            divergence / settings.step_rows, nats, [], rows, [], further={"divergence": float(divergence.detach())}
        )


def check_same_tokens(teacher: Tokenizer, student: Tokenizer) -> None:
    """Refuse to compare distributions over different vocabularies.

    Raises:
        OptionsError: the tokenizers differ.
    """
    if teacher.to_json() != student.to_json():
        raise OptionsError(
            "teacher and student have different tokenizers, so their distributions cannot be compared; "
            "give --loss labels: then the teacher writes and the student reads"
        )


def write_lessons(
    process: RewardProcess, writer: Writer, wording: Wording, *, problems: int, answers: int, seed: int
) -> Iterator[tuple[str, str]]:
    """Let the teacher answer problems; yield question and answer where the rule calls it right, each once."""
    asked = process.draw(f"lessons {seed}", problems)
    for start in range(0, len(asked), AT_ONCE):
        some = asked[start : start + AT_ONCE]
        prompts = [wording.ask(problem["prompt"]) for problem in some]
        rollouts = writer.write(prompts, answers, temperature=1.0, seed=mix_seed("lessons", seed, start))
        each = [problem for problem in some for _ in range(answers)]
        rewards, _ = judge_rollouts(process, wording, each, rollouts)
        right = [
            (problem["prompt"], wording.read(rollout.text_tokens))
            for problem, rollout, reward in zip(each, rollouts, rewards)
            if reward >= 1
        ]
        yield from dict.fromkeys(right)


def keep_lessons(path: Path, lessons: Iterator[tuple[str, str]]) -> int:
    """Write lessons as dialogues; return how many.

    Raises:
        DataError: there is none: the teacher was never right.
    """
    lines = [json.dumps({"prompt": prompt, "completion": text}) for prompt, text in lessons]
    if not lines:
        raise DataError("the teacher gave no right answer; ask more --problems, or teach it first")
    replace_file(path, ("\n".join(lines) + "\n").encode())
    return len(lines)


def solved_problems(process: RewardProcess, count: int, seed: object, **where: bool) -> Iterator[tuple[str, Messages]]:
    """Yield problems with a right answer of the task's own, as dialogues.

    Args:
        where: held_out, different: as of `RewardProcess.draw`.
    Raises:
        DataError: the task shows no answers.
    """
    if not process.about()["demonstrates"]:
        raise DataError(f"{process.task} has no demonstrate(problem), so there is nothing to learn from; give --data")
    for number, (prompt, answer) in enumerate(process.solve(f"examples {seed}", count, **where), 1):
        yield f"{process.task}:{number}", make_messages(prompt, answer)
