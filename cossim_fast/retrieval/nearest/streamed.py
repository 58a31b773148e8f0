"""A search whose corpus stays in the host's memory, and comes to the GPU block by block.

Nothing here depends on the device, so tests run it on CPU tensors.
"""

from __future__ import annotations

from contextlib import closing

import torch
from torch import Tensor

from cossim_fast import _ops
from cossim_fast.retrieval.nearest.gpu import as_best, best_rows, floors_of, merge_ranked
from cossim_fast.retrieval.nearest.transfer import BLOCK_BYTES, Transport, to_device, transport_to
from cossim_fast.retrieval.progress import Progress
from cossim_fast.retrieval.results import Best, Oracle
from cossim_fast.retrieval.storage.corpus import ArrayCorpus, Corpus


def search_stream(
    queries: Tensor,
    source: Corpus,
    k: int,
    *,
    certify: bool,
    screen: str = "auto",
    bar: Progress | None = None,
    by: Transport | None = None,
    size: int = BLOCK_BYTES,
) -> Best:
    """Find the k best rows of a corpus on the host for each query (q, d) on a device.

    Each block is scanned or coded as it comes, by itself, and told the scores that the rows of
    earlier blocks have reached already: of later blocks ever fewer rows are scored.
    """
    by = transport_to(queries.device) if by is None else by
    # The k + 1st row gives the bound on the dropped ones.
    best = _Running(len(queries), k + 1 if certify else k, queries)
    lasting = isinstance(source, ArrayCorpus)
    sent = to_device(source.blocks(), by, rows=source.n, lasting=lasting, size=size)
    with closing(sent) as blocks:
        for block in blocks:
            dtype = torch.promote_types(queries.dtype, block.dtype)  # holds both exactly
            queries = queries.to(dtype)
            best.search(queries, block.to(dtype), screen)
            if bar is not None:
                bar.update(len(block))
    return as_best(
        best.scores, best.rows, best.rescored, k, certify, rows_searched=best.seen,
        skipped=best.skipped,
    )  # fmt: skip


class _Running:
    """The k best rows (q, k) of all blocks so far, best first, ties in the order of the rows."""

    def __init__(self, q: int, k: int, like: Tensor) -> None:
        self.scores = like.new_full((q, k), torch.nan, dtype=torch.float64)
        self.rows = like.new_full((q, k), -1, dtype=torch.int64)
        self.rescored = like.new_zeros((q,), dtype=torch.int64)
        self.seen = self.skipped = 0

    def search(self, queries: Tensor, block: Tensor, screen: str) -> None:
        """Search rows that come after all that were searched before."""
        k = self.scores.shape[1]
        floors = floors_of(self.scores, k)
        found, skipped = best_rows(queries, block, k, screen=screen, floors=floors)
        self.scores, self.rows = merge_ranked(
            self.scores, self.rows, found.scores, found.rows + self.seen, k
        )
        self.rescored += found.rescored
        self.seen, self.skipped = self.seen + len(block), self.skipped + skipped


def stream_oracle(queries: Tensor, rows: Tensor) -> Oracle:
    """The scores of all pairs of queries on a device and rows on the host, as they are now."""
    dtype = torch.promote_types(queries.dtype, rows.dtype)
    asked = queries.to(dtype)

    def scores(query: Tensor, position: Tensor) -> Tensor:
        some = rows[position].to(asked.device, dtype)
        place = torch.arange(len(position), device="cpu")
        pairs = torch.cartesian_prod(query, place).view(-1, 2).to(asked.device)
        index = pairs[:, 0].contiguous(), pairs[:, 1].contiguous()
        found: Tensor = _ops.rescore(asked, some, *index)
        return found.view(len(query), len(position)).cpu()

    return scores
