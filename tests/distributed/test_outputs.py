"""Blocks of results: written as a whole, and read as they were written or not at all."""

import os
import re
import signal
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from cossim_fast.distributed import outputs
from cossim_fast.distributed.places import counting
from cossim_fast.retrieval import FileError

COLUMNS = {
    "row": np.arange(30),
    "score": np.linspace(0, 1, 30),
    "rank": np.arange(30, dtype=np.int32),
    "half": np.arange(30, dtype=np.float16),
    "is_kept": np.arange(30) % 3 == 0,
    "id": pa.array([f"dök-{i}" * (i % 4) for i in range(30)]),
    "raw": pa.array([bytes([i]) * (i % 5) for i in range(30)]),
    "when": pa.array(np.arange(30).astype("datetime64[ms]")),
    "four": pa.array([b"abcd"] * 30, pa.binary(4)),
}


def test_a_block_is_read_as_it_was_written(tmp_path):
    with counting() as traffic:
        outputs.write_block(tmp_path, "blocks/7.parquet", COLUMNS, {"rows": [0, 30]})
    assert traffic.written == (tmp_path / "blocks" / "7.parquet").stat().st_size
    table = outputs.read_block(tmp_path, "blocks/7.parquet")
    assert table.column_names == list(COLUMNS)
    for name, values in COLUMNS.items():
        assert table[name].to_pylist() == list(values.tolist())
    assert outputs.summary_of(table) == {"rows": [0, 30]}
    assert outputs.read_summary(str(tmp_path), "blocks/7.parquet") == {"rows": [0, 30]}
    assert [path.name for path in (tmp_path / "blocks").iterdir()] == ["7.parquet"]


@pytest.mark.parametrize("count", [0, 1, 30])
def test_how_columns_lie_in_memory_changes_nothing(tmp_path, count):
    plain = {name: pa.array(values) for name, values in COLUMNS.items()}
    outputs.write_block(tmp_path, "a", {n: a.slice(0, count) for n, a in plain.items()}, {})
    moved = {
        name: pa.chunked_array([pa.concat_arrays([a, a]).slice(30, count), a.slice(0, 0)])
        for name, a in plain.items()
    }
    outputs.write_block(tmp_path, "b", moved, {})
    first, second = (outputs.read_block(tmp_path, name) for name in "ab")
    assert first.schema.metadata == second.schema.metadata
    assert first.equals(second)


def test_a_block_of_any_other_length_or_with_any_byte_changed_is_not_read_as_another(tmp_path):
    columns = {"row": np.arange(5), "id": pa.array(list("abcde"))}
    outputs.write_block(tmp_path, "a", columns, {"k": 1})
    whole = (tmp_path / "a").read_bytes()
    right = outputs.read_block(tmp_path, "a")
    noticed = 0
    for length in [*range(0, len(whole), 7), len(whole) - 1]:
        (tmp_path / "a").write_bytes(whole[:length])
        with pytest.raises(FileError, match=re.escape(str(tmp_path / "a"))):
            outputs.read_block(tmp_path, "a")
    for place in range(0, len(whole), 3):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        (tmp_path / "a").write_bytes(changed)
        try:
            table = outputs.read_block(tmp_path, "a")
        except FileError:
            noticed += 1
        else:
            assert table.equals(right)
            assert outputs.summary_of(table) == {"k": 1}
    assert noticed > len(whole) // 9
    (tmp_path / "a").write_bytes(whole)
    assert outputs.is_whole(tmp_path, "a")
    outputs.delete_block(tmp_path, "a")
    outputs.delete_block(tmp_path, "a")
    assert not outputs.is_whole(tmp_path, "a")


@pytest.mark.parametrize(
    "values", [pa.array([1, None]), pa.array([[1], [2]]), pa.array(["a", "b"]).dictionary_encode()]
)
def test_columns_whose_values_a_digest_would_not_cover_are_refused(tmp_path, values):
    with pytest.raises(ValueError, match="expected a column"):
        outputs.write_block(tmp_path, "a", {"x": values}, {})
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
import numpy as np
from cossim_fast.distributed import outputs
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
outputs.write_block(sys.argv[1], "0.parquet", {"row": np.arange(3)}, {})
"""


@pytest.mark.skipif(os.name != "posix", reason="there is no SIGKILL")
def test_killed_before_the_rename_leaves_no_block_and_the_next_writer_sweeps(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [path.suffix for path in tmp_path.iterdir()] == [".part"]
    assert not outputs.is_whole(tmp_path, "0.parquet")
    outputs.write_block(tmp_path, "0.parquet", {"row": np.arange(3)}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["0.parquet"]
    assert outputs.is_whole(tmp_path, "0.parquet")
