"""The parts of an index, each of which is immutable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cossim_fast._lazily import lazily
from cossim_fast.retrieval.screening.codes import BLOCK, Segment, encode, large
from cossim_fast.retrieval.screening.segment_projection import SegmentProjection
from cossim_fast.retrieval.storage.growing_file import VectorFile
from cossim_fast.retrieval.storage.vectors import Vectors

# [rows] Verified when a file is opened again, so that another file is noticed at once. Each may
# take 2 MB for a moment, as much as some systems map at once.
_COMPARED = 16


@dataclass
class Part:
    """Consecutive rows of an index.

    A position counts the rows of all parts, including removed ones. A serial number counts the rows
    that were ever added, and is never reused.
    """

    rows: Vectors
    segment: Segment
    serials: Tensor  # (n,) int64, ascending
    names: np.ndarray[Any, Any] | None  # (n,) int64 or str: ids that are not the serials
    live: Tensor  # (n,) bool: not removed

    def __post_init__(self) -> None:
        # Projecting rows in a file would read all of it, which takes longer than it saves.
        if self.segment.projection is None and self.rows.owned and self.segment.codes is not None:
            self.segment.projection = SegmentProjection()

    def __len__(self) -> int:
        return len(self.segment)

    def ids(self) -> np.ndarray[Any, Any]:
        """The id of each row."""
        return self.serials.numpy() if self.names is None else self.names

    @lazily
    def live_count(self) -> int:
        """How many rows were not removed."""
        return int(self.live.sum())

    @lazily
    def skipped(self) -> int:
        """How many rows that were not removed hold NaN or an infinity."""
        return int((self.live & ~self.segment.norms.isfinite()).sum())

    def without(self, row: Tensor) -> Part:
        """The part after rows (by number within it) were removed."""
        return replace(
            self,
            live=self.live.index_fill(0, row, False),
            segment=without(self.segment, row),
        )

    def starting_at(self, first: int) -> Part:
        """The part with its first row at another position."""
        if self.segment.first == first:
            return self
        return replace(self, segment=replace(self.segment, first=first))

    def compare(self) -> Part:
        """Check that some rows still have the norms that they were coded with."""
        count = min(_COMPARED, len(self))
        # In float32 the last of more than 2^24 rows could round up to one that is not there.
        row = torch.linspace(0, len(self) - 1, count, dtype=torch.float64, device="cpu").long()
        self.rows.compare(row, self.segment.norms)
        self.rows.release_pages()
        return self

    def __getstate__(self) -> dict[str, Any]:
        # The vectors are pickled once; vectors in a file by its name and their checksums.
        self.rows.know_sums(self.segment.norms)
        empty = torch.empty((0, 0), dtype=self.rows.tensor.dtype, device="cpu")
        segment = replace(self.segment, rows=empty, mapping=None, sums=None)
        return {**self.__dict__, "segment": segment}

    def __setstate__(self, held: dict[str, Any]) -> None:
        self.__dict__.update(held)
        rows = self.rows
        self.segment = replace(self.segment, rows=rows.tensor, mapping=rows.mapping, sums=rows.sums)
        self.compare()


def without(segment: Segment, row: Tensor) -> Segment:
    """The segment with some rows (by number within it) banned."""
    return replace(segment, eligible=segment.eligible.index_fill(0, row, False))


def part_of(
    rows: Vectors,
    serials: Tensor,
    names: np.ndarray[Any, Any] | None,
    centre: Tensor,
    *,
    codes: bool,
    live: Tensor | None = None,
) -> Part:
    """Encode rows into a part; borrowed ones are copied while they are in cache."""
    if rows.borrowed:
        kept = large(tuple(rows.tensor.shape), rows.tensor.dtype)
        segment = encode(rows.tensor, centre, codes=codes, into=kept)
        rows = Vectors(kept, owned=True)
    else:
        segment = replace(_encode(rows, centre, codes=codes), mapping=rows.mapping, sums=rows.sums)
    part = Part(
        rows, segment, serials, names, torch.ones(len(segment), dtype=torch.bool, device="cpu")
    )
    return part if live is None else part.without((~live).nonzero()[:, 0])


def _encode(rows: Vectors, centre: Tensor, *, codes: bool) -> Segment:
    """Encode rows; those of a file a chunk at a time, whose memory is then released."""
    n = len(rows.tensor)
    merged: dict[str, Any] = {}
    filled: dict[str, int] = {}
    for chunk in rows.blocks():
        piece = encode(chunk, centre, codes=codes)
        if len(chunk) == n:
            return piece
        for name, values in tensors_of(piece).items():
            if name not in merged:  # a chunk is a multiple of 64 rows
                most = len(values) * -(-n // BLOCK) // (len(chunk) // BLOCK)
                merged[name] = values.new_empty((most, *values.shape[1:]))
            first = filled.get(name, 0)
            filled[name] = first + len(values)
            merged[name][first : filled[name]] = values
    return Segment(
        first=0, rows=rows.tensor, **{name: merged[name][: filled[name]] for name in merged}
    )


def tensors_of(segment: Segment) -> dict[str, Tensor]:
    """The tensors of a segment except the rows, by name."""
    held = {field.name: getattr(segment, field.name) for field in fields(segment)}
    return {name: v for name, v in held.items() if isinstance(v, Tensor) and name != "rows"}


def positions_of(parts: Sequence[Part], serials: Tensor) -> Tensor:
    """Where rows are, by serial number; -1 for those that are not there any more."""
    found = torch.full(serials.shape, -1, device="cpu")
    for part in parts:
        at = torch.searchsorted(part.serials, serials).clamp_max(len(part) - 1)
        here = (part.serials[at] == serials) & part.live[at]
        found[here] = at[here] + part.segment.first
    return found


def ids_at(parts: Sequence[Part], positions: Tensor, missing: Any) -> np.ndarray[Any, Any]:
    """The ids of rows, by position; ``missing`` for -1."""
    kind = object if missing is None else np.int64
    found, position = np.full(tuple(positions.shape), missing, kind), positions.numpy()
    for part in parts:
        at = position - part.segment.first
        here = (position >= 0) & (at >= 0) & (at < len(part))
        found[here] = part.ids().take(at[here])
    return found


@dataclass(frozen=True)
class Piece:
    """Rows from which a part is to be coded."""

    rows: Vectors
    serials: Tensor
    names: np.ndarray[Any, Any] | None
    live: Tensor | None  # None: none was removed

    def __len__(self) -> int:
        return len(self.serials)


def piece_of(part: Part) -> Piece:
    """The rows of a part, to be coded again."""
    return Piece(part.rows, part.serials, part.names, part.live)


def merge(pieces: Sequence[Piece], file: VectorFile | None) -> Piece:
    """Merge consecutive pieces; those in memory lose their removed rows."""
    if len(pieces) == 1 and (file is not None or pieces[0].live is None):
        return pieces[0]
    live = torch.cat([_live(piece) for piece in pieces])
    serials = torch.cat([piece.serials for piece in pieces])
    named = [piece.names for piece in pieces if piece.names is not None]
    names = np.concatenate(named) if named else None
    if file is not None:
        first = file.first_of(pieces[0].rows)
        assert first is not None
        return Piece(file.rows(first), serials, names, live)
    rows = torch.cat([piece.rows.tensor[_chosen(piece)] for piece in pieces])
    kept = None if names is None else names[live.numpy()]
    return Piece(Vectors(rows, owned=True), serials[live], kept, None)


def _live(piece: Piece) -> Tensor:
    if piece.live is not None:
        return piece.live
    return torch.ones(len(piece.serials), dtype=torch.bool, device="cpu")


def _chosen(piece: Piece) -> Tensor | slice:
    """An index for the rows that were not removed; a slice, which copies nothing, if none was."""
    if piece.live is None or bool(piece.live.all()):
        return slice(None)
    return piece.live
