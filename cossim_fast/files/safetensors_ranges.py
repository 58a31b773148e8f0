"""`.safetensors` read by ranges: the header, which says where each tensor lies.

The library reads files by their names, on this machine alone. The format is that of
https://github.com/huggingface/safetensors#format.
"""

import io
import json
import math
from collections.abc import Iterator
from typing import IO, Any

import numpy as np

from cossim_fast._extras import require
from cossim_fast.files.entries import listed_names
from cossim_fast.files.errors import BadFileError, DamagedError
from cossim_fast.files.ranges import DTYPES, PlainRows

# The format's names of what rows may be of, and of what other columns are.
_ROWS = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
_ROWS |= {"I8": "int8", "U8": "uint8"}
_STORED = {"F16": "<f2", "BF16": "<i2", "F32": "<f4", "F64": "<f8", "I8": "i1", "U8": "u1"}
_STORED |= {"I16": "<i2", "U16": "<u2", "I32": "<i4", "U32": "<u4", "I64": "<i8", "U64": "<u8"}
# [bytes] The library takes no longer header.
_LONGEST_HEADER = 100_000_000


class SafetensorsRows(PlainRows):
    """One tensor (rows, width) of an open file; tensors (rows,) beside it are its other columns.

    Raises:
        BadFileError: there is no such tensor, or several.
        DamagedError: the header makes no sense, or the file is not as long as it says.
    """

    def __init__(self, file: IO[bytes], path: str, column: str | None) -> None:
        self._tensors, self._data = _header(file)
        name = self._choose(path, column)
        kind, shape, begin = self._tensors[name]
        if kind not in _ROWS:
            raise DamagedError(f"{name} is of {kind}, and {', '.join(DTYPES)} are expected")
        super().__init__(
            path, file, self._data + begin, shape[0], shape[1], np.dtype(_STORED[kind]), _ROWS[kind]
        )

    def _choose(self, path: str, column: str | None) -> str:
        matrices = [name for name, (_, shape, _) in self._tensors.items() if len(shape) == 2]
        if column is None and len(matrices) == 1:
            return matrices[0]
        if column not in matrices:
            wanted = "one tensor of 2 axes" if column is None else f"a tensor {column!r} of 2 axes"
            there = [f"{name} {shape}" for name, (_, shape, _) in self._tensors.items()]
            raise BadFileError(
                f"expected {wanted} in {path}, got {listed_names(there) or 'no tensor'}; name one "
                "by column="
            )
        return column

    def check_column(self, name: str) -> str:
        """The type of a tensor of one number a row.

        Raises:
            BadFileError: there is none.
        """
        kind, shape, _ = self._tensors.get(name, ("", (), 0))
        if shape != (self.count,) or kind not in _STORED or kind == "BF16":
            there = [f"{name} {shape} {kind}" for name, (kind, shape, _) in self._tensors.items()]
            raise BadFileError(
                f"expected a tensor {name!r} of one number for each of {self.count} rows in "
                f"{self._path}, got {listed_names(there)}"
            )
        return kind

    def values(self, name: str, start: int, stop: int) -> Iterator[Any]:
        """That tensor for those rows, an array of arrow's.

        Raises:
            BadFileError: there is none.
        """
        self.check_column(name)
        kind, _, begin = self._tensors[name]
        place, stored = self._data + begin, np.dtype(_STORED[kind])
        found = self._numbers(place, stored, start, stop - start)
        yield require("pyarrow", extra="distributed").array(found)


def _header(file: IO[bytes]) -> tuple[dict[str, tuple[str, tuple[int, ...], int]], int]:
    """Dtype, shape and place of each tensor; and where the places are counted from.

    Raises:
        DamagedError: the header makes no sense, or the file is not as long as it says.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, _LONGEST_HEADER):
        raise DamagedError(f"its header claims {length} bytes, and the file has {size}")
    try:
        said = json.loads(file.read(length))
        tensors, ends = {}, [0]
        for name, tensor in said.items():
            if name == "__metadata__":
                continue
            kind, shape = str(tensor["dtype"]), tuple(int(axis) for axis in tensor["shape"])
            begin, end = (int(place) for place in tensor["data_offsets"])
            fits = kind not in _STORED or end - begin == math.prod(shape) * _itemsize(kind)
            if min(shape, default=0) < 0 or not 0 <= begin <= end or not fits:
                raise DamagedError(f"its header claims {shape} of {kind} from {begin} to {end}")
            tensors[name] = (kind, shape, begin)
            ends.append(end)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError("its header makes no sense") from error
    if 8 + length + max(ends) != size:
        raise DamagedError(f"expected {8 + length + max(ends)} bytes, got {size}")
    return tensors, 8 + length


def _itemsize(kind: str) -> int:
    return np.dtype(_STORED[kind]).itemsize
