"""The book holds together: links lead somewhere, what a page says is graded or tested exists, words have a place."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = sorted(ROOT.glob("0[0-8]_*"))
PAGES = [p for c in CHAPTERS for p in [*sorted(c.glob("*.md")), *sorted((c / "notebooks").glob("*.py"))]]
PAGES += [*sorted(ROOT.glob("*.md")), ROOT / "explorer" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TESTS = {
    node.name
    for path in [*ROOT.glob("0[0-8]_*/tests/*.py"), *ROOT.glob("tests/test_*.py"), *ROOT.glob("tests/*/test_*.py")]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
}


def page_name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def plain_text(path: Path) -> str:
    """The text of a page; in a notebook's source the marks of comments are taken away, so that lines join."""
    text = path.read_text(encoding="utf-8")
    return re.sub(r"^# ?", "", text, flags=re.MULTILINE) if path.suffix == ".py" else text


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_link_within_the_repository_leads_somewhere(page):
    here = page.parent.parent if page.parent.name == "notebooks" else page.parent  # a notebook lies beside its module
    for target in re.findall(r"\]\(([^)\s]+)\)", plain_text(page)):
        if re.match(r"[a-z]+:|#", target):
            continue
        assert (here / target.split("#")[0]).exists(), f"{page_name(page)} links to {target}"


def anchors_of(path: Path) -> set[str]:
    """The anchors of a page as GitHub makes them: small letters, no signs, hyphens for blanks, -1 at a second one."""
    anchors: dict[str, int] = {}
    fenced = re.sub(r"^```.*?^```", "", plain_text(path), flags=re.MULTILINE | re.DOTALL)
    for heading in re.findall(r"^#+ (.*)$", fenced, flags=re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        anchor = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        anchors[anchor] = anchors.get(anchor, -1) + 1
    return {f"{anchor}-{i}" if i else anchor for anchor, n in anchors.items() for i in range(n + 1)}


@pytest.mark.parametrize("page", [p for p in PAGES if p.suffix == ".md"], ids=page_name)
def test_every_anchor_that_a_link_names_is_a_heading_there(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", plain_text(page)):
        place, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target) or not anchor or (place and not place.endswith(".md")):
            continue
        there = anchors_of(page.parent / place if place else page)
        assert anchor in there, f"{page_name(page)} links to {target}; there are {sorted(there)}"


def test_the_questions_that_readers_ask_have_a_heading_each():
    """Chapter 02's README lists them in words; the notebook that it names must answer under these very words."""
    chapter = next(c for c in CHAPTERS if c.name.startswith("02"))
    text = (chapter / "README.md").read_text(encoding="utf-8").split("## Three questions that readers ask")[1]
    rows = re.findall(r"\[`(\w+)`\]\(\w+\.ipynb\), \"([^\"]+)\"", text.split("\n## ")[0])
    assert len(rows) == 3
    for notebook, question in rows:
        headings = re.findall(
            r"^# ## (.*)$", (chapter / "notebooks" / f"{notebook}.py").read_text("utf-8"), re.MULTILINE
        )
        assert f"A reader's question: {question}" in headings, f"{notebook}: {question}"


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda c: c.name)
def test_every_chapter_leads_to_the_glossary(chapter):
    assert "GLOSSARY.md" in (chapter / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda c: c.name)
def test_what_a_notebook_calls_graded_is_an_exercise(chapter):
    tree = ast.parse((chapter / "exercises.py").read_text(encoding="utf-8"))
    exercises = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    for page in sorted((chapter / "notebooks").glob("*.py")):
        for sentence in re.findall(r"Graded:(.*?)\(`make", plain_text(page), flags=re.DOTALL):
            assert (named := set(re.findall(r"`(\w+)`", sentence))) <= exercises, f"{page.name}: {named - exercises}"


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_test_that_a_page_names_exists(page):
    named = set(re.findall(r"`(test_\w+)`", plain_text(page)))
    assert named <= TESTS, f"{page_name(page)} names {sorted(named - TESTS)}"


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_no_page_leans_on_a_list_that_is_not_here(page):
    found = re.findall(r"rows? [\"“`][A-Z][\"”`] of|project's list", plain_text(page))
    assert not found, f"{page_name(page)}: {found}"


def letters_of(chapter: str) -> set[str]:
    """The letters that NOTATION.md gives to a chapter: the alphabet, and what the later tables add for it."""
    letters, column = set(), 0
    for line in (ROOT / "NOTATION.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("| "):
            continue
        if cells[0] == "letter":  # a table begins: is it for all, does it name chapters, has it a column for this one?
            column = next((i for i, cell in enumerate(cells) if cell == f"chapter {chapter}"), -1)
            kind = "all" if "size" in cells else "named" if "chapters" in cells else "columns"
        elif (
            kind == "all"
            or (kind == "named" and chapter in cells[1])
            or (kind == "columns" and column > 0 and cells[column])
        ):
            letters.add(cells[0])
    return letters


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda c: c.name)
def test_the_axes_in_the_names_of_arrays_are_letters_of_the_notation(chapter):
    known = letters_of(chapter.name[:2])
    assert {"B", "S", "D"} <= known
    for path in [*sorted(chapter.glob("*.py")), *sorted((chapter / "notebooks").glob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = node.arg if isinstance(node, ast.arg) else node.id if isinstance(node, ast.Name) else ""
            axes = re.search(r"^[a-z].*_([A-Z][A-Z0-9]*)$", name or "")
            strange = set(re.sub(r"[0-9]", "", axes.group(1))) - known if axes else set()
            assert not strange, f"{path.name}: {name} has axes {sorted(strange)} that NOTATION.md does not know"


@pytest.mark.parametrize("chapter", [c for c in CHAPTERS if c.name < "07"], ids=lambda c: c.name)
def test_the_letters_that_a_module_or_a_notebook_names_are_in_the_notation(chapter):
    known = letters_of(chapter.name[:2])
    for path in [*sorted(chapter.glob("*.py")), *sorted((chapter / "notebooks").glob("*.py"))]:
        text = (
            plain_text(path)
            if path.parent.name == "notebooks"
            else ast.get_docstring(ast.parse(path.read_text("utf-8")))
        )
        for sentence in re.findall(r"\bLetters:\s+((?:[^.]|\.(?=\d))*)", text or ""):
            named = set(re.findall(r"(?<![\w$\\^{])\$?([A-Z])(?:\$| (?=[a-z]))", sentence))
            assert named <= known, f"{path.name} names {sorted(named - known)}: {' '.join(sentence.split())}"


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda c: c.name)
def test_a_planted_mistake_is_sorted_by_a_word_and_not_by_a_letter_of_a_list_that_is_not_here(chapter):
    assert not re.findall(r'^row = "[A-Z]"', (chapter / "bugs.toml").read_text(encoding="utf-8"), flags=re.MULTILINE)
