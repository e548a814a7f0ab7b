"""What the commands import, export, convert and inspect accept, and their functions. No PyTorch until one runs.

deepseek-v3 import   SOURCE TARGET    a downloaded folder (or a .gguf file), checked, with a manifest
deepseek-v3 export   SOURCE TARGET    for others: bf16, fp32, fp8, or gguf
deepseek-v3 convert  SOURCE TARGET    from any of them to any of them
deepseek-v3 inspect  FOLDER           what it holds, from its headers
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

Format = Literal["keep", "bf16", "fp32", "fp8", "gguf"]


@dataclass(frozen=True)
class ConvertOptions:
    """Rewrite a checkpoint in another format, streamed: memory stays small whatever its size.

    Attributes:
        source: a folder with config.json and .safetensors, or a .gguf file of the deepseek2 architecture.
        target: the new folder, or a .gguf file.
        to: the format of the weights; keep leaves each tensor as it is. gguf writes one file for llama.cpp.
        gguf_type: the number format inside a .gguf file.
        without_mtp: leave the multi-token prediction layers out (gguf always does).
        shard_mb: at most so many MB of tensors per file.
        skip_verify: do not hold the source against its SHA-256 manifest.
        follow_links: accept shards that are links out of the folder, as in a download cache.
        quiet: no progress bar.
    """

    source: tyro.conf.Positional[str]
    target: tyro.conf.Positional[str]
    to: Format = "keep"
    gguf_type: Literal["f32", "f16", "bf16"] = "bf16"
    without_mtp: bool = False
    shard_mb: float = 4000.0
    skip_verify: bool = False
    follow_links: bool = False
    quiet: bool = False


@dataclass(frozen=True)
class ImportOptions(ConvertOptions):
    """Read a released folder or a .gguf file, check all of it, and write it here with a manifest.

    The attributes are those of `convert`; `to` keeps every tensor's own format unless told.
    """


@dataclass(frozen=True)
class ExportOptions(ConvertOptions):
    """Write a checkpoint for others: Hugging Face BF16, FP32 or FP8, or GGUF.

    The attributes are those of `convert`; `to` is bf16 unless told.
    """

    to: Format = "bf16"


@dataclass(frozen=True)
class InspectOptions:
    """List what a checkpoint holds, and what is missing or unexpected, without loading it.

    Attributes:
        folder: with config.json and .safetensors files.
        verify: also hold every byte against the SHA-256 manifest.
        without_mtp: do not expect the multi-token prediction layers.
        follow_links: accept shards that are links out of the folder.
        json: print one JSON object instead of tables.
    """

    folder: tyro.conf.Positional[str]
    verify: bool = False
    without_mtp: bool = False
    follow_links: bool = False
    json: bool = False


def newest_of_run(source: str) -> str:
    """Return the newest checkpoint of a run folder; anything else as it is."""
    steps = sorted(Path(source).glob("checkpoints/step-????????"))
    return str(steps[-1]) if steps else source


def run_convert(options: ConvertOptions) -> None:
    """Convert between folders and .gguf files."""
    if not (options.source.strip() and options.target.strip()):
        raise ValueError("SOURCE and TARGET must have a name; the target is a new folder or a .gguf file")
    options = dataclasses.replace(options, source=newest_of_run(options.source))
    to_gguf = options.to == "gguf" or options.target.endswith(".gguf")
    if to_gguf and options.to in ("fp32", "fp8"):
        raise ValueError(f"--to {options.to} does not go into a .gguf file; choose its numbers with --gguf-type")
    with _progress_bar(quiet=options.quiet) as advance:
        if options.source.endswith(".gguf"):
            from deepseek_v3.weights.gguf import import_gguf

            if to_gguf or options.to == "fp8":
                raise ValueError("from .gguf to bf16, fp32 or keep; convert the resulting folder on from there")
            import_gguf(options.source, options.target, to=options.to, shard_bytes=_shard_bytes(options))
        elif to_gguf:
            from deepseek_v3.weights.gguf import export_gguf

            export_gguf(
                options.source,
                options.target,
                number_type=options.gguf_type,
                skip_verify=options.skip_verify,
                follow_links=options.follow_links,
                advance=advance,
            )
        else:
            from deepseek_v3.weights.convert import convert_checkpoint

            convert_checkpoint(
                options.source,
                options.target,
                to=options.to,
                mtp=not options.without_mtp,
                shard_bytes=_shard_bytes(options),
                skip_verify=options.skip_verify,
                follow_links=options.follow_links,
                advance=advance,
            )
    print(f"wrote {options.target}")


run_import = run_export = run_convert


def run_inspect(options: InspectOptions) -> int:
    """Print the tables; the exit code is 1 when something does not fit."""
    from deepseek_v3.weights.inspect import inspect_checkpoint, print_inspection

    folder = Path(newest_of_run(options.folder))
    found = inspect_checkpoint(
        folder, verify=options.verify, follow_links=options.follow_links, mtp=not options.without_mtp
    )
    if options.json:
        import json

        print(json.dumps(found.to_dict(), indent=2))
    else:
        print_inspection(found)
    return int(bool(found.problems))


def _shard_bytes(options: ConvertOptions) -> int:
    if not options.shard_mb > 0:
        raise ValueError(f"--shard-mb {options.shard_mb} must be above 0")
    return max(int(options.shard_mb * 10**6), 1)


class _progress_bar:
    """Bytes, speed and time left, on standard error; silent where that is no terminal."""

    def __init__(self, *, quiet: bool):
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        console = Console(stderr=True)
        self.progress = Progress(*columns, console=console, disable=quiet or not console.is_terminal)

    def __enter__(self):
        self.progress.start()
        task = self.progress.add_task("converting", total=None)
        return lambda n_bytes, total: self.progress.update(task, advance=n_bytes, total=total)

    def __exit__(self, *_: object) -> None:
        self.progress.stop()
