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

    for module in (parquet_ranges, ranges):
        monkeypatch.setattr(module, "AT_ONCE", 1000)
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
