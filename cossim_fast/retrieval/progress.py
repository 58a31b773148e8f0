"""A progress bar, where one is wanted."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from cossim_fast._extras import require


class Progress:
    """Counts rows on a bar of tqdm, or does nothing.

    Args:
        shown: whether there is to be a bar.
        title: what to call it.
        total: rows in all, if that is known.
        seen: rows that need not be counted any more.
        unit: what is counted, if not rows.
    """

    def __init__(
        self, shown: bool, title: str, total: int | None, seen: int = 0, unit: str = "rows"
    ) -> None:
        self._bar: Any = None
        if shown:
            tqdm = require("tqdm", extra="retrieval").tqdm
            self._bar = tqdm(
                total=total, initial=seen, unit=f" {unit}", unit_scale=True, desc=title
            )

    def update(self, count: int) -> None:
        """Count so many more."""
        if self._bar is not None:
            self._bar.update(count)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()
