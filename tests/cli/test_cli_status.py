"""The exit status, where what is printed goes nowhere: 1 is a finding and nothing else."""

import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

from cli_run import run
from cossim_fast.cli import join

pytestmark = pytest.mark.skipif(os.name != "posix", reason="shells and /dev/full")
BEGIN = "import sys; from cossim_fast.cli import main; sys.argv[0] = 'cossim'; main()"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("status")
    x = np.random.default_rng(0).standard_normal((400, 12)).astype(np.float32)
    np.save(folder / "x.npy", x)
    np.save(folder / "same.npy", x + 9999)
    return folder


def shell(folder, line):
    """Status and stderr of a shell line, in which ``cossim`` is the command."""
    command = f'cossim() {{ "{sys.executable}" -c "{BEGIN}" "$@"; }}\n{line}'
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, capture_output=True, text=True, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


COMMANDS = ["topk x.npy x.npy", "pairs x.npy --threshold -1", "diagnose same.npy", "--help"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_behind_stdout(command, folder):
    status, _, err = shell(folder, f"cossim {command} > /dev/full")
    assert (status, err) == (2, "cossim: No space left on device\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_closed_stdout(command, folder):
    assert shell(folder, f"cossim {command} >&-")[::2] == (2, "cossim: Bad file descriptor\n")


@pytest.mark.parametrize("command", COMMANDS[:3])
def test_a_reader_that_has_had_enough(command, folder):
    line = f"cossim {command} | true; exit ${{PIPESTATUS[0]}}"
    assert shell(folder, line) == (141, "", "")


@pytest.mark.parametrize("how", ["2>&-", "2> /dev/full"])
def test_nothing_can_be_said(how, folder):
    if "full" in how and not os.path.exists("/dev/full"):
        pytest.skip("a device of Linux")
    assert shell(folder, f"cossim topk missing.npy x.npy {how}") == (2, "", "")
    assert shell(folder, f"cossim topk x.npy {how}") == (2, "", "")
    status, out, _ = shell(folder, f"cossim topk x.npy x.npy -k 1 -o out.npz {how} >&-")
    assert (status, out) == (0, "")
    assert len(np.load(folder / "out.npz")["row"]) == 400


def test_an_error_that_nobody_foresaw_is_one_line(folder, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("two\nlines \x1b[2J")

    monkeypatch.setattr(join.cossim_fast, "deduplicate", broken)
    status, out, err = run("dedup", folder / "x.npy")
    assert (status, out) == (2, "")
    assert err == ("cossim: unexpected, and no fault of yours: RuntimeError two lines \\x1b[2J\n")


@pytest.mark.parametrize("why", ["float8", "sparse", "quantized"])
def test_tensors_that_are_not_computed_with(why, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # each is in beta, or deprecated
        tensor = {
            "float8": lambda: torch.ones(4, 3).to(torch.float8_e4m3fn),
            "sparse": lambda: torch.eye(3).to_sparse(),
            "quantized": lambda: torch.quantize_per_tensor(torch.eye(3), 0.1, 0, torch.qint8),
        }[why]()
        torch.save(tensor, tmp_path / "x.pt")
    for arguments in (["diagnose"], ["pairs"], ["dedup"], ["index", "build", "-o", tmp_path / "i"]):
        status, out, err = run(*arguments, tmp_path / "x.pt")
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert why in err
