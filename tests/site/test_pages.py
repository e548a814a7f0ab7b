"""The site over this repository: every page is in it, in its order, and each leads on and to its source."""

import re
from pathlib import Path

import pytest

from utils.site.pages import ROOT, list_afternoon, list_sections, modules_of
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
