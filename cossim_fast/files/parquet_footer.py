"""What the footer of a ``.parquet`` says of the columns of each row group.

pyarrow ends the process (a C++ exception nobody catches, in 26.0) where one asks it for this and
the footer is damaged, so it is decoded here: Thrift's compact protocol
(https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md), of which
parquet.thrift (https://github.com/apache/parquet-format) says what the fields mean.
"""

import io
from dataclasses import dataclass
from typing import IO, Any

from cossim_fast.files.errors import DamagedError

# [bytes] Read at once from the end of a file; footers are rarely longer.
_TAIL = 1 << 16
# Of parquet.thrift: the numbers of fields of FileMetaData, RowGroup, ColumnChunk, ColumnMetaData
# and Statistics.
_ROW_GROUPS, _COLUMNS, _ROWS, _META, _PATH, _VALUES, _PACKED = 4, 1, 3, 3, 3, 5, 7
_STATISTICS, _NULLS = 12, 3
# Nested values that are no parquet's: its own are not as deep.
_DEEPEST = 32


@dataclass(frozen=True)
class Chunk:
    """A column of one row group."""

    # Numbers, of all lists; also one for a list that is empty or missing.
    values: int
    nbytes: int
    # None where the writer did not count them. Empty and missing lists count too.
    nulls: int | None


def read_tail(file: IO[bytes]) -> bytes:
    """The end of a file from its footer on, or more.

    Raises:
        DamagedError: it does not end as a ``.parquet`` does.
    """
    size = file.seek(0, io.SEEK_END)
    begin = max(size - _TAIL, 0)
    file.seek(begin)
    tail = file.read(size - begin)
    if tail[-4:] != b"PAR1" or size < 12:
        raise DamagedError("it does not end as a table does; it was not written to its end")
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if length > size - 4:
        raise DamagedError(f"its footer claims {length} bytes, and the file has {size}")
    if length > len(tail):
        file.seek(size - length)
        tail = file.read(length - len(tail)) + tail
    return tail


def chunks_of(tail: bytes) -> list[dict[str, list[Chunk]]]:
    """The columns of each row group, by their outermost name; each may have several leaves.

    Raises:
        DamagedError: the footer makes no sense.
    """
    length = int.from_bytes(tail[-8:-4], "little")
    try:
        footer = _Decoder(tail[-8 - length : -8]).struct()
        return [_columns(group) for group in footer[_ROW_GROUPS]]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise DamagedError("its footer makes no sense") from error


def _columns(group: dict[int, Any]) -> dict[str, list[Chunk]]:
    found: dict[str, list[Chunk]] = {}
    for column in group[_COLUMNS]:
        meta = column[_META]
        values, nbytes = meta[_VALUES], meta[_PACKED]
        nulls = meta.get(_STATISTICS, {}).get(_NULLS)
        if min(values, nbytes, nulls or 0) < 0:
            raise ValueError("a count is negative")
        found.setdefault(meta[_PATH][0].decode(), []).append(Chunk(values, nbytes, nulls))
    return found


class _Decoder:
    """Structs of Thrift's compact protocol as dicts, from the numbers of fields to values."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at, self._depth = data, 0, 0

    def struct(self) -> dict[int, Any]:
        fields: dict[int, Any] = {}
        number = 0
        self._depth += 1
        if self._depth > _DEEPEST:
            raise ValueError("nested too deep")
        while head := self._byte():
            delta, kind = head >> 4, head & 15
            number = number + delta if delta else self._whole()
            # A field's type says which of both a truth value is.
            fields[number] = kind == 1 if kind in (1, 2) else self._value(kind)
        self._depth -= 1
        return fields

    def _value(self, kind: int) -> Any:
        if kind in (4, 5, 6):
            return self._whole()
        if kind == 8:
            return self._bytes(self._varint())
        if kind == 12:
            return self.struct()
        if kind in (9, 10):
            head = self._byte()
            count = head >> 4 if head >> 4 < 15 else self._varint()
            # Each takes a byte at least.
            if count > len(self._data) - self._at:
                raise ValueError("a list is longer than what is left")
            return [self._value(head & 15) for _ in range(count)]
        if kind in (1, 2, 3):
            return self._byte()
        if kind == 7:
            return self._bytes(8)
        raise ValueError(f"no type has the number {kind}")

    def _byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def _bytes(self, count: int) -> bytes:
        if count > len(self._data) - self._at:
            raise ValueError("bytes are missing")
        self._at += count
        return self._data[self._at - count : self._at]

    def _varint(self) -> int:
        number = shift = 0
        while True:
            byte = self._byte()
            number |= (byte & 127) << shift
            if byte < 128:
                return number
            shift += 7
            if shift > 63:
                raise ValueError("a number is too long")

    def _whole(self) -> int:
        coded = self._varint()
        return coded >> 1 ^ -(coded & 1)
