"""Tensors in safetensors files, with a kind, a version and checksums, written atomically.

The safetensors package is not used, since it writes only tensors that are in memory, and a file may
be larger than memory. The layout is 8 bytes of length, a JSON header, and the tensors one after the
other (https://github.com/huggingface/safetensors).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from cossim_fast._replacing import replacing

VERSION = 2
# [bytes] A longer header is refused. An index of a million parts has a shorter one.
_LONGEST_HEADER = 1 << 28
# [bytes] The header is padded with blanks to a multiple, so that tensors can be mapped.
PAGE = 4096
_DTYPES = {
    "U8": torch.uint8,
    "I8": torch.int8,
    "BOOL": torch.bool,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_MOST_AXES = 8
# [bytes] Written at a time.
_PIECE = 1 << 24


class FileError(ValueError):
    """A file that is truncated, damaged, of another kind, or of a later version."""


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the path to system errors without one, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


@dataclass(frozen=True)
class Blocks:
    """A tensor (n, d) that is written a block of rows at a time."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    blocks: Iterable[Tensor]  # of its rows, in order


def write_tensors(
    path: Path,
    kind: str,
    tensors: Mapping[str, Tensor | Blocks],
    metadata: Mapping[str, str],
    *,
    mode: int = 0o666,
) -> None:
    """Write tensors and metadata to a safetensors file, atomically.

    The file is written beside its place and renamed. The mode of a new file is ``mode`` less the
    umask: see `_replacing.replacing`.
    """
    order = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)  # aligned without gaps
    shapes = {name: (tensors[name].dtype, tuple(tensors[name].shape)) for name in order}
    sums = dict.fromkeys(order, 0)
    with replacing(path, mode=mode) as file:
        file.write(header(kind, shapes, metadata, sums))
        for name in order:
            begin = file.tell()
            for piece in pieces(tensors[name]):
                sums[name] = zlib.crc32(piece, sums[name])
                file.write(piece)
            if file.tell() - begin != _size(*shapes[name]):
                raise ValueError(
                    f"expected {_size(*shapes[name])} bytes of {name}, got {file.tell() - begin}"
                )
        file.seek(0)
        file.write(header(kind, shapes, metadata, sums))


def header(
    kind: str,
    shapes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    metadata: Mapping[str, str],
    sums: Mapping[str, int],
) -> bytes:
    """The first bytes of a file, up to the tensors; how many does not depend on the checksums."""
    text = {**metadata, "kind": kind, "version": str(VERSION)}
    entries: dict[str, Any] = {}
    last = 0
    for name, (dtype, shape) in shapes.items():
        first, last = last, last + _size(dtype, shape)
        entry = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [first, last]}
        entries[name] = entry
    text["crc32"] = json.dumps({name: f"{value:08x}" for name, value in sums.items()})
    text["header_crc32"] = _sum_of(text, entries)
    coded = json.dumps({"__metadata__": text, **entries}).encode()
    coded += b" " * (-(len(coded) + 8) % PAGE)
    return len(coded).to_bytes(8, "little") + coded


def _sum_of(metadata: Mapping[str, str], entries: Mapping[str, Any]) -> str:
    """The checksum of a header without the checksums of tensors, which need none."""
    checked = {key: text for key, text in metadata.items() if "crc32" not in key}
    return f"{zlib.crc32(json.dumps([checked, entries], sort_keys=True).encode()):08x}"


