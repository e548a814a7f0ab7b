"""The command `deepseek-v3 evaluate`: how good a checkpoint is on a text, by the figures that the trainer tells.

    deepseek-v3 evaluate runs/demo --data book.txt
    deepseek-v3 evaluate DIR --data corpus.jsonl --kilobytes 500 --json

This file imports no PyTorch until the command runs.
"""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

import tyro

from deepseek_v3.commands.loading import load_in_format
from deepseek_v3.device import choose_device


@dataclass(frozen=True)
class EvaluateOptions:
    """Measure a checkpoint on text: bits per byte, perplexity, and how often the MTP modules guess right.

    Attributes:
        model: a run folder (its newest checkpoint), or a Hugging Face directory.
        data: stdlib, a text file, a folder, .jsonl, .parquet, or hf:NAME.
        text_key: the column of the text in rows; by default text, content or body.
        kilobytes: read so much of the texts, evenly from their beginnings; 0 for all.
        seq_len: tokens a window; windows overlap by half.
        dtype: float32, bfloat16, or fp8 (all matrices in blocks of 8 bits, the head too); by default as stored.
        device: auto, cpu or cuda; auto takes a GPU where PyTorch sees one.
        without_mtp: leave the multi-token prediction layers out.
        json: print one JSON object instead of lines.
        quiet: no progress bar.
    """

    model: tyro.conf.Positional[str]
    data: str = "stdlib"
    text_key: str | None = None
    kilobytes: int = 0
    seq_len: int = 256
    dtype: str | None = None
    device: str = "auto"
    without_mtp: bool = False
    json: bool = False
    quiet: bool = False


def run_evaluate(options: EvaluateOptions) -> None:
    """Load, measure, and print the figures.

    Raises:
        ValueError: options that cannot work, no tokenizer, or no text.
    """
    if options.seq_len < 2 or options.kilobytes < 0:
        raise ValueError(f"--seq-len {options.seq_len} must be at least 2, --kilobytes {options.kilobytes} at least 0")
    device = choose_device(options.device)
    texts = read_texts(options)
    from deepseek_v3.native.heap import keep_freed_memory
    from deepseek_v3.training.evaluate import measure_model

    model, tokenizer = load_in_format(options.model, options.dtype, keep_fp8=False, mtp=not options.without_mtp)
    if options.seq_len > model.config.max_position_embeddings:
        limit = model.config.max_position_embeddings
        raise ValueError(f"--seq-len {options.seq_len} exceeds the model's max_position_embeddings={limit}")
    keep_freed_memory()
    with WindowBar(quiet=options.quiet) as advance:
        found = measure_model(model.to(device), tokenizer, texts, options.seq_len, advance=advance)
    assert found is not None  # nothing told it to stop
    print(json.dumps(dataclasses.asdict(found), indent=2) if options.json else describe_figures(found))


def read_texts(options: EvaluateOptions) -> list[str]:
    """Return the texts to measure on.

    Raises:
        ValueError: there is none.
    """
    from deepseek_v3.data.sources import read_documents
    from deepseek_v3.training.evaluate import cut_evenly

    texts = [document.text for document in read_documents(options.data, options.text_key, [])]
    texts = cut_evenly(texts, options.kilobytes * 1000) if options.kilobytes else [t for t in texts if t.strip()]
    if not texts:
        raise ValueError(f"--data {options.data} holds no text")
    return texts


def describe_figures(found: Any) -> str:
    """The figures as lines."""
    lines = [
        f"bits per byte   {found.bits_per_byte:.4f}  ({found.n_bytes:,} bytes)",
        f"perplexity      {found.perplexity:.3f}  ({found.n_tokens:,} tokens)",
    ]
    for depth, share in enumerate(found.acceptance_by_depth, 1):
        lines.append(f"MTP, depth {depth}    {share:.1%} of drafts would stand")
    return "\n".join(lines)


class WindowBar:
    """Windows and time left, on standard error; silent where that is no terminal."""

    def __init__(self, *, quiet: bool):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

        console = Console(stderr=True)
        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, console=console, disable=quiet or not console.is_terminal)

    def __enter__(self):
        self.progress.start()
        task = self.progress.add_task("measuring", total=None)
        return lambda done, total: self.progress.update(task, advance=done, total=total)

    def __exit__(self, *_: object) -> None:
        self.progress.stop()
