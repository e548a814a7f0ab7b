"""The paper map: which line of which chapter, package file and test is which equation, figure or table of the report.

    python -m utils.paper_map          rebuild docs/paper_map.md from the tags in the code
    python -m utils.paper_map --check  say what is wrong with the tags or stale in the map, change nothing

The map is stale when a tag came, went or changed its function, or when a link is more than a screen away from its line;
that a line moved a little does not make it so.

A tag is a comment at the end of the line that does it, several separated by commas:

    score_NE = sigmoid(logits_NE)  # V3 Eq. (15)

Tags in notebooks and docstrings do not count: they are where a reader finds them, not where it happens.
"""

import ast
import io
import re
import sys
import tokenize
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
MAP = ROOT / "docs" / "paper_map.md"

# What arXiv:2412.19437 numbers and this repository implements or may implement; the words are ours.
REPORT = {
    "Eq. (1)": "hidden state to key-value latent",
    "Eq. (2)": "latent to content keys",
    "Eq. (3)": "one rotary key for all heads",
    "Eq. (4)": "key: content beside rotary part",
    "Eq. (5)": "latent to values",
    "Eq. (6)": "hidden state to query latent",
    "Eq. (7)": "query latent to content queries",
    "Eq. (8)": "rotary queries, per head",
    "Eq. (9)": "query: content beside rotary part",
    "Eq. (10)": "softmax over the joint score",
    "Eq. (11)": "heads joined and projected out",
    "Eq. (12)": "shared experts plus gated experts",
    "Eq. (13)": "gates normalised over the chosen",
    "Eq. (14)": "the best K experts",
    "Eq. (15)": "sigmoid affinity to each expert",
    "Eq. (16)": "choice by affinity plus bias",
    "Eq. (17)": "sequence-wise balance loss",
    "Eq. (18)": "how often an expert is chosen",
    "Eq. (19)": "affinities made to sum to one",
    "Eq. (20)": "mean affinity over a sequence",
    "Eq. (21)": "MTP: hidden state joined with next embedding",
    "Eq. (22)": "MTP: the module's own layer",
    "Eq. (23)": "MTP: shared output head",
    "Eq. (24)": "MTP: cross-entropy of one depth",
    "Eq. (25)": "MTP: mean over depths, weighed",
    "Eq. (26)": "GRPO: clipped objective of a group",
    "Eq. (27)": "GRPO: estimate of the divergence",
    "Eq. (28)": "GRPO: advantage within its group",
    "Fig. 2": "the layer: norms, MLA, experts, residuals",
    "Fig. 3": "the chain of MTP modules",
    "Fig. 4": "overlap of computation and communication",
    "Fig. 5": "the DualPipe schedule",
    "Fig. 6": "what runs in FP8, what does not",
    "Fig. 7": "tiles, blocks and promoted sums",
    "Fig. 9": "expert load with both kinds of balancing",
    "Fig. 10": "loss curves of FP8 against BF16",
    "Table 1": "GPU hours and cost",
    "Table 2": "bubbles and memory of pipeline schedules",
    "Table 4": "ablation of multi-token prediction",
    "Table 5": "ablation of loss-free balancing",
}
ARCHITECTURE = [f"Eq. ({n})" for n in range(1, 26)]  # these need a chapter, a package file and a test each
TAG = re.compile(r"\bV3 (Eq|Table|Fig)(\S*) ?(\S*)")
COLUMNS = ("chapter", "package", "test")
SCREEN = 40  # lines


class Place(NamedTuple):
    """One tagged line."""

    item: str
    column: str
    path: str
    line: int
    name: str  # of the function or class around it


def find_files(root: Path = ROOT) -> dict[Path, str]:
    """List the Python files whose tags count, with their column of the map."""
    files: dict[Path, str] = {}
    for column, patterns in (
        ("test", ["0[0-8]_*/tests/*.py", "tests/**/*.py"]),
        ("chapter", ["0[0-8]_*/*.py"]),
        ("package", ["src/**/*.py", "experiments/**/*.py"]),
    ):
        for pattern in patterns:
            files |= {path: column for path in sorted(root.glob(pattern)) if path.name != "test_paper_map.py"}
    return files


def read_tags(text: str) -> list[tuple[int, str]]:
    """Return (line, item) of every tag in the comments of a source.

    Raises:
        ValueError: a comment that means to be a tag and is spelled in another way.
    """
    found = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.COMMENT:
            continue
        for match in TAG.finditer(token.string):
            kind, dot, number = match.group(1), match.group(2), match.group(3).rstrip(",.:;")
            spelled = {"Eq": r"\(\d+\)", "Fig": r"\d+", "Table": r"\d+"}[kind]
            if dot != ("" if kind == "Table" else ".") or not re.fullmatch(spelled, number):
                raise ValueError(f"line {token.start[0]}: write '# V3 Eq. (7)', '# V3 Table 3' or '# V3 Fig. 6'")
            found.append((token.start[0], f"{kind}{dot} {number}"))
    return found


