"""What is read of a run's folder: whether it came to its end, and the figures that a claim measures."""

import json
from pathlib import Path
from typing import Any

DONE = "done"  # in the folder of a run: its command ended well


def is_finished(folder: Path) -> bool:
    """Whether a run came to its end."""
    return (folder / DONE).is_file()


def read_series(folder: Path, measure: dict[str, Any]) -> list[tuple[float, float]]:
    """Return a figure over the steps of a run."""
    path = folder / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    name = measure["value"]
    return [
        (row["step"], row[name]) for row in rows if row.get("kind") == measure["kind"] and row.get(name) is not None
    ]


def summarise(series: list[tuple[float, float]], measure: dict[str, Any]) -> float:
    """Return the one number of a run: its gain, its last value, or its best."""
    values = [value for _, value in series]
    best = max(values) if measure.get("higher", True) else min(values)
    return {"gain": values[-1] - values[0], "last": values[-1], "best": best}[measure.get("at", "gain")]


def read_also(folder: Path, measure: dict[str, Any]) -> dict[str, Any]:
    """Return what else is kept of the last row of a run."""
    path, names = folder / "metrics.jsonl", measure.get("also", [])
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if names else []
    last = [row for row in rows if row.get("kind") == measure["kind"]][-1:]
    return {name: row[name] for row in last for name in names if row.get(name) is not None}
