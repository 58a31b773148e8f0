"""An index in a safetensors file."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from cossim_fast import _checks
from cossim_fast.retrieval.screening.codes import BLOCK, Segment
from cossim_fast.retrieval.storage.block_sums import Summing, rows_a_sum
from cossim_fast.retrieval.storage.host_parts import HostPart
from cossim_fast.retrieval.storage.ids import Ids, Kind
from cossim_fast.retrieval.storage.parts import Coder, Part, Piece, part_of
from cossim_fast.retrieval.storage.snapshot import Snapshot, snapshot_of
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


def save_index(path: Path, state: Snapshot, screen: str, dtype: torch.dtype, d: int) -> None:
    """Write the contents of an index, with its screen, and the dtype and width of its rows."""
    held: dict[str, Tensor | Blocks] = {"centre": state.centre.cpu()}
    for number, part in enumerate(state.parts):
        named = {**_rows_and_sums(part), "serials": part.serials, "alive": part.live}
        named |= part.coded()
        if part.names is not None:
            named |= _names(part.names)
        held |= {f"{number}.{name}": value for name, value in named.items()}
    metadata = {
        "screen": screen,
        "dtype": str(dtype).removeprefix("torch."),
        "width": str(d),
        "ids": state.ids.kind or "",
        "count": str(state.ids.count),
        "parts": str(len(state.parts)),
    }
    with naming(path):
        write_tensors(path, _KIND, held, metadata)


class IndexFile(TensorFile):
    """A file that `save_index` wrote, open for reading.

    Attributes:
        screen: of the index.
        stored: the dtype in which rows are kept.
        d: their width.

    Raises:
        FileNotFoundError: there is no such file.
        FileError: it is truncated, damaged, of another kind, or of a later version.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, _KIND)
        try:
            self._read_metadata()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> IndexFile:
        return self

    def _read_metadata(self) -> None:
        metadata = self.metadata
        numbers = [metadata.get(key, "") for key in ("width", "count", "parts")]
        dtype = _DTYPES.get(metadata.get("dtype", ""))
        kinds = ("", *get_args(Kind))
        if (
            not all(re.fullmatch("[0-9]{1,18}", number) for number in numbers)
            or dtype is None
            or metadata.get("screen") not in _checks.SCREENS
            or metadata.get("ids") not in kinds
        ):
            raise FileError(f"{self.path} is damaged: its header does not describe an index")
        self.screen, self.stored = metadata["screen"], dtype
        self.d, self._count, self._parts = map(int, numbers)

    def contents(
        self, device: torch.device, coder: Coder | None, *, mapped: bool, verify: bool
    ) -> Snapshot:
        """Read parts, centre and ids.

        Args:
            device: where the centre has to be.
            coder: codes the rows; None to take the codes in the file, for searches on CPU.
            mapped: leave vectors in the file.
            verify: verify the checksums of vectors: now if they are read into memory, else as they
                are first read.

        Raises:
            FileError: it is damaged.
        """
        self.expect("centre", torch.float32, (self.d,))
        centre = self.read("centre").to(device)
        parts = list[Part]()
        wanted, serial = {"centre"}, 0
        for each in range(self._parts):  # the first missing one raises
            piece, coded, names = _part(self, each, mapped=mapped, verify=verify, codes=not coder)
            ascending = bool((piece.serials[1:] > piece.serials[:-1]).all())
            if not ascending or piece.serials[0] < serial or piece.serials[-1] >= self._count:
                raise FileError(f"{self.path} is damaged: the numbers of its rows are not in order")
            serial = int(piece.serials[-1]) + 1
            parts.append(part_of(piece, centre, coder) if coder else _of_codes(piece, coded))
            wanted |= names
        if wanted != set(self.places):
            other = min(set(self.places) - wanted)
            raise FileError(f"{self.path} is damaged: it holds {other}, which belongs to no part")
        ids = Ids(self.metadata["ids"] or None, self._count)  # type: ignore[arg-type]
        return snapshot_of(parts, centre, ids)


def _part(
    file: IndexFile, number: int, *, mapped: bool, verify: bool, codes: bool
) -> tuple[Piece, dict[str, Tensor], set[str]]:
    """The rows of a part, what they are coded in if ``codes``, and the names of all its tensors."""
    begin, d, dtype = f"{number}.", file.d, file.stored
    n = file.shape(f"{begin}serials")[0]
    if not n:
        raise FileError(f"{file.path} is damaged: part {number} has no rows")
    blocks = -(-n // BLOCK)
    coded: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        "norms": (torch.float64, (n,)),
        "eligible": (torch.bool, (n,)),
        "radius": (torch.float32, (blocks,)),
    }
    if file.screen in ("auto", "int8"):
        coded["codes"] = torch.int8, (blocks * BLOCK, d)
        coded["scale"] = coded["residual"] = torch.float32, (blocks,)
    shapes = {
        "rows": (dtype, (n, d)),
        "serials": (torch.int64, (n,)),
        "alive": (torch.bool, (n,)),
        **coded,
    }
    if file.version > 1:
        shapes["sums"] = torch.uint8, (_sums(n, d, dtype), 4)
    if file.metadata["ids"] == "whole numbers":
        shapes["numbers"] = torch.int64, (n,)
    elif file.metadata["ids"] == "strings":
        shapes["ends"] = torch.int64, (n,)
        shapes["text"] = torch.uint8, file.shape(f"{begin}text")[:1]
    for name, (expected, shape) in shapes.items():
        file.expect(f"{begin}{name}", expected, shape)

    rows = (_mapped if mapped else _in_memory)(file, begin, (n, d), verify=verify)
    names: np.ndarray[Any, Any] | None = None
    if "numbers" in shapes:
        names = file.read(f"{begin}numbers").numpy()
    elif "text" in shapes:
        names = _strings(file, begin)
    serials, live = file.read(f"{begin}serials"), file.read(f"{begin}alive")
    piece = Piece(rows, serials, names, live)
    read = {name: file.read(f"{begin}{name}") for name in coded if codes}
    return piece, read, {f"{begin}{name}" for name in shapes}


def _of_codes(piece: Piece, coded: dict[str, Tensor]) -> HostPart:
    """A part with the codes that were in the file."""
    rows = piece.rows
    segment = Segment(
        first=0,
        rows=rows.tensor,
        mapping=rows.mapping,
        sums=rows.sums,
        **coded,  # type: ignore[arg-type]
    )
    assert piece.live is not None
    return HostPart(rows, segment, piece.serials, piece.names, piece.live).compare()


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
        "rows": Blocks((n, d), dtype, part.summing(summed)),
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
