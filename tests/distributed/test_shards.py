"""Files of embeddings as one matrix: what is found, in which order, and what is read of them."""

import itertools
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cossim_fast.distributed import shards
from cossim_fast.distributed.places import counting


def lists(x, kind="list"):
    """Rows as a column of lists."""
    flat = pa.array(x.ravel())
    if kind == "fixed":
        return pa.FixedSizeListArray.from_arrays(flat, x.shape[1])
    return pa.ListArray.from_arrays(pa.array(np.arange(len(x) + 1) * x.shape[1], pa.int32()), flat)


def write(path, x, *, kind="list", group=64, **columns):
    table = pa.table({"embedding": lists(x, kind), **columns})
    pq.write_table(table, path, row_group_size=group)


def rows_of(n, d=8, dtype="float32", seed=0):
    return np.random.default_rng(seed).standard_normal((n, d)).astype(dtype)


def all_of(found, start=0, stop=None):
    """The rows of a range, after it was checked that pieces are consecutive."""
    stop = found.rows if stop is None else stop
    pieces, at = [], start
    for first, piece in found.between(start, stop):
        assert first == at
        at += len(piece)
        pieces.append(piece)
    assert at == stop
    return torch.cat(pieces) if pieces else torch.empty(0, found.width)


@pytest.mark.parametrize("kind", ["list", "fixed", "npy"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8"])
def test_rows_of_all_files_in_the_order_of_their_numbers(tmp_path, kind, dtype):
    x = (rows_of(500) * 20).astype(dtype)
    bounds = [0, 0, 1, 64, 127, 191, 256, 500]
    for number, (low, high) in enumerate(itertools.pairwise(bounds)):
        part = x[low:high]
        if kind == "npy":
            np.save(tmp_path / f"part-{number * 3}.npy", part)
        else:
            write(tmp_path / f"part-{number * 3}.parquet", part, kind=kind)
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / ".part-1.npy.77.part").touch()
    found = pickle.loads(pickle.dumps(shards.find(tmp_path)))
    assert (found.rows, found.width, found.dtype) == (500, 8, dtype)
    assert [shard.first for shard in found.shards] == bounds[:-1]
    expected = torch.from_numpy(x)
    assert torch.equal(all_of(found), expected)
    for start, stop in [(0, 0), (0, 1), (63, 65), (100, 300), (499, 500), (500, 500)]:
        assert torch.equal(all_of(found, start, stop), expected[start:stop])
    pattern = shards.find(f"{tmp_path}/part-*")
    assert [shard.path for shard in pattern.shards] == [shard.path for shard in found.shards]
    assert found.shard_of(63).first == 1
    assert found.shard_of(0).rows == 1


def test_large_files_are_read_in_pieces(tmp_path, monkeypatch):
    from cossim_fast.files import parquet_ranges, ranges

    monkeypatch.setattr(ranges, "PIECE", 1000)
    monkeypatch.setattr(parquet_ranges, "_DECODED", 1000)
    monkeypatch.setattr(parquet_ranges, "AT_ONCE", 1000)
    x = rows_of(300)
    np.save(tmp_path / "a.npy", x)
    write(tmp_path / "b.parquet", x, group=130)
    found = shards.find([tmp_path / "a.npy", tmp_path / "b.parquet"])
    pieces = list(found.between(10, 590))
    assert max(piece.numel() * 4 for _, piece in pieces) <= 1000
    assert torch.equal(
        torch.cat([piece for _, piece in pieces]), torch.from_numpy(x).repeat(2, 1)[10:590]
    )


def test_bytes_read_are_those_foretold(tmp_path):
    x = rows_of(1000)
    np.save(tmp_path / "a.npy", x)
    write(tmp_path / "b.parquet", x, group=100, kind="fixed", other=np.arange(1000))
    found = shards.find([tmp_path / "a.npy", tmp_path / "b.parquet"])
    for start, stop in [(0, 2000), (0, 10), (900, 1150), (1105, 1106), (1200, 1300)]:
        with counting() as traffic:
            all_of(found, start, stop)
        assert traffic.read == found.bytes_between(start, stop)
    assert found.boundaries() == [0, *range(1000, 2001, 100)]
    assert found.bytes_between(1200, 1300) < found.bytes_between(1200, 1301)


def test_ids_and_other_columns(tmp_path):
    names = np.array([f"doc-{i}" for i in range(200)])
    write(tmp_path / "0.parquet", rows_of(120), id=names[:120], length=np.arange(120))
    write(tmp_path / "1.parquet", rows_of(80), id=names[120:], length=np.arange(120, 200))
    found = shards.find(tmp_path, column="embedding", id_column="id")
    assert found.ids(60, 130).to_pylist() == names[60:130].tolist()
    assert found.column_values("length", 119, 121).to_pylist() == [119, 120]
    assert shards.find(tmp_path).ids(0, 1) is None


def test_another_column_is_looked_for_in_all_footers(tmp_path):
    write(tmp_path / "0.parquet", rows_of(20), length=np.arange(20))
    write(tmp_path / "1.parquet", rows_of(20), length=np.arange(20))
    shards.find(tmp_path).check_column("length")
    write(tmp_path / "1.parquet", rows_of(20), length=np.arange(20.0))
    found = shards.find(tmp_path)
    for read in (found.check_column, lambda name: found.column_values(name, 0, 40)):
        with pytest.raises(ValueError, match=r"one type .* int64 in .*0\..* and double in .*1\."):
            read("length")
    write(tmp_path / "1.parquet", rows_of(20))
    with pytest.raises(ValueError, match=r"expected a column 'length' in .*1\.parquet, got emb"):
        shards.find(tmp_path).check_column("length")


WIDE = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
F32 = pa.list_(pa.float32())


def table(rows=WIDE, kind=F32, **columns):
    return pa.table({"embedding": pa.array(rows, kind), **columns})


# What a footer shows is refused before any row is read; each is the second file of two.
SHOWN = {
    "width": (table([[1.0] * 3] * 3), "rows of 2 float32 in .*0.parquet and of 3 float32 in"),
    "dtype": (table(kind=pa.list_(pa.float64())), "rows of 2 float32 in .*and of 2 float64 in"),
    "whole numbers": (table([[1, 2]], pa.list_(pa.int64())), "lists of 'embedding' are of int64"),
    "no lists": (table([1.0, 2.0, 3.0], pa.float32()), "'embedding' is of float, and lists of num"),
    "null": (table([*WIDE, None, WIDE[0]]), r"row 3 is missing \(null\)"),
    "null number": (table([*WIDE, [1.0, None]]), r"row 3 lacks number 1 \(null\)"),
    "null in fixed": (
        table([*WIDE, None], pa.list_(pa.float32(), 2)),
        r"row 3 is missing \(null\)",
    ),
    "ragged": (table([*WIDE, [1.0]]), "row 3 is of 1 numbers, and others are of 2"),
    "ragged at last": (
        table(WIDE * 99 + [[1.0] * 3]),
        "row 297 is of 3 numbers, and others are of 2",
    ),
    "no column": (
        table().rename_columns(["vector"]),
        r"a column 'embedding' in .*, got vector \(list",
    ),
    "no ids": (table(), "a column 'id' in .*, got embedding"),
    "null id": (table(id=pa.array([7, None, 9])), r"row 1 has no value of 'id' \(null\)"),
    "ids of another type": (
        table(id=["a", "b", "c"]),
        "ids of one type, got int64 in .* and large_string in",
    ),
}


@pytest.mark.parametrize("case", SHOWN)
def test_what_a_footer_shows_is_refused_before_anything_is_read(tmp_path, case):
    bad, words = SHOWN[case]
    pq.write_table(table(id=pa.array([0, 1, 2])), tmp_path / "0.parquet")
    if case != "no ids" and "id" not in bad.column_names:
        bad = bad.append_column("id", pa.array(np.arange(len(bad)) + 10))
    pq.write_table(bad, tmp_path / "1.parquet", row_group_size=100)
    with pytest.raises(ValueError, match=words) as raised:
        shards.find(tmp_path, column="embedding", id_column="id")
    assert str(tmp_path / "1.parquet") in str(raised.value)


def test_what_a_footer_does_not_show_is_refused_where_it_is_read(tmp_path):
    pq.write_table(table(), tmp_path / "0.parquet")
    pq.write_table(table([*WIDE, [1.0], [1.0, 2.0, 3.0], *WIDE]), tmp_path / "1.parquet")
    found = shards.find(tmp_path)
    assert len(all_of(found, 0, 3)) == 3
    with pytest.raises(ValueError, match=r"1\.parquet cannot .* row 3 is of 1 numbers, and others"):
        all_of(found)
    nulls = table([*WIDE, None, [1.0] * 3], id=pa.array([1, 2, None, 4, 5]))
    pq.write_table(nulls, tmp_path / "1.parquet", write_statistics=False)
    found = shards.find(tmp_path)
    with pytest.raises(ValueError, match=r"1\.parquet cannot .* row 3 is missing \(null\)"):
        all_of(found)
    with pytest.raises(ValueError, match=r"1\.parquet .* row 2 has no value of 'id'"):
        found.column_values("id", 3, 7)
    with pytest.raises(ValueError, match=r"1\.parquet .* row 2 has no value of 'id'"):
        shards.find(tmp_path / "1.parquet", id_column="id")


@pytest.mark.parametrize("kind", ["text", "numbers", "dictionary"])
@pytest.mark.parametrize("at_once", [2, 1000])
def test_ids_that_are_equal_are_refused(tmp_path, monkeypatch, kind, at_once):
    from cossim_fast.distributed import ids

    monkeypatch.setattr(ids, "_AT_ONCE", at_once)
    values = np.arange(300)
    values[250] = 17
    values = values if kind == "numbers" else pa.array([f"doc-{value}" for value in values])
    values = values.dictionary_encode() if kind == "dictionary" else values
    write(tmp_path / "0.parquet", rows_of(150), id=values[:150])
    write(tmp_path / "1.parquet", rows_of(150), id=values[150:])
    with pytest.raises(ValueError, match=r"17'? in row 17 of .*0\.parquet and in row 100 of .*1\."):
        shards.find(tmp_path, id_column="id")
    found = shards.find(tmp_path / "0.parquet", id_column="id")
    assert found.ids(140, 150).to_pylist() == pa.array(values[140:150]).to_pylist()


def test_different_ids_of_one_hash_are_no_duplicates(tmp_path, monkeypatch):
    from cossim_fast.distributed import ids

    monkeypatch.setattr(ids, "hash", len, raising=False)
    write(tmp_path / "0.parquet", rows_of(4), id=["a", "b", "cc", "dd"])
    assert shards.find(tmp_path, id_column="id").rows == 4
    write(tmp_path / "0.parquet", rows_of(4), id=["a", "dd", "cc", "dd"])
    with pytest.raises(ValueError, match=r"'dd' in row 1 of .* and in row 3 of"):
        shards.find(tmp_path, id_column="id")


def damaged(whole):
    """A file cut anywhere near its ends, or with one bit of its footer changed."""
    yield from (whole[:length] for length in [0, 1, 4, 8, 11, *range(len(whole) - 20, len(whole))])
    footer = int.from_bytes(whole[-8:-4], "little") + 8
    for place in range(len(whole) - footer, len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        yield bytes(changed)


@pytest.mark.parametrize("kind", ["list", "fixed"])
def test_a_damaged_footer_is_an_error_that_names_the_file_or_nothing(tmp_path, kind):
    path = tmp_path / "0.parquet"
    write(path, rows_of(40), kind=kind, group=20, id=np.arange(40))
    refused = 0
    for content in damaged(path.read_bytes()):
        path.write_bytes(content)
        try:
            shards.find(path, column="embedding", id_column="id")
        except ValueError as error:
            refused += str(path) in str(error)
    assert refused > 300


@pytest.mark.parametrize("suffix", ["npy", "safetensors"])
def test_files_of_other_formats_are_compared_with_their_size(tmp_path, suffix):
    from safetensors.numpy import save_file

    path = tmp_path / f"0.{suffix}"
    x = rows_of(10)
    np.save(path, x) if suffix == "npy" else save_file({"x": x}, path)
    whole = path.read_bytes()
    for content in [b"", whole[:5], whole[:-1], whole + b"\0", b"\xff" * 8 + whole[8:]]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"0\.{suffix} cannot be read as \.{suffix}"):
            shards.find(path)


def test_other_kinds_of_arrays_and_tensors_are_refused(tmp_path):
    from safetensors.torch import save_file

    np.save(tmp_path / "flat.npy", np.ones(3, "float32"))
    np.save(tmp_path / "whole.npy", np.ones((3, 2), "int64"))
    np.save(tmp_path / "columns.npy", np.asfortranarray(np.ones((3, 2), "float32")))
    for name, words in {
        "flat": "expected rows", "whole": "it is of int64", "columns": "ascontiguousarray",
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=rf"{name}\.npy cannot be read as \.npy: .*{words}"):
            shards.find(tmp_path / f"{name}.npy")
    np.save(tmp_path / "right.npy", np.ones((3, 2), "float32"))
    with pytest.raises(ValueError, match=r"expected a column 'id' in .*right\.npy"):
        shards.find(tmp_path / "right.npy", id_column="id")
    two = {"a": torch.ones(3, 2), "b": torch.ones(3, 2), "n": torch.ones(2)}
    save_file(two, tmp_path / "two.safetensors")
    with pytest.raises(ValueError, match=r"expected one tensor of 2 axes in .*, got a \(3, 2\)"):
        shards.find(tmp_path / "two.safetensors")
    with pytest.raises(ValueError, match="expected a tensor 'n' of one number for each of 3 rows"):
        shards.find(tmp_path / "two.safetensors", column="a", id_column="n")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_safetensors_of_every_dtype(tmp_path, dtype):
    from safetensors.torch import save_file

    x = torch.from_numpy(rows_of(100)).to(dtype)
    for number, part in enumerate(x.split(30)):
        ids = torch.arange(len(part)) + 30 * number
        save_file({"x": part.contiguous(), "id": ids}, tmp_path / f"{number}.safetensors")
    found = shards.find(tmp_path, id_column="id")
    assert f"torch.{found.dtype}" == str(dtype)
    read = all_of(found, 10, 95)
    assert read.dtype == dtype
    assert torch.equal(read, x[10:95])
    assert found.ids(20, 40).to_pylist() == list(range(20, 40))


def test_empty_files_have_the_width_of_the_others(tmp_path):
    for number, count in enumerate([0, 2, 0]):
        rows = [[1.0, 2.0]] * count
        pq.write_table(table(rows), tmp_path / f"{number}.parquet")
    found = shards.find(tmp_path)
    assert {shard.width for shard in found.shards} == {2}
    assert len(all_of(found)) == 2
    empty = shards.find([tmp_path / "0.parquet", tmp_path / "2.parquet"])
    assert (empty.rows, list(empty.between(0, 0)), empty.boundaries()) == (0, [], [0])


def test_places_without_files_are_refused(tmp_path):
    (tmp_path / "notes.txt").touch()
    for asked, words in {
        tmp_path / "none.npy": "expected a file at .*none.npy, and there is none",
        tmp_path: r"expected files ending in \.npy, \.safetensors, \.parquet at",
        f"{tmp_path}/x*.npy": "there are none",
        tmp_path / "notes.txt": r"expected a file ending in .* got .*notes\.txt",
    }.items():
        with pytest.raises(ValueError, match=words):
            shards.find(asked)
    with pytest.raises(ValueError, match="an empty list"):
        shards.find([])
    np.save(tmp_path / "x.npy", rows_of(3))
    with pytest.raises(ValueError, match=r"each file once, got .*x\.npy several times"):
        shards.find([tmp_path / "x.npy", f"{tmp_path}/*.npy"])
    write(tmp_path / "x.parquet", rows_of(3))
    with pytest.raises(ValueError, match=r"files of one kind at .*, got \.npy, \.parquet; name"):
        shards.find(tmp_path)
    both = shards.find([tmp_path / "x.npy", tmp_path / "x.parquet"])
    assert [shard.path[-5:] for shard in both.shards] == ["x.npy", "rquet"]
    with pytest.raises(ValueError, match="a range of 3 rows, got 1 to 4"):
        list(shards.find(tmp_path / "x.npy").between(1, 4))
