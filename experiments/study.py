"""The small trainings of the four studies: a model of some hundred thousand parameters, half stories, half Python.

    python -m experiments.study --run DIR --seed 1 --lr 5e-3 --key-heads 4

Text, tokenizer and held-out text are made at the first call and are the same for every run: stories of
utils/story_book.py and pieces of the standard library, as many bytes of each. A step, its loss and its measure are
those of `deepseek-v3 train`, whose flags these are, with other defaults. A run takes half a minute to a minute of one
core and is not saved on the way: one that was stopped begins again. The standard library is that of the Python that
runs this, so another version gives other numbers; with 3.11 one piece of 94 that are measured, a page of the language
reference, is learned from too, for two files hold it.

metrics.jsonl has rows of the kind `heldout`: bits per byte of both kinds of text together, of `stories` and of `stdlib`
alone. If there are experts, the last one says how they are loaded: `uneven` is MaxVio with as much of each text, and
`apart` how differently the two are served, the mean over layers of half the sum of |share of stories - share of
stdlib|: 0 where every expert gets the same part of both, 1 where no expert serves both.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from deepseek_v3.cli import bind_values, join_repeats, parse_options
from deepseek_v3.data.sources import stdlib_documents
from deepseek_v3.data.tokenizer import Tokenizer
from deepseek_v3.model.router import RoutingRecord
from deepseek_v3.native.heap import keep_freed_memory
from deepseek_v3.training.balance import max_violation, shares_of
from deepseek_v3.training.evaluate import Measurement, cut_evenly, measure_model
from deepseek_v3.training.metrics import MetricsLog
from deepseek_v3.training.options import TrainOptions
from deepseek_v3.training.session import prepare_training
from deepseek_v3.training.trainer import Trainer
from experiments.book import LONGEST_SOURCE, NEW_SEED, SEED
from experiments.key_heads import attention_by
from utils.story_book import tell_story

HERE = Path(__file__).resolve().parent
TEXT = HERE.parent / "runs" / "ledger" / "study-text"
KIND_BYTES = 1_200_000  # of each kind of text to learn from
HELD_BYTES = 20_000  # of each kind to measure on
HELD_SOURCES = 20  # of the standard library every twentieth file is only measured
PIECE = 1500  # characters of a document that is a source: about as many tokens a lane as some stories
VOCABULARY = 512


@dataclass(frozen=True)
class StudyOptions(TrainOptions):
    """Train one small model; flags as of `deepseek-v3 train`.

    Attributes:
        key_heads: heads of keys and values, each of qk_rope_head_dim; 0 for latent attention.
    """

    key_heads: int = 0
    config: str | None = str(HERE / "study.json")
    data: str = str(TEXT / "learned")
    tokenizer: str | None = str(TEXT / "tokenizer.json")
    heldout_fraction: float = 0.01
    fim_rate: float = 0.0
    seq_len: int = 128
    batch_size: int = 8
    micro_batch: int = 8
    steps: int = 960
    lr: float = 5e-3
    warmup_steps: int = 40
    constant_fraction: float = 0.5
    decay_fraction: float = 1.0
    final_fraction: float = 1.0
    lr_end: float = 0.05
    bias_speed: float = 0.01
    precision: str = "fp32"
    device: str = "cpu"
    threads: int = 1
    eval_every: int = 320


def stories(seed: int, n_bytes: int) -> list[str]:
    """Return as many stories as there is room for."""
    told: list[str] = []
    room = n_bytes
    while room > 0:
        told.append(tell_story(seed, len(told)).text)
        room -= len(told[-1].encode())
    return told


def pieces(text: str) -> list[str]:
    """Cut a source at line ends into pieces of about PIECE characters."""
    found, at = [], 0
    while at < len(text):
        end = text.find("\n", at + PIECE) + 1 or len(text)
        found.append(text[at:end])
        at = end
    return found


def sources(*, held: bool, n_bytes: int) -> list[str]:
    """Return pieces of the standard library, spread over its files; those held out are of files of their own."""
    files = [document.text for document in stdlib_documents() if len(document.text) < LONGEST_SOURCE]
    chosen = [text for i, text in enumerate(files) if (i % HELD_SOURCES == 0) == held]
    return [piece for text in cut_evenly(chosen, n_bytes) for piece in pieces(text)]


def write_text(folder: Path = TEXT) -> None:
    """Write what is learned from, the tokenizer, and what is measured on; all or nothing."""
    if folder.exists():
        return
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    (part / "learned").mkdir(parents=True)
    texts = [*stories(SEED, KIND_BYTES), *sources(held=False, n_bytes=KIND_BYTES)]
    with (part / "learned" / "text.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    (part / "tokenizer.json").write_bytes(Tokenizer.train(texts, VOCABULARY).files()["tokenizer.json"])
    held = {"stories": stories(NEW_SEED, HELD_BYTES), "stdlib": sources(held=True, n_bytes=HELD_BYTES)}
    (part / "held.json").write_text(json.dumps(held), encoding="utf-8")
    part.rename(folder)


def measure_kinds(trainer: Trainer, held: dict[str, list[str]]) -> dict[str, float | None]:
    """Measure on both kinds of held-out text together and alone."""
    found: dict[str, Measurement] = {}
    for kind, texts in held.items():
        figures = measure_model(trainer.model, trainer.tokenizer, texts, trainer.options.seq_len)
        assert figures is not None  # nothing told it to stop
        found[kind] = figures
    n_bytes = sum(figures.n_bytes for figures in found.values())
    both = sum(figures.bits_per_byte * figures.n_bytes for figures in found.values()) / n_bytes
    return {"bits_per_byte": both, **{kind: figures.bits_per_byte for kind, figures in found.items()},
            "mtp_acceptance": found["stories"].mtp_acceptance}  # fmt: skip


@torch.no_grad()
def load_experts(trainer: Trainer, texts: Sequence[str]) -> dict[int, Tensor]:
    """Return how many tokens of some texts each expert of each layer gets, [E] by layer."""
    counts: dict[int, Tensor] = {}
    for text in texts:
        ids = trainer.tokenizer.encode(text)[: trainer.options.seq_len]
        record = RoutingRecord()
        trainer.model.hidden_states(torch.tensor([ids]), record=record)
        for layer, count_E in record.counts.items():
            counts[layer] = counts.get(layer, 0) + count_E
    return counts


def measure_experts(trainer: Trainer, held: dict[str, list[str]]) -> dict[str, object]:
    """Return how differently the experts are loaded by the two kinds of text, and how unevenly by both."""
    loads = {kind: load_experts(trainer, texts) for kind, texts in held.items()}
    shares = {kind: [count.double() / count.sum() for count in counts.values()] for kind, counts in loads.items()}
    halves = [float((a - b).abs().sum() / 2) for a, b in zip(shares["stories"], shares["stdlib"])]
    both = [a + b for a, b in zip(shares["stories"], shares["stdlib"])]  # as much of each kind
    return {"apart": sum(halves) / len(halves), "uneven": max_violation(both),
            "loads": {kind: shares_of(counts) for kind, counts in loads.items()}}  # fmt: skip


def train_study(options: StudyOptions) -> None:
    """Train from the first step to the last; a run that was stopped begins again."""
    keep_freed_memory()
    write_text()
    held = json.loads((TEXT / "held.json").read_text(encoding="utf-8"))
    with attention_by(options.key_heads):
        trainer = prepare_training(options)
    trainer.metrics = MetricsLog(trainer.run / "metrics.jsonl")
    while trainer.step < options.steps:
        trainer.run_step()
        if trainer.step % options.eval_every == 0 or trainer.step == options.steps:
            last = trainer.step == options.steps and trainer.model.config.n_routed_experts is not None
            found = {**measure_kinds(trainer, held), **(measure_experts(trainer, held) if last else {})}
            trainer.write("heldout", step=trainer.step, **found)
    trainer.metrics.close()
    if trainer.lock is not None:
        trainer.lock.release()


def read_words(words: Sequence[str]) -> StudyOptions:
    """Read the flags of a command line."""
    return parse_options(StudyOptions, "study", join_repeats(StudyOptions, bind_values(StudyOptions, list(words))))


def main(words: Sequence[str] | None = None) -> int:
    """Read the command line and train."""
    train_study(read_words(sys.argv[1:] if words is None else words))
    return 0


if __name__ == "__main__":
    sys.exit(main())
