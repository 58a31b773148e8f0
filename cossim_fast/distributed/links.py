"""`connected_components` of files: on one worker, from the pairs that a join has written."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cossim_fast.distributed import components, outputs
from cossim_fast.distributed.driver import Stage, Summary
from cossim_fast.distributed.grid import TASK, Block, row_parts
from cossim_fast.distributed.places import joined, read_all
from cossim_fast.distributed.shards import ShardSet, find

_LINKED = "_linked.parquet"
# [bytes] Of a row: its component, twice, and what is written of it.
_ROW = 40
# [bytes] Of an id, as far as that can be known.
_ID = 40
# [bytes] Of the pairs of a block, as they are read and linked: 2^24 of them.
_PAIRS = 70 << 24


class Components:
    """The blocks of the connected components of the pairs that a join has written.

    Args:
        output: the folder of the result.
        pairs: that of the join.
    """

    operation = "connected_components"

    def __init__(self, output: str, pairs: str) -> None:
        self._output, self._pairs = output, pairs
        self._manifest, self.x = _rows_of(pairs)
        self.lines = 0
        self.components = 0
        self.unfit: Counter[str] = Counter()

    def parameters(self) -> dict[str, Any]:
        """On what the result depends, beside the inputs."""
        return {"pairs": self._pairs, **self._manifest["parameters"]}

    def inputs(self) -> dict[str, ShardSet]:
        """What the pairs are of."""
        return {"x": self.x}

    def grid(self) -> list[dict[str, Any]]:
        """Every file that is written."""
        return [{"name": name} for name in (*row_parts(self.x.rows), _LINKED)]

    def stages(self) -> list[Stage]:
        """One."""
        results = [*row_parts(self.x.rows), _LINKED]
        return [Stage("components", self._linking, 1, self._linked, lambda block: results)]

    def _linking(self) -> Iterator[Block]:
        ids = 0 if self.x.id_column is None else _ID
        names = [str(block["name"]) for block in self._manifest["grid"]]
        yield Block(
            _LINKED,
            link_block,
            (self._output, self._pairs, names, self.x),
            memory=TASK + (_ROW + ids) * self.x.rows + _PAIRS,
            also=tuple(row_parts(self.x.rows)),
        )

    def _linked(self, block: Block, summary: Summary) -> None:
        self.components, self.lines = summary["components"], summary["lines"]


def _rows_of(folder: str) -> tuple[dict[str, Any], ShardSet]:
    """The manifest of a join that is complete, and the rows that it joined with themselves."""
    try:
        manifest = json.loads(read_all(joined(folder, "_manifest.json")))
        read_all(joined(folder, "_SUCCESS"))
    except FileNotFoundError as error:
        raise ValueError(
            f"expected the output of pairs_above in {folder}, complete, and there is no "
            f"{Path(str(error.filename)).name}"
        ) from error
    if manifest["operation"] != "pairs_above" or set(manifest["inputs"]) != {"x"}:
        raise ValueError(
            f"expected the pairs of rows with themselves in {folder}, got the output of "
            f"{manifest['operation']} of {' and '.join(manifest['inputs'])}"
        )
    said = manifest["inputs"]["x"]
    x = find(
        [shard["path"] for shard in said["shards"]],
        column=said["column"],
        id_column=said["id_column"],
    )
    for shard, then in zip(x.shards, said["shards"], strict=True):
        if (shard.size, shard.version) != (then["size"], then["version"]):
            raise ValueError(
                f"expected {shard.path} as it was when it was joined, and it has changed; join "
                "again, into another folder"
            )
    return manifest, x


def link_block(output: str, pairs: str, names: list[str], x: ShardSet) -> Summary:
    """Find the component of each row, and write them.

    One line for each row: row, component (the smallest number of a row in it), and the row's id.
    """

    def blocks() -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        for name in names:
            table = outputs.read_block(pairs, name)
            yield table["i"].to_numpy(), table["j"].to_numpy()

    found = components.connected_components(blocks(), x.rows)
    ids = x.ids(0, x.rows)
    for part, (start, stop) in row_parts(x.rows).items():
        columns: dict[str, Any] = {"row": np.arange(start, stop, dtype=np.int64)}
        if ids is not None:
            columns["id"] = ids.slice(start, stop - start)
        columns["component"] = found[start:stop]
        outputs.write_block(output, part, columns, {})
    count = int((found == np.arange(x.rows)).sum())
    summary: Summary = {"components": count, "lines": x.rows}
    outputs.write_block(output, _LINKED, {"component": found[:0]}, summary)
    return summary
