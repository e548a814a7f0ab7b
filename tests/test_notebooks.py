"""No notebook is older than the code that it shows, and they run: here the first of each chapter, all with -m slow.

A notebook is built by running it, and its fingerprint is that of its source and of all that it imports: while that
stands, running it again only tells what else has changed on this machine.
"""

import base64
import io
import json
import re

import accumulation_precision
import numpy as np
import pytest
from PIL import Image

from utils import notebooks
from utils.notebooks import ROOT, execute, find_sources, fingerprint, notebook_path, stale, thin_picture

SOURCES = find_sources()
FIRST = {s.parent: s for s in reversed(SOURCES)}
RUN = [pytest.param(s, marks=() if FIRST[s.parent] == s else pytest.mark.slow) for s in SOURCES]


def name(source) -> str:
    return f"{source.parent.parent.name}-{source.stem}"


@pytest.mark.parametrize("source", SOURCES, ids=name)
def test_the_notebook_is_current(source):
    assert not stale(source), stale(source)


@pytest.mark.parametrize("source", RUN, ids=name)
@pytest.mark.filterwarnings("default")  # what the kernel's own libraries warn about is not ours
def test_the_notebook_runs(source):
    execute(source)


@pytest.mark.parametrize("source", SOURCES, ids=name)
def test_the_pictures_of_a_notebook_have_a_palette(source):
    """Without one they are three times as large, and every rebuilt notebook adds that to the history."""
    cells = json.loads(notebook_path(source).read_text(encoding="utf-8"))["cells"]
    data = [o["data"] for c in cells for o in c.get("outputs", []) if "data" in o]
    found = [base64.b64decode(d["image/png"]) for d in data if "image/png" in d]
    assert {Image.open(io.BytesIO(png)).mode for png in found} <= {"P"}


def test_a_thinned_picture_shows_the_colours_that_were_drawn():
    rng = np.random.default_rng(0)
    drawn = np.full((120, 180, 3), 255, dtype=np.uint8)
    drawn[:, :110] = np.stack(np.meshgrid(range(110), range(120)), axis=-1).sum(axis=-1)[..., None] // [1, 2, 4] + 20
    drawn[50:54, 120:] = (192, 57, 107)  # a thin line in a colour of its own
    drawn[rng.integers(0, 120, 9), 115] = (46, 139, 111)
    png = io.BytesIO()
    Image.fromarray(drawn).save(png, "PNG")
    thin = thin_picture(base64.b64encode(png.getvalue()).decode())
    kept = np.asarray(Image.open(io.BytesIO(base64.b64decode(thin))).convert("RGB")).astype(int)
    assert np.abs(kept - drawn).max() <= 8  # of 255
    assert (kept[:, 170][[0, 119]] == 255).all(), "paper stays white"
    assert thin_picture(thin) == thin


LESSON = """# %% [markdown]
# # A lesson
# %%
import sys

import matplotlib.pyplot as plt

print({"a", "b", "c"}, hash("rope"))
print("a warning", file=sys.stderr)
print("and on")
# %%
plt.plot([0, 2, 1])
plt.show()
"""


def test_a_notebook_built_twice_is_the_same_to_the_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(notebooks, "fingerprint", lambda source: "a mark")
    sources = [tmp_path / name / "notebooks" / "lesson.py" for name in ("first", "second")]
    built = []
    for source in sources:
        source.parent.mkdir(parents=True)
        source.write_text(LESSON)
        built.append(notebooks.build(source).read_bytes())
    assert built[0] == built[1]
    assert b"image/png" in built[0]


def test_every_chapter_module_has_a_notebook_and_a_test():
    for chapter in sorted(ROOT.glob("0[0-8]_*")):
        for module in chapter.glob("*.py"):
            if module.stem.startswith("exercise") or module.stem in ("conftest", "chapters", "train"):
                continue
            assert (chapter / f"{module.stem}.ipynb").exists(), f"{module} has no notebook"
            assert (chapter / "tests" / f"test_{module.stem}.py").exists(), f"{module} has no test"


def test_a_changed_drawing_makes_the_notebooks_that_use_it_old_and_no_others(tmp_path, monkeypatch):
    (tmp_path / "utils").mkdir()
    for name in ("whiteboard.py", "figures.mplstyle", "drawings_08.py"):
        (tmp_path / "utils" / name).write_text("")
    folder = tmp_path / "08_x" / "notebooks"
    folder.mkdir(parents=True)
    sources = [folder / "a.py", folder / "b.py"]
    sources[0].write_text("from utils.drawings_08 import draw")
    sources[1].write_text("from utils.drawings_07 import draw")
    monkeypatch.setattr(notebooks, "ROOT", tmp_path)
    before = [fingerprint(s) for s in sources]
    (tmp_path / "utils" / "drawings_08.py").write_text("changed = True")
    assert [fingerprint(s) == old for s, old in zip(sources, before)] == [False, True]


