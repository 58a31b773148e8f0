"""`deduplicate` of files: digests, a join, and its pairs replayed.

Digests of all rows tell what is a copy of what; the rows that are left are joined; and one worker
replays the pairs in the order in which rows are visited.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cossim_fast._extras import require
from cossim_fast.distributed import copies, outputs, replay
from cossim_fast.distributed.driver import SCRATCH, Stage, Summary
from cossim_fast.distributed.grid import TASK, Block, Range, even, row_parts, seen_by
from cossim_fast.distributed.joins import Join
from cossim_fast.distributed.rows import PIECE
from cossim_fast.distributed.shards import ShardSet
from cossim_fast.retrieval import Pairs
from cossim_fast.retrieval.blocks import visiting_order

# [rows] Of which digests are made in a block: 4 s.
_HASHED = 1 << 21
# [bytes] A row while copies are looked for: see `copies`.
_COPIES = 40
# [bytes] An id of a row, as far as it can be known.
_ID = 40
_COLUMN = "column:"
_COPIES_FILE, _REPLAYED = f"{SCRATCH}copies.parquet", "_replayed.parquet"


class Deduplication:
    """The blocks of a deduplication.

    Args:
        output: the folder of the result.
        x: all rows.
        threshold: -1 to 1.
        keep: ``"first"``, ``"last"``, or ``"column:NAME"``.
        max_pairs: most that a block of the join may find, and all together.
        screen: as for `cossim_fast.pairs_above`.
        threads: of a worker.
        rows_per_task: most of a panel.
    """

    operation = "deduplicate"

    def __init__(
        self,
        output: str,
        x: ShardSet,
        threshold: Any,
        *,
        keep: str = "first",
        max_pairs: Any = None,
        screen: str = "auto",
        threads: int = 1,
        rows_per_task: int | None = None,
    ) -> None:
        if not isinstance(keep, str) or (
            keep not in ("first", "last") and not keep.startswith(_COLUMN)
        ):
            raise ValueError(f"expected keep to be 'first', 'last' or 'column:NAME', got {keep!r}")
        self._join = Join(
            output, x, None, threshold, max_pairs=max_pairs, screen=screen, threads=threads,
            rows_per_task=rows_per_task, prefix=f"{SCRATCH}p", with_ids=False,
        )  # fmt: skip
        if keep.startswith(_COLUMN):
            x.check_column(keep.removeprefix(_COLUMN))
        self.x, self._output, self._keep = x, output, keep
        self._hashed = even(x.rows, _HASHED)
        # Kept and dropped rows.
        self.kept = self.lines = 0

    @property
    def unfit(self) -> Counter[str]:
        """Rows that hold NaN or an infinity, by file."""
        return self._join.unfit

    def parameters(self) -> dict[str, Any]:
        """On what the result depends, beside the inputs."""
        return {"threshold": self._join.threshold, "keep": self._keep}

    def inputs(self) -> dict[str, ShardSet]:
        """What is read."""
        return {"x": self.x}

    def grid(self) -> list[dict[str, Any]]:
        """Every file that is written."""
        return [
            *({"name": _digests(n), "x": rows} for n, rows in enumerate(self._hashed)),
            {"name": _COPIES_FILE},
            *self._join.grid(),
            *({"name": name} for name in self._results()),
        ]

    def _results(self) -> list[str]:
        return [*row_parts(self.x.rows), _REPLAYED]

    def stages(self) -> list[Stage]:
        """Digests, copies, the join, the replay."""
        results = self._results()

        def serves(block: Block) -> list[str]:
            return results

        def nothing(block: Block, summary: Summary) -> None:
            pass

        return [
            Stage("digests", self._hashing, len(self._hashed), nothing, serves, learns=False),
            Stage("copies", self._comparing, 1, self._compared, serves),
            *self._join.stages(results),
            Stage("replay", self._replaying, 1, self._replayed, serves),
        ]

    def _hashing(self) -> Iterator[Block]:
        for number, rows in enumerate(self._hashed):
            name = _digests(number)
            yield Block(
                name,
                hash_block,
                (self._output, name, seen_by(self.x, rows), rows),
                memory=TASK + 3 * PIECE + 16 * (rows[1] - rows[0]),
                reads=self.x.bytes_between(*rows),
                writes=16 * (rows[1] - rows[0]),
            )

    def _comparing(self) -> Iterator[Block]:
        yield Block(
            _COPIES_FILE,
            compare_block,
            (self._output, self.x, self._hashed, self._keep),
            memory=TASK + (_COPIES + 2 * 8) * self.x.rows,
        )

    def _compared(self, block: Block, summary: Summary) -> None:
        if summary["copies"]:
            self._join.without = outputs.read_block(self._output, _COPIES_FILE)["row"].to_numpy()

    def _replaying(self) -> Iterator[Block]:
        join = self._join
        rows, most = self.x.rows, max(join.found.values(), default=0)
        memory = replay.memory_of(
            rows,
            max(most, min(join.lines, replay.MOST_PAIRS)),
            in_order=self._keep == "first",
            double=join.double,
        )
        ids = 0 if self.x.id_column is None else _ID
        yield Block(
            _REPLAYED,
            replay_block,
            (self._output, self.x, join.found, self._keep, join.double),
            memory=TASK + memory + (36 + ids) * rows,
            writes=(8 + 8 + 4 + 4 * join.double) * rows,
            also=tuple(row_parts(rows)),
        )

    def _replayed(self, block: Block, summary: Summary) -> None:
        self.kept, self.lines = summary["kept"], summary["lines"]


def _digests(number: int) -> str:
    return f"{SCRATCH}digests-{number:05d}.parquet"


def hash_block(output: str, name: str, x: ShardSet, rows: Range) -> Summary:
    """Write the digests of a range of rows."""
    found = copies.digests(x, *rows)
    outputs.write_block(output, name, {"low": found[:, 0], "high": found[:, 1]}, {})
    return {}


def _order(x: ShardSet, keep: str) -> NDArray[np.int64] | None:
    """The order (n,) in which rows are visited; None for that of their numbers."""
    if not keep.startswith(_COLUMN):
        return visiting_order(keep, x.rows)
    name = keep.removeprefix(_COLUMN)
    values = x.column_values(name, 0, x.rows)
    if values.null_count:
        row = int(np.argmin(np.asarray(values.is_valid())))
        shard = x.shard_of(row)
        raise ValueError(
            f"expected values to sort by in column {name!r}, got none in row {row - shard.first} "
            f"of {shard.path}"
        )
    return visiting_order(values.to_numpy(zero_copy_only=False), x.rows)


def compare_block(output: str, x: ShardSet, hashed: list[Range], keep: str) -> Summary:
    """Find the rows that are copies of rows that are visited before, and write them."""

    def digests() -> Iterator[tuple[int, NDArray[np.uint64]]]:
        for number, (first, _) in enumerate(hashed):
            table = outputs.read_block(output, _digests(number))
            yield first, np.stack([table[name].to_numpy() for name in ("low", "high")], axis=1)

    found = copies.find_copies(digests, x.rows, _order(x, keep))
    summary: Summary = {"copies": len(found.rows)}
    columns = {"row": found.rows, "first": found.firsts}
    outputs.write_block(output, _COPIES_FILE, columns, summary)
    return summary


def replay_block(
    output: str, x: ShardSet, found: dict[str, int], keep: str, double: bool
) -> Summary:
    """Deduplicate by the pairs of all blocks of the join, and write the result.

    One line for each row: row, kept_row (a kept row is its own), score (NaN for a kept row), and
    their ids.
    """
    table = outputs.read_block(output, _COPIES_FILE)
    result = replay.deduplicate(
        [replay.PairBlock(_reader(output, name), count) for name, count in found.items()],
        x.rows,
        order=_order(x, keep),
        copies=copies.Copies(table["row"].to_numpy(), table["first"].to_numpy()),
        double=double,
    )
    pyarrow = require("pyarrow", extra="distributed")
    stands = np.arange(x.rows, dtype=np.int64)
    stands[result.dropped] = result.representatives
    scores = np.full(x.rows, np.nan, np.float64 if double else np.float32)
    scores[result.dropped] = result.scores
    ids = x.ids(0, x.rows)
    for part, (start, stop) in row_parts(x.rows).items():
        some = slice(start, stop)
        row = np.arange(start, stop, dtype=np.int64)
        columns: dict[str, Any] = {"row": row, "kept_row": stands[some]}
        if ids is not None:
            columns["id"] = ids.slice(start, stop - start)
            columns["kept_id"] = ids.take(pyarrow.array(stands[some]))
        columns["score"] = scores[some]
        outputs.write_block(output, part, columns, {})
    summary: Summary = {"kept": len(result.kept), "lines": x.rows}
    outputs.write_block(output, _REPLAYED, {"kept": result.kept[:0]}, summary)
    return summary


def _reader(output: str, name: str) -> Callable[[], Pairs]:
    def read() -> Pairs:
        table = outputs.read_block(output, name)
        return Pairs(*(table[column].to_numpy() for column in ("i", "j", "score")))

    return read
