"""`.npy`: a header, compared with the size of the file, and numbers that are mapped."""

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from cossim_fast.files.entries import Entry, refusal_of, size_text
from cossim_fast.files.errors import DamagedError

# numpy refuses longer ones, but reads them first (numpy.lib.format, max_header_size).
_LONGEST_HEADER = 10_000


@dataclass(frozen=True)
class Header:
    """What stands before the numbers."""

    length: int  # in bytes, all of it
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """How many bytes of numbers the shape makes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def check_size(self, size: int) -> None:
        """Compare with how many bytes there are, header and numbers.

        Raises:
            DamagedError: there are more, or fewer.
        """
        if self.dtype.hasobject:  # pickled, of any length; refused elsewhere
            return
        if size != self.length + self.nbytes:
            raise DamagedError(
                f"expected {self.length + self.nbytes} bytes for {self.shape} of {self.dtype}, "
                f"got {size}"
            )

    def empty(self) -> np.ndarray[Any, Any]:
        """An array of this shape, not filled."""
        return np.empty(self.shape, self.dtype, "F" if self.fortran else "C")

    def mapped(self, path: Path, begin: int) -> np.ndarray[Any, Any]:
        """The array where it lies in a file, ``begin`` being where its header ends."""
        if not self.nbytes:  # nothing cannot be mapped
            return self.empty()
        return np.memmap(path, self.dtype, "r", begin, self.shape, "F" if self.fortran else "C")


def entries(path: Path, _key: str | None, _verify: bool) -> dict[str, Entry]:
    """The one array; the format has no checksum."""
    with path.open("rb") as file:
        header = read_header(file)
        header.check_size(file.seek(0, io.SEEK_END))
    return {"": entry_of(header, path, header.length)}


def entries_of(raw: bytes) -> dict[str, Entry]:
    """The one array of what was read from a stream."""
    header = read_header(io.BytesIO(raw))
    header.check_size(len(raw))

    def read() -> Any:
        flat = np.frombuffer(raw, header.dtype, offset=header.length)
        return flat.reshape(header.shape, order="F" if header.fortran else "C")

    return {
        "": Entry(header.shape, header.nbytes, read, refusal_of(header.dtype, len(header.shape)))
    }


def entry_of(header: Header, path: Path, begin: int) -> Entry:
    """An array that is mapped when it is read."""
    return Entry(
        header.shape,
        header.nbytes,
        lambda: header.mapped(path, begin),
        refusal_of(header.dtype, len(header.shape)),
    )


def read_header(stream: IO[bytes]) -> Header:
    """Read what stands before the numbers, and no more than a header may take.

    Raises:
        DamagedError: it is none.
    """
    start = stream.read(8)
    if len(start) < 8 or start[:6] != b"\x93NUMPY":
        raise DamagedError("it does not begin as numpy.save does")
    major = start[6]
    if major not in (1, 2, 3) or start[7]:
        raise DamagedError(f"its format version is {major}.{start[7]}")
    width = 2 if major == 1 else 4
    counted = stream.read(width)
    count = int.from_bytes(counted, "little")
    if count > _LONGEST_HEADER:
        raise DamagedError(f"its header claims {size_text(count)}, and at most 10 kB are expected")
    text = stream.read(count)
    if len(text) < count:
        raise DamagedError(f"it ends within its header, after {8 + len(counted) + len(text)} bytes")
    # Version 3 is version 2 with names of fields in UTF-8, and records are refused.
    read = (
        np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    )
    try:
        shape, fortran, dtype = read(io.BytesIO(counted + text))
    # So short a text takes no memory: where that runs out, its brackets are nested too deep.
    except Exception as error:
        raise DamagedError("its header makes no sense") from error
    if min(shape, default=0) < 0:
        raise DamagedError(f"its header claims a shape of {shape}")
    return Header(8 + width + count, shape, fortran, dtype)
