"""Members of a zip archive: found, compared with what the archive says of them, and summed.

The layout is that of APPNOTE.TXT of PKWARE: before the data of each member a header (section 4.3.7)
that repeats what the directory at the end says (4.3.12).
"""

import bisect
import io
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO, BinaryIO

from cossim_fast.files.entries import size_text
from cossim_fast.files.errors import DamagedError

_LOCAL = struct.Struct("<4sHHHHHLLLHH")
# Bits of a member's flags: encrypted in three ways; sizes after the data; a name in UTF-8.
_ENCRYPTED, _SIZES_AFTER, _UTF8 = 0x2041, 0x08, 0x800
# Extra field and value that stand for a size of 64 bits.
_ZIP64, _IN_ZIP64 = 1, 0xFFFFFFFF
# zlib makes at most 258 bytes of 2 bits (https://zlib.net/zlib_tech.html); smaller ones have room.
_DEFLATE_RATIO, _ROOM = 1032, 1024
# Bytes that are read at a time, and to see what a member is.
_PIECE, _BEGINNING = 1 << 20, 1 << 14


class Archive:
    """A zip archive that is open for reading.

    Raises:
        DamagedError: two members have one name.
        zipfile.BadZipFile: it is no archive.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._zip = zipfile.ZipFile(path)
        try:
            self.members: dict[str, zipfile.ZipInfo] = {}
            for info in self._zip.infolist():
                if info.filename in self.members:
                    raise DamagedError(f"it holds two members named {info.filename!r}")
                self.members[info.filename] = info
            offsets = [info.header_offset for info in self.members.values()]
            self._bounds = sorted([*offsets, self._zip.start_dir])
            self._file: BinaryIO = path.open("rb")
        except BaseException:
            self._zip.close()
            raise

    def __enter__(self) -> "Archive":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._zip.close()

    def begin(self, info: zipfile.ZipInfo) -> int:
        """Where the data of a member begin in the file, after all that is said of it was compared.

        Raises:
            DamagedError: header and directory differ, or it cannot hold what it claims.
        """
        name = info.filename
        if info.flag_bits & _ENCRYPTED:
            raise DamagedError(f"{name!r} is encrypted; save it without a password")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DamagedError(f"{name!r} is packed by method {info.compress_type}; numpy deflates")
        begin = info.header_offset + self._header_length(info)
        end = begin + info.compress_size
        # Where this one begins is among the bounds once; what comes after it is the next of them.
        place = bisect.bisect_left(self._bounds, info.header_offset) + 1
        if place == len(self._bounds) or end > self._bounds[place]:
            raise DamagedError(f"{name!r} overlaps what comes after it")
        most = (
            info.compress_size
            if info.compress_type == zipfile.ZIP_STORED
            else info.compress_size * _DEFLATE_RATIO + _ROOM
        )
        if info.file_size > most:
            raise DamagedError(
                f"{name!r} claims {size_text(info.file_size)} and takes "
                f"{size_text(info.compress_size)}, which hold {size_text(most)} at most"
            )
        return begin

    def _header_length(self, info: zipfile.ZipInfo) -> int:
        self._file.seek(info.header_offset)
        raw = self._file.read(_LOCAL.size)
        if len(raw) < _LOCAL.size or raw[:4] != b"PK\x03\x04":
            raise DamagedError(f"{info.filename!r} does not lie where the directory says")
        _, _, flags, method, _, _, crc, packed, size, name_length, extra_length = _LOCAL.unpack(raw)
        name = self._file.read(name_length)
        extra = self._file.read(extra_length)
        same = (
            name == info.orig_filename.encode("utf-8" if info.flag_bits & _UTF8 else "cp437")
            and method == info.compress_type
            and not flags & _ENCRYPTED
        )
        if not flags & _SIZES_AFTER:
            wide = _zip64_sizes(extra)
            if size == _IN_ZIP64 and wide:
                size = wide.pop(0)
            if packed == _IN_ZIP64 and wide:
                packed = wide.pop(0)
            same &= (crc, packed, size) == (info.CRC, info.compress_size, info.file_size)
        if not same:
            raise DamagedError(f"directory and header of {info.filename!r} differ")
        return int(_LOCAL.size + name_length + extra_length)

    def open(self, info: zipfile.ZipInfo) -> IO[bytes]:
        """Read a member as it was before it was packed; its checksum is compared at its end."""
        return self._zip.open(info)

    def beginning(self, info: zipfile.ZipInfo, begin: int) -> IO[bytes]:
        """The first bytes of a member; the checksum of one stored as it is is not compared."""
        if info.compress_type != zipfile.ZIP_STORED:
            return self.open(info)
        self._file.seek(begin)
        return io.BytesIO(self._file.read(min(info.file_size, _BEGINNING)))

    def read(self, info: zipfile.ZipInfo) -> bytes:
        """A small member as a whole."""
        return self._zip.read(info)

    def check_sum(self, info: zipfile.ZipInfo, begin: int) -> None:
        """Read a member that is stored as it is, in pieces, and compare its checksum.

        Raises:
            DamagedError: it does not fit.
        """
        self._file.seek(begin)
        found, left = 0, info.file_size
        while left:
            piece = self._file.read(min(left, _PIECE))
            if not piece:
                raise DamagedError(f"it ends within {info.filename!r}")
            found, left = zlib.crc32(piece, found), left - len(piece)
        if found != info.CRC:
            raise DamagedError(f"the checksum of {info.filename!r} does not fit")


def _zip64_sizes(extra: bytes) -> list[int]:
    """The sizes of 64 bits in the extra fields of a header, in their order."""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        if kind == _ZIP64:
            count = min(length, len(extra) - 4) // 8
            return list(struct.unpack_from(f"<{count}Q", extra, 4))
        extra = extra[4 + length :]
    return []
