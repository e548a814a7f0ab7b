"""The page in a real browser: it writes, colours drafts, draws the cache, asks nobody else, and fits a phone."""

import pytest
from browser import CHROMIUM, Browser
from serving_harness import run_server

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
WRITE = "document.getElementById('words').value = 'the quick'; document.getElementById('form').requestSubmit()"
DONE = "control === null && document.querySelector('#text .pen') === null && document.querySelector('.who')"


HERE = "typeof model !== 'undefined' && model === 'tiny'"


@pytest.fixture(scope="module")
def browser():
    with Browser() as one:
        yield one


@pytest.fixture
def page(server, browser):
    browser.seen.clear()
    browser.call("Page.navigate", url=f"http://{server.host}:{server.port}/")
    browser.wait(HERE)
    yield browser
    for said in browser.seen:
        assert said["method"] not in ("Runtime.exceptionThrown", "Log.entryAdded"), said
        url = said.get("params", {}).get("request", {}).get("url", "")
        assert not url or url.startswith((f"http://{server.host}:{server.port}/", "data:")), url


def text_of(browser):
    return browser.run("[...document.querySelectorAll('#text span > span')].map(s => [s.className, s.textContent])")


def test_a_prompt_is_continued_with_coloured_drafts_and_the_cache_is_drawn(page):
    page.run(
        "choose('prompt'); document.getElementById('most').value = 60; document.getElementById('drafts').value = 2"
    )
    page.run(WRITE)
    page.wait(DONE)
    kinds = {kind for kind, _ in text_of(page)}
    assert "fell" in kinds
    assert not page.run("document.querySelector('.wrong')")
    assert page.run("document.getElementById('share').textContent").endswith("%")
    page.wait("document.getElementById('used').textContent.includes(' of ')")
    painted = "document.getElementById('blocks').getContext('2d').getImageData(3, 3, 1, 1).data[3]"
    assert page.run(painted) > 0


def test_a_dialogue_has_turns_and_an_answer_can_be_stopped(page, server):
    page.run("document.getElementById('most').value = 8")
    page.run(WRITE)
    page.wait(DONE)
    page.run(WRITE)
    page.wait(DONE)
    assert page.run("messages.map(m => m.role)") == ["user", "assistant", "user", "assistant"]
    page.run("document.getElementById('most').value = 150; " + WRITE)
    page.run("document.getElementById('form').requestSubmit()")
    page.wait(DONE)
    assert server.wait_until(lambda: server.worker.load == 0)
    assert page.run("document.getElementById('go').textContent") == "Write"


def test_an_error_is_shown_in_its_words(page):
    page.run("document.getElementById('most').value = 99999; " + WRITE)
    page.wait("document.querySelector('.wrong')")
    assert "maximum context length" in page.run("document.querySelector('.wrong').textContent")
    page.seen = [
        said for said in page.seen if said["method"] != "Log.entryAdded"
    ]  # the browser tells of the 400 itself


def test_a_text_of_markup_stays_text(page):
    page.run(f"choose('prompt'); {WRITE.replace('the quick', '<img src=x onerror=alert(1)><b>')}")
    page.wait(DONE)
    assert page.run("document.querySelectorAll('#text img, #text b').length") == 0


def test_a_common_screen_holds_all_of_it_and_only_the_text_scrolls(page):
    page.run("choose('prompt'); document.getElementById('most').value = 150")
    try:
        page.resize(1280, 800)
        page.run(WRITE.replace("the quick", "fox " * 40 + "\\n" * 40))
        page.wait(DONE)
        page.wait("document.getElementById('used').textContent.includes(' of ')")
        for place in ("document.documentElement", "document.querySelector('aside')"):
            assert page.run(f"{place}.scrollHeight - {place}.clientHeight") == 0, place
        assert page.run("document.getElementById('go').getBoundingClientRect().bottom") <= 800
        assert page.run("$('text').scrollHeight > $('text').clientHeight && $('text').scrollTop > 0")
        page.resize(1280, 560)  # lower ones scroll the numbers beside it, never the page
        assert page.run("document.documentElement.scrollHeight") <= 560
    finally:
        page.resize(1280, 860)


def test_nothing_is_wider_than_a_phone(page):
    try:
        for width in (320, 390, 768):
            page.resize(width, 800)
            assert page.run("document.documentElement.scrollWidth") <= width
    finally:
        page.resize(1280, 860)


def test_behind_a_key_the_browser_sends_it_as_a_password_and_goes_on(model, tokenizer, browser):
    with run_server(model, tokenizer, api_key=("secret-of-12",)) as locked:
        browser.call("Page.navigate", url=f"http://any:secret-of-12@{locked.host}:{locked.port}/")
        browser.wait(HERE)
        browser.call("Page.navigate", url="about:blank")
