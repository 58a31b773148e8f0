"""Memory-mapped arrays, and their pages in memory."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
from torch import Tensor


def file_map(corpus: Any) -> np.memmap[Any, Any] | None:
    """The memory mapping that holds an array, if there is one."""
    while isinstance(corpus, np.ndarray) and not isinstance(corpus.base, mmap.mmap):
        corpus = corpus.base
    return corpus if isinstance(corpus, np.memmap) else None


def shared_map(corpus: Any) -> np.memmap[Any, Any] | None:
    """The memory mapping that holds an array, if its contents are those of the file."""
    found = file_map(corpus)
    return None if found is None or found.mode == "c" else found


def release_pages(mapping: np.memmap[Any, Any], block: Tensor) -> None:
    """Tell the system that pages of a file will not be needed soon, to keep memory use small.

    They stay in its cache while there is room. Not to be called for a copy-on-write mapping, which
    would lose what was written to it.
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
