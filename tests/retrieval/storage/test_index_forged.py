"""Headers of index files whose checksums fit and whose claims do not: one clear error, at once."""

import copy
import json
import struct
import time
import zlib

import numpy as np
import pytest

from cossim_fast import CosineIndex
from cossim_fast.retrieval import FileError
from cossim_fast.retrieval.storage import growing_file
from index_data import QUERIES, assert_same, changed_index, put_together, rows, taken_apart

HOSTILE = [
    None, True, -1, 0, 1, 7, 1.5, 2**31, 2**62, 2**63, 2**64, 10**9, -(10**9), 10**30, "", "x",
    "-1", "0", "1", "2", "1000000000", "²", "9" * 5000, "NaN", "\ud800", "I64", "F32", "float32",
    "int8", [], [0], [1, 2], [-1, -1], [2**62, 0], [2**62, 2**62], [[]], ["a", "b"], [1.0, 2.0],
    [1] * 100_000, {}, {"a": 1},
]  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "index"
    changed_index().save(path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def wanted(saved, tmp_path_factory):
    path = tmp_path_factory.mktemp("wanted") / "index"
    path.write_bytes(saved)
    return CosineIndex.load(path).search(QUERIES, 396)


def refused_or_same(path, wanted, mmap):
    """Whether a file was refused; if not, it has to give the answer that it gave."""
    begin, said = time.perf_counter(), None
    try:
        found = CosineIndex.load(path, mmap=mmap).search(QUERIES, 396)
    except FileError as error:
        said = str(error)
    assert time.perf_counter() - begin < 2
    if said is None:
        assert_same(found, wanted)
    else:
        assert str(path) in said
    return said is not None


def places(held, at=()):
    """The places of all values in nested dicts and lists."""
    yield at
    if isinstance(held, (dict, list)):
        for key in held if isinstance(held, dict) else range(len(held)):
            yield from places(held[key], (*at, key))


def change(held, at, generator):
    """A copy with one thing changed, gone, or added."""
    held = copy.deepcopy(held)
    inner = held
    for key in at[:-1]:
        inner = inner[key]
    value = HOSTILE[generator.integers(len(HOSTILE))]
    if generator.random() < 0.2:
        del inner[at[-1]]
    elif generator.random() < 0.1 and isinstance(inner, dict):
        inner[str(value)[:100]] = inner[at[-1]]
    else:
        inner[at[-1]] = value
    return held


@pytest.mark.parametrize("mmap", [True, False])
def test_no_header_leads_astray(saved, wanted, mmap, tmp_path):
    generator, path = np.random.default_rng(mmap), tmp_path / "index"
    said, entries, data = taken_apart(saved)
    whole = {"said": said, "entries": entries}
    there = [at for at in places(whole) if len(at) > 1]
    refused = 0
    for number in range(400):
        changed = change(whole, there[generator.integers(len(there))], generator)
        if number % 4 == 0:
            there_now = [at for at in places(changed) if len(at) > 1]
            changed = change(changed, there_now[generator.integers(len(there_now))], generator)
        path.write_bytes(put_together(changed["said"], changed["entries"], data))
        refused += refused_or_same(path, wanted, mmap)
    assert refused > 350


def test_a_header_whose_checksum_was_made_anew_is_read(saved, wanted, tmp_path):
    (tmp_path / "index").write_bytes(put_together(*taken_apart(saved)))
    assert not refused_or_same(tmp_path / "index", wanted, mmap=True)


def _with(**said):
    return lambda header: header[0].update(said)


def _tensor(name, **changed):
    return lambda header: header[1][name].update(changed)


def _drop(name):
    return lambda header: header[1].pop(name)


def _overlap(header):
    entries = header[1]
    entries["1.alive"]["data_offsets"] = list(entries["0.alive"]["data_offsets"])
    entries["1.alive"]["shape"] = list(entries["0.alive"]["shape"])


FORGED = {
    "no parts": (lambda header: header[0].pop("parts"), "does not describe an index"),
    "a milliard of parts": (_with(parts=str(10**9)), "holds no 3.serials"),
    "parts below 0": (_with(parts="-1"), "does not describe an index"),
    "fewer parts": (_with(parts="1"), "belongs to no part"),
    "no width": (lambda header: header[0].pop("width"), "does not describe an index"),
    "another width": (_with(width="15"), "expected centre of shape"),
    "another dtype": (_with(dtype="float16"), "expected 0.rows of shape"),
    "no dtype": (_with(dtype="qint8"), "does not describe an index"),
    "no screen": (_with(screen="best"), "does not describe an index"),
    "other ids": (_with(ids="whole numbers"), "holds no 0.numbers"),
    "fewer rows than there are": (_with(count="300"), "not in order"),
    "no checksums": (_drop("0.sums"), "holds no 0.sums|makes no sense"),
    "no codes": (_drop("1.codes"), "makes no sense"),
    "overlapping tensors": (_overlap, "makes no sense"),
    "rows of no width": (_tensor("0.rows", shape=[2**62, 0]), "makes no sense"),
    "numbers that are none": (_tensor("0.rows", shape=[300.0, 16]), "makes no sense"),
    "a transposed shape": (_tensor("0.rows", shape=[16, 300]), "expected 0.rows of shape"),
    "another dtype of a tensor": (_tensor("0.serials", dtype="F64"), "expected 0.serials of shape"),
}


@pytest.mark.parametrize("case", FORGED)
def test_what_a_header_claims_is_what_the_file_holds(case, saved, tmp_path):
    header, (forge, said) = taken_apart(saved), FORGED[case]
    forge(header)
    (tmp_path / "index").write_bytes(put_together(*header))
    with pytest.raises(FileError, match=said) as caught:
        CosineIndex.load(tmp_path / "index")
    assert str(tmp_path / "index") in str(caught.value)


OTHER_FORMS = {
    "nested lists": b"[" * 10**6,
    "nested objects": b'{"a":' * 10**6,
    "nested and closed": b'{"__metadata__": ' + b"[" * 10**5 + b"]" * 10**5 + b"}",
    "a number": b"1",
    "text": b'"text"',
    "null": b"null",
    "metadata in a list": b'{"__metadata__": [["kind", "cossim_fast index"]]}',
    "no UTF-8": b"\xff\xfe",
    "a long number": b"9" * 9999,
}


@pytest.mark.parametrize("header", OTHER_FORMS.values(), ids=OTHER_FORMS)
def test_a_header_of_another_form_is_refused(header, tmp_path):
    (tmp_path / "index").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(FileError, match=r"index is damaged|index to be a cossim_fast index"):
        CosineIndex.load(tmp_path / "index")


def test_checksums_of_another_form_are_refused(saved, tmp_path):
    said, entries, data = taken_apart(saved)
    for text in (
        "",
        "[]",
        "[" * 10**5,
        '{"a": 1}',
        json.dumps(dict.fromkeys(entries, 7)),
        "\ud800",
    ):
        forged = put_together({**said, "crc32": text}, entries, data)
        (tmp_path / "index").write_bytes(forged)
        with pytest.raises(FileError, match="index is damaged"):
            CosineIndex.load(tmp_path / "index")


@pytest.mark.parametrize("ends", ["below 0", "descending", "behind the text", "within a letter"])
def test_ids_that_lie_nowhere_are_refused(ends, saved, tmp_path):
    said, entries, data = taken_apart(saved)
    first, last = entries["0.ends"]["data_offsets"]
    numbers = np.frombuffer(data[first:last], np.int64).copy()
    at = {"below 0": (0, -5), "descending": (7, 0), "behind the text": (-1, 10**12)}
    place, value = at.get(ends, (1, numbers[1] - 2))  # behind the first byte of a letter of three
    numbers[place] = value
    data = data[:first] + numbers.tobytes() + data[last:]
    sums = {**json.loads(said["crc32"]), "0.ends": f"{zlib.crc32(numbers.tobytes()):08x}"}
    (tmp_path / "index").write_bytes(
        put_together({**said, "crc32": json.dumps(sums)}, entries, data)
    )
    with pytest.raises(FileError, match="ids make no sense"):
        CosineIndex.load(tmp_path / "index")


# The records of a file that grows.


def _record(turn, count, d, name):
    raw = struct.pack("<QQQ8sI", turn, count, d, name, 0)
    return raw + zlib.crc32(raw).to_bytes(4, "little")


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ((99, 10**9, 16, b"F32"), "is truncated"),
        ((99, 2**63, 2**63, b"F64"), "is truncated"),
        ((99, 2**62, 0, b"F32"), "rows without a number"),
        ((99, 4, 16, b"F32"), "checksum of its rows does not fit"),
        ((99, 5, 16, b"F16"), "checksum of its rows does not fit"),
    ],
)
def test_a_record_that_was_forged_is_refused(record, said, tmp_path):
    path = tmp_path / "vectors"
    CosineIndex(rows(5), path=path)
    raw = path.read_bytes()
    path.write_bytes(raw[:4096] + _record(*record).ljust(4096, b"\0") + raw[8192:])
    with pytest.raises(FileError, match=said) as caught:
        CosineIndex.reopen(path)
    assert str(path) in str(caught.value)


def test_a_file_without_a_record_is_refused(saved, tmp_path):
    path = tmp_path / "vectors"
    for raw in (b"", b"x", saved, bytes(growing_file._ROWS)):
        path.write_bytes(raw)
        with pytest.raises(
            FileError, match="vectors to be a cossim_fast vectors file of version 2"
        ):
            CosineIndex.reopen(path)
        assert path.read_bytes() == raw
