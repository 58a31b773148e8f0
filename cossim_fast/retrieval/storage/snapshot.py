"""Snapshots: the contents of an index at one moment, and after rows are added or removed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from cossim_fast.retrieval.screening.codes import centre_of
from cossim_fast.retrieval.storage.growing_file import VectorFile
from cossim_fast.retrieval.storage.ids import Ids
from cossim_fast.retrieval.storage.parts import Coder, Part, Piece, merge, part_of, piece_of
from cossim_fast.retrieval.storage.vectors import Vectors


@dataclass(frozen=True)
class Snapshot:
    """Everything in an index that changes, so that one assignment adds or removes rows.

    Immutable: a search continues with the snapshot that it began with.
    """

    parts: tuple[Part, ...]
    centre: Tensor  # (d,) what codes leave out, where these are
    ids: Ids

    def live_count(self) -> int:
        """How many rows were not removed."""
        return sum(part.live_count for part in self.parts)

    def rows(self) -> int:
        """How many rows there are, with those that were removed."""
        return sum(len(part) for part in self.parts)

    def skipped(self) -> int:
        """How many rows hold NaN or an infinity."""
        return sum(part.skipped for part in self.parts)


def snapshot_of(parts: Sequence[Part], centre: Tensor, ids: Ids) -> Snapshot:
    """Number the rows of all parts; parts of which every row is removed are left out."""
    numbered: list[Part] = []
    first = 0
    for part in parts:
        if part.live_count:
            numbered.append(part.starting_at(first))
            first += len(part)
    return Snapshot(tuple(numbered), centre, ids)


def with_rows(
    state: Snapshot,
    new: Vectors,
    names: np.ndarray[Any, Any] | None,
    file: VectorFile | None,
    coder: Coder,
) -> Snapshot:
    """The snapshot after rows were added. Trailing parts that are not much longer are merged.

    Args:
        state: the snapshot before.
        new: at least one row.
        names: (n,) their ids; None if they are counted.
        file: that they were appended to, if there is one.
        coder: of rows.
    """
    serials = state.ids.serials(len(new.tensor))
    parts, last = list(state.parts), [Piece(new, serials, names, None)]
    while (
        parts and _can_merge(parts[-1], last[0], file) and len(parts[-1]) < 2 * sum(map(len, last))
    ):
        last.insert(0, piece_of(parts.pop()))
    piece = merge(last, file)
    # All parts must share a centre, so it is measured again only where every row is coded again.
    centre = state.centre if parts else centre_of(piece.rows.sample())
    part = part_of(piece, centre, coder)
    return snapshot_of([*parts, part], centre, state.ids.with_added(names, serials))


def _can_merge(part: Part, piece: Piece, file: VectorFile | None) -> bool:
    """Whether a part and the piece after it can be merged."""
    if part.rows.owned or piece.rows.owned or file is None:
        return part.rows.owned and piece.rows.owned
    first, second = file.first_of(part.rows), file.first_of(piece.rows)
    return first is not None and second == first + len(part)


def without_rows(
    state: Snapshot, positions: Tensor, names: np.ndarray[Any, Any], coder: Coder
) -> Snapshot:
    """The snapshot after the rows at some positions, with these ids, were removed."""
    parts = []
    for part in state.parts:
        row = positions - part.segment.first
        row = row[(row >= 0) & (row < len(part))]
        parts.append(_thinned(part.without(row), state.centre, coder) if len(row) else part)
    return snapshot_of(parts, state.centre, state.ids.without(names))


def _thinned(part: Part, centre: Tensor, coder: Coder) -> Part:
    """The part; coded again without its removed rows if these are the majority, and in memory."""
    if not part.rows.owned or not 0 < 2 * part.live_count < len(part):
        return part
    return part_of(merge([piece_of(part)], None), centre, coder)
