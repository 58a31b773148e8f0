"""The ids of an index: numbers counted from 0, or numbers or strings of the caller's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from cossim_fast import _checks
from cossim_fast.retrieval.storage.parts import Part, positions_of

Kind = Literal["positions", "whole numbers", "strings"]


class Ids:
    """Finds rows by their ids.

    Ids of the caller's are looked up in a table, about 100 bytes a row, which is made when it is
    first needed; a search without ``exclude`` needs none. All else never changes: ids after a
    change are new ones, that take the table with them. Where a change does not come to its end,
    these here make their table anew.

    Attributes:
        kind: of the ids; None as long as there is none.
        count: of the rows that were ever added: the next serial number.
    """

    def __init__(
        self, kind: Kind | None = None, count: int = 0, table: dict[Any, int] | None = None
    ) -> None:
        self.kind, self.count, self._serial = kind, count, table

    def __reduce__(self) -> tuple[type[Ids], tuple[Kind | None, int]]:
        return Ids, (self.kind, self.count)

    def missing(self) -> Any:
        """What stands in a result where there is no row."""
        return None if self.kind == "strings" else -1

    def accept(self, parts: Sequence[Part], ids: Any, n: int) -> np.ndarray[Any, Any] | None:
        """Check the ids of n new rows, and return them; None where rows are counted, or none come.

        Where none come, there are no ids to be of a kind: none at all, and an empty sequence.
        """
        if n == 0:
            if ids is not None:
                _checks.row_ids("ids", ids, n)
            return None
        if ids is None:
            if self.kind not in (None, "positions"):
                _checks.same_ids("none", self.kind)
            return None
        names = _checks.row_ids("ids", ids, n)
        _checks.same_ids(kind_of(names), self.kind or kind_of(names))
        if parts:
            taken = np.array([name in self._table(parts) for name in names.tolist()], dtype=bool)
        else:
            taken = np.zeros(n, dtype=bool)
        _checks.new_ids(names, taken)
        _checks.new_ids(names, _repeated(names))
        return names

    def serials(self, n: int) -> Tensor:
        """The serial numbers of the next n rows."""
        return torch.arange(self.count, self.count + n, device="cpu")

    def with_added(self, names: np.ndarray[Any, Any] | None, serials: Tensor) -> Ids:
        """The ids after rows were added."""
        table, self._serial = self._serial, None
        if names is not None and table is not None:
            table.update(zip(names.tolist(), serials.tolist(), strict=True))
        kind: Kind = "positions" if names is None else kind_of(names)
        return Ids(kind, self.count + len(serials), table)

    def without(self, ids: np.ndarray[Any, Any]) -> Ids:
        """The ids after rows were removed."""
        table, self._serial = self._serial, None
        if table is not None:
            for name in ids.tolist():
                table.pop(name, None)
        return Ids(self.kind, self.count, table)

    def positions(self, parts: Sequence[Part], ids: np.ndarray[Any, Any]) -> Tensor:
        """Where the rows with some ids are; -1 for ids that no row has."""
        if not len(ids) or self.kind is None:
            return torch.full((len(ids),), -1, device="cpu")
        if self.kind == "positions":
            _checks.same_ids("positions" if ids.dtype != object else "strings", self.kind)
            return positions_of(parts, torch.from_numpy(ids))
        _checks.same_ids(kind_of(ids), self.kind)
        table = self._table(parts)
        serials = torch.tensor(
            [table.get(name, -1) for name in ids.tolist()], dtype=torch.int64, device="cpu"
        )
        return positions_of(parts, serials)

    def _table(self, parts: Sequence[Part]) -> dict[Any, int]:
        if self._serial is not None:
            return self._serial
        table: dict[Any, int] = {}
        for part in parts:
            live = part.live.numpy()
            serials = part.serials.numpy()[live].tolist()
            table.update(zip(part.ids()[live].tolist(), serials, strict=True))
        self._serial = table
        return table


def kind_of(names: np.ndarray[Any, Any]) -> Kind:
    """What ids are."""
    return "strings" if names.dtype == object else "whole numbers"


def _repeated(names: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Which ids came before (n,)."""
    if names.dtype != object:
        repeated = np.ones(len(names), dtype=bool)
        repeated[np.unique(names, return_index=True)[1]] = False
        return repeated
    repeated, seen = np.zeros(len(names), dtype=bool), set[str]()
    if len(set(names)) < len(names):
        for at, name in enumerate(names):
            repeated[at] = name in seen
            seen.add(name)
    return repeated
