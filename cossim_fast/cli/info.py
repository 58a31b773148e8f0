"""`cossim info`: versions, the processor, and how this machine computes."""

import os
import platform
from collections.abc import Iterator
from importlib import metadata

import torch

from cossim_fast import __version__, _products, _threads
from cossim_fast._escaped import escaped
from cossim_fast.cli import processor
from cossim_fast.retrieval import machine

EXAMPLE = "Example: cossim info"

_EXTRAS = ("triton", "tqdm", "typer", "rich", "safetensors", "pyarrow", "matplotlib")


def info() -> None:
    """Show versions, the processor, which screens exact search uses here and why, and GPUs."""
    for name, value in _facts():
        print(escaped(f"{name:<17}{value}".rstrip()))


def _facts() -> Iterator[tuple[str, str]]:
    yield "cossim_fast", __version__
    yield "python", f"{platform.python_version()}, {platform.system()} {platform.machine()}"
    yield "torch", torch.__version__
    for name in ("numpy", *_EXTRAS):
        yield name, version_of(name)
    yield "processor", processor.name()
    yield "instructions", " ".join(processor.instructions()) or "unknown"
    yield "torch kernels", torch.backends.cpu.get_cpu_capability()
    yield "threads", _threads_here()
    yield "float32 products", _products.described()
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


def _threads_here() -> str:
    used = f"{torch.get_num_threads()} of torch, {_threads.usable_threads()} of cossim_fast"
    return f"{used}; {os.cpu_count()} processors"


def _screens() -> Iterator[tuple[str, str]]:
    for name, found in machine.screens_here().items():
        yield f"screen {name}", f"{'yes' if found.fast else 'no'}: {found.words}"
    yield "exact score", f"{machine.scored_pair_ns():.0f} ns a pair: float64, 384 numbers, one core"
    first = machine.screen_for(384)
    yield (
        "first screen",
        f"{first}, the narrowest that is fast; wider ones where needed",
    )


def _gpus() -> Iterator[tuple[str, str]]:
    if not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        what = f"{built}, but finds no GPU" if built else "CPU only"
        yield "GPU", f"none: torch is built for {what}"
        return
    for number in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(number)
        free, total = torch.cuda.mem_get_info(number)
        yield (
            f"GPU {number}",
            f"{found.name}, sm_{found.major}{found.minor}, {free >> 20} of {total >> 20} MB free",
        )
    kernels = version_of("triton")
    yield (
        "kernels",
        "none without Triton: torch ops" if kernels == "not installed" else f"Triton {kernels}",
    )
