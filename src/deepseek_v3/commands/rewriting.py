"""What `import` and `export` share: which folder a run stands for, the size of a shard, the bar of progress."""

from pathlib import Path


def newest_of_run(source: str) -> str:
    """Return the newest checkpoint of a run folder; anything else as it is."""
    steps = sorted(Path(source).glob("checkpoints/step-????????"))
    return str(steps[-1]) if steps else source


def check_names(source: str, target: str) -> None:
    """Refuse a source or target without a name."""
    if not (source.strip() and target.strip()):
        raise ValueError("SOURCE and TARGET must have a name; the target is a new folder or a .gguf file")


def shard_bytes(shard_mb: float) -> int:
    """Turn --shard-mb into bytes."""
    if not shard_mb > 0:
        raise ValueError(f"--shard-mb {shard_mb} must be above 0")
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
