"""The bug zoo: plant a known mistake, run the tests that should notice, and say which one did.

    python -m utils.bugs                 every bug of every chapter and of the package
    python -m utils.bugs 02 rope         only those whose place or name contains every word
    python -m utils.bugs --list          the table without running

A bug is an entry of a `bugs.toml` (one in each chapter; for the package one file a room in tests/bugs/):

    [[bug]]
    name = "the scale of the absorbed width"
    row = "scale"                              # a word to find it by; optional
    symptom = "the absorbed scores are a little flat; the model still speaks, but worse"
    file = "absorbed_attention.py"             # relative to the folder of bugs.toml (for tests/bugs/: to the root)
    find = "scale = (K + R) ** -0.5"           # must occur exactly once
    plant = "scale = (C + R) ** -0.5"
    tests = ["tests/test_absorbed_attention.py"]   # relative likewise; may name one test with ::

The tree is copied, the line replaced there, the tests run there: the working tree is never touched.
"""

import multiprocessing
import os
import re
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PRELOADED = [
    "numpy", "torch", "pytest", "hypothesis", "safetensors.torch", "tokenizers", "ml_dtypes",
    "torch.fx.experimental.symbolic_shapes",  # of the first backward pass
    "transformers.models.deepseek_v3.modeling_deepseek_v3", "transformers.models.deepseek_v2.modeling_deepseek_v2",
]  # fmt: skip


@dataclass(frozen=True)
class Bug:
    """One planted mistake."""

    name: str
    symptom: str
    folder: str  # relative to the root; "." for the package
    file: str
    find: str
    plant: str
    tests: tuple[str, ...]
    row: str = ""


def load_bugs(root: Path = ROOT) -> list[Bug]:
    """Read every bugs.toml; complain about an entry that cannot be planted.

    Raises:
        ValueError: a text to replace does not occur exactly once, or a test file is missing.
    """
    bugs = []
    for path in [*sorted(root.glob("0[0-8]_*/bugs.toml")), *sorted(root.glob("tests/bugs/*.toml"))]:
        folder = root if path.parent.name == "bugs" else path.parent
        for entry in tomllib.loads(path.read_text(encoding="utf-8")).get("bug", []):
            entry["tests"] = tuple(entry["tests"])
            bug = Bug(folder=folder.relative_to(root).as_posix(), **entry)
            count = (folder / bug.file).read_text(encoding="utf-8").count(bug.find)
            if count != 1:
                raise ValueError(
                    f"{path}: '{bug.name}': {bug.file} has {count} places like {bug.find!r}; make it exactly 1"
                )
            for test in bug.tests:
                if not (folder / test.split("::")[0]).exists():
                    raise ValueError(f"{path}: '{bug.name}': no test file {test}")
            bugs.append(bug)
    return bugs


def hunt(bug: Bug, root: Path = ROOT) -> str:
    """Plant the bug in a copy and run its tests; return the name of the first test that fails, or an empty string.

    Raises:
        RuntimeError: the tests could not run at all.
    """
    with tempfile.TemporaryDirectory(prefix="bug-") as scratch:
        copy = Path(scratch)
        ignore = shutil.ignore_patterns("*.ipynb", "__pycache__", "notebooks", "node_modules", ".*")  # peers lie in .X
        for name in ("conftest.py", "pyproject.toml"):
            shutil.copy(root / name, copy / name)
        chapters = [p.name for p in root.glob("0[0-8]_*")]  # 06 stands on the others
        meeting = ["utils", *chapters] if bug.folder.startswith("06") else ["utils", bug.folder]
        folders = meeting if bug.folder != "." else ["utils", "src", "tests", "explorer", "experiments", *chapters]
        for name in folders:
            shutil.copytree(root / name, copy / name, ignore=ignore)
        target = copy / bug.folder / bug.file
        target.write_text(target.read_text(encoding="utf-8").replace(bug.find, bug.plant), encoding="utf-8")
        output = copy / "output.txt"
        own_kernels = target.suffix in (".cpp", ".hpp")
        code = _run_tests(copy, copy / bug.folder, bug.tests, output, own_kernels=own_kernels)
        printed = output.read_text(encoding="utf-8", errors="replace")
    if code == 0:
        return ""
    caught = re.search(r"^(?:FAILED|ERROR) \S*?([^/\s]+\.py(?:::\S+)?)", printed, re.M)
    if code != 1 or not caught:
        raise RuntimeError(f"'{bug.name}': the tests did not run (exit code {code}):\n{printed[-3000:]}")
    return caught.group(1)


