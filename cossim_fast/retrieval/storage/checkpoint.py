"""What a long run has found so far, in a file, so that it can go on after an interruption."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from cossim_fast.retrieval.storage import own_files
from cossim_fast.retrieval.storage.tensor_file import FileError, read_tensors, write_tensors

Result = TypeVar("Result")
Kept = TypeVar("Kept", bound="Checkpoint")

# Before it was written down, files kept a sample of what they belong to.
_FORMAT = "2"
# Digests: that they differ says all, their digits nothing.
_VALUES = "values of "


class Checkpoint:
    """The file of one run, which has it to itself until it is closed; without a path, nothing.

    What makes a run the same is a mapping of names to what JSON can hold; names of digests begin
    with "values of".

    Args:
        path: where it is, or None.
        inputs: what else has to be the same, such as the files that the rows come from.

    Raises:
        InUseError: another run has it.
        ValueError: it is no regular file.
    """

    kind: ClassVar[str]  # of file
    run: ClassVar[str]  # what is kept, in words

    def __init__(
        self, path: str | Path | None, inputs: Mapping[str, str | int | None] | None = None
    ) -> None:
        self.path = None if path is None else Path(path)
        self._inputs = dict(inputs or {})
        self._of: dict[str, Any] = {}
        self._lock = None if self.path is None else own_files.Lock(self.path)
        try:
            self.exists()
        except BaseException:
            self.close()
            raise

    def exists(self) -> bool:
        """Whether there is something to go on from."""
        return self.path is not None and own_files.is_there(self.path)

    def _belongs_to(self, of: Mapping[str, Any]) -> None:
        """Say what makes the run the same."""
        self._of = {**of, **self._inputs}

    def _read(
        self, understand: Callable[[Mapping[str, Tensor], Mapping[str, Any]], Result]
    ) -> Result | None:
        """Make something of what was written; None if nothing was.

        Raises:
            ValueError: it belongs to another run; what differs.
            FileError: the file is damaged, or of another version.
        """
        if self.path is None or not self.exists():
            return None
        held, text = read_tensors(self.path, self.kind)
        if text.get("format") != _FORMAT:
            raise FileError(
                f"expected {self.path} to be of this version of cossim_fast, and another wrote "
                "it, which says less or more of its inputs; delete it to begin anew"
            )
        try:
            saved, said = json.loads(text["of"]), json.loads(text["said"])
        except (KeyError, ValueError) as error:
            raise self._damaged(error) from error
        self._compare(saved, self._of)
        try:
            return understand(held, said)
        except (KeyError, ValueError, TypeError, IndexError) as error:
            raise self._damaged(error) from error

    def _write(self, held: Mapping[str, Tensor], said: Mapping[str, Any]) -> None:
        """Write it: all of it, or nothing."""
        assert self.path is not None
        text = {"format": _FORMAT, "of": json.dumps(self._of), "said": json.dumps(said)}
        self.exists()  # what took its place meanwhile is not replaced
        write_tensors(self.path, self.kind, held, text, mode=own_files.MODE)

    def _compare(self, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        """Refuse a file of which something differs from what there is now."""
        names = [name for name in {**now, **saved} if saved.get(name) != now.get(name)]
        if not names:
            return
        values = [f"the {name}" for name in names if name.startswith(_VALUES)]
        others = [
            f"{name} ({_shown(saved, name)} then, {_shown(now, name)} now)"
            for name in names
            if not name.startswith(_VALUES)
        ]
        raise ValueError(
            f"expected {self.path} to be the checkpoint of this {self.run}, and it differs in "
            f"{', '.join(others + values)}; delete it to begin anew, or name another file"
        )

    def _damaged(self, error: Exception) -> FileError:
        return FileError(f"{self.path} is damaged: {error!r}; delete it to begin anew")

    def remove(self) -> None:
        """Delete the file: the run is over, and its result where it belongs."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let other runs have it."""
        if self._lock is not None:
            self._lock.release()

    def __enter__(self: Kept) -> Kept:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _shown(said: Mapping[str, Any], name: str) -> str:
    value = said.get(name)
    return "none" if value is None else str(value)
