"""Who may import whom: the rules of the house, kept as a test."""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = sorted(ROOT.glob("0[0-8]_*"))
CHAPTER_FILES = [p for c in CHAPTERS for p in sorted(c.glob("*.py"))]
PACKAGE = ROOT / "src" / "deepseek_v3"

# Who may import whom, file by file: a room, or a file beside the rooms -> what it may import besides itself. Rooms that
# do not exist yet have no files.
NUMBERS = {"config", "family", "device", "native", "kernels", "fp8", "ops"}
LEARNING = NUMBERS | {"sizing", "sizing_fp8", "memory", "data", "model", "weights", "parallel"}
DOING = LEARNING | {"training", "post_training", "engine", "serving"}
ARROWS = {
    "family": set(),
    "device": set(),
    "config_values": set(),
    "config_keys": {"family", "config_values"},
    "config": {"family", "config_keys", "config_values"},
    "sizing": {"config", "config_values"},
    "sizing_fp8": {"config", "config_values"},
    "memory": set(),
    "data": {"config"},
    "native": set(),
    "kernels": set(),
    "fp8": {"config", "config_values", "native", "kernels"},
    "ops": {"config", "native", "kernels", "fp8"},
    "model": {"config", "family", "fp8", "ops"},  # knows no kernel
    "weights": NUMBERS | {"config_keys", "config_values", "sizing", "memory", "model"},
    "engine": NUMBERS | {"sizing", "model"},
    "parallel": NUMBERS | {"config_values", "sizing", "sizing_fp8", "model"},
    "training": LEARNING,
    "post_training": LEARNING | {"training", "engine"},
    "serving": {"config", "data", "engine"},
    "model_io": LEARNING | {"training"},  # load and save
    "harness": {"model_io", "data", "model", "engine"},  # lm-evaluation-harness
    "commands": DOING | {"model_io"},
    "cli": {"commands"},
    "__main__": {"cli"},
    "__init__": DOING | {"model_io"},  # the names that the package offers; imported when asked for
}

# What is longer is known and only shrinks: file or file::function -> the lines that it has at most.
MOST_LINES, LONGEST_FUNCTION = 300, 60
ALLOWED: dict[str, int] = {}


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


def module_name(path: Path) -> str:
    """`deepseek_v3.model.rope` of its file; the name of its folder for an `__init__`."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported_files(path: Path) -> set[str]:
    """The files of the package that a file imports, at any depth, for type checkers too; no relative imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            whole = f"{node.module}."
            names |= {whole + a.name if whole + a.name in MODULES else str(node.module) for a in node.names}
    return {name for name in names if name.split(".")[0] == PACKAGE.name}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_arrows_between_the_rooms_point_one_way(name):
    path = MODULES[name]
    here = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert here in ARROWS, f"{path}: which rooms may {here} import? say so in ARROWS"
    for other in imported_files(path):
        assert other != PACKAGE.name, f"{name} imports the whole package; import the file that it needs"
        room = other.split(".")[1]
        assert room == here or room in ARROWS[here], f"{name} imports {other}: {here} does not stand above {room}"
    foreign = {top.split(".")[0] for top in imported_modules(path)} & {"utils", "tests", "benchmarks"}
    assert not foreign, f"{name} imports {foreign}"


def test_arrows_make_no_circle():
    """Neither the table nor the files: every file can be read before those that import it."""
    for graph in (ARROWS, {name: imported_files(path) for name, path in MODULES.items()}):
        TopologicalSorter({node: set(below) - {node} for node, below in graph.items()}).prepare()


