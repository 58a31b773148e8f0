"""Arrays that lie in a memory map, and the pages that they hold."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
from torch import Tensor


def file_map(corpus: Any) -> np.memmap[Any, Any] | None:
    """The memory map that an array lies in, if it lies in one."""
    while isinstance(corpus, np.ndarray) and not isinstance(corpus.base, mmap.mmap):
        corpus = corpus.base
    return corpus if isinstance(corpus, np.memmap) else None


def shared_map(corpus: Any) -> np.memmap[Any, Any] | None:
    """The memory map that an array lies in, if what it holds is what the file holds."""
    found = file_map(corpus)
    return None if found is None or found.mode == "c" else found


def release_pages(mapping: np.memmap[Any, Any], block: Tensor) -> None:
    """Tell the system that pages of a file will not be needed soon, so memory in use stays small.

    They stay in its cache as long as there is room. Never done to a copy-on-write map, which
    would lose what was written.
    """
    held = mapping.base
    if not isinstance(held, mmap.mmap) or not hasattr(held, "madvise"):
        return
    # The array starts somewhere in the first pages of the map.
    begin = block.data_ptr() - mapping.__array_interface__["data"][0]
    begin += mapping.offset % mmap.ALLOCATIONGRANULARITY
    end = begin + block.numel() * block.element_size()
    page = mmap.PAGESIZE
    begin, end = -(-begin // page) * page, end // page * page
    if 0 <= begin < end <= len(held):
        held.madvise(mmap.MADV_DONTNEED, begin, end - begin)
