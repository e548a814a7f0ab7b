"""Build the site: `make site` calls this with the environment that has Zensical.

    python -m utils.site [--run RUN] [--python PYTHON]

Into build/site: `pages` (Markdown), `html` (the site). The explorer's page needs a model: a run that is named, or the
one that `deepseek-v3 explore` takes without a name; without any the site says how to make one.
"""

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

from utils.site.check import find_faults
from utils.site.code import write_code
from utils.site.pages import ROOT, list_sections
from utils.site.stage import Stage, write_config

HERE = Path(__file__).parent
BUILD = ROOT / "build" / "site"
NODE = BUILD / "node_modules"
LIVE = "explorer/live/index.html"
WAYS = """<p>This page: <a href="../index.html">what it is</a>, <a href="../../code/explorer/main.js.html">source</a>;
next: <a href="../../docs/reading_paths.html">the reading paths</a>.</p>
</footer>"""


def save_explorer(python: str, run: str, folder: Path) -> bool:
    """Write the explorer with a model into a folder; without a model to show, say so and return False.

    Raises:
        SystemExit: a run was named and cannot be shown.
    """
    if not Path(python).is_file():
        print(f"the explorer's page is left out: there is no {python}, which `make site` makes")
        return False
    words = [python, "-m", "deepseek_v3", "explore", *([run] if run else []), "--save", str(folder)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        if run:
            raise SystemExit(said)
        print(f"the explorer's page is left out: {said}")
    return not done.returncode


def build_site(run: str, python: str) -> None:
    """Build it all, and check it.

    Raises:
        SystemExit: a tool failed, or the site does not hold together; with what is wrong.
    """
    started = time.monotonic()
    pages, out = BUILD / "pages", BUILD / "html"
    for folder in (pages, out, BUILD / "live"):
        shutil.rmtree(folder, ignore_errors=True)
    live = LIVE if save_explorer(python, run, BUILD / "live") else ""
    sections = list_sections()
    stage = Stage(sections, pages, live=live)
    stage.write()
    shutil.copyfile(HERE / "site.css", pages / "site.css")
    shutil.copyfile(NODE / "iframe-worker" / "shim" / "index.js", pages / "iframe-worker.js")
    (BUILD / "zensical.toml").write_text(write_config(sections, BUILD, live), encoding="utf-8")
    call([sys.executable, "-m", "zensical", "build", "--clean", "--strict", "-f", str(BUILD / "zensical.toml")])
    write_code(ROOT, stage.code, {page.target: page.title for page in stage.pages}, out)
    shutil.copyfile(HERE / "code.js", out / "code.js")
    call(["node", str(HERE / "formulas.mjs"), str(out), str(NODE / "katex")])
    if live:
        shutil.copytree(BUILD / "live", (out / LIVE).parent, dirs_exist_ok=True)
        page = out / LIVE
        page.write_text(page.read_text(encoding="utf-8").replace("</footer>", WAYS, 1), encoding="utf-8")
    faults = list(find_faults(out))
    if faults:
        raise SystemExit("\n".join(faults))
    n_pages = sum(1 for _ in out.rglob("*.html"))
    print(f"{n_pages} pages in {time.monotonic() - started:.0f} s: open {(out / 'index.html').relative_to(ROOT)}")


def call(words: list[str]) -> None:
    """Run a tool.

    Raises:
        SystemExit: it failed.
    """
    if subprocess.run(words, cwd=ROOT).returncode:
        raise SystemExit(f"{' '.join(words[:3])} failed")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m utils.site")
    parser.add_argument("--run", default="")
    parser.add_argument("--python", default=str(ROOT / ".venv" / "bin" / "python"))
    said = parser.parse_args()
    build_site(said.run, said.python)
