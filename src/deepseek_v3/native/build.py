"""Compile the C++ kernels of this folder once, keep them, and load them; without a compiler PyTorch serves instead.

    if have_kernels(): run_kernel("rms_norm", x, weight, y, rows, width, eps)

A kernel's arguments are tensors (it gets the address), whole numbers (int64_t) and fractions (double); it returns
nothing. It cannot see shapes and strides, so its caller has checked them.

The kernels are compiled for the processor at hand, so the library is kept under a name made of the sources, the
flags, the compiler and the processor: another machine with the same home folder compiles its own. Everything that a
kernel computes can be computed by PyTorch too; `DEEPSEEK_V3_NATIVE=0` in the environment says to do so, and
`DEEPSEEK_V3_NATIVE_FLAGS` adds options for the compiler, such as another `-march=`. `CXX` names the compiler.

The library ends with the digest of what stands before it: one that was cut or damaged would end the process, so it is
made again. It is kept in a folder that only this user can write to, for what is loaded from it is run.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

HERE = Path(__file__).resolve().parent
# No -ffast-math: a loss that is not finite must stay so. A product and a sum may fuse, as in PyTorch's own kernels.
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC")
FLAGS += ("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", "-Wall")
WITHOUT_AMX = ("-mno-amx-tile", "-mno-amx-bf16", "-mno-amx-int8")
DIGEST_BYTES = hashlib.sha256().digest_size
OFF = ("0", "false", "no", "off")
SWITCH, MORE_FLAGS = "DEEPSEEK_V3_NATIVE", "DEEPSEEK_V3_NATIVE_FLAGS"


class Loaded(NamedTuple):
    """The kernels and where they are kept, or None and why there are none."""

    kernels: ctypes.CDLL | None
    path: Path | None = None
    why_not: str | None = None


def have_kernels() -> bool:
    """Whether kernels serve here; compiles them at the first call. False where it is forbidden or cannot be done."""
    return why_no_kernels() is None


def is_switched_off() -> bool:
    """Whether the environment says to do without: 0, false, no or off."""
    return os.environ.get(SWITCH, "1").strip().lower() in OFF


def why_no_kernels() -> str | None:
    """What keeps the kernels from serving here; None where they serve. Compiles them at the first call."""
    return f"switched off by {SWITCH}={os.environ[SWITCH]}" if is_switched_off() else _load().why_not


def kept_library() -> Path | None:
    """Where the compiled kernels are kept, if they serve."""
    return _load().path if have_kernels() else None


def compiler_command() -> list[str] | None:
    """The C++ compiler: the words of CXX, or g++ if there is one."""
    named = shlex.split(os.environ.get("CXX", "")) or [shutil.which("g++") or ""]
    return named if named[0] else None


def run_kernel(name: str, *arguments: Tensor | int | float | None) -> None:
    """Call a kernel, with as many threads as PyTorch uses; None is a null pointer.

    Raises:
        AttributeError: no kernel of that name.
    """
    kernels = _load().kernels
    assert kernels is not None, "ask have_kernels() first"
    getattr(kernels, name)(*[_as_c(argument) for argument in arguments])


@lru_cache
def ask_kernel(name: str) -> int:
    """Ask, once a process, for a whole number that the kernels know."""
    kernels = _load().kernels
    assert kernels is not None
    return int(getattr(kernels, name)())


def _as_c(value: Tensor | int | float | None):
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    if value is None:
        return ctypes.c_void_p()
    return ctypes.c_int64(value) if isinstance(value, int) else ctypes.c_double(value)


@lru_cache(maxsize=1)
def _load() -> Loaded:
    """Load the kernels, or say once on standard error why PyTorch serves."""
    compiler = compiler_command()
    if platform.machine() not in ("x86_64", "AMD64", "aarch64") or sys.platform != "linux":
        return _do_without(f"there are none for {sys.platform} on {platform.machine()}")
    if compiler is None:
        return _do_without("no C++ compiler; install g++, or name one in CXX")
    try:
        path = _compile(compiler)
        return Loaded(ctypes.CDLL(str(path)), path)
    except (OSError, subprocess.SubprocessError) as error:
        lines = str(getattr(error, "stderr", "") or error).strip().splitlines()
        reason = next((line for line in lines if "error:" in line), lines[0])
        return _do_without(f"they could not be compiled: {reason}")


def _do_without(reason: str) -> Loaded:
    print(f"deepseek-v3: no kernels for this CPU, so PyTorch serves, several times slower: {reason}", file=sys.stderr)
    return Loaded(None, why_not=reason)


def _compile(compiler: list[str]) -> Path:
    """Return the path of the library, made by this process or by an earlier or parallel one."""
    import fcntl

    flags = (*FLAGS, *(() if _ask_for_amx() else WITHOUT_AMX), *os.environ.get(MORE_FLAGS, "").split())
    common = hashlib.sha256(repr((flags, _run(*compiler, "--version"), _processor())).encode())
    for header in sorted(HERE.glob("*.hpp")):
        common.update(header.name.encode() + b"\0" + header.read_bytes())
    names, together = {}, common.copy()
    for source in sorted(HERE.glob("*.cpp")):
        own = common.copy()
        own.update(source.read_bytes())
        names[source] = f"{source.stem}-{own.hexdigest()[:20]}.o"
        together.update(names[source].encode())
    name = f"kernels-{together.hexdigest()[:20]}.so"
    folder = choose_folder(name)
    library, objects = folder / name, {source: folder / name for source, name in names.items()}
    if is_whole(library):
        return library
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several processes that start at once, one compiles
        if not is_whole(library):
            if library.exists():  # it was damaged, so its objects may be
                for path in objects.values():
                    path.unlink(missing_ok=True)
            _build(library, objects, compiler, flags)
    return library


def _build(library: Path, objects: dict[Path, Path], compiler: list[str], flags: tuple[str, ...]) -> None:
    """Compile what is not there yet, link all of it, and add the digest."""
    if sys.stderr.isatty():
        print("compiling the CPU kernels, once for this machine ...", file=sys.stderr)
    missing = [source for source, made in objects.items() if not made.exists()]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda source: _make(objects[source], *compiler, *flags, "-c", str(source)), missing))
    linked = library.with_suffix(".linked")
    _make(linked, *compiler, "-shared", "-fopenmp", *map(str, objects.values()))
    with open(linked, "ab") as stream:
        stream.write(hashlib.sha256(linked.read_bytes()).digest())
    linked.replace(library)


def is_whole(library: Path) -> bool:
    """Whether the file ends with the digest of what stands before it."""
    try:
        content = memoryview(library.read_bytes())
    except OSError:
        return False
    return hashlib.sha256(content[:-DIGEST_BYTES]).digest() == content[-DIGEST_BYTES:]


def _make(target: Path, *command: str) -> None:
    """Run a compiler's command that writes `target`, which appears whole or not at all."""
    unfinished = target.with_suffix(".part")
    _run(*command, "-o", str(unfinished))
    unfinished.replace(target)


def choose_folder(library: str) -> Path:
    """A folder that only this user can write to, in the cache or, where that cannot be written, for temporary files."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deepseek-v3"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.access(folder, os.W_OK) and _is_private(folder, tighten=True):
            return folder
        if _is_private(folder, tighten=False) and is_whole(folder / library):
            return folder
    except (OSError, RuntimeError):  # not to be written to, or no home at all
        pass
    folder = Path(tempfile.gettempdir()) / f"deepseek-v3-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder if _is_private(folder, tighten=False) else Path(tempfile.mkdtemp(prefix="deepseek-v3-"))


def _is_private(folder: Path, *, tighten: bool) -> bool:
    """Whether a folder is ours and nobody else can write to it; if so from now on, what lay there is removed."""
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        return False
    if status.st_mode & 0o022 and tighten:
        folder.chmod(0o700)
        for path in folder.glob("*-*.*o"):
            path.unlink()
        return True
    return not status.st_mode & 0o022


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
