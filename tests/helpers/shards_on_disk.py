"""Files of embeddings for tests, and what is in the results."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from safetensors.torch import save_file


def rows_of(n: int, d: int, dtype: str = "float32", seed: int = 0) -> torch.Tensor:
    """Clustered rows with copies, scaled copies, zero rows, rows of NaN and of infinities."""
    drawn = torch.Generator().manual_seed(seed)
    centres = torch.randn(max(n // 8, 1), d, generator=drawn)
    x = centres[torch.randint(len(centres), (n,), generator=drawn)]
    x = x + 0.4 * torch.randn(n, d, generator=drawn)
    if n > 40:
        x[5], x[n - 3], x[n // 2] = x[1], x[1], x[2]
        x[9], x[n - 9] = 2 * x[1], x[1] / 4
        x[20] = x[n - 20] = 0
        x[30, 1] = torch.nan
        x[n - 31, 0] = torch.inf
    return x.to(getattr(torch, dtype))


def write(folder: Path, x: torch.Tensor, cuts: list[int], kind: str, **columns: Any) -> str:
    """Write rows as files that end at ``cuts``; return what finds them."""
    folder.mkdir(parents=True, exist_ok=True)
    bounds = [0, *cuts, len(x)]
    for number, (start, stop) in enumerate(pairwise(bounds)):
        some, path = x[start:stop], folder / f"part-{number}.{kind}"
        if kind == "npy":
            np.save(path, some.numpy())
        elif kind == "safetensors":
            save_file({"embedding": some.contiguous()}, path)
        else:
            kinds = {torch.float16: pyarrow.float16(), torch.float32: pyarrow.float32(),
                     torch.float64: pyarrow.float64()}  # fmt: skip
            values = pyarrow.array(some.numpy().ravel(), kinds[x.dtype])
            table = {"embedding": pyarrow.FixedSizeListArray.from_arrays(values, x.shape[1])}
            table |= {name: pyarrow.array(value[start:stop]) for name, value in columns.items()}
            pyarrow.parquet.write_table(pyarrow.table(table), path, row_group_size=50)
    return str(folder / f"*.{kind}")


def read(output: Path) -> dict[str, np.ndarray[Any, Any]]:
    """All parts of a result, one after the other."""
    parts = [pyarrow.parquet.read_table(path) for path in sorted(output.glob("part-*.parquet"))]
    table = pyarrow.concat_tables(part.replace_schema_metadata() for part in parts)
    return {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}
