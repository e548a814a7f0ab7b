"""Every notebook runs, and none is older than the code that it shows."""

import pytest

from utils.notebooks import ROOT, execute, find_sources, stale

SOURCES = find_sources()


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: f"{s.parent.parent.name}-{s.stem}")
@pytest.mark.filterwarnings("default")  # what the kernel's own libraries warn about is not ours
def test_the_notebook_is_current_and_runs(source):
    assert not stale(source), stale(source)
    execute(source)


def test_every_chapter_module_has_a_notebook_and_a_test():
    bookkeeping = {"exercises", "exercises_solved", "exercise_checks", "conftest"}
    for chapter in [*sorted(ROOT.glob("0[1-5]_*")), *sorted(ROOT.glob("0[78]_*"))]:
        for module in chapter.glob("*.py"):
            if module.stem in bookkeeping:
                continue
            assert (chapter / f"{module.stem}.ipynb").exists(), f"{module} has no notebook"
            assert (chapter / "tests" / f"test_{module.stem}.py").exists(), f"{module} has no test"
