"""Calls with whatever a caller might pass: the right answer, or a TypeError or ValueError."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

import cossim_fast
from cossim_fast import (
    CosineIndex,
    communities,
    deduplicate,
    iter_pairs_above,
    pairs_above,
    pairwise_cosine,
    topk,
)
from hostile import truth
from hostile.harness import Attack
from hostile.tries import Tally, WrongError

CALLS = 600


def _numbers(rng: np.random.Generator, n: int, d: int) -> Any:
    x = truth.rows(rng, n, d) if n else np.empty((0, d), np.float32)
    if n and d:
        match rng.integers(8):
            case 0:
                x[rng.integers(n)] = 0
            case 1:
                x[rng.integers(n)] = rng.choice([np.nan, np.inf, -np.inf])
            case 2:
                x *= np.float32(rng.choice([1e-30, 1e30, 1e-42]))
            case 3:
                x[rng.integers(n)] *= 1e25
    return x


# What may stand in the place of rows (n, d), made of a float32 tensor.
STRANGE: tuple[Callable[[torch.Tensor], Any], ...] = (
    lambda x: x.to(torch.int64),
    lambda x: x.to(torch.complex64),
    lambda x: x.to_sparse(),
    lambda x: x.to_sparse_csr(),
    lambda x: x.to("meta"),
    lambda x: torch.quantize_per_tensor(x.nan_to_num(0, 0, 0), 0.1, 0, torch.qint8),
    lambda x: x.to(torch.float8_e4m3fn),
    lambda x: torch.nested.nested_tensor([x[:1], x[:2]]) if len(x) > 2 else x,
    lambda x: np.ma.masked_array(x.numpy(), x.numpy() > 1),
    lambda x: x.numpy().astype(">f4"),
    lambda x: x.numpy().astype(object),
    lambda x: x.numpy().tolist(),
    lambda x: None,
    lambda x: "rows",
    lambda x: 3.5,
    lambda x: x[None],
    lambda x: x[:, 0] if x.shape[1] else x,
    lambda x: x.T.contiguous().T,
    lambda x: x.expand(3, *x.shape)[1],
    lambda x: x.requires_grad_(),
    lambda x: x.half(),
    lambda x: x.bfloat16(),
    lambda x: x.double().numpy()[::-1],
    lambda x: x.flip(0).numpy(),
    lambda x: x.numpy().astype(np.longdouble),
)


def strange(rng: np.random.Generator, d: int) -> Any:
    """Something in the place of rows, in one of three cases plain rows."""
    n = int(rng.choice([0, 1, 2, 3, 17, 65, 200]))
    if rng.integers(6) == 0:
        d = int(rng.choice([0, 1, 5, 300]))
    x = torch.from_numpy(_numbers(rng, n, d))
    if rng.integers(3) == 0:
        return x if rng.integers(2) else x.numpy()
    return STRANGE[int(rng.integers(len(STRANGE)))](x)


def _plain(x: Any) -> Any:
    """What a call should have seen, (n, d) in float64; None if nobody could say."""
    if isinstance(x, torch.Tensor):
        if x.layout != torch.strided or x.is_meta or x.is_quantized or x.is_nested:
            return None
        x = x.detach().double().numpy() if x.is_floating_point() else None
    if isinstance(x, np.ma.MaskedArray) and np.ma.is_masked(x):
        return None
    if not isinstance(x, np.ndarray) or x.dtype.kind != "f" or x.ndim != 2:
        return None
    return np.asarray(x, np.float64)


def _finite(x: Any) -> Any:
    return np.isfinite(x).all(1)


def _topk(q: Any, x: Any, k: Any, found: Any) -> None:
    scores, rows = (np.asarray(each, np.float64) for each in found)
    good_rows, good = _finite(x), _finite(q)
    true = truth.cosines(np.where(good[:, None], q, 0), np.where(good_rows[:, None], x, 0))
    true[:, ~good_rows] = -np.inf
    enough = min(int(k), int(good_rows.sum()))
    if not np.isnan(scores[~good]).all() or not np.isnan(scores[:, enough:]).all():
        raise WrongError("scores of rows that are not finite")
    if not (rows[~good] == -1).all() or not (rows[:, enough:] == -1).all():
        raise WrongError("rows that are not finite")
    some = rows[good][:, :enough].astype(np.int64)
    if len(some) and enough:
        truth.check_ranked(scores[good][:, :enough], some, true[good], enough)


def _pairs(x: Any, y: Any, threshold: float, found: Any) -> None:
    good = _finite(x), _finite(x if y is None else y)
    other = x if y is None else y
    true = truth.cosines(np.where(good[0][:, None], x, 0), np.where(good[1][:, None], other, 0))
    true[~good[0]] = -np.inf
    true[:, ~good[1]] = -np.inf
    if y is None:
        true[np.tril_indices(len(true))] = -np.inf
    truth.check_reached(*found, true, threshold)


def _matrix(x: Any, y: Any, found: torch.Tensor) -> None:
    good = _finite(x)[:, None] & _finite(y)[None]
    # torch leaves tiny rows to eps: looked at by others.
    length = [np.sqrt((each**2).sum(1)) for each in (x, y)]
    good &= (length[0] > 1e-6)[:, None] & (length[1] > 1e-6)[None]
    dtype = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2}.get(found.dtype, 4e-6)
    off = np.abs(found.detach().double().numpy() - truth.cosines(
        np.where(np.isfinite(x), x, 0), np.where(np.isfinite(y), y, 0)))  # fmt: skip
    if (off[good] > dtype).any():
        raise WrongError(f"a cosine is off by {off[good].max():.2g}")


def _similarity(x: Any, y: Any) -> Any:
    """Torch's function, whose errors are ours too."""
    try:
        return cossim_fast.cosine_similarity(x, y)
    except (TypeError, ValueError):
        raise
    except Exception as error:
        try:
            functional.cosine_similarity(x, y)
        except Exception as theirs:
            raise ValueError("as torch") from theirs
        raise WrongError(f"torch answers, and here is {type(error).__name__}: {error}") from error


