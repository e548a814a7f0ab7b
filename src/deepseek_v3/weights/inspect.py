"""What a checkpoint holds, from config and headers alone: parameters per part, formats, bytes, and what does not fit.

deepseek-v3 inspect DIR
"""

from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

from deepseek_v3.config import ModelConfig
from deepseek_v3.config_keys import IGNORED_KEYS
from deepseek_v3.weights.errors import CheckpointError, clip
from deepseek_v3.weights.manifest import MANIFEST, verify_manifest
from deepseek_v3.weights.names import SCALE_SUFFIX, scale_name
from deepseek_v3.weights.opening import open_checkpoint
from deepseek_v3.weights.stored import FP8, count_bytes, count_elements

MAX_PROBLEMS = 1000  # a wrong config may claim billions of tensors
SHOWN = 10


@dataclass
class Part:
    """One row: tensors, parameters and bytes of a part of the model, its block scales counted apart."""

    tensors: int = 0
    parameters: int = 0
    scales: int = 0
    n_bytes: int = 0
    dtypes: Counter[str] = field(default_factory=Counter)


@dataclass
class Inspection:
    """What was found; `problems` are refusals that a load would raise, `notes` what it would ignore, share or widen."""

    folder: Path
    config: ModelConfig
    shards: int
    parts: dict[str, Part]
    dtypes: Counter[str]
    problems: list[str]
    notes: list[str]
    tensors: int
    n_bytes: int
    has_manifest: bool

    @property
    def parameters(self) -> int:
        """Every stored weight, copies included, block scales not."""
        return sum(part.parameters for part in self.parts.values())

    @property
    def scales(self) -> int:
        """Every FP8 block scale."""
        return sum(part.scales for part in self.parts.values())

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return {
            "folder": str(self.folder),
            "shards": self.shards,
            "tensors": self.tensors,
            "bytes": self.n_bytes,
            "parameters": self.parameters,
            "scales": self.scales,
            "dtypes": dict(self.dtypes),
            "parts": {
                name: {"tensors": p.tensors, "parameters": p.parameters, "scales": p.scales, "bytes": p.n_bytes}
                for name, p in self.parts.items()
            },
            "manifest": self.has_manifest,
            "notes": self.notes,
            "problems": self.problems,
        }


def inspect_checkpoint(
    folder: str | PathLike, *, verify: bool = False, follow_links: bool = False, mtp: bool = True
) -> Inspection:
    """Read config and headers, count, and collect everything that does not fit.

    Args:
        verify: also hold every file against the SHA-256 manifest, which reads all bytes.
    Raises:
        CheckpointError: config, index or a header cannot be read at all.
    """
    if verify:
        verify_manifest(folder)
    with open_checkpoint(folder, follow_links=follow_links, mtp=mtp) as checkpoint:
        parts: dict[str, Part] = {}
        problems: list[str] = []
        rest = dict(checkpoint.entries)
        for slot in checkpoint.slots():
            entry, scale = rest.pop(slot.name, None), None
            try:
                checkpoint.check_slot(slot)
            except CheckpointError as problem:
                problems.append(str(problem))
            if entry is not None and entry.dtype == FP8:
                scale = rest.pop(scale_name(slot.name), None)
            part = parts.setdefault(slot.part, Part())
            for found in (entry, scale):
                if found is not None:
                    part.tensors += 1
                    part.n_bytes += found.n_bytes
                    part.dtypes[found.dtype] += 1
            part.parameters += count_elements(entry) if entry else 0
            part.scales += count_elements(scale) if scale else 0
            if len(problems) >= MAX_PROBLEMS:
                problems.append("... and more: these files are of another model than config.json")
                break
        else:
            for name in islice(rest, MAX_PROBLEMS):
                kind = "a block scale of a weight that is not in FP8" if name.endswith(SCALE_SUFFIX) else "unexpected"
                problems.append(f"{checkpoint.files[name].name}: tensor {clip(name)}: {kind}")
        return Inspection(
            folder=Path(folder),
            config=checkpoint.config,
            shards=checkpoint.count_shards(),
            parts=parts,
            dtypes=Counter(entry.dtype for entry in checkpoint.entries.values()),
            problems=problems,
            notes=[*checkpoint.notes(), *note_keys(checkpoint.keys)],
            tensors=len(checkpoint.entries),
            n_bytes=count_bytes(checkpoint.entries),
            has_manifest=(Path(folder) / MANIFEST).exists(),
        )


def note_keys(keys: dict[str, Any]) -> list[str]:
    """Say which keys of config.json change no number."""
    ignored = sorted(keys.keys() & (IGNORED_KEYS - {"architectures"}))
    return [f"config.json: without meaning for the numbers, ignored: {', '.join(ignored)}"] if ignored else []


def print_inspection(found: Inspection) -> None:
    """Print the tables."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    c = found.config
    experts = f", {c.n_routed_experts} experts, {c.num_experts_per_tok} per token" if c.n_routed_experts else ""
    console.print(
        f"[bold]{escape(str(found.folder))}[/bold]  {c.model_type}: {c.num_hidden_layers} layers + "
        f"{c.num_nextn_predict_layers} MTP, width {c.hidden_size}, {c.num_attention_heads} heads{experts}"
    )
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("part")
    for title in ("tensors", "parameters", "scales", "bytes"):
        table.add_column(title, justify="right")
    table.add_column("stored in")
    for name, part in found.parts.items():
        formats = ", ".join(sorted(part.dtypes))
        table.add_row(name, *_figures(part.tensors, part.parameters, part.scales, part.n_bytes), formats)
    table.add_section()
    figures = _figures(found.tensors, found.parameters, found.scales, found.n_bytes)
    table.add_row("all", *figures, f"{found.shards} shard{'s' * (found.shards != 1)}", style="bold")
    console.print(table)
    digest = "SHA-256 manifest present" if found.has_manifest else f"no {MANIFEST}: damage would go unnoticed"
    console.print(digest)
    for note in found.notes:
        console.print(f"[yellow]note[/yellow] {escape(note)}", soft_wrap=True)
    for problem in found.problems[:SHOWN]:
        console.print(f"[red]does not fit[/red] {escape(problem)}", soft_wrap=True)
    if len(found.problems) > SHOWN:
        console.print(f"[red]... {len(found.problems) - SHOWN:,} more[/red]")
    if not found.problems:
        console.print("[green]every tensor is there, with its shape and format, and no other[/green]")


def _figures(*counts: int) -> list[str]:
    return [f"{count:,}" for count in counts]
