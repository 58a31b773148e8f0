"""The parts of an index in a safetensors file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cossim_fast.retrieval.codes import Segment
from cossim_fast.retrieval.files import Blocks, FileError, TensorFile, write_tensors
from cossim_fast.retrieval.parts import Part, tensors_of
from cossim_fast.retrieval.store import Rows, rows_of_map

_KIND = "cossim_fast index"


def save_parts(path: Path, parts: Sequence[Part], centre: Tensor, said: Mapping[str, str]) -> None:
    """Write parts, and text beside them."""
    held: dict[str, Tensor | Blocks] = {"centre": centre}
    for number, part in enumerate(parts):
        named = {"rows": _blocks(part.rows), "serials": part.serials, "alive": part.alive}
        named |= tensors_of(part.segment)
        if part.names is not None:
            named |= _names(part.names)
        held |= {f"{number}.{name}": value for name, value in named.items()}
    write_tensors(path, _KIND, held, {**said, "parts": str(len(parts))})


def load_parts(path: Path, *, mapped: bool) -> tuple[list[Part], Tensor, dict[str, str]]:
    """Read parts, and the text; ``mapped`` leaves their vectors in the file.

    Raises:
        FileNotFoundError: there is no such file.
        FileError: it is truncated, damaged, of another kind, or of a later version.
    """
    with TensorFile(path, _KIND) as file:
        try:
            parts = [_part(file, number, mapped) for number in range(int(file.said["parts"]))]
            return parts, file.read("centre"), file.said
        except (KeyError, TypeError, RuntimeError) as error:
            raise FileError(f"{path} is damaged: {error!r}") from error


def _part(file: TensorFile, number: int, mapped: bool) -> Part:
    begin = f"{number}."
    there = {name.removeprefix(begin) for name in file.places if name.startswith(begin)}
    if mapped:
        _, shape, dtype = file.places[f"{begin}rows"]
        rows = rows_of_map(file.mapped(f"{begin}rows"), shape, dtype)
    else:
        rows = Rows(file.read(f"{begin}rows"), owned=True)
    coded = {f.name for f in fields(Segment)} & there - {"rows"}
    segment = Segment(
        first=0,
        rows=rows.tensor,
        whole=rows.whole,
        **{name: file.read(f"{begin}{name}") for name in coded},  # type: ignore[arg-type]
    )
    names: np.ndarray[Any, Any] | None = None
    if "numbers" in there:
        names = file.read(f"{begin}numbers").numpy()
    elif "text" in there:
        names = _strings(file.read(f"{begin}text"), file.read(f"{begin}ends"))
    serials, alive = file.read(f"{begin}serials"), file.read(f"{begin}alive")
    return Part(rows, segment, serials, names, alive).compare()


def _blocks(rows: Rows) -> Tensor | Blocks:
    """Vectors in memory, or block after block."""
    if rows.whole is None:
        return rows.tensor
    return Blocks(tuple(rows.tensor.shape), rows.tensor.dtype, rows.blocks())


def _names(names: np.ndarray[Any, Any]) -> dict[str, Tensor]:
    """Ids as tensors: numbers, or text in UTF-8 with the end of each."""
    if names.dtype != object:
        return {"numbers": torch.from_numpy(names)}
    coded = [name.encode("utf-8", "surrogatepass") for name in names]
    text = np.frombuffer(b"".join(coded), np.uint8).copy()
    ends = np.cumsum([len(name) for name in coded], dtype=np.int64)
    return {"text": torch.from_numpy(text), "ends": torch.from_numpy(ends)}


def _strings(text: Tensor, ends: Tensor) -> np.ndarray[Any, Any]:
    raw, stops = text.numpy().tobytes(), ends.tolist()
    names = np.empty(len(stops), dtype=object)
    begin = 0
    for number, stop in enumerate(stops):
        names[number] = raw[begin:stop].decode("utf-8", "surrogatepass")
        begin = stop
    return names
