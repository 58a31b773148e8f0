"""Argument validation: every error message about an argument is worded here.

`cosine_similarity` stands in for torch's function, so its errors have torch's types
(RuntimeError, IndexError, TypeError); everything else raises ValueError or TypeError.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

PRECISIONS = ("highest", "high", "medium")
LONGEST_CODE = 133_000  # 127 * 127 * d < 2^31
SCREEN_BLOCKS = (1, 32, 64)
COMPUTED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def require_tensor(function: str, name: str, value: Any) -> None:
    """Raise TypeError unless `value` is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{function}(): expected {name} to be a Tensor, got {type(value).__name__}"
            + ("; convert it with torch.from_numpy" if type(value).__module__ == "numpy" else "")
        )


def drop_in_arguments(x1: Tensor, x2: Tensor, dim: int, eps: float) -> tuple[torch.dtype, int]:
    """Check the arguments of `cosine_similarity`; return its dtype and dim counted from the end."""
    require_tensor("cosine_similarity", "x1", x1)
    require_tensor("cosine_similarity", "x2", x2)
    dtype = drop_in_dtype(x1, x2)
    drop_in_eps(eps)
    same_device(x1, x2)
    return dtype, drop_in_dim(dim, max(x1.dim(), x2.dim()))


def drop_in_dtype(x1: Tensor, x2: Tensor) -> torch.dtype:
    """Return the promoted dtype of a pair, refusing what torch's function refuses.

    torch broadcasts before it promotes, so a 0-d tensor weighs as much as any other.
    """
    dtype = x1.dtype if x1.dtype is x2.dtype else torch.promote_types(x1.dtype, x2.dtype)
    if dtype not in COMPUTED:
        raise RuntimeError(
            "expected common dtype to be floating point "
            f"(float16, bfloat16, float32 or float64), yet common dtype is {dtype}"
        )
    return dtype


def drop_in_eps(eps: float) -> None:
    """Refuse an eps that is negative, NaN or not a number, with torch's error types."""
    # isinstance first: dynamo cannot ask a symbolic number for its attributes.
    if not isinstance(eps, (int, float)) and (
        not hasattr(eps, "__float__") or getattr(eps, "ndim", 0) > 0
    ):
        raise TypeError(
            f"cosine_similarity(): argument 'eps' must be float, not {type(eps).__name__}"
        )
    if not eps >= 0:
        raise RuntimeError(f"eps must be non-negative, got: {eps}")


def drop_in_dim(dim: int, ndim: int) -> int:
    """Return `dim` counted from the end (-ndim to -1); a 0-d pair counts as 1-d, as in torch."""
    if isinstance(dim, bool) or not (isinstance(dim, int) or hasattr(dim, "__index__")):
        raise TypeError(
            f"cosine_similarity(): argument 'dim' must be int, not {type(dim).__name__}"
        )
    ndim = max(ndim, 1)
    if not -ndim <= dim < ndim:
        raise IndexError(
            f"Dimension out of range (expected to be in range of [{-ndim}, {ndim - 1}], "
            f"but got {dim})"
        )
    return dim - ndim if dim >= 0 else dim


def same_device(x: Tensor, y: Tensor) -> None:
    """Refuse a pair on two devices; broadcasting leaves no 0-d tensor that torch would let mix."""
    if x.device != y.device:
        raise RuntimeError(
            f"expected both tensors on one device, got {x.device} and {y.device}; "
            "move one with .to()"
        )


def pairwise_arguments(x: Tensor, y: Tensor | None, eps: float, precision: str) -> torch.dtype:
    """Check the arguments of `pairwise_cosine`; return the dtype of its result."""
    require_tensor("pairwise_cosine", "x", x)
    if x.dim() not in (2, 3):
        raise ValueError(f"expected x of shape (n, d) or (b, n, d), got {tuple(x.shape)}")
    if y is not None:
        require_tensor("pairwise_cosine", "y", y)
        batch, width = tuple(x.shape[:-2]), x.shape[-1]
        if y.dim() != x.dim() or tuple(y.shape[:-2]) != batch or y.shape[-1] != width:
            wanted = ", ".join([*map(str, batch), "m", str(width)])
            raise ValueError(
                f"expected y of shape ({wanted}) to match x of shape {tuple(x.shape)}, "
                f"got {tuple(y.shape)}"
            )
        if x.device != y.device:
            raise ValueError(
                f"expected x and y on one device, got {x.device} and {y.device}; "
                "move one with .to()"
            )
    dtype = x.dtype if y is None else torch.promote_types(x.dtype, y.dtype)
    if dtype not in COMPUTED:
        raise TypeError(
            "expected x and y to promote to float16, bfloat16, float32 or float64, got "
            + (f"{x.dtype}" if y is None else f"{x.dtype} and {y.dtype}, which give {dtype}")
        )
    if not isinstance(eps, (int, float)) or not 0 <= eps < math.inf:
        raise ValueError(f"expected a finite eps >= 0, got {eps!r}")
    if precision not in PRECISIONS:
        raise ValueError(f"expected precision to be one of {PRECISIONS}, got {precision!r}")
    return dtype


