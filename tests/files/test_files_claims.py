"""Files that claim more than they hold, or hold what cannot be used: refused at once, in words."""

import io
import json
import pickle
import struct
import time
import warnings
import zipfile
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cli_run import run
from cossim_fast import files

X = np.arange(12, dtype=np.float32).reshape(4, 3)


def refused(path, **options):
    """What is said of a file, without much work; the process may have to wait for others."""
    began = time.process_time()
    with pytest.raises(files.BadFileError) as caught:
        files.load(path, **options)
    assert time.process_time() - began < 5
    assert str(path) in str(caught.value)
    return str(caught.value)


def npy(shape=(4, 3), descr="<f4", data=None, fortran=False):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"shape": shape, "fortran_order": fortran, "descr": descr}
    )
    return header.getvalue() + (X.tobytes() if data is None else data)


def archive(path, members, compression=zipfile.ZIP_STORED):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that come twice
        with zipfile.ZipFile(path, "w", compression) as written:
            for name, content in members:
                written.writestr(name, content)
    return path


# .npy


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (npy((5, 3)), r"expected 188 bytes for \(5, 3\) of float32, got 176"),
        (npy((3, 3)), "expected 164 bytes"),
        (npy((2**62, 2**62)), "expected .* bytes"),
        (npy((-4, -3)), "claims a shape"),
        (npy((2**62, 0), data=b""), "expected numbers"),
        (npy(descr="<c8", data=bytes(96)), "real numbers are expected"),
        (npy(descr="<U2", data=bytes(96)), "numbers are expected"),
        (npy(descr="<u4"), "is of uint32, .* save x.astype"),
        (npy(descr="|V2", data=bytes(24)), "bfloat16"),
        (npy(descr=[("a", "<f4")]), "records of a"),
        (npy(descr="|O", data=pickle.dumps(1)), "Python objects"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\x7f{}", "claims 2.15 GB"),
        (b"\x93NUMPY\x01\x00\x10\x27" + b"(" * 10000, "makes no sense"),
        (b"\x93NUMPY\x09\x00", "version is 9.0"),
        (b"PK\x03\x04", "does not begin"),
    ],
)
def test_npy(content, why, tmp_path):
    path = tmp_path / "x.npy"
    path.write_bytes(content)
    assert refused(path)
    with pytest.raises(files.BadFileError, match=why):
        files.load(path)


def test_npy_of_either_order_and_of_no_size_is_read(tmp_path):
    path = tmp_path / "x.npy"
    for array in (X, np.asfortranarray(X), np.empty((0, 5)), X.astype(">f8"), np.empty((5, 0))):
        np.save(path, array)
        loaded = files.load(path)
        np.testing.assert_array_equal(loaded, array)
        assert (loaded.dtype, loaded.flags.f_contiguous) == (array.dtype, array.flags.f_contiguous)


def test_text_without_width_is_refused(tmp_path):
    path = tmp_path / "x.npy"
    path.write_bytes(npy((2**40,), "<U0", b""))
    assert "no width" in refused(path, ndim=1)


# .npz


def test_a_member_that_claims_more_rows_than_it_holds(tmp_path):
    members = [("x.npy", npy((5, 3))), ("other.npy", npy((400,), data=bytes(1600)))]
    path = archive(tmp_path / "x.npz", members)
    assert "expected 188 bytes" in refused(path, key="x")
    assert "expected 188 bytes" in refused(path)


def test_two_members_of_one_name(tmp_path):
    path = archive(tmp_path / "x.npz", [("x.npy", npy()), ("x.npy", npy(data=bytes(48)))])
    assert "two members named 'x.npy'" in refused(path, key="x")


