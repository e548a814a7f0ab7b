"""The command `deepseek-v3 export`: a checkpoint, or the newest one of a run, written in the format others want.

deepseek-v3 export runs/demo OUT --to fp8
deepseek-v3 export runs/demo model.gguf
"""

from dataclasses import asdict, dataclass
from typing import Literal

import tyro

from deepseek_v3.commands.rewriting import ByteBar, check_names, newest_of_run, rewrite_folder


@dataclass(frozen=True)
class ExportOptions:
    """Write a run or a checkpoint for others, in the format they want; streamed, so memory stays small.

    Attributes:
        source: a run folder (its newest checkpoint), or a folder with config.json and .safetensors.
        target: the new folder, or a .gguf file.
        to: the format of the weights; keep leaves each tensor as it is. gguf writes one file for llama.cpp.
        gguf_type: the number format inside a .gguf file.
        without_mtp: leave the multi-token prediction layers out.
        shard_mb: at most so many MB of tensors per file.
        skip_verify: do not hold the source against its SHA-256 manifest.
        follow_links: accept shards that are links out of the folder, as in a download cache.
        quiet: no progress bar.
    """

    source: tyro.conf.Positional[str]
    target: tyro.conf.Positional[str]
    to: Literal["bf16", "fp32", "fp8", "gguf", "keep"] = "bf16"
    gguf_type: Literal["f32", "f16", "bf16"] = "bf16"
    without_mtp: bool = False
    shard_mb: float = 4000.0
    skip_verify: bool = False
    follow_links: bool = False
    quiet: bool = False


def run_export(options: ExportOptions) -> None:
    """Write a Hugging Face folder, or a .gguf file where the target or `--to` says so."""
    check_names(options.source, options.target)
    if options.source.endswith(".gguf"):
        raise ValueError(f"{options.source} is a file of others; `deepseek-v3 import` makes it a folder of ours first")
    to_gguf = options.to == "gguf" or options.target.endswith(".gguf")
    if to_gguf and options.to in ("fp32", "fp8"):
        raise ValueError(f"--to {options.to} does not go into a .gguf file; choose its numbers with --gguf-type")
    if to_gguf:
        _write_gguf(options)
    else:
        rewrite_folder(**{name: value for name, value in asdict(options).items() if name != "gguf_type"})
    print(f"wrote {options.target}")


def _write_gguf(options: ExportOptions) -> None:
    from deepseek_v3.weights.gguf import export_gguf

    with ByteBar(quiet=options.quiet) as advance:
        export_gguf(
            newest_of_run(options.source),
            options.target,
            number_type=options.gguf_type,
            mtp=not options.without_mtp,
            skip_verify=options.skip_verify,
            follow_links=options.follow_links,
            advance=advance,
        )