def pairwise_out(
    out: Tensor, shape: tuple[int, ...], dtype: torch.dtype, inputs: tuple[Tensor, ...]
) -> None:
    """Refuse an `out` that cannot take the result as it is."""
    require_tensor("pairwise_cosine", "out", out)
    if tuple(out.shape) != shape or out.dtype != dtype:
        raise ValueError(
            f"expected out of shape {shape} and dtype {dtype}, "
            f"got shape {tuple(out.shape)} and dtype {out.dtype}"
        )
    if out.device != inputs[0].device:
        raise ValueError(f"expected out on {inputs[0].device}, got {out.device}")
    if torch.is_grad_enabled() and any(t.requires_grad for t in (out, *inputs)):
        raise ValueError(
            "out= cannot be recorded by autograd, and an argument requires a gradient; "
            "leave out= away, or call under torch.no_grad()"
        )
    if _overlaps_itself(out):
        raise ValueError("expected out to have one place in memory for each element; pass a copy")
    if any(_share_memory(out, t) for t in inputs):
        raise ValueError("expected out not to overlap an input in memory; pass a fresh tensor")


def _overlaps_itself(x: Tensor) -> bool:
    """Whether two elements of a strided tensor can lie at one address (never wrongly False)."""
    needed = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size > 1:
            if stride < needed:
                return True
            needed = stride * (size - 1) + needed
    return False


def _share_memory(a: Tensor, b: Tensor) -> bool:
    """Whether the address ranges of two tensors meet."""
    if a.numel() == 0 or b.numel() == 0 or a.device.type == "meta":
        return False
    (a_start, a_stop), (b_start, b_stop) = _extent(a), _extent(b)
    return a_start < b_stop and b_start < a_stop


def _extent(x: Tensor) -> tuple[int, int]:
    last = sum(s * (n - 1) for s, n in zip(x.stride(), x.shape, strict=True))
    return x.data_ptr(), x.data_ptr() + (last + 1) * x.element_size()


def paired_rows(x: Tensor, y: Tensor) -> torch.dtype:
    """Check the pair of a row-wise op; return the dtype of its result."""
    if x.dim() != 2 or x.shape != y.shape or x.device != y.device:
        raise ValueError(
            "expected x and y of one shape (n, d) on one device, "
            f"got {tuple(x.shape)} on {x.device} and {tuple(y.shape)} on {y.device}"
        )
    return drop_in_dtype(x, y)


def batched_rows(x: Tensor, y: Tensor, eps: float, precision: str) -> torch.dtype:
    """Check the arguments of a matrix op; return the dtype of its result."""
    if x.dim() != 3:
        raise ValueError(f"expected x of shape (b, n, d), got {tuple(x.shape)}")
    return pairwise_arguments(x, y, eps, precision)


def screen(queries: Tensor, corpus: Tensor, block: int, eligible: Tensor | None) -> torch.dtype:
    """Check the arguments of the block-maximum screen; return the dtype of its result."""
    if queries.dim() != 2 or corpus.dim() != 2 or queries.shape[1] != corpus.shape[1]:
        raise ValueError(
            "expected queries of shape (n, d) and corpus of shape (m, d), "
            f"got {tuple(queries.shape)} and {tuple(corpus.shape)}"
        )
    if queries.dtype != corpus.dtype or queries.dtype not in (torch.int8, torch.bfloat16):
        raise TypeError(
            "expected queries and corpus both int8 or both bfloat16, "
            f"got {queries.dtype} and {corpus.dtype}"
        )
    if queries.dtype == torch.int8 and queries.shape[1] > LONGEST_CODE:
        raise ValueError(
            f"expected int8 codes of d <= {LONGEST_CODE}, whose sums fit int32, "
            f"got d = {queries.shape[1]}; screen in bfloat16"
        )
    if block not in SCREEN_BLOCKS:
        raise ValueError(f"expected a block of 1, 32 or 64 rows, got {block}")
    if eligible is not None and (
        eligible.shape != corpus.shape[:1] or eligible.dtype != torch.bool
    ):
        raise ValueError(
            f"expected eligible of shape ({corpus.shape[0]},) and dtype torch.bool, "
            f"got {tuple(eligible.shape)} and {eligible.dtype}"
        )
    return torch.int32 if queries.dtype == torch.int8 else torch.float32


