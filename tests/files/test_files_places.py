"""Places that are no files, reasons of the system, and memory that runs out: said as they are."""

import errno
import os
import socket
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cli_run import run
from cossim_fast import files

X = np.arange(12, dtype=np.float32).reshape(4, 3)


def refused(path):
    with pytest.raises(files.BadFileError) as caught:
        files.load(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


SUFFIXES = [".npy", ".npz", ".pt", ".safetensors", ".parquet"]


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such files")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_no_regular_file(suffix, tmp_path, monkeypatch):
    path = tmp_path / f"x{suffix}"
    os.mkfifo(path)
    assert "is a named pipe" in refused(path)
    (tmp_path / f"device{suffix}").symlink_to("/dev/zero")
    assert "is a device" in refused(tmp_path / f"device{suffix}")
    path.unlink()
    path.mkdir()
    assert "is a folder" in refused(path)
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(tmp_path)  # the name of a socket is short
        listening.bind(f"s{suffix}")
        assert "is a socket" in refused(tmp_path / f"s{suffix}")


@pytest.mark.skipif(os.name != "posix", reason="Windows has no named pipes of this kind")
def test_texts_and_ids_are_regular_files_too(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "pipe.parquet")
    np.save(tmp_path / "x.npy", X)
    for command in (
        ["topk", tmp_path / "x.npy", tmp_path / "x.npy", "--texts", tmp_path / "pipe"],
        ["index", "build", tmp_path / "x.npy", "-o", tmp_path / "i", "--ids", tmp_path / "pipe"],
        ["index", "build", tmp_path / "x.npy", "-o", tmp_path / "i",
         "--ids", tmp_path / "pipe.parquet"],
    ):  # fmt: skip
        status, _, err = run(*command)
        assert status == 2
        assert "is a named pipe" in err


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_empty_file_and_none(suffix, tmp_path):
    path = tmp_path / f"x{suffix}"
    assert "there is none" in refused(path)
    path.write_bytes(b"")
    assert "it is empty" in refused(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_systems_reasons_and_an_interrupt_are_kept(suffix, tmp_path):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(b"1")
    for failure in (PermissionError(errno.EACCES, "no"), OSError(errno.EIO, "broken disk")):
        with (
            mock.patch("pathlib.Path.open", side_effect=failure),
            pytest.raises(type(failure), match=failure.strerror) as caught,
        ):
            files.load(path)
        assert caught.value.filename == str(path)
    with (
        mock.patch("pathlib.Path.open", side_effect=KeyboardInterrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        files.load(path)


LACKS = [
    (".npy", "numpy.memmap", OSError(errno.ENOMEM, "Cannot allocate memory")),
    (".npz", "numpy.lib.format.read_array", MemoryError("Unable to allocate 8 TiB")),
    (".pt", "torch.load", RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")),
    (".parquet", "pyarrow.parquet.ParquetFile.read", pa.ArrowMemoryError("malloc failed")),
]


@pytest.mark.parametrize(("suffix", "where", "failure"), LACKS, ids=[each[0] for each in LACKS])
def test_memory_that_ran_out_is_said_with_the_size(suffix, where, failure, tmp_path):
    path = tmp_path / f"x{suffix}"
    if suffix == ".npy":
        np.save(path, X)
    elif suffix == ".npz":
        np.savez_compressed(path, X)
    elif suffix == ".pt":
        torch.save(torch.from_numpy(X), path)
    else:
        column = pa.FixedSizeListArray.from_arrays(pa.array(X.reshape(-1)), 3)
        pq.write_table(pa.table({"x": column}), path)
    with mock.patch(where, side_effect=failure):
        with pytest.raises(files.NotEnoughMemoryError) as caught:
            files.load(path)
        status, _, err = run("pairs", path)
    assert status == 2
    assert err == f"cossim: {caught.value}\n"
    assert err.startswith(f"cossim: there is not enough memory to read {path}: ")
    assert ("you tried" if suffix == ".pt" else "(4, 3), 48 bytes") in err
