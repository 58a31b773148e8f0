"""What can be measured about a pair of tensors, row by row in float64."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cossim_fast.diagnose import broadcasting, notes
from cossim_fast.diagnose.rows import power_of_two, unit
from cossim_fast.functional import cosine_similarity

EPS = 1e-8
_BLOCK = 2**20
_HEAD = 4
_COMPARED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# A rounding moves a row by about 0.4 unit roundoffs of its length (root mean square), and a
# product, a quotient, a sum and a change of dtype together by 0.8.
_ROUNDINGS = 2


_SHIFTED = (
    "a and b are parts of one memory that overlap, but at no index do they read the same element: "
    "no row is compared with itself, as with adjacent frames of one tensor. What is written "
    "to one still appears in the other."
)


@dataclass(frozen=True)
class SideFacts:
    """One of the two tensors."""

    shape: tuple[int, ...]
    dtype: str
    device: str
    norm_min: float
    norm_max: float
    head: tuple[float, ...]
    non_finite_rows: int
    zero_rows: int
    saturated: int

    def norm_text(self) -> str:
        """Format the range of the norms."""
        low, high = notes.number(self.norm_min), notes.number(self.norm_max)
        return low if low == high else f"{low} to {high}"

    def head_text(self) -> str:
        """Format the first elements."""
        return ", ".join(notes.number(value) for value in self.head)


@dataclass(frozen=True)
class PairFacts:
    """What holds of a pair; cosines are (lowest, mean, highest) over the finite rows."""

    a: SideFacts
    b: SideFacts
    rows: int
    features: int
    dim: int
    same_object: bool
    same_storage: bool
    overlapping: bool
    stretched: str  # what broadcasting did that nobody can have meant; empty where nothing
    non_finite_rows: int  # in a or in b
    zero_rows: int  # of those left, in a or in b
    same_elements: int  # indices at which both read one element
    same_rows: int  # rows that are one piece of memory
    equal_rows: int
    parallel_rows: int
    positive_rows: int
    factor: tuple[float, float]
    ours: tuple[float, float, float]
    torch: tuple[float, float, float]
    exact: tuple[float, float, float]
    route_difference: float
    route_failures: int
    cosine_less_feature_mean: float
    cosine_less_batch_mean: float
    rounded_rows: int
    flat_rows: int
    resolution: float
    remarks: tuple[str, ...] = ()

    @property
    def good_rows(self) -> int:
        """How many rows have a cosine."""
        return self.rows - self.non_finite_rows - self.zero_rows

    def to_dict(self) -> dict[str, Any]:
        """Return plain Python values."""
        return dataclasses.asdict(self)

    def factor_text(self) -> str:
        """Format the factor between the rows, where there is one."""
        if self.parallel_rows == 0:
            return ""
        low, high = (notes.number(value) for value in self.factor)
        return f", b = {low} a" if low == high else f", b = {low} a to {high} a"

    def route_text(self, route: tuple[float, float, float]) -> str:
        """Format a cosine: one figure, or the mean with its range."""
        low, mean, high = (notes.cosine(value) for value in route)
        return mean if low == high else f"{mean}, from {low} to {high}"


def measure(
    a: Tensor,
    b: Tensor,
    shape: tuple[int, ...],
    dim: int,
    *,
    same_object: bool,
    same_storage: bool,
    overlapping: bool,
    same_elements: int,
    same_rows: int,
) -> PairFacts:
    """Measure a and b of a common broadcast ``shape`` along ``dim``."""
    x, y = _as_rows(a, shape, dim), _as_rows(b, shape, dim)
    n, d = x.shape
    coarser = max((_format(a.dtype), _format(b.dtype)), key=lambda info: info.eps)
    tables = [_measure_block(left, right, coarser) for left, right in _blocks(x, y)]
    rows = {key: torch.cat([table[key] for table in tables]) for key in tables[0]}
    good = rows["finite"] & rows["norm_a"].ge(EPS) & rows["norm_b"].ge(EPS)

    result = torch.result_type(a, b)
    routed = result if result in _COMPARED else torch.float32
    with torch.no_grad():
        ours = cosine_similarity(x.to(routed), y.to(routed), dim=1).cpu().double()
        theirs = F.cosine_similarity(x.to(routed), y.to(routed), dim=1).cpu().double()
    exact = rows["cosine"]
    # A float64 cosine of independent roundings is off by about sqrt(d) of them.
    slack = torch.finfo(routed).eps * max(4.0, d**0.5)
    gap = torch.maximum((ours - exact).abs(), (theirs - exact).abs())
    failed = good & ~(gap <= slack)

    parallel = rows["parallel"] & good
    factors = rows["factor"][parallel]
    shown = exact.to(routed).double()
    remarks = _remarks(tuple(shape), dim, result, routed)
    if overlapping and not same_elements:
        remarks = (_SHIFTED, *remarks)
    stretched = broadcasting.mistake(tuple(a.shape), tuple(b.shape), shape, dim)
    if not stretched and (remark := broadcasting.remark(tuple(a.shape), tuple(b.shape), shape)):
        remarks = (*remarks, remark)
    return PairFacts(
        a=_side(a, rows["norm_a"], rows["finite_a"]),
        b=_side(b, rows["norm_b"], rows["finite_b"]),
        rows=n,
        features=d,
        dim=dim,
        same_object=same_object,
        same_storage=same_storage,
        overlapping=overlapping,
        stretched=stretched,
        non_finite_rows=int((~rows["finite"]).sum()),
        zero_rows=int((rows["finite"] & ~good).sum()),
        same_elements=same_elements,
        same_rows=same_rows,
        equal_rows=int((rows["equal"] & rows["finite"]).sum()),
        parallel_rows=int(parallel.sum()),
        positive_rows=int((factors > 0).sum()),
        factor=(_least(factors), -_least(-factors)),
        ours=_spread(ours[good]),
        torch=_spread(theirs[good]),
        exact=_spread(exact[good]),
        route_difference=float(gap[good].nan_to_num(nan=float("inf")).max()) if good.any() else 0.0,
        route_failures=int(failed.sum()),
        cosine_less_feature_mean=float(rows["pearson"][good].nanmean()) if d > 1 else float("nan"),
        cosine_less_batch_mean=_less_batch_mean(x, y, good),
        rounded_rows=int((good & ~parallel & shown.abs().eq(1)).sum()),
        flat_rows=int((rows["flat"] & good).sum()),
        resolution=torch.finfo(routed).eps / 2,
        remarks=remarks,
    )


def _as_rows(x: Tensor, shape: tuple[int, ...], dim: int) -> Tensor:
    if not shape:
        return x.reshape(1, 1)
    return x.expand(shape).movedim(dim, -1).reshape(-1, shape[dim])


def _blocks(x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    step = max(_BLOCK // x.shape[1], 1)
    for start in range(0, x.shape[0], step):
        yield x[start : start + step], y[start : start + step]


def _measure_block(x: Tensor, y: Tensor, coarser: torch.finfo) -> dict[str, Tensor]:
    roundoff, tiny = coarser.eps / 2, coarser.smallest_normal * coarser.eps
    flat = _is_flat(x) & _is_flat(y)
    x, y = x.to("cpu", torch.float64), y.to("cpu", torch.float64)
    finite_a, finite_b = x.isfinite().all(1), y.isfinite().all(1)
    equal = (x == y).all(1)
    # Powers of two, so that no square overflows and no quotient rounds.
    x, y = x.nan_to_num(0.0, 0.0, 0.0), y.nan_to_num(0.0, 0.0, 0.0)
    scale_a, scale_b = power_of_two(x), power_of_two(y)
    x, y = x / scale_a, y / scale_b
    norm_a, norm_b = _lengths(x), _lengths(y)
    dot = (x * y).sum(1)
    safe_a, safe_b = norm_a.clamp_min(1e-300), norm_b.clamp_min(1e-300)
    factor = dot / safe_a.square()
    x_less, y_less = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    residual = _lengths(y - factor[:, None] * x)
    rounding = _ROUNDINGS * roundoff * norm_b + x.shape[1] ** 0.5 * tiny / scale_b[:, 0]
    # Where an offset is so large that rounding hides the rest, "multiple" means nothing.
    constant = (x == x[:, :1]).all(1) & (y == y[:, :1]).all(1)
    length_x, length_y = _lengths(x_less), _lengths(y_less)
    parallel = (residual <= rounding) & ((2 * residual <= length_y) | constant)
    factor = factor * scale_b[:, 0] / scale_a[:, 0]
    close = parallel & ((factor - 1).abs() <= _ROUNDINGS * roundoff)
    pearson = (x_less * y_less).sum(1) / (length_x * length_y).clamp_min(1e-300)
    pearson[constant] = float("nan")
    return {
        "finite_a": finite_a,
        "finite_b": finite_b,
        "finite": finite_a & finite_b,
        "equal": equal | close,
        "flat": flat.cpu(),
        "norm_a": norm_a * scale_a[:, 0],
        "norm_b": norm_b * scale_b[:, 0],
        "cosine": (dot / (safe_a * safe_b)).clamp(-1, 1),
        "factor": factor,
        "parallel": parallel,
        "pearson": pearson,
    }


def _lengths(rows: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=1)
    return lengths


def _is_flat(x: Tensor) -> Tensor:
    """Return which rows vary by no more than two steps of their own format."""
    if not x.is_floating_point():
        return torch.zeros(len(x), dtype=torch.bool, device=x.device)
    wide = x.double()
    spread = wide.amax(1) - wide.amin(1)
    step = 2 * torch.finfo(x.dtype).eps * wide.abs().amax(1)
    return (spread > 0) & (spread <= step)


def _format(dtype: torch.dtype) -> torch.finfo:
    # Integers convert to float64 exactly, up to 2^53.
    return torch.finfo(dtype if dtype.is_floating_point else torch.float64)


def _side(x: Tensor, norms: Tensor, finite: Tensor) -> SideFacts:
    head = x.flatten()[:_HEAD].double().tolist()
    saturated = 0
    if x.is_floating_point():
        saturated = int(x.abs().eq(torch.finfo(x.dtype).max).sum())
    seen = norms[finite]
    return SideFacts(
        shape=tuple(x.shape),
        dtype=str(x.dtype).removeprefix("torch."),
        device=str(x.device),
        norm_min=_least(seen),
        norm_max=-_least(-seen),
        head=tuple(head),
        non_finite_rows=int((~finite).sum()),
        zero_rows=int((seen < EPS).sum()),
        saturated=saturated,
    )


def _less_batch_mean(x: Tensor, y: Tensor, good: Tensor) -> float:
    r"""Return the mean cosine after the mean of all 2n unit rows is taken away.

    Of 2n independent rows around their own mean, two have the expected cosine
    -1 / (2n - 1); that bias is taken out. One pair tells nothing: it gives -1 always.
    """
    n = int(good.sum())
    if n < 2:
        return float("nan")
    keep = good.to(x.device)
    total = torch.zeros(x.shape[1], dtype=torch.float64, device="cpu")
    for block in _blocks(x[keep], y[keep]):
        for side in block:
            total += unit(side)[0].sum(0)
    mean = total / (2 * n)
    cosines = []
    for left, right in _blocks(x[keep], y[keep]):
        u, v = unit(left)[0] - mean, unit(right)[0] - mean
        lengths = (_lengths(u) * _lengths(v)).clamp_min(1e-300)
        # Two rows that lie at the mean, but for rounding, have no direction from it.
        cosine = (u * v).sum(1) / lengths
        cosines.append(cosine.where(lengths > 1e-28, float("nan")))
    mean_cosine = float(torch.cat(cosines).nanmean())
    return 1 - (1 - mean_cosine) * (2 * n - 1) / (2 * n)


def _remarks(
    shape: tuple[int, ...], dim: int, result: torch.dtype, routed: torch.dtype
) -> tuple[str, ...]:
    remarks = []
    if routed != result:
        remarks.append(
            f"torch.cosine_similarity takes no {str(result).removeprefix('torch.')}; "
            "the values were converted to float32 for the routes."
        )
    wider = [axis for axis in range(len(shape)) if shape[axis] > 8 * shape[dim]]
    if wider:
        remarks.append(
            f"dim={dim} has {shape[dim]} elements and dim={wider[-1]} has {shape[wider[-1]]}: "
            "is the axis of the features the one that is compared?"
        )
    return tuple(remarks)


def _spread(values: Tensor) -> tuple[float, float, float]:
    if values.numel() == 0:
        return (float("nan"),) * 3
    return float(values.min()), float(values.mean()), float(values.max())


def _least(values: Tensor) -> float:
    return float(values.min()) if values.numel() else float("nan")
