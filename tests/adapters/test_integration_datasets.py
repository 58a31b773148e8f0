"""The adapter for Hugging Face datasets: columns in, rows and an index out."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from datasets import Array2D, Dataset, Features, List, Value, concatenate_datasets

from cossim_fast.integrations.datasets import column_rows, index_column
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
