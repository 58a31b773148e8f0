"""Several files as one: those of a folder, or those that a pattern names, in the order of names."""

import glob
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cossim_fast.files.entries import listed_names
from cossim_fast.files.errors import BadFileError, suffix_of
from cossim_fast.files.memory import check_fits


def shards_of(path: Path, suffixes: Collection[str], texts: Collection[str]) -> list[Path] | None:
    """The files of a folder or of a pattern, part-2 before part-10; None for a file.

    Tables of text beside files of arrays are about these, and are not read.

    Raises:
        BadFileError: there are none, or they are of several kinds.
    """
    if path.is_dir():
        there = [file for file in path.iterdir() if not file.name.startswith(".")]
        what = f"in {path}, which is a folder"
    elif glob.has_magic(str(path)) and not path.exists():
        there = [Path(name) for name in glob.glob(str(path))]
        what = f"that match {path}"
    else:
        return None
    found = sorted((file for file in there if suffix_of(file) in suffixes), key=_natural)
    if not found:
        raise BadFileError(
            f"expected files {what}, ending in {', '.join(suffixes)}; there are none"
        )
    kinds = sorted({suffix_of(file) for file in found})
    arrays = [kind for kind in kinds if kind not in texts]
    if arrays:
        kinds, found = arrays, [file for file in found if suffix_of(file) in arrays]
    if len(kinds) > 1:
        raise BadFileError(
            f"expected files of one kind {what}, got {', '.join(kinds)}; name some by a pattern, "
            f"as '{path.parent if glob.has_magic(str(path)) else path}/*{kinds[0]}'"
        )
    return found


def _natural(path: Path) -> list[Any]:
    return [*natural(path.name), str(path)]


def natural(name: str) -> list[Any]:
    """A key by which numbers in names come in their order."""
    parts = re.split(r"(\d+)", name)
    return [int(part) if at % 2 else part for at, part in enumerate(parts)]


def together(paths: list[Path], load: Callable[[Path], Any]) -> Any:
    """Rows of several files under each other, in memory.

    Raises:
        BadFileError: they differ in width or dtype.
        NotEnoughMemoryError: all of them are too large for the memory.
    """
    arrays = [load(path) for path in paths]
    if len(arrays) == 1:
        return arrays[0]
    first = arrays[0]
    for path, array in zip(paths, arrays, strict=True):
        if (array.shape[1:], array.dtype) != (first.shape[1:], first.dtype):
            raise BadFileError(
                f"expected files of one width and dtype, got {tuple(first.shape)} of {first.dtype} "
                f"in {paths[0]} and {tuple(array.shape)} of {array.dtype} in {path}"
            )
    check_fits(listed_names([str(path) for path in paths]), sum(int(a.nbytes) for a in arrays))
    if isinstance(first, torch.Tensor):
        return torch.cat(arrays)
    return np.concatenate(arrays)
