"""Compile the C++ kernels of this folder once, keep them, and load them; without a compiler PyTorch serves instead.

    if have_kernels(): run_kernel("rms_norm", x, weight, y, rows, width, eps)

A kernel's arguments are tensors (it gets the address), whole numbers (int64_t) and fractions (double); it returns
nothing. It cannot see shapes and strides, so its caller has checked them.

The kernels are compiled for the processor at hand, so the library is kept under a name made of the sources, the
flags, the compiler and the processor: another machine with the same home folder compiles its own. Everything that a
kernel computes can be computed by PyTorch too; `DEEPSEEK_V3_NATIVE=0` in the environment says to do so, and
`DEEPSEEK_V3_NATIVE_FLAGS` adds options for the compiler, such as another `-march=`.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

from torch import Tensor

HERE = Path(__file__).resolve().parent
# No -ffast-math: a loss that is not finite must stay so. A product and a sum may fuse, as in PyTorch's own kernels.
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC")
FLAGS += ("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", "-Wall")
WITHOUT_AMX = ("-mno-amx-tile", "-mno-amx-bf16", "-mno-amx-int8")
SWITCH, MORE_FLAGS = "DEEPSEEK_V3_NATIVE", "DEEPSEEK_V3_NATIVE_FLAGS"


def have_kernels() -> bool:
    """Whether kernels serve here; compiles them at the first call. False where it is forbidden or cannot be done."""
    return os.environ.get(SWITCH, "1") != "0" and _load() is not None


def run_kernel(name: str, *arguments: Tensor | int | float | None) -> None:
    """Call a kernel, with as many threads as PyTorch uses; None is a null pointer.

    Raises:
        AttributeError: no kernel of that name.
    """
    kernels = _load()
    assert kernels is not None, "ask have_kernels() first"
    getattr(kernels, name)(*[_as_c(argument) for argument in arguments])


@lru_cache
def ask_kernel(name: str) -> int:
    """Ask, once a process, for a whole number that the kernels know."""
    kernels = _load()
    assert kernels is not None
    return int(getattr(kernels, name)())


def _as_c(value: Tensor | int | float | None):
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    if value is None:
        return ctypes.c_void_p()
    return ctypes.c_int64(value) if isinstance(value, int) else ctypes.c_double(value)


@lru_cache(maxsize=1)
def _load() -> ctypes.CDLL | None:
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if compiler is None or platform.machine() not in ("x86_64", "AMD64", "aarch64") or sys.platform != "linux":
        return None
    try:
        return ctypes.CDLL(str(_compile(compiler)))
    except (OSError, subprocess.SubprocessError) as error:
        lines = str(getattr(error, "stderr", "") or error).strip().splitlines()
        reason = next((line for line in lines if "error:" in line), lines[0])
        print(f"the CPU kernels could not be compiled; PyTorch serves, slower: {reason}", file=sys.stderr)
        return None


def _compile(compiler: str) -> Path:
    """Return the path of the library, made by this process or by an earlier or parallel one."""
    import fcntl

    flags = (*FLAGS, *(() if _ask_for_amx() else WITHOUT_AMX), *os.environ.get(MORE_FLAGS, "").split())
    common = hashlib.sha256(repr((flags, _run(compiler, "--version"), _processor())).encode())
    for header in sorted(HERE.glob("*.hpp")):
        common.update(header.name.encode() + b"\0" + header.read_bytes())
    folder, objects, together = _cache_folder(), {}, common.copy()
    for source in sorted(HERE.glob("*.cpp")):
        own = common.copy()
        own.update(source.read_bytes())
        objects[source] = folder / f"{source.stem}-{own.hexdigest()[:20]}.o"
        together.update(objects[source].name.encode())
    library = folder / f"kernels-{together.hexdigest()[:20]}.so"
    if library.exists():
        return library
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several processes that start at once, one compiles
        if library.exists():
            return library
        if sys.stderr.isatty():
            print("compiling the CPU kernels, once for this machine ...", file=sys.stderr)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda source: _make(objects[source], compiler, *flags, "-c", str(source)), objects))
        _make(library, compiler, "-shared", "-fopenmp", *map(str, objects.values()))
    return library


def _make(target: Path, *command: str) -> None:
    """Run a compiler's command that writes `target`, which appears whole or not at all."""
    if not target.exists():
        unfinished = target.with_suffix(".part")
        _run(*command, "-o", str(unfinished))
        unfinished.replace(target)


def _cache_folder() -> Path:
    """A folder that belongs to this user alone, for what is loaded from it is run."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deepseek-v3"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
        if status.st_uid == os.getuid() and not status.st_mode & 0o022 and os.access(folder, os.W_OK):
            return folder
    except (OSError, RuntimeError):  # not to be written to, or no home at all
        pass
    return Path(tempfile.mkdtemp(prefix="deepseek-v3-"))


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _ask_for_amx() -> bool:
    """Ask Linux for the registers of AMX, for all threads of this process; True where there are none to ask for."""
    if platform.machine() not in ("x86_64", "AMD64") or "amx_tile" not in _processor():
        return True
    arch_prctl, ask_permission, tile_data = 158, 0x1023, 18
    return ctypes.CDLL(None).syscall(arch_prctl, ask_permission, tile_data) == 0


def _processor() -> str:
    """What -march=native looks at."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
