"""`-`: standard input, read once and whole, in a format that its beginning shows."""

import io
import sys
from typing import BinaryIO, cast

from cossim_fast.files import csv, jsonl, npy
from cossim_fast.files.entries import Entry
from cossim_fast.files.errors import BadFileError

FORMATS = (".npy", ".csv", ".tsv", ".jsonl")
# How files begin that hold a directory, and are not read from their beginning to their end.
_BEGINNINGS = {
    b"PK": "a zip archive, such as .npz or .pt",
    b"PAR1": "a .parquet",
    b"\x1f\x8b": "packed by gzip",
}


def read() -> bytes:
    """All of it.

    Raises:
        BadFileError: there is none, or it was read before.
    """
    if sys.stdin is None or sys.stdin.closed:
        raise BadFileError("expected standard input, and it is closed")
    raw = cast("BinaryIO", sys.stdin.buffer).read()
    if not raw:
        raise BadFileError(
            "expected an array in standard input, which is empty, or was read for another argument"
        )
    return raw


def format_of(raw: bytes) -> str:
    """What the first bytes show.

    Raises:
        BadFileError: a format that cannot be read from a stream.
    """
    if raw.startswith(b"\x93NUMPY"):
        return ".npy"
    for beginning, what in _BEGINNINGS.items():
        if raw.startswith(beginning):
            raise BadFileError(
                f"expected {', '.join(FORMATS)} in standard input, got what is {what}; write it to "
                "a file first"
            )
    text = raw[:100].removeprefix(b"\xef\xbb\xbf").lstrip()
    return ".jsonl" if text[:1] in (b"{", b"[") else ".csv"


def entries(raw: bytes, kind: str, key: str | None) -> dict[str, Entry]:
    """The arrays in it."""
    if kind == ".npy":
        return npy.entries_of(raw)
    entries_of = jsonl.entries_of if kind == ".jsonl" else csv.entries_of
    return entries_of(lambda: io.BytesIO(raw), key)
