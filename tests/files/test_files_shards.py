"""Packed arrays, and several files as one."""

import gzip

import numpy as np
import pytest
import torch

from cli_run import run
from cossim_fast import files

X = np.random.default_rng(0).standard_normal((120, 5)).astype(np.float32)


def packed(path, array):
    np.save(path.with_suffix(""), array)
    path.write_bytes(gzip.compress(path.with_suffix("").read_bytes()))
    path.with_suffix("").unlink()
    return path


@pytest.mark.parametrize("array", [X, np.asfortranarray(X), X[:0], X.astype(">f8")])
def test_packed_arrays(array, tmp_path):
    loaded = files.load(packed(tmp_path / "x.npy.gz", array))
    np.testing.assert_array_equal(loaded, array)
    assert loaded.dtype == array.dtype


def test_packed_arrays_that_are_damaged(tmp_path):
    path = packed(tmp_path / "x.npy.gz", X)
    whole = path.read_bytes()
    raw = gzip.decompress(whole)
    for content in (
        whole[:-1],
        whole[:200],
        whole[:50] + bytes([whole[50] ^ 1]) + whole[51:],
        gzip.compress(raw[:-4]),
        gzip.compress(raw + b"1"),
        raw,
        b"",
    ):
        path.write_bytes(content)
        with pytest.raises(files.BadFileError, match=r"cannot be read as .npy.gz"):
            files.load(path)
    path.write_bytes(gzip.compress(raw.replace(b"(120, 5)", b"(2**9,5)")))
    with pytest.raises(files.BadFileError):
        files.load(path)


@pytest.mark.parametrize("suffix", [".npy", ".pt", ".npy.gz"])
def test_files_are_joined_in_the_order_of_their_numbers(suffix, tmp_path):
    for at in range(12):
        some = X[10 * at : 10 * at + 10]
        path = tmp_path / f"part-{at}{suffix}"
        if suffix == ".pt":
            torch.save(torch.from_numpy(some), path)
        elif suffix == ".npy":
            np.save(path, some)
        else:
            packed(path, some)
    (tmp_path / "readme.md").write_text("not embeddings")
    (tmp_path / ".hidden.npy").write_text("nor this")
    for path in (tmp_path, tmp_path / f"part-*{suffix}"):
        said = []
        np.testing.assert_array_equal(files.load(path, note=said.append), X)
        assert said == [f"{path} is 12 files, from part-0{suffix} to part-11{suffix}"]
    np.testing.assert_array_equal(files.load(tmp_path / f"part-[01]{suffix}"), X[:20])


def test_files_that_do_not_belong_together(tmp_path):
    with pytest.raises(files.BadFileError, match=r"which is a folder.* there are none"):
        files.load(tmp_path)
    with pytest.raises(files.BadFileError, match=r"that match .*\*.npy"):
        files.load(tmp_path / "*.npy")
    np.save(tmp_path / "a.npy", X)
    np.save(tmp_path / "b.npy", X[:, :3])
    with pytest.raises(files.BadFileError, match=r"\(120, 5\).*a.npy and \(120, 3\).*b.npy"):
        files.load(tmp_path)
    np.save(tmp_path / "b.npy", X.astype(np.float64))
    with pytest.raises(files.BadFileError, match=r"float32 in .*float64 in"):
        files.load(tmp_path)
    np.savez(tmp_path / "c.npz", X)
    with pytest.raises(files.BadFileError, match=r"one kind .*got .npy, .npz; name some"):
        files.load(tmp_path)


def test_a_name_with_the_letters_of_a_pattern_is_a_name(tmp_path):
    np.save(tmp_path / "x[1].npy", X)
    np.testing.assert_array_equal(files.load(tmp_path / "x[1].npy"), X)


def test_the_command_searches_a_folder(tmp_path):
    np.save(tmp_path / "whole.npy", X)
    (tmp_path / "parts").mkdir()
    for at in range(3):
        np.save(tmp_path / "parts" / f"{at}.npy", X[40 * at : 40 * at + 40])
    whole = run("topk", tmp_path / "whole.npy", tmp_path / "whole.npy", "-k", "2")
    parts = run("topk", tmp_path / "parts", tmp_path / "parts" / "?.npy", "-k", "2")
    assert parts[:2] == whole[:2]
    assert parts[2].count("3 files, from 0.npy to 2.npy") == 2
