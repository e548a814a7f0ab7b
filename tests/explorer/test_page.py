"""The explorer's page by its files: how large it is, that it asks nobody, that its words are all there, its address."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "explorer"
FILES = sorted(path for path in PAGE.rglob("*") if path.suffix in (".js", ".html", ".css"))
CODE = [path for path in FILES if path.suffix != ".css"]
TEXT = {path.relative_to(PAGE).as_posix(): path.read_text(encoding="utf-8") for path in FILES}
WORDS = {name: text for name, text in TEXT.items() if not name.startswith("model/")}
KEY = re.compile(r"^  '([\w.]+)': |, '([\w.]+)': ", re.MULTILINE)
DEFINED = {first or second for first, second in KEY.findall(TEXT["strings.js"])}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PAGE).as_posix())
def test_a_file_is_short_and_says_what_it_is(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 300
    assert re.match(r"// \w|/\* \w|<!-- \w", lines[1] if path.suffix == ".html" else lines[0])


def test_all_of_it_is_less_than_3000_lines_and_300_kilobytes():
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in CODE) < 3000
    assert sum(path.stat().st_size for path in FILES) < 300_000


def test_no_file_of_the_page_names_another_place():
    """An address that something could be loaded from: only the name of SVG has one, and nobody asks for that."""
    for name, text in TEXT.items():
        assert not re.findall(r"(?:https?:)?//[\w-]+\.[\w.-]+(?!\S*2000/svg)", re.sub(r"//\s.*", "", text)), name
        assert "eval(" not in text
        assert "innerHTML" not in text, f"{name}: a text is put in as text, never as markup"
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', TEXT["index.html"])
    assert policy is not None
    assert policy[1].startswith("default-src 'none'; script-src 'self'")
    assert "connect-src 'self'" in policy[1]


def used_words() -> tuple[set[str], set[str]]:
    """Keys that the code names whole, and patterns of those that it puts together."""
    whole, patterns = set(), set()
    for name, text in WORDS.items():
        if name == "strings.js":
            continue
        whole |= set(re.findall(r"""(?:say|tell|words)\(\s*'([\w.]+)'""", text))
        whole |= set(re.findall(r"""data-(?:say|name)="([\w.]+)\"""", text))
        whole |= set(re.findall(r"'(\w+\.\w+(?:\.\w+)*)'", text))
        for made in re.findall(r"`((?:\w+|\$\{[^}]*\})(?:\.(?:\w|\$\{[^}]*\})+)+)`", text):
            patterns.add(re.sub(r"\\\$\\\{.*?\\\}", r"[\\w.]+", re.escape(made)))
        for view in re.findall(r"viewHead\('(\w+)'\)", text):
            whole |= {f"{view}.question", f"{view}.lead", f"{view}.name"}
        for part in re.findall(r"card\('([\w.]+)'", text):
            whole |= {f"{part}.title", f"{part}.note"}
    return {key for key in whole if key.split(".")[0] in TOP and key not in PARTS}, patterns


TOP = {key.split(".")[0] for key in DEFINED}
PARTS = {part for text in WORDS.values() for part in re.findall(r"card\('([\w.]+)'", text)}


def test_every_word_that_is_shown_is_defined_and_every_defined_word_is_shown():
    whole, patterns = used_words()
    assert not whole - DEFINED
    shown = whole | {key for key in DEFINED if any(re.fullmatch(pattern, key) for pattern in patterns)}
    assert not DEFINED - shown
    assert len(DEFINED) == sum(len(KEY.findall(line)) for line in TEXT["strings.js"].splitlines()), "a key stands twice"


def test_the_code_holds_no_words_of_its_own():
    """What h() puts into the page as text comes from strings.js, but for signs, numbers and names of formats."""
    for name, text in WORDS.items():
        if name.startswith("views/"):
            text = re.sub(r"^\s*//.*", "", text, flags=re.MULTILINE)
            for words in re.findall(r"h\('(?:p|h\d|span|button|dt|dd|th|td|li)[\w.]*', \{[^}]*\}, '([^']+)'", text):
                assert not re.search(r"[a-z]{3}", words), f"{name}: {words}"


def test_a_colour_means_what_it_means_in_the_chapters():
    board = (ROOT / "utils" / "whiteboard.py").read_text(encoding="utf-8")
    chapters = dict(re.findall(r'"(\w+)": "(#[0-9A-F]{6})"', board))
    light = TEXT["style.css"].split("[data-theme=dark]")[0]
    page = dict(re.findall(r"--(\w+):(#[0-9a-f]{6})", light))
    assert len(chapters) == 7
    assert {kind: page[kind].upper() for kind in chapters} == chapters


def test_an_address_gives_back_the_state_that_it_was_made_of(run_node):
    found = run_node("address.mjs")
    assert found["back"] == found["state"]
    assert found["start"] == ""
    assert found["settled"] == {"token": 4, "key": 4, "layer": 2, "head": 1, "expert": 7, "entry": 37, "outlier": 18}
    assert found["hostile"] == {}, "what cannot be a state is left out"
