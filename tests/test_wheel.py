"""The wheel as a user gets it: what is in it, that every extra can be installed, and that the commands run from it."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = sorted(
    tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
)
PIP = ["-m", "pip", "--quiet", "--disable-pip-version-check"]
BROUGHT = {  # by each extra: what can be imported then
    "": "deepseek_v3.commands.train",
    "hf": "transformers",
    "data": "datasets, pyarrow",
    "gguf": "gguf, deepseek_v3.weights.gguf",
    "serve": "llguidance, prometheus_client, uvicorn, deepseek_v3.serving.app",
    "gpu": "triton",
    "log": "tensorboard",
    "notebooks": "ipykernel, jupytext, matplotlib, nbclient, nbformat",
    "read": "notebook",
    "dev": "hypothesis, jsonschema, ml_dtypes, pyright, pytest, xdist",
    "interop": "mlx_lm",
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, *PIP, "wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (found,) = folder.glob("*.whl")
    return found


def test_everything_that_the_package_reads_at_run_time_is_in_it(wheel):
    names = {name.removeprefix("deepseek_v3/") for name in zipfile.ZipFile(wheel).namelist()}
    package = ROOT / "src" / "deepseek_v3"
    kinds = ("*.py", "*.cpp", "*.hpp", "*.cu", "*.toml", "*.html", "py.typed")
    wanted = {path.relative_to(package).as_posix() for kind in kinds for path in package.rglob(kind)}
    assert wanted <= names
    page = ROOT / "explorer"
    assert {f"explorer/{path.relative_to(page).as_posix()}" for path in page.rglob("*") if path.is_file()} <= names
    assert {"book_model/config.json", "book_model/model.safetensors", "book_model/tokenizer.json"} <= names
    assert not [name for name in names if "test" in name or name.startswith(("utils", "benchmarks"))]


def test_the_commands_run_from_it_in_an_environment_of_its_own(wheel, tmp_path):
    """Its dependencies are those of this environment, by a path file; the package itself is the wheel's."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "env")], check=True)
    python = str(tmp_path / "env" / "bin" / "python")
    subprocess.run([python, *PIP, "install", "--no-deps", "--no-index", str(wheel)], check=True)
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    (site / "borrowed.pth").write_text(str(Path(pytest.__file__).parent.parent))
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "DEEPSEEK_V3_NATIVE": "0"}
    for words, figure in (("size --preset v3-671b", "671,026,419,200"), ("doctor --preset demo", "kernels"),
                          ("--version", "deepseek-v3 ")):  # fmt: skip
        command = tmp_path / "env" / "bin" / "deepseek-v3"
        done = subprocess.run([command, *words.split()], env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert figure in done.stdout
    code = "from deepseek_v3.commands.explore import explorer_files as f; print(f()['model/load.js'])"
    done = subprocess.run([python, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == str(site / "deepseek_v3" / "explorer" / "model" / "load.js"), done.stderr


@pytest.mark.parametrize("extra", EXTRAS)
def test_every_extra_can_be_resolved_under_the_constraints(extra, wheel):
    command = [sys.executable, *PIP, "install", "--dry-run", "--ignore-installed", "-c", str(ROOT / "constraints.txt")]
    done = subprocess.run(
        [*command, f"deepseek-v3-from-scratch[{extra}] @ {wheel.as_uri()}"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("extra", ["", *EXTRAS])
def test_every_extra_can_be_installed_into_a_fresh_environment(extra, wheel, tmp_path):
    """All but PyTorch, which is gigabytes: it is borrowed from this environment, and pip takes it as installed."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "env")], check=True)
    python = str(tmp_path / "env" / "bin" / "python")
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    for name in ("torch", "torchgen", "functorch", "nvidia", "triton", "torch-*.dist-info", "nvidia_*.dist-info"):
        for found in Path(torch.__file__).parent.parent.glob(name):
            (site / found.name).symlink_to(found)
    asked = f"deepseek-v3-from-scratch{f'[{extra}]' if extra else ''} @ {wheel.as_uri()}"
    for command in (["install", "-c", str(ROOT / "constraints.txt"), asked], ["check"]):
        done = subprocess.run([python, *PIP, *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    for code in (f"import {BROUGHT[extra]}", "from deepseek_v3.cli import main; main(['size', '--preset', 'nano'])"):
        done = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
