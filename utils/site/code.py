"""A page for every source file that something links to: its lines with numbers, and the pages that lead to it."""

import html
import os
from pathlib import Path, PurePosixPath

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_for_filename
from pygments.lexers.special import TextLexer
from pygments.util import ClassNotFound

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name} - DeepSeek-V3 from scratch</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="{up}/code.css">
<script src="{up}/code.js"></script>
</head>
<body>
<header><a href="{up}/index.html">DeepSeek-V3 from scratch</a> <h1>{name}</h1> <p>Read about it: {pages}</p></header>
<main>{code}</main>
</body>
</html>
"""


def write_code(root: Path, linked: dict[str, list[str]], titles: dict[str, str], out: Path) -> None:
    """Write the pages below out/code.

    Args:
        linked: of each file, the pages (.md) that link to it.
        titles: of each page.
    """
    formatter = HtmlFormatter(linespans="L", wrapcode=True)
    for path, pages in linked.items():
        there = out / "code" / f"{path}.html"
        there.parent.mkdir(parents=True, exist_ok=True)
        up = os.path.relpath(out, there.parent)
        links = [f'<a href="{up}/{page_address(page)}">{html.escape(titles[page])}</a>' for page in pages[:4]]
        text = (root / path).read_text(encoding="utf-8")
        try:
            lexer = get_lexer_for_filename(path, stripnl=False)
        except ClassNotFound:
            lexer = TextLexer(stripnl=False)
        code = highlight(text, lexer, formatter)
        page = PAGE.format(name=html.escape(path), up=up, pages=" · ".join(links), code=code)
        there.write_text(page, encoding="utf-8")
    (out / "code.css").write_text(style_code(), encoding="utf-8")


def page_address(target: str) -> str:
    """Return the address of a page in the site by its Markdown file."""
    path = PurePosixPath(target)
    return str(path.with_name("index.html") if path.name == "README.md" else path.with_suffix(".html"))


def style_code() -> str:
    """Return the style of these pages: ours, and the colours of both themes."""
    lines = (Path(__file__).parent / "code.css").read_text(encoding="utf-8").splitlines()
    for style, where in (("default", "html:not(.dark) .highlight"), ("github-dark", "html.dark .highlight")):
        defined = HtmlFormatter(style=style).get_style_defs(where).splitlines()
        lines += [line for line in defined if line.startswith(f"{where} .")]
    return "\n".join(lines) + "\n"