def _calls(
    q: Any, x: Any, k: Any, threshold: Any
) -> dict[str, tuple[Callable[[], Any], Callable[[Any, Any, Any], None]]]:
    """Calls by name, and what looks at what each returns for (n, d) rows."""
    return {
        "topk": (lambda: topk(q, x, k), lambda a, b, found: _topk(a, b, k, found)),
        "search": (
            lambda: CosineIndex(x).search(q, k), lambda a, b, found: _topk(a, b, k, found)
        ),
        "pairs_above": (
            lambda: pairs_above(q, x, threshold),
            lambda a, b, found: _pairs(a, b, threshold, found),
        ),
        "pairs_above of one": (
            lambda: pairs_above(x, threshold=threshold),
            lambda a, b, found: _pairs(b, None, threshold, found),
        ),
        "iter_pairs_above": (
            lambda: list(iter_pairs_above(x, threshold=threshold)), lambda a, b, found: None
        ),
        "pairwise_cosine": (lambda: pairwise_cosine(q, x), _matrix),
        "cosine_similarity": (lambda: _similarity(q, x), lambda a, b, found: None),
        "deduplicate": (lambda: deduplicate(x, threshold), lambda a, b, found: None),
        "communities": (lambda: communities(x, threshold, 2), lambda a, b, found: None),
    }  # fmt: skip


