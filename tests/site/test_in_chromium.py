"""The built site in a real Chromium: ten pages, as a server gives them and as files; nothing from elsewhere.

make site && python -m pytest -m slow tests/site/test_in_chromium.py --basetemp X      keeps pictures in X
"""

import json
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "serving"))
from browser import CHROMIUM, Browser, answering

from utils.site.check import find_faults

SITE = Path(__file__).resolve().parents[2] / "build" / "site" / "html"
PAGES = [
    "index", "docs/reading_paths", "01_attention/index", "01_attention/self_attention", "02_latent_attention/yarn",
    "03_moe/hints", "docs/paper_map", "experiments/index", "reference/model", "code/src/deepseek_v3/model/router.py",
]  # fmt: skip
WITH_FORMULAS = {"01_attention/self_attention", "02_latent_attention/yarn"}
READY = "document.readyState === 'complete'"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here"),
    pytest.mark.skipif(not (SITE / "index.html").is_file(), reason="`make site` has not been run"),
]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    with answering(ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(SITE)))) as at:
        yield at


@pytest.fixture(scope="module")
def browser():
    with Browser(1400, 900) as one:
        yield one


@pytest.fixture(params=["served", "as files"])
def page(browser, request):
    """A function that opens a page; at the end nobody else was asked and nothing was complained of."""
    home = request.getfixturevalue("server") if request.param == "served" else SITE.as_uri() + "/"
    browser.call("Page.navigate", url="about:blank")
    browser.seen.clear()

    def open_page(name):
        browser.call("Page.navigate", url=f"{home}{name}.html")
        browser.wait(f"location.href.includes({json.dumps(name)}) && {READY}")
        return browser

    yield open_page
    browser.wait(READY)
    for told in browser.seen:
        asked = told.get("params", {}).get("request", {}).get("url", "")
        assert not asked or asked.startswith((home, "data:", "blob:")), asked
        assert told["method"] not in ("Runtime.exceptionThrown", "Log.entryAdded"), json.dumps(told["params"])[:1500]


def test_every_link_of_the_built_site_leads_somewhere_and_no_page_is_an_orphan():
    assert list(find_faults(SITE)) == []


@pytest.mark.parametrize("name", PAGES)
def test_a_page_asks_nobody_else_and_its_formulas_are_written(page, name):
    shown = page(name)
    assert shown.run("document.querySelectorAll('h1').length") >= 1
    assert shown.run("document.querySelectorAll('.arithmatex, .katex-error').length") == 0
    formulas = shown.run("document.querySelectorAll('.katex').length")
    assert (formulas > 10) == (name in WITH_FORMULAS)
    if formulas:
        faces = "[...document.fonts].filter(f => f.family.startsWith('KaTeX') && f.status === 'loaded').length"
        shown.wait(faces)
    broken = "[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
    assert shown.run(broken) == []
    if not name.startswith("code/"):
        assert shown.run("[...document.querySelectorAll('.onward a')].length") >= 2


def test_the_search_finds_a_word_of_a_notebook(page):
    shown = page("index")
    within = "[...document.querySelectorAll('*')].map(node => node.shadowRoot).filter(Boolean)"
    shown.wait("document.querySelector('.md-search__button') && document.fonts.status === 'loaded'")
    shown.run("document.querySelector('.md-search__button').click()")
    shown.wait(f"{within}.some(root => root.querySelector('input') === root.activeElement && root.activeElement)")
    shown.call("Input.insertText", text="absorbed attention")
    shown.wait(f"{within}.some(root => root.querySelector('a[href*=\"absorbed_attention.html\"]'))")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_phone_shows_every_page_at_its_width(browser, server, dark, tmp_path):
    try:
        for width, height in ((390, 844), (1400, 900)):
            browser.resize(width, height, dark=dark)
            for name in PAGES:
                browser.call("Page.navigate", url=f"{server}{name}.html")
                browser.wait(f"location.href.includes({json.dumps(name)}) && {READY}")
                assert browser.run("document.documentElement.scrollWidth") <= width, (name, width)
                browser.picture(tmp_path / f"{name.replace('/', '-')}-{width}.png")
    finally:
        browser.resize(1400, 900)
