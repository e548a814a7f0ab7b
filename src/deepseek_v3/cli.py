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

from deepseek_v3.commands.telling import drop_output, open_missing_streams
from deepseek_v3.commands.words import bind_values, given_flags, join_repeats

PIPE = 13  # the number of SIGPIPE
OURS = "nobody foresaw this; DEEPSEEK_V3_TRACEBACK=1 shows where it came from"
DISTRIBUTION = "deepseek-v3-from-scratch"


class Command(NamedTuple):
    """Where a sub-command lives: its file in `commands/`, its options dataclass, its function."""

    summary: str
    module: str
    options: str
    function: str


COMMANDS = {
    "demo": Command("train a small model on real text, show what it learned", "demo", "DemoOptions", "run_demo"),
    "train": Command("train or resume a model", "train", "TrainOptions", "run_train"),
    "reason": Command(
        "from nothing to a model that adds, by rewards, in minutes", "reason", "ReasonOptions", "run_reason"
    ),
    "sft": Command("fine-tune on dialogues, the loss on answers only", "sft", "SftOptions", "run_sft"),
    "grpo": Command("learn from right and wrong: GRPO and its relatives on a task", "grpo", "GrpoOptions", "run_grpo"),
    "distill": Command("teach a student by a teacher's logits or texts", "distill", "DistillOptions", "run_distill"),
    "generate": Command("continue a prompt", "generate", "GenerateOptions", "run_generate"),
    "chat": Command("talk with a model in the terminal", "chat", "ChatOptions", "run_chat"),
    "serve": Command("serve a model by OpenAI's protocol, with a page", "serve", "ServeOptions", "run_serve"),
    "explore": Command("look into a model in the browser, on any text", "explore", "ExploreOptions", "run_explore"),
    "evaluate": Command(
        "bits per byte, perplexity and MTP acceptance on any text", "evaluate", "EvaluateOptions", "run_evaluate"
    ),
    "import": Command(
        "check a downloaded folder or .gguf file and make it ours", "import_checkpoint", "ImportOptions", "run_import"
    ),
    "export": Command(
        "write a run or checkpoint for others: BF16, FP32, FP8, GGUF", "export", "ExportOptions", "run_export"
    ),
    "inspect": Command("list what a checkpoint holds, without loading it", "inspect", "InspectOptions", "run_inspect"),
    "size": Command("parameters, FLOPs, cache and memory of any config", "size", "SizeOptions", "run_size"),
    "plan": Command(
        "a training on thousands of GPUs: memory, waiting, traffic, hours", "plan", "PlanOptions", "run_plan"
    ),
    "doctor": Command(
        "what this machine offers, what serves here, and why not", "doctor", "DoctorOptions", "run_doctor"
    ),
}
GONE = {"convert": "`export` writes every format, `import` reads a .gguf file"}


def usage() -> str:
    """The list of sub-commands."""
    lines = [f"  {name:<10} {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        ["usage: deepseek-v3 COMMAND [options]", "", *lines, "", "deepseek-v3 COMMAND --help lists the options of one."]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command; return the exit code, which tells too whether all of the output was taken."""
    open_missing_streams()
    try:
        code = answer(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader of our output has gone, as with `| head`
        drop_output()
        return 128 + PIPE
    except OSError as error:
        drop_output()
        print(f"deepseek-v3: the output could not be written: {describe_error(error)}", file=sys.stderr)
        return 1


def answer(arguments: Sequence[str] | None) -> int:
    """Find the sub-command and run it."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        from importlib.metadata import version

        print(f"deepseek-v3 {version(DISTRIBUTION)}")
        return 0
    if words[0] not in COMMANDS:
        print(f"deepseek-v3: unknown command {words[0]!r}; {suggest_command(words[0])}", file=sys.stderr)
        return 2
    return run_command(words[0], words[1:])


def suggest_command(word: str) -> str:
    """What to type instead of a command that does not exist."""
    import difflib

    near = difflib.get_close_matches(word, COMMANDS, n=1)
    choices = f"did you mean {near[0]!r}?" if near else f"choose one of: {', '.join(COMMANDS)}"
    return GONE.get(word, choices)


def run_command(name: str, words: list[str]) -> int:
    """Parse the options of a sub-command and call it, turning expected errors into one line."""
    command = COMMANDS[name]
    if garbled := next((word for word in words if not is_text(word)), None):
        print(f"deepseek-v3 {name}: {garbled!r} is not UTF-8 text; convert it, or rename the file", file=sys.stderr)
        return 2
    home = import_module(f"deepseek_v3.commands.{command.module}")
    try:
        kind = getattr(home, command.options)
        options = parse_options(kind, f"deepseek-v3 {name}", join_repeats(kind, bind_values(kind, words)))
        if hasattr(kind, "given"):
            object.__setattr__(options, "given", given_flags(kind, words))
        code = getattr(home, command.function)(options)
    except KeyboardInterrupt:
        print("\ndeepseek-v3: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get("DEEPSEEK_V3_TRACEBACK"):
            raise
        print(f"deepseek-v3 {name}: {describe_error(error)}", file=sys.stderr)
        return 1
    except Exception as error:
        if os.environ.get("DEEPSEEK_V3_TRACEBACK"):
            raise
        print(f"deepseek-v3 {name}: {type(error).__name__}: {describe_error(error)}; {OURS}", file=sys.stderr)
        return 1
    return int(code or 0)


def is_text(word: str) -> bool:
    """Whether a word of the command line was UTF-8; Python keeps other bytes as lone surrogates."""
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True


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
