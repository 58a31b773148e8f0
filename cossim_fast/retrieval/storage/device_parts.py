"""Parts of an index that are searched on a device: rows and codes lie in its memory.

Nothing here depends on which device it is, so tests run it on CPU tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cossim_fast import _checks, _ops
from cossim_fast._lazily import lazily
from cossim_fast._score.exact import row_norms
from cossim_fast.retrieval.memory_map import release_pages, shared_map
from cossim_fast.retrieval.storage.block_sums import Summing
from cossim_fast.retrieval.storage.corpus import block_rows
from cossim_fast.retrieval.storage.parts import Part, Piece
from cossim_fast.retrieval.storage.tensor_file import Blocks, pieces
from cossim_fast.retrieval.storage.vectors import Vectors


@dataclass
class DeviceSegment:
    """Consecutive rows on a device, with what `_ops.code_rows` makes of them."""

    first: int  # the position of its first row
    rows: Tensor  # (n, d), as stored
    codes: Tensor  # (64 blocks, d') int8
    terms: Tensor  # (3, blocks) float32: scale, residual and radius
    eligible: Tensor  # (n,) bool: finite and not removed

    def __len__(self) -> int:
        return self.rows.shape[0]

    @lazily
    def mask(self) -> Tensor | None:
        """Which rows may be returned; None if all may."""
        return None if bool(self.eligible.all()) else self.eligible

    def touch(self, rows: slice | Tensor) -> None:
        """Nothing: checksums were verified as the rows were read."""


class DeviceVectors(Vectors):
    """Full vectors (n, d) in the memory of a device."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__(tensor, owned=True)

    def blocks(self) -> Iterator[Tensor]:
        """Yield all rows on the host, a block at a time."""
        for block in self.tensor.split(block_rows(self.tensor.shape[1])):
            yield block.cpu()

    def sample(self, count: int = 1024) -> Tensor:
        """Evenly spaced rows, on the device: at least so many if there are."""
        return self.tensor[:: max(len(self.tensor) // count, 1)]

    def holding(self, tensor: Tensor) -> DeviceVectors:
        """Other rows on the device."""
        return DeviceVectors(tensor)

    def __reduce__(self) -> tuple[Callable[..., Vectors], tuple[Any, ...]]:
        return _on_device, (self.tensor.cpu(), str(self.tensor.device))


def _on_device(rows: Tensor, device: str) -> DeviceVectors:
    return DeviceVectors(rows.to(device))


@dataclass
class DevicePart(Part):
    """Consecutive rows of an index that is searched on a device."""

    segment: DeviceSegment

    def __post_init__(self) -> None:
        # Waits for the device: threads that search may use other streams than the one that coded.
        _ = self.segment.mask

    def summing(self, summed: Summing) -> Iterator[Tensor]:
        """Yield all rows, copied to the host."""
        for block in self.rows.blocks():
            for piece in pieces(block):
                summed.add(piece)
            yield block

    def coded(self) -> Mapping[str, Tensor | Blocks]:
        """What a search on CPU needs: its bounds hold for these codes, too."""
        segment, (n, d) = self.segment, self.rows.tensor.shape
        scale, residual, radius = segment.terms.cpu()
        codes = segment.codes[:, :d]
        step = block_rows(d)
        return {
            "norms": Blocks((n,), torch.float64, (row_norms(rows) for rows in self.rows.blocks())),
            "eligible": segment.eligible.cpu(),
            "radius": radius,
            "codes": Blocks(
                tuple(codes.shape), torch.int8, (some.cpu() for some in codes.split(step))
            ),
            # A block of codes 0 has the scale 0 here, and may have any.
            "scale": scale.masked_fill(scale == 0, 1.0),
            "residual": residual,
        }

    def __getstate__(self) -> dict[str, Any]:
        segment = self.segment
        codes = [held.cpu() for held in (segment.codes, segment.terms, segment.eligible)]
        return {**self.__dict__, "segment": (segment.first, codes)}

    def __setstate__(self, held: dict[str, Any]) -> None:
        first, codes = held["segment"]
        self.__dict__.update(held)
        rows = self.rows.tensor
        self.segment = DeviceSegment(first, rows, *(value.to(rows.device) for value in codes))
        self.__post_init__()


def device_vectors(given: Any, dtype: torch.dtype, device: torch.device) -> DeviceVectors:
    """Copy rows, wherever they are, to a device, a block at a time.

    Raises:
        ValueError: at a number that the dtype cannot hold.
    """
    rows = _checks.embedding_rows("embeddings", given, None)
    held = torch.empty(tuple(rows.shape), dtype=dtype, device=device)
    mapping, step = shared_map(given), block_rows(rows.shape[1])
    for first in range(0, len(rows), step):
        block = rows[first : first + step]
        narrowed = block.to(dtype)
        if narrowed.dtype != block.dtype:
            _checks.still_finite(block, narrowed, first)
        held[first : first + len(block)] = narrowed
        if mapping is not None:
            release_pages(mapping, block)
    return DeviceVectors(held)


def device_part(piece: Piece, centre: Tensor) -> DevicePart:
    """Code rows into a part on the centre's device; rows that are not there are copied."""
    rows = piece.rows
    if not isinstance(rows, DeviceVectors):
        rows = _moved(rows, centre.device)
    live = torch.ones(len(piece), dtype=torch.bool, device="cpu")
    return DevicePart(rows, code(rows.tensor, centre), piece.serials, piece.names, live)


def _moved(rows: Vectors, device: torch.device) -> DeviceVectors:
    """Rows of a file, on a device; their checksums are verified as they are read."""
    held = torch.empty(tuple(rows.tensor.shape), dtype=rows.tensor.dtype, device=device)
    first = 0
    for block in rows.blocks():
        held[first : first + len(block)] = block
        first += len(block)
    return DeviceVectors(held)


def code(rows: Tensor, centre: Tensor) -> DeviceSegment:
    """Code rows (n, d) where they are."""
    return DeviceSegment(0, rows, *_ops.code_rows(rows, centre))
