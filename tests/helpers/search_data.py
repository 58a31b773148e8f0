"""Corpora that are hard to screen, and the brute force that says what a search must return."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from cossim_fast._score.exact import score_pairs, widen


def _gaussian(n: int, d: int, draw: torch.Generator) -> Tensor:
    return torch.randn(n, d, generator=draw)


def _clustered(n: int, d: int, draw: torch.Generator) -> Tensor:
    """Sorted by cluster, as data often come."""
    centres = torch.randn(1 + n // 100, d, generator=draw)
    which = torch.arange(n) // 100
    return centres[which] + 0.4 * torch.randn(n, d, generator=draw)


def _spiky(n: int, d: int, draw: torch.Generator) -> Tensor:
    x = torch.randn(n, d, generator=draw)
    x[:, :: max(d // 3, 1)] *= 50
    return x


def _cone(n: int, d: int, draw: torch.Generator) -> Tensor:
    """All cosines above 0.99."""
    centre = torch.nn.functional.normalize(torch.randn(1, d, generator=draw))
    return centre + 0.05 / d**0.5 * torch.randn(n, d, generator=draw)


def _duplicates(n: int, d: int, draw: torch.Generator) -> Tensor:
    some = torch.randn(max(n // 400, 1), d, generator=draw)
    return some[torch.randint(0, len(some), (n,), generator=draw)]


def _near(n: int, d: int, draw: torch.Generator) -> Tensor:
    """Within 1e-8 of each other: float32 cannot tell the scores apart."""
    x = torch.randn(1, d, generator=draw, dtype=torch.float64)
    return x / x.norm() + 1e-8 / d**0.5 * torch.randn(n, d, generator=draw, dtype=torch.float64)


def _opposite(n: int, d: int, draw: torch.Generator) -> Tensor:
    """Every score with the queries below is negative, where a padded row would score 0."""
    return -1 - torch.rand(n, d, generator=draw)


def _holes(n: int, d: int, draw: torch.Generator) -> Tensor:
    """Rows of zeros, of NaN and of infinities among the others."""
    x = torch.randn(n, d, generator=draw)
    x[::7] = 0
    x[3::11, -1] = torch.nan
    x[5::13, 0] = torch.inf
    return x


def _magnitudes(n: int, d: int, draw: torch.Generator) -> Tensor:
    """Norms from 1e-30 to 1e30."""
    size = torch.linspace(-30, 30, n).double()
    return (torch.randn(n, d, generator=draw).double() * 10 ** size[:, None]).float()


CORPORA: dict[str, Callable[[int, int, torch.Generator], Tensor]] = {
    "gaussian": _gaussian,
    "clustered": _clustered,
    "spiky": _spiky,
    "cone": _cone,
    "duplicates": _duplicates,
    "near": _near,
    "opposite": _opposite,
    "holes": _holes,
    "magnitudes": _magnitudes,
}


def make(kind: str, n: int, d: int, queries: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Queries and a corpus; half of the queries are rows of it, a little moved."""
    draw = torch.Generator().manual_seed(hash((kind == "near", n, d)) % 2**31)
    corpus = CORPORA[kind](n, d, draw)
    asked = torch.randn(queries, d, generator=draw).abs().to(corpus.dtype)
    some = torch.randint(0, n, (queries // 2,), generator=draw)
    asked[: queries // 2] = corpus[some].nan_to_num(0.0, 0.0, 0.0) * 1.01
    if kind == "opposite":
        asked = asked.abs() + 0.1
    return asked.to(dtype), corpus.to(dtype)


def brute_force(queries: Tensor, corpus: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best rows by the score's definition: scores (q, k) in float64, positions (q, k)."""
    q, n = len(queries), len(corpus)
    pairs = torch.cartesian_prod(torch.arange(q), torch.arange(n)).view(-1, 2)
    scores = score_pairs(widen(queries), corpus, pairs[:, 0], pairs[:, 1]).view(q, n)
    best = torch.full((q, k), torch.nan, dtype=torch.float64)
    rows = torch.full((q, k), -1)
    for i in range(q):
        order = torch.from_numpy(np.lexsort((np.arange(n), -scores[i].numpy())))
        order = order[~scores[i][order].isnan()][:k]
        best[i, : len(order)], rows[i, : len(order)] = scores[i][order], order
    return best, rows
