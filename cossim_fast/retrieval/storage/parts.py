"""The parts of an index, each of which is immutable."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cossim_fast._lazily import lazily
from cossim_fast.retrieval.storage.block_sums import Summing
from cossim_fast.retrieval.storage.growing_file import VectorFile
from cossim_fast.retrieval.storage.tensor_file import Blocks
from cossim_fast.retrieval.storage.vectors import Vectors


@dataclass
class Part(ABC):
    """Consecutive rows of an index.

    A position counts the rows of all parts, including removed ones. A serial number counts the rows
    that were ever added, and is never reused. Ids, serial numbers and what was removed are on the
    host; a subclass says what is searched, and where that is.
    """

    rows: Vectors
    segment: Any  # what is searched: a dataclass with first, rows and eligible
    serials: Tensor  # (n,) int64, ascending
    names: np.ndarray[Any, Any] | None  # (n,) int64 or str: ids that are not the serials
    live: Tensor  # (n,) bool: not removed

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
        return int((self.live & ~self.segment.eligible.cpu()).sum())

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

    @abstractmethod
    def summing(self, summed: Summing) -> Iterator[Tensor]:
        """Yield all rows, a block at a time on the host, and compute their checksums."""

    @abstractmethod
    def coded(self) -> Mapping[str, Tensor | Blocks]:
        """The tensors of `screening.codes.Segment`, except the rows, by name, for a file."""


def without(segment: Any, row: Tensor) -> Any:
    """The segment with some rows (by number within it) banned."""
    banned = row.to(segment.eligible.device)
    return replace(segment, eligible=segment.eligible.index_fill(0, banned, False))


def eligible(segment: Any, row: Tensor) -> Tensor:
    """Whether rows (by number within the segment) may be returned, on the host."""
    found: Tensor = segment.eligible[row.to(segment.eligible.device)].cpu()
    return found


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


# Codes rows about a centre (d,) into a part, as if none was removed.
Coder = Callable[[Piece, Tensor], Part]


def part_of(piece: Piece, centre: Tensor, coder: Coder) -> Part:
    """Code the rows of a piece."""
    part = coder(piece, centre)
    return part if piece.live is None else part.without((~piece.live).nonzero()[:, 0])


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
    kept = None if names is None else names[live.numpy()]
    return Piece(pieces[0].rows.holding(_left(pieces)), serials[live], kept, None)


def _left(pieces: Sequence[Piece]) -> Tensor:
    """The rows that were not removed, with no other copy of them on the way."""
    live = [_live(piece) for piece in pieces]
    counts = [int(some.sum()) for some in live]
    held = [piece.rows.tensor for piece in pieces]
    rows = held[0].new_empty((sum(counts), held[0].shape[1]))
    for into, some, here in zip(rows.split(counts), held, live, strict=True):
        if len(into) == len(some):
            into.copy_(some)
        else:
            torch.index_select(some, 0, here.nonzero()[:, 0].to(some.device), out=into)
    return rows


def _live(piece: Piece) -> Tensor:
    if piece.live is not None:
        return piece.live
    return torch.ones(len(piece.serials), dtype=torch.bool, device="cpu")
