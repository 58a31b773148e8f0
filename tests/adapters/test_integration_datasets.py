"""The adapter for Hugging Face datasets: columns in, rows and an index out."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from datasets import (
    Array2D,
    Array3D,
    Dataset,
    DatasetDict,
    Features,
    List,
    Value,
    concatenate_datasets,
)

from cossim_fast.integrations.datasets import DatasetIndex, column_rows, index_column
from cossim_fast.integrations.faiss import IndexFlatCosine

DATA = Path(__file__).parent.parent.parent / "examples" / "data"
ROWS = np.load(DATA / "wordnet_minilm_4k_f16.npy")[:300].astype("f")
TEXTS = (DATA / "wordnet_glosses_4k.txt").read_text(encoding="utf-8").splitlines()[:300]


def dataset(kind="float32", length=384, rows=ROWS):
    features = Features({"text": Value("string"), "vector": List(Value(kind), length=length)})
    held = {"text": TEXTS[: len(rows)], "vector": list(rows.astype(kind))}
    return Dataset.from_dict(held, features=features)


def buffers(given):
    """Where Arrow keeps the numbers of a column."""
    spans = []
    for chunk in given.data.column("vector").chunks:
        values = chunk.values.buffers()[1]
        spans.append((values.address, values.address + values.size))
    return spans


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
@pytest.mark.parametrize("length", [384, -1])
def test_one_piece_is_not_copied(kind, length):
    given = dataset(kind, length)
    rows = column_rows(given, "vector")
    assert (rows.dtype, rows.shape) == (np.dtype(kind), (300, 384))
    assert np.array_equal(rows, ROWS.astype(kind))
    ((start, stop),) = buffers(given)
    assert start <= rows.ctypes.data < stop
    assert not rows.flags.writeable


def test_a_dataset_on_disk_is_read_where_it_lies(tmp_path):
    dataset().save_to_disk(str(tmp_path))
    given = Dataset.load_from_disk(str(tmp_path))
    rows = column_rows(given, "vector")
    assert np.array_equal(rows, ROWS)
    assert any(start <= rows.ctypes.data < stop for start, stop in buffers(given))


def test_many_pieces_and_selections():
    joined = concatenate_datasets([dataset(), dataset(rows=ROWS[:7])])
    assert np.array_equal(column_rows(joined, "vector"), np.vstack([ROWS, ROWS[:7]]))
    some = dataset().select([5, 3, 200])
    assert np.array_equal(column_rows(some, "vector"), ROWS[[5, 3, 200]])
    part = dataset().select(range(10, 20))
    assert np.array_equal(column_rows(part, "vector"), ROWS[10:20])
    order = dataset().shuffle(seed=1)
    assert np.array_equal(column_rows(order, "vector")[0], np.float32(order[0]["vector"]))


def test_an_index_of_a_column(tmp_path):
    found = index_column(dataset(), "vector").search(ROWS[:9] * 2, 1).indices
    assert found[:, 0].tolist() == list(range(9))
    named = index_column(dataset(), "vector", ids="text", path=tmp_path / "rows.safetensors")
    assert named.search(ROWS[:9], 1).indices[:, 0].tolist() == TEXTS[:9]


def test_an_index_of_the_dataset_s_own():
    given = dataset()
    given.add_faiss_index("vector", custom_index=IndexFlatCosine(384))
    scores, examples = given.get_nearest_examples("vector", ROWS[17], k=3)
    assert examples["text"][0] == TEXTS[17]
    assert scores[0] == pytest.approx(1)


def test_an_index_of_the_dataset_s_own_is_saved_as_that_of_faiss(tmp_path):
    import faiss

    given = dataset()
    given.add_faiss_index("vector", custom_index=IndexFlatCosine(384))
    wanted = given.get_nearest_examples("vector", ROWS[17], k=3)
    path = str(tmp_path / "index")
    faiss.write_index(given.get_index("vector").faiss_index.to_faiss(), path)
    again = dataset()
    again.load_faiss_index("vector", path)
    held = again.get_index("vector")
    held.faiss_index = IndexFlatCosine.from_faiss(held.faiss_index)
    assert again.get_nearest_examples("vector", ROWS[17], k=3).examples == wanted.examples


@pytest.mark.parametrize("kind", [Array2D((1, 384), "float32"), Array3D((1, 1, 384), "float32")])
def test_arrays_of_one_row_each(kind):
    features = Features({"vector": kind})
    rows = ROWS.reshape(300, *kind.shape)
    given = Dataset.from_dict({"vector": list(rows)}, features=features)
    assert np.array_equal(column_rows(given, "vector"), ROWS)
    assert np.array_equal(column_rows(given.select([9, 4, 5]), "vector"), ROWS[[9, 4, 5]])
    assert index_column(given, "vector").search(ROWS[:3], 1).indices[:, 0].tolist() == [0, 1, 2]


@pytest.mark.parametrize("kind", ["numpy", "torch", "arrow", "pandas"])
def test_a_format_changes_nothing(kind):
    given = dataset().add_column("number", list(range(1000, 1300)))
    for columns in (["vector"], None):
        given.set_format(kind, columns=columns)
        for ids, first in (("text", TEXTS[3]), ("number", 1003), (None, 3)):
            index = index_column(given, "vector", ids=ids)
            assert index.search(ROWS[3:4], 1).indices.tolist() == [[first]]


def test_the_dataset_s_own_names(tmp_path):
    given, theirs = dataset(), dataset()
    theirs.add_faiss_index("vector", custom_index=IndexFlatCosine(384))
    mine = DatasetIndex(given, "vector")
    mine.save(tmp_path / "index")
    for one in (mine, DatasetIndex.load(given, tmp_path / "index")):
        for name, query in (("search", ROWS[7]), ("search", ROWS[7:8]), ("search_batch", ROWS[:9])):
            found = getattr(one, name)(query, 4)
            wanted = getattr(theirs, name)("vector", query, 4)
            assert type(found) is type(wanted)
            for a, b in zip(found, wanted, strict=True):
                np.testing.assert_array_equal(a, b)
        found = one.get_nearest_examples(ROWS[7], k=3)
        wanted = theirs.get_nearest_examples("vector", ROWS[7], k=3)
        assert found.examples == wanted.examples
        assert type(found) is type(wanted)
        found = one.get_nearest_examples_batch(ROWS[:5], k=400)
        wanted = theirs.get_nearest_examples_batch("vector", ROWS[:5], k=400)
        assert found.total_examples == wanted.total_examples
        assert np.array_equal(found.total_scores, wanted.total_scores)
    assert mine.get_nearest_examples(ROWS[7], where=[1, 2]).examples["text"][0] in TEXTS[1:3]
    with pytest.raises(ValueError, match=r"9 rows of the dataset.*300"):
        DatasetIndex.load(given.select(range(9)), tmp_path / "index")
    with pytest.raises(ValueError, match=r"query of shape \(d,\) or \(1, d\), got \(2, 384\)"):
        mine.search(ROWS[:2])


def broken(values, kind):
    return Dataset(pa.table({"vector": pa.array(values, kind)}))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (broken([[1.0], [1.0, 2.0]], pa.list_(pa.float32())), ValueError, r"one length.*\[1, 2\]"),
        (broken([[1.0], None], pa.list_(pa.float32())), ValueError, "1 rows missing"),
        (broken([[1.0], [None]], pa.list_(pa.float32())), ValueError, "1 numbers missing"),
        (broken([[1], [2]], pa.list_(pa.int64())), TypeError, "lists of floats, got list<"),
        (broken(["a"], pa.string()), TypeError, "lists of floats, got string"),
        (broken([1.0], pa.float32()), TypeError, "lists of floats, got float"),
        (broken([], pa.list_(pa.float32())), ValueError, "got no rows"),
        (broken([[]], pa.list_(pa.float32())), ValueError, "d >= 1|no numbers"),
        (DatasetDict({"train": dataset()}), TypeError, r"DatasetDict of \['train'\].*dataset\['tr"),
        (dataset().to_iterable_dataset(), TypeError, "got IterableDataset.*streaming=True"),
        (np.ones((2, 3)), TypeError, "expected a Dataset, got ndarray"),
        (Dataset.from_dict({"text": ["a"]}), KeyError, r"columns \['text'\], got 'vector'"),
        (
            Dataset.from_dict(
                {"vector": [np.ones((2, 3), "f")]},
                features=Features({"vector": Array2D((2, 3), "float32")}),
            ),
            TypeError,
            "lists of floats",
        ),
    ],
)
def test_mistakes(given, error, message):
    with pytest.raises(error, match=message):
        column_rows(given, "vector")
