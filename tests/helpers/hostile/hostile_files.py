"""Files made to mislead: forged headers, false claims, bombs, code, devices, loops."""

import contextlib
import io
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cossim_fast import CosineIndex
from hostile import truth
from hostile.harness import Attack
from hostile.tries import REFUSALS, Tally, WrongError, command

# Of the process, its libraries included, which take about 500.
MOST_MEGABYTES = 1200
BOMB = 1500
SECONDS = 8.0
X = truth.rows(np.random.default_rng(1), 200, 16)


def _npy(header: str, data: bytes = X.tobytes(), version: int = 1) -> bytes:
    coded = header.encode("latin-1") + b"\n"
    size = struct.pack("<H", len(coded)) if version == 1 else struct.pack("<I", len(coded))
    return b"\x93NUMPY" + bytes((version, 0)) + size + coded + data


def _header(shape: str, kind: str = "'<f4'", order: str = "False") -> str:
    return f"{{'descr': {kind}, 'fortran_order': {order}, 'shape': {shape}, }}"


def _zip(members: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", how) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return held.getvalue()


def _beside_bomb() -> bytes:
    """X, and an array of zeros in a thousandth of its bytes."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("x.npy", _npy(_header("(200, 16)")))
        with archive.open("z.npy", "w", force_zip64=True) as member:
            member.write(_npy(_header(f"({BOMB << 14}, 16)"), b""))
            for _ in range(BOMB):
                member.write(bytes(1 << 20))
    return held.getvalue()


def _safetensors(entries: Any, data: bytes = X.tobytes(), length: int | None = None) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _entry(shape: Any, begin: int = 0, end: int = X.nbytes, dtype: str = "F32") -> Any:
    return {"x": {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}}


def _pt(held: Any) -> bytes:
    made = io.BytesIO()
    torch.save(held, made)
    return made.getvalue()


class _Code:
    """What runs a command when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch ran",)


def _parquet(columns: Any) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    made = io.BytesIO()
    pq.write_table(pa.table(columns), made)
    return made.getvalue()


ROWS = X.tolist()
# A name, and what lies there. Those that hold X are to be answered.
FILES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "as it should be": ("x.npy", lambda: _npy(_header("(200, 16)"))),
    "more rows than bytes": ("x.npy", lambda: _npy(_header("(201, 16)"))),
    "2^62 rows": ("x.npy", lambda: _npy(_header("(4611686018427387904, 16)"))),
    "2^62 rows of nothing": ("x.npy", lambda: _npy(_header("(4611686018427387904, 0)"))),
    "fewer than no rows": ("x.npy", lambda: _npy(_header("(-1, 16)"))),
    "a shape of text": ("x.npy", lambda: _npy(_header("('a', 16)"))),
    "objects": ("x.npy", lambda: _npy(_header("(200, 16)", "'|O'"))),
    "fields": ("x.npy", lambda: _npy(_header("(200, 16)", "[('a', '<f4')]"))),
    "code as header": ("x.npy", lambda: _npy("__import__('os').system('touch ran')")),
    "deep header": ("x.npy", lambda: _npy("(" * 30000 + ")" * 30000, version=2)),
    "header that does not end": ("x.npy", lambda: b"\x93NUMPY\x02\x00\xff\xff\xff\xff{"),
    "complex": ("x.npy", lambda: _npy(_header("(100, 16)", "'<c8'"))),
    "nothing": ("x.npy", lambda: b""),
    "another name": ("x.safetensors", lambda: _npy(_header("(200, 16)"))),
    "member of more rows": ("x.npz", lambda: _zip({"x.npy": _npy(_header("(260, 16)"))})),
    "member of 2^40 rows": ("x.npz", lambda: _zip({"x.npy": _npy(_header("(1099511627776, 16)"))})),
    "member of objects": ("x.npz", lambda: _zip({"x.npy": _npy(_header("(9, 9)", "'|O'"))})),
    "a bomb beside what is asked for": ("x.npz --key x", _beside_bomb),
    "a bomb and no key": ("x.npz", _beside_bomb),
    "many members": (
        "x.npz", lambda: _zip({f"{i}.npy": _npy(_header("(2, 8)"), bytes(64)) for i in range(3000)})
    ),
    "rows of no width": ("x.safetensors", lambda: _safetensors(_entry([2**62, 0], 0, 0), b"")),
    "2^62 numbers": ("x.safetensors", lambda: _safetensors(_entry([2**58, 16], 0, 2**60))),
    "offsets beyond": ("x.safetensors", lambda: _safetensors(_entry([400, 16], 0, 2 * X.nbytes))),
    "offsets backwards": ("x.safetensors", lambda: _safetensors(_entry([200, 16], X.nbytes, 0))),
    "a header of 2^63": ("x.safetensors", lambda: _safetensors(_entry([200, 16]), length=2**63)),
    "deep json": ("x.safetensors", lambda: _safetensors(b'{"x":' + b"[" * 90000 + b"]" * 90000)),
    "float8": ("x.safetensors", lambda: _safetensors(_entry([800, 16], dtype="F8_E4M3"))),
    "a pickle of code": ("x.pt", lambda: _pt({"x": _Code()})),
    "expanded": ("x.pt", lambda: _pt({"x": torch.zeros(1, 1).expand(10**9, 16)})),
    "expanded to no width": ("x.pt", lambda: _pt({"x": torch.zeros(1, 0).expand(2**40, 0)})),
    "sparse": ("x.pt", lambda: _pt({"x": torch.eye(16).to_sparse()})),
    "csr": ("x.pt", lambda: _pt({"x": torch.eye(16).to_sparse_csr()})),
    "quantized": (
        "x.pt", lambda: _pt({"x": torch.quantize_per_tensor(torch.eye(16), 0.1, 0, torch.qint8)})
    ),
    "float8 tensor": ("x.pt", lambda: _pt({"x": torch.eye(16).to(torch.float8_e4m3fn)})),
    "a meta tensor": ("x.pt", lambda: _pt({"x": torch.empty(9, 16, device="meta")})),
    "no tensor": ("x.pt", lambda: _pt({"x": [1, 2, 3]})),
    "ragged lists": ("x.parquet", lambda: _parquet({"x": [[1.0, 2.0], [3.0]]})),
    "lists with gaps": ("x.parquet", lambda: _parquet({"x": [[1.0, None], [3.0, 4.0]]})),
    "texts": ("x.parquet", lambda: _parquet({"x": ["a", "b"]})),
    "strange names": ("x.parquet", lambda: _parquet({"\x1b]0;t\x07": ROWS})),
    "a footer alone": ("x.parquet", lambda: b"PAR1\xff\xff\xff\x7fPAR1"),
}  # fmt: skip


