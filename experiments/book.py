"""`make book`: train the model that speaks in the chapters, and put it into book_model/ with the record of its making.

    python -m experiments.book          an hour on one core; stopped, the same command goes on

The text is written first: small stories (utils/story_book.py) and what of the standard library fits a page or two. The
trainer is that of `deepseek-v3 train`. At the end the weights are exported in BF16, and measured as they lie there:
bits per byte on held-out stories and sources, drafts that would stand, and how many questions are answered right about
stories that were never told before.
"""

import dataclasses
import hashlib
import json
import platform
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deepseek_v3.commands.rewriting import rewrite_folder
from deepseek_v3.commands.samples import continue_text
from deepseek_v3.commands.train import STOPPED
from deepseek_v3.data.corpus import Corpus, load_corpus
from deepseek_v3.data.sources import stdlib_documents
from deepseek_v3.engine.generate import generate
from deepseek_v3.model_io import load
from deepseek_v3.native.heap import keep_freed_memory
from deepseek_v3.training.evaluate import compressed_bits_per_byte, cut_evenly, measure_model
from deepseek_v3.training.metrics import read_metrics
from deepseek_v3.training.options import TrainOptions
from deepseek_v3.training.progress import choose_progress
from deepseek_v3.training.record import read_record
from deepseek_v3.training.report import write_report
from deepseek_v3.training.session import prepare_training
from deepseek_v3.training.training_state import list_checkpoints
from utils.story_book import Story, tell_story, write_book

ROOT = Path(__file__).resolve().parent.parent
RUN, MODEL = ROOT / "runs" / "book", ROOT / "book_model"
SEED = 23
NEW_SEED = 24  # of stories that are asked about and never learned from
N_STORIES = 150_000
STEPS = 11_000
LONGEST_SOURCE = 40_000  # characters; a longer file would hold a lane of the stream for half of the training
MEASURED_STORIES, MEASURED_BYTES = 350, 100_000  # held-out stories, whole; bytes of held-out sources
ASKED_STORIES = 150
LOG_LINES = 400  # of the committed log
PROMPTS = (
    "Dora was in the garden. The owl was there too. Dora found",
    "One evening the fox",
    "def read_lines(path):\n",
)


def recipe(run: Path = RUN, text: Path | None = None) -> TrainOptions:
    """Return the options of the training."""
    return TrainOptions(
        run=str(run), preset="book", data=str(text or run.with_name(run.name + "-text")), seed=SEED, fim_rate=0.0,
        lanes=64, seq_len=256, batch_size=4, micro_batch=4, steps=STEPS, lr=3e-3, warmup_steps=200,
        constant_fraction=0.625, decay_fraction=1.0, final_fraction=1.0, lr_end=0.03, bias_speed=0.005,
        precision="bf16", threads=1, eval_every=1000, eval_kilobytes=64, save_every=500, keep=2, sample_prompts=PROMPTS,
    )  # fmt: skip


def write_text(folder: Path, n_stories: int = N_STORIES) -> None:
    """Write what is learned from: a line a story, and a file for each source of this Python's standard library."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    with (folder / "stories.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(write_book(SEED, n_stories))
    for document in stdlib_documents():
        if len(document.text) < LONGEST_SOURCE:
            target = folder / "stdlib" / f"{document.name}.txt"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(document.text, encoding="utf-8")


def digest_lines(lines: Iterable[str]) -> str:
    """Return the SHA-256 of some lines."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode())
    return digest.hexdigest()


def digest_sources() -> str:
    """Return the SHA-256 of what is read of this Python's standard library."""
    short = (document for document in stdlib_documents() if len(document.text) < LONGEST_SOURCE)
    return digest_lines(f"{document.name}\0{document.text}\0" for document in short)


def train_book(options: TrainOptions, n_stories: int = N_STORIES, target: Path = MODEL) -> int:
    """Write the text, train or go on, export; returns the exit code."""
    keep_freed_memory()
    begun = bool(list_checkpoints(options.run))
    if not begun or not Path(options.data).is_dir():
        write_text(Path(options.data), n_stories)
    trainer = prepare_training(options.replace(resume=begun), sampler=continue_text, progress=choose_progress())
    outcome = trainer.train()
    write_report(trainer.run)
    if not outcome.finished:
        print(f"stopped by {outcome.stopped_by} at step {outcome.step}; the same command goes on")
        return STOPPED.get(outcome.stopped_by, 1)
    export_book(trainer.run, target, n_stories)
    return 0


