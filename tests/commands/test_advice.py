"""What the package advises can be done: its flags, commands and extras exist."""

import ast
import dataclasses
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from deepseek_v3 import cli

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "deepseek_v3"
FLAGS = {
    name: {f.name for f in dataclasses.fields(getattr(import_module(f"deepseek_v3.commands.{c.module}"), c.options))}
    for name, c in cli.COMMANDS.items()
}
EVERYWHERE = {"help", "version"}
OF_FILE = {f"commands/{command.module}.py": name for name, command in cli.COMMANDS.items()}
OTHERS = {"native/build.py", "commands/doctor.py", "cli.py"}  # of compilers; of every command


def texts_of(path: Path) -> Iterator[str]:
    """Every string of a file, docstrings and the fixed parts of f-strings; a part that is filled in is ~."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    parts = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in nodes:
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "~" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield node.value


def find_wrong(path: Path) -> list[str]:
    place, wrong = path.relative_to(PACKAGE).as_posix(), []
    home = OF_FILE.get(place) or ("train" if place.startswith("training/") else None)
    known = FLAGS[home] if home else set.union(*FLAGS.values())
    for text in texts_of(path):
        for flag in re.findall(r"(?<![\w-])--([a-z][a-z_-]*[a-z])(?!-)\b", text):
            if place not in OTHERS and flag.replace("-", "_") not in known | EVERYWHERE and not named(text, flag):
                wrong.append(f"{place}: --{flag} in {text[:80]!r}")
        for command in re.findall(r"deepseek-v3 ([a-z]+)\b", text):
            if command not in cli.COMMANDS:
                wrong.append(f"{place}: no command {command!r} in {text[:80]!r}")
    return wrong


def named(text: str, flag: str) -> bool:
    """Whether the text itself names another command to which the flag belongs."""
    commands = re.findall(r"deepseek-v3 ([a-z]+)", text)
    return any(flag.replace("-", "_") in FLAGS.get(command, ()) for command in commands)


@pytest.mark.parametrize("room", sorted({p.relative_to(PACKAGE).parts[0] for p in PACKAGE.rglob("*.py")}))
def test_advice_names_flags_and_commands_that_exist(room):
    paths = [PACKAGE / room] if room.endswith(".py") else sorted((PACKAGE / room).rglob("*.py"))
    assert not (wrong := [line for path in paths for line in find_wrong(path)]), "\n".join(wrong)


def test_advice_to_install_names_an_extra_that_exists():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    found = {
        extra
        for path in PACKAGE.rglob("*.py")
        for text in texts_of(path)
        for extra in re.findall(r"deepseek-v3-from-scratch\[(\w+)\]", text)
    }
    assert found
    assert found <= extras.keys()