def candidates(queries: Tensor, corpus: Tensor, query_index: Tensor, corpus_index: Tensor) -> None:
    """Check the arguments of the rescoring of candidate pairs."""
    if queries.dim() != 2 or corpus.dim() != 2 or queries.shape[1] != corpus.shape[1]:
        raise ValueError(
            "expected queries of shape (n, d) and corpus of shape (m, d), "
            f"got {tuple(queries.shape)} and {tuple(corpus.shape)}"
        )
    if queries.dtype != corpus.dtype or queries.dtype not in COMPUTED:
        raise TypeError(
            "expected queries and corpus of one floating dtype, "
            f"got {queries.dtype} and {corpus.dtype}"
        )
    pairs(query_index, corpus_index)


def bound_terms(
    n: int, blocks: int, query_terms: Tensor, block_terms: Tensor, thresholds: Tensor | None = None
) -> None:
    """Check what the bounds of n queries against so many blocks are made of."""
    for name, terms, shape in (
        ("query_terms", query_terms, (4, n)),
        ("block_terms", block_terms, (3, blocks)),
        ("thresholds", thresholds, (n,)),
    ):
        if terms is not None and (tuple(terms.shape) != shape or terms.dtype != torch.float32):
            raise ValueError(
                f"expected {name} of shape {shape} and dtype torch.float32, "
                f"got {tuple(terms.shape)} and {terms.dtype}"
            )


def block_maxima(maxima: Tensor) -> None:
    """Check what the block-maximum screen gives."""
    if maxima.dim() != 2 or maxima.dtype not in (torch.int32, torch.float32):
        raise ValueError(
            "expected maxima of shape (n, blocks) and dtype torch.int32 or torch.float32, "
            f"got {tuple(maxima.shape)} and {maxima.dtype}"
        )


def block_thresholds(
    maxima: Tensor, query_terms: Tensor, block_terms: Tensor, k: int, groups: int
) -> None:
    """Check the arguments of the thresholds of a screen."""
    block_maxima(maxima)
    bound_terms(maxima.shape[0], maxima.shape[1], query_terms, block_terms)
    if not 1 <= k <= groups:
        raise ValueError(f"expected 1 <= k <= groups, got k = {k} and groups = {groups}")


def block_candidates(
    maxima: Tensor, query_terms: Tensor, block_terms: Tensor, thresholds: Tensor, capacity: int
) -> None:
    """Check the arguments of the list of candidate blocks."""
    block_maxima(maxima)
    bound_terms(maxima.shape[0], maxima.shape[1], query_terms, block_terms, thresholds)
    if capacity < 1:
        raise ValueError(f"expected a capacity of at least 1, got {capacity}")


def recheck(
    queries: Tensor, corpus: Tensor, query_terms: Tensor, block_terms: Tensor, thresholds: Tensor,
    query_index: Tensor, block_index: Tensor, block: int, eligible: Tensor | None,
) -> None:  # fmt: skip
    """Check the arguments of the row-by-row check of candidate blocks."""
    screen(queries, corpus, block, eligible)
    blocks = (corpus.shape[0] + block - 1) // block
    bound_terms(queries.shape[0], blocks, query_terms, block_terms, thresholds)
    pairs(query_index, block_index)


def pairs(query_index: Tensor, other_index: Tensor) -> None:
    """Check the two lists of a list of pairs."""
    if query_index.dim() != 1 or query_index.shape != other_index.shape:
        raise ValueError(
            "expected two lists of indices of one shape (p,), "
            f"got {tuple(query_index.shape)} and {tuple(other_index.shape)}"
        )
    if query_index.dtype != torch.int64 or other_index.dtype != torch.int64:
        raise TypeError(
            f"expected indices of torch.int64, got {query_index.dtype} and {other_index.dtype}"
        )


# Of the diagnosis, which takes arrays as well as tensors.


