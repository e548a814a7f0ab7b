"""metrics.jsonl: one JSON object a line; what the report is drawn from.

{"kind": "step", "step": 12, "loss": 5.1, ...}    {"kind": "heldout", ...}    {"kind": "sample", ...}
"""

import json
from pathlib import Path
from typing import Any

from deepseek_v3.weights.files import replace_file

NEEDED = {
    "step": ("step", "loss", "bits_per_byte", "tokens", "tokens_per_s", "max_vio"),
    "heldout": ("step", "bits_per_byte"),
    "sample": ("step", "prompt", "text"),
    "skipped": ("step",),
    "exam": ("step", "greedy", "pass1", "passk", "k", "problems"),
    "answer": ("step", "prompt", "text", "reward"),
    "mismatch": ("step", "rerouted_tokens", "rerouted", "gap_replayed", "gap_own"),
}


class MetricsLog:
    """Appends lines; after a resume, lines of steps that will be done again are dropped first.

    A line that cannot be written is lost, and the training is not: `problem` says what was in the way.
    """

    def __init__(self, path: Path, *, resume_at: int | None = None) -> None:
        self.path, self.problem = path, ""
        self._cut = False
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [] if resume_at is None else [row for row in read_metrics(path) if row["step"] <= resume_at]
        try:
            replace_file(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
        except OSError as error:
            self.problem = f"{path} cannot be written: {(error.strerror or str(error)).lower()}"
        self._stream = path.open("ab", buffering=0)

    def write(self, kind: str, **values: Any) -> None:
        """Append one line and hand it to the system at once."""
        line = ("\n" if self._cut else "") + json.dumps({"kind": kind, **values}) + "\n"
        try:
            data = memoryview(line.encode())
            while data:
                data = data[self._stream.write(data) :]
                self._cut = bool(data)
            self._cut = False
        except OSError as error:
            self._cut = True
            self.problem = f"{self.path}: lines are missing: {(error.strerror or str(error)).lower()}"

    def close(self) -> str:
        """Close the file; return what was in the way of a line, or nothing."""
        self._stream.close()
        return self.problem


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics.jsonl; those that a kill cut short or a hand broke are left out."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and _is_whole(row):
            rows.append(row)
    return rows


def _is_whole(row: dict[str, Any]) -> bool:
    kind, step = row.get("kind"), row.get("step")
    if not isinstance(kind, str) or not isinstance(step, int) or isinstance(step, bool):
        return False
    texts = ("prompt", "text")
    return all(isinstance(row.get(key), str if key in texts else int | float) for key in NEEDED.get(kind, ()))
