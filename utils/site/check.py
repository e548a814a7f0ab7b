"""Whether a built site holds together: every link and anchor, no orphan, nothing loaded from elsewhere.

python -m utils.site.check build/site/html
"""

import os
import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "link": "href",
}
ALONE = ("404.html",)  # a server shows it for what is not there


class Read(HTMLParser):
    """What a page says of itself: its anchors, where its links lead, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag."""
        held = {name: value or "" for name, value in attrs}
        self.anchors |= {held[name] for name in ("id", "name") if name in held}
        if tag == "a" and "href" in held:
            self.links.append(held["href"])
        if tag in LOADED and LOADED[tag] in held and held.get("rel") not in ("prev", "next", "canonical"):
            self.loaded.append(held[LOADED[tag]])


def find_faults(site: Path) -> Iterator[str]:
    """Say everything that is wrong with a site."""
    pages = {path: Read(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    reached, waiting = set(), [site / "index.html"]
    for path, page in pages.items():
        name = path.relative_to(site)
        for target in page.loaded:
            if is_elsewhere(target):
                yield f"{name} loads {target} from elsewhere"
            elif not target.startswith("data:") and not resolve(site, path, target).is_file():
                yield f"{name} loads {target}, which is not there"
        for target in page.links if path.name not in ALONE else []:
            yield from fault_of(site, path, target, pages)
    while waiting:
        path = waiting.pop()
        if path not in reached and path in pages:
            reached.add(path)
            waiting += [resolve(site, path, target) for target in pages[path].links if not is_elsewhere(target)]
    for path in pages.keys() - reached:
        if path.name not in ALONE:
            yield f"{path.relative_to(site)} is an orphan: no way leads there from index.html"
    for path in sorted(site.rglob("*.css")):
        for target in re.findall(r"(?:url\(|@import )['\"]?([^'\")\s]+)", path.read_text(encoding="utf-8")):
            if is_elsewhere(target):
                yield f"{path.relative_to(site)} loads {target} from elsewhere"
            elif not target.startswith(("data:", "#")) and not resolve(site, path, target).is_file():
                yield f"{path.relative_to(site)} loads {target}, which is not there"


def fault_of(site: Path, path: Path, target: str, pages: dict[Path, Read]) -> Iterator[str]:
    """Say what is wrong with one link; a link to elsewhere is the reader's to follow, and not looked at."""
    name = path.relative_to(site)
    if is_elsewhere(target) or re.match(r"(mailto|javascript|data):", target):
        return
    there, anchor = resolve(site, path, target), unquote(urlsplit(target).fragment)
    if site.resolve() not in there.resolve().parents or not there.is_file():
        yield f"{name} links to {target}, which is not there"
    elif anchor and there in pages and anchor not in pages[there].anchors and not is_application(there):
        yield f"{name} links to {target}: there is no such anchor"


def is_application(path: Path) -> bool:
    """Whether a page reads its state from the address: the explorer."""
    return (path.parent / "explorer.js").is_file()


def resolve(site: Path, path: Path, target: str) -> Path:
    """Return the file that a link of a page means; a folder means its index."""
    name = unquote(urlsplit(target).path)
    here = site if name.startswith("/") else path.parent
    there = Path(os.path.normpath(here / name.lstrip("/"))) if name else path
    return there / "index.html" if there.is_dir() else there


def is_elsewhere(target: str) -> bool:
    """Whether an address names another server."""
    return re.match(r"([a-z]+:)?//", target) is not None


if __name__ == "__main__":
    faults = list(find_faults(Path(sys.argv[1])))
    print(
        "\n".join(faults)
        if faults
        else "every link leads somewhere, every page is reached, nothing comes from elsewhere"
    )
    sys.exit(bool(faults))
