"""The command `deepseek-v3 doctor`: what this machine offers, what of it is used, and why not the rest.

    deepseek-v3 doctor
    deepseek-v3 doctor --preset v2-lite-16b --dtype bfloat16 --json

It compiles the kernels if that was not done yet. This file imports no PyTorch until the command runs.
"""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from deepseek_v3.config import ModelConfig
from deepseek_v3.native.heap import users_choice
from deepseek_v3.native.threads import cores_in_use, describe_waiting, threads_now, usable_cores

INSTRUCTIONS = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_vbmi", "amx_bf16", "sha_ni", "asimd", "bf16")
PACKAGES = ("torch", "numpy", "safetensors", "tokenizers", "tyro", "rich")
EXTRAS = {
    "hf": ("transformers",), "gguf": ("gguf",), "data": ("datasets", "pyarrow"),
    "serve": ("fastapi", "uvicorn", "prometheus-client"), "gpu": ("triton",), "log": ("tensorboard",),
}  # fmt: skip
TOKENS = (1, 128)  # a decoded token; a batch of training or a prompt


@dataclass(frozen=True)
class DoctorOptions:
    """Say what this machine offers, which form of every operation serves on it, and why not the others.

    Attributes:
        preset: the shape that the operations are asked for.
        dtype: of its weights.
        device: where it would run.
        json: print one JSON object instead of text.
    """

    preset: str = "nano"
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: Literal["cpu", "cuda"] = "cpu"
    json: bool = False


def run_doctor(options: DoctorOptions) -> None:
    """Print all of it."""
    config = ModelConfig.preset(options.preset)
    facts = {
        "processor": describe_processor(),
        "compiler": describe_compiler(),
        "kernels": describe_kernels(),
        "threads": describe_threads(),
        "devices": describe_devices(),
        "FP8 training": describe_fp8(options.device),
        "packages": describe_packages(),
    }
    operations = {f"{n} tokens" if n > 1 else "1 token": explain_operations(config, options, n) for n in TOKENS}
    if options.json:
        print(json.dumps({**facts, "operations": operations}, indent=2))
        return
    for title, lines in facts.items():
        print(f"{title}")
        for name, text in lines.items():
            print(f"  {name:<22}{text}")
        print()
    for title, forms in operations.items():
        print(f"operations of {options.preset} in {options.dtype} on {options.device}, {title}")
        for form in forms:
            print(f"  {form['operation']:<22}{form['form']:<14}{form['why']}".rstrip())
        print()


def describe_processor() -> dict[str, str]:
    """Its name, cores, memory, and those of its instructions that kernels are written for."""
    facts = {"name": platform.processor() or platform.machine(), "system": platform.platform(terse=True)}
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        found = dict(line.split(":", 1) for line in lines if ":" in line)
        found = {key.strip(): value.strip() for key, value in found.items()}
        facts["name"] = found.get("model name", facts["name"])
        flags = set(found.get("flags", found.get("Features", "")).split())
        facts["instructions"] = ", ".join(name for name in INSTRUCTIONS if name in flags) or "none that matter here"
        facts["memory"] = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"
    except (OSError, ValueError):
        pass
    return {**facts, "cores": f"{len(usable_cores())} for this process, {os.cpu_count()} in all"}


def describe_compiler() -> dict[str, str]:
    """The C++ compiler that kernels are made with."""
    from deepseek_v3.native.build import compiler_command

    command = compiler_command()
    if command is None:
        return {"command": "none; install g++, or name one in CXX"}
    try:
        said = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        said = f"does not run: {error}"
    return {"command": " ".join(command), "version": said.splitlines()[0] if said else "unknown"}


def describe_kernels() -> dict[str, str]:
    """Whether our C++ kernels serve, and where they are kept."""
    from deepseek_v3.native.build import kept_library, why_no_kernels

    reason = why_no_kernels()
    return {"serve": "yes", "kept in": str(kept_library())} if reason is None else {"serve": f"no: {reason}"}


def describe_threads() -> dict[str, str]:
    """How many threads serve and how they wait for each other; what other processes leave free."""
    import torch

    busy = cores_in_use()
    return {
        "serve": f"{torch.get_num_threads()} of PyTorch and the kernels",
        "decode now": f"{threads_now(torch.get_num_threads())}: by the cores that others leave free, from step to step",
        "wait": describe_waiting(),
        "freed memory": f"as {name} says" if (name := users_choice()) else "kept by train, demo, generate, evaluate",
        "cores busy elsewhere": "unknown" if busy == float("inf") else f"{busy:.1f}",
    }


def describe_devices() -> dict[str, str]:
    """The GPUs that PyTorch sees, or why none."""
    import torch

    if not torch.cuda.is_available():
        built = "no GPU that it can use" if torch.version.cuda else "PyTorch is built without it"
        return {"cpu": "yes", "cuda": f"no: {built}"}
    found = {"cpu": "yes"}
    for i in range(torch.cuda.device_count()):
        p = torch.cuda.get_device_properties(i)
        found[f"cuda:{i}"] = f"{p.name}, {p.total_memory / 2**30:.0f} GiB, capability {p.major}.{p.minor}"
    return found


def describe_fp8(device: str) -> dict[str, str]:
    """Which form computes the products of `train --precision fp8`, and why not the others."""
    from deepseek_v3.fp8.forms import explain_forms

    return explain_forms(device)


def describe_packages() -> dict[str, str]:
    """Versions of what is installed, the extras that are not."""
    found = {"deepseek-v3": version_of("deepseek-v3-from-scratch"), "Python": sys.version.split()[0]}
    found |= {name: version_of(name) for name in PACKAGES}
    for extra, names in EXTRAS.items():
        missing = all(version_of(name) == "not installed" for name in names)
        text = ", ".join(f"{name} {version_of(name)}" for name in names)
        found[f"[{extra}]"] = f"not installed: {', '.join(names)}" if missing else text
    return found


def version_of(name: str) -> str:
    """The installed version of a package."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def explain_operations(config: ModelConfig, options: DoctorOptions, tokens: int) -> list[dict[str, Any]]:
    """Which form of every operation serves for so many tokens, and what keeps the kernel from it."""
    import torch

    from deepseek_v3.ops.explain import explain

    forms = explain(config, options.device, getattr(torch, options.dtype), tokens=tokens)
    return [{"operation": form.operation, "form": form.form, "why": form.why} for form in forms]
