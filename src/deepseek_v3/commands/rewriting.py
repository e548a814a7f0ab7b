"""What `import` and `export` share: which folder a run stands for, the size of a shard, the bar of progress."""

import os
from pathlib import Path


def newest_of_run(source: str) -> str:
    """Return the newest checkpoint of a run folder, the same one that a resume takes; anything else as it is."""
    if not (Path(source) / "checkpoints").is_dir():
        return source
    from deepseek_v3.training.training_state import newest_checkpoint

    return str(newest_checkpoint(source))


def check_names(source: str, target: str) -> None:
    """Refuse a source or target without a name, and a target that is the source, holds it, or holds a training.

    Raises:
        ValueError: naming the target and the mend.
    """
    if not (source.strip() and target.strip()):
        raise ValueError("SOURCE and TARGET must have a name; the target is a new folder or a .gguf file")
    here, there = Path(os.path.realpath(source)), Path(os.path.realpath(target))
    if here == there or there in here.parents:
        raise ValueError(f"{target} is the source, or holds it; name a new folder")
    if (there / "checkpoints").is_dir() or any(there.glob("training_state*")):
        raise ValueError(f"{target} holds a training, which would be lost; name a new folder")


def shard_bytes(shard_mb: float) -> int:
    """Turn --shard-mb into bytes."""
    if not 0 < shard_mb < 1e12:
        raise ValueError(f"--shard-mb {shard_mb} must be above 0, and below 10^12")
    return max(int(shard_mb * 10**6), 1)


class ByteBar:
    """Bytes, speed and time left, on standard error; silent where that is no terminal."""

    def __init__(self, *, quiet: bool):
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        console = Console(stderr=True)
        self.progress = Progress(*columns, console=console, disable=quiet or not console.is_terminal)

    def __enter__(self):
        self.progress.start()
        task = self.progress.add_task("writing", total=None)
        return lambda n_bytes, total: self.progress.update(task, advance=n_bytes, total=total)

    def __exit__(self, *_: object) -> None:
        self.progress.stop()


def rewrite_folder(
    source: str, target: str, *, to: str, without_mtp: bool, shard_mb: float, skip_verify: bool, follow_links: bool,
    quiet: bool,
) -> None:  # fmt: skip
    """Read a folder and write it in the format `to`; the arguments are the options of `import` and `export`."""
    from deepseek_v3.weights.convert import convert_checkpoint

    with ByteBar(quiet=quiet) as advance:
        convert_checkpoint(
            newest_of_run(source),
            target,
            to=to,
            mtp=not without_mtp,
            shard_bytes=shard_bytes(shard_mb),
            skip_verify=skip_verify,
            follow_links=follow_links,
            advance=advance,
        )
