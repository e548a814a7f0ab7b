"""Who may import whom: the rules of the house, kept as a test."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = sorted(ROOT.glob("0[0-8]_*"))
CHAPTER_FILES = [p for c in CHAPTERS for p in sorted(c.glob("*.py"))]
PACKAGE = ROOT / "src" / "deepseek_v3"

# room -> the rooms it may import from (besides itself and the plain files config and sizing)
ARROWS = {
    "native": set(),
    "fp8": {"native"},
    "model": {"fp8", "native"},
    "weights": {"native", "fp8", "model"},
    "data": set(),
    "parallel": {"fp8", "model"},
    "training": {"native", "fp8", "model", "weights", "data", "parallel"},
    "engine": {"native", "fp8", "model"},
    "serving": {"native", "fp8", "model", "weights", "data", "engine"},
    "post_training": {"fp8", "model", "weights", "data", "parallel", "training", "serving"},
}


def imported_modules(path: Path) -> set[str]:
    """Every module named in an import statement of the file, at any depth."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return names


@pytest.mark.parametrize("path", CHAPTER_FILES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_a_chapter_imports_numpy_the_standard_library_and_its_siblings(path):
    siblings = {p.stem for p in path.parent.glob("*.py")}
    if path.parent.name == "06_whole_model":  # the place where the chapters meet
        siblings |= {p.stem for p in CHAPTER_FILES}
    allowed = set(sys.stdlib_module_names) | siblings | {"numpy"}
    foreign = {name.split(".")[0] for name in imported_modules(path)} - allowed
    assert not foreign, f"{path.parent.name}/{path.name} imports {sorted(foreign)}"


def test_no_chapter_file_hides_a_module_of_the_standard_library():
    assert not {p.name for p in CHAPTER_FILES if p.stem in sys.stdlib_module_names}


def test_one_name_one_text():
    """A file that two chapters need is the same text in both; more than 3 such files call for a rethink."""
    texts: dict[str, set[str]] = {}
    copies: dict[str, int] = {}
    for path in CHAPTER_FILES:
        if path.stem.startswith(("exercise", "conftest")):
            continue
        texts.setdefault(path.name, set()).add(path.read_text(encoding="utf-8"))
        copies[path.name] = copies.get(path.name, 0) + 1
    assert not [name for name, versions in texts.items() if len(versions) > 1]
    assert sum(n > 1 for n in copies.values()) <= 3


@pytest.mark.parametrize("room", sorted(ARROWS))
def test_arrows_between_the_rooms_point_one_way(room):
    for path in sorted((PACKAGE / room).rglob("*.py")):
        for name in imported_modules(path):
            parts = name.split(".")
            if parts[0] == "deepseek_v3" and len(parts) > 1:
                other = parts[1]
                assert other == room or other in ARROWS[room] or other in ("config", "sizing"), f"{path} imports {name}"
            assert parts[0] not in {"utils", "tests"}, f"{path} imports {name}"
