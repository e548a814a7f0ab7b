"""Choose an option for every arm before its seeds run: a run a value, with a seed that no result uses.

    [tune]
    option = "--lr"
    values = ["5e-3", "1e-2", "2e-2"]
    seed = 100
    as = { gqa = "mha" }            arms that take what was chosen for another one

The value whose run ends best by [measure] is taken, the smaller one of two that are equal. What was measured and chosen
stands in results.json under `tuned`; where it does, nothing is run again.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments.reading import is_finished, read_series, summarise


class Tuning:
    """What [tune] says, and what came of it: arm -> {"numbers": value -> number, "chosen": value}."""

    def __init__(self, said: dict[str, Any], runs: Path, tuned: dict[str, Any]) -> None:
        self.option, self.seed, self.runs, self.tuned = said.get("option", ""), said.get("seed", 0), runs, tuned
        self.values: list[str] = said.get("values", [])
        self.shared: dict[str, str] = said.get("as", {})

    def arms(self, asked: Sequence[str]) -> list[str]:
        """The arms that must be tuned before these run."""
        return list(dict.fromkeys(self.shared.get(arm, arm) for arm in asked)) if self.values else []

    def folder(self, arm: str, value: str) -> Path:
        """Where the run of a value lies."""
        return self.runs / arm / value

    def missing(self, asked: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Yield arms and values that nothing is known of."""
        for arm in self.arms(asked):
            known = self.tuned.get(arm, {}).get("numbers", {})
            yield from ((arm, value) for value in self.values if value not in known)

    def collect(self, asked: Sequence[str], measure: dict[str, Any]) -> None:
        """Read what has run, and choose where every value has."""
        sign = -1 if measure.get("higher", True) else 1
        for arm in self.arms(asked):
            numbers = dict(self.tuned.get(arm, {}).get("numbers", {}))
            for value in self.values:
                series = read_series(folder, measure) if is_finished(folder := self.folder(arm, value)) else []
                numbers |= {value: summarise(series, measure)} if series else {}
            complete = all(value in numbers for value in self.values)
            best = min(self.values, key=lambda value: sign * numbers[value]) if complete else None
            if numbers:
                self.tuned[arm] = {"numbers": numbers, "chosen": best}

    def words(self, arm: str) -> list[str]:
        """The chosen option and value for an arm's command line; none before there is a choice."""
        chosen = self.tuned.get(self.shared.get(arm, arm), {}).get("chosen")
        return [self.option, chosen] if chosen else []

    def describe(self) -> list[str]:
        """Write the table of what was tried."""
        if not self.tuned:
            return []
        head = ["arm", *self.values, "also for"]
        lines = [f"`{self.option}`, tuned with seed {self.seed} (the chosen one in bold):", ""]
        lines += [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        for arm, found in self.tuned.items():
            cells = [f"{found['numbers'][value]:.4f}" if value in found["numbers"] else "-" for value in self.values]
            cells = [f"**{cell}**" if value == found["chosen"] else cell for cell, value in zip(cells, self.values)]
            also = ", ".join(other for other, source in self.shared.items() if source == arm)
            lines.append(f"| {arm} | " + " | ".join(cells) + f" | {also or '-'} |")
        return [*lines, ""]
