"""Which pages the site has, in which order one reads them, and the steps of the afternoon's path.

Whatever stands in docs/ or in a chapter is a page without being named here; names only say what comes first.
"""

import ast
import json
import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent
LINK = re.compile(r"(!?\[(?:[^\[\]`]|`[^`]*`|\[[^\]]*\])*\])\(([^)\s]+)\)")
FENCE = re.compile(r"^ *(```+|~~~+)")

# Documents of docs/ by section; one that is named nowhere is of the package.
FIRST = ["training", "fp8", "distributed", "post_training", "generation", "serving", "checkpoints"]
REPORT = ["paper_map", "errata"]
MEASURED = ["studies", "trials", "decisions"]


class Page(NamedTuple):
    """One page: the file that it shows, its Markdown in the site, its title, and by which module it is written."""

    source: str
    target: str
    title: str
    kind: str = "markdown"


class Section(NamedTuple):
    """A heading of the navigation and its pages."""

    title: str
    pages: list[Page]


def list_sections(root: Path = ROOT) -> list[Section]:
    """Return all sections in reading order: the first pages, a chapter a day, the package, the report, and so on."""
    start = ["README.md", "docs/reading_paths.md", "00_language_model/GLOSSARY.md", "NOTATION.md"]
    sections = [Section("Start", [markdown_page(root, path) for path in start])]
    sections += [list_chapter(root, folder) for folder in find_chapters(root)]
    named = {"reading_paths", *REPORT, *MEASURED}
    others = [path.stem for path in sorted((root / "docs").glob("*.md")) if path.stem not in named]
    others.sort(key=lambda stem: FIRST.index(stem) if stem in FIRST else len(FIRST))
    sections += [
        Section("The package", [markdown_page(root, f"docs/{stem}.md") for stem in others]),
        Section("The explorer", [markdown_page(root, "explorer/README.md")]),
        Section("The report", [markdown_page(root, f"docs/{stem}.md") for stem in REPORT]),
        Section("What was measured", [*list_ledger(root), *(markdown_page(root, f"docs/{s}.md") for s in MEASURED)]),
        Section("Reference", list_reference(root)),
        Section("The project", [markdown_page(root, path) for path in ("CONTRIBUTING.md", "CHANGELOG.md")]),
    ]
    return sections


def find_chapters(root: Path) -> list[Path]:
    """Return the folders of the chapters, in their order."""
    return [path for path in sorted(root.glob("0[0-9]_*")) if (path / "README.md").is_file()]


def list_chapter(root: Path, folder: Path) -> Section:
    """Return a chapter: its README, its notebooks in the README's order, then every further page."""
    readme = folder / "README.md"
    linked = re.findall(r"\]\((\w+\.ipynb)\)", readme.read_text(encoding="utf-8"))
    there = [path.name for path in sorted(folder.glob("*.ipynb"))]
    ordered = list(dict.fromkeys([name for name in linked if name in there] + there))
    first = markdown_page(root, f"{folder.name}/README.md")
    pages = [first, *(notebook_page(folder, name) for name in ordered)]
    rest = [path.name for path in sorted(folder.glob("*.md")) if path.name not in ("README.md", "GLOSSARY.md")]
    return Section(first.title, [*pages, *(markdown_page(root, f"{folder.name}/{name}") for name in rest)])


def list_ledger(root: Path) -> list[Page]:
    """Return the page of all claims, and the verdict of each that has one."""
    pages = [Page("experiments/ledger.py", "experiments/README.md", "The ledger", "ledger")]
    verdicts = sorted((root / "experiments").glob("*/verdict.md"))
    return pages + [markdown_page(root, path.relative_to(root).as_posix()) for path in verdicts]


def list_reference(root: Path) -> list[Page]:
    """Return a page for each room of the package, for what stands beside the rooms, and for each chapter's modules."""
    package = root / "src" / "deepseek_v3"
    rooms = [path for path in sorted(package.iterdir()) if (path / "__init__.py").is_file()]
    pages = [Page("src/deepseek_v3/__init__.py", "reference/deepseek_v3.md", "deepseek_v3", "reference")]
    for room in rooms:
        name = f"src/deepseek_v3/{room.name}/__init__.py"
        pages.append(Page(name, f"reference/{room.name}.md", f"deepseek_v3.{room.name}", "reference"))
    for chapter in find_chapters(root):
        name = f"{chapter.name}/README.md"
        pages.append(Page(name, f"reference/{chapter.name}.md", f"Modules of chapter {chapter.name[:2]}", "reference"))
    return pages


def markdown_page(root: Path, path: str) -> Page:
    """Return the page of a Markdown file; its first heading is its title."""
    found = re.search(r"^# (.+)$", (root / path).read_text(encoding="utf-8"), re.MULTILINE)
    title = re.sub(r"[`*]", "", found[1]) if found else Path(path).stem
    return Page(path, "index.md" if path == "README.md" else path, title)


def notebook_page(folder: Path, name: str) -> Page:
    """Return the page of a notebook; its first heading is its title."""
    cells = json.loads((folder / name).read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    found = re.search(r"^# (.+)$", text, re.MULTILINE)
    title = re.sub(r"[`*$]", "", found[1]) if found else Path(name).stem
    return Page(f"{folder.name}/{name}", f"{folder.name}/{Path(name).stem}.md", title, "notebook")


def list_afternoon(root: Path = ROOT) -> list[str]:
    """Return the files of the afternoon's path, in the order of the table of docs/reading_paths.md."""
    text = (root / "docs" / "reading_paths.md").read_text(encoding="utf-8")
    table = text.split("## An afternoon", 1)[1].split("\n## ", 1)[0]
    linked = [target for _, target in LINK.findall(table[table.index("\n|") :])]
    return list(dict.fromkeys(target.removeprefix("../") for target in linked if target.startswith("../")))


def modules_of(page: Page, root: Path = ROOT) -> list[Path]:
    """Return the source files that a page of the reference describes."""
    source = root / page.source
    if source.name == "README.md":
        skipped = ("exercise", "conftest")
        return [path for path in sorted(source.parent.glob("*.py")) if not path.name.startswith(skipped)]
    return [path for path in sorted(source.parent.glob("*.py")) if has_words(path)]


def has_words(path: Path) -> bool:
    """Whether a module says what it is."""
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) is not None
