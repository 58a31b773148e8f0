"""`topk` of files: groups of queries against runs of rows, then what each group has found, merged.

A block finds the k best rows of a run for each query of a group, and writes what it has found, with
float64 scores. The k-th best score of a query is a floor: rows that score less are of no use to
blocks that begin later. When all blocks of a group are done, its parts are merged into a file of
the result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cossim_fast import _checks
from cossim_fast._extras import require
from cossim_fast.distributed import neighbours, outputs
from cossim_fast.distributed.driver import SCRATCH, Stage, Summary
from cossim_fast.distributed.grid import TASK, Block, Range, at_boundaries, even, seen_by
from cossim_fast.distributed.rows import row_bytes
from cossim_fast.distributed.shards import ShardSet
from cossim_fast.distributed.unfit import Watched
from cossim_fast.retrieval.blocks import Nearest

# [queries] Most of a group. Each group reads the whole corpus once.
_GROUP = 1 << 16
# [operations] Of a block at most: 250 s at 400 G a second. In less time, queries that are read
# again and searches that begin anew would count.
_BLOCK = 1e14
# [queries] What it costs to read and to code a row, in queries that it could be compared with.
_CODING = 1 << 10
# [bytes] A line of a block while it is merged, twice with those that it is merged with.
_LINE = 2 * 16
# [bytes] A line that a block writes: query, row, score; and one that is merged, with its rank.
_FOUND, _MERGED = 4 + 8 + 8, 8 + 4 + 8 + 4


class Search:
    """The blocks of a search, and what they know of each other.

    Args:
        output: the folder of the result.
        queries: all of them.
        corpus: all rows.
        k: how many rows for each query.
        screen: as for `cossim_fast.topk`.
        threads: of a worker.
        queries_per_task: most of a group.
        rows_per_task: most of a run.
    """

    operation = "topk"

    def __init__(
        self,
        output: str,
        queries: ShardSet,
        corpus: ShardSet,
        k: Any,
        *,
        screen: str = "auto",
        threads: int = 1,
        queries_per_task: int | None = None,
        rows_per_task: int | None = None,
    ) -> None:
        _checks.same_width(queries.width, corpus.width)
        _checks.screen_name(screen)
        self.k = _checks.number_of_neighbours(k, corpus.rows)
        if queries_per_task is not None and queries_per_task > _GROUP:
            raise ValueError(f"expected queries_per_task <= {_GROUP}, got {queries_per_task}")
        self.queries, self.corpus = queries, corpus
        self._output, self._screen, self._threads = output, screen, threads
        self.groups = even(queries.rows, queries_per_task or _GROUP)
        self.runs = at_boundaries(
            corpus.boundaries(), rows_per_task or self._rows_of_a_run(corpus.width)
        )
        # By group: k-th best scores that were found, and among how many rows.
        self._floors: dict[int, NDArray[np.float64]] = {}
        self._seen: dict[int, int] = {}
        # Of the result, and rows that hold NaN or an infinity by file.
        self.lines = 0
        self.unfit: Counter[str] = Counter()

    def _rows_of_a_run(self, width: int) -> int:
        together = max((stop - start for start, stop in self.groups), default=0) + _CODING
        return max(int(_BLOCK / (2 * width * together)), 1)

    def parameters(self) -> dict[str, Any]:
        """On what the result depends, beside the inputs."""
        return {"k": self.k}

    def inputs(self) -> dict[str, ShardSet]:
        """What is read."""
        return {"queries": self.queries, "corpus": self.corpus}

    def grid(self) -> list[dict[str, Any]]:
        """Every file that is written."""
        searched = [
            {"name": _name(group, run), "queries": asked, "rows": rows}
            for group, asked in enumerate(self.groups)
            for run, rows in enumerate(self.runs)
        ]
        merged = [
            {"name": _part(group), "queries": asked} for group, asked in enumerate(self.groups)
        ]
        return searched + merged

    def stages(self) -> list[Stage]:
        """Search, then merge."""
        groups, runs = len(self.groups), len(self.runs)

        def serves(block: Block) -> list[str]:
            return [_part(block.key[0])]

        return [
            Stage("search", self._searching, groups * runs, self._searched, serves, learns=False),
            Stage("merge", self._merging, groups, self._merged, serves),
        ]

    def _searching(self) -> Iterator[Block]:
        """The blocks of the first run for each group, then of the second.

        Each takes the floors that are known as it is asked for.
        """
        groups = [seen_by(self.queries, asked) for asked in self.groups]
        for run, rows in enumerate(self.runs):
            corpus = seen_by(self.corpus, rows)
            for group, asked in enumerate(self.groups):
                name = _name(group, run)
                count = asked[1] - asked[0]
                yield Block(
                    name,
                    search_block,
                    (
                        self._output, name, groups[group], asked, corpus, rows, self.k,
                        self._floors.get(group), self._seen.get(group, 0), self._screen,
                        group == 0,
                    ),
                    memory=TASK
                    + neighbours.memory_of(
                        count,
                        self.k,
                        row_bytes(self.queries),
                        self.corpus.width,
                        row_bytes(self.corpus),
                        self._threads,
                    ),
                    reads=groups[group].bytes_between(*asked) + corpus.bytes_between(*rows),
                    writes=_FOUND * count * min(self.k, rows[1] - rows[0]),
                    operations=2.0 * self.corpus.width * count * (rows[1] - rows[0]),
                    key=(group, run),
                )  # fmt: skip

    def _searched(self, block: Block, summary: Summary) -> None:
        """Take note of what a block has found."""
        group, run = block.key
        floors, known = summary["floors"], self._floors.get(group)
        self._floors[group] = floors if known is None else np.fmax(known, floors)
        start, stop = self.runs[run]
        self._seen[group] = max(self._seen.get(group, 0), stop - start)

    def _merging(self) -> Iterator[Block]:
        double = "float64" in (self.queries.dtype, self.corpus.dtype)
        for group, asked in enumerate(self.groups):
            names = [_name(group, run) for run in range(len(self.runs))]
            lines = (asked[1] - asked[0]) * self.k
            yield Block(
                _part(group),
                merge_blocks,
                (
                    self._output,
                    _part(group),
                    names,
                    seen_by(self.queries, asked),
                    asked,
                    self.k,
                    double,
                ),
                memory=TASK + 4 * lines * _LINE,
                writes=lines * (_MERGED + 4 * double),
                key=(group,),
            )

    def _merged(self, block: Block, summary: Summary) -> None:
        """Take note of the lines, and of the rows that are not finite: the first group saw all."""
        self.lines += summary["lines"]
        if block.key == (0,):
            self.unfit.update(summary["unfit"])


def _part(group: int) -> str:
    return f"part-{group:05d}.parquet"


def _name(group: int, run: int) -> str:
    return f"{SCRATCH}q{group:05d}-r{run:05d}.parquet"


def search_block(
    output: str,
    name: str,
    queries: ShardSet,
    asked: Range,
    corpus: ShardSet,
    rows: Range,
    k: int,
    floors: NDArray[np.float64] | None,
    seen: int,
    screen: str,
    watch: bool,
) -> Summary:
    """Search a run of rows for a group of queries, and write what was found.

    Args:
        output: the folder of the result.
        name: of the block.
        queries: all of them.
        asked: the range of the group.
        corpus: all rows.
        rows: the range of the run.
        k: how many rows for each query.
        floors: (q,) k-th best scores that other blocks have found.
        seen: among how many rows.
        screen: as for `cossim_fast.topk`.
        watch: count rows that hold NaN or an infinity.
    """
    watched = Watched(corpus) if watch else None
    found = neighbours.search_block(
        queries, asked, watched or corpus, rows, k, floors, seen=seen, screen=screen
    )
    query, rank = np.nonzero(found.rows >= 0)
    row = found.rows[query, rank]
    columns: dict[str, Any] = {
        "query": query.astype(np.int32),  # in its group
        "row": row,
        "score": found.scores[query, rank],
    }
    ids = corpus.ids(*rows)
    if ids is not None:
        columns["id"] = ids.take(require("pyarrow", extra="distributed").array(row - rows[0]))
    summary: Summary = {"unfit": dict(watched.unfit) if watched else {}}
    outputs.write_block(output, name, columns, summary)
    return summary | {"floors": neighbours.floors_of(found)}


def merge_blocks(
    output: str,
    name: str,
    blocks: list[str],
    queries: ShardSet,
    asked: Range,
    k: int,
    double: bool,
) -> Summary:
    """Merge what the blocks of a group of queries have found, and write it as a part of the result.

    One line for each row found, by query and rank: query, rank (from 1), row, score, and ids.
    """
    best: Nearest | None = None
    unfit: Counter[str] = Counter()
    count = asked[1] - asked[0]
    for block in blocks:
        table = outputs.read_block(output, block)
        unfit.update(outputs.summary_of(table)["unfit"])
        found = _of_lines(table, count, k)
        best = found if best is None else neighbours.merge([best, found])
    assert best is not None
    scores, rows = neighbours.rounded(best, double=double)
    query, rank = np.nonzero(rows >= 0)
    columns: dict[str, Any] = {"query": query + asked[0]}
    ids = queries.ids(*asked)
    pyarrow = require("pyarrow", extra="distributed")
    if ids is not None:
        columns["query_id"] = ids.take(pyarrow.array(query))
    columns |= {"rank": (rank + 1).astype(np.int32), "row": rows[query, rank]}
    found_ids = _ids(output, blocks, query, columns["row"])
    if found_ids is not None:
        columns["id"] = found_ids
    columns["score"] = scores[query, rank]
    summary: Summary = {"unfit": dict(unfit), "lines": len(query)}
    outputs.write_block(output, name, columns, summary)
    return summary


def _of_lines(table: Any, queries: int, k: int) -> Nearest:
    """What a block has found, as (queries, k) arrays; its lines are sorted by query and rank."""
    query = table["query"].to_numpy()
    first = np.searchsorted(query, query)  # the first line of the same query
    rank = np.arange(len(query)) - first
    found = Nearest(np.full((queries, k), np.nan), np.full((queries, k), -1, np.int64))
    found.scores[query, rank] = table["score"].to_numpy()
    found.rows[query, rank] = table["row"].to_numpy()
    return found


def _ids(
    output: str, blocks: list[str], query: NDArray[np.int64], row: NDArray[np.int64]
) -> Any | None:
    """The ids of the rows that were found, in their order; None where there are none.

    Each pair of a query and a row stands in one block alone.
    """
    pyarrow = require("pyarrow", extra="distributed")
    wanted = _pairs_of(query, row)
    order = np.argsort(wanted)
    pieces, places = [], []
    for block in blocks:
        table = outputs.read_block(output, block)
        if "id" not in table.column_names:
            return None
        lines = _pairs_of(table["query"].to_numpy().astype(np.int64), table["row"].to_numpy())
        at = np.searchsorted(wanted, lines, sorter=order)
        there = at < len(wanted)
        there[there] = wanted[order[at[there]]] == lines[there]
        pieces.append(table["id"].filter(pyarrow.array(there)).combine_chunks())
        places.append(order[at[there]])
    ids = pyarrow.chunked_array(pieces).combine_chunks()
    return ids.take(pyarrow.array(np.argsort(np.concatenate(places))))


def _pairs_of(query: NDArray[np.int64], row: NDArray[np.int64]) -> NDArray[Any]:
    """One number for each query and row: of 2^16 queries, and 2^47 rows."""
    return query << np.int64(47) | row