def test_other_weights_make_the_notebooks_old_in_which_the_model_speaks(tmp_path, monkeypatch):
    sources = [tmp_path / "08_x" / "notebooks" / name for name in ("a.py", "b.py")]
    for path in [*sources, *(tmp_path / name for name in [*notebooks.SHARED, *notebooks.SPEAKS])]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("from utils.story_model import open_book" if path == sources[0] else "")
    monkeypatch.setattr(notebooks, "ROOT", tmp_path)
    before = [fingerprint(s) for s in sources]
    (tmp_path / "book_model" / "manifest.json").write_text("other weights")
    assert [fingerprint(s) == old for s, old in zip(sources, before)] == [False, True]


def test_other_results_make_the_notebooks_old_that_draw_a_study(tmp_path, monkeypatch):
    sources = [tmp_path / "08_x" / "notebooks" / name for name in ("a.py", "b.py")]
    results = tmp_path / "experiments" / "study_x" / "results.json"
    for path in [*sources, results, *(tmp_path / name for name in notebooks.SHARED)]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('plot_study("study_x", "a title", names)' if path == sources[0] else "")
    monkeypatch.setattr(notebooks, "ROOT", tmp_path)
    before = [fingerprint(s) for s in sources]
    results.write_text("{}")
    assert [fingerprint(s) == old for s, old in zip(sources, before)] == [False, True]


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: s.stem)
def test_a_lesson_has_short_cells_a_pencil_a_prediction_and_a_proof_of_its_naive_code(source):
    import jupytext

    cells = jupytext.read(source, fmt="py:percent").cells
    code = [c.source for c in cells if c.cell_type == "code"]
    prose = "\n".join(c.source for c in cells if c.cell_type == "markdown")
    long = [c for c in code if len(c.splitlines()) > 15]
    assert not long, f"a cell of {len(long[0].splitlines())} lines: {long[0][:60]}"
    assert "**The question.**" in prose
    for heading in ("Numbers to follow with a pencil", "Change this, predict, run", "What you can now do"):
        assert f"## {heading}" in prose, heading
    assert any("assert " in c for c in code)
    assert "plt." not in "".join(code), "drawings live in utils/drawings_*.py and plots_*.py"
    predict, end = (
        next(i for i, c in enumerate(cells) if c.cell_type == "markdown" and f"## {heading}" in c.source)
        for heading in ("Change this, predict, run", "What you can now do")
    )
    assert any(c.cell_type == "code" for c in cells[predict:end]), "a prediction that nobody can run"
    asked = "\n".join(c.source for c in cells[predict:end] if c.cell_type == "markdown")
    assert "<summary>Afterwards</summary>" in asked, "a prediction without a reason to compare one's own with"
    assert re.search(
        "predict|guess|before you run", asked.split("<details>")[0].split("predict, run")[1], re.IGNORECASE
    )
    pencil = prose.split("## Numbers to follow with a pencil")[1].split("\n## ")[0]
    assert len(re.findall(r"(?<![\w.])\d+(?:[.,/]\d+)*", pencil)) >= 3, "a pencil without numbers"


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: s.stem)
def test_a_lesson_writes_its_mechanism_and_asserts_that_the_module_does_the_same(source):
    """Some cell holds what a function of the notebook says against what a function of its module says."""
    import ast

    chapter = source.parent.parent
    tree = ast.parse(source.read_text(encoding="utf-8"))
    beside = {p.stem for p in chapter.glob("*.py")}
    imports = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module in beside]
    module = {alias.name for node in imports for alias in node.names}
    mine = {n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    assert module, "the notebook imports nothing of its chapter"
    assert mine, "the notebook writes nothing"
    made_by = {}  # which functions a name of the notebook stands on
    held = []
    for node in ast.walk(tree):
        names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} if isinstance(node, ast.stmt) else set()
        if isinstance(node, ast.Assign | ast.For):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            value = node.value if isinstance(node, ast.Assign) else node.iter
            told = {n.id for n in ast.walk(value) if isinstance(n, ast.Name)}
            for name in (n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)):
                made_by[name] = made_by.get(name, set()) | told
        if isinstance(node, ast.Assert):
            held.append(names)

    def behind(names, seen=frozenset()):
        new = set(names) - seen
        return set(names) | (behind(set().union(*(made_by.get(n, set()) for n in new)), seen | new) if new else set())

    assert any(behind(names) & module and behind(names) & mine for names in held), "naive code and module never meet"


def test_a_notebook_tells_the_errors_of_the_kernel_that_were_measured_last():
    """`make kernel-errors` measures them on the package's kernel; the till alone, in chapter 05, makes the same."""
    folder = ROOT / "05_quantization"
    held = json.loads((folder / "kernel_errors.json").read_text(encoding="utf-8"))["outputs"]
    a, b = (x[:64] for x in accumulation_precision.gaussian_operands(1024, 4096))
    for way, every in (("without", None), ("every 128", 128)):
        largest, rms = accumulation_precision.accumulation_error(a, b, promote_every=every)
        assert [held["64"][f"{kind}, {way}"] for kind in ("largest", "rms")] == pytest.approx([largest, rms])
    notebook = (folder / "accumulation_precision.ipynb").read_text(encoding="utf-8")
    for n, errors in held.items():
        told = f"kernel, {n:>4} x {n:<4}: largest {errors['largest, without']:.2%}, "
        assert told + f"with promotion {errors['largest, every 128']:.3%}" in notebook