def export_book(run: Path, target: Path, n_stories: int) -> None:
    """Write the weights in BF16, then the record: how they were made, and how good they are as they lie there."""
    if target.exists():
        shutil.rmtree(target)
    rewrite_folder(str(run), str(target), to="bf16", without_mtp=False, shard_mb=4000.0, skip_verify=False,
                   follow_links=False, quiet=True)  # fmt: skip
    held, steps = read_record(run), [row for row in read_metrics(run / "metrics.jsonl") if row["kind"] == "step"]
    corpus = load_corpus(held["options"]["data"], held["options"]["heldout_fraction"])
    record = {
        "command": "make book",
        "options": {**held["options"], "run": "runs/book", "data": "runs/book-text"},
        "precision": held["precision"],
        "data": held["digest"],
        "stories": {"seed": SEED, "count": n_stories, "sha256": digest_lines(write_book(SEED, n_stories)),
                    "first_1000": digest_lines(write_book(SEED, min(1000, n_stories)))},
        "sources": {"python": platform.python_version(), "sha256": digest_sources()},
        "torch": torch.__version__.split("+")[0],
        "steps": steps[-1]["step"],
        "tokens": steps[-1]["tokens"],
        "tokens_per_s": round(float(np.median([row["tokens_per_s"] for row in steps]))),
        **measure_book(target, corpus),
    }  # fmt: skip
    (target / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    write_log(run, target / "log.jsonl")
    print(json.dumps({name: record[name] for name in ("heldout", "answers", "samples")}, indent=1))


def write_log(run: Path, target: Path) -> None:
    """Keep of metrics.jsonl the first steps, every so many, and all that was measured on the way."""
    rows = read_metrics(run / "metrics.jsonl")
    every = max(1, sum(row["kind"] == "step" for row in rows) // LOG_LINES)
    kept = [row for row in rows if row["kind"] != "step" or row["step"] % every == 0 or row["step"] <= 5]
    for row in kept:
        row.pop("loads", None)
    target.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")


def measure_book(folder: Path, corpus: Corpus) -> dict[str, Any]:
    """Measure the exported model: on held-out text of both kinds, on questions, and what it writes."""
    model, tokenizer = load(folder)
    texts: dict[str, list[str]] = {"stories": [], "stdlib": []}
    for document in corpus.heldout:
        texts["stdlib" if document.name.startswith("stdlib/") else "stories"].append(document.text)
    texts = {"stories": texts["stories"][:MEASURED_STORIES], "stdlib": cut_evenly(texts["stdlib"], MEASURED_BYTES)}
    found = {}
    for kind in texts:
        figures = measure_model(model, tokenizer, texts[kind], 256)
        assert figures is not None  # nothing told it to stop
        found[kind] = {**dataclasses.asdict(figures), **compressed_bits_per_byte(texts[kind])}
    new = [tell_story(NEW_SEED, number) for number in range(ASKED_STORIES)]
    samples = {prompt: continue_text(model, tokenizer, prompt, tokens=80, temperature=0.6) for prompt in PROMPTS}
    return {"heldout": found, "answers": examine_answers(model, tokenizer, new), "samples": samples}


def examine_answers(model: Any, tokenizer: Any, stories: list[Story]) -> dict[str, list[int]]:
    """Ask after each story; return for each kind of question how many were answered right, and how many were asked."""
    counts: dict[str, list[int]] = {}
    for story in stories:
        told = " ".join(story.sentences)
        for question in story.questions:
            prompt = [tokenizer.bos_id, *tokenizer.encode(f"{told}\n{question.text}")]
            said = generate(model, prompt, max_new_tokens=16, stop_tokens=tokenizer.stop_ids)
            answer = tokenizer.decode([int(token) for token in said]).split("\n")[0].strip()
            right, asked = counts.get(question.kind, [0, 0])
            counts[question.kind] = [right + (answer == question.answer), asked + 1]
    return counts


if __name__ == "__main__":
    sys.exit(train_book(recipe()))
