"""Large pages for memory that is about to be filled.

Each page of 4 KiB costs 2 µs when it is first touched: 64 MB take 35 ms on one thread, a tenth of
the time of a matrix that fills them; 7.5 ms in pages of 2 MiB, where the system has any to give
(they come unasked where its setting is 'always', and never where it is 'never'). Making the first
ones may cost as much again (64 MB: 76 ms), and gradients of 154 MB, beside others' temporaries,
cost 2.5 times as much in them: they are for the matrix and its panels, and for the rows and codes
of an index, which is built in half the time.

Where the host of a virtual machine takes back what its guest does not use (Firecracker), a large
page that was free for two seconds has to be fetched from it: 300 MB that take 45 ms otherwise take
900, and 170 to 500 in small pages, which seldom lie idle for long.
"""

from __future__ import annotations

import ctypes
import mmap

from torch import Tensor

# Bytes from which on it is worth a call of the system.
LARGE = 1 << 22

if hasattr(mmap, "MADV_HUGEPAGE"):  # Linux
    _madvise = ctypes.CDLL(None).madvise
    _madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def in_large_pages(fresh: Tensor) -> Tensor:
    """Ask the system to back the memory of a dense tensor with large pages; return the tensor."""
    if fresh.is_cpu and fresh.nbytes >= LARGE and hasattr(mmap, "MADV_HUGEPAGE"):
        start = -(-fresh.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        end = fresh.data_ptr() + fresh.nbytes
        _madvise(start, end - start, mmap.MADV_HUGEPAGE)
    return fresh
