"""Which key belongs to which query, and what belongs to one by way of the other."""

from __future__ import annotations

import torch
from torch import Tensor


class Positives:
    """Pairs of a query and the key that is its positive, on CPU.

    Args:
        given: int64 (n,), the key of each query, -1 for none; None is the diagonal, n <= m.
        n: how many queries.
        m: how many keys.
    """

    def __init__(self, given: Tensor | None, n: int, m: int) -> None:
        self._given, self._n, self._m = given, n, m
        self.count = n
        if given is not None:
            known = (given >= 0).nonzero().squeeze(1)
            self.count = len(known)
            # By key: the query whose positive it is; of several the last.
            self._queries = torch.full((m,), -1, dtype=torch.int64, device="cpu")
            self._queries[given[known]] = known

    def known(self, rows: slice) -> slice | Tensor:
        """Which of some queries have a positive."""
        if self._given is None:
            return rows
        here = (self._given[rows] >= 0).nonzero().squeeze(1)
        return here.add_(rows.start)

    def keys(self, queries: slice | Tensor) -> slice | Tensor:
        """The positives of queries that have one."""
        return queries if self._given is None else self._given[queries]

    def or_zero(self, by_query: Tensor, rows: slice) -> Tensor:
        """What belongs to some queries, (r,), 0 where one has no positive."""
        if self._given is None:
            return by_query
        return torch.where(self._given[rows] >= 0, by_query, 0.0)

    def to_queries(self, by_key: Tensor, rows: slice) -> Tensor:
        """What belongs to the positives of some queries, (r,); anything where one has none."""
        if self._given is None:
            return by_key[rows]
        if self._m == 0:
            return by_key.new_zeros(self._given[rows].shape)
        return by_key[self._given[rows].clamp_min(0)]

    def to_keys(self, by_query: Tensor, columns: slice, otherwise: float) -> Tensor:
        """What belongs to the queries of some keys, (c,)."""
        if self._given is None:
            found = by_query[columns]
            missing = columns.stop - columns.start - len(found)
            return (
                found if not missing else torch.cat([found, found.new_full((missing,), otherwise)])
            )
        queries = self._queries[columns]
        return torch.where(queries >= 0, by_query[queries.clamp_min(0)], otherwise)

    def put(self, tile: Tensor, rows: slice, columns: slice, values: Tensor | float) -> None:
        """Set the pairs among some rows and columns to a number, or those of the rows, (r,)."""
        if self._given is None:
            own = tile.diagonal(rows.start - columns.start)
            if isinstance(values, Tensor):
                first = max(columns.start - rows.start, 0)
                own.copy_(values[first : first + len(own)])
            else:
                own.fill_(values)
            return
        at = self._given[rows] - columns.start
        here = ((at >= 0) & (at < columns.stop - columns.start)).nonzero().squeeze(1)
        if len(here):
            tile[here, at[here]] = (
                values[here].to(tile.dtype)
                if isinstance(values, Tensor)
                else torch.tensor(values, dtype=tile.dtype, device="cpu")
            )