def as_tensor(name: str, value: Any) -> Tensor:
    """Return ``value`` as a dense real tensor, without copying tensors and arrays."""
    if not isinstance(value, Tensor):
        try:
            value = _from_array(np.asarray(value))
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"expected {name} to be a tensor or an array of numbers, got {type(value).__name__}"
            ) from error
    if value.layout != torch.strided:
        raise TypeError(
            f"expected {name} to be a dense tensor, got layout {value.layout}; "
            "call .to_dense() first"
        )
    if value.is_complex():
        raise TypeError(f"expected {name} of real numbers, got {value.dtype}")
    if value.is_meta:
        raise TypeError(f"expected {name} to hold values, got a tensor on the meta device")
    tensor: Tensor = value
    return tensor


def _from_array(array: np.ndarray[Any, Any]) -> Tensor:
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    if any(stride < 0 for stride in native.strides):  # torch has no negative strides
        native = native.copy()
    with warnings.catch_warnings():
        # torch warns of read-only memory; nothing here writes to its inputs.
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(native)


def comparison(a: Tensor, b: Tensor, dim: int) -> tuple[int, ...]:
    """Return the broadcast shape of a comparison along ``dim``."""
    if a.device != b.device:
        raise ValueError(f"expected both tensors on one device, got {a.device} and {b.device}")
    try:
        # numpy's: torch's loads sympy at its first call, half a second of somebody's training.
        shape = np.broadcast_shapes(tuple(a.shape), tuple(b.shape))
    except ValueError as error:
        raise ValueError(
            f"expected b to broadcast with a of shape {tuple(a.shape)}, got {tuple(b.shape)}"
        ) from error
    axis(dim, len(shape))
    if 0 in shape:
        raise ValueError(f"expected at least one element to compare, got shape {tuple(shape)}")
    return tuple(shape)


def axis(dim: int, ndim: int) -> None:
    """Check that ``dim`` names an axis, as torch counts them (0-d tensors have one)."""
    bound = max(ndim, 1)
    if not -bound <= dim < bound:
        raise IndexError(f"expected dim in [{-bound}, {bound - 1}], got {dim}")


def embeddings(shape: tuple[int, ...], dtype: object) -> None:
    """Check that a set of embeddings is a matrix of at least two rows."""
    if len(shape) != 2:
        raise ValueError(
            f"expected embeddings of shape (n, d), got {tuple(shape)}; "
            "flatten the leading axes with x.flatten(0, -2)"
        )
    if shape[0] < 2 or shape[1] < 1:
        raise ValueError(
            f"expected embeddings of shape (n, d) with n >= 2 and d >= 1, got {tuple(shape)}"
        )
    if "complex" in str(dtype) or str(dtype).startswith(("object", "<U", "str")):
        raise TypeError(f"expected embeddings of real numbers, got {dtype}")


def class_labels(labels: Any, n: int) -> tuple[np.ndarray[Any, Any], tuple[str, ...]]:
    """Return ``labels`` as n integers counted from 0, and the name of each."""
    if isinstance(labels, Tensor):
        labels = labels.detach().cpu().numpy()
    values = np.asarray(labels)
    if values.shape != (n,):
        raise ValueError(f"expected labels of shape ({n},), got {values.shape}")
    names, codes = np.unique(values, return_inverse=True)
    return codes.reshape(n), tuple(str(name) for name in names)


