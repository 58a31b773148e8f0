"""What a run writes of itself before it begins, and what a rerun makes of it."""

import json
from dataclasses import replace

import numpy as np
import pytest

from cossim_fast.distributed import outputs, shards
from cossim_fast.distributed.manifest import Manifest
from cossim_fast.retrieval import FileError, InUseError

GRID = [{"name": f"_blocks/{number}.parquet", "rows": [number, number + 1]} for number in range(3)]


@pytest.fixture
def corpus(tmp_path):
    for number in range(2):
        np.save(tmp_path / f"{number}.npy", np.ones((3, 4), "float32"))
    return shards.find(str(tmp_path / "*.npy"))


def opened(tmp_path, corpus, **changed):
    said = {"operation": "topk", "parameters": {"k": 10}, "inputs": {"corpus": corpus}}
    said |= {"grid": GRID, "resume": True}
    return Manifest.open(tmp_path / "out", **said | changed)


def test_a_rerun_does_what_is_missing(tmp_path, corpus):
    with opened(tmp_path, corpus, resume=False) as manifest:
        assert manifest.missing() == [block["name"] for block in GRID]
        outputs.write_block(manifest.output, GRID[1]["name"], {"row": np.arange(3)}, {})
        outputs.write_block(manifest.output, GRID[2]["name"], {"row": np.arange(3)}, {})
    cut = tmp_path / "out" / GRID[2]["name"]
    cut.write_bytes(cut.read_bytes()[:-9])
    with opened(tmp_path, corpus) as manifest:
        assert manifest.is_done(GRID[1]["name"])
        assert manifest.missing() == [GRID[0]["name"], GRID[2]["name"]]
        assert not manifest.finished
        for block in GRID:
            outputs.write_block(manifest.output, block["name"], {"row": np.arange(3)}, {})
        assert manifest.missing() == []
        manifest.finish()
    with opened(tmp_path, corpus) as manifest:
        assert manifest.finished


def test_what_differs_is_said(tmp_path, corpus):
    opened(tmp_path, corpus).close()
    other = [{**GRID[0], "rows": [0, 9]}, *GRID[1:]]
    changes = {
        "operation: 'topk' then, 'pairs' now": {"operation": "pairs"},
        "parameters k: 10 then, 5 now": {"parameters": {"k": 5}},
        "parameters screen: None then, 'int8' now": {"parameters": {"k": 10, "screen": "int8"}},
        "grid: 3 then, 2 now": {"grid": GRID[:2]},
        "grid 0 rows 1: 1 then, 9 now": {"grid": other},
        "inputs corpus id_column: None then, 'id' now": {
            "inputs": {"corpus": replace(corpus, id_column="id")}
        },
    }
    for words, changed in changes.items():
        with pytest.raises(ValueError, match="expected to go on") as raised:
            opened(tmp_path, corpus, **changed)
        assert words in str(raised.value)
    np.save(tmp_path / "1.npy", np.zeros((3, 4), "float32"))
    with pytest.raises(
        ValueError, match=r"inputs corpus shards 1 version \(.*1\.npy\): '\d+' then"
    ):
        opened(tmp_path, shards.find(str(tmp_path / "*.npy")))
    np.save(tmp_path / "2.npy", np.zeros((3, 4), "float32"))
    with pytest.raises(ValueError, match="inputs corpus shards: 2 then, 3 now"):
        opened(tmp_path, shards.find(str(tmp_path / "*.npy")))


def test_another_version_may_count_blocks_otherwise(tmp_path, corpus):
    opened(tmp_path, corpus).close()
    path = tmp_path / "out" / "_manifest.json"
    said = json.loads(path.read_text())
    for name in ("torch", "pyarrow"):
        said["versions"][name] = "0.1"
    path.write_text(json.dumps(said))
    opened(tmp_path, corpus).close()
    said["versions"]["cossim_fast"] = "0.0"
    path.write_text(json.dumps(said))
    with pytest.raises(ValueError, match=r"versions cossim_fast: '0\.0' then"):
        opened(tmp_path, corpus)
    path.write_text(json.dumps({**said, "format": 99}))
    with pytest.raises(FileError, match="of another version"):
        opened(tmp_path, corpus)
    path.write_text("{")
    with pytest.raises(FileError, match="is no manifest"):
        opened(tmp_path, corpus)


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path, corpus):
    opened(tmp_path, corpus).close()
    with pytest.raises(ValueError, match="pass resume=True"):
        opened(tmp_path, corpus, resume=False)
    (tmp_path / "out" / "_manifest.json").rename(tmp_path / "out" / "notes.txt")
    with pytest.raises(ValueError, match=r"which holds 'notes\.txt' and no manifest"):
        opened(tmp_path, corpus)


def test_one_run_at_a_time(tmp_path, corpus):
    manifest = opened(tmp_path, corpus)
    with pytest.raises(InUseError):
        opened(tmp_path, corpus)
    manifest.close()
    opened(tmp_path, corpus).close()
