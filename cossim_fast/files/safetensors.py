"""`.safetensors`: the header first, then the one tensor that is wanted, mapped."""

import math
from pathlib import Path
from typing import Any

from cossim_fast._extras import require
from cossim_fast.files.entries import Entry
from cossim_fast.files.errors import DamagedError

# Bytes of a number, by what the format calls those kinds that torch computes with.
_SIZES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "F32": 4,
    "I64": 8,
    "F64": 8,
}


def entries(path: Path, _key: str | None, _verify: bool) -> dict[str, Entry]:
    """The tensors of a file; the format has no checksum.

    The library compares offsets, sizes and shapes with each other and with the file as it opens it.
    """
    found: dict[str, Entry] = {}
    with _open(path) as file:
        names = list(file.keys())
        for name in names:
            there = file.get_slice(name)
            found[name] = _entry(path, name, tuple(there.get_shape()), there.get_dtype())
    return found


def _entry(path: Path, name: str, shape: tuple[int, ...], kind: str) -> Entry:
    def read() -> Any:
        with _open(path) as file:
            return file.get_tensor(name)

    refusal = ""
    if kind.startswith("C"):
        refusal = f"is complex ({kind}); save torch.view_as_real(x).flatten(-2)"
    elif kind not in _SIZES:
        refusal = f"is of {kind}, in which torch computes little; save x.float()"
    return Entry(shape, math.prod(shape) * _SIZES.get(kind, 1), read, refusal)


def _open(path: Path) -> Any:
    library = require("safetensors", extra="cli")
    try:
        return library.safe_open(path, framework="pt")
    except library.SafetensorError as error:
        raise DamagedError(str(error)) from error
