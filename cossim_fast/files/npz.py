"""`.npz`: a zip archive of `.npy`; what is stored as it is is mapped, once its checksum fits."""

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from cossim_fast.files.archive import Archive
from cossim_fast.files.entries import Entry, refusal_of
from cossim_fast.files.errors import DamagedError
from cossim_fast.files.memory import check_fits
from cossim_fast.files.npy import Header, entry_of, read_header


def entries(path: Path, key: str | None, verify: bool) -> dict[str, Entry]:
    """The arrays of an archive, or the one with that name: the header alone is read."""
    found: dict[str, Entry] = {}
    with Archive(path) as archive:
        one = f"{key}.npy"
        for name in [one] if one in archive.members else archive.members:
            if not name.endswith(".npy"):
                continue
            short = name.removesuffix(".npy")
            try:
                found[short] = _entry(archive, archive.members[name], verify)
            except (DamagedError, zipfile.BadZipFile, zlib.error, EOFError) as error:
                # It matters only if this one is asked for.
                found[short] = Entry(None, 0, lambda: None, f"cannot be read: {error}")
    return found


def _entry(archive: Archive, info: zipfile.ZipInfo, verify: bool) -> Entry:
    begin, path = archive.begin(info), archive.path
    with archive.beginning(info, begin) as member:
        header = read_header(member)
    header.check_size(info.file_size)
    if info.compress_type == zipfile.ZIP_STORED:
        entry = entry_of(header, path, begin + header.length)

        def read() -> Any:
            if verify:
                with Archive(path) as again:
                    again.check_sum(info, begin)
            return entry.read()

    else:

        def read() -> Any:
            return _unpacked(path, info, header)

    return Entry(header.shape, header.nbytes, read, refusal_of(header.dtype, len(header.shape)))


def _unpacked(path: Path, info: zipfile.ZipInfo, header: Header) -> np.ndarray[Any, Any]:
    name = info.filename.removesuffix(".npy")
    check_fits(
        f"{name} of {path}, which is compressed",
        header.nbytes,
        "; numpy.savez writes it so that it stays on disk",
    )
    with Archive(path) as archive, archive.open(info) as member:
        array: np.ndarray[Any, Any] = np.lib.format.read_array(member, allow_pickle=False)
        # The checksum is compared where a member ends, which an array of no numbers never reads.
        if member.read(1):
            raise DamagedError(f"{info.filename!r} holds more than it claims")
    return array
