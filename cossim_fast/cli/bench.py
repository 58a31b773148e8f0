"""`cossim bench`: times of the functions and of plain torch, on this machine and these rows."""

import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

import cossim_fast
from cossim_fast._escaped import escaped
from cossim_fast.cli import inputs, processor
from cossim_fast.cli.terminal import console, one_line_errors

EXAMPLE = "Example: cossim bench embeddings.npy --rounds 9"


class Case(NamedTuple):
    """A function, and what it replaces."""

    name: str
    ours: Callable[[], Any]
    theirs: Callable[[], Any]
    # The difference of the two answers.
    difference: Callable[[Any, Any], float]


def bench(
    embeddings: Annotated[
        Path | None,
        typer.Argument(help="A file of rows; random ones by default.", show_default=False),
    ] = None,
    rows: Annotated[int, typer.Option(min=2, help="Most rows to use.")] = 10_000,
    width: Annotated[int, typer.Option(min=1, help="Of random rows.")] = 384,
    rounds: Annotated[int, typer.Option(min=1, help="How often to time each function.")] = 7,
    key: inputs.Key = None,
    format: inputs.Format = None,
) -> None:
    """Compare the times of the functions with those of plain torch, on float32 rows.

    The two take turns. Shows their median times; the median, lowest and highest speedup of a round;
    and the largest difference of the results (error).
    """
    with one_line_errors():
        if embeddings is None:
            draw = torch.Generator().manual_seed(0)
            x = torch.randn(rows, width, generator=draw, dtype=torch.float32, device="cpu")
        else:
            given = inputs.embeddings(embeddings, key=key, format=format)[:rows]
            x = (given if isinstance(given, Tensor) else torch.from_numpy(given.copy())).float()
        if x.shape[0] < 2:
            raise ValueError(f"expected 2 rows or more, got {x.shape[0]}")
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for name in ("", "ours", "torch", "speedup", "error"):
            table.add_column(name, justify="right" if name else "left", no_wrap=True)
        for case in _cases(x):
            table.add_row(*_timed(case, rounds))
    shown = console()
    shown.print(f"{x.shape[0]} rows of {x.shape[1]}, {rounds} rounds")
    shown.print(table)
    shown.print(
        f"{escaped(processor.name())}; threads {torch.get_num_threads()}; torch {torch.__version__}"
    )
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > torch.get_num_threads() + 0.5:
        shown.print(f"NOT QUIET: the load was {load:.1f}, so other processes were running")


def _cases(x: Tensor) -> Iterator[Case]:
    """Every function with what it replaces; normalising is part of both."""
    queries, k, threshold = x[: max(len(x) // 20, 1)], min(10, len(x)), 0.9
    other = x.flip(0)
    yield Case(
        f"cosine_similarity, {len(x)} rows",
        lambda: cossim_fast.cosine_similarity(x, other),
        lambda: F.cosine_similarity(x, other),
        _largest,
    )
    yield Case(
        f"pairwise_cosine, {len(queries)} by all",
        lambda: cossim_fast.pairwise_cosine(queries, x),
        lambda: F.normalize(queries) @ F.normalize(x).mT,
        _largest,
    )
    yield Case(
        f"topk, k = {k}, {len(queries)} queries",
        lambda: cossim_fast.topk(queries, x, k).scores,
        lambda: (F.normalize(queries) @ F.normalize(x).mT).topk(k).values,
        _largest,
    )
    yield Case(
        f"pairs_above {threshold}, all rows",
        lambda: len(cossim_fast.pairs_above(x, threshold=threshold).i),
        lambda: _pairs(x, threshold),
        lambda ours, theirs: abs(ours - theirs),
    )


def _pairs(x: Tensor, threshold: float, step: int = 1024) -> int:
    """Count pairs in plain torch: half of the product, a block of rows at a time."""
    unit, count = F.normalize(x), 0
    for start in range(0, len(x), step):
        block = unit[start : start + step] @ unit[start:].mT
        count += len((block >= threshold).triu_(1).nonzero())
    return count


def _largest(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().amax())


def _timed(case: Case, rounds: int) -> list[str]:
    difference = case.difference(case.ours(), case.theirs())
    ours: list[float] = []
    theirs: list[float] = []
    for number in range(rounds):
        turns = [(ours, case.ours), (theirs, case.theirs)]
        for times, call in turns if number % 2 else turns[::-1]:
            begin = time.perf_counter()
            call()
            times.append(time.perf_counter() - begin)
    ratios = sorted(b / a for a, b in zip(ours, theirs, strict=True))
    return [
        case.name,
        *(f"{statistics.median(times) * 1e3:.3g} ms" for times in (ours, theirs)),
        f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})",
        f"{difference:.1g}" if isinstance(difference, float) else f"{difference} pairs",
    ]
