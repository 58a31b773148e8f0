"""The ids of an index: positions counted from 0, or integers or strings from the caller."""

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

    Ids from the caller are looked up in a table of about 100 bytes a row, which is made when it is
    first needed; a search without ``exclude`` needs none. Otherwise this is immutable: a change
    returns a new object, which takes over the table. If a change fails, the old object makes its
    table again.

    Attributes:
        kind: of the ids; None as long as there are none.
        count: how many rows were ever added: the next serial number.
    """

    def __init__(
        self, kind: Kind | None = None, count: int = 0, table: dict[Any, int] | None = None
    ) -> None:
        self.kind, self.count, self._serial = kind, count, table

    def __reduce__(self) -> tuple[type[Ids], tuple[Kind | None, int]]:
        return Ids, (self.kind, self.count)

    def missing(self) -> Any:
        """The id that a result has where there is no row."""
        return None if self.kind == "strings" else -1

    def accept(self, parts: Sequence[Part], ids: Any, n: int) -> np.ndarray[Any, Any] | None:
        """Check the ids of n new rows, and return them; None if rows are counted, or n is 0.

        For n = 0, no ids and an empty sequence of ids are both accepted, whatever the kind.
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
        """The positions of the rows with some ids; -1 for ids that no row has."""
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
    """The kind of ids from the caller."""
    return "strings" if names.dtype == object else "whole numbers"


def _repeated(names: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Which ids (n,) occur earlier among these."""
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


def named_rows(name: str, given: Any, queries: int) -> tuple[Tensor | None, np.ndarray[Any, Any]]:
    """Read ids for all queries or for each, as `CosineIndex.search` takes them for ``exclude``.

    Returns query numbers (p,) and ids (p,); None instead of numbers where ids are for all queries.
    """
    if isinstance(given, Tensor):
        given = _checks.as_tensor(name, given).detach().cpu()
        given = (given.double() if given.is_floating_point() else given).numpy()
    _checks.ids_or_lists(name, given)
    if isinstance(given, np.ndarray):
        lists: Any = given
        if given.ndim != 2:
            return None, _present(name, given)
    else:
        lists = list(given)
        if not any(_is_list(item) for item in lists):
            return None, _present(name, lists)
    _checks.per_query(name, len(lists), queries)
    ids = [_present(name, some) for some in lists]
    filled = [some for some in ids if len(some)]
    _checks.one_kind(name, filled)
    query = torch.repeat_interleave(
        torch.tensor([len(some) for some in ids], dtype=torch.int64, device="cpu")
    )
    return query, np.concatenate(filled) if filled else np.empty(0, np.int64)


def _is_list(item: Any) -> bool:
    """Whether an item is what one query names, and not an id."""
    if item is None or isinstance(item, (int, str, bytes)):
        return False
    return hasattr(item, "__iter__") and getattr(item, "ndim", 1) > 0


def _present(name: str, ids: Any) -> np.ndarray[Any, Any]:
    """Ids without None, which stands for no row in results of strings."""
    _checks.ids_or_lists(name, ids)
    if isinstance(ids, Tensor) or (isinstance(ids, np.ndarray) and ids.dtype != object):
        return _checks.row_ids(name, ids)
    return _checks.row_ids(name, [one for one in ids if one is not None])
