"""Datasets of Ray's as files."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cossim_fast.distributed import datasets, shards


class Dataset:
    """What is used of a Ray dataset; its rows are written only in order if that was asked for."""

    def __init__(self, rows):
        self.rows = rows
        self.context = self.execution_options = self
        self.preserve_order = False

    def write_parquet(self, path, filesystem=None):
        assert self.preserve_order
        for number, (low, high) in enumerate([(0, 30), (30, 100)]):
            some = pa.table({"e": list(self.rows[low:high])})
            pq.write_table(some, f"{path}/x_00000{number}-0.parquet", filesystem=filesystem)


def test_a_dataset_becomes_files_in_its_order(tmp_path):
    x = np.random.default_rng(0).standard_normal((100, 4)).astype("float32")
    (tmp_path / "out").mkdir()
    dataset = Dataset(x)
    found = shards.find(datasets.write_dataset(dataset, tmp_path / "out"))
    assert not dataset.preserve_order
    assert torch.equal(torch.cat([rows for _, rows in found.between(0, 100)]), torch.from_numpy(x))
    assert (tmp_path / "out" / "_SUCCESS").exists()
    with pytest.raises(ValueError, match=r"an empty folder for the rows .* holds .*_SUCCESS"):
        datasets.write_dataset(dataset, tmp_path / "out")
    with pytest.raises(TypeError, match=r"expected a ray\.data\.Dataset, got ndarray"):
        datasets.write_dataset(x, tmp_path / "other")


def test_a_dataset_is_written_to_a_store():
    dataset = Dataset(np.ones((100, 4), "float32"))
    found = shards.find(datasets.write_dataset(dataset, "memory://datasets/one"))
    assert (found.rows, found.width) == (100, 4)


@pytest.mark.ray
# Of ray.data about itself, which it says of what it sets by default.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_tensors_and_lists_of_a_ray_dataset(engine, tmp_path):
    import ray.data

    x = np.random.default_rng(0).standard_normal((60, 4)).astype("float32")
    rows = [{"id": number, "tensor": row, "list": row.tolist()} for number, row in enumerate(x)]
    dataset = ray.data.from_items(rows, override_num_blocks=4).map_batches(lambda batch: batch)
    folder = datasets.write_dataset(dataset, tmp_path / "out")
    for column, dtype in {"tensor": "float32", "list": "float64"}.items():
        found = shards.find(folder, column=column, id_column="id")
        assert (found.rows, found.dtype) == (60, dtype)
        read = torch.cat([piece for _, piece in found.between(0, 60)])
        assert torch.equal(read, torch.from_numpy(x.astype(dtype)))
        assert found.ids(0, 60).to_pylist() == list(range(60))