def lines_of(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def python_functions(text: str) -> Iterator[tuple[str, int]]:
    """Name and lines of every function and method."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def cpp_functions(text: str) -> Iterator[tuple[str, int]]:
    """Name and lines of every function: a block behind a closing parenthesis that lies in no other function."""

    def blank(found: re.Match) -> str:
        return re.sub(r"[^\n]", " ", found.group(0))

    text = re.sub(r"""//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])'""", blank, text, flags=re.DOTALL)
    text = re.sub(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", blank, text, flags=re.MULTILINE)
    blocks: list[tuple[str, int] | None] = []  # of open braces: name and start of a function, or None
    start = 0
    for i, sign in enumerate(text):
        inside = any(blocks)
        if sign == "{":
            head = text[start:i].strip()
            ends = re.search(r"\)[\s\w]*(->[\s\w:<>*&]+)?$", head) or re.search(r"\)\s*:\s", head)
            blocks.append(
                (head.split("(")[0].split()[-1], i - len(text[start:i].lstrip())) if ends and not inside else None
            )
        elif sign == "}" and (block := blocks.pop()):
            yield block[0], text.count("\n", block[1], i) + 1
        if sign in "{};" and not any(blocks):
            start = i + 1


SOURCES = [path for path in sorted(PACKAGE.rglob("*")) if path.suffix in (".py", ".cpp", ".hpp", ".cu")]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_files_and_functions_stay_short(path):
    where, text = path.relative_to(PACKAGE).as_posix(), path.read_text(encoding="utf-8")
    assert lines_of(path) <= ALLOWED.get(where, MOST_LINES), f"{where} has {lines_of(path)} lines; split it"
    for name, length in (python_functions if path.suffix == ".py" else cpp_functions)(text):
        most = ALLOWED.get(f"{where}::{name}", LONGEST_FUNCTION)
        assert length <= most, f"{where}: {name} has {length} lines; split it"


def test_nothing_is_allowed_that_is_not_needed():
    """Whoever shortens a file takes it out of the table."""
    for where in ALLOWED:
        file, _, function = where.partition("::")
        path = PACKAGE / file
        assert path.exists(), f"{file} is gone; take it out of ALLOWED"
        if not function:
            assert lines_of(path) > MOST_LINES, f"{file} is short now; take it out of ALLOWED"
            continue
        read = python_functions if path.suffix == ".py" else cpp_functions
        lengths = [n for name, n in read(path.read_text(encoding="utf-8")) if name == function]
        assert max(lengths, default=0) > LONGEST_FUNCTION, f"{where} is short now; take it out of ALLOWED"


def test_lengths_of_c_functions_are_counted():
    text = """
    #define MANY(x) f(x) {
    namespace a {
    struct Part { int n = {3}; int size() const { return n; } };
    template <typename T>
    static void add(T* x,
                    int n) {
        // }
        for (int i = 0; i < n; i++) { x[i] += '}'; }
    }
    extern "C" { void last(void) { puts("{"); } }
    auto wide(int n) -> int { return n; }
    }
    """
    assert list(cpp_functions(text)) == [("size", 1), ("add", 6), ("last", 1), ("wide", 1)]


# The engine and the server around it stay small enough to be read: lines of code, as `code_lines` counts them.
MOST_CODE = {("engine", "serving"): 2500}


def code_lines(text: str) -> int:
    """Lines with code: blank lines, comments and docstrings are not counted, every line of a longer statement is."""
    told: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node
        ):
            told.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    layout = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    found: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in layout:
            found.update(range(token.start[0], token.end[0] + 1))
    return len(found - told)


@pytest.mark.parametrize("rooms", MOST_CODE, ids="+".join)
def test_rooms_stay_small(rooms):
    """Lines of code, docstrings, comments and blank lines apart."""
    counts = {
        p: code_lines(p.read_text(encoding="utf-8")) for room in rooms for p in sorted((PACKAGE / room).rglob("*.py"))
    }
    told = ", ".join(f"{path.name} {count}" for path, count in counts.items())
    assert sum(counts.values()) <= MOST_CODE[rooms], f"{sum(counts.values())} lines of code: {told}"


def test_lines_of_code_are_counted():
    text = '''"""A caption.

    And more.
    """

import os  # why


def f(
    x,
):
    """One line."""
    # a remark
    y = """a text
    of two lines"""
    return os.sep + x + y
'''
    assert code_lines(text) == 7
