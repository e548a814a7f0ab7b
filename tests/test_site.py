"""The site: every page is in it, each leads on and to its source, and the check of links finds what is wrong."""

import json
import re
from pathlib import Path

import pytest

from utils.site.check import find_faults
from utils.site.markdown import convert
from utils.site.notebook import join_formulas, read_notebook
from utils.site.pages import ROOT, list_afternoon, list_sections, modules_of
from utils.site.reference import describe_module, render
from utils.site.stage import Stage, write_config

SECTIONS = list_sections()
PAGES = [page for section in SECTIONS for page in section.pages]


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """All pages as Markdown."""
    made = Stage(SECTIONS, tmp_path_factory.mktemp("pages"))
    made.write()
    return made


def test_every_document_chapter_and_notebook_is_in_the_navigation_once():
    patterns = ["*.md", "docs/*.md", "0*/*.md", "0*/*.ipynb", "explorer/*.md", "experiments/**/*.md"]
    there = {path.relative_to(ROOT).as_posix() for pattern in patterns for path in ROOT.glob(pattern)}
    shown = [page.source for page in PAGES if page.kind in ("markdown", "notebook")]
    assert sorted(shown) == sorted(there)
    config = write_config(SECTIONS, ROOT, "")
    for page in PAGES:
        assert config.count(f'= "{page.target}"}}') == 1, page


def test_every_module_that_says_what_it_is_is_in_the_reference():
    patterns = ["src/deepseek_v3/*.py", "src/deepseek_v3/*/*.py", "0*/*.py"]
    there = {path for pattern in patterns for path in ROOT.glob(pattern) if not path.name.startswith("exercise")}
    shown = {path for page in PAGES if page.kind == "reference" for path in modules_of(page)}
    silent = {path for path in there - shown if path.read_text(encoding="utf-8").lstrip().startswith('"""')}
    assert not silent


def test_a_chapter_is_read_in_the_order_of_its_table():
    chapter = next(section for section in SECTIONS if section.title == "02 Latent attention")
    read = [Path(page.target).stem for page in chapter.pages]
    assert read[:5] == ["README", "kv_cache", "multi_query_attention", "grouped_query_attention", "latent_attention"]


def test_the_afternoon_leads_from_the_whole_to_the_explorer():
    path = list_afternoon()
    assert path[0] == "06_whole_model/model.ipynb"
    assert path[-1] == "explorer/README.md"
    assert path.index("02_latent_attention/kv_cache.ipynb") < path.index("03_moe/expert_routing.ipynb")


def test_every_page_leads_on_and_to_its_source(stage):
    for page in PAGES:
        last = (stage.out / page.target).read_text(encoding="utf-8").split('<div class="onward"')[1]
        assert re.search(r"^Next: \[.+\]\(.+\.md\)", last, re.MULTILINE), page
        assert re.search(r"^Source: \[.+\]\(.*code/.+\.html\)", last, re.MULTILINE), page
    last = (stage.out / "02_latent_attention/cache_size.md").read_text(encoding="utf-8").rsplit("Next:", 1)[1]
    assert "../03_moe/expert_routing.md" in last
    assert "code/02_latent_attention/tests/test_cache_size.py.html" in last


def test_links_lead_to_pages_pictures_and_source_files(stage):
    target = re.compile(r"\]\(([^)\s]+)\)")
    seen: dict[str, int] = {}
    for page in PAGES:
        text = (stage.out / page.target).read_text(encoding="utf-8")
        for link in target.findall(re.sub(r"^```.*?^```$|`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE)):
            if re.match(r"[a-z]+:|#", link):
                continue
            path = (stage.out / page.target).parent.joinpath(link.split("#")[0]).resolve()
            inside = path.relative_to(stage.out.resolve()).as_posix()
            if path.suffix == ".html":
                assert inside.removeprefix("code/").removesuffix(".html") in stage.code, f"{page.target}: {link}"
            else:
                assert path.is_file(), f"{page.target}: {link}"
            seen[path.suffix[1:]] = seen.get(path.suffix[1:], 0) + 1
    assert min(seen[kind] for kind in ("md", "html", "png")) > 100, seen


def test_a_line_of_the_paper_map_is_an_anchor_of_its_source_page(stage):
    text = (stage.out / "docs/paper_map.md").read_text(encoding="utf-8")
    assert re.search(r"\(\.\./code/02_latent_attention/decoupled_rope\.py\.html#L-\d+\)", text)
    assert "#L1" not in text


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
