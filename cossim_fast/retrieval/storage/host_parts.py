"""Parts of an index that are searched on CPU: rows in memory or in a file, and their codes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from cossim_fast.retrieval.screening.codes import BLOCK, Segment, encode, large
from cossim_fast.retrieval.screening.segment_projection import SegmentProjection
from cossim_fast.retrieval.storage.block_sums import Summing
from cossim_fast.retrieval.storage.parts import Part, Piece
from cossim_fast.retrieval.storage.vectors import Vectors

# [rows] Verified when a file is opened again, so that another file is noticed at once. Each may
# take 2 MB for a moment, as much as some systems map at once.
_COMPARED = 16


@dataclass
class HostPart(Part):
    """Consecutive rows of an index that is searched on CPU."""

    segment: Segment

    def __post_init__(self) -> None:
        # Projecting rows in a file would read all of it, which takes longer than it saves.
        if self.segment.projection is None and self.rows.owned and self.segment.codes is not None:
            self.segment.projection = SegmentProjection()

    def compare(self) -> HostPart:
        """Check that some rows still have the norms that they were coded with."""
        count = min(_COMPARED, len(self))
        # In float32 the last of more than 2^24 rows could round up to one that is not there.
        row = torch.linspace(0, len(self) - 1, count, dtype=torch.float64, device="cpu").long()
        self.rows.compare(row, self.segment.norms)
        self.rows.release_pages()
        return self

    def summing(self, summed: Summing) -> Iterator[Tensor]:
        """Yield all rows; those of a file are verified to be the ones that were coded."""
        return self.rows.summing(summed, self.segment.norms)

    def coded(self) -> Mapping[str, Tensor]:
        """The tensors of the segment except the rows, by name."""
        return tensors_of(self.segment)

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


def host_part(piece: Piece, centre: Tensor, *, codes: bool) -> HostPart:
    """Code rows into a part, in int8 if ``codes``; borrowed ones are copied while in cache."""
    rows = piece.rows
    if rows.borrowed:
        kept = large(tuple(rows.tensor.shape), rows.tensor.dtype)
        segment = encode(rows.tensor, centre, codes=codes, into=kept)
        rows = Vectors(kept, owned=True)
    else:
        segment = replace(_encode(rows, centre, codes=codes), mapping=rows.mapping, sums=rows.sums)
    live = torch.ones(len(segment), dtype=torch.bool, device="cpu")
    return HostPart(rows, segment, piece.serials, piece.names, live)


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