def test_members_that_overlap(tmp_path):
    inner = archive(tmp_path / "inner.npz", [("y.npy", npy())]).read_bytes()
    first = npy((len(inner),), "|u1", inner)
    path = archive(tmp_path / "x.npz", [("x.npy", first), ("y.npy", npy())])
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as written:
        outer = written.getinfo("y.npy").header_offset
    # Let the directory place y where x holds an archive of its own.
    place = whole.index(b"PK\x01\x02", whole.index(b"PK\x01\x02", outer) + 4) + 42
    assert struct.unpack_from("<L", whole, place) == (outer,)
    inside = whole.index(inner)
    path.write_bytes(whole[:place] + struct.pack("<L", inside) + whole[place + 4 :])
    assert "overlaps" in refused(path, key="x")


@pytest.mark.parametrize("field", ["flags", "method", "crc", "packed", "size", "name"])
def test_a_header_that_differs_from_the_directory(field, tmp_path):
    path = archive(tmp_path / "x.npz", [("x.npy", npy())])
    whole = bytearray(path.read_bytes())
    place = {"flags": 6, "method": 8, "crc": 14, "packed": 18, "size": 22, "name": 30}[field]
    whole[place] ^= 1
    path.write_bytes(whole)
    assert "differ" in refused(path)


def test_encrypted_and_otherwise_packed_members(tmp_path):
    path = archive(tmp_path / "x.npz", [("x.npy", npy())])
    whole = bytearray(path.read_bytes())
    whole[whole.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(whole)
    assert "is encrypted" in refused(path)
    archive(path, [("x.npy", npy())], zipfile.ZIP_BZIP2)
    assert "packed by method 12" in refused(path)


@pytest.fixture
def bomb(tmp_path):
    """A quarter of a megabyte that unpacks to a quarter of a gigabyte, beside a small array."""
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as written:
        written.writestr("small.npy", npy())
        with written.open("bomb.npy", "w", force_zip64=True) as member:
            member.write(npy((1 << 8, 1 << 18), data=b""))
            for _ in range(1 << 4):
                member.write(bytes(1 << 24))
    return path


def test_an_archive_is_not_unpacked_beside_what_is_read(bomb):
    with mock.patch("numpy.lib.format.read_array", wraps=np.lib.format.read_array) as read:
        np.testing.assert_array_equal(files.load(bomb, key="small"), X)
        assert "name one with its key" in refused(bomb)
    assert read.call_count == 1
    with (
        mock.patch("cossim_fast.files.memory.physical_memory", return_value=10**8),
        pytest.raises(files.NotEnoughMemoryError, match="268 MB, and this machine has 100 MB"),
    ):
        files.load(bomb, key="bomb")


def test_more_than_deflate_can_pack_is_refused(tmp_path):
    path = archive(tmp_path / "x.npz", [("x.npy", npy())], zipfile.ZIP_DEFLATED)
    whole = bytearray(path.read_bytes())
    claimed = struct.pack("<L", 10**9)
    directory = whole.index(b"PK\x01\x02")
    whole[22:26] = whole[directory + 24 : directory + 28] = claimed
    path.write_bytes(whole)
    assert "claims 1 GB and takes" in refused(path)


def test_other_members_of_an_archive_are_no_arrays(tmp_path):
    path = archive(tmp_path / "x.npz", [("readme.txt", "text"), ("x.npy", npy())])
    np.testing.assert_array_equal(files.load(path), X)
    archive(path, [("y.npy", b"text"), ("x.npy", npy())])
    np.testing.assert_array_equal(files.load(path, key="x"), X)
    # y could have been the matrix that is meant.
    assert "y of unknown shape" in refused(path)


# .pt


def odd_tensors():
    x = torch.ones(4, 3)
    rows = [torch.ones(2, 3), torch.ones(4, 3)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # each is in beta, or deprecated
        return {
            r"is sparse \(torch.sparse_coo\); save x.to_dense": x.to_sparse(),
            r"is sparse \(torch.sparse_csr\); save x.to_dense": x.to_sparse_csr(),
            r"is quantized \(torch.qint8\); save x.dequantize": torch.quantize_per_tensor(
                x, 0.1, 0, torch.qint8
            ),
            "is a nested tensor; save its rows": torch.nested.nested_tensor(rows),
            "is a nested tensor; save its": torch.nested.nested_tensor(rows, layout=torch.jagged),
            r"is of torch.float8_e4m3fn, .* save x.float": x.to(torch.float8_e4m3fn),
            r"is of torch.uint16, .* save x.float": x.to(torch.uint16),
            r"is complex \(torch.complex64\); save": x.to(torch.complex64),
            "is on the meta device": x.to("meta"),
            "claims .* 4 TB, and the file holds 4 bytes": torch.ones(1).expand(10**6, 10**6),
            "claims .* 48 bytes, and the file holds 12": torch.ones(3).expand(4, 3),
        }


@pytest.mark.parametrize("inside", [False, True])
def test_tensors_that_nothing_is_computed_with(inside, tmp_path):
    path = tmp_path / "x.pt"
    for why, tensor in odd_tensors().items():
        torch.save({"x": tensor} if inside else tensor, path)
        refused(path)
        with pytest.raises(files.BadFileError, match=why):
            files.load(path, key="x" if inside else None)


def test_views_that_stay_inside_what_is_saved_are_read(tmp_path):
    base = torch.arange(60.0).reshape(10, 6)
    for view in (base.t(), base[2:7, 1:4], base[::3], base[:0], base[:, :0]):
        torch.save(view, tmp_path / "x.pt")
        assert torch.equal(files.load(tmp_path / "x.pt"), view)


def test_parameters_are_read_as_their_values(tmp_path):
    torch.save({"x": torch.nn.Parameter(torch.ones(3, 2))}, tmp_path / "x.pt")
    loaded = files.load(tmp_path / "x.pt")
    assert not loaded.requires_grad


def repacked(path, change):
    """Write an archive of torch's again, member for member, with checksums that fit."""
    with zipfile.ZipFile(path) as written:
        members = [(info.filename, written.read(info)) for info in written.infolist()]
    return archive(path, change(members))


def test_a_tensor_that_claims_more_than_its_record(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"x": torch.ones(4, 3), "y": torch.zeros(100)}, path)

    def forge(members):
        return [(name, content[:16] if name.endswith("data/0") else content)
                for name, content in members]  # fmt: skip

    repacked(path, forge)
    for verify in (True, False):
        assert "claims 48 bytes of numbers" in refused(path, key="x", verify=verify)


def test_a_repacked_file_is_read_and_a_compressed_one_is_not(tmp_path):
    path = tmp_path / "x.pt"
    torch.save(torch.from_numpy(X), path)
    repacked(path, list)
    np.testing.assert_array_equal(files.load(path), X)
    with zipfile.ZipFile(path) as written:
        members = [(info.filename, written.read(info)) for info in written.infolist()]
    archive(path, members, zipfile.ZIP_DEFLATED)
    assert "is compressed; save it by torch.save" in refused(path)


# .safetensors


def safetensors_file(path, entries, data=b""):
    header = json.dumps(entries).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


def entry(kind="F32", shape=(4, 3), offsets=(0, 48)):
    return {"dtype": kind, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ({"x": entry(), "y": entry()}, "cannot be read as .safetensors"),
        ({"x": entry(shape=(5, 3))}, "cannot be read"),
        ({"x": entry(shape=(2**62, 2**62))}, "cannot be read"),
        ({"x": entry(offsets=(0, 60))}, "cannot be read"),
        ({"x": entry("F37")}, "cannot be read"),
        ({"x": entry("F8_E4M3", (4, 12))}, "is of F8_E4M3, .* save x.float"),
        ({"x": entry("C64", (2, 3))}, "is complex"),
        ({"x": entry("U32")}, "is of U32, .* save x.float"),
    ],
)
def test_safetensors(entries, why, tmp_path):
    path = safetensors_file(tmp_path / "x.safetensors", entries, X.tobytes())
    refused(path)
    with pytest.raises(files.BadFileError, match=why):
        files.load(path)


