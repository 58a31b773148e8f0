"""Where the figures were measured: machine, threads, versions, commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy as np  # noqa: F401 - loads the BLAS of scikit-learn
import torch
from threadpoolctl import threadpool_info

from data import describe_real

PACKAGES = (
    "torch",
    "numpy",
    "scikit-learn",
    "sentence-transformers",
    "torchmetrics",
    "open_clip_torch",
    "lightly",
    "scipy",
    "numkong",
    "faiss-cpu",
    "faiss-gpu",
    "usearch",
    "chunkdot",
    "cuvs-cu12",
)
# Instruction sets on which a product or a screen depends.
INSTRUCTIONS = ("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16")
INSTRUCTIONS += ("amx_int8", "amx_bf16", "asimddp", "i8mm", "bf16", "sve")


def describe(device: str = "cpu") -> dict[str, Any]:
    """Return what a reader has to know to judge the figures."""
    blas = [i for i in threadpool_info() if i["user_api"] == "blas"]
    return {
        "processor": processor(),
        "processors": os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "instructions": instructions(),
        "device": torch.cuda.get_device_name() if device != "cpu" and has_device(device) else "cpu",
        "real": describe_real(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {"Python": platform.python_version(), **versions()},
        "blas": "numpy's BLAS: "
        + ", ".join(f"{i['internal_api']} {i['version']} {i.get('architecture')}" for i in blas),
        "commit": commit(),
    }


def has_device(device: str) -> bool:
    """Whether torch can use a device of this kind here."""
    return device == "cpu" or torch.cuda.is_available()


def instructions() -> list[str]:
    """Those of the instruction sets above that the processor has."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return []
    lines = cpuinfo.read_text(encoding="utf-8").lower().splitlines()
    flags = next((line for line in lines if line.startswith(("flags", "features"))), "")
    return [name for name in INSTRUCTIONS if name in flags.split()]


def versions() -> dict[str, str]:
    """The versions of what is compared, as far as it is installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def processor() -> str:
    """The processor's name for itself."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.processor() or "unknown processor"


def commit() -> str:
    """The commit that is measured, and whether the package was changed since."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "--short=12", "HEAD"], check=True, capture_output=True, text=True
        ).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--", ":/cossim_fast", ":/benchmarks/*.py"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head} with changes" if changed else head
