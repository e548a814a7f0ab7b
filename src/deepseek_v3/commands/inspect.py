"""The command `deepseek-v3 inspect`: what a checkpoint holds, from its headers."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from deepseek_v3.commands.rewriting import newest_of_run


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
