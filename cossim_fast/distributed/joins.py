"""`pairs_above` of files: panels against panels, each pair of them one block.

A join of rows with themselves is a triangle of blocks, (a, b) with panel a before panel b or both
the same. A block writes its pairs, sorted by i, then j, as a file of the result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cossim_fast import _checks
from cossim_fast._extras import require
from cossim_fast.distributed import outputs, pairs
from cossim_fast.distributed.driver import Stage, Summary
from cossim_fast.distributed.grid import TASK, Block, Range, at_boundaries, seen_by
from cossim_fast.distributed.rows import row_bytes
from cossim_fast.distributed.shards import ShardSet
from cossim_fast.distributed.unfit import Watched
from cossim_fast.retrieval import TooManyPairsError

# [pairs] That a block is expected to find at most; with ``max_pairs``, that many.
_EXPECTED = 1 << 24


class Join:
    """The blocks of a join, and what they found.

    Args:
        output: the folder of the result.
        x: all rows of one side.
        y: of the other; None joins x with itself.
        threshold: -1 to 1.
        max_pairs: most that a block may find, and all together.
        screen: as for `cossim_fast.pairs_above`.
        threads: of a worker.
        rows_per_task: most of a panel.
        prefix: of the names of the files.
        with_ids: whether files have the ids of rows, if rows have ids.
    """

    operation = "pairs_above"

    def __init__(
        self,
        output: str,
        x: ShardSet,
        y: ShardSet | None,
        threshold: Any,
        *,
        max_pairs: Any = None,
        screen: str = "auto",
        threads: int = 1,
        rows_per_task: int | None = None,
        prefix: str = "part-",
        with_ids: bool = True,
    ) -> None:
        if y is not None:
            _checks.joined_widths(x.width, y.width)
        _checks.screen_name(screen)
        self.threshold = _checks.threshold(threshold)
        if max_pairs is not None:
            max_pairs = _checks.whole_number("max_pairs", max_pairs, least=0)
        self.max_pairs: int | None = max_pairs
        self.x, self.y = x, y
        self._output, self._screen, self._threads = output, screen, threads
        self._prefix, self._with_ids = prefix, with_ids
        size = rows_per_task or pairs.panel_rows(x.width)
        self.panels = at_boundaries(x.boundaries(), size)
        self.others = self.panels if y is None else at_boundaries(y.boundaries(), size)
        # Copies of other rows (c,), ascending, which are left out.
        self.without: NDArray[np.int64] | None = None
        # Pairs that were found, by block, and rows that hold NaN or an infinity, by file.
        self.found: dict[str, int] = {}
        self.unfit: Counter[str] = Counter()

    @property
    def lines(self) -> int:
        """How many pairs were found."""
        return sum(self.found.values())

    @property
    def double(self) -> bool:
        """Whether scores are float64."""
        return "float64" in (self.x.dtype, (self.y or self.x).dtype)

    def parameters(self) -> dict[str, Any]:
        """On what the result depends, beside the inputs."""
        return {"threshold": self.threshold}

    def inputs(self) -> dict[str, ShardSet]:
        """What is read."""
        return {"x": self.x} if self.y is None else {"x": self.x, "y": self.y}

    def grid(self) -> list[dict[str, Any]]:
        """Every file that is written."""
        return [
            {"name": self._name(a, b), "x": self.panels[a], "y": self.others[b]}
            for a, b in self._keys()
        ]

    def stages(self, results: list[str] | None = None) -> list[Stage]:
        """One, which serves files that are made of its own, or those."""
        keys = self._keys()
        return [
            Stage("join", self._joining, len(keys), self._joined, lambda b: results or [b.name])
        ]

    def _name(self, a: int, b: int) -> str:
        return f"{self._prefix}{a:05d}-{b:05d}.parquet"

    def _keys(self) -> list[tuple[int, int]]:
        """The blocks, largest first."""
        same = self.y is None
        keys = [
            (a, b)
            for a in range(len(self.panels))
            for b in range(a if same else 0, len(self.others))
        ]
        return sorted(keys, key=lambda key: -self._size(*key))

    def _size(self, a: int, b: int) -> float:
        """How many pairs a block compares."""
        (low, high), (start, stop) = self.panels[a], self.others[b]
        whole = float(high - low) * (stop - start)
        return whole / 2 if self.y is None and a == b else whole

    def _joining(self) -> Iterator[Block]:
        x, y, same = self.x, self.y or self.x, self.y is None
        # What a panel is in: all that its tasks have to know.
        panels = [seen_by(x, some) for some in self.panels]
        others = panels if same else [seen_by(y, some) for some in self.others]
        for a, b in self._keys():
            x_range, y_range = self.panels[a], self.others[b]
            itself = same and a == b
            name = self._name(a, b)
            reads = others[b].bytes_between(*y_range)
            most = _EXPECTED if self.max_pairs is None else min(self.max_pairs, _EXPECTED)
            yield Block(
                name,
                join_block,
                (
                    self._output, name, panels[a], x_range, others[b], y_range, self.threshold,
                    same, self.max_pairs, self._left_out(x_range, y_range), self._screen,
                    # Each row is looked at once for NaN.
                    (not same and b == 0, itself or (not same and a == 0)), self._with_ids,
                ),
                memory=TASK
                + pairs.memory_of(
                    y_range[1] - y_range[0],
                    min(most, int(self._size(a, b))),
                    y.width,
                    row_bytes(x),
                    row_bytes(y),
                    self._threads,
                ),
                reads=reads if itself else reads + panels[a].bytes_between(*x_range),
                operations=2.0 * y.width * self._size(a, b),
                key=(a, b),
            )  # fmt: skip

    def _left_out(self, *ranges: Range) -> NDArray[np.int64] | None:
        """The copies in these ranges."""
        if self.without is None:
            return None
        bounds = [np.searchsorted(self.without, some) for some in sorted(set(ranges))]
        return np.concatenate([self.without[first:last] for first, last in bounds])

    def _joined(self, block: Block, summary: Summary) -> None:
        """Count pairs, and stop as soon as there are too many."""
        self.found[block.name] = summary["lines"]
        self.unfit.update(summary["unfit"])
        if self.max_pairs is not None and self.lines > self.max_pairs:
            raise TooManyPairsError(
                f"expected at most max_pairs={self.max_pairs} pairs to reach "
                f"threshold={self.threshold!r}, got {self.lines} in {len(self.found)} of "
                f"{len(self._keys())} blocks; raise one of the two",
                self.lines,
                None,
            )


def join_block(
    output: str,
    name: str,
    x: ShardSet,
    x_range: Range,
    y: ShardSet,
    y_range: Range,
    threshold: float,
    same: bool,
    max_pairs: int | None,
    without: NDArray[np.int64] | None,
    screen: str,
    watch: tuple[bool, bool],
    with_ids: bool,
) -> Summary:
    """Find the pairs of two ranges of rows, and write them.

    One line for each pair, sorted by i, then j: i, j, score, and their ids.

    Args:
        output: the folder of the result.
        name: of the block.
        x: all rows of one side, as for `pairs.join_block`.
        x_range: likewise, and so are the others.
        y: of the other side.
        y_range: the panel that is kept.
        threshold: -1 to 1.
        same: whether x and y are the same rows.
        max_pairs: most that the block may have.
        without: (r,) rows to leave out.
        screen: as for `cossim_fast.pairs_above`.
        watch: on which side to count rows that hold NaN or an infinity.
        with_ids: whether to write ids.
    """
    sides = [Watched(rows) if look else rows for rows, look in zip((x, y), watch, strict=True)]
    found = pairs.join_block(
        sides[0], x_range, sides[1], y_range, threshold, same, max_pairs,
        without=without, screen=screen,
    )  # fmt: skip
    columns: dict[str, Any] = {"i": found.i, "j": found.j}
    if with_ids:
        for side, rows, (start, stop) in (("i", x, x_range), ("j", y, y_range)):
            ids = rows.ids(start, stop)
            if ids is not None:
                at = require("pyarrow", extra="distributed").array(columns[side] - start)
                columns[f"id_{side}"] = ids.take(at)
    columns["score"] = found.scores
    unfit: Counter[str] = Counter()
    for watched in sides:
        if isinstance(watched, Watched):
            unfit.update(watched.unfit)
    summary: Summary = {"lines": len(found.i), "unfit": dict(unfit)}
    outputs.write_block(output, name, columns, summary)
    return summary
