"""The command: every format, the exit status, and what it prints."""

import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch

from cossim_fast import cli, files

X = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))


def write(path, x=X):
    if path.suffix == ".npy":
        np.save(path, x.numpy())
    elif path.suffix == ".npz":
        np.savez(path, x.numpy())
    elif path.suffix == ".pt":
        torch.save(x, path)
    elif path.suffix == ".safetensors":
        safetensors.torch.save_file({"embeddings": x.contiguous()}, path)
    else:
        flat = pa.array(x.reshape(-1).numpy())
        column = pa.FixedSizeListArray.from_arrays(flat, x.shape[1])
        pq.write_table(pa.table({"id": list(range(len(x))), "vector": column}), path)
    return path


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["cossim", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    printed = capsys.readouterr()
    return stopped.value.code, printed.out, printed.err


FORMATS = [".npy", ".npz", ".pt", ".safetensors", ".parquet"]


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_gives_the_array(suffix, tmp_path):
    loaded = files.load(write(tmp_path / f"x{suffix}"))
    assert isinstance(loaded, torch.Tensor if suffix in (".pt", ".safetensors") else np.ndarray)
    assert np.asarray(loaded.tolist(), dtype=np.float32).tolist() == X.tolist()


@pytest.mark.parametrize("suffix", FORMATS)
def test_exit_status_tells_healthy_from_a_finding(suffix, tmp_path, monkeypatch, capsys):
    status, out, _ = run(monkeypatch, capsys, "diagnose", write(tmp_path / f"x{suffix}"))
    assert status == 0
    assert out.startswith("embeddings: healthy")
    status, out, _ = run(monkeypatch, capsys, "diagnose", write(tmp_path / f"y{suffix}", X + 9999))
    assert status == 1
    assert out.startswith("embeddings: point_collapse")


def test_labels_and_report(tmp_path, monkeypatch, capsys):
    np.save(tmp_path / "labels.npy", np.arange(60) % 3)
    page = tmp_path / "report.html"
    status, out, _ = run(
        monkeypatch, capsys, "diagnose", write(tmp_path / "x.npy"),
        "--labels", tmp_path / "labels.npy", "--html", page,
    )  # fmt: skip
    assert status == 0
    assert "3 classes" in out
    assert "x.npy" in page.read_text(encoding="utf-8")


class Unsafe:
    def __reduce__(self):
        return (print, ("this must not run",))


def bad_files(folder):
    (folder / "empty.npy").write_bytes(b"")
    (folder / "cut.npy").write_bytes(write(folder / "whole.npy").read_bytes()[:200])
    (folder / "x.xlsx").write_text("1,2")
    np.save(folder / "objects.npy", np.array([{}, []], dtype=object), allow_pickle=True)
    np.save(folder / "vector.npy", np.zeros(4))
    np.save(folder / "one.npy", np.zeros((1, 4)))
    np.savez(folder / "two.npz", a=np.zeros((3, 4)), b=np.zeros((3, 4)))
    torch.save(Unsafe(), folder / "unsafe.pt")
    torch.save({"weights": [1, 2]}, folder / "none.pt")
    (folder / "x.safetensors").write_bytes(b"1")
    (folder / "x.parquet").write_bytes(b"1")
    return {
        "empty.npy": "cannot be read",
        "cut.npy": "cannot be read",
        "x.xlsx": "expected a file ending in .npy",
        "missing.npy": "there is none",
        "objects.npy": "cannot be read",
        "vector.npy": "expected one array of 2 axes",
        "one.npy": "n >= 2",
        "two.npz": "name one with its key",
        "unsafe.pt": "cannot be read",
        "none.pt": "holds weights, which is of type list",
        "x.safetensors": "cannot be read",
        "x.parquet": "cannot be read",
    }


def test_bad_input_is_explained_on_stderr(tmp_path, monkeypatch, capsys):
    for name, words in bad_files(tmp_path).items():
        status, out, err = run(monkeypatch, capsys, "diagnose", tmp_path / name)
        assert (status, out) == (2, ""), name
        assert words in err, name
        assert "Traceback" not in err


def test_labels_that_do_not_fit_are_bad_input(tmp_path, monkeypatch, capsys):
    np.save(tmp_path / "labels.npy", np.arange(5))
    status, _, err = run(
        monkeypatch,
        capsys,
        "diagnose",
        write(tmp_path / "x.npy"),
        "--labels",
        tmp_path / "labels.npy",
    )
    assert status == 2
    assert "expected labels of shape (60,), got (5,)" in err


def test_a_key_chooses_the_array(tmp_path, monkeypatch, capsys):
    np.savez(tmp_path / "two.npz", a=X.numpy(), b=X.numpy() + 9999)
    for key, expected in (("a", 0), ("b", 1), ("c", 2)):
        status, _, _ = run(monkeypatch, capsys, "diagnose", tmp_path / "two.npz", "--key", key)
        assert status == expected


def test_missing_arguments_are_bad_input(monkeypatch, capsys):
    assert run(monkeypatch, capsys, "diagnose")[0] == 2


def test_npy_stays_on_disk(tmp_path):
    assert isinstance(files.load(write(tmp_path / "x.npy")), np.memmap)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", "CF")
def test_npz_stays_on_disk_unless_it_is_compressed(save, order, tmp_path):
    labels = np.arange(60)
    save(tmp_path / "x.npz", x=np.asarray(X.numpy(), order=order), labels=labels, one=np.float32(3))
    for key, ndim, expected in ((None, 2, X.numpy()), ("labels", 1, labels), ("one", 0, 3)):
        loaded = files.load(tmp_path / "x.npz", key=key, ndim=ndim)
        assert isinstance(loaded, np.memmap) == (save is np.savez)
        np.testing.assert_array_equal(loaded, expected)


def test_pt_and_safetensors_stay_on_disk(tmp_path):
    for suffix in (".pt", ".safetensors"):
        path = write(tmp_path / f"x{suffix}")
        held = path.read_bytes()
        at = held.index(X[0].numpy().tobytes())
        loaded = files.load(path)
        # What is written into the file shows in a private map that was not touched yet.
        with path.open("r+b") as file:
            file.seek(at)
            file.write(np.float32(7).tobytes())
        assert loaded[0, 0] == 7


def test_pt_of_the_old_format(tmp_path):
    torch.save(X, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(files.load(tmp_path / "x.pt"), X)


def test_parquet_of_plain_columns(tmp_path):
    pq.write_table(pa.table({"a": [1.0, 2.0], "b": [3.0, 4.0]}), tmp_path / "x.parquet")
    np.testing.assert_array_equal(files.load(tmp_path / "x.parquet"), [[1, 3], [2, 4]])


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([[1.0, 2.0], [3.0] * 6], "of different lengths: 6 numbers in row 1, 2 in row 0"),
        ([[1.0, 2.0], None, [3.0, 4.0], None], "2 lists are missing; the first in row 1"),
        ([[1.0, 2.0], [3.0, None]], "1 number is missing; the first in row 1"),
    ],
)
def test_parquet_of_ragged_lists_is_no_matrix(rows, why, tmp_path):
    even = [[1.0, 2.0]] * len(rows)
    pq.write_table(pa.table({"ragged": rows}), tmp_path / "x.parquet")
    with pytest.raises(files.BadFileError, match=why):
        files.load(tmp_path / "x.parquet")
    pq.write_table(pa.table({"ragged": rows, "even": even}), tmp_path / "x.parquet")
    np.testing.assert_array_equal(files.load(tmp_path / "x.parquet"), even)


def test_command_is_installed():
    from importlib.metadata import entry_points

    (command,) = [each for each in entry_points(group="console_scripts") if each.name == "cossim"]
    assert command.load() is cli.main
