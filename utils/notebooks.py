"""Build the committed notebooks from their py:percent sources, the same bytes on every run.

    python -m utils.notebooks build [STEM ...]   execute CHAPTER/notebooks/STEM.py and write CHAPTER/STEM.ipynb
    python -m utils.notebooks check [STEM ...]   fail when a notebook is older than what it shows

Byte-stable: cell ids are numbered, no timestamps, no kernel chatter. A figure is kept in 256 colours: a third of the
bytes, and no pixel that an eye could tell from the drawn one. A fingerprint in the metadata (source, the
chapter's modules and the drawings that it names, the drawing code) says whether a notebook is stale, without comparing
pictures across machines.
"""

import base64
import hashlib
import io
import os
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHARED = ["utils/whiteboard.py", "utils/figures.mplstyle"]
SPEAKS = ["utils/story_book.py", "utils/story_words.py", "book_model/manifest.json"]  # behind utils/story_model.py
HELPERS = (
    "drawings_",
    "plots_",
    "recall_",
    "clinic_",
    "story_",
)  # of utils: what a chapter draws with, and the task that it trains on


def find_sources(stems: list[str] | None = None) -> list[Path]:
    """List the py:percent sources, all or those with the given stems.

    Raises:
        SystemExit: a stem has no source.
    """
    sources = sorted(ROOT.glob("0[0-8]_*/notebooks/*.py"))
    if stems:
        unknown = set(stems) - {s.stem for s in sources}
        if unknown:
            sys.exit(f"no notebook source named {', '.join(sorted(unknown))}; there are {[s.stem for s in sources]}")
        sources = [s for s in sources if s.stem in stems]
    return sources


def notebook_path(source: Path) -> Path:
    """Where the executed notebook of a source lies: beside the chapter's module of the same stem."""
    return source.parent.parent / f"{source.stem}.ipynb"


def fingerprint(source: Path) -> str:
    """Hash what a notebook depends on: its source, what that names of chapter, utils and studies, style and model."""
    text = source.read_text(encoding="utf-8")
    beside = sorted(source.parent.parent.glob("*.py"))
    helpers = [m for m in sorted((ROOT / "utils").glob("*.py")) if m.stem.startswith(HELPERS)]
    digest = hashlib.sha256(text.encode())
    shared = [*SHARED, *(SPEAKS if "story_model" in text else [])]
    shared += [f"experiments/{name}/results.json" for name in sorted(set(re.findall(r'"(study_\w+)"', text)))]
    for path in [*(p for p in [*beside, *helpers] if p.stem in text), *(ROOT / s for s in shared)]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def execute(source: Path):
    """Run a source in a fresh kernel, in its chapter's folder; return the notebook with its outputs.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    import jupytext
    from nbclient import NotebookClient

    notebook = jupytext.read(source, fmt="py:percent")
    folder = source.parent.parent
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": "1",  # a sum cut for two threads is rounded otherwise than one for four
        "OPENBLAS_NUM_THREADS": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    where = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, timeout=1800, kernel_name="python3", resources=where, record_timing=False)
    try:
        client.execute(env=env)
    except RuntimeError:  # the kernel did not start: another one, started at the same moment, took its port
        client.execute(env=env)
    return notebook


def thin_picture(encoded: str) -> str:
    """Keep a picture in the 256 colours that come nearest to all of its own; one that has a palette stays as it is.

    Args:
        encoded: a PNG in base64, as notebooks hold it.
    """
    from PIL import Image

    picture = Image.open(io.BytesIO(base64.b64decode(encoded)))
    if picture.mode == "P":
        return encoded
    nearest = {"method": Image.Quantize.MAXCOVERAGE, "dither": Image.Dither.NONE}
    thin = io.BytesIO()
    picture.convert("RGB").quantize(256, **nearest).save(thin, "PNG", optimize=True)
    return base64.b64encode(thin.getvalue()).decode()


def settle(notebook, mark: str):
    """Remove everything that differs between two runs (ids, counts of the kernel, versions) and thin the pictures."""
    for i, cell in enumerate(notebook.cells):
        cell.id = f"cell-{i:03d}"
        cell.metadata = {k: v for k, v in cell.metadata.items() if k in ("tags", "jupyter")}
        if cell.cell_type == "code":
            merged = []
            for output in cell.outputs:  # two writes may arrive as one message or as two
                last = merged[-1] if merged else None
                if last and output.output_type == last.output_type == "stream" and output.name == last.name:
                    last.text += output.text
                else:
                    merged.append(output)
                if "image/png" in output.get("data", {}):
                    output.data["image/png"] = thin_picture(output.data["image/png"])
            cell.outputs = merged
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "fingerprint": mark,
    }
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def build(source: Path) -> Path:
    """Execute one source and write its notebook."""
    import nbformat

    notebook = settle(execute(source), fingerprint(source))
    target = notebook_path(source)
    nbformat.validate(notebook)
    target.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
    return target


def stale(source: Path) -> str:
    """Say why a notebook does not match its source, or return an empty string."""
    import json

    target = notebook_path(source)
    if not target.exists():
        return f"{target.relative_to(ROOT)} is missing; run: make notebooks"
    found = json.loads(target.read_text(encoding="utf-8"))["metadata"].get("fingerprint")
    if found != fingerprint(source):
        return f"{target.relative_to(ROOT)} is older than what it shows; run: make notebooks"
    return ""


def build_all(sources: list[Path]) -> None:
    """Build as many at once as there are cores, at most four: a kernel computes on one of them."""
    with ProcessPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for i, target in enumerate(pool.map(build, sources), 1):
            print(f"[{i}/{len(sources)}] {target.relative_to(ROOT)}", flush=True)


def main(arguments: list[str]) -> int:
    """Run `build` or `check`; the exit code counts the failures."""
    if not arguments or arguments[0] not in ("build", "check"):
        print(__doc__)
        return 2
    sources = find_sources(arguments[1:])
    if arguments[0] == "build":
        build_all(sources)
        return 0
    reasons = [reason for source in sources if (reason := stale(source))]
    print("\n".join(reasons), end="\n" if reasons else "")
    return min(len(reasons), 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