def name_lines(text: str) -> dict[int, str]:
    """Map each line of a source to the function (Class.method) that it lies in."""
    names: dict[int, str] = {}

    def walk(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            inner = prefix
            if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
                inner = f"{prefix}.{child.name}".lstrip(".")
                names.update(dict.fromkeys(range(child.lineno, (child.end_lineno or child.lineno) + 1), inner))
            walk(child, inner)

    walk(ast.parse(text), "")
    return names


def collect_places(root: Path = ROOT) -> list[Place]:
    """Read the tags of the whole tree.

    Raises:
        ValueError: a tag is misspelled, or names something that the report does not have.
    """
    places = []
    for path, column in find_files(root).items():
        text, where = path.read_text(encoding="utf-8"), path.relative_to(root).as_posix()
        if "V3 " not in text:
            continue
        try:
            tags = read_tags(text)
        except ValueError as error:
            raise ValueError(f"{where}, {error}") from None
        names = name_lines(text) if tags else {}
        for line, item in tags:
            if item not in REPORT:
                raise ValueError(f"{where}, line {line}: the report has no {item}; see REPORT in utils/paper_map.py")
            places.append(Place(item, column, where, line, names.get(line, "")))
    return places


def find_gaps(places: list[Place]) -> list[str]:
    """Say which equation of the architecture lacks a chapter, a package file or a test."""
    have = {(place.item, place.column) for place in places}
    return [f"{item} has no {column}" for item in ARCHITECTURE for column in COLUMNS if (item, column) not in have]


def link(place: Place) -> str:
    """A link to the line, in the words a reader would use: the function for a test, file and line for the rest."""
    name = place.name.split(".")[-1]
    file = place.path.rsplit("/", 1)[-1]
    text = f"`{file}` {name}" if place.column == "test" else f"`{file}:{place.line}` {name}"
    return f"[{text.strip()}](../{place.path}#L{place.line})"


def first_of_each_function(places: list[Place]) -> list[Place]:
    """Keep one place for each item, file and function: the first."""
    return list({(p.item, p.path, p.name): p for p in reversed(places)}.values())[::-1]


def find_stale(text: str, places: list[Place]) -> list[str]:
    """Say what a map shows that the tags do not, and the other way round."""
    shown: dict[tuple[str, str, str], int] = {}
    for row in text.splitlines():
        item = row.split("|")[1].strip() if row.startswith("|") else ""
        for name, path, line in re.findall(r"\[`[^`]+` ?([^\]]*)\]\(\.\./([^)#]+)#L(\d+)\)", row):
            shown[item, path, name] = int(line)
    tagged = {(p.item, p.path, p.name.split(".")[-1]): p.line for p in first_of_each_function(places)}
    more = [f"the map shows {item} in {path}, {name}" for item, path, name in sorted(shown.keys() - tagged.keys())]
    less = [f"the map lacks {item} in {path}, {name}" for item, path, name in sorted(tagged.keys() - shown.keys())]
    far = [key for key in shown.keys() & tagged.keys() if abs(shown[key] - tagged[key]) > SCREEN]
    return (
        more + less + [f"{item} in {path}, {name} is {SCREEN} lines away or more" for item, path, name in sorted(far)]
    )


def build_map(places: list[Place]) -> str:
    """Write the map: one row for each item of the report, all its lines in three columns."""
    lines = [
        "# The report, mapped",
        "",
        "Every numbered equation of DeepSeek-V3 ([arXiv:2412.19437](https://arxiv.org/abs/2412.19437)) that the model",
        "is made of, and the figures and tables that were implemented: the line of the chapter that derives it in",
        "NumPy, the line of the package that runs it in PyTorch, and the tests that hold it. An empty cell: not here.",
        "",
        "Built by `python -m utils.paper_map` from the tags `# V3 Eq. (7)` in the code; do not edit.",
        "",
        "| report | what it says | chapter | package | tests |",
        "|---|---|---|---|---|",
    ]
    for item, words in REPORT.items():
        cells = []
        for column in COLUMNS:
            here = [p for p in first_of_each_function(places) if (p.item, p.column) == (item, column)]
            cells.append("<br>".join(link(p) for p in sorted(here, key=lambda p: (p.path, p.line))))
        if any(cells):
            lines.append(f"| {item} | {words} | {' | '.join(cells)} |")
    absent = [item for item in REPORT if item not in {p.item for p in places}]
    if absent:
        lines += ["", f"Known to the map, without a line here yet: {', '.join(absent)}."]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Rebuild the map, or with --check only say whether it is current."""
    places = collect_places()
    text, gaps = build_map(places), find_gaps(places)
    for gap in gaps:
        print(gap)
    if "--check" in arguments:
        stale = find_stale(MAP.read_text(encoding="utf-8") if MAP.exists() else "", places)
        print("\n".join(stale) + "\nrebuild: python -m utils.paper_map" if stale else "docs/paper_map.md is current")
        return int(bool(stale or gaps))
    MAP.parent.mkdir(exist_ok=True)
    MAP.write_text(text, encoding="utf-8")
    print(f"docs/paper_map.md: {len(places)} tags, {len({p.item for p in places})} items of the report")
    return int(bool(gaps))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