def test_safetensors_whose_header_is_longer_than_the_file(tmp_path):
    path = tmp_path / "x.safetensors"
    for length in (100, 1 << 40, (1 << 64) - 1):
        path.write_bytes(length.to_bytes(8, "little") + b"{}")
        assert "cannot be read" in refused(path)


def test_one_tensor_alone_is_read(tmp_path, monkeypatch):
    import safetensors

    path = safetensors_file(
        tmp_path / "x.safetensors",
        {"x": entry(), "y": entry("U8", (48,), (48, 96))},
        X.tobytes() * 2,
    )
    read = []

    class Watched:
        def __init__(self, path, framework):
            self.file = safetensors.safe_open(path, framework)

        def __enter__(self):
            return mock.Mock(wraps=self.file, get_tensor=self.get_tensor)

        def __exit__(self, *_):
            pass

        def get_tensor(self, name):
            read.append(name)
            return self.file.get_tensor(name)

    watched = mock.Mock(safe_open=Watched, SafetensorError=safetensors.SafetensorError)
    monkeypatch.setattr("cossim_fast.files.safetensors.require", lambda *_, **__: watched)
    np.testing.assert_array_equal(files.load(path), X)
    assert read == ["x"]


# .parquet


def test_only_the_column_that_was_named_is_read(tmp_path):
    path = tmp_path / "x.parquet"
    table = pa.table({"x": X.tolist(), "y": [[1.0] * 500] * 4, "z": ["a", "b", "c", "d"]})
    pq.write_table(table, path, compression="none", use_dictionary=False, write_page_checksum=True)
    whole = bytearray(path.read_bytes())
    for name, at in (("y", whole.index(np.full(99, 1.0).tobytes())),):
        whole[at + 5] ^= 1
        path.write_bytes(whole)
        np.testing.assert_array_equal(files.load(path, key="x"), X)
        assert refused(path, key=name)
    assert files.load_column(path, "z").tolist() == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("columns", "key", "why"),
    [
        ({"x": [1.0, None]}, "x", "1 value is missing; the first in row 1"),
        ({"x": [1.0, 2.0], "y": ["a", "b"]}, None, r"but y \(string\); name with a key"),
        ({"x": [["a"], ["b"]]}, None, "lists are of string"),
        ({"x": [[1.0], [2.0]], "y": [[1.0], [2.0]]}, None, "name one with its key"),
        ({"x": [[1.0], [2.0]]}, "y", r"expected 'y' in .* which holds x \(2, \?\)"),
    ],
)
def test_parquet(columns, key, why, tmp_path):
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    with pytest.raises(files.BadFileError, match=why):
        files.load(tmp_path / "x.parquet", key=key)


