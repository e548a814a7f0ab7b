"""The command `deepseek-v3`: one sub-command per row of COMMANDS, imported only when it runs.

A wrong input ends in one line that says what to do and exit code 1 (2 for a command line that cannot be read); set
DEEPSEEK_V3_TRACEBACK=1 to see where it came from.
"""

import contextlib
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NamedTuple


class Command(NamedTuple):
    """Where a sub-command lives: its module, its options dataclass (which imports no PyTorch), its function."""

    summary: str
    module: str
    options: str
    function: str


COMMANDS = {
    "demo": Command("train a small model on real text, show what it learned", "demo", "DemoOptions", "run_demo"),
    "train": Command("train or resume a model", "train", "TrainOptions", "run_train"),
    "generate": Command("continue a prompt", "serving.options", "GenerateOptions", "run_generate"),
    "export": Command("write a Hugging Face directory", "weights.options", "ExportOptions", "run_export"),
    "import": Command("read a Hugging Face directory into ours", "weights.options", "ImportOptions", "run_import"),
    "convert": Command("convert between formats: BF16, FP8, GGUF", "weights.options", "ConvertOptions", "run_convert"),
    "inspect": Command(
        "list what a checkpoint holds, without loading it", "weights.options", "InspectOptions", "run_inspect"
    ),
    "size": Command("parameters, FLOPs, cache and memory of any config", "sizing", "SizeOptions", "run_size"),
}


def usage() -> str:
    """The list of sub-commands."""
    lines = [f"  {name:<10} {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        ["usage: deepseek-v3 COMMAND [options]", "", *lines, "", "deepseek-v3 COMMAND --help lists the options of one."]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command; return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        from deepseek_v3 import __version__

        print(f"deepseek-v3 {__version__}")
        return 0
    if words[0] not in COMMANDS:
        import difflib

        near = difflib.get_close_matches(words[0], COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of: {', '.join(COMMANDS)}"
        print(f"deepseek-v3: unknown command {words[0]!r}; {hint}", file=sys.stderr)
        return 2
    return run_command(words[0], words[1:])


def run_command(name: str, words: list[str]) -> int:
    """Parse the options of a sub-command and call it, turning expected errors into one line."""
    command = COMMANDS[name]
    home = import_module(f"deepseek_v3.{command.module}")
    try:
        options = parse_options(getattr(home, command.options), f"deepseek-v3 {name}", words)
        code = getattr(home, command.function)(options)
    except KeyboardInterrupt:
        print("\ndeepseek-v3: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get("DEEPSEEK_V3_TRACEBACK"):
            raise
        print(f"deepseek-v3 {name}: {describe_error(error)}", file=sys.stderr)
        return 1
    return int(code or 0)


def parse_options(kind: type, prog: str, words: list[str]) -> Any:
    """Read the words into an options dataclass.

    Raises:
        ValueError: what the dataclass says of its values; tyro would draw a box around it and blame the class.
        SystemExit: words that cannot be read, with tyro's hint on standard error.
    """
    import tyro

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(kind, prog=prog, args=words)
    except SystemExit as end:
        if isinstance(end.__context__, ValueError):  # raised while tyro handled it
            raise end.__context__ from None
        sys.stderr.write(said.getvalue())
        raise


def describe_error(error: Exception) -> str:
    """One line for the reader; system errors keep their path."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror.lower()}" if error.filename else error.strerror.lower()
    return " ".join(str(error).split()) or type(error).__name__
