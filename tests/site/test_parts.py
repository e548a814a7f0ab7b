"""The parts of the site, on small things: the order of pages, lists, notebooks, docstrings, the check of links."""

import json
from pathlib import Path

import pytest

from utils.site.check import find_faults
from utils.site.markdown import convert
from utils.site.notebook import join_formulas, read_notebook
from utils.site.pages import list_sections
from utils.site.reference import describe_module, render
from utils.site.stage import Stage


@pytest.fixture
def repository(tmp_path):
    """A repository with one chapter of two lessons, and a document that nobody named."""
    lesson = json.dumps({"cells": [{"cell_type": "markdown", "source": ["# A lesson\n"]}]})
    afternoon = (
        "# Paths\n## An afternoon\n\n| read |\n|---|\n| [b](../01_x/b.ipynb), [a](../01_x/a.ipynb) |\n\n## A week\n"
    )
    files = {
        "01_x/README.md": "# 01 The x\n\n[b](b.ipynb), then [a](a.ipynb), and [code](b.py)\n",
        "01_x/a.ipynb": lesson, "01_x/b.ipynb": lesson, "01_x/b.py": '"""B."""\n',
        "00_language_model/GLOSSARY.md": "# Words",
        "docs/reading_paths.md": afternoon, "docs/training.md": "# Training\n", "docs/new.md": "# New\n",
        "docs/paper_map.md": "[line](../01_x/b.py#L12)\n", "src/deepseek_v3/model/__init__.py": '"""The model."""\n',
        "src/deepseek_v3/__init__.py": '"""All."""\n', "experiments/ledger.py": '"""L."""\n',
    }  # fmt: skip
    names = "README NOTATION CONTRIBUTING CHANGELOG explorer/README docs/errata docs/studies docs/trials docs/decisions"
    for name, text in {**{f"{name}.md": f"# {name}\n" for name in names.split()}, **files}.items():
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path / "root"


def test_a_chapter_is_read_in_its_readmes_order_and_a_new_document_has_a_place(repository):
    read = {section.title: [page.target for page in section.pages] for section in list_sections(repository)}
    assert read["01 The x"] == ["01_x/README.md", "01_x/b.md", "01_x/a.md"]
    assert read["The package"] == ["docs/training.md", "docs/new.md"]


def test_a_page_leads_on_and_its_links_lead_to_pages_or_lines_of_source(repository, tmp_path):
    stage = Stage(list_sections(repository), tmp_path / "pages", repository)
    stage.write()
    first = (tmp_path / "pages/01_x/README.md").read_text(encoding="utf-8")
    assert "[b](b.md), then [a](a.md), and [code](../code/01_x/b.py.html)" in first
    assert "Next: [A lesson](b.md)" in first
    assert "next of [the afternoon](../docs/reading_paths.md): [A lesson](a.md)" in (
        (tmp_path / "pages/01_x/b.md").read_text(encoding="utf-8")
    )
    assert "(../code/01_x/b.py.html#L-12)" in (tmp_path / "pages/docs/paper_map.md").read_text(encoding="utf-8")
    assert stage.code["01_x/b.py"] == ["01_x/README.md", "01_x/b.md", "docs/paper_map.md", "reference/01_x.md"]


def test_a_link_to_nothing_is_refused(repository, tmp_path):
    (repository / "docs/new.md").write_text("# New\n\n[gone](gone.md)\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"docs/new\.md links to gone\.md, which is not there"):
        Stage(list_sections(repository), tmp_path / "pages", repository).write()


def test_lists_are_read_as_on_a_code_host():
    text = "Two things:\n- one\n  more of it\n  - nested\n\n    of nested\n- two\n\nand 1984\n3. is no list\n"
    assert convert(text) == (
        "Two things:\n\n- one\n    more of it\n    - nested\n\n        of nested\n- two\n\nand 1984\n3. is no list\n"
    )


def test_code_stays_what_it_is():
    text = "Say:\n\n```python\nx = 1\n- 3\n```\n1. run\n\n   ```\n   - a\n   ```\n"
    assert "```python\nx = 1\n- 3\n```\n" in convert(text)
    assert "1. run\n\n    ```\n    - a\n    ```\n" in convert(text)


def notebook_of(tmp_path: Path, outputs: list) -> Path:
    cells = [{"cell_type": "markdown", "source": ["# A\n", "$x$\n"]},
             {"cell_type": "code", "source": ["x = 2\n", "draw(x, [1])"], "outputs": outputs}]  # fmt: skip
    path = tmp_path / "lesson.ipynb"
    path.write_text(json.dumps({"cells": cells}), encoding="utf-8")
    return path


def test_a_notebook_is_its_text_its_code_what_it_printed_and_its_figures(tmp_path):
    printed = {"output_type": "stream", "name": "stdout", "text": ["one ```\n", "two\n"]}
    figure = {"output_type": "display_data", "data": {"image/png": "iVBORw0KGgo=\n", "text/plain": ["<Figure>"]}}
    text, pictures = read_notebook(notebook_of(tmp_path, [printed, figure]))
    assert text.index("# A\n$x$") < text.index("``` python\nx = 2") < text.index("one ```\ntwo\n````")
    assert "![Figure drawn by draw(x, (1))](lesson_1.png)" in text
    assert pictures == {"lesson_1.png": b"\x89PNG\r\n\x1a\n"}


def test_a_formula_that_is_broken_before_a_minus_is_no_list():
    text = "1. so $s = (8\n   - 7)$, and $5\n\n$$\na\n- b\n$$\n"
    assert join_formulas(text) == "1. so $s = (8 - 7)$, and $5\n\n$$\na\n- b\n$$\n"


def test_a_notebook_with_a_failed_cell_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"lesson\.ipynb: a cell gave error"):
        read_notebook(notebook_of(tmp_path, [{"output_type": "error", "ename": "ValueError"}]))


