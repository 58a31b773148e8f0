"""An optional progress bar."""

from __future__ import annotations

from typing import Any

from cossim_fast._extras import require


class Progress:
    """Counts rows on a bar of tqdm, or does nothing.

    Args:
        shown: whether to show a bar.
        title: of the bar.
        total: how many rows there are, if that is known.
        seen: how many are done already.
        unit: of what is counted.
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
        """Advance the bar."""
        if self._bar is not None:
            self._bar.update(count)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *raised: object) -> None:
        if self._bar is not None:
            self._bar.close()
