"""Markdown as code hosts read it, made Markdown as Zensical (Python-Markdown) reads it.

Two things differ in what this repository writes: a list may follow its paragraph without an empty line, and what
belongs to an item is indented by the width of its marker, not by four.
"""

import re

from utils.site.pages import FENCE

ITEM = re.compile(r"^( *)([-*+]|\d{1,3}[.)])( +)(.*)$")


def convert(text: str) -> str:
    """Return the text with lists and folded parts as Zensical reads them; fenced code stays as it is."""
    lines: list[str] = []
    depths: list[int] = []  # of each open list: where its text begins
    fence, shift, before = "", 0, ""
    for line in text.replace("<details>", '<details markdown="1">').splitlines():
        if fence:  # within fenced code
            lines.append(" " * shift + line if line.strip() else line)
            fence = "" if line.strip().startswith(fence) and not line.strip().strip(fence[0]) else fence
            continue
        indent, item = len(line) - len(line.lstrip(" ")), ITEM.match(line)
        if item and before and not depths and not starts_list(item[2]):
            item = None  # a line of a paragraph that happens to begin with a number
        if item and not (indent >= 4 and not depths):
            if before and not depths:
                lines.append("")
            while depths and indent < depths[-1]:
                depths.pop()
            lines.append("    " * len(depths) + f"{item[2]} {item[4]}")
            depths.append(indent + len(item[2]) + len(item[3]))
        elif not line.strip():
            lines.append("")
        else:
            inside = [depth for depth in depths if depth <= indent]
            if not before:  # an empty line ends what this line is not indented for
                depths = depths[: len(inside)]
            shift = 4 * len(inside) - (inside[-1] if inside else 0)
            lines.append(" " * (indent + shift) + line[indent:])
            if opened := FENCE.match(line):
                fence = opened[1]
        before = line.strip()
    return "\n".join(lines) + "\n"


def starts_list(marker: str) -> bool:
    """Whether a marker may follow a line of a paragraph: a bullet, or the number one."""
    return marker in ("-", "*", "+", "1.", "1)")


def escape(text: str) -> str:
    """Return plain words as Markdown that shows them; what stands between backticks stays."""
    parts = re.split(r"(`+[^`]*`+)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([\\*_<>\[\]$|#])", r"\\\1", part) for part in parts)
