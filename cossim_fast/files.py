"""Read a matrix of embeddings, or its labels, from a file; large ones stay on disk."""

import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from cossim_fast._extras import require


class BadFileError(ValueError):
    """A file that is missing, damaged, of an unknown kind, or without a fitting array."""


def load(path: str | Path, *, key: str | None = None, ndim: int = 2) -> Any:
    """Return the array of ``ndim`` axes that a file holds.

    ``.npy``, ``.safetensors``, ``.pt`` and a ``.npz`` that is not compressed are mapped: what is
    not touched is not read. ``.npz``, ``.pt`` and ``.safetensors`` may hold several arrays:
    ``key`` names one, and is not needed where one alone has the right number of axes. ``.pt`` is
    read with ``weights_only=True``, so no code in it runs. ``.parquet`` holds one column of lists,
    or one number a column, and is read into memory.

    Args:
        path: the file.
        key: the name of one array, or of a column of lists.
        ndim: how many axes the array is to have.

    Raises:
        BadFileError: what was expected, what the file holds, and what to pass.
    """
    path = Path(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise BadFileError(f"expected a file ending in {', '.join(_READERS)}, got {path.name!r}")
    if path.is_dir():
        raise BadFileError(f"expected a file at {path}, which is a folder")
    if not path.is_file():
        raise BadFileError(f"expected a file at {path}, and there is none")
    try:
        held = reader(path)
    except ModuleNotFoundError:
        raise
    except Exception as error:  # every reader has errors of its own
        expected = _EXPECTED[path.suffix.lower()]
        raise BadFileError(
            f"{path} cannot be read as {path.suffix}: expected {expected}"
        ) from error
    if not isinstance(held, dict):
        held = {"": held}
    arrays = {name: each for name, each in held.items() if _has_shape(each)}
    return _choose(arrays, key, ndim, path)


def _has_shape(held: Any) -> bool:
    """Whether something is an array; torch asserts where a nested tensor is asked for its shape."""
    return isinstance(held, np.ndarray) or (isinstance(held, Tensor) and not held.is_nested)


def load_column(path: Path, name: str | None) -> np.ndarray[Any, Any]:
    """Read one column of whole numbers or strings from a ``.parquet``.

    Args:
        path: the file.
        name: of the column; not needed where there is one alone.

    Raises:
        BadFileError: what was expected, what the file holds, and what to pass.
    """
    parquet = require("pyarrow.parquet", extra="cli")
    try:
        there = parquet.read_schema(path).names
        chosen = name if name is not None else there[0] if len(there) == 1 else None
        column = parquet.read_table(path, columns=[chosen]).column(0) if chosen in there else None
    except FileNotFoundError as error:
        raise BadFileError(f"expected a file at {path}, and there is none") from error
    except Exception as error:  # pyarrow has many
        raise BadFileError(f"{path} cannot be read as .parquet") from error
    if column is None:
        wanted = "one column" if name is None else repr(name)
        raise BadFileError(f"expected {wanted} in {path}, which holds {', '.join(there)}")
    if column.null_count:
        raise BadFileError(f"expected {chosen!r} of {path} without gaps, got {column.null_count}")
    held: np.ndarray[Any, Any] = column.to_numpy()
    return held


def _choose(arrays: dict[str, Any], key: str | None, ndim: int, path: Path) -> Any:
    shapes = ", ".join(f"{name or 'array'} {tuple(each.shape)}" for name, each in arrays.items())
    if key is not None:
        if key not in arrays:
            raise BadFileError(f"expected {key!r} in {path}, which holds {shapes or 'no array'}")
        return arrays[key]
    fitting = [each for each in arrays.values() if each.ndim == ndim]
    if len(fitting) == 1:
        return fitting[0]
    fix = "; name one with its key" if len(fitting) > 1 else ""
    raise BadFileError(
        f"expected one array of {ndim} axes in {path}, which holds {shapes or 'no array'}{fix}"
    )


def _npy(path: Path) -> Any:
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _npz(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        return {
            info.filename.removesuffix(".npy"): _member(archive, info, file)
            for info in archive.infolist()
        }


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, file: BinaryIO) -> Any:
    """An array of an archive: where it lies if it is stored as it is, else read."""
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0
        shape, fortran, dtype = (
            read if version == (1, 0) else np.lib.format.read_array_header_2_0
        )(member)
        begin = member.tell()
    if info.compress_type != zipfile.ZIP_STORED or dtype.hasobject or 0 in shape:
        with archive.open(info) as member:
            return np.lib.format.read_array(member, allow_pickle=False)
    # Before the data the archive repeats the name, with an extra field of a length of its own
    # (section 4.3.7 of the specification, APPNOTE.TXT of PKWARE).
    file.seek(info.header_offset + 26)
    begin += info.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))
    return np.memmap(file, dtype, "r", begin, shape, "F" if fortran else "C")


def _pt(path: Path) -> Any:
    mapped = zipfile.is_zipfile(path)  # what torch wrote before 1.6 is not
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def _safetensors(path: Path) -> Any:
    return require("safetensors.torch", extra="cli").load_file(path)


def _parquet(path: Path) -> Any:
    table = require("pyarrow.parquet", extra="cli").read_table(path)
    columns = {name: table.column(name).combine_chunks() for name in table.column_names}
    lists = {name: each for name, each in columns.items() if hasattr(each.type, "value_field")}
    if lists:
        matrices = {name: _matrix(column) for name, column in lists.items()}
        return {name: matrix for name, matrix in matrices.items() if matrix is not None}
    if len(columns) == 1:
        return next(iter(columns.values())).to_numpy(zero_copy_only=False)
    return np.stack([column.to_numpy(zero_copy_only=False) for column in columns.values()], 1)


def _matrix(column: Any) -> Any:
    """Lists of one length as rows; None where one is missing or longer than another."""
    lengths = require("pyarrow.compute", extra="cli").list_value_length(column)
    lengths = lengths.to_numpy(zero_copy_only=False)
    if not (hasattr(column, "flatten") and len(np.unique(lengths)) == 1 and not column.null_count):
        return None
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)


# The readers' own messages advise to load what is not safe.
_EXPECTED = {
    ".npy": "numbers saved by numpy.save",
    ".npz": "numbers saved by numpy.savez",
    ".pt": "a tensor or a dict of tensors saved by torch.save; nothing else in it is loaded",
    ".safetensors": "tensors saved by safetensors",
    ".parquet": "a table of numbers, or of one column of lists of one length",
}
_READERS = {
    ".npy": _npy,
    ".npz": _npz,
    ".pt": _pt,
    ".safetensors": _safetensors,
    ".parquet": _parquet,
}
