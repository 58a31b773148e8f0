"""Files are written whole or not at all, in the place and with the rights that they had."""

import os
import re
import socket
import stat
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from cli_run import run
from cossim_fast import CosineIndex, _replacing, diagnose
from cossim_fast._replacing import check_place, replacing

POSIX = pytest.mark.skipif(os.name != "posix", reason="Windows has no modes and no such files")
X = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
REPORT = diagnose.embeddings(torch.zeros(5, 3))  # without pictures


def write_part(path):
    with replacing(path) as file:
        file.write(b"new")


# Each of the ways in which the package writes a whole file.
WRITERS = {
    "replacing": write_part,
    "index": lambda path: CosineIndex(X).save(path),
    "page": REPORT.to_html,
}


@pytest.fixture(params=WRITERS)
def write(request):
    return WRITERS[request.param]


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def umask():
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@POSIX
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002, 0])
def test_a_new_file_has_what_the_umask_leaves(mask, write, tmp_path, umask):
    umask(mask)
    write(tmp_path / "new")
    assert mode(tmp_path / "new") == 0o666 & ~mask


@POSIX
@pytest.mark.parametrize("held", [0o600, 0o640, 0o664, 0o666, 0o755])
def test_a_file_keeps_its_mode(held, write, tmp_path, umask):
    (tmp_path / "old").write_bytes(b"old")
    (tmp_path / "old").chmod(held)
    write(tmp_path / "old")
    assert (tmp_path / "old").read_bytes() != b"old"
    assert mode(tmp_path / "old") == held


@POSIX
def test_nobody_else_reads_what_is_to_be_private_while_it_is_written(tmp_path, umask):
    umask(0)
    (tmp_path / "old").write_bytes(b"old")
    (tmp_path / "old").chmod(0o640)
    with replacing(tmp_path / "old"):
        (part,) = tmp_path.glob(".old.*.part")
        assert mode(part) == 0o600


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="root alone may")
def test_root_leaves_a_file_to_its_owner(write, tmp_path):
    (tmp_path / "old").write_bytes(b"old")
    os.chown(tmp_path / "old", 12345, 23456)
    (tmp_path / "old").chmod(0o640)
    write(tmp_path / "old")
    found = (tmp_path / "old").stat()
    assert (found.st_uid, found.st_gid, mode(tmp_path / "old")) == (12345, 23456, 0o640)


@POSIX
def test_another_group_is_let_do_no_more_than_everybody(tmp_path, monkeypatch):
    (tmp_path / "old").write_bytes(b"old")
    (tmp_path / "old").chmod(0o664)
    found = list((tmp_path / "old").stat())
    found[5] += 1  # its group
    monkeypatch.setattr(os, "fchown", refused)
    with (tmp_path / "new").open("wb") as file:
        _replacing._take_after(file.fileno(), os.stat_result(found))
    assert mode(tmp_path / "new") == 0o644


def refused(*_):
    raise PermissionError(1, "Operation not permitted")


@POSIX
@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_and_what_it_leads_to_is_replaced(there, write, tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "here").mkdir()
    target, link = tmp_path / "far" / "target", tmp_path / "here" / "link"
    if there:
        target.write_bytes(b"old")
    (tmp_path / "here" / "between").symlink_to(target)
    link.symlink_to("between")
    write(link)
    assert link.is_symlink()
    assert target.read_bytes() not in (b"", b"old")
    assert not target.is_symlink()
    assert os.listdir(target.parent) == ["target"]
    assert sorted(os.listdir(link.parent)) == ["between", "link"]


@POSIX
def test_links_in_a_circle_are_refused(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="a"):
        check_place(tmp_path / "a")


@pytest.fixture(params=["pipe", "socket", "folder", "device", "link to a device"])
def irregular(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "out.npz"
    if request.param == "pipe":
        os.mkfifo(path)
    elif request.param == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)  # a whole path may be too long
    elif request.param == "folder":
        path.mkdir()
    elif request.param == "device":
        try:
            os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))  # as /dev/null is
        except OSError:
            pytest.skip("only root makes devices, and not everywhere")
    else:
        path.symlink_to("/dev/null")
    return (
        path,
        stat.S_IFMT(path.stat().st_mode),
        "device" if "device" in request.param else (request.param),
    )


