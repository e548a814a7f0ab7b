"""The ledger: one folder a claim; what is missing is run, what has run is collected, drawn and judged.

    python -m experiments.ledger                         every claim: what stands, what is missing; runs nothing
    python -m experiments.ledger grpo_addition --run     run what is missing of it, one run after the other; resumes
    python -m experiments.ledger grpo_addition --run --arms grpo --seeds 1     the first seed of one arm
    python -m experiments.ledger fp8 --run --only bf16/3 fp8/3                 these runs, and no others
    python -m experiments.ledger grpo_addition --collect read the runs again, draw, judge

A claim is `experiments/NAME/claim.toml`:

    claim = "..."   source = "..."   number = "..."     in words: what is said, who says it, what it must come to
    seeds = 5                                           0 .. 4; an arm may name its own: seeds = [1, 2, 6]
    prepare = [["train", "--preset", "..."], ...]       commands that every seed begins with: made once a seed
    command = "grpo"                                    of `deepseek-v3`, or "study" (study.py)
    options = ["{start}", "--task", "addition"]         of all arms
    [arms.grpo]                                         options, and if they are others: seeds, command, prepare
    [measure]  kind = "exam"  value = "greedy"          of metrics.jsonl; at = "gain", "last" or "best"; also = [...]:
                                                        what else is kept of the last row
    [verdict]  arms = ["grpo"]  least = 0.30            or most, or above = "another arm"; of = "mean"; keeps = "passk":
                                                        a figure that must not end below where it began
                                                        begins = [0.2, 0.4]: runs that began elsewhere do not count
                                                        or kind = "gap": beside, floor, most (verdict.py)
                                                        or kind = "order": one arm below another (verdict.py)
    [tune]  option = "--lr"  values = [...]             chosen for each arm before its seeds run (tuning.py)

An arm's `prepare` is how many of the preparations it takes. `{start}` is the run that the last of them made, `{seed}`
the seed. Runs lie in `runs/ledger/NAME/`, preparations in `runs/ledger/starts/`, where claims with the same ones share
them; neither is committed. `results.json`, `figure.svg` and `verdict.md` beside the claim are. A run that was stopped
goes on where it stood.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from experiments.drawing import draw_figure, draw_order
from experiments.reading import DONE, is_finished, read_also, read_series, summarise
from experiments.tuning import Tuning
from experiments.verdict import arms_judged, describe, gap_series, judge, weigh_order

HERE = Path(__file__).parent
RUNS = HERE.parent / "runs" / "ledger"
Run = Callable[[list[str]], int]


class ClaimError(ValueError):
    """A claim.toml that cannot be used; the message says what it lacks."""


class Job(NamedTuple):
    """One call of a command: of an arm and a seed, or a preparation."""

    name: str
    folder: Path
    words: list[str]


class Claim:
    """What claim.toml says."""

    def __init__(self, folder: Path, runs: Path = RUNS) -> None:
        """Read it.

        Raises:
            ClaimError: something is missing or of another kind.
        """
        self.folder, self.name, self.runs, self.starts = folder, folder.name, runs / folder.name, runs / "starts"
        try:
            held: dict[str, Any] = tomllib.loads((folder / "claim.toml").read_text(encoding="utf-8"))
        except OSError:
            raise ClaimError(f"there is no {folder / 'claim.toml'}") from None
        except tomllib.TOMLDecodeError as error:
            raise ClaimError(f"{folder / 'claim.toml'}: {error}") from None
        for key, kind in (("claim", str), ("source", str), ("number", str), ("command", str), ("arms", dict),
                          ("measure", dict), ("verdict", dict)):  # fmt: skip
            if not isinstance(held.get(key), kind):
                raise ClaimError(f"{folder / 'claim.toml'}: {key} is missing or no {kind.__name__}")
        self.held, self.arms = held, held["arms"]
        self.prepare: list[list[str]] = held.get("prepare", [])
        self.kept = json.loads(path.read_text()) if (path := folder / "results.json").is_file() else {}
        self.tuning = Tuning(held.get("tune", {}), self.runs / "tune", self.kept.get("tuned", {}))
        unknown = [arm for arm in arms_judged(held["verdict"]) if arm not in self.arms]
        if unknown or not arms_judged(held["verdict"]):
            raise ClaimError(f"{folder / 'claim.toml'}: the verdict must name arms, and {unknown} are none")
        lacks = {"beside", "floor", "most"} - set(held["verdict"]) if held["verdict"].get("kind") == "gap" else set()
        if lacks:
            raise ClaimError(f"{folder / 'claim.toml'}: a verdict on gaps lacks {', '.join(sorted(lacks))}")

    def seeds(self, arm: str) -> Sequence[int]:
        """The seeds of an arm: so many from 0, or those that it names."""
        seeds = self.arms[arm].get("seeds", self.held.get("seeds", 1))
        return seeds if isinstance(seeds, list) else range(seeds)

    def folder_of(self, arm: str, seed: int) -> Path:
        """Where a run lies."""
        return self.runs / arm / str(seed)

    def preparations(self, arm: str, seed: int) -> list[Job]:
        """What an arm's run of a seed begins with."""
        jobs: list[Job] = []
        for number, words in enumerate(self.prepare[: self.arms[arm].get("prepare", len(self.prepare))]):
            before = json.dumps(self.prepare[: number + 1])
            folder = self.starts / f"{words[0]}-{hashlib.sha256(before.encode()).hexdigest()[:8]}" / str(seed)
            start = jobs[-1].folder if jobs else folder
            jobs.append(self._job(f"prepare {number}", words[0], words[1:], folder, start, seed))
        return jobs

    def job(self, arm: str, seed: int, value: str = "") -> Job:
        """The run of an arm and a seed; with a value, the one that tries this value of what is tuned."""
        before = self.preparations(arm, seed)
        start = before[-1].folder if before else self.folder
        words = [*self.held.get("options", []), *self.arms[arm].get("options", [])]
        words += [self.tuning.option, value] if value else self.tuning.words(arm)
        folder = self.tuning.folder(arm, value) if value else self.folder_of(arm, seed)
        command = self.arms[arm].get("command", self.held["command"])
        return self._job(f"{arm} {value}".strip(), command, words, folder, start, seed)

    @staticmethod
    def _job(name: str, command: str, words: Sequence[str], folder: Path, start: Path, seed: int) -> Job:
        filled = [str(word).format(start=start, seed=seed) for word in words]
        return Job(f"{name}, seed {seed}", folder, [command, *filled, "--run", str(folder), "--seed", str(seed)])


