"""Damaged files of users: refused, or read as the format's own library reads them.

`.npz` holds a checksum of each array, which numpy compares, and `.pt` one that torch does not.
`.npy` and `.safetensors` hold none, and `.parquet` seldom: there a flipped bit of a number is
another number, and whoever reads the file finds that one. So what is right is what the format's
library finds in the damaged file, or what was there before.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cossim_fast import files
from hostile import truth
from hostile.flips import damaged
from hostile.harness import Attack
from hostile.tries import Tally, WrongError, command

Array = np.ndarray[Any, Any]


def _npz_reads(path: Path) -> Array:
    with np.load(path, allow_pickle=False) as held:
        return next(held[name] for name in held.files if held[name].ndim == 2)


def _tensor(held: Any) -> Array:
    found: Array = held["x"].numpy()
    return found


def _safetensors_reads(path: Path) -> Array:
    from safetensors.torch import load_file

    return next(iter(load_file(path).values())).numpy()


def _parquet_reads(path: Path) -> Array:
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    if table.num_columns == 1:
        return np.stack(table.column(0).to_numpy())
    return np.stack([column.to_numpy() for column in table.columns], 1)


def _write_parquet(path: Path, x: Array) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    lists = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), x.shape[1])
    pq.write_table(pa.table({"x": lists}), path)


def _write_safetensors(path: Path, x: Array) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.from_numpy(x)}, path)


FORMATS: dict[str, tuple[str, Callable[[Path, Array], Any], Callable[[Path], Array]]] = {
    "npy": ("x.npy", np.save, lambda path: np.load(path, allow_pickle=False)),
    "npz": ("x.npz", lambda path, x: np.savez(path, x=x), _npz_reads),
    "npz-compressed": ("x.npz", lambda path, x: np.savez_compressed(path, x=x), _npz_reads),
    "pt": (
        "x.pt",
        lambda path, x: torch.save({"x": torch.from_numpy(x)}, path),
        lambda path: _tensor(torch.load(path, weights_only=True)),
    ),
    "safetensors": ("x.safetensors", _write_safetensors, _safetensors_reads),
    "parquet": ("x.parquet", _write_parquet, _parquet_reads),
}


def _there(read: Callable[[Path], Array], path: Path) -> Array | None:
    """What the format's own library finds, None if it refuses."""
    try:
        return np.asarray(read(path)).copy()
    except Exception:  # each has errors of its own
        return None


def _same(found: Array, expected: Array | None) -> bool:
    return expected is not None and found.shape == expected.shape and (
        np.array_equal(found, expected, equal_nan=found.dtype.kind == "f")
    )  # fmt: skip


def damage(kind: str) -> Any:
    """One format."""
    name, write, read = FORMATS[kind]

    def attack(rng: np.random.Generator, folder: Path, tally: Tally) -> None:
        warnings.simplefilter("ignore")  # of the other libraries
        x, q = truth.rows(rng, 300, 16, np.float32), truth.rows(rng, 3, 16)
        np.save("q.npy", q)
        path = folder / name
        write(path, x)
        data = path.read_bytes()
        if not _same(np.asarray(files.load(path)), x):
            raise WrongError("not read as it was written")
        for number in range(80):
            path.unlink()
            path.write_bytes(damaged(rng, data))
            other = _there(read, path)
            with tally.one() as how:
                if number % 16 == 0:
                    how.append(_by_command(path, q, (x, other), folder))
                    continue
                try:
                    found = np.array(files.load(path))
                except ValueError:
                    how.append("refused")
                    continue
                if not _same(found, x) and not _same(found, other):
                    raise WrongError(
                        "other numbers than were written"
                        + (", and the format's library refuses" if other is None else "")
                    )

    return attack


def _by_command(path: Path, q: Array, possible: tuple[Array | None, ...], folder: Path) -> str:
    done = command("topk", "q.npy", path.name, "-k", "2", said=folder / "said")
    if done.refused():
        return "refused"
    table = truth.lines(done.out)
    for rows in possible:
        if rows is not None and rows.ndim == 2 and rows.dtype.kind == "f" and len(rows) > 1:
            try:
                truth.check_topk_table(table, q, rows, 2)
            except (WrongError, ValueError):
                continue
            return "answered"
    raise WrongError("the command answers for other numbers than are there")


ATTACKS = tuple(
    Attack(f"damaged-{kind}", damage(kind), (5, 1), ("answered", "refused")) for kind in FORMATS
)
