"""`-o` writes a whole file in the place of another, and leaves the place what it was."""

import os
import stat

import numpy as np
import pytest

from cli_run import run

pytestmark = pytest.mark.skipif(os.name != "posix", reason="Windows has no modes")
X = np.random.default_rng(0).standard_normal((30, 4)).astype(np.float32)

COMMANDS = {
    "topk": ("topk", "{x}", "{x}", "-k", 2, "-o", "{out}"),
    "pairs": ("pairs", "{x}", "--threshold", 0.5, "-o", "{out}"),
    "dedup": ("dedup", "{x}", "-o", "{out}"),
    "index build": ("index", "build", "{x}", "-o", "{out}"),
}


@pytest.fixture(params=COMMANDS)
def command(request, tmp_path):
    np.save(tmp_path / "x.npy", X)

    def call(out):
        values = {"x": tmp_path / "x.npy", "out": out}
        return run(*(str(part).format(**values) for part in COMMANDS[request.param]))

    return call


def test_a_link_stays_and_what_it_leads_to_is_replaced(command, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "real.npz", tmp_path / "out.npz"
    target.write_bytes(b"before")
    link.symlink_to(target)
    status, _, err = command(link)
    assert status == 0, err
    assert link.is_symlink()
    assert not target.is_symlink()
    assert target.read_bytes() != b"before"
    assert link.read_bytes() == target.read_bytes()


@pytest.mark.parametrize("mode", [0o600, 0o664])
def test_the_mode_is_kept(mode, command, tmp_path):
    out = tmp_path / "out.npz"
    out.write_bytes(b"before")
    out.chmod(mode)
    assert command(out)[0] == 0
    assert stat.S_IMODE(out.stat().st_mode) == mode
    assert out.read_bytes() != b"before"


def test_a_read_only_file_is_refused(command, tmp_path, monkeypatch):
    out = tmp_path / "out.npz"
    out.write_bytes(b"before")
    out.chmod(0o444)
    # Before anything is read: the input may take an hour.
    monkeypatch.setattr("cossim_fast.files.load", None)
    status, printed, err = command(out)
    assert (status, printed) == (2, "")
    assert "read-only" in err
    assert err.count("\n") == 1
    assert out.read_bytes() == b"before"
    assert stat.S_IMODE(out.stat().st_mode) == 0o444
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.npz", "x.npy"]
