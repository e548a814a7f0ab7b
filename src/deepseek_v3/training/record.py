"""What a run folder records of its run, and what of it a resume may change."""

import dataclasses
import json
from pathlib import Path
from typing import Any, TypeVar

from deepseek_v3.training.options import OptionsError, TrainOptions
from deepseek_v3.training.run_folder import OPTIONS, write_files

FIXED = (
    ("preset", "config", "set", "init_from", "tokenizer", "init_std", "nudge", "fp8_variant")
    + ("seed", "fim_rate", "lanes", "seq_len", "heldout_fraction")
)  # fmt: skip

Options = TypeVar("Options", bound=Any)  # TrainOptions, or those of another kind of training


def describe_run(options: Any, **facts: Any) -> str:
    """Return what options.json holds: every flag, and facts such as the data and its digest."""
    return json.dumps({"options": {**dataclasses.asdict(options), "resume": False}, **facts}, indent=1) + "\n"


def record_steps(options: TrainOptions) -> None:
    """Write the options of a run again, after its number of steps was chosen."""
    run = Path(options.run)
    facts = {key: value for key, value in read_record(run).items() if key != "options"}
    write_files(run, {OPTIONS: describe_run(options, **facts)})


def read_record(run: Path) -> dict[str, Any]:
    """Return what options.json holds.

    Raises:
        OptionsError: it cannot be read.
    """
    try:
        record = json.loads((run / OPTIONS).read_text(encoding="utf-8"))
        if isinstance(record["options"], dict):
            return record
    except (OSError, KeyError, TypeError, ValueError, RecursionError):
        pass
    raise OptionsError(f"{run / OPTIONS} cannot be read; the run folder is not one of ours, or put the file back")


def recorded_options(run: Path, kind: type[Options] = TrainOptions) -> Options:
    """Return the options that a run was started with.

    Raises:
        OptionsError: the run folder has none that can be read, or it is one of another command.
    """
    record = read_record(run)
    values: dict[str, Any] = record["options"]
    wanted, found = getattr(kind, "command", "train"), record.get("command", "train")
    if found != wanted:
        raise OptionsError(f"--run {run} is one of `deepseek-v3 {found}`; go on with that command, or name another run")
    known = {field.name for field in dataclasses.fields(kind)}
    try:
        kept: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in known}
        return kind(**kept)
    except (TypeError, AttributeError) as error:
        raise OptionsError(f"{run / OPTIONS} holds a value of another kind ({error}); put the file back") from None


def recorded_precision(run: Path) -> str:
    """Return the precision that a run chose at its start: to go on bit by bit, it must stay."""
    return read_record(run).get("precision", "fp32")


def merge_options(recorded: Options, given: Options) -> Options:
    """Take the recorded options, changed by every given flag.

    A command line knows which flags were given; of options made in Python those count that differ from the default.

    Raises:
        OptionsError: a given flag cannot change on the way; the message names it.
    """
    names = given.given or {f.name for f in dataclasses.fields(given) if getattr(given, f.name) != f.default}
    for name in sorted(names.intersection(getattr(given, "fixed", FIXED))):
        was, now = getattr(recorded, name), getattr(given, name)
        if was != now:
            raise OptionsError(
                f"--{name.replace('_', '-')} {_spell(now)} cannot change on the way, the run began with {_spell(was)}; "
                "leave it out, or begin another run with --run"
            )
    changes = {name: getattr(given, name) for name in names}
    return recorded.replace(**{**changes, "run": given.run, "resume": True})


def _spell(value: Any) -> str:
    if value is None or value == ():
        return "none"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