@POSIX
def test_what_is_no_file_is_refused_and_stays(irregular, write):
    path, kind, name = irregular
    with pytest.raises(OSError, match=f"expected a (regular )?file, and it is a {name}"):
        write(path)
    assert stat.S_IFMT(path.stat().st_mode) == kind
    assert os.listdir(path.parent) == ["out.npz"]


@POSIX
@pytest.mark.parametrize(
    "command",
    ["topk {x} {x} -o {out}", "pairs {x} -o {out}", "dedup {x} -o {out}",
     "index build {x} -o {out}", "diagnose {x} --html {out}"],
)  # fmt: skip
def test_commands_refuse_it_before_they_work(command, irregular, monkeypatch):
    path, kind, name = irregular
    folder = path.parent
    np.save(folder / "x.npy", X.numpy())
    monkeypatch.setattr("cossim_fast.files.load", None)  # nothing is read
    status, out, err = run(*command.format(x=folder / "x.npy", out=path).split())
    assert (status, out) == (2, "")
    assert re.fullmatch(rf"cossim: \S+: expected a (regular )?file, and it is a {name}\n", err)
    assert stat.S_IFMT(path.stat().st_mode) == kind
    assert sorted(os.listdir(folder)) == ["out.npz", "x.npy"]


@POSIX
def test_what_has_become_no_file_meanwhile_is_refused_too(tmp_path):
    refused = pytest.raises(OSError, match="expected a regular file, and it is a pipe")
    with refused, replacing(tmp_path / "out"):
        os.mkfifo(tmp_path / "out")
    assert stat.S_ISFIFO((tmp_path / "out").stat().st_mode)
    assert os.listdir(tmp_path) == ["out"]


def test_a_read_only_file_is_refused(write, tmp_path):
    path = tmp_path / "old"
    path.write_bytes(b"old")
    path.chmod(0o444)
    with pytest.raises(PermissionError, match="it is read-only"):
        write(path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["old"]
    path.chmod(0o644)


PROGRAM = [sys.executable, "-P", "-c", "from cossim_fast import cli; cli.main()"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems tell less of their /dev/fd")
@pytest.mark.parametrize(
    ("output", "kind"), [("-", "pipe"), ("/dev/stdout", "pipe"), ("/dev/fd/1", "file")]
)
def test_stdout_is_no_output(output, kind, tmp_path):
    np.save(tmp_path / "x.npy", X.numpy())
    with (tmp_path / "seen").open("wb") as file:
        done = subprocess.run(
            [*PROGRAM, "pairs", "x.npy", "-o", output], cwd=tmp_path, check=False,
            stdout=subprocess.PIPE if kind == "pipe" else file, stderr=subprocess.PIPE,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.decode() == (
        f"cossim: expected a file, got {output}; leave -o out to write JSON lines to a pipe\n"
    )
    assert sorted(os.listdir(tmp_path)) == ["seen", "x.npy"]


@POSIX
def test_a_page_is_not_written_where_the_command_prints(tmp_path):
    np.save(tmp_path / "x.npy", X.numpy())
    with (tmp_path / "page").open("wb") as file:
        done = subprocess.run(
            [*PROGRAM, "diagnose", "x.npy", "--html", "page"], cwd=tmp_path, check=False,
            stdout=file, stderr=subprocess.PIPE,
        )  # fmt: skip
    assert done.returncode == 2
    assert b"page is where this command prints" in done.stderr


@POSIX
@pytest.mark.parametrize("name", ["n" * 255, "日" * 85, ".part", "a b\n'*?["])
def test_every_name_that_the_system_takes_can_be_written(name, tmp_path):
    for _ in range(2):
        write_part(tmp_path / name)
    assert os.listdir(tmp_path) == [name]


def test_an_error_of_writing_names_the_file(write, tmp_path, monkeypatch):
    (tmp_path / "old").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "no room")))
    with pytest.raises(OSError, match="no room") as caught:
        write(tmp_path / "old")
    assert (caught.value.errno, caught.value.filename) == (28, str(tmp_path / "old"))
    assert (tmp_path / "old").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["old"]


# What writers leave that are killed.

