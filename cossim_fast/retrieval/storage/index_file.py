"""The parts of an index in a safetensors file."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from cossim_fast import _checks
from cossim_fast.retrieval.screening.codes import BLOCK, Segment
from cossim_fast.retrieval.storage.block_sums import Summing, rows_a_sum
from cossim_fast.retrieval.storage.ids import Kind
from cossim_fast.retrieval.storage.parts import Part, tensors_of
from cossim_fast.retrieval.storage.tensor_file import (
    Blocks,
    FileError,
    TensorFile,
    naming,
    pieces,
    write_tensors,
)
from cossim_fast.retrieval.storage.vectors import Vectors, vectors_of_map

_KIND = "cossim_fast index"
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
}


def save_parts(
    path: Path, parts: Sequence[Part], centre: Tensor, metadata: Mapping[str, str]
) -> None:
    """Write parts and metadata."""
    held: dict[str, Tensor | Blocks] = {"centre": centre}
    for number, part in enumerate(parts):
        named = {**_rows_and_sums(part), "serials": part.serials, "alive": part.live}
        named |= tensors_of(part.segment)
        if part.names is not None:
            named |= _names(part.names)
        held |= {f"{number}.{name}": value for name, value in named.items()}
    with naming(path):
        write_tensors(path, _KIND, held, {**metadata, "parts": str(len(parts))})


def load_parts(
    path: Path, *, mapped: bool, verify: bool
) -> tuple[list[Part], Tensor, dict[str, str]]:
    """Read parts, centre and metadata.

    Args:
        path: the file.
        mapped: leave vectors in the file.
        verify: verify the checksums of vectors: now if they are read into memory, else as they are
            first read.

    Raises:
        FileNotFoundError: there is no such file.
        FileError: it is truncated, damaged, of another kind, or of a later version.
    """
    with TensorFile(path, _KIND) as file:
        d, dtype, count, number = _checked_metadata(file)
        file.expect("centre", torch.float32, (d,))
        parts = []
        wanted, serial = {"centre"}, 0
        for each in range(number):  # the first missing one raises
            part, names = _part(file, each, (d, dtype), mapped=mapped, verify=verify)
            ascending = bool((part.serials[1:] > part.serials[:-1]).all())
            if not ascending or part.serials[0] < serial or part.serials[-1] >= count:
                raise FileError(f"{path} is damaged: the numbers of its rows are not in order")
            serial = int(part.serials[-1]) + 1
            parts.append(part)
            wanted |= names
        if wanted != set(file.places):
            other = min(set(file.places) - wanted)
            raise FileError(f"{path} is damaged: it holds {other}, which belongs to no part")
        return parts, file.read("centre"), file.metadata


def _checked_metadata(file: TensorFile) -> tuple[int, torch.dtype, int, int]:
    """Width, dtype, rows ever added and number of parts, from the checked metadata of an index."""
    metadata = file.metadata
    numbers = [metadata.get(key, "") for key in ("width", "count", "parts")]
    dtype = _DTYPES.get(metadata.get("dtype", ""))
    kinds = ("", *get_args(Kind))
    if (
        not all(re.fullmatch("[0-9]{1,18}", number) for number in numbers)
        or dtype is None
        or metadata.get("screen") not in _checks.SCREENS
        or metadata.get("ids") not in kinds
    ):
        raise FileError(f"{file.path} is damaged: its header does not describe an index")
    width, count, parts = map(int, numbers)
    return width, dtype, count, parts


def _part(
    file: TensorFile, number: int, kind: tuple[int, torch.dtype], *, mapped: bool, verify: bool
) -> tuple[Part, set[str]]:
    """A part, and the names of all its tensors."""
    begin, (d, dtype) = f"{number}.", kind
    n = file.shape(f"{begin}serials")[0]
    if not n:
        raise FileError(f"{file.path} is damaged: part {number} has no rows")
    blocks = -(-n // BLOCK)
    shapes = {
        "rows": (dtype, (n, d)),
        "serials": (torch.int64, (n,)),
        "alive": (torch.bool, (n,)),
        "norms": (torch.float64, (n,)),
        "eligible": (torch.bool, (n,)),
        "radius": (torch.float32, (blocks,)),
    }
    if file.metadata["screen"] in ("auto", "int8"):
        shapes["codes"] = torch.int8, (blocks * BLOCK, d)
        shapes["scale"] = shapes["residual"] = torch.float32, (blocks,)
    if file.version > 1:
        shapes["sums"] = torch.uint8, (_sums(n, d, dtype), 4)
    if file.metadata["ids"] == "whole numbers":
        shapes["numbers"] = torch.int64, (n,)
    elif file.metadata["ids"] == "strings":
        shapes["ends"] = torch.int64, (n,)
        shapes["text"] = torch.uint8, file.shape(f"{begin}text")[:1]
    for name, (expected, shape) in shapes.items():
        file.expect(f"{begin}{name}", expected, shape)

    held = {
        name: file.read(f"{begin}{name}")
        for name in shapes
        if name not in ("rows", "sums", "text", "ends")
    }
    rows = (_mapped if mapped else _in_memory)(file, begin, (n, d), verify=verify)
    coded = {name: held[name] for name in held.keys() & {f.name for f in fields(Segment)}}
    segment = Segment(
        first=0,
        rows=rows.tensor,
        mapping=rows.mapping,
        sums=rows.sums,
        **coded,  # type: ignore[arg-type]
    )
    names: np.ndarray[Any, Any] | None = None
    if "numbers" in held:
        names = held["numbers"].numpy()
    elif "text" in shapes:
        names = _strings(file, begin)
    part = Part(rows, segment, held["serials"], names, held["alive"]).compare()
    return part, {f"{begin}{name}" for name in shapes}


def _in_memory(file: TensorFile, begin: str, shape: tuple[int, int], *, verify: bool) -> Vectors:
    return Vectors(file.read(f"{begin}rows", verify=verify), owned=True)


def _mapped(file: TensorFile, begin: str, shape: tuple[int, int], *, verify: bool) -> Vectors:
    """Rows that stay in the file, with checksums if the file has some, or ``verify``."""
    dtype = file.dtype(f"{begin}rows")
    if not math.prod(shape):
        return Vectors(torch.empty(shape, dtype=dtype, device="cpu"), owned=True)
    mapping = file.mapped(f"{begin}rows")
    if file.version > 1:
        sums = file.read(f"{begin}sums").numpy().view("<u4")[:, 0]
        return vectors_of_map(mapping, shape, dtype, sums, compared=not verify)
    rows = vectors_of_map(mapping, shape, dtype)
    if not verify:
        return rows
    # Version 1 had one checksum for all rows.
    total, summed = 0, Summing(shape[1] * dtype.itemsize)
    for block in rows.blocks():
        for piece in pieces(block):
            total = zlib.crc32(piece, total)
            summed.add(piece)
    if total != file.sums[f"{begin}rows"]:
        raise FileError(f"{file.path} is damaged: the checksum of {begin}rows does not fit")
    return vectors_of_map(mapping, shape, dtype, summed.sums(), compared=True)


def _rows_and_sums(part: Part) -> dict[str, Tensor | Blocks]:
    """Vectors, a block at a time, and their checksums, which are known after all of them."""
    n, d = part.rows.tensor.shape
    dtype = part.rows.tensor.dtype
    summed = Summing(d * dtype.itemsize)

    def sums() -> Iterator[Tensor]:
        raw = summed.sums().astype("<u4").view(np.uint8)
        yield torch.from_numpy(raw).view(-1, 4)

    return {
        "rows": Blocks((n, d), dtype, part.rows.summing(part.segment.norms, summed)),
        # uint8, so that it is written last.
        "sums": Blocks((_sums(n, d, dtype), 4), torch.uint8, sums()),
    }


def _sums(n: int, d: int, dtype: torch.dtype) -> int:
    """How many checksums rows have."""
    return -(-n // rows_a_sum(d * dtype.itemsize)) if d else 0


def _names(names: np.ndarray[Any, Any]) -> dict[str, Tensor]:
    """Ids as tensors: numbers, or UTF-8 text with the end offset of each."""
    if names.dtype != object:
        return {"numbers": torch.from_numpy(names)}
    coded = [name.encode("utf-8", "surrogatepass") for name in names]
    text = np.frombuffer(b"".join(coded), np.uint8).copy()
    ends = np.cumsum([len(name) for name in coded], dtype=np.int64)
    return {"text": torch.from_numpy(text), "ends": torch.from_numpy(ends)}


def _strings(file: TensorFile, begin: str) -> np.ndarray[Any, Any]:
    raw = file.read(f"{begin}text").numpy().tobytes()
    ends = file.read(f"{begin}ends").tolist()
    names = np.empty(len(ends), dtype=object)
    first = 0
    try:
        for number, end in enumerate(ends):
            if not first <= end <= len(raw):
                raise ValueError(f"text {number} ends at byte {end}")
            names[number] = raw[first:end].decode("utf-8", "surrogatepass")
            first = end
    except ValueError as error:
        raise FileError(f"{file.path} is damaged: its ids make no sense ({error})") from error
    return names