def whole_number(name: str, value: int, least: int = 1) -> None:
    """Check that ``value`` is a whole number of at least ``least``."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"expected {name} to be an int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"expected {name} >= {least}, got {value}")


# Of the retrieval.

SCREENS = ("auto", "int8", "bfloat16", "float32")


def embedding_rows(name: str, value: Any, device: str = "cpu") -> Tensor:
    """Return rows (n, d) of a floating dtype, sharing memory with what was given.

    Args:
        name: of the argument.
        value: a tensor or an array.
        device: the kind of device where it must be.
    """
    rows = as_tensor(name, value).detach()
    if rows.dim() != 2:
        fix = "; pass one row as x[None]" if rows.dim() == 1 else ""
        raise ValueError(f"expected {name} of shape (n, d), got {tuple(rows.shape)}{fix}")
    if rows.dtype not in COMPUTED:
        raise TypeError(
            f"expected {name} of float16, bfloat16, float32 or float64, got {rows.dtype}; "
            "convert it with .float() or .astype(numpy.float32)"
        )
    if rows.shape[1] == 0:
        raise ValueError(f"expected {name} of shape (n, d) with d >= 1, got {tuple(rows.shape)}")
    if rows.device.type != device:
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


def number_of_neighbours(k: Any, n: int | None) -> None:
    """Refuse a k that is no whole number from 1 to n."""
    whole_number("k", k)
    if n is not None and k > n:
        raise ValueError(f"expected k <= n, got k = {k} and a corpus of n = {n} rows")


def device_search(screen: Any, checkpoint: Any, d: int) -> None:
    """Refuse what a search on a GPU does not offer."""
    if screen not in ("auto", "int8"):
        raise ValueError(f"expected screen to be 'auto' or 'int8' on a GPU, got {screen!r}")
    if checkpoint is not None:
        raise ValueError("expected no checkpoint on a GPU, where a search is one step")
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
            f"got {store!r}; int8 codes are kept beside the rows in any case"
        )
    dtype: torch.dtype = store
    return dtype


def index_device(device: Any) -> None:
    """Refuse a device that an index cannot be on."""
    if device is not None and torch.device(device).type != "cpu":
        raise ValueError(f"expected device to be None or 'cpu', got {device!r}")


def same_ids(given: str, kept: str) -> None:
    """Refuse ids of another kind than an index has."""
    if given != kept:
        fix = "; build the index with ids to give your own" if kept == "positions" else ""
        raise TypeError(f"expected ids to be {kept}, as in this index, got {given}{fix}")


def row_ids(name: str, ids: Any, n: int | None = None) -> np.ndarray[Any, Any]:
    """Return ids as a 1-D array of int64, or of str objects."""
    if isinstance(ids, (set, frozenset, dict)) or np.isscalar(ids):
        raise TypeError(f"expected {name} to be a sequence, got {type(ids).__name__}")
    if isinstance(ids, Tensor):
        ids = ids.detach().cpu().numpy()
    values = np.asarray(ids) if hasattr(ids, "dtype") else _listed(ids)
    if values.ndim != 1 or (n is not None and len(values) != n):
        raise ValueError(
            f"expected {name} of shape ({'m' if n is None else n},), got {values.shape}"
        )
    if values.dtype.kind in "iu":
        if values.dtype.kind == "u" and len(values) and values.max() > np.iinfo(np.int64).max:
            raise ValueError(f"expected {name} below 2**63, got {values.max()}")
        return values.astype(np.int64)
    texts = np.empty(len(values), dtype=object)
    texts[:] = values.tolist()
    if len(values) and not all(isinstance(text, str) for text in texts):
        kinds = sorted({type(text).__name__ for text in texts})
        raise TypeError(f"expected {name} to be whole numbers or str, got {', '.join(kinds)}")
    return texts


def _listed(ids: Any) -> np.ndarray[Any, Any]:
    """An array of the items of a sequence, which numpy would turn into text if one is."""
    items = list(ids)
    if all(isinstance(item, (int, np.integer)) and not isinstance(item, bool) for item in items):
        return np.array(items, dtype=np.int64)
    values = np.empty(len(items), dtype=object)
    values[:] = items
    return values


def new_ids(ids: np.ndarray[Any, Any], taken: np.ndarray[Any, Any]) -> None:
    """Refuse an id that stands for no row, or for another."""
    if ids.dtype != object and bool((ids == -1).any()):
        raise ValueError("expected ids other than -1, which stands for no row in a result")
    if bool(taken.any()):
        again = ids[taken].tolist()
        raise ValueError(
            f"expected ids that are not taken, got {len(again)} that are, "
            f"{again[0]!r} for instance; remove them first"
        )


def known_ids(ids: np.ndarray[Any, Any], found: np.ndarray[Any, Any]) -> None:
    """Refuse an id that no row has."""
    if not bool(found.all()):
        strange = ids[~found].tolist()
        raise KeyError(
            f"expected ids that are in the index, got {len(strange)} that are not, "
            f"{strange[0]!r} for instance; nothing was removed"
        )


def per_query(given: int, queries: int) -> None:
    """Refuse lists of excluded ids that are not one for each query."""
    if given != queries:
        raise ValueError(
            f"expected exclude to hold one list of ids for each of {queries} queries, or ids "
            f"alone for all of them, got {given} lists"
        )


# Of the joins.


def threshold(value: Any) -> float:
    """Return a threshold as a float, refusing what is no cosine."""
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
        return None if keep == "first" else torch.arange(n - 1, -1, -1)
    priorities = as_tensor("keep", keep).detach().cpu()
    if priorities.shape != (n,):
        raise ValueError(
            f"expected one priority a row, keep of shape ({n},), got {tuple(priorities.shape)}"
        )
    if priorities.is_floating_point() and bool(priorities.isnan().any()):
        raise ValueError("expected priorities that can be compared, and keep holds NaN")
    return torch.sort(priorities, descending=True, stable=True).indices