# -- running -----------------------------------------------------------------------------------------------------------


def resume_words(job: Job) -> list[str]:
    """The command that goes on with a run that was begun, or the one that begins it."""
    saved = folder.glob("step-*") if (folder := job.folder / "checkpoints").is_dir() else iter(())
    return [job.words[0], "--run", str(job.folder), "--resume"] if any(saved) else job.words


def call_command(words: list[str]) -> int:
    """Run `deepseek-v3` with some words; a small study in this process."""
    if words[0] == "study":
        from experiments.study import main as run_study  # imports PyTorch

        return run_study(words[1:])
    return subprocess.run([sys.executable, "-m", "deepseek_v3", *words], check=False).returncode


def missing_jobs(claim: Claim, arms: Sequence[str], seeds: int, only: Sequence[str] = ()) -> Iterator[Job]:
    """Yield what is missing, preparations first, and seed by seed: one seed of all arms before the next.

    Args:
        only: runs as ARM/SEED; others are left out. Empty: all.
    """
    asked: set[Path] = set()
    for seed in sorted({seed for arm in claim.arms for seed in claim.seeds(arm)}):
        for arm in arms:
            if seed not in claim.seeds(arm) or seed >= seeds or (only and f"{arm}/{seed}" not in only):
                continue
            for job in [*claim.preparations(arm, seed), claim.job(arm, seed)]:
                if job.folder not in asked and not is_finished(job.folder):
                    asked.add(job.folder)
                    yield job


def run_missing(
    claim: Claim, arms: Sequence[str], seeds: int, run: Run = call_command, only: Sequence[str] = ()
) -> int:
    """Run what is missing; stop at the first that does not end well, and return its code."""
    code = 0 if only else run_jobs(claim, list(tuning_jobs(claim, arms)), run)
    return code or run_jobs(claim, list(missing_jobs(claim, arms, seeds, only)), run)


def tuning_jobs(claim: Claim, arms: Sequence[str]) -> Iterator[Job]:
    """Yield the runs that are missing before some arms are tuned."""
    for arm, value in claim.tuning.missing(arms):
        for job in [*claim.preparations(arm, claim.tuning.seed), claim.job(arm, claim.tuning.seed, value)]:
            if not is_finished(job.folder):
                yield job


def run_jobs(claim: Claim, jobs: Sequence[Job], run: Run) -> int:
    """Run some jobs, and collect after each."""
    for number, job in enumerate(jobs, 1):
        words, began = resume_words(job), time.monotonic()
        line = " ".join(["python -m experiments.study", *words[1:]] if words[0] == "study" else ["deepseek-v3", *words])
        print(f"{claim.name}: {job.name} ({number} of {len(jobs)})\n  {line}", flush=True)
        if code := run(words):
            return code
        (job.folder / DONE).touch()
        verdict = collect(claim)["verdict"]
        print(f"{claim.name}: {job.name} took {(time.monotonic() - began) / 60:.1f} minutes; {verdict}", flush=True)
    return 0


# -- what came of it ---------------------------------------------------------------------------------------------------


