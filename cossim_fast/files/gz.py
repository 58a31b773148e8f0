"""`.npy.gz`: a `.npy` that gzip has packed, read into memory, and its checksum compared."""

import gzip
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from cossim_fast.files.entries import Entry, refusal_of
from cossim_fast.files.errors import DamagedError
from cossim_fast.files.memory import check_fits
from cossim_fast.files.npy import Header, read_header


def entries(path: Path, _key: str | None, _verify: bool) -> dict[str, Entry]:
    """The one array: its header alone is unpacked before it is wanted."""
    with gzip.open(path) as stream:
        header = read_header(cast("IO[bytes]", stream))

    def read() -> Any:
        return _unpacked(path, header)

    return {
        "": Entry(header.shape, header.nbytes, read, refusal_of(header.dtype, len(header.shape)))
    }


def _unpacked(path: Path, header: Header) -> np.ndarray[Any, Any]:
    check_fits(f"{path}, which is compressed", header.nbytes, "; gunzip it, so that it is mapped")
    array = header.empty()
    left = array.ravel(order="K").view(np.uint8).data if array.size else memoryview(b"")
    with gzip.open(path) as stream:
        stream.read(header.length)
        while len(left):
            count = stream.readinto(left)
            if not count:
                raise DamagedError(f"it ends {len(left)} bytes before its numbers do")
            left = left[count:]
        if stream.read(1):
            raise DamagedError("it holds more than it claims")
    return array
