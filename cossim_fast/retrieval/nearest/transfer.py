"""Blocks of rows from the host's memory to a device, one copied while another is searched.

Two pinned buffers on the host (none for rows that are pinned themselves), two on the device, and a
stream of its own for the copies:

    host     fill 0, fill 1, search 0, fill 0, search 1, ...
    side     ......  copy 0, copy 1 ......., copy 0 ...
    compute  .............., search 0 ....., search 1 ...

What keeps them apart are events, since the host runs ahead of both streams. `Streams` is all that
is asked of torch.cuda; `Transport` copies at once, for tensors on CPU.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Any

import torch
from torch import Tensor

# [bytes] Of a block: 175 000 rows of 384 float32 numbers, 5 ms of a bus of 55 GB/s, beside which
# the tens of launches of a search, and its waits, are little. Two on the host, two on the device.
BLOCK_BYTES = 1 << 28


class Nothing:
    """Stream and event where nothing runs behind the host's back; as torch.cuda's elsewhere."""

    def wait_event(self, event: Any) -> None:
        """Of a stream: do what follows only when the event was reached, as it was recorded last."""

    def record(self, stream: Any) -> None:
        """Of an event: be reached when all is done that the stream was given so far."""

    def synchronize(self) -> None:
        """Of an event: let the host wait for it; one that was never recorded is reached."""


class Transport:
    """Copies within the host's memory, which are made at once."""

    compute: Any = Nothing()  # the stream that searches
    side: Any = Nothing()  # the stream that copies

    def reads(self, rows: Tensor) -> bool:
        """Whether the device can read rows by itself where they are."""
        return False

    def pinned(self, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """Memory of the host that the device can read by itself."""
        return torch.empty(shape, dtype=dtype, device="cpu")

    def on_device(self, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """Memory of the device."""
        return torch.empty(shape, dtype=dtype, device="cpu")

    def event(self) -> Any:
        """An event that was not recorded yet."""
        return Nothing()

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Copy to the device in the side stream; the host does not wait."""
        target.copy_(source)


class Streams(Transport):
    """Copies to a CUDA device, in a stream beside the current one."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.compute = torch.cuda.current_stream(device)
        self.side = torch.cuda.Stream(device)

    def reads(self, rows: Tensor) -> bool:
        """Whether rows are in page-locked memory."""
        return rows.is_pinned() and rows.is_contiguous()

    def pinned(self, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """Page-locked memory, from torch's cache of it."""
        return torch.empty(shape, dtype=dtype, device="cpu", pin_memory=True)

    def on_device(self, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """Memory of the compute stream."""
        return torch.empty(shape, dtype=dtype, device=self._device)

    def event(self) -> Any:
        """An event that takes no time."""
        return torch.cuda.Event()

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Copy from pinned memory."""
        with torch.cuda.stream(self.side):
            target.copy_(source, non_blocking=True)


def transport_to(device: torch.device) -> Transport:
    """How blocks get to a device."""
    return Streams(device) if device.type == "cuda" else Transport()


class _Slot:
    """A buffer of the device, the pinned one that is copied to it, and how far both are.

    ``direct`` leaves the pinned one out: the rows are copied from where they are.
    """

    def __init__(
        self, by: Transport, shape: tuple[int, int], dtype: torch.dtype, direct: bool
    ) -> None:
        self._by = by
        self.host = None if direct else by.pinned(shape, dtype)
        self.device = by.on_device(shape, dtype)
        self.copied, self.searched = by.event(), by.event()
        # The device's memory may have belonged to work that the compute stream has yet to do.
        self.searched.record(by.compute)
        self.rows = 0  # that were filled in

    def begin(self) -> None:
        """Start anew."""
        # Not before the copy out of the pinned buffer has ended: it reads what is written now.
        self.copied.synchronize()
        # No copy before the search has ended that reads the rows that were there.
        self._by.side.wait_event(self.searched)
        self.rows = 0

    def fill(self, rows: Tensor) -> int:
        """Take as many rows as there is room for, and return how many."""
        taken = min(len(rows), len(self.device) - self.rows)
        place = slice(self.rows, self.rows + taken)
        if self.host is None:
            self._by.copy(self.device[place], rows[:taken])
        else:
            self.host[place].copy_(rows[:taken])
        self.rows += taken
        return taken

    def send(self) -> None:
        """Copy what was taken to the device."""
        if self.host is not None:
            self._by.copy(self.device[: self.rows], self.host[: self.rows])
        self.copied.record(self._by.side)


def to_device(
    blocks: Iterable[Tensor],
    by: Transport,
    *,
    rows: int | None = None,
    lasting: bool = False,
    size: int = BLOCK_BYTES,
) -> Generator[Tensor, None, None]:
    """Yield the rows of blocks (n_i, d), in order, as blocks on the device of ``size`` bytes.

    Each is valid until the next is asked for. ``rows`` is how many there are in all, if known: no
    buffer is longer. ``lasting`` says that blocks stay as they are until the end: those that are
    pinned are then copied from where they are.
    """
    slots: list[_Slot] = []
    sent: list[_Slot] = []  # at most one, whose copy was begun and whose search was not
    filling: _Slot | None = None
    number = 0
    try:
        for block in blocks:
            at = 0
            while at < len(block):
                if filling is None:
                    if number < 2:
                        shape, direct = _shape(block, rows, size), lasting and by.reads(block)
                        slots.append(_Slot(by, shape, block.dtype, direct))
                    filling, number = slots[number % 2], number + 1
                    filling.begin()
                at += filling.fill(block[at:])
                if filling.rows == len(filling.device):
                    filling.send()
                    yield from _lent(sent, by)
                    sent.append(filling)
                    filling = None
            del block  # so that an iterator's block is freed before it makes the next
        if filling is not None:
            filling.send()
            yield from _lent(sent, by)
            sent.append(filling)
        yield from _lent(sent, by)
    finally:
        # Whoever gets this memory next does not wait for the side stream.
        end = by.event()
        end.record(by.side)
        end.synchronize()


def _shape(block: Tensor, rows: int | None, size: int) -> tuple[int, int]:
    d = block.shape[1]
    most = max(size // (d * block.element_size()), 1)
    return (most if rows is None else min(most, rows)), d


def _lent(sent: list[_Slot], by: Transport) -> Generator[Tensor, None, None]:
    """Yield the rows of the slot that was sent last, if any, to be searched."""
    while sent:
        slot = sent.pop()
        by.compute.wait_event(slot.copied)
        yield slot.device[: slot.rows]
        slot.searched.record(by.compute)
