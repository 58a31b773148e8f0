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


def check_pair(a: Tensor, b: Tensor, dim: int) -> tuple[int, ...]:
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
    check_dim(dim, len(shape))
    if 0 in shape:
        raise ValueError(f"expected at least one element to compare, got shape {tuple(shape)}")
    return tuple(shape)


def check_dim(dim: int, ndim: int) -> None:
    """Check that ``dim`` names an axis, as torch counts them (0-d tensors have one)."""
    bound = max(ndim, 1)
    if not -bound <= dim < bound:
        raise IndexError(f"expected dim in [{-bound}, {bound - 1}], got {dim}")


def check_embeddings(shape: tuple[int, ...], dtype: object) -> None:
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


def check_labels(labels: Any, n: int) -> np.ndarray[Any, Any]:
    """Return ``labels`` as n integers counted from 0."""
    if isinstance(labels, Tensor):
        labels = labels.detach().cpu().numpy()
    values = np.asarray(labels)
    if values.shape != (n,):
        raise ValueError(f"expected labels of shape ({n},), got {values.shape}")
    codes: np.ndarray[Any, Any] = np.unique(values, return_inverse=True)[1]
    return codes.reshape(n)


def check_positive(name: str, value: int, least: int = 1) -> None:
    """Check that ``value`` is a whole number of at least ``least``."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"expected {name} to be an int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"expected {name} >= {least}, got {value}")
