"""metrics.jsonl: one JSON object a line; what the report is drawn from.

{"kind": "step", "step": 12, "loss": 5.1, ...}    {"kind": "heldout", ...}    {"kind": "sample", ...}
"""

import json
import os
from pathlib import Path
from typing import Any


class MetricsLog:
    """Appends lines; after a resume, lines of steps that will be done again are dropped first."""

    def __init__(self, path: Path, *, resume_at: int | None = None) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [] if resume_at is None else [row for row in read_metrics(path) if row.get("step", 0) <= resume_at]
        beside = path.with_suffix(".new")
        beside.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        os.replace(beside, path)
        self._stream = path.open("a", encoding="utf-8")

    def write(self, kind: str, **values: Any) -> None:
        """Append one line and hand it to the system at once."""
        self._stream.write(json.dumps({"kind": kind, **values}) + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics.jsonl; a last line that a kill cut short is left out."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows
