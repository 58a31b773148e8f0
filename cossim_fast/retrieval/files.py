"""Tensors in safetensors files: a kind, a version, and nothing half-written."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cossim_fast._extras import require

VERSION = 1
_DTYPES = {
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}


class FileError(ValueError):
    """A file that is truncated, damaged, of another kind, or of a later version."""


def write_tensors(
    path: Path, kind: str, tensors: Mapping[str, Tensor], said: Mapping[str, str]
) -> None:
    """Write tensors and text to a safetensors file: all of it, or nothing.

    The file is written beside its place under a temporary name, flushed to the disk, and renamed.
    """
    safetensors = require("safetensors.torch", extra="retrieval")
    text = {**said, "kind": kind, "version": str(VERSION)}
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    try:
        safetensors.save_file({k: t.contiguous() for k, t in tensors.items()}, name, metadata=text)
        with open(name, "rb") as written:
            os.fsync(written.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read_tensors(
    path: Path, kind: str, *, mapped: bool = False
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read what `write_tensors` wrote; ``mapped`` leaves it on the disk until it is touched.

    Raises:
        FileNotFoundError: there is no such file.
        FileError: it is truncated, damaged, of another kind, or of a later version.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise FileError(f"{path} is truncated or no safetensors file")
        try:
            header = json.loads(file.read(length))
            said = dict(header.pop("__metadata__", {}))
        except (ValueError, AttributeError, TypeError) as error:
            raise FileError(f"{path} is damaged: its header cannot be read") from error
    if said.get("kind") != kind:
        raise FileError(f"expected {path} to be a {kind}, got {said.get('kind', 'another file')!r}")
    if not said.get("version", "").isdigit() or int(said["version"]) > VERSION:
        raise FileError(
            f"{path} has format version {said.get('version')}, and this cossim_fast reads up to "
            f"{VERSION}; upgrade it"
        )
    try:
        ends = [entry["data_offsets"][1] for entry in header.values()]
        if size != 8 + length + max(ends, default=0):
            raise FileError(f"{path} is truncated: {size} bytes, {8 + length + max(ends)} expected")
        begin = 8 + length
        return {name: _tensor(path, begin, entry, mapped) for name, entry in header.items()}, said
    except (KeyError, TypeError, IndexError, ValueError) as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"{path} is damaged: {error!r}") from error


def _tensor(path: Path, begin: int, entry: dict[str, Any], mapped: bool) -> Tensor:
    dtype, shape = _DTYPES[entry["dtype"]], entry["shape"]
    first, last = entry["data_offsets"]
    count, rest = divmod(last - first, dtype.itemsize)
    if rest or count != int(np.prod(shape, dtype=np.int64)):
        raise FileError(f"{path} is damaged: {last - first} bytes for a tensor of {shape}")
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    raw: np.ndarray[Any, Any]
    if mapped:
        # Copy-on-write, so that torch may think the memory its own.
        raw = np.memmap(path, np.uint8, mode="c", offset=begin + first, shape=(last - first,))
    else:
        raw = np.fromfile(path, np.uint8, last - first, offset=begin + first)
    tensor: Tensor = torch.from_numpy(raw).view(dtype).view(shape)
    return tensor
