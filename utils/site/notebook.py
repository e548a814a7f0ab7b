"""A notebook as one Markdown page: its text, its code, what it printed, its figures as files beside the page."""

import base64
import json
import re
from pathlib import Path

from utils.site.markdown import convert


def read_notebook(path: Path) -> tuple[str, dict[str, bytes]]:
    """Return the page's Markdown, and its pictures by file name.

    Raises:
        ValueError: a cell failed, or gave something that is neither text nor a PNG.
    """
    parts, pictures = [], {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(convert(join_formulas(source)))
            continue
        parts.append(fence("python", source))
        for output in cell.get("outputs", []):
            if output["output_type"] == "stream":
                parts.append(fence("{.text .printed}", "".join(output["text"]).rstrip("\n")))
            elif "image/png" in output.get("data", {}):
                name = f"{path.stem}_{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode("".join(output["data"]["image/png"]))
                parts.append(f"![{describe(source)}]({name})\n")
            else:
                raise ValueError(f"{path.name}: a cell gave {output['output_type']}, which the site cannot show")
    return "\n".join(parts), pictures


def join_formulas(source: str) -> str:
    """Return the text with each formula of a line on one line: one that is broken before a minus is no list."""
    formula = re.compile(r"(?<![\\$`])\$(?![$\s])((?:[^$\n]|\n(?!\s*\n))+?)(?<![\\\s])\$(?![$\d])")
    return formula.sub(lambda found: re.sub(r"\s*\n\s*", " ", found[0]), source)


def fence(kind: str, text: str) -> str:
    """Return fenced code; the fence is longer than any within."""
    marks = "```"
    while marks in text:
        marks += "`"
    return f"{marks}{kind if kind.startswith('{') else ' ' + kind}\n{text}\n{marks}\n"


def describe(source: str) -> str:
    """Return what a figure is to those who do not see it: the call that drew it."""
    last = [line for line in source.splitlines() if line and not line.startswith((" ", "#", ")"))][-1]
    return "Figure drawn by " + last.replace("[", "(").replace("]", ")").replace("`", "").rstrip("(;: ")
