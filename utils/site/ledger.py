"""The page of the ledger: every claim in one table, with its verdict as it stands."""

import re
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from utils.site.markdown import escape
from utils.site.pages import ROOT

HEAD = """# The ledger

One folder a claim: what is said and by whom, what it must come to, the runs, a figure, a verdict. What is missing is
run by `python -m experiments.ledger NAME --run`.

| claim | must come to | verdict |
|---|---|---|
"""


def write_ledger(root: Path = ROOT) -> str:
    """Return the Markdown of the page; a claim without a run says so."""
    rows = []
    for path in sorted((root / "experiments").glob("*/claim.toml")):
        held = tomllib.loads(path.read_text(encoding="utf-8"))
        file, verdict = path.with_name("verdict.md"), "not run yet"
        if file.is_file():
            found = re.search(r"\*\*Verdict: ([^*]+)\*\*", file.read_text(encoding="utf-8"))
            verdict = f"[{escape(found[1] if found else 'see there').rstrip('.')}]({path.parent.name}/verdict.md)"
        name = f"[{escape(path.parent.name)}]({path.parent.name}/claim.toml)"
        rows.append(
            f"| {name}: {escape(held['claim'])} ({escape(held['source'])}) | {escape(held['number'])} | {verdict} |"
        )
    return HEAD + "\n".join(rows) + "\n"