def _special(name: str, folder: Path) -> None:
    """What is no file, in the place of x.npy."""
    path = folder / "x.npy"
    if name == "a FIFO":
        os.mkfifo(path)
    elif name == "an endless device":
        path.symlink_to("/dev/zero")
    elif name == "a loop of links":
        path.symlink_to("y.npy")
        (folder / "y.npy").symlink_to("x.npy")
    elif name == "a folder":
        path.mkdir()
    elif name == "a link to nowhere":
        path.symlink_to("nowhere.npy")
    elif name == "a socket":
        import socket

        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)


SPECIAL = (
    "a FIFO", "an endless device", "a loop of links", "a folder", "a link to nowhere", "a socket",
)  # fmt: skip
COMMANDS = ("topk", "pairs", "dedup", "diagnose", "index")


def _use(which: str, name: str, folder: Path) -> str:
    """Give the file to a command; what it holds is X, if it holds anything."""
    words = name.split()
    call = {
        "topk": ("topk", "q.npy", *words, "-k", "2"),
        "pairs": ("pairs", *words, "--threshold", "0.9"),
        "dedup": ("dedup", *words, "--threshold", "0.9"),
        "diagnose": ("diagnose", *words),
        "index": ("index", "build", *words, "-o", "x.index"),
    }[which]
    done = command(*call, said=folder / "said", limit=SECONDS)
    if (folder / "ran").exists():
        raise WrongError("code in it ran")
    if done.megabytes > MOST_MEGABYTES:
        raise WrongError(f"took {done.megabytes:.0f} MB")
    if which == "diagnose" and done.status == 1:  # a finding
        return "answered"
    if done.refused():
        return "refused"
    if which == "topk":
        truth.check_topk_table(truth.lines(done.out), X[:3], X, 2)
    elif which == "pairs":
        truth.check_pairs_table(truth.lines(done.out), X, 0.9)
    return "answered"