SAVES = """
import os, signal, sys, torch
from pathlib import Path
from cossim_fast import CosineIndex, _replacing
index = CosineIndex(torch.ones(2000, 64))
sync = os.fsync
def killed(handle):
    os.kill(os.getpid(), signal.SIGKILL)
for name in sys.argv[1:]:
    child = os.fork()
    if not child:
        os.fsync = killed
        index.save(name)
    os.waitpid(child, 0)
"""


@POSIX
def test_many_killed_saves_leave_no_more_than_one_part(tmp_path):
    path = tmp_path / "index"
    write_part(path)
    for count, left in ((1, 1), (24, 1)):
        subprocess.run([sys.executable, "-c", SAVES, *[path] * count], check=True)
        assert len(list(tmp_path.glob(".index.*.part"))) == left
        assert path.read_bytes() == b"new"
    write_part(path)
    assert os.listdir(tmp_path) == ["index"]


HOLDS = """
import sys, time
from pathlib import Path
from cossim_fast._replacing import replacing
with replacing(Path(sys.argv[1])) as file:
    file.write(b"slow")
    print("open", flush=True)
    sys.stdin.readline()
"""


@POSIX
def test_the_part_of_a_writer_that_lives_stays_and_others_names_too(tmp_path):
    path = tmp_path / "out"
    slow = subprocess.Popen(
        [sys.executable, "-c", HOLDS, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert slow.stdout.readline() == b"open\n"
        (part,) = tmp_path.glob(".out.*.part")
        kept = {".out.notes.part", ".out.1-abc.part", part.name.replace("out", "out2"), "out.part"}
        for name in kept:
            (tmp_path / name).write_bytes(b"")
        (tmp_path / f".out.1-{'0' * 16}.part").symlink_to(tmp_path / "out.part")
        (tmp_path / f".out.2-{'0' * 16}.part").write_bytes(b"left")
        write_part(path)
        found = set(os.listdir(tmp_path))
        assert found == {*kept, "out", part.name, f".out.1-{'0' * 16}.part"}
        slow.communicate(b"\n")
        assert slow.returncode == 0
        assert path.read_bytes() == b"slow"
        assert set(os.listdir(tmp_path)) == found - {part.name}
    finally:
        slow.kill()
        slow.wait()


@POSIX
def test_many_threads_write_one_file(tmp_path):
    path, failed = tmp_path / "out", []

    def write(number):
        try:
            for _ in range(30):
                with replacing(path) as file:
                    file.write(bytes([number]) * 4096)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert failed == []
    held = path.read_bytes()
    assert held == held[:1] * 4096
    assert os.listdir(tmp_path) == ["out"]


@POSIX
def test_a_part_that_was_found_before_it_was_locked_is_given_up(tmp_path, monkeypatch):
    """Another writer sweeps between the creation of a part and its lock."""
    lock, swept = _replacing._lock, []

    def late(handle):
        if not swept:
            swept.extend(tmp_path.glob(".out.*.part"))
            _replacing._delete_if_left(swept[0])
        return lock(handle)

    def once(handle):
        monkeypatch.setattr(_replacing, "_lock", lock if swept else late)
        return late(handle)

    monkeypatch.setattr(_replacing, "_lock", once)
    write_part(tmp_path / "out")
    assert len(swept) == 1
    assert (tmp_path / "out").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["out"]


@POSIX
def test_a_part_that_was_deleted_by_a_stranger_is_an_error(tmp_path):
    (tmp_path / "out").write_bytes(b"old")
    refused = pytest.raises(FileNotFoundError, match="temporary file was deleted")
    with refused, replacing(tmp_path / "out"):
        next(tmp_path.glob(".out.*.part")).unlink()
    assert (tmp_path / "out").read_bytes() == b"old"


def test_without_locks_an_old_part_is_deleted_and_a_new_one_is_not(tmp_path, monkeypatch):
    """As on Windows, where no file is deleted that is open."""
    monkeypatch.setattr(_replacing, "fcntl", None)
    old, new = (tmp_path / f".out.1-{digit * 16}.part" for digit in "ab")
    for part in (old, new):
        part.write_bytes(b"left")
    os.utime(old, (0, 0))
    write_part(tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == [new.name, "out"]
