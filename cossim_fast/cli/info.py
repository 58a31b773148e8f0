"""`cossim info`: what there is on this machine, and what is used of it."""

import os
import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import torch

from cossim_fast import __version__
from cossim_fast.retrieval import costs, screens

EXAMPLE = "Example: cossim info"

# What the products are made of, as Linux names it.
_INSTRUCTIONS = (
    "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip
_EXTRAS = ("triton", "tqdm", "typer", "rich", "safetensors", "pyarrow", "matplotlib")


def info() -> None:
    """Show versions, the processor, the screens of exact search and why one is used, and GPUs."""
    for name, value in _facts():
        print(f"{name:<17}{value}".rstrip())


def _facts() -> Iterator[tuple[str, str]]:
    yield "cossim_fast", __version__
    yield "python", f"{platform.python_version()}, {platform.system()} {platform.machine()}"
    yield "torch", torch.__version__
    for name in ("numpy", *_EXTRAS):
        yield name, version_of(name)
    yield "processor", processor()
    yield "instructions", instructions()
    yield "torch's code", torch.backends.cpu.get_cpu_capability()
    yield "threads", f"{torch.get_num_threads()} of torch, {os.cpu_count()} processors"
    yield "", ""
    yield from _screens()
    yield "", ""
    yield from _gpus()


def version_of(name: str) -> str:
    """The version of an installed package."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def processor() -> str:
    """The processor's name for itself, if the system tells."""
    return _of_cpuinfo("model name") or platform.processor() or "unknown"


def instructions() -> str:
    """The instruction sets that matter here."""
    flags = (_of_cpuinfo("flags") or _of_cpuinfo("Features") or "").split()
    found = [name for name in _INSTRUCTIONS if name in flags]
    return " ".join(found) or "unknown"


def _of_cpuinfo(field: str) -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == field:
            return value.strip()
    return None


def _screens() -> Iterator[tuple[str, str]]:
    for name in screens.NAMES:
        found = screens.offer(name)
        yield f"screen {name}", f"{'yes' if found.fast else 'no'}: {found.words}"
    yield "a pair in float64", f"{costs.pair_ns():.0f} ns, 384 numbers, one core"
    first = screens.choose(384)[0].name
    yield "screen used", f"{first}, the narrowest that is fast; a wider one if data need it"


def _gpus() -> Iterator[tuple[str, str]]:
    if not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        why = f"torch is built for {built} and finds none" if built else "torch is built without"
        yield "GPU", f"none: {why}"
        return
    for number in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(number)
        free, whole = torch.cuda.mem_get_info(number)
        yield (
            f"GPU {number}",
            f"{found.name}, sm_{found.major}{found.minor}, {free >> 20} of {whole >> 20} MB free",
        )
    kernels = version_of("triton")
    yield "kernels", "composite torch ops" if kernels == "not installed" else f"Triton {kernels}"
