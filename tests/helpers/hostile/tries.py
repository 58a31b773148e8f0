"""What attacks share: counting, running things in processes that can be killed, the command."""

import contextlib
import json
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What a caller who passed something wrong may meet, or who ran out of memory.
REFUSALS = (ValueError, TypeError, KeyError, OSError, MemoryError, IndexError)


class WrongError(Exception):
    """What must not happen: a wrong answer, or trouble that is not told."""


class Tally:
    """Counts what came of tries, in a file that outlives the process."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def held(self, how: str = "answered") -> None:
        """Count a try that held."""
        self._write("held", "", how)

    def failed(self, why: str, what: str = "") -> None:
        """Count a try that failed; ``what`` it was."""
        self._write("failed", what, " ".join(why.split())[:200])

    @contextlib.contextmanager
    def one(self, what: str = "") -> Iterator[list[str]]:
        """A try of several: its outcome is put into the list, or it is wrong."""
        how = ["answered"]
        try:
            yield how
        except WrongError as error:
            self.failed(str(error), what)
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(last.filename).name}:{last.lineno}"
            self.failed(f"{type(error).__name__} in {where}: {error}", what)
        else:
            self.held(how[-1])

    def _write(self, *words: str) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(words) + "\n")

    def read(self) -> list[tuple[str, str, str]]:
        """What was counted: held or failed, what it was, and how or why."""
        if not self._path.exists():
            return []
        lines = self._path.read_text(encoding="utf-8").splitlines()
        return [(kind, what, text) for kind, what, text in map(json.loads, lines)]


@dataclass
class Done:
    """How a command ended."""

    status: int  # as a shell has it, -9 if it was killed
    out: str
    err: str
    megabytes: float  # it held at most

    def refused(self, *, mentions: str = "") -> bool:
        """Whether it said in one line what is wrong; False if it is done.

        Raises:
            WrongError: it ended in another way.
        """
        if self.status == 0:
            return False
        lines = self.err.rstrip("\n").split("\n")
        # A note that it goes on from a checkpoint may come first.
        lines = [line for line in lines if not line.startswith("cossim: going on from ")]
        one = len(lines) == 1 and lines[0].startswith("cossim: ") and mentions in lines[0]
        if self.status != 2 or not one:
            raise WrongError(
                f"exit status {self.status}, {len(lines)} lines on stderr, the last of which is "
                f"{lines[-1][:200]!r}"
            )
        return True


class Child:
    """A forked process that runs a function, or the command, and can be killed.

    Its exit status is what the function returns, 0 for None.
    """

    def __init__(self, work: Callable[[], Any], said: Path | None = None) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        self.status: int | None = None
        self.megabytes = 0.0
        if self.pid:
            return
        status = 1
        try:
            if said is not None:
                for stream, name in ((1, f"{said}.out"), (2, f"{said}.err")):
                    file = os.open(name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
                    os.dup2(file, stream)
                    os.close(file)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            status = int(work() or 0)
        except SystemExit as stopped:
            status = stopped.code if isinstance(stopped.code, int) else int(bool(stopped.code))
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)

    def ended(self) -> bool:
        """Whether it is over."""
        if self.status is None:
            pid, status, used = os.wait4(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
                # Kilobytes, on macOS bytes.
                self.megabytes = used.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
        return self.status is not None

    def wait(self, limit: float = 30.0) -> int:
        """Its exit status.

        Raises:
            WrongError: it does not end.
        """
        stop = time.monotonic() + limit
        while not self.ended():
            if time.monotonic() > stop:
                self.kill()
                raise WrongError(f"no end within {limit:g} s")
            time.sleep(0.0005)
        assert self.status is not None
        return self.status

    def kill(self) -> int:
        """Kill it, if it is not over; its exit status."""
        if not self.ended():
            os.kill(self.pid, signal.SIGKILL)
            while not self.ended():
                time.sleep(0.0002)
        assert self.status is not None
        return self.status


def cossim(*arguments: Any) -> Callable[[], None]:
    """The command with these arguments, as a function."""

    def work() -> None:
        from cossim_fast import cli

        sys.argv = ["cossim", *map(str, arguments)]
        # The streams of this process are those of its parent: new ones, to what they are now.
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        cli.main()

    return work


def start(*arguments: Any, said: Path) -> Child:
    """Start the command; what it says goes to files."""
    return Child(cossim(*arguments), said)


def finish(child: Child, said: Path, limit: float = 30.0) -> Done:
    """Wait for a command."""
    status = child.wait(limit)
    out, err = (Path(f"{said}.{end}") for end in ("out", "err"))
    done = Done(
        status, out.read_text(errors="replace"), err.read_text(errors="replace"), child.megabytes
    )
    out.unlink()
    err.unlink()
    return done


def command(*arguments: Any, said: Path, limit: float = 30.0) -> Done:
    """Run the command to its end."""
    return finish(start(*arguments, said=said), said, limit)


def small_stretches(rows: int = 64, width: int = 16) -> None:
    """Make the pieces small after which a checkpoint is written, in this process for good."""
    from cossim_fast.retrieval import tuning
    from cossim_fast.retrieval.joins import checkpoint as join_checkpoint
    from cossim_fast.retrieval.storage import corpus as corpus_module

    for module, name, value in (
        (corpus_module, "NUMBERS", rows * width),
        (tuning, "FIRST_ROUND", rows),
        (tuning, "LONGEST_ROUND", rows),
        (join_checkpoint, "_WAIT", 0),
    ):
        if not hasattr(module, name):
            raise WrongError(
                f"{module.__name__} has no {name}: say in tries.py what it is called now"
            )
        setattr(module, name, value)


def leftovers(folder: Path, expected: set[str]) -> None:
    """Look that nothing but what is expected lies in a folder; delete what does.

    Raises:
        WrongError: something does.
    """
    more = [path for path in folder.iterdir() if path.name not in expected]
    for path in more:
        path.unlink()
    if more:
        # Temporary names hold what differs from process to process.
        names = {re.sub(r"[0-9]+-[0-9a-f]{8}", "*", path.name) for path in more}
        raise WrongError(f"left behind: {', '.join(sorted(names))}")