def pieces(tensor: Tensor | Blocks) -> Iterator[memoryview]:
    """Yield the bytes of a tensor, in order."""
    if isinstance(tensor, Blocks):
        for block in tensor.blocks:
            yield from pieces(block)
    elif tensor.numel():
        step = max(_PIECE * tensor.shape[0] // (tensor.numel() * tensor.itemsize), 1)
        for some in tensor.split(step):
            yield some.contiguous().view(-1).view(torch.uint8).numpy().data


def _size(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * dtype.itemsize


class TensorFile:
    """A file that `write_tensors` wrote, open for reading.

    Raises:
        FileNotFoundError: there is no such file.
        FileError: it is truncated, damaged, of another kind, or of a later version.
    """

    def __init__(self, path: Path, kind: str) -> None:
        self.path = path
        self._file: BinaryIO = path.open("rb")
        try:
            self._read_header(kind)
        except BaseException:
            self.close()
            raise

    def _read_header(self, kind: str) -> None:
        path, size = self.path, os.fstat(self._file.fileno()).st_size
        length = int.from_bytes(self._file.read(8), "little")
        if size < 8 or length > min(size - 8, _LONGEST_HEADER):
            raise FileError(f"{path} is truncated, or no safetensors file: {size} bytes")
        entries = self._json(self._file.read(length))
        metadata = entries.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(
            isinstance(text, str) for text in metadata.values()
        ):
            raise FileError(f"{path} is damaged: its header cannot be read")
        self.metadata: dict[str, str] = metadata
        if metadata.get("kind") != kind:
            got = metadata.get("kind", "a safetensors file of another program")
            raise FileError(f"expected {path} to be a {kind}, got {got}")
        version = metadata.get("version", "")
        self.version = int(version) if re.fullmatch("[0-9]{1,9}", version) else VERSION + 1
        if self.version > VERSION:
            raise FileError(
                f"{path} has format version {version or 'unknown'}, and this cossim_fast reads up "
                f"to {VERSION}; upgrade it"
            )
        try:
            if metadata.pop("header_crc32") != _sum_of(metadata, entries):
                raise ValueError("its checksum does not fit")
            self.places = {name: _place(8 + length, entry) for name, entry in entries.items()}
            sums = self._json(metadata.pop("crc32").encode())
            self.sums = {name: int(sums[name], 16) for name in entries}
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            if isinstance(error, FileError):
                raise
            raise FileError(f"{path} is damaged: its header makes no sense ({error!r})") from error
        end = 8 + length
        for name, (first, shape, dtype) in sorted(self.places.items(), key=lambda item: item[1][0]):
            if first > end or (first < end and _size(dtype, shape)):
                raise FileError(
                    f"{path} is damaged: its header makes no sense ({name} begins at byte {first}, "
                    f"and what comes before it ends at {end})"
                )
            end = max(end, first + _size(dtype, shape))
        if size != end:
            how = "truncated" if size < end else "damaged"
            raise FileError(f"{path} is {how}: {size} bytes, {end} expected")

    def _json(self, text: bytes) -> dict[str, Any]:
        """Read an object in JSON."""
        try:
            held = json.loads(text)
        # Too deeply nested brackets, invalid text, or numbers of thousands of digits.
        except (RecursionError, ValueError) as error:
            raise FileError(f"{self.path} is damaged: its header cannot be read") from error
        if not isinstance(held, dict):
            raise FileError(f"{self.path} is damaged: its header cannot be read")
        return held

    def expect(self, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
        """Raise FileError unless the file has a tensor of this name, dtype and shape."""
        _, got_shape, got_dtype = self._held(name)
        if (got_dtype, got_shape) != (dtype, shape):
            raise FileError(
                f"{self.path} is damaged: expected {name} of shape {shape} in {dtype}, "
                f"got {got_shape} in {got_dtype}"
            )

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, which must have an axis."""
        _, shape, _ = self._held(name)
        if not shape:
            raise FileError(f"{self.path} is damaged: {name} has no axis")
        return shape

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a tensor."""
        return self._held(name)[2]

    def _held(self, name: str) -> tuple[int, tuple[int, ...], torch.dtype]:
        if name not in self.places:
            raise FileError(f"{self.path} is damaged: it holds no {name}")
        return self.places[name]

    def read(self, name: str, *, verify: bool = True) -> Tensor:
        """Read a tensor into memory, and verify its checksum."""
        offset, shape, dtype = self._held(name)
        self._file.seek(offset)
        raw = np.fromfile(self._file, np.uint8, _size(dtype, shape))
        if len(raw) != _size(dtype, shape):
            raise FileError(f"{self.path} is truncated: {name} is incomplete")
        if verify and zlib.crc32(raw.data) != self.sums[name]:
            raise FileError(f"{self.path} is damaged: the checksum of {name} does not fit")
        if not len(raw):  # torch will not view an empty array as another dtype
            return torch.empty(shape, dtype=dtype, device="cpu")
        tensor: Tensor = torch.from_numpy(raw).view(dtype).view(shape)
        return tensor

    def mapped(self, name: str) -> np.memmap[Any, Any]:
        """The bytes of a tensor (at least one), memory-mapped and not verified."""
        offset, shape, dtype = self._held(name)
        return np.memmap(self._file, np.uint8, "r", offset, (_size(dtype, shape),))

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; what was mapped stays mapped."""
        self._file.close()


def _place(begin: int, entry: Any) -> tuple[int, tuple[int, ...], torch.dtype]:
    """Offset in the file, shape and dtype of a tensor."""
    shape, (first, last) = entry["shape"], entry["data_offsets"]
    numbers = [*shape, first, last]
    if len(numbers) > _MOST_AXES + 2 or not all(type(number) is int for number in numbers):
        raise ValueError("a shape and offsets must be a few integers")
    dtype, shape = _DTYPES[entry["dtype"]], tuple(shape)
    most = math.prod(number for number in shape if number)
    if min(numbers) < 0 or most >= 1 << 63 or last - first != _size(dtype, shape):
        raise ValueError(f"{last - first} bytes for a tensor of {shape} in {dtype}")
    return begin + first, shape, dtype


def read_tensors(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read all that `write_tensors` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        FileError: it is truncated, damaged, of another kind, or of a later version.
    """
    with TensorFile(path, kind) as file:
        return {name: file.read(name) for name in file.places}, file.metadata
