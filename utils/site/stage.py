"""Write every page's Markdown into one folder: links lead to pages or to source files, and a last line leads on.

The folder mirrors the repository, so that most links stay what they are. A link to a file that is no page goes to
`code/`, where `code.py` writes a page for it.
"""

import os
import re
import shutil
from pathlib import Path, PurePosixPath

from utils.site.ledger import write_ledger
from utils.site.markdown import convert, escape
from utils.site.notebook import read_notebook
from utils.site.pages import FENCE, LINK, ROOT, Page, Section, list_afternoon
from utils.site.reference import write_reference

PICTURES = (".png", ".svg")


class Stage:
    """The pages of a site on their way: where each file's page is, and which source files something links to.

    Attributes:
        pages: of all sections, in order.
        code: of each source file that is linked, the pages that do.
    """

    def __init__(self, sections: list[Section], out: Path, root: Path = ROOT, live: str = "") -> None:
        """Begin; `live` is the explorer's address in the site, if it is in it."""
        self.sections, self.out, self.root, self.live = sections, out, root, live
        self.pages = [page for section in sections for page in section.pages]
        self.targets = {page.source: page.target for page in self.pages if page.kind != "reference"}
        self.afternoon = [path for path in list_afternoon(root) if path in self.targets]
        self.code: dict[str, list[str]] = {}

    def write(self) -> None:
        """Write all pages and their pictures."""
        for page, following in zip(self.pages, [*self.pages[1:], self.pages[0]], strict=True):
            text = self.lead_links(self.read(page), page)
            there = self.out / page.target
            there.parent.mkdir(parents=True, exist_ok=True)
            wide = "" if "\n## " in text else "---\nhide: [toc]\n---\n"  # no contents beside a page without headings
            there.write_text(wide + text + self.lead_on(page, following), encoding="utf-8")

    def read(self, page: Page) -> str:
        """Return a page's Markdown as its file has it; a notebook's pictures are written beside it."""
        if page.kind == "reference":
            return write_reference(page, self.root)
        if page.kind == "ledger":
            return write_ledger(self.root)
        if page.kind == "markdown":
            return convert((self.root / page.source).read_text(encoding="utf-8"))
        text, pictures = read_notebook(self.root / page.source)
        for name, content in pictures.items():
            there = self.out / PurePosixPath(page.target).with_name(name)
            there.parent.mkdir(parents=True, exist_ok=True)
            there.write_bytes(content)
        return text

    def lead_links(self, text: str, page: Page) -> str:
        """Return the text with every link within the repository leading to the page of its file."""
        lines, fence = [], ""
        for line in text.splitlines():
            opened = FENCE.match(line)
            if fence:
                fence = "" if opened and opened[1].startswith(fence) else fence
            elif opened:
                fence = opened[1]
            elif not line.startswith("    ") or "](" in line:
                line = LINK.sub(lambda found: f"{found[1]}({self.lead(found[2], page)})", line)
            lines.append(line)
        return "\n".join(lines) + "\n"

    def lead(self, target: str, page: Page) -> str:
        """Return where one link leads to, seen from a page.

        Raises:
            ValueError: it names a file that is not there.
        """
        name, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target) or not name:
            return target
        at = page.target if page.kind in ("reference", "ledger") else page.source
        path = PurePosixPath(os.path.normpath(PurePosixPath(at).parent / name)).as_posix()
        if (self.out / path).is_file() and path not in self.targets:  # a picture of a notebook
            return target
        if (self.root / path / "README.md").is_file():
            path = f"{path}/README.md".removeprefix("./")
        if path in self.targets:
            return self.away(page, self.targets[path]) + (f"#{anchor}" if anchor else "")
        if not (self.root / path).is_file():
            raise ValueError(f"{page.source} links to {target}, which is not there")
        if path.endswith(PICTURES):
            (self.out / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.root / path, self.out / path)
            return self.away(page, path)
        return self.to_code(path, page) + re.sub(r"^L(\d+)$", r"#L-\1", anchor)

    def to_code(self, path: str, page: Page) -> str:
        """Return the link to a source file's page, and remember that it is linked."""
        if page.target not in self.code.setdefault(path, []):
            self.code[path].append(page.target)
        return self.away(page, f"code/{path}.html")

    def away(self, page: Page, target: str) -> str:
        """Return the way from a page to another file of the site."""
        return os.path.relpath(target, PurePosixPath(page.target).parent.as_posix())

    def lead_on(self, page: Page, following: Page) -> str:
        """Return the last line of a page: the next step, that of the afternoon's path, and the source."""
        steps = [f"Next: [{escape(following.title)}]({self.away(page, following.target)})"]
        if page.source in self.afternoon[:-1] and page.kind != "reference":
            path = self.afternoon[self.afternoon.index(page.source) + 1]
            title = next(other.title for other in self.pages if other.source == path)
            steps.append(f"next of [the afternoon]({self.away(page, self.targets['docs/reading_paths.md'])}): "
                         f"[{escape(title)}]({self.away(page, self.targets[path])})")  # fmt: skip
        sources = [page.source]
        if page.kind == "notebook":
            folder, stem = page.source.split("/")[0], Path(page.source).stem
            sources = [f"{folder}/notebooks/{stem}.py", f"{folder}/{stem}.py", f"{folder}/tests/test_{stem}.py"]
        there = [path for path in sources if (self.root / path).is_file()]
        said = ", ".join(f"[{escape(path)}]({self.to_code(path, page)})" for path in there)
        return f'\n\n<div class="onward" markdown="1">\n\n{" · ".join(steps)}\n\nSource: {said}\n\n</div>\n'


def write_config(sections: list[Section], site: Path, live: str) -> str:
    """Return Zensical's configuration: the navigation, and of Markdown what the repository writes."""
    rows = []
    for section in sections:
        pages = [f"{{{quote(page.title)} = {quote(page.target)}}}" for page in section.pages]
        if live and section.title == "The explorer":
            pages.append(f"{{{quote('Open it')} = {quote(live)}}}")
        rows.append(f"  {{{quote(section.title)} = [{', '.join(pages)}]}},")
    return (
        (Path(__file__).parent / "zensical.toml")
        .read_text(encoding="utf-8")
        .replace("nav = []", "nav = [\n" + "\n".join(rows) + "\n]")
    )


def quote(text: str) -> str:
    """Return a string of TOML."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
