"""Checkpoints: files with what a long run has found so far, from which it can resume."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from cossim_fast.retrieval.storage import own_files
from cossim_fast.retrieval.storage.tensor_file import FileError, read_tensors, write_tensors

Result = TypeVar("Result")
Kept = TypeVar("Kept", bound="Checkpoint")

# Version of the format. Files of earlier versions have none.
_FORMAT = "2"
# Names of digests begin with this; errors name them without their digits.
_VALUES = "values of "


class Checkpoint:
    """The file of one run, locked for it until it is closed. Without a path, this does nothing.

    A run is identified by a mapping of names to JSON values; names of digests begin with "values
    of".

    Args:
        path: of the file, or None.
        inputs: more that identifies the run, such as the files that the rows come from.

    Raises:
        InUseError: another run uses it.
        ValueError: it is not a regular file.
    """

    kind: ClassVar[str]  # of file
    run: ClassVar[str]  # what it is a checkpoint of, in errors

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
        """Whether there is a checkpoint to resume from."""
        return self.path is not None and own_files.is_there(self.path)

    def _belongs_to(self, of: Mapping[str, Any]) -> None:
        """Set what identifies the run."""
        self._of = {**of, **self._inputs}

    def _read(
        self, understand: Callable[[Mapping[str, Tensor], Mapping[str, Any]], Result]
    ) -> Result | None:
        """Read the file and pass its contents to ``understand``; None if there is no file.

        Raises:
            ValueError: it belongs to another run; the message says what differs.
            FileError: the file is damaged, or of another version.
        """
        if self.path is None or not self.exists():
            return None
        held, text = read_tensors(self.path, self.kind)
        if text.get("format") != _FORMAT:
            raise FileError(
                f"expected {self.path} to be written by this version of cossim_fast, got a file "
                "of another, which describes its inputs differently; delete it to begin anew"
            )
        try:
            saved, metadata = json.loads(text["of"]), json.loads(text["said"])
        except (KeyError, ValueError) as error:
            raise self._damaged(error) from error
        self._compare(saved, self._of)
        try:
            return understand(held, metadata)
        except (KeyError, ValueError, TypeError, IndexError) as error:
            raise self._damaged(error) from error

    def _write(self, held: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """Write the file atomically."""
        assert self.path is not None
        text = {"format": _FORMAT, "of": json.dumps(self._of), "said": json.dumps(metadata)}
        self.exists()  # raises if something else took its place meanwhile
        write_tensors(self.path, self.kind, held, text, mode=own_files.MODE)

    def _compare(self, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        """Refuse a file whose run differs from this one."""
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
        """Delete the file, once the run has ended and its result is stored."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Unlock it for other runs."""
        if self._lock is not None:
            self._lock.release()

    def __enter__(self: Kept) -> Kept:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


def _shown(metadata: Mapping[str, Any], name: str) -> str:
    value = metadata.get(name)
    return "none" if value is None else str(value)