def _run_tests(copy: Path, folder: Path, tests: tuple[str, ...], output: Path, *, own_kernels: bool) -> int:
    """Run pytest on the copy in a process forked from one that has NumPy, PyTorch and pytest loaded already.

    Importing them takes longer than most of the tests that are run here.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=_pytest_in_copy, args=(str(copy), str(folder), tests, str(output), own_kernels))
    process.start()
    process.join(timeout=300)
    if process.exitcode is None:
        process.kill()
        process.join()
        return -9
    return process.exitcode


def _pytest_in_copy(copy: str, folder: str, tests: tuple[str, ...], output: str, own_kernels: bool) -> None:
    """In the forked process: look at the copy only, write what pytest prints into a file, leave its exit code."""
    sink = os.open(output, os.O_WRONLY | os.O_CREAT)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    os.chdir(folder)
    sys.dont_write_bytecode = True
    real = {str(ROOT), str(ROOT / "src"), *(str(p) for p in ROOT.glob("0[0-8]_*")), ""}
    sys.path[:] = [f"{copy}/src", copy, *(p for p in sys.path if p not in real)]
    for name in [n for n in sys.modules if n.split(".")[0] in ("utils", "deepseek_v3", "experiments", "conftest")]:
        del sys.modules[name]
    os.environ.update(PYTHONPATH=f"{copy}/src{os.pathsep}{copy}", OMP_NUM_THREADS="1", PYTHONDONTWRITEBYTECODE="1")
    if own_kernels:  # compiled from a mistake, and of no use to anyone after; only what differs is compiled
        mine = Path(copy) / "cache" / "deepseek-v3"
        mine.mkdir(mode=0o700, parents=True)
        kept = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deepseek-v3"
        for unit in kept.glob("*.o"):
            shutil.copy(unit, mine)
        os.environ["XDG_CACHE_HOME"] = f"{copy}/cache"
    for name in [n for n in os.environ if n.startswith("PYTEST") or n in ("CI", "BUILD_NUMBER")]:
        del os.environ[name]  # with CI, pytest would show what differs at any length
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # pytest would rewrite all of Hypothesis, anew in every process
    import pytest

    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    code = pytest.main(["-x", "-p", "no:cacheprovider", f"--rootdir={copy}", *tests])
    sys.stdout.flush()
    os._exit(int(code))


def main(words: list[str]) -> int:
    """Run the zoo and print its table; the exit code is 1 when a bug got away."""
    listing = "--list" in words
    words = [w.lower() for w in words if w != "--list"]
    bugs = [b for b in load_bugs() if all(w in f"{b.folder}/{b.file} {b.name} {b.row}".lower() for w in words)]
    escaped = 0
    print(f"{'place':<44} {'the mistake':<58} caught by")
    with ThreadPoolExecutor(max_workers=2) as pool:
        found = [""] * len(bugs) if listing else pool.map(hunt, bugs)
        for bug, test in zip(bugs, found):
            escaped += not test and not listing
            verdict = f"symptom: {bug.symptom}" if listing else test or "NOTHING: it got away"
            print(f"{(bug.folder + '/' + bug.file).removeprefix('./'):<44} {bug.name:<58} {verdict}", flush=True)
    if not listing:
        print(f"{len(bugs) - escaped} of {len(bugs)} planted mistakes caught")
    return int(escaped > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