def files(rng: np.random.Generator, folder: Path, tally: Tally) -> None:
    """Every file and every place by a command that the random numbers choose."""
    np.save("q.npy", X[:3])
    names = [*FILES, *SPECIAL]
    # Each process takes a part of them.
    for what in rng.permutation(names)[: len(names) // 3].tolist():
        which = str(rng.choice(COMMANDS))
        with tally.one(f"{what}, {which}") as how:
            name = "x.npy"
            if what in FILES:
                name, make = FILES[what]
                Path(name.split()[0]).write_bytes(make())
            else:
                _special(what, folder)
            how.append(_use(which, name, folder))
        for path in folder.iterdir():
            if path.name != "q.npy":
                with contextlib.suppress(IsADirectoryError):
                    path.unlink()
                if path.is_dir():
                    path.rmdir()


def _forged(data: bytes, change: Callable[[Any, Any], None]) -> bytes:
    """Our own file with another header, whose checksum fits."""
    length = int.from_bytes(data[:8], "little")
    entries = json.loads(data[8 : 8 + length])
    said = entries.pop("__metadata__")
    change(said, entries)
    checked = {key: text for key, text in said.items() if "crc32" not in key}
    coded = json.dumps([checked, entries], sort_keys=True).encode()
    said["header_crc32"] = f"{zlib.crc32(coded):08x}"
    text = json.dumps({"__metadata__": said, **entries}).encode()
    text += b" " * (length - len(text))
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def index_headers(rng: np.random.Generator, folder: Path, tally: Tally) -> None:
    """Index files whose headers claim other things, with checksums that fit."""
    path = folder / "x.index"
    index = CosineIndex(X, [f"row {i}" for i in range(len(X))])
    index.save(path)
    data = path.read_bytes()
    np.save("q.npy", X[:3])
    values = ["", "0", "-1", "1", "7", "999999999999", "x", "\x1b[31m", "float8_e4m3fn", "load",
              "[" * 60000, "NaN", "int8", "numbers", "__class__"]  # fmt: skip
    sizes = [0, 1, -1, 2**40, 2**62, "a", None, 3.5, []]

    def nothing(said: Any, entries: Any) -> None:
        pass

    def text(said: Any, entries: Any) -> None:
        said[rng.choice(sorted(said))] = str(rng.choice(values))

    def gone(said: Any, entries: Any) -> None:
        held = said if rng.integers(2) else entries
        held.pop(rng.choice(sorted(held)))

    def kind(said: Any, entries: Any) -> None:
        entry = entries[rng.choice(sorted(entries))]
        entry["dtype"] = str(rng.choice(["U8", "I8", "BOOL", "F16", "F32", "I64", "C64", "x"]))

    def shape(said: Any, entries: Any) -> None:
        entry = entries[rng.choice(sorted(entries))]
        entry["shape"] = [sizes[i] for i in rng.integers(len(sizes), size=rng.integers(4))]

    def place(said: Any, entries: Any) -> None:
        one, other = (entries[name] for name in rng.choice(sorted(entries), 2))
        one["data_offsets"] = other["data_offsets"]

    def exchanged(said: Any, entries: Any) -> None:
        one, other = rng.choice(sorted(entries), 2)
        entries[one], entries[other] = entries[other], entries[one]

    for number in range(50):
        change = nothing if not number else rng.choice([text, gone, kind, shape, place, exchanged])
        with tally.one(getattr(change, "__name__", "")) as how:
            path.unlink()
            path.write_bytes(_forged(data, change))
            if number % 10 == 5:
                done = command("index", "search", "q.npy", "x.index", "-k", "2",
                               said=folder / "said", limit=SECONDS)  # fmt: skip
                how.append("refused" if done.refused() else "answered")
                continue
            try:
                held = CosineIndex.load(path, mmap=bool(rng.integers(2)))
                found = held.search(X[:3], 2)
                at = [[int(name.split()[1]) for name in line] for line in found.indices]
            except (ValueError, MemoryError):
                if change is nothing:
                    raise WrongError(
                        "not read as it was: forge headers as they are written now"
                    ) from None
                how.append("refused")
                continue
            except REFUSALS as error:
                raise WrongError(f"{type(error).__name__}: {error}") from error
            truth.check_topk(found.scores, np.array(at), X[:3], X, 2)


ATTACKS = (
    Attack("hostile-inputs", files, (8, 1), ("answered", "refused")),
    Attack("hostile-index", index_headers, (4, 1), ("answered", "refused")),
)
