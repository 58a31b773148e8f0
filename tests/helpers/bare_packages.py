"""Modules of packages whose own import needs torchvision, which PyPI builds for CUDA's torch alone.

Beside a torch for CPUs it raises as it is imported: its operators are not there. A few modules need
none of it, and are imported without what their packages import.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path


def bare(name: str) -> None:
    """Stand in for a package: its modules can be imported, and none of its own code runs."""
    if name in sys.modules:
        return
    top, *rest = name.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{top} is not installed; make test-adapters installs it")
    package = types.ModuleType(name)
    package.__path__ = [str(Path(spec.submodule_search_locations[0], *rest))]
    sys.modules[name] = package


def bare_open_clip() -> None:
    """Let `open_clip.loss` be imported."""
    bare("open_clip")


def bare_lightly() -> None:
    """Let `lightly.loss.ntx_ent_loss` be imported."""
    for name in ("lightly.loss", "lightly.models", "lightly.models.modules"):
        bare(name)
    # The memory bank imports it, and calls it where it gathers over processes.
    utils = "lightly.models.utils"
    sys.modules.setdefault(utils, types.ModuleType(utils))
