"""What holds files: this machine, an object store by arrow's client, what fsspec reaches."""

import itertools
import uuid

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cossim_fast.distributed import outputs, shards
from cossim_fast.distributed.manifest import Manifest
from cossim_fast.distributed.places import counting, joined, name_of, place_of, put, read_all
from cossim_fast.retrieval import FileError
from object_store import object_store


@pytest.fixture(scope="module")
def store():
    with pytest.MonkeyPatch.context() as patch, object_store() as options:
        patch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield options


@pytest.fixture(params=["local", "s3", "memory"])
def root(request, tmp_path):
    """A function from the name of a file to its path on an empty file system."""
    if request.param == "local":
        return lambda name: f"{tmp_path}/{name}"
    empty = uuid.uuid4().hex
    if request.param == "memory":
        return lambda name: f"memory://{empty}/{name}"
    options = request.getfixturevalue("store")
    return lambda name: f"s3://bucket/{empty}/{name}{options}"


def test_files_are_put_read_listed_and_deleted(root):
    for name in ("c/part-2.npy", "c/part-10.npy", "c/d/part-1.npy", "c/notes.txt"):
        put(root(name), name.encode())
    place = place_of(root("c"))
    assert read_all(root("c/part-2.npy")) == b"c/part-2.npy"

    def listed(pattern):
        found = place.files(root(pattern))
        return None if found is None else sorted(read_all(path).decode() for path in found)

    direct = ["c/notes.txt", "c/part-10.npy", "c/part-2.npy"]
    assert listed("c") == direct
    assert listed("c/*") == direct
    assert listed("c/part-?.npy") == ["c/part-2.npy"]
    assert listed("*/*/part-[0-5].npy") == ["c/d/part-1.npy"]
    assert listed("c/x*") == []
    assert listed("c/part-2.npy") is None
    assert place.exists(root("c/part-2.npy"))
    assert not place.exists(root("c"))
    place.delete(root("c/part-2.npy"))
    place.delete(root("c/part-2.npy"))
    assert not place.exists(root("c/part-2.npy"))
    with pytest.raises(FileNotFoundError):
        read_all(root("c/part-2.npy"))


def test_a_version_changes_with_the_content(root):
    path = root("x.npy")
    versions = []
    for content in (b"one", b"two", b"two!"):
        put(path, content)
        with place_of(path).open(path) as file:
            versions.append(file.version)
        with place_of(path).open(path) as file:
            assert file.version == versions[-1]
            assert file.size == len(content)
            assert file.seek(-2, 2) == len(content) - 2
            assert file.read() == content[-2:]
    assert len(set(versions)) == 3


@pytest.mark.parametrize("kind", ["npy", "parquet", "safetensors"])
def test_shards_of_any_place(root, kind, tmp_path):
    x = np.random.default_rng(0).standard_normal((500, 8)).astype("float32")
    bounds = [0, 0, 1, 64, 200, 500]
    for number, (low, high) in enumerate(itertools.pairwise(bounds)):
        local = tmp_path / f"one.{kind}"
        if kind == "npy":
            np.save(local, x[low:high])
        elif kind == "parquet":
            rows = pa.FixedSizeListArray.from_arrays(pa.array(x[low:high].ravel()), 8)
            pq.write_table(pa.table({"e": rows, "id": np.arange(low, high)}), local, 50)
        else:
            from safetensors.numpy import save_file

            save_file({"e": x[low:high], "id": np.arange(low, high)}, local)
        put(root(f"c/part-{3 * number}.{kind}"), local.read_bytes())
        local.unlink()
    ids = None if kind == "npy" else "id"
    for asked in (root("c"), root("c/part-*")):
        found = shards.find(asked, id_column=ids)
        assert [shard.first for shard in found.shards] == bounds[:-1]
        with counting() as traffic:
            pieces = [piece for _, piece in found.between(30, 310)]
        assert torch.equal(torch.cat(pieces), torch.from_numpy(x[30:310]))
        assert traffic.read == found.bytes_between(30, 310)
        if ids is not None:
            assert found.ids(60, 203).to_pylist() == list(range(60, 203))
    changed = root(f"c/part-12.{kind}")
    put(changed, read_all(changed)[:-1] + b"?")
    with pytest.raises(ValueError, match=r"part-12\.\w+ as it was when it was listed"):
        list(found.between(30, 310))
    assert len(list(found.between(30, 200))) >= 2


def test_blocks_and_the_manifest_of_any_place(root, tmp_path):
    np.save(tmp_path / "x.npy", np.ones((3, 4), "float32"))
    asked = {
        "operation": "topk",
        "parameters": {"k": 1},
        "inputs": {"corpus": shards.find(tmp_path / "x.npy")},
        "grid": [{"name": "_blocks/0.parquet"}, {"name": "_blocks/1.parquet"}],
        "resume": True,
    }
    with Manifest.open(root("out"), **asked) as manifest:
        outputs.write_block(manifest.output, "_blocks/0.parquet", {"row": np.arange(3)}, {"n": 3})
        assert manifest.missing() == ["_blocks/1.parquet"]
    block = root("out/_blocks/0.parquet")
    assert joined(root("out"), "_blocks/0.parquet") == block
    put(block, read_all(block)[:-5])
    with pytest.raises(FileError, match=r"_blocks/0\.parquet is truncated"):
        outputs.read_block(root("out"), "_blocks/0.parquet")
    with Manifest.open(root("out"), **asked) as manifest:
        assert manifest.missing() == ["_blocks/0.parquet", "_blocks/1.parquet"]
        outputs.write_block(manifest.output, "_blocks/0.parquet", {"row": np.arange(3)}, {"n": 3})
        assert outputs.read_summary(manifest.output, "_blocks/0.parquet") == {"n": 3}
        manifest.finish()
        assert manifest.finished


def test_what_a_store_refuses_is_no_damage(store, tmp_path):
    np.save(tmp_path / "x.npy", np.ones((3, 4), "float32"))
    path = f"s3://bucket/forbidden/x.npy{store}"
    put(path, (tmp_path / "x.npy").read_bytes())
    with pytest.raises(OSError, match="during GetObject") as raised:
        shards.find(path)
    assert not isinstance(raised.value, ValueError)
    with pytest.raises(OSError, match="during GetObject"):
        outputs.read_block(f"s3://bucket/forbidden/{store}", "x.npy")


def test_options_of_a_path_are_no_part_of_its_name():
    assert name_of("s3://b/c/x-?.npy?region=here&scheme=http") == "s3://b/c/x-?.npy"
    assert name_of("a/what?.npy") == "a/what?.npy"
    assert joined("s3://b/out/?region=here", "x.npy") == "s3://b/out/x.npy?region=here"


def test_paths_that_are_refused():
    with pytest.raises(ValueError, match="without a protocol"):
        place_of("file:///tmp/x.npy")
    with pytest.raises(ValueError, match="without a password") as raised:
        place_of("s3://name:secret@bucket/x.npy")
    assert "secret" not in str(raised.value)
