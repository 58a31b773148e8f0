"""Seeded bugs: a copy of the kernels with one line changed, which the ladder has to catch."""

import importlib
import itertools
import shutil
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from cossim_fast.kernels import tiles

SOURCE = Path(tiles.__file__).parent
_serial = itertools.count()


@dataclass(frozen=True)
class Mutant:
    """One bug: in ``module``, ``old`` (found exactly once) becomes ``new``."""

    name: str
    module: str
    old: str
    new: str


@contextmanager
def mutated(mutant: Mutant, folder: Path):
    """Yield an importer of modules of the kernels as they are with the bug in them."""
    package = f"mutant_{next(_serial)}"
    shutil.copytree(SOURCE, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / package / f"{mutant.module}.py"
    source = path.read_text(encoding="utf-8")
    if source.count(mutant.old) != 1:
        raise ValueError(
            f"mutant {mutant.name!r}: expected its line once in {mutant.module}.py, "
            f"found it {source.count(mutant.old)} times; write it anew for the changed kernel"
        )
    path.write_text(source.replace(mutant.old, mutant.new), encoding="utf-8")
    sys.path.insert(0, str(folder))

    def load(module: str) -> ModuleType:
        return importlib.import_module(f"{package}.{module}")

    try:
        yield load
    finally:
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name.split(".")[0] == package]:
            del sys.modules[name]
