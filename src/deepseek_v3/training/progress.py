"""What a person sees while the model learns: one live line on a terminal, a plain line now and then elsewhere."""

import sys
import time
from typing import Any, Protocol


class Progress(Protocol):
    """What the trainer tells: called after each step, around everything, and with notes."""

    def start(self, first_step: int, steps: int) -> None: ...
    def update(self, step: int, steps: int, row: dict[str, Any]) -> None: ...
    def note(self, text: str) -> None: ...
    def finish(self) -> None: ...


class Silent:
    """Shows nothing; for tests."""

    def start(self, first_step: int, steps: int) -> None:
        """Begin."""

    def update(self, step: int, steps: int, row: dict[str, Any]) -> None:
        """Ignore a step."""

    def note(self, text: str) -> None:
        """Ignore a note."""

    def finish(self) -> None:
        """End."""


class PlainLines:
    """About twenty lines a run, and every note; for logs and pipes."""

    def __init__(self, stream=None) -> None:
        self.stream = stream or sys.stdout
        self.every = 1

    def start(self, first_step: int, steps: int) -> None:
        """Fix how often to speak."""
        self.every = max(1, (steps - first_step) // 20)

    def update(self, step: int, steps: int, row: dict[str, Any]) -> None:
        """Print the step if it is one of those."""
        if step % self.every == 0 or step == steps:
            print(
                f"step {step:>6,}/{steps:,}  {describe_row(row)}  {describe_left(row)}".rstrip(),
                file=self.stream,
                flush=True,
            )

    def note(self, text: str) -> None:
        """Print a note."""
        print(text, file=self.stream, flush=True)

    def finish(self) -> None:
        """End."""


class LiveBar:
    """A bar with the figures under it, redrawn in place."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        columns = (TextColumn("[bold]learning"), BarColumn(None), MofNCompleteColumn(), TimeElapsedColumn())
        columns += (TextColumn("{task.description}"),)  # what is left, where 80 columns have room for it
        self.console = Console()
        self.bar = Bar(*columns, console=self.console, refresh_per_second=4, expand=True)
        self.figures = Bar(TextColumn("{task.description}"), console=self.console)
        self.live: Any = None

    def start(self, first_step: int, steps: int) -> None:
        """Show the bar."""
        from rich.console import Group
        from rich.live import Live

        self.task = self.bar.add_task("", total=steps, completed=first_step)
        self.text = self.figures.add_task("the first step is the slowest ...", total=None)
        self.live = Live(Group(self.bar, self.figures), console=self.console, refresh_per_second=4)
        self.live.start()

    def update(self, step: int, steps: int, row: dict[str, Any]) -> None:
        """Move the bar."""
        self.bar.update(self.task, completed=step, total=steps, description=describe_left(row))
        self.figures.update(self.text, description=describe_row(row))

    def note(self, text: str) -> None:
        """Print above the bar."""
        self.console.print(text, markup=False, highlight=False)

    def finish(self) -> None:
        """Leave the last state on the screen."""
        if self.live is not None:
            self.live.stop()
            self.live = None


def choose_progress() -> Progress:
    """Return the live bar on a terminal, plain lines elsewhere."""
    return LiveBar() if sys.stdout.isatty() else PlainLines()


def describe_row(row: dict[str, Any]) -> str:
    """Write a step's figures in one line."""
    if "reward" in row:
        return describe_answers(row)
    parts = [f"loss {row['loss']:.3f}"]
    if row.get("mtp_loss") is not None:
        parts.append(f"MTP {row['mtp_loss']:.3f}")
    parts += [f"bits per byte {row['bits_per_byte']:.3f}", f"{row['tokens_per_s']:,.0f} tokens/s"]
    if row.get("share_of_peak") is not None:
        parts.append(f"{row['share_of_peak']:.0%} of peak")
    return "  ".join(parts)


def describe_answers(row: dict[str, Any]) -> str:
    """Write in one line what judged answers were like, and where the time went."""
    spent = [row.get(name, 0.0) for name in ("rollout_s", "reward_s", "update_s")]
    shares = "/".join(f"{part / max(sum(spent), 1e-9):.0%}" for part in spent)
    parts = [f"reward {row['reward']:.3f}", f"entropy {row['entropy']:.3f}", f"length {row['length']:.1f}"]
    parts += [f"clipped {row['clipped']:.1%}"] if row["clipped"] else []
    parts += [f"{row['refused']} refused by the rule"] if row["refused"] else []
    return "  ".join([*parts, f"{row['tokens_per_s']:,.0f} tokens/s", f"write/judge/learn {shares}"])


def describe_left(row: dict[str, Any]) -> str:
    """Write the time that is left, if it is known."""
    return f"{format_seconds(row['left_s'])} left" if row.get("left_s") is not None else ""


def format_seconds(seconds: float) -> str:
    """Write a duration as a person would."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


class Clock:
    """How fast the steps are: the last few, and all since it was made."""

    def __init__(self, window: int = 20) -> None:
        self.window, self.steps = window, 0
        self.begun = time.perf_counter()
        self.marks: list[tuple[float, int]] = [(self.begun, 0)]

    def tick(self, tokens: int) -> None:
        """Count a step and its tokens."""
        self.steps += 1
        self.marks.append((time.perf_counter(), self.marks[-1][1] + tokens))
        self.marks = self.marks[-self.window - 1 :]

    def pause(self, seconds: float) -> None:
        """Leave out time that went into something else than steps."""
        self.begun += seconds
        self.marks = [(moment + seconds, count) for moment, count in self.marks]

    def tokens_per_second(self) -> float:
        """Return the rate over the last few steps."""
        (start, before), (end, after) = self.marks[0], self.marks[-1]
        return (after - before) / max(end - start, 1e-9)

    def seconds_per_step(self) -> float:
        """Return the mean over the same steps."""
        return (self.marks[-1][0] - self.marks[0][0]) / max(1, len(self.marks) - 1)

    def mean_step_s(self) -> float:
        """Return the mean over all steps."""
        return (self.marks[-1][0] - self.begun) / max(1, self.steps)
