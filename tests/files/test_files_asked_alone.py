"""What was not asked for decides nothing: the rest of a file may be as large or odd as it likes."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch

from cli_run import run
from cossim_fast import files
from cossim_fast.files import entries

X = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)


@pytest.fixture
def only_emb(monkeypatch):
    """Reading another column than emb fails, as that of texts of over 2 GiB does."""
    read = pq.ParquetFile.read

    def limited(file, columns=None, **options):
        if columns is None or set(columns) - {"emb", "id"}:
            raise pa.ArrowCapacityError("array cannot contain more than 2147483646 bytes")
        return read(file, columns, **options)

    monkeypatch.setattr(pq.ParquetFile, "read", limited)


@pytest.mark.parametrize("key", ["emb", None])
def test_a_column_of_parquet_beside_one_that_cannot_be_read(key, only_emb, tmp_path):
    texts = ["a text"] * 40
    table = pa.table({"text": texts, "emb": X.tolist(), "id": list(range(40))})
    pq.write_table(table, tmp_path / "x.parquet")
    np.testing.assert_array_equal(files.load(tmp_path / "x.parquet", key=key), X)
    assert files.load_column(tmp_path / "x.parquet", "id").tolist() == list(range(40))
    options = [] if key is None else ["--key", key]
    status, out, err = run("pairs", tmp_path / "x.parquet", "--threshold", "0.999", *options)
    assert (status, out) == (0, ""), err
    with pytest.raises(files.BadFileError, match=r"x.parquet cannot be read"):
        files.load(tmp_path / "x.parquet", key="text", ndim=1)


@pytest.mark.parametrize("key", ["emb", None])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_array_of_npz_beside_one_of_objects(save, key, tmp_path):
    odd = np.array([["a", 1], [None, {}]], dtype=object)
    save(tmp_path / "x.npz", emb=X, text=odd, names=np.array(["a", None], dtype=object))
    if key is None:
        with pytest.raises(files.BadFileError, match=r"text \(2, 2\), which cannot be read: it ho"):
            files.load(tmp_path / "x.npz")
        save(tmp_path / "x.npz", emb=X, names=np.array(["a", None], dtype=object))
    np.testing.assert_array_equal(files.load(tmp_path / "x.npz", key=key), X)
    status, out, err = run("pairs", tmp_path / "x.npz", "--threshold", "0.999", "--key", "emb")
    assert (status, out) == (0, ""), err


def test_a_tensor_beside_what_torch_cannot_compute_with(tmp_path):
    x = torch.from_numpy(X)
    torch.save({"emb": x, "sparse": x.to_sparse(), "note": "text"}, tmp_path / "x.pt")
    assert torch.equal(files.load(tmp_path / "x.pt", key="emb"), x)
    narrow = x.to(torch.float8_e4m3fn)
    safetensors.torch.save_file({"emb": x, "narrow": narrow}, tmp_path / "x.safetensors")
    assert torch.equal(files.load(tmp_path / "x.safetensors", key="emb"), x)


def test_a_column_of_text_files_beside_others(tmp_path):
    lines = [json.dumps({"emb": row, "more": [[1, None], "a"][at % 2]})
             for at, row in enumerate(X.tolist())]  # fmt: skip
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    np.testing.assert_allclose(files.load(tmp_path / "x.jsonl"), X)
    rows = [f'"{row}",{"a" if at % 2 else 1.5}' for at, row in enumerate(X.tolist())]
    (tmp_path / "x.csv").write_text("emb,more\n" + "\n".join(rows))
    np.testing.assert_allclose(files.load(tmp_path / "x.csv"), X)


def test_what_is_not_chosen_is_not_read(tmp_path):
    def fail():
        raise AssertionError("it was read")

    there = {
        "emb": entries.Entry((4, 3), 48, lambda: "read"),
        "text": entries.Entry((4,), 1 << 40, fail),
        "other": entries.Entry((4, 3), 1 << 40, fail),
    }
    name, entry = entries.choose(there, "emb", 2, tmp_path / "x")
    assert (name, entry.read()) == ("emb", "read")
