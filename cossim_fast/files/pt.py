"""`.pt`: tensors of torch.save, mapped; no code in the file runs."""

import sys
import warnings
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cossim_fast.files.archive import Archive
from cossim_fast.files.entries import Entry, size_text
from cossim_fast.files.errors import DamagedError

_DTYPES = {
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16,
    torch.bfloat16, torch.float32, torch.float64,
}  # fmt: skip
# Bytes that are summed at a time.
_PIECE = 1 << 24


@dataclass(frozen=True)
class _Records:
    """The stretches of numbers in a file: how long each is, and its checksum if it is to fit."""

    sizes: set[int]
    sums: set[tuple[int, int]] | None


def entries(path: Path, _key: str | None, verify: bool) -> dict[str, Entry]:
    """The tensor of a file, or those of a dict."""
    mapped = zipfile.is_zipfile(path)  # what torch wrote before 1.6 is not
    records = _checked_records(path, verify) if mapped else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # sparse, quantized: refused below
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    if not isinstance(held, dict):
        held = {"": held}
    return {
        str(name): _entry(value, records) if isinstance(value, Tensor) else _no_tensor(value)
        for name, value in held.items()
        if isinstance(name, (str, int))
    }


def _no_tensor(value: object) -> Entry:
    """What is no array of any number of axes, and is named where one is looked for in vain."""
    kind = type(value).__name__
    fix = "; save torch.tensor(x)" if isinstance(value, (list, tuple)) else ""
    return Entry((), 0, lambda: None, f"is of type {kind}{fix}")


def _entry(tensor: Tensor, records: _Records | None) -> Entry:
    def read() -> Any:
        if records is not None:
            _check_record(tensor, records)
        return tensor.detach()

    nested = tensor.is_nested
    shape = (None,) * tensor.dim() if nested else tuple(tensor.shape)
    nbytes = 0 if nested else tensor.numel() * tensor.element_size()
    return Entry(shape, nbytes, read, _refusal(tensor, nbytes))


def _refusal(tensor: Tensor, nbytes: int) -> str:
    """Why a tensor cannot be used, and what to save instead; or nothing."""
    if tensor.is_nested:
        return "is a nested tensor; save its rows, torch.cat(x.unbind())"
    if tensor.layout != torch.strided:
        return f"is sparse ({tensor.layout}); save x.to_dense()"
    if tensor.is_quantized:
        return f"is quantized ({tensor.dtype}); save x.dequantize()"
    if tensor.is_meta:
        return "is on the meta device and has no values; save it from where it has"
    if tensor.is_complex():
        return f"is complex ({tensor.dtype}); save torch.view_as_real(x).flatten(-2)"
    if tensor.dtype not in _DTYPES:
        return f"is of {tensor.dtype}, in which torch computes little; save x.float()"
    held = tensor.untyped_storage().nbytes()
    if nbytes > held:
        return (
            f"claims {tuple(tensor.shape)} by strides of {tensor.stride()}, {size_text(nbytes)}, "
            f"and the file holds {size_text(held)} for it; save x.contiguous()"
        )
    return ""


def _checked_records(path: Path, verify: bool) -> _Records:
    """Compare the checksums of all that is small, and return what is said of the numbers.

    torch compares none, and believes what the pickle says of sizes. It writes zeros for checksums
    after `torch.serialization.set_crc32_options(False)`.
    """
    with Archive(path) as archive:
        members = archive.members
        for name, info in members.items():
            if info.compress_type != zipfile.ZIP_STORED:
                raise DamagedError(f"{name!r} in it is compressed; save it by torch.save alone")
        begins = {name: archive.begin(info) for name, info in members.items()}
        numbers = {name for name in members if name.split("/")[1:-1] == ["data"]}
        sizes = {members[name].file_size for name in numbers}
        if not verify or not any(info.CRC for info in members.values()):
            return _Records(sizes, None)
        small = members.keys() - numbers
        for name in small:
            archive.check_sum(members[name], begins[name])
        orders = [archive.read(members[name]) for name in small if name.endswith("/byteorder")]
        if orders and orders[0] != sys.byteorder.encode():
            # torch turns the bytes around as it loads, so they are summed in the file instead.
            for name in numbers:
                archive.check_sum(members[name], begins[name])
            return _Records(sizes, None)
        return _Records(sizes, {(members[name].file_size, members[name].CRC) for name in numbers})


def _check_record(tensor: Tensor, records: _Records) -> None:
    """Check that the numbers behind a tensor are one record of the file, as it was written."""
    storage = tensor.untyped_storage()
    if not storage.nbytes():
        return
    if storage.nbytes() not in records.sizes:
        raise DamagedError(
            f"it claims {size_text(storage.nbytes())} of numbers, and no record has them"
        )
    if records.sums is None:
        return
    found = 0
    for piece in torch.empty(0, dtype=torch.uint8, device="cpu").set_(storage).split(_PIECE):
        found = zlib.crc32(piece.numpy().data, found)
    if (storage.nbytes(), found) not in records.sums:
        raise DamagedError("the checksum of its numbers does not fit")
