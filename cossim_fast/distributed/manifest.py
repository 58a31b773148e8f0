"""What a run computes, of what, and in which blocks: written before it begins, compared by a rerun.

The manifest is ``_manifest.json`` in the folder of the output. A block is done when its file is
there; ``_SUCCESS`` says that all are, and what they were made into is complete. Readers of folders
of ``.parquet`` leave out names that begin with an underscore.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from cossim_fast._extras import require
from cossim_fast.distributed.outputs import is_whole
from cossim_fast.distributed.places import is_local, joined, place_of, put, read_all
from cossim_fast.distributed.shards import ShardSet
from cossim_fast.retrieval import FileError
from cossim_fast.retrieval.resumable import Lock

FORMAT = 1
_MANIFEST, _SUCCESS = "_manifest.json", "_SUCCESS"
# Blocks that are looked at at a time: on an object store each takes tens of milliseconds.
_LOOKS = 16
# Differences that an error lists.
_LISTED = 10


class Manifest:
    """The manifest of a run, which has its output for itself until it is closed.

    `open` makes one. On an object store nothing keeps two runs from one output: they write the
    same blocks.
    """

    def __init__(self, output: str, content: dict[str, Any], lock: Lock | None) -> None:
        self.output, self.content = output, content
        self._lock = lock
        self._whole: set[str] = set()

    @classmethod
    def open(
        cls,
        output: str | Path,
        *,
        operation: str,
        parameters: Mapping[str, Any],
        inputs: Mapping[str, ShardSet],
        grid: Sequence[Mapping[str, Any]],
        resume: bool,
    ) -> Manifest:
        """Begin a run, or go on with the one that wrote to ``output`` before.

        Args:
            output: a folder, which is made.
            operation: what is computed.
            parameters: all that the answer depends on; JSON.
            inputs: the files, by the name of the argument.
            grid: the blocks; each has a ``"name"``, of the file that its task writes.
            resume: whether to go on where a run of the same was interrupted.

        Raises:
            ValueError: another run wrote there, of other inputs or parameters: what differs; or
                ``resume`` is False, and there is one.
            InUseError: another run is at work there.
            FileError: the manifest cannot be read.
        """
        folder = str(output)
        content = _content(operation, parameters, inputs, grid)
        lock = None
        if is_local(folder):
            Path(folder).mkdir(parents=True, exist_ok=True)
            lock = Lock(Path(folder) / _MANIFEST)
        try:
            before = _read(folder)
            if before is None:
                _check_empty(folder)
                put(joined(folder, _MANIFEST), json.dumps(content, indent=1).encode())
            elif not resume:
                raise ValueError(
                    f"expected an output folder without results, got {folder}, in which a run of "
                    f"{before['operation']} began; pass resume=True to go on with it, or name "
                    "another folder"
                )
            else:
                _check_same(folder, before, content)
            return cls(folder, content, lock)
        except BaseException:
            if lock is not None:
                lock.release()
            raise

    def is_done(self, block: str) -> bool:
        """Whether a block is there, and whole; it is read to see that, once."""
        if block not in self._whole and is_whole(self.output, block):
            self._whole.add(block)
        return block in self._whole

    def missing(self) -> list[str]:
        """The blocks that are still to be computed, in the order of the grid."""
        names = [str(block["name"]) for block in self.content["grid"]]
        with ThreadPoolExecutor(_LOOKS) as pool:
            done = list(pool.map(self.is_done, names))
        return [name for name, there in zip(names, done, strict=True) if not there]

    @property
    def finished(self) -> bool:
        """Whether the run is complete."""
        path = joined(self.output, _SUCCESS)
        return place_of(path).exists(path)

    def finish(self) -> None:
        """Say that the run is complete, and release the output."""
        put(joined(self.output, _SUCCESS), b"")
        self.close()

    def close(self) -> None:
        """Release the output; a rerun goes on."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Manifest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _content(
    operation: str,
    parameters: Mapping[str, Any],
    inputs: Mapping[str, ShardSet],
    grid: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """What the manifest says, as it is read back."""
    from cossim_fast import __version__  # noqa: PLC0415 - the package imports its rooms

    content = {
        "format": FORMAT,
        "operation": operation,
        "parameters": dict(parameters),
        "inputs": {name: _described(found) for name, found in inputs.items()},
        "grid": [dict(block) for block in grid],
        "versions": {
            "cossim_fast": __version__,
            "torch": torch.__version__,
            "pyarrow": require("pyarrow", extra="distributed").__version__,
        },
    }
    read: dict[str, Any] = json.loads(json.dumps(content))
    return read


def _described(found: ShardSet) -> dict[str, Any]:
    kept = ("path", "size", "version", "rows", "width", "dtype")
    return {
        "column": found.column,
        "id_column": found.id_column,
        "shards": [{key: asdict(shard)[key] for key in kept} for shard in found.shards],
    }


def _read(folder: str) -> dict[str, Any] | None:
    path = joined(folder, _MANIFEST)
    try:
        content: dict[str, Any] = json.loads(read_all(path))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise FileError(
            f"{path} is no manifest; delete it with all that is in the folder, or name another"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise FileError(
            f"expected {path} to be a manifest of format {FORMAT}; it is of another version of "
            "cossim_fast; name another folder"
        )
    return content


def _check_empty(folder: str) -> None:
    there = [name.rsplit("/", 1)[-1] for name in place_of(folder).files(folder) or []]
    there = sorted(name for name in there if not name.startswith("."))
    if there:
        raise ValueError(
            f"expected an empty folder for the output, got {folder}, which holds {there[0]!r} and "
            "no manifest; name another folder"
        )


def _check_same(folder: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to go on with a run of something else."""
    # Which torch and pyarrow there are changes no bit of the answer.
    compared = [
        ("operation",),
        ("parameters",),
        ("inputs",),
        ("grid",),
        ("versions", "cossim_fast"),
    ]
    differences: list[str] = []
    for keys in compared:
        old: Any = before
        new: Any = now
        for key in keys:
            old, new = old.get(key) if isinstance(old, dict) else None, new[key]
        _compare(" ".join(keys), old, new, differences)
    if differences:
        more = len(differences) - _LISTED
        raise ValueError(
            f"expected to go on with the run in {folder}, which was of something else: "
            + "; ".join(differences[:_LISTED])
            + (f"; and {more} more" if more > 0 else "")
            + "; name another folder, or run the same again"
        )


def _compare(what: str, old: Any, new: Any, differences: list[str]) -> None:
    """List what differs between two values that were read from JSON."""
    if isinstance(old, dict) and isinstance(new, dict):
        label = f" ({new['path']})" if "path" in new and old.get("path") == new["path"] else ""
        for key in dict.fromkeys([*old, *new]):
            _compare(f"{what} {key}{label}", old.get(key), new.get(key), differences)
    elif isinstance(old, list) and isinstance(new, list):
        if len(old) != len(new):
            differences.append(f"{what}: {len(old)} then, {len(new)} now")
        for number, (one, other) in enumerate(zip(old, new, strict=False)):
            _compare(f"{what} {number}", one, other, differences)
    elif old != new or type(old) is not type(new):
        differences.append(f"{what}: {old!r} then, {new!r} now")
