"""Rows as the screens see them: centred unit rows, their int8 codes, and bounds on their error.

With x̄ = x / |x| (0 for a zero row) and a fixed centre m, a row stands for y = x̄ - m, since

    cos(q, x) = <q̄, x̄> = <q̄, y> + <q̄, m>

and the last term is one number a query. The more the rows share a direction, the shorter is y, and
the smaller the error of its code: in a tight cone, a tenth of it.

An orthogonal rotation before coding was tried and rejected: it costs d products a number, and
shortens the residuals of sentence embeddings (all-MiniLM, 384) by 3 %, those of Gaussian rows not
at all. It would help rows in which a few coordinates are 50 times as large as the others, by a
factor of 5; these are searched with a wider screen.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cossim_fast._lazily import lazily
from cossim_fast._quiet import quiet
from cossim_fast._score.exact import norms_over, row_norms, widened
from cossim_fast._threads import run_shared, single_threaded, usable_threads
from cossim_fast._vecdot import vecdot
from cossim_fast.retrieval import tuning

if TYPE_CHECKING:
    from cossim_fast.retrieval.screening.segment_projection import SegmentProjection

# Rows that share a scale, a residual bound and a radius.
BLOCK = 64
# From this many elements on, torch's elementwise operations start threads.
_GRAIN = 1 << 15
_UNIT = 2.0**-24  # unit roundoff of float32
# |ŷ - y| for ŷ = fl(fl(x * fl(1 / |x|)) - m): one rounding of 1 / |x| and one of the product, on
# entries of a unit row; one of the difference, whose norm is at most 2; and one more for
# second-order terms. A row of float64, or out of the range of float32, is divided in float64 and
# rounded once, which loses less.
UNIT_ROW_ERROR = 5 * _UNIT
# Least and largest norm that is a normal float32, as is its inverse.
_USUAL = 2.0**-60, 2.0**100
# A block with no larger entry is coded as zeros: the inverse of its scale might be infinite.
_TINY = 2.0**-100
# [rows] Sample from which the usual scale of a segment is found.
_SAMPLE = 1024
# [ratio] The usual scale, relative to the median of the scales that the sample's blocks need. Of
# sentence embeddings and of Gaussian rows, the largest is 1.3 to 1.5 times the median. A tile whose
# blocks share a scale takes a filtered product (`filtered_product`), which is worth more than a
# bound that is a tenth narrower.
USUAL = 1.4


class Checked(Protocol):
    """Checksums of rows in a file, which are verified as rows are read."""

    def check(self, rows: slice | Tensor) -> None:
        """Verify the checksums of some rows, where that was not done before.

        Raises:
            FileError: one does not match.
        """


@dataclass
class Segment:
    """Consecutive rows of a corpus, ready to be screened.

    For every row of block B, |x̄ - m - scale_B z| <= residual_B and |x̄ - m| <= radius_B.
    """

    first: int  # the position of its first row
    rows: Tensor  # (n, d), as stored
    norms: Tensor  # (n,) float64, as they enter a score
    eligible: Tensor  # (n,) bool: finite and not removed
    radius: Tensor  # (blocks,) float32
    codes: Tensor | None = None  # (64 blocks, d) int8, 0 where there is no row
    scale: Tensor | None = None  # (blocks,) float32
    residual: Tensor | None = None  # (blocks,) float32
    mapping: np.memmap[Any, Any] | None = None  # the memory mapping that holds the rows
    sums: Checked | None = None  # checksums to verify as rows are read
    projection: SegmentProjection | None = None  # of an index: for searches of few queries

    def __len__(self) -> int:
        return self.rows.shape[0]

    def touch(self, rows: slice | Tensor) -> None:
        """Verify the checksums of rows that are about to be read, if they have some.

        Args:
            rows: a slice, or numbers.

        Raises:
            FileError: a checksum does not match.
        """
        if self.sums is not None:
            self.sums.check(rows)

    @lazily
    def skipped(self) -> int:
        """How many rows hold NaN or an infinity."""
        return int((~self.norms.isfinite()).sum())

    def mask_banned(self, rows: slice, values: Tensor, nothing: float) -> None:
        """Overwrite the values (whole blocks, q) of banned rows and of the padding.

        Args:
            rows: of the values, from the first row of a block on.
            values: of any dtype.
            nothing: what to write.
        """
        count = min(rows.stop, len(self)) - rows.start
        if count < len(values):
            values[count:] = nothing
        # numpy's `all` takes a tenth of the time of torch's.
        if not self.eligible.numpy()[rows].all():
            values[:count][~self.eligible[rows]] = nothing


def centre_of(rows: Tensor, sample: int = 1024) -> Tensor:
    """The mean unit row (d,), in float32, of a sample spread over the rows; any centre is valid."""
    return single_threaded(_mean_unit, rows[:: max(rows.shape[0] // sample, 1)])


def _mean_unit(rows: Tensor) -> Tensor:
    unit = _sample_units(rows)
    return unit.mean(0) if unit.shape[0] else unit.new_zeros(rows.shape[1])


def _sample_units(rows: Tensor) -> Tensor:
    """Approximate unit rows in float32 of the rows that are finite and not zero."""
    some = rows.float().contiguous()  # so that strides do not change the bits
    unit: Tensor = some / torch.linalg.vector_norm(some, dim=1, keepdim=True)
    return unit[unit.isfinite().all(1)]


def unit_rows(rows: Tensor, norms: Tensor, centre: Tensor) -> Tensor:
    """Centred unit rows (n, d) in float32, within UNIT_ROW_ERROR; 0 for rows that are not finite.

    Args:
        rows: (n, d), any floating dtype.
        norms: (n,) their norms in float64.
        centre: (d,) float32.
    """
    inverse = norms.reciprocal()
    inverse.masked_fill_(~inverse.isfinite(), 0.0)  # zero rows; those of infinite norm give 0 too
    if rows.dtype == torch.float64 or extreme(norms):
        wide = widened(rows)
        unit = (wide * inverse[:, None]).float()
    else:
        unit = rows.float() * inverse.float()[:, None]
    if not bool(norms.isfinite().all()):
        unit[~norms.isfinite()] = centre  # 0 * inf is NaN
    centred: Tensor = unit.sub_(centre)
    return centred


def extreme(norms: Tensor) -> bool:
    """Whether a norm or its inverse leaves the normal numbers of float32."""
    if norms.numel() == 0:
        return False
    kept = norms.masked_fill((norms == 0) | ~norms.isfinite(), 1.0)
    return bool(kept.amin() < _USUAL[0]) or bool(kept.amax() > _USUAL[1])


def encode(
    rows: Tensor,
    centre: Tensor,
    *,
    first: int = 0,
    codes: bool = True,
    into: Tensor | None = None,
) -> Segment:
    """Measure rows (n, d) for the screens, and code them in int8 if ``codes``.

    With ``into`` (n, d), the rows are copied there as well, while they are in cache.

    The 64 rows of a block share one scale: the segment's usual scale, or where that does not suit,
    the block's largest entry over 127. Norms are those of the score. Residuals and radii are
    computed in float32 and enlarged by its rounding error.
    """
    # float64 is coded by torch's threads, every other dtype by ours.
    threads = usable_threads() if rows.is_cpu and rows.dtype != torch.float64 else 0
    body = partial(_encode, rows, centre, first, codes, into, threads)
    return single_threaded(body) if threads else body()


def _encode(
    rows: Tensor, centre: Tensor, first: int, codes: bool, into: Tensor | None, threads: int
) -> Segment:
    """The body of `encode`, on so many threads of ours, or on torch's if that is 0."""
    n, d = rows.shape
    blocks = -(-n // BLOCK)
    sample = rows[:: max(n // _SAMPLE, 1)]
    usual = usual_scale(_sample_units(sample) - centre) if codes and rows.is_cpu else 0.0
    segment = Segment(
        first,
        rows if into is None else into,
        norms=rows.new_empty(n, dtype=torch.float64),
        eligible=rows.new_ones(n, dtype=torch.bool),
        radius=rows.new_empty(blocks, dtype=torch.float32),
    )
    if codes:
        shape = blocks * BLOCK, d
        segment.codes = (
            large(shape, torch.int8) if rows.is_cpu else rows.new_empty(shape, dtype=torch.int8)
        )
        segment.scale = torch.empty_like(segment.radius)
        segment.residual = torch.empty_like(segment.radius)
    step = max(tuning.CODED_NUMBERS // max(d, 1) // BLOCK, 1) * BLOCK
    if threads:
        _share(segment, rows, centre, step, usual, threads)
    else:
        if into is not None:
            into.copy_(rows)
        for start in range(0, n, step):
            _encode_chunk(segment, centre, slice(start, start + step), usual)
    segment.eligible &= segment.norms.isfinite()
    enlarge(segment.radius, segment.residual, d)
    return segment


def large(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """New memory from numpy, which asks the system for large pages from 4 MB on.

    With small pages, allocating (200000, 384) float32 took 110 ms; with large ones, allocating and
    copying take 37.
    """
    memory = torch.from_numpy(np.empty(math.prod(shape) * dtype.itemsize, np.uint8))
    return memory.view(dtype).view(shape)


def enlarge(radius: Tensor, residual: Tensor | None, d: int) -> None:
    """Enlarge radii and residuals (blocks,) of rows (n, d) by the rounding error of float32."""
    grown = 1 + (d + 8) * _UNIT  # of a norm summed in float32
    radius.mul_(grown).add_(UNIT_ROW_ERROR)
    if residual is not None:
        # Scaling y to codes, or codes to y, adds two roundings of at most radius + residual.
        residual.mul_(grown).add_(UNIT_ROW_ERROR).add_(radius + residual, alpha=2 * _UNIT)


def usual_scale(y: Tensor) -> float:
    """A scale that suits nearly all blocks of rows like a sample (n, d); 0 for an empty sample."""
    if not y.numel():
        return 0.0
    largest = torch.stack([some.abs().amax() for some in y.split(BLOCK)])
    return float(largest.median()) * USUAL / 127.0


def _suited(largest: NDArray[np.float32], usual: float) -> NDArray[np.float32]:
    """Scales of blocks with these largest entries: the usual one where it suits."""
    # Much smaller entries would be coded too coarsely.
    suits = (largest <= 127 * usual) & ((largest >= 127 / 2 * usual) | (largest < _TINY))
    own = np.where(largest < _TINY, np.float32(1.0), largest / np.float32(127.0))
    return np.where(suits & (usual > _TINY), np.float32(usual), own)


def _share(
    segment: Segment, given: Tensor, centre: Tensor, step: int, usual: float, most: int
) -> None:
    """Code the chunks of a segment on CPU on several threads."""
    starts = range(0, len(segment), step)
    room = tuning.CODING_SCRATCH // max(step * segment.rows.shape[1], 1)
    # Starting a thread takes as long as a quarter of a chunk.
    threads = min(most, room, len(starts) // 2)
    left = iter(starts)

    def work() -> None:
        try:
            _Coder(segment, given, centre, step, usual, shared=threads > 1).through(left)
        except BaseException:
            deque(left, maxlen=0)  # leaves nothing to the other threads, which then stop
            raise

    run_shared(max(threads, 1), work)


class _Coder:
    """The body of `encode` for one thread on CPU: a chunk of whole blocks at a time.

    By numpy, whose operations release the interpreter's lock and start no threads, where torch's
    would be shared among threads of its own. The scratch stays in cache, and as few bytes as
    possible are moved: 2.2 ns a number of float32 on a core, of which 0.8 are the norms in float64
    (torch's operations took 3.6).

    Args:
        segment: its rows in float32 or narrower; what is measured is written to it.
        given: what its rows are copied from; the rows themselves if they are not copied.
        centre: (d,) float32.
        step: rows of a chunk.
        usual: the scale of most blocks.
        shared: whether other threads work on the segment too.
    """

    def __init__(
        self,
        segment: Segment,
        given: Tensor,
        centre: Tensor,
        step: int,
        usual: float,
        *,
        shared: bool = False,
    ) -> None:
        rows, self._usual = segment.rows, usual
        # As integers of the same size, since numpy has no bfloat16.
        bits = torch.int32 if rows.dtype.itemsize == 4 else torch.int16
        self._copied = (
            None if given is rows else (rows.view(bits).numpy(), given.view(bits).numpy())
        )
        self._rows, self._step, self._centre = rows, step, centre
        # Made once: a view of a tensor takes as long as an operation on 10 000 numbers.
        self._centre_array, self._norms = centre.numpy(), segment.norms.numpy()
        self._radius = segment.radius.numpy()
        self._codes: NDArray[np.int8] | None = None
        if segment.codes is not None and segment.scale is not None and segment.residual is not None:
            self._codes, self._scale = segment.codes.numpy(), segment.scale.numpy()
            self._residual = segment.residual.numpy()
        size = (min(step, len(self._radius) * BLOCK), rows.shape[1])
        memory = np.empty(size)  # used as one buffer in float64, then as two in float32
        self._wide = torch.from_numpy(memory)
        self._scaled, self._rounded = memory.reshape(-1).view(np.float32).reshape(2, *size)
        self._y = np.empty(size, np.float32)
        as_it_is = rows.dtype == torch.float32 and rows.is_contiguous()
        self._x = rows.numpy() if as_it_is else None
        self._floats = torch.empty(
            (0 if as_it_is else size[0], size[1]), dtype=torch.float32, device="cpu"
        )
        self._piece = max((_GRAIN - 1) // max(size[1], 1), 1) if shared else step

    @quiet  # rows that are not finite
    def through(self, starts: Iterable[int]) -> None:
        """Measure the chunks that start there."""
        for start in starts:
            y = self._unit_rows(slice(start, start + self._step))
            at = slice(start // BLOCK, (start + len(y)) // BLOCK)
            self._radius[at] = _longest_of(y)
            if self._codes is not None:
                self._codes[start : start + len(y)] = self._code(y, at)

    def _unit_rows(self, some: slice) -> NDArray[np.float32]:
        """Measure norms; return `unit_rows` of the chunk, padded with zeros to whole blocks."""
        if self._copied is not None:
            kept, given = self._copied
            np.copyto(kept[some], given[some])
        norms = self._norms[some]
        x, count = self._as_floats(some), len(norms)
        y = self._y[: -(-count // BLOCK) * BLOCK]
        y[count:] = 0.0
        unit, wide = y[:count], self._wide[:count]
        np.copyto(wide.numpy(), x)
        norms[:] = norms_over(wide).numpy()
        inverse = np.reciprocal(norms)
        usual = norms.min() >= _USUAL[0] and norms.max() <= _USUAL[1]
        if not usual:
            measured = torch.from_numpy(norms)
            if extreme(measured):
                unit[:] = unit_rows(self._rows[some], measured, self._centre).numpy()
                return y
            inverse[~np.isfinite(inverse)] = 0.0  # as in `unit_rows`
        np.multiply(x, inverse.astype(np.float32)[:, None], out=unit)
        np.subtract(unit, self._centre_array, out=unit)
        if not usual:
            unit[~np.isfinite(norms)] = 0.0
        return y

    def _as_floats(self, some: slice) -> NDArray[np.float32]:
        """Contiguous rows in float32."""
        if self._x is not None:
            return self._x[some]
        rows = self._rows[some]
        # By torch, which converts float16 in a fifteenth of the time of numpy; in pieces that are
        # too short for it to start threads.
        floats = self._floats[: len(rows)]
        for piece, given in zip(floats.split(self._piece), rows.split(self._piece), strict=True):
            piece.copy_(given)
        return floats.numpy()

    def _code(self, y: NDArray[np.float32], at: slice) -> NDArray[np.float32]:
        """Measure the scales and largest residuals of whole blocks; return the codes."""
        scaled, rounded = self._scaled[: len(y)], self._rounded[: len(y)]
        shape = at.stop - at.start, BLOCK * y.shape[1]
        blocks = y.reshape(shape)
        # Reading twice takes less time than a copy of magnitudes and a read (0.23 ns a number
        # against 0.3).
        largest = np.maximum(blocks.max(1, initial=0.0), -blocks.min(1, initial=0.0))
        scale = _suited(largest, self._usual)
        np.multiply(blocks, np.reciprocal(scale)[:, None], out=scaled.reshape(shape))
        np.rint(scaled, out=rounded)
        # The difference is exact; only its norm is multiplied by the scale.
        np.subtract(scaled, rounded, out=scaled)
        self._scale[at] = scale
        self._residual[at] = _longest_of(scaled) * scale
        return rounded


def _longest_of(y: NDArray[np.float32]) -> NDArray[np.float32]:
    """The largest norm of each block."""
    squares = vecdot(y, y).reshape(-1, BLOCK).max(1)
    longest: NDArray[np.float32] = np.sqrt(squares)
    return longest


def _encode_chunk(segment: Segment, centre: Tensor, some: slice, usual: float) -> None:
    """The body of `encode` with torch's operations: for other devices, and for float64."""
    rows = segment.rows[some].contiguous()
    segment.norms[some] = norms = _norms(rows)
    y = unit_rows(rows, norms, centre)
    y = torch.nn.functional.pad(y, (0, 0, 0, -len(y) % BLOCK))
    at = slice(some.start // BLOCK, (some.start + len(y)) // BLOCK)
    segment.radius[at] = _longest(y)
    if segment.codes is not None and segment.scale is not None and segment.residual is not None:
        place = segment.codes[some.start : some.start + len(y)]
        segment.scale[at], segment.residual[at] = code(y, place, usual)


def _norms(rows: Tensor) -> Tensor:
    """Norms in float64: on CPU those of a score; another device sums them in another order."""
    if rows.is_cpu:
        return row_norms(rows)
    norms: Tensor = torch.linalg.vector_norm(widened(rows), dim=1)
    return norms


def _longest(y: Tensor) -> Tensor:
    """The largest norm of each block."""
    norms: Tensor = torch.linalg.vector_norm(y, dim=1)
    return norms.view(-1, BLOCK).amax(1)


def code(y: Tensor, out: Tensor, usual: float = 0.0) -> tuple[Tensor, Tensor]:
    """Write the codes of whole blocks of rows; return scales and largest residuals."""
    # abs().amax() makes a copy, but takes an eighth of the time of aminmax or an infinity norm.
    largest = y.view(-1, BLOCK * y.shape[1]).abs().amax(1)
    scale = torch.from_numpy(_suited(largest.cpu().numpy(), usual)).to(y.device)
    by_row = scale.repeat_interleave(BLOCK)[:, None]
    z = (y * by_row.reciprocal()).round_()
    out.copy_(z)
    return scale, _longest(z.mul_(by_row).sub_(y))