@pytest.mark.parametrize("size", [3, 100])
@pytest.mark.parametrize(
    ("at", "value", "why"),
    [
        (7, None, "1 list is missing; the first in row 7"),
        (8, [1.0, None, 3.0], "1 number is missing; the first in row 8"),
        (9, [1.0] * 4, "of different lengths: 4 numbers in row 9, 3 in row 0"),
        (9, [], "of different lengths: 0 numbers in row 9, 3 in row 0"),
    ],
)
def test_the_row_that_does_not_fit_is_named(at, value, why, size, tmp_path):
    rows = [[1.0, 2.0, float(row)] for row in range(12)]
    rows[at] = value
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"x": rows}), path, row_group_size=size)
    with pytest.raises(files.BadFileError, match=f"{path} cannot be read as .parquet: .*{why}"):
        files.load(path)
    pq.write_table(pa.table({"x": rows, "y": rows}), path, row_group_size=size)
    with pytest.raises(files.BadFileError, match=why):
        files.load(path)


def test_parquet_of_several_row_groups(tmp_path):
    wide = np.arange(3000.0).reshape(100, 30)
    column = pa.FixedSizeListArray.from_arrays(pa.array(wide.reshape(-1)), 30)
    for x in (column, wide.tolist()):
        pq.write_table(pa.table({"x": x}), tmp_path / "x.parquet", row_group_size=7)
        np.testing.assert_array_equal(files.load(tmp_path / "x.parquet"), wide)