def test_a_docstring_becomes_prose_code_and_lists():
    shown = render("Do it, for a_b * c.\n\n    y = x * 2\n\nArgs:\n    x_ND: rows,\n        in order.\nRaises:\n"
                   "    ValueError: none.\nSource: V3, Eq. (1).")  # fmt: skip
    assert shown.split("\n\n") == [
        "Do it, for a\\_b \\* c.", "```text\ny = x * 2\n```", "**Args**", "- `x_ND`: rows, in order.", "**Raises**",
        "- `ValueError`: none.", "**Source** V3, Eq. (1).\n",
    ]  # fmt: skip


def test_the_reference_has_what_is_public_with_its_line(tmp_path):
    path = tmp_path / "thing.py"
    path.write_text('"""A thing."""\n\n\ndef seen(x: int, *, y: str = "a") -> int:\n    """See."""\n\n\n'
                    'def _hidden():\n    pass\n\n\nclass Kept:\n    """Keep."""\n    n: int\n\n    def do(self):\n'
                    '        """Act."""\n', encoding="utf-8")  # fmt: skip
    text = describe_module(path, "src/thing.py")
    assert "```python\ndef seen(x: int, *, y: str='a') -> int\n```" in text
    assert "class Kept\n    n: int" in text
    assert "**Kept.do**" in text
    assert "(../src/thing.py#L4)" in text
    assert "hidden" not in text


GOOD = '<a href="b/two.html#here">b</a><img src="a.png"><a href="https://example.org">e</a>'
FAULTS = {
    "": "",
    '<a href="three.html">x</a>': "index.html links to three.html, which is not there",
    '<a href="b/two.html#there">x</a>': "index.html links to b/two.html#there: there is no such anchor",
    '<a href="../up.html">x</a>': "index.html links to ../up.html, which is not there",
    '<script src="https://example.org/x.js"></script>': "index.html loads https://example.org/x.js from elsewhere",
    '<link rel="stylesheet" href="//example.org/x.css">': "index.html loads //example.org/x.css from elsewhere",
    '<img src="c.png">': "index.html loads c.png, which is not there",
}


@pytest.mark.parametrize(("planted", "told"), FAULTS.items())
def test_the_check_tells_a_fault(tmp_path, planted, told):
    site = tmp_path / "html"
    (site / "b").mkdir(parents=True)
    (site / "index.html").write_text(GOOD + planted, encoding="utf-8")
    (site / "b" / "two.html").write_text('<h2 id="here"><a href="../index.html">i</a>', encoding="utf-8")
    (site / "a.png").write_bytes(b"")
    (tmp_path / "up.html").write_text("", encoding="utf-8")
    assert list(find_faults(site)) == [told] * bool(told)


def test_the_check_tells_orphans_and_what_a_style_loads(tmp_path):
    (tmp_path / "index.html").write_text("<p>", encoding="utf-8")
    (tmp_path / "alone.html").write_text("<p>", encoding="utf-8")
    (tmp_path / "x.css").write_text(
        "a { src: url('https://example.org/f') } b { src: url(no.woff2) }", encoding="utf-8"
    )
    told = "\n".join(find_faults(tmp_path))
    assert "alone.html is an orphan" in told
    assert "x.css loads https://example.org/f from elsewhere" in told
    assert "x.css loads no.woff2, which is not there" in told
