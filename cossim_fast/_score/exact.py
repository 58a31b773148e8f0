"""The score of a pair: a float64 cosine, summed in a fixed order, so that its bits are fixed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cossim_fast._quiet import quiet

# Computed cosines from here on may be of copies, and are looked at.
_NEARLY_ONE = 1 - 2.0**-48
# Numbers of a chunk of pairs: 1.5 MB in float64. 1 µs a pair of 384 with half or four times as
# many, 0.8 with these.
CHUNK = 3 << 16


class WideRows(NamedTuple):
    """Rows in float64, scaled by powers of two so that no square is out of range."""

    rows: Tensor  # (n, d)
    norms: Tensor  # (n,)

    def unit(self) -> Tensor:
        """Unit rows (n, d); zeros for a zero row."""
        return self.rows / or_one(self.norms)[:, None]


def widen(rows: Tensor) -> WideRows:
    """Rows (n, d) of any floating dtype as they enter a score, with their norms."""
    wide = widened(rows)
    return WideRows(wide, _norms(wide))


def row_norms(rows: Tensor) -> Tensor:
    """Norms (n,) in float64 of rows as they enter a score: those of `widen`, by chunks."""
    norms = rows.new_empty(rows.shape[0], dtype=torch.float64)
    step = max(CHUNK // max(rows.shape[1], 1), 1)
    for start in range(0, rows.shape[0], step):
        some = slice(start, start + step)
        norms[some] = _norms(widened(rows[some]))
    return norms


def score_pairs(
    queries: WideRows,
    corpus: Tensor,
    query_index: Tensor,
    corpus_index: Tensor,
    corpus_norms: Tensor | None = None,
) -> Tensor:
    """The score (p,) of queries[query_index] and corpus[corpus_index], in float64.

    It is <q, x> / (|q| |x|), and 0 where a row is zero; 1 for copies, also scaled by a power of
    two, and -1 for their negatives (`_of_copies`). Products are added up in one order
    (`_row_sums`), so the bits depend on the two rows alone: not on the batch, the threads or the
    processor.

    Args:
        queries: from `widen`.
        corpus: (m, d), in the dtype that is stored.
        query_index: (p,) int64.
        corpus_index: (p,) int64.
        corpus_norms: `row_norms` of the corpus (m,), where they are known.
    """
    pairs, d = query_index.numel(), corpus.shape[1]
    dots = torch.empty(pairs, dtype=torch.float64, device="cpu")
    if corpus_norms is None:
        norms = torch.empty(pairs, dtype=torch.float64, device="cpu")
    else:
        norms = corpus_norms[corpus_index]
    step = max(CHUNK // max(d, 1), 1)
    q = torch.empty((min(step, pairs), d), dtype=torch.float64, device="cpu")
    stored, x = torch.empty_like(q, dtype=corpus.dtype), torch.empty_like(q)
    for start in range(0, pairs, step):
        some = slice(start, start + step)
        size = dots[some].numel()
        torch.index_select(queries.rows, 0, query_index[some], out=q[:size])
        torch.index_select(corpus, 0, corpus_index[some], out=stored[:size])
        gathered = widened(stored[:size], out=x[:size])
        if corpus_norms is None:
            norms[some] = _norms(gathered)
        dots[some] = _row_sums(q[:size].mul_(gathered))
    # A row of zeros gives 0: divide by 1 instead, which keeps a NaN of the other row.
    query_norms = queries.norms[query_index]
    scores = (dots / or_one(query_norms).mul_(or_one(norms))).clamp_(-1.0, 1.0)
    return _of_copies(scores, dots, query_norms, norms)


def _of_copies(scores: Tensor, dots: Tensor, query_norms: Tensor, norms: Tensor) -> Tensor:
    """Scores (p,), with exactly 1 or -1 for rows that are equal up to a power of two.

    With u = 2^-53, and s the sum of squares of a row as it was computed: s / (sqrt(s) sqrt(s)) is
    off by a rounding or two for half of all rows. But copies are told from dot and norms alone.
    For x = 2^k q the products are those of q with itself, scaled without rounding, added up in the
    same order: so |dot| 2^-k = s in every bit, whatever the processor, and its root is |q|.

    Of other rows, those that pass lose nothing. Let the norms have equal significands, so that
    |x| = 2^k |q|, and let sqrt(|dot| 2^-k) round to n = |q|, which is sqrt(|dot| 2^-k) (1 + a). The
    score that was computed is |dot| (1 + b) / (2^k n^2 (1 + c)) = (1 + b) / ((1 + a)^2 (1 + c)),
    each within u: 1 is no farther from it than 4 u, to first order, and from the cosine no farther
    than the bounds of `near_error` and `product_error` allow for. Both tests are symmetric in the
    two rows, and depend on nothing else.

    Args:
        scores: (p,) within [-1, 1]; what changes is written over them.
        dots: (p,) sums of products.
        query_norms: (p,).
        norms: (p,) of the other rows.
    """
    # By numpy: its roots are not shared among threads.
    near = np.flatnonzero(np.abs(scores.numpy()) >= _NEARLY_ONE)
    if len(near):
        q, x, dot = (some.numpy()[near] for some in (query_norms, norms, dots))
        alike = np.frexp(q)[0] == np.frexp(x)[0]
        copies = alike & (np.sqrt(np.abs(dot) * (q / x)) == q)
        scores.numpy()[near[copies]] = np.copysign(1.0, dot[copies])
    return scores


def or_one(norms: Tensor) -> Tensor:
    """Norms to divide by, with 1 in place of 0."""
    return norms.masked_fill(norms == 0, 1.0)


def widened(rows: Tensor, out: Tensor | None = None) -> Tensor:
    """Rows (n, d) of any floating dtype in float64, as they enter a score; ``out`` is scratch."""
    if rows.dtype.itemsize == 2:
        rows = rows.float()  # straight to float64, narrow numbers take twice as long
    wide = rows.double().contiguous() if out is None else out.copy_(rows)
    return in_range(wide, rows.dtype)


def in_range(rows: Tensor, stored: torch.dtype) -> Tensor:
    """Scale rows stored in float64 by a power of two; squares of other dtypes are in range."""
    if stored != torch.float64 or rows.shape[1] == 0:
        return rows
    largest = rows.abs().amax(1, keepdim=True)
    exponent = torch.frexp(largest.masked_fill(~largest.isfinite(), 1.0)).exponent
    half = exponent // 2
    # In two steps, so that neither factor is out of range; ldexp of every number takes four times
    # as long.
    one = torch.ones_like(largest)
    return rows * torch.ldexp(one, -half) * torch.ldexp(one, half - exponent)


def _norms(rows: Tensor) -> Tensor:
    return _roots(_row_sums(rows * rows))


def norms_over(wide: Tensor) -> Tensor:
    """The norms of float64 rows (n, d) as they enter a score; overwrites the rows.

    By numpy only, so it may run on several threads at once.
    """
    numbers = wide.numpy()
    np.multiply(numbers, numbers, out=numbers)
    return _roots(_row_sums(wide))


def _roots(squares: Tensor) -> Tensor:
    """Square roots, in place.

    By numpy: torch uses MKL, which shares even a few roots among threads, and waits for them.
    """
    np.sqrt(squares.numpy(), out=squares.numpy())
    return squares


def _row_sums(products: Tensor) -> Tensor:
    """Sum each row of (p, d) in float64, in an order that depends only on d.

    numpy adds contiguous numbers pairwise, in eight partial sums for each 128, on one thread. A
    tree made of torch's operators took five times as long. torch's sum takes half as long, but its
    order depends on the processor and, for a single long row, on the threads.
    """
    return torch.from_numpy(_added(products.contiguous().numpy()))


@quiet  # rows that are not finite give NaN
def _added(products: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.add.reduce(products, axis=1)
    return found


def round_up(x: Tensor) -> Tensor:
    """Float32 above x, where x was rounded in float64."""
    single = x.float()
    return torch.nextafter(single, torch.full_like(single, torch.inf)) + 2.0**-40