def collect(claim: Claim) -> dict[str, Any]:
    """Read all finished runs; write results.json, the figure and the verdict."""
    measure, keeps = claim.held["measure"], claim.held["verdict"].get("keeps")
    arms: dict[str, dict[str, Any]] = {}
    kept = claim.folder / "results.json"
    before = json.loads(kept.read_text(encoding="utf-8"))["arms"] if kept.is_file() else {}
    claim.tuning.collect(list(claim.arms), measure)
    for arm in claim.arms:
        found = dict(before.get(arm, {}))
        for seed in claim.seeds(arm):
            series = read_series(claim.folder_of(arm, seed), measure) if is_finished(claim.folder_of(arm, seed)) else []
            if series:
                found[str(seed)] = {"series": series, "number": summarise(series, measure)}
                if also := read_also(claim.folder_of(arm, seed), measure):
                    found[str(seed)]["also"] = also
                if keeps and (kept_series := read_series(claim.folder_of(arm, seed), {**measure, "value": keeps})):
                    found[str(seed)]["kept"] = [kept_series[0][1], kept_series[-1][1]]
        arms[arm] = found
    results = {"claim": claim.held["claim"], "measure": measure, "arms": arms}
    lacking = sum(len(claim.seeds(arm)) - len(arms[arm]) for arm in arms_judged(claim.held["verdict"]))
    results["verdict"] = judge(claim.held, arms, lacking)
    if claim.tuning.tuned:
        results["tuned"] = claim.tuning.tuned
    kept.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    drawn, shown = arms, measure
    if claim.held["verdict"].get("kind") == "gap":
        drawn = gap_series(claim.held["verdict"], arms)
        shown = {"value": f"{measure['value']}, gap to {claim.held['verdict']['beside']} in %"}
    if any(drawn.values()):
        orders = [weigh_order(pair, arms) for pair in claim.held["verdict"].get("order", [])]
        figure = draw_order(claim.name, measure, arms, orders) if orders else draw_figure(claim.name, shown, drawn)
        (claim.folder / "figure.svg").write_text(figure, encoding="utf-8")
    wanted = {arm: len(claim.seeds(arm)) for arm in claim.arms}
    page = describe(claim.name, claim.held, results, wanted, claim.tuning.describe())
    (claim.folder / "verdict.md").write_text(page, encoding="utf-8")
    return results


def all_claims() -> list[str]:
    """The names of all claims."""
    return sorted(path.parent.name for path in HERE.glob("*/claim.toml"))


def show(claim: Claim, results: dict[str, Any]) -> None:
    """Print a claim in a few lines."""
    arms = list(claim.arms)
    missing = sum(1 for jobs in (tuning_jobs(claim, arms), missing_jobs(claim, arms, 10**6)) for _ in jobs)
    print(f"{claim.name}: {results['verdict']}\n  {claim.held['claim']} ({claim.held['number']})")
    for arm, seeds in results["arms"].items():
        print(
            f"  {arm:<14} {len(seeds)} of {len(claim.seeds(arm))} seeds "
            + "  ".join(f"{s['number']:+.3f}" for s in seeds.values())
        )
    print(f"  {missing} runs missing on this machine\n")


def main(words: Sequence[str] | None = None) -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.ledger", description="run, collect and judge claims")
    parser.add_argument("claims", nargs="*", help="folders of experiments/; all by default")
    parser.add_argument("--run", action="store_true", help="run what is missing")
    parser.add_argument("--collect", action="store_true", help="read the runs again, draw, judge")
    parser.add_argument("--arms", nargs="*", default=None, help="of these arms only")
    parser.add_argument("--seeds", type=int, default=10**6, help="the first so many seeds only")
    parser.add_argument("--only", nargs="*", default=[], metavar="ARM/SEED", help="run these and no others")
    asked = parser.parse_args(words)
    for name in asked.claims or all_claims():
        try:
            claim = Claim(HERE / name)
            arms = asked.arms or list(claim.arms)
            if unknown := set(arms) - set(claim.arms):
                raise ClaimError(f"{name} has no arm {sorted(unknown)[0]!r}; it has {', '.join(claim.arms)}")
            runs = [f"{arm}/{seed}" for arm in claim.arms for seed in claim.seeds(arm)]
            if unknown := [run for run in asked.only if run not in runs]:
                raise ClaimError(f"{name} has no run {unknown[0]!r}; it has {', '.join(runs)}")
        except ClaimError as error:
            print(f"ledger: {error}", file=sys.stderr)
            return 1
        if asked.run and (code := run_missing(claim, arms, asked.seeds, only=asked.only)):
            return code
        if asked.run or asked.collect:
            collect(claim)
        kept = claim.folder / "results.json"
        results = (
            json.loads(kept.read_text()) if kept.is_file() else {"verdict": "open", "arms": {a: {} for a in claim.arms}}
        )
        show(claim, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
