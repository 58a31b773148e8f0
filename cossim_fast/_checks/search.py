"""Arguments of searches, indexes and joins."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cossim_fast._checks.arrays import as_tensor, unmasked, whole_number
from cossim_fast._checks.ops import LONGEST_CODE
from cossim_fast._checks.tensors import COMPUTED, converted

_LARGEST = np.iinfo(np.int64).max
SCREENS = ("auto", "int8", "bfloat16", "float32")


def embedding_rows(name: str, value: Any, device: str | None = "cpu") -> Tensor:
    """Return rows (n, d) of a floating dtype, sharing memory with what was given.

    Whole numbers of 8 bits, as embeddings are quantized to, become float16, which holds each of
    them, in memory of their own.

    Args:
        name: of the argument.
        value: a tensor or an array.
        device: the kind of device where it must be; None for any.
    """
    rows = as_tensor(name, value).detach()
    if rows.dim() != 2:
        fix = "; pass one row as x[None]" if rows.dim() == 1 else ""
        raise ValueError(f"expected {name} of shape (n, d), got {tuple(rows.shape)}{fix}")
    if rows.dtype in (torch.int8, torch.uint8):
        rows = rows.half()
    if rows.dtype not in COMPUTED:
        raise TypeError(
            f"expected {name} of float16, bfloat16, float32, float64, int8 or uint8, got "
            f"{rows.dtype}; convert it with .float() or .astype(numpy.float32)"
        )
    if rows.shape[1] == 0:
        raise ValueError(f"expected {name} of shape (n, d) with d >= 1, got {tuple(rows.shape)}")
    if device is not None and rows.device.type != device:
        raise ValueError(
            f"expected {name} on {device}, got {rows.device}; move it with .to({device!r})"
        )
    return rows


def same_width(queries: int, corpus: int) -> None:
    """Refuse queries and corpus of two widths."""
    if queries != corpus:
        raise ValueError(
            f"expected queries of shape (q, {corpus}) to match the corpus, got (q, {queries})"
        )


def index_width(given: int, d: int) -> None:
    """Refuse rows of another width than those of an index."""
    if given != d:
        raise ValueError(
            f"expected embeddings of shape (n, {d}), as in the index, got (n, {given})"
        )


def number_of_neighbours(k: Any, n: int | None) -> int:
    """Return k as an int, refusing what is no whole number from 1 to n."""
    number = whole_number("k", k)
    if n is not None and number > n:
        raise ValueError(f"expected k <= n, got k = {number} and a corpus of n = {n} rows")
    return number


def device_search(screen: Any, checkpoint: Any, d: int, missing: str) -> None:
    """Refuse what a search on a GPU does not offer, and a GPU that lacks what it needs."""
    if missing:
        raise NotImplementedError(
            f"expected a GPU that runs the kernels of a search: {missing}; search on CPU, as "
            "topk(queries.cpu(), corpus.cpu(), k)"
        )
    if screen not in ("auto", "int8"):
        raise ValueError(f"expected screen to be 'auto' or 'int8' on a GPU, got {screen!r}")
    if checkpoint is not None:
        raise ValueError("expected no checkpoint on a GPU, where a search cannot be resumed")
    if d > LONGEST_CODE:
        raise ValueError(f"expected d <= {LONGEST_CODE} on a GPU, got {d}; search on CPU")


def screen_name(screen: Any) -> None:
    """Refuse what is not a screen."""
    if screen not in SCREENS:
        raise ValueError(f"expected screen to be one of {SCREENS}, got {screen!r}")


def still_finite(rows: Tensor, held: Tensor, first: int) -> None:
    """Refuse finite rows that another dtype cannot hold; the first has the number ``first``."""
    lost = (~held.isfinite() & rows.isfinite()).any(1)
    if bool(lost.any()):
        at = int(lost.nonzero()[0])
        raise ValueError(
            f"expected rows that {held.dtype} can hold, and row {first + at} has "
            f"{float(rows[at].abs().nan_to_num(0, 0, 0).amax()):g}; store them in {rows.dtype}"
        )


def stored_dtype(store: Any) -> torch.dtype:
    """Refuse what rows cannot be stored in."""
    if store not in COMPUTED:
        raise ValueError(
            "expected store to be torch.float16, bfloat16, float32 or float64, "
            f"got {store!r}; int8 codes are kept in addition to the rows"
        )
    dtype: torch.dtype = store
    return dtype


ON_CPU = "build the index on CPU, with device=None"


def index_device(device: Any, otherwise: str = ON_CPU) -> torch.device:
    """The device that an index is to be on, with its number; refuse one that is not there.

    Args:
        device: as `CosineIndex` takes it.
        otherwise: what to do where it is not there.
    """
    try:
        found = torch.device("cpu" if device is None else device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"expected device to be None, 'cpu' or 'cuda', got {device!r}") from error
    if found.type == "cpu":
        return torch.device("cpu")
    if found.type != "cuda":
        raise ValueError(f"expected device to be None, 'cpu' or 'cuda', got {device!r}")
    there = torch.cuda.device_count()
    if found.index is None and there:
        found = torch.device("cuda", torch.cuda.current_device())
    if not there or found.index >= there:
        raise ValueError(
            f"expected a GPU for device={str(device)!r}, and torch {torch.__version__} finds "
            f"{there}; {otherwise}"
        )
    return found


def index_on_device(screen: Any, path: Any, d: int, missing: str) -> None:
    """Refuse an index that a GPU cannot search, and a GPU that lacks what it needs."""
    if missing:
        raise NotImplementedError(
            f"expected a GPU that runs the kernels of a search: {missing}; {ON_CPU}"
        )
    if screen not in ("auto", "int8"):
        raise ValueError(
            f"expected screen to be 'auto' or 'int8' for an index on a GPU, got {screen!r}"
        )
    if path is not None:
        raise ValueError(
            "expected no path with a GPU, in whose memory all vectors are; keep them with save, or "
            + ON_CPU
        )
    if d > LONGEST_CODE:
        raise ValueError(f"expected d <= {LONGEST_CODE} for an index on a GPU, got {d}; {ON_CPU}")


def same_ids(given: str, kept: str) -> None:
    """Refuse ids of another kind than an index has."""
    if given != kept:
        fix = "; build the index with ids to give your own" if kept == "positions" else ""
        raise TypeError(f"expected ids to be {kept}, as in this index, got {given}{fix}")


def row_ids(name: str, ids: Any, n: int | None = None) -> np.ndarray[Any, Any]:
    """Return ids as a 1-D array of int64, or of str objects."""
    values = _id_array(name, ids)
    if values.ndim != 1 or (n is not None and len(values) != n):
        raise ValueError(
            f"expected {name} of shape ({'m' if n is None else n},), got {values.shape}"
        )
    if values.dtype.kind in "iu":
        if values.dtype.kind == "u" and len(values) and values.max() > _LARGEST:
            raise ValueError(f"expected {name} below 2**63, got {values.max()}")
        return values.astype(np.int64)
    texts = np.empty(len(values), dtype=object)
    texts[:] = values.tolist()
    if len(values) and not all(isinstance(text, str) for text in texts):
        kinds = sorted({type(text).__name__ for text in texts})
        raise TypeError(f"expected {name} to be whole numbers or str, got {', '.join(kinds)}")
    return texts


def _id_array(name: str, ids: Any) -> np.ndarray[Any, Any]:
    """Ids as they were given, as an array of any dtype."""
    if isinstance(ids, Tensor):
        ids = as_tensor(name, ids).detach().cpu()
        # numpy has neither bfloat16 nor float8; floating ids are refused later.
        return (ids.double() if ids.is_floating_point() else ids).numpy()  # type: ignore[no-any-return]
    unmasked(name, ids)
    if hasattr(ids, "dtype") and not np.isscalar(ids):
        values = np.asarray(ids)
        return values if values.dtype != object or values.ndim != 1 else _listed(name, values)
    if isinstance(ids, (str, bytes, bytearray, set, frozenset, dict)) or not hasattr(
        ids, "__iter__"
    ):
        raise TypeError(f"expected {name} to be a sequence, got {type(ids).__name__}")
    return _listed(name, ids)


def _listed(name: str, ids: Any) -> np.ndarray[Any, Any]:
    """An array of the items of a sequence; numpy would convert all to text if one is."""
    items = list(ids)
    if all(isinstance(item, (int, np.integer)) and not isinstance(item, bool) for item in items):
        for item in (min(items, default=0), max(items, default=0)):
            if not -_LARGEST - 1 <= item <= _LARGEST:
                bits = int(item).bit_length()  # Python refuses to print the longest
                raise ValueError(f"expected {name} from -2**63 to below 2**63, got {bits} bits")
        return np.array(items, dtype=np.int64)
    values = np.empty(len(items), dtype=object)
    for at, item in enumerate(items):  # numpy would unpack items that are sequences
        values[at] = item
    return values


def new_ids(ids: np.ndarray[Any, Any], taken: np.ndarray[Any, Any]) -> None:
    """Refuse the id -1, which stands for no row, and ids that other rows have."""
    if ids.dtype != object and bool((ids == -1).any()):
        raise ValueError("expected ids other than -1, which stands for no row in a result")
    if bool(taken.any()):
        again = ids[taken].tolist()
        raise ValueError(
            f"expected ids that are not taken, got {len(again)} that are, "
            f"{reprlib.repr(again[0])} for instance; remove them first"
        )


def known_ids(ids: np.ndarray[Any, Any], found: np.ndarray[Any, Any]) -> None:
    """Refuse an id that no row has."""
    if not bool(found.all()):
        strange = ids[~found].tolist()
        raise KeyError(
            f"expected ids that are in the index, got {len(strange)} that are not, "
            f"{reprlib.repr(strange[0])} for instance; nothing was removed"
        )


def per_query(name: str, given: int, queries: int) -> None:
    """Refuse lists of ids that are not one for each query."""
    if given != queries:
        raise ValueError(
            f"expected {name} to hold one list of ids for each of {queries} queries, or ids "
            f"alone for all of them, got {given} lists"
        )


def ids_or_lists(name: str, ids: Any) -> None:
    """Refuse what is no sequence of ids, nor of sequences: text and a mapping can be iterated."""
    if isinstance(ids, (str, bytes, bytearray, dict)) or not hasattr(ids, "__iter__"):
        raise TypeError(
            f"expected {name} to be a sequence or a set of ids, or one for each query, "
            f"got {type(ids).__name__}"
        )


def row_mask(mask: np.ndarray[Any, Any], queries: int, n: int, order: str) -> None:
    """Refuse a mask that does not say yes or no of each row."""
    if mask.shape not in ((n,), (queries, n)):
        raise ValueError(
            f"expected where, as a mask, of shape ({n},) {order}, or "
            f"({queries}, {n}) for each query, got {mask.shape}"
        )


def row_numbers(name: str, rows: np.ndarray[Any, Any], n: int) -> None:
    """Refuse what are no numbers of rows; -1 stands for no row."""
    if rows.dtype == object:
        raise TypeError(f"expected {name} to be a boolean mask or numbers of rows, got str")
    if len(rows) and not -1 <= rows.min() <= rows.max() < n:
        strange = rows.min() if rows.min() < -1 else rows.max()
        raise ValueError(f"expected {name} to hold numbers of {n} rows, got {strange}")


def no_filter(where: Any, what: str) -> None:
    """Refuse a filter where there is none."""
    if where is not None:
        fix = {
            "on a GPU": "search corpus[mask]",
            "with a checkpoint": "search corpus[mask], whose rows are numbered anew",
            "for an iterator": "leave rows out of its blocks, or give an array or a memory map",
        }[what]
        raise ValueError(f"expected no where {what}; {fix}")


def one_kind(name: str, lists: Sequence[np.ndarray[Any, Any]]) -> None:
    """Refuse lists of ids of which some hold numbers and others text."""
    if len({ids.dtype == object for ids in lists}) > 1:
        raise TypeError(f"expected {name} to be whole numbers or str, got lists of both")


def threshold(value: Any) -> float:
    """Return a threshold as a float; refuse one outside [-1, 1]."""
    try:
        found = float(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"expected threshold to be a number, got {type(value).__name__}") from error
    if not -1 <= found <= 1:
        raise ValueError(f"expected threshold in [-1, 1], as cosines are, got {found!r}")
    return found


def joined_widths(x: int, y: int) -> None:
    """Refuse two sets of rows of two widths."""
    if x != y:
        raise ValueError(f"expected y of shape (m, {x}) to match x, got (m, {y})")


def order_to_keep(keep: Any, n: int) -> Tensor | None:
    """The order (n,) in which rows are kept, best first; None for the order of the rows.

    Args:
        keep: ``"first"``, ``"last"``, or (n,) priorities.
        n: how many rows.
    """
    if isinstance(keep, str):
        if keep not in ("first", "last"):
            raise ValueError(
                f"expected keep to be 'first', 'last' or an array of priorities, got {keep!r}"
            )
        return None if keep == "first" else torch.arange(n - 1, -1, -1, device="cpu")
    priorities = as_tensor("keep", _dates_as_numbers(keep, n)).detach().cpu()
    if priorities.shape != (n,):
        raise ValueError(
            f"expected one priority a row, keep of shape ({n},), got {tuple(priorities.shape)}"
        )
    if what := converted(priorities.dtype):
        raise TypeError(f"expected keep to hold numbers that can be sorted, got {what}")
    if priorities.is_floating_point() and bool(priorities.isnan().any()):
        raise ValueError("expected priorities that can be compared, and keep holds NaN")
    return torch.sort(priorities, descending=True, stable=True).indices


def _dates_as_numbers(keep: Any, n: int) -> Any:
    """Dates, times and durations, of numpy's or Python's, as whole numbers of the same order."""
    if isinstance(keep, Tensor):
        return keep
    try:
        values = np.asarray(keep)
    except Exception:  # `as_tensor` says why
        return keep
    if values.dtype.kind in "mM":
        if np.isnat(values).any():
            raise ValueError("expected dates that can be compared, and keep holds NaT")
        return values.astype(np.int64)
    if values.dtype != object or values.shape != (n,):
        return keep
    items = values.tolist()
    if not all(isinstance(item, (date, timedelta)) for item in items):
        return keep
    if any(type(item).__name__ == "NaTType" for item in items):  # of pandas
        raise ValueError("expected dates that can be compared, and keep holds NaT")
    try:
        ranks = {item: rank for rank, item in enumerate(sorted(set(items)))}
    except TypeError as error:
        raise TypeError(
            f"expected dates of one kind that can be compared in keep: {error}"
        ) from error
    return np.array([ranks[item] for item in items])
