"""Checkpoints of a search: what it has found so far, and in which rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from cossim_fast.retrieval.nearest.batches import Batches
from cossim_fast.retrieval.storage.checkpoint import Checkpoint
from cossim_fast.retrieval.storage.corpus import Corpus
from cossim_fast.retrieval.storage.digest import Digest, digest_of


class SearchCheckpoint(Checkpoint):
    """The file of one search; without a path it does nothing.

    Rows are digested as they are searched. When a search resumes, rows that were searched before
    are digested again and compared, since the results so far hold for these rows only.
    """

    kind = "cossim_fast search checkpoint"
    run = "search"

    def __init__(
        self, path: str | Path | None, inputs: Mapping[str, str | int | None] | None = None
    ) -> None:
        super().__init__(path, inputs)
        self._before: dict[str, Any] = {}  # metadata of the rows that were searched before

    def begin(
        self, found: Batches, queries: Tensor, corpus: Corpus, k: int, *, certify: bool
    ) -> None:
        """Restore a search that has not begun from the file, if there is one.

        Args:
            found: the search.
            queries: (q, d); their values identify the search.
            corpus: its shape and dtype do too, where they are known before it is read.
            k: how many rows each query is to get.
            certify: whether it keeps bounds.
        """
        if self.path is None:
            return
        self._digest = Digest()
        self._belongs_to(
            {
                "number of queries": len(queries),
                "dtype of queries": str(queries.dtype),
                "rows of corpus": corpus.n,
                "width": corpus.d,
                "k": k,
                "certify": certify,
                "values of queries": digest_of(queries),
            }
        )

        def understand(held: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
            seen, before = int(metadata["seen"]), dict(metadata["rows"])
            if seen <= 0 or (corpus.n is not None and seen > corpus.n):
                raise ValueError(f"{seen} rows of {corpus.n}")
            found.centre, found.seen = held["centre"], seen
            found.skipped = int(metadata["skipped"])
            found.restore(held)
            self._before = before

        self._read(understand)

    def pass_again(self, rows: Tensor, left: int) -> None:
        """Digest rows that were searched before; ``left`` more such rows follow.

        Raises:
            ValueError: they differ from the rows that were searched.
        """
        if self.path is None:
            return
        self._digest.add_rows(rows)
        if not left:
            self._compare(self._before, self._rows(rows))

    def save(self, found: Batches, rows: Tensor) -> None:
        """Write what was found so far, after these rows were searched too."""
        if self.path is None or found.centre is None:
            return
        self._digest.add_rows(rows)
        self._write(
            {**found.state(), "centre": found.centre},
            {"seen": found.seen, "skipped": found.skipped, "rows": self._rows(rows)},
        )

    def _rows(self, rows: Tensor) -> dict[str, Any]:
        """Metadata of all rows that were digested, the last of which are these."""
        text = self._digest.text()
        return {"dtype of corpus": str(rows.dtype), "values of rows searched before": text}
