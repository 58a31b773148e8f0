"""Tables of numbers: which columns are coordinates, and which are not."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cli_run import run
from cossim_fast import files

X = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
FLOATS = {f"x{at}": X[:, at] for at in range(4)}
ROWS = np.arange(10**6, 10**6 + 50)


def write(path, columns, index=None):
    table = pa.table(columns)
    if index is not None:  # as pandas writes it
        said = {"index_columns": index, "columns": [], "pandas_version": "2.2.0"}
        table = table.replace_schema_metadata({"pandas": json.dumps(said)})
    pq.write_table(table, path)
    return path


@pytest.mark.parametrize(
    ("beside", "index"),
    [
        ({"id": ROWS}, None),
        ({"__index_level_0__": ROWS}, ["__index_level_0__"]),
        ({"__index_level_0__": ROWS}, None),
        ({"year": ROWS + 0.5}, ["year"]),
        ({"a": ROWS + 0.5, "b": ROWS}, ["a", "b"]),
        ({}, [{"kind": "range", "name": None, "start": 0, "stop": 50, "step": 1}]),
        ({"good": ROWS % 2 == 0, "label": (ROWS % 7).astype(np.int8)}, None),
        ({"text": ["a"] * 50, "when": ROWS.astype("datetime64[s]")}, None),
        ({"shape": [[1, 2]] * 50}, None),
    ],
)
@pytest.mark.parametrize("first", [False, True])
def test_floats_alone_are_coordinates(beside, index, first, tmp_path):
    columns = {**beside, **FLOATS} if first else {**FLOATS, **beside}
    path = write(tmp_path / "x.parquet", columns, index)
    said = []
    np.testing.assert_array_equal(files.load(path, note=said.append), X)
    assert bool(said) == bool(beside)
    assert all(name in said[0] for name in beside)


def test_lists_of_floats_are_meant_where_lists_of_tokens_stand_beside(tmp_path):
    path = write(tmp_path / "x.parquet", {"tokens": (ROWS[:, None] + X.astype(int)).tolist(),
                                          "vector": X.tolist()})  # fmt: skip
    np.testing.assert_allclose(files.load(path), X)
    assert files.load(path, key="tokens").dtype == np.int64


def test_what_is_asked_for_by_key_is_taken(tmp_path):
    path = write(tmp_path / "x.parquet", {"id": ROWS, **FLOATS})
    np.testing.assert_array_equal(files.load(path, key="x1,x0"), X[:, [1, 0]])
    np.testing.assert_array_equal(files.load(path, key="id, x?"), np.column_stack([ROWS, X]))
    np.testing.assert_array_equal(files.load(path, key="id", ndim=1), ROWS)
    with pytest.raises(files.BadFileError, match=r"expected 'y\*' in .* which holds .*x0"):
        files.load(path, key="y*")


def test_whole_numbers_are_refused_unless_they_are_named(tmp_path):
    path = write(tmp_path / "x.parquet", {"a": ROWS, "b": ROWS % 3, "c": ROWS % 2 == 0})
    with pytest.raises(files.BadFileError, match=r"a \(int64\), b \(int64\), c \(bool\); name"):
        files.load(path)
    np.testing.assert_array_equal(files.load(path, key="a,b"), np.column_stack([ROWS, ROWS % 3]))


def test_labels_are_found_beside_the_index_of_a_frame(tmp_path):
    path = write(tmp_path / "x.parquet", {"label": ROWS % 3, "row": ROWS}, ["row"])
    np.testing.assert_array_equal(files.load(path, ndim=1), ROWS % 3)
    np.testing.assert_array_equal(files.load_column(path, None), ROWS % 3)
    np.testing.assert_array_equal(files.load_column(path, "row"), ROWS)


@pytest.mark.parametrize("said", [b"{", b"[]", b'{"index_columns": 3}', b"[" * 10**5])
def test_metadata_of_pandas_that_make_no_sense_are_refused(said, tmp_path):
    table = pa.table(FLOATS).replace_schema_metadata({"pandas": said})
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(files.BadFileError, match="metadata of pandas"):
        files.load(tmp_path / "x.parquet")


def test_the_command_finds_no_pairs_in_a_filtered_frame(tmp_path):
    path = write(
        tmp_path / "x.parquet",
        {**FLOATS, "__index_level_0__": ROWS, "id": ROWS},
        ["__index_level_0__"],
    )
    status, out, err = run("pairs", path, "--threshold", "0.9999")
    assert (status, out) == (0, "")
    assert "id (int64)" in err
    assert "0 pairs of 50 rows" in err
    status, out, err = run("diagnose", path)
    assert (status, out.splitlines()[0]) == (0, "embeddings: healthy")
    assert "id (int64)" in err
