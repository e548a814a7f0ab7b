"""The command `deepseek-v3 import`: what others wrote, checked whole, becomes a folder of ours with a manifest.

deepseek-v3 import DOWNLOADED_FOLDER DIR
deepseek-v3 import model.gguf DIR
"""

from dataclasses import asdict, dataclass
from typing import Literal

import tyro

from deepseek_v3.commands.rewriting import check_names, rewrite_folder, shard_bytes


@dataclass(frozen=True)
class ImportOptions:
    """Read a downloaded folder or a .gguf file, check all of it, and write it here with a manifest.

    Attributes:
        source: a folder with config.json and .safetensors, or a .gguf file of the deepseek2 architecture.
        target: the new folder.
        to: the format of the weights; keep leaves each tensor as it is. For another one, `export` the result.
        without_mtp: leave the multi-token prediction layers out (a .gguf file has none).
        shard_mb: at most so many MB of tensors per file.
        skip_verify: do not hold the source against its SHA-256 manifest, if it has one.
        follow_links: accept shards that are links out of the folder, as in a download cache.
        quiet: no progress bar.
    """

    source: tyro.conf.Positional[str]
    target: tyro.conf.Positional[str]
    to: Literal["keep", "bf16", "fp32"] = "keep"
    without_mtp: bool = False
    shard_mb: float = 4000.0
    skip_verify: bool = False
    follow_links: bool = False
    quiet: bool = False


def run_import(options: ImportOptions) -> None:
    """Write a folder of ours."""
    check_names(options.source, options.target)
    if options.target.endswith(".gguf"):
        raise ValueError(f"{options.target}: import writes a folder; `deepseek-v3 export` writes .gguf files")
    if options.source.endswith(".gguf"):
        from deepseek_v3.weights.gguf_reader import import_gguf

        import_gguf(options.source, options.target, to=options.to, shard_bytes=shard_bytes(options.shard_mb))
    else:
        rewrite_folder(**asdict(options))
    print(f"wrote {options.target}")