def functions(rng: np.random.Generator, folder: Path, tally: Tally) -> None:
    """Public functions, with a hostile argument in most calls."""
    for _ in range(CALLS):
        d = int(rng.choice([1, 8, 33]))
        x, q = strange(rng, d), strange(rng, d)
        k = rng.choice([1, 2, 5, 0, -1, 10**9, 2.5, True]).item()
        threshold = rng.choice([0.9, 0.5, -1, 1, 1.0000001, np.nan, 7]).item()
        calls = _calls(q, x, k, threshold)
        name = str(rng.choice(list(calls)))
        call, check = calls[name]
        kinds = " and ".join(_kind(each) for each in (q, x))
        with tally.one(f"{name} of {kinds}") as how:
            try:
                found = call()
            except (TypeError, ValueError):
                how.append("refused")
                continue
            a, b = _plain(q), _plain(x)
            if name in ("pairs_above of one", "iter_pairs_above", "deduplicate", "communities"):
                a = b
            if a is None or b is None:
                if _must_be_refused(q) or _must_be_refused(x):
                    raise WrongError("answered for what has no rows")
                continue
            check(a, b, found)


def _kind(x: Any) -> str:
    if isinstance(x, torch.Tensor):
        how = "nested" if x.is_nested else str(x.layout).removeprefix("torch.")
        return f"{str(x.dtype).removeprefix('torch.')} {how} {x.device.type} of {x.ndim} axes"
    kind = type(x).__name__
    return f"{x.dtype} {kind} of {x.ndim} axes" if isinstance(x, np.ndarray) else kind


def _must_be_refused(x: Any) -> bool:
    return isinstance(x, np.ma.MaskedArray) and bool(np.ma.is_masked(x))


def ids(rng: np.random.Generator, folder: Path, tally: Tally) -> None:
    """Ids of every kind into an index: none is lost, none is there twice."""
    for _ in range(12):
        strings = bool(rng.integers(2))
        names: Any = [f"row {i}" for i in range(20)] if strings else list(range(20))
        x = truth.rows(rng, 20, 8)
        index = CosineIndex(x, names)
        there = list(names)
        for _ in range(12):
            some = _some_ids(rng, there)
            adding = bool(rng.integers(2))
            count = len(some) if hasattr(some, "__len__") and not isinstance(some, str) else 3
            rows = truth.rows(rng, count, 8) if count else np.zeros((0, 8), np.float32)
            with tally.one("add" if adding else "remove") as how:
                try:
                    if adding:
                        index.add(rows, some)
                    else:
                        index.remove(some)
                except (TypeError, ValueError, KeyError, OverflowError):
                    how.append("refused")
                else:
                    given = [each.item() if isinstance(each, np.generic | torch.Tensor) else each
                             for each in (some if some is not None else ())]  # fmt: skip
                    if adding:
                        there = there + given
                    else:
                        there = [each for each in there if each not in set(given)]
                held = index.ids.tolist()
                if held != there:
                    raise WrongError(f"ids {held[-3:]}, expected {there[-3:]}, after {some!r:.60}")
                if held:
                    index.search(x[:2], 1)


def _some_ids(rng: np.random.Generator, there: list[Any]) -> Any:
    new = [f"new {i}" for i in rng.integers(10**6, size=3)]
    numbers = rng.choice(10**6, 3, replace=False) + 100
    old = rng.choice(len(there), min(len(there), 2), replace=False).tolist()
    options = [
        new, numbers, numbers.tolist(), torch.from_numpy(numbers), [there[i] for i in old],
        [there[i] for i in old] * 2, [*numbers[:2].tolist(), "x"], [1.5, 2.5, 3.5], [None] * 3,
        "abc", [], np.array([], np.int64), [2**63, 2**64, 1], [-1, -2, -3], [True, False, True],
        numbers.astype(np.uint64), numbers.astype(np.float64), [["a"], ["b"], ["c"]], b"abc",
        np.array(["p", "q", "r"]), np.array([b"p", b"q", b"r"]), ["\ud800", "\0", ""], 7, None,
    ]  # fmt: skip
    return options[int(rng.integers(len(options)))]


BOTH = ("answered", "refused")
ATTACKS = (
    Attack("fuzz-functions", functions, (6, 1), BOTH, limit=90),
    Attack("fuzz-ids", ids, (4, 1), BOTH),
)
