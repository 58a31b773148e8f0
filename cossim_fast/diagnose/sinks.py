"""Where a monitor's records go: a CSV or JSONL file, a SummaryWriter, or any callable."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Record = dict[str, Any]
Sink = Callable[[Record], None]

COLUMNS = (
    "step",
    "source",
    "verdict",
    "mean_cosine",
    "distance",
    "rankme",
    "rankme_share",
    "participation_ratio",
    "leading",
    "norm",
    "constant_features",
    "rows",
    "also",
    "positive_cosine",
    "negative_cosine",
    "temperature",
    "saturated",
    "effective_negatives",
    "negatives",
)


def open_sink(log: Any) -> Sink:
    """Return what takes one record: for a path by its ending, for a writer, for a callable."""
    if isinstance(log, (str, Path)):
        path = Path(log)
        if path.suffix == ".csv":
            return lambda record: _append_csv(path, record)
        if path.suffix == ".jsonl":
            return lambda record: _append_line(path, json.dumps(_without_nan(record)))
        raise ValueError(f"expected a log ending in .csv or .jsonl, got {path.name!r}")
    if hasattr(log, "add_scalar"):
        return lambda record: _add_scalars(log, record)
    if callable(log):
        sink: Sink = log
        return sink
    raise TypeError(
        "expected log to be a path, a SummaryWriter, or a callable that takes a dict, "
        f"got {type(log).__name__}"
    )


# The file is opened for each record: a run that dies leaves whole lines, and a model that
# carries the hook can be copied and pickled.
def _append_line(path: Path, line: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def _without_nan(record: Record) -> Record:
    """Write NaN as null, since JSON has no word for it."""
    return {name: None if value != value else value for name, value in record.items()}  # noqa: PLR0124


def _append_csv(path: Path, record: Record) -> None:
    fresh = not path.exists() or path.stat().st_size == 0
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if fresh:
            writer.writeheader()
        writer.writerow(record)


def _add_scalars(writer: Any, record: Record) -> None:
    for name, value in record.items():
        if isinstance(value, (int, float)) and name != "step":
            writer.add_scalar(f"collapse/{record['source']}/{name}", value, record["step"])