def test_a_column_larger_than_memory_is_refused_with_figures(tmp_path):
    column = pa.FixedSizeListArray.from_arrays(pa.array(X.reshape(-1)), 3)
    pq.write_table(pa.table({"x": column}), tmp_path / "x.parquet")
    with (
        mock.patch("cossim_fast.files.memory.physical_memory", return_value=40),
        pytest.raises(files.NotEnoughMemoryError, match="48 bytes, and this machine has 40 bytes"),
    ):
        files.load(tmp_path / "x.parquet")


# Rows of no width


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt", ".safetensors"])
def test_rows_of_no_width_are_not_gone_through(suffix, tmp_path):
    path, n = tmp_path / f"x{suffix}", 2**60
    if suffix == ".npy":
        path.write_bytes(npy((n, 0), data=b""))
    elif suffix == ".npz":
        archive(path, [("x.npy", npy((n, 0), data=b""))])
    elif suffix == ".pt":
        torch.save(torch.empty(n, 0), path)
    else:
        safetensors_file(path, {"x": entry(shape=(n, 0), offsets=(0, 0))})
    np.save(tmp_path / "q.npy", X)
    began = time.process_time()
    assert tuple(files.load(path).shape) == (n, 0)
    for command in (["topk", path, path], ["pairs", path], ["dedup", path, "--skip-nan"]):
        status, _, err = run(*command)
        assert status == 2
        assert f"d >= 1 in {path}, got shape ({n}, 0)" in err
    assert time.process_time() - began < 30  # the command is imported meanwhile


# What is there and does not fit


def test_vectors_by_their_ids_are_rows_where_that_is_asked_for(tmp_path):
    vectors = {f"doc{row}": torch.from_numpy(X[row].copy()) for row in range(4)}
    torch.save(vectors, tmp_path / "x.pt")
    np.savez(tmp_path / "x.npz", **{name: vector.numpy() for name, vector in vectors.items()})
    for path in (tmp_path / "x.pt", tmp_path / "x.npz"):
        assert "--key '*' takes vectors of one length as rows" in refused(path)
        np.testing.assert_array_equal(files.load(path, key="*"), X)
        np.testing.assert_array_equal(files.load(path, key="doc[12]"), X[1:3])
    torch.save({**vectors, "other": torch.ones(7)}, tmp_path / "x.pt")
    assert "vectors of one length" in refused(tmp_path / "x.pt", key="*")
    np.testing.assert_array_equal(files.load(tmp_path / "x.pt", key="doc*"), X)


def test_what_is_no_tensor_is_named(tmp_path):
    path = tmp_path / "x.pt"
    torch.save(X.tolist(), path)
    assert "holds array, which is of type list; save torch.tensor(x)" in refused(path)
    torch.save({"emb": X.tolist(), "step": 3}, path)
    assert "emb, which is of type list; save torch.tensor(x), step, which is of" in refused(path)
    torch.save({"emb": torch.from_numpy(X), "names": ["a", "b"]}, path)
    np.testing.assert_array_equal(files.load(path), X)
    torch.save({f"name{at}": "text" for at in range(500)}, path)
    assert "and 480 more" in refused(path)


def test_a_column_of_tensors_of_one_shape(tmp_path):
    column = pa.FixedShapeTensorArray.from_numpy_ndarray(X)
    pq.write_table(pa.table({"id": [1, 2, 3, 4], "vector": column}), tmp_path / "x.parquet")
    np.testing.assert_array_equal(files.load(tmp_path / "x.parquet"), X)
    np.testing.assert_array_equal(files.load(tmp_path / "x.parquet", key="vector"), X)
