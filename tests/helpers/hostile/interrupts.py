"""Ctrl-C at random microseconds: an index is as before or after, and every setting as it was."""

import ctypes
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import cossim_fast
from cossim_fast import CosineIndex, pairs_above, pairwise_cosine, topk
from hostile import truth
from hostile.harness import Attack
from hostile.tries import Tally, WrongError

INTERRUPTS = 120
WIDTH = 24
PACKAGE = str(Path(cossim_fast.__file__).parent)


class _Event(ctypes.Structure):
    """What sigevent(3type) begins with, and room for the rest of it."""

    _fields_ = (
        ("value", ctypes.c_void_p), ("signal", ctypes.c_int), ("notify", ctypes.c_int),
        ("thread", ctypes.c_int), ("rest", ctypes.c_byte * 44),
    )  # fmt: skip


class Interrupter:
    """Sends this process SIGINT from a timer of the system, not from Python.

    After a time, or where Python comes to a line of the package that is chosen among all that a
    call runs: what takes no time would otherwise never be hit.
    """

    def __init__(self) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._system, self._timer = ctypes.CDLL(None), ctypes.c_void_p()
        self._soon = 1e-6  # as long as it takes to return from here to what is traced
        # SIGEV_THREAD_ID: to this thread, which has it as soon as it comes back from the system.
        event = _Event(signal=signal.SIGINT, notify=4, thread=threading.get_native_id())
        if self._system.timer_create(1, ctypes.byref(event), ctypes.byref(self._timer)):
            raise WrongError("the system has no timer")

    def _arm(self, seconds: float) -> None:
        whole, part = divmod(int(seconds * 1e9), 1_000_000_000)
        times = (ctypes.c_long * 4)(0, 0, whole, part)  # seconds and nanoseconds, no repeats
        self._system.timer_settime(self._timer, 0, times, None)

    def after(self, seconds: float, call: Callable[[], Any]) -> tuple[bool, Any]:
        """Whether a call was interrupted, and what it returned otherwise."""
        return self._during(call, lambda: self._arm(max(seconds, 1e-6)))

    def at_line(self, number: int, call: Callable[[], Any]) -> tuple[bool, Any]:
        """The same at the line of this number."""
        return self._during(call, lambda: self._trace(number))

    def lines(self, call: Callable[[], Any]) -> int:
        """How many lines of the package a call runs."""
        self._trace(-1)
        call()
        sys.settrace(None)
        return self._count

    def _trace(self, number: int) -> None:
        self._count = 0

        def line(frame: Any, event: str, argument: Any) -> Any:
            self._count += 1
            if self._count == number:
                sys.settrace(None)
                self._come_soon()
            return line

        def call(frame: Any, event: str, argument: Any) -> Any:
            return line if PACKAGE in frame.f_code.co_filename else None

        sys.settrace(call)

    def _come_soon(self) -> None:
        """Let it come after this has returned: raised in here, it would end no line of Python's.

        What is traced would be left before a line that nothing can fall before, as the one call
        of a `finally`, and be blamed for it.
        """
        for _ in range(20):
            try:
                self._arm(self._soon)
                return
            except KeyboardInterrupt:
                self._soon = min(1.5 * self._soon, 1e-4)

    def _during(self, call: Callable[[], Any], begin: Callable[[], None]) -> tuple[bool, Any]:
        found, interrupted = None, False
        try:
            begin()
            found = call()
        except KeyboardInterrupt:
            interrupted = True
        while True:  # what comes too late comes here
            try:
                sys.settrace(None)
                self._arm(0)
                time.sleep(0)
                return interrupted, found
            except KeyboardInterrupt:
                interrupted = interrupted or found is None


def _settings() -> dict[str, Any]:
    return {
        "precision": torch.get_float32_matmul_precision(),
        "threads": torch.get_num_threads(),
        "default dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "numpy's errors": np.geterr(),
        "the handler": signal.getsignal(signal.SIGINT),
        "the signals blocked": signal.pthread_sigmask(signal.SIG_BLOCK, ()),
    }


def _plain_product_is_exact(a: torch.Tensor, b: torch.Tensor, exact: torch.Tensor) -> bool:
    return bool((torch.mm(a, b).double() - exact).abs().max() < 1e-3)


def calls(rng: np.random.Generator, folder: Path, tally: Tally) -> None:
    """Functions are interrupted; afterwards settings are as before, and so are answers."""
    x, q = truth.rows(rng, 2500, 48), truth.rows(rng, 100, 48)
    tx, tq = torch.from_numpy(x), torch.from_numpy(q)
    a, b = torch.randn(128, 512), torch.randn(512, 128)
    exact = a.double() @ b.double()
    plain = pairwise_cosine(tq, tx)
    truth.check_matrix(plain, q, x)
    functions: dict[str, tuple[Callable[[], Any], Callable[[Any], None]]] = {
        "topk": (lambda: topk(q, x, 5), lambda found: truth.check_topk(*found, q, x, 5)),
        "topk bfloat16": (
            lambda: topk(q, x, 5, screen="bfloat16"),
            lambda found: truth.check_topk(*found, q, x, 5),
        ),
        "pairs_above": (
            lambda: pairs_above(q, x, 0.7),
            lambda found: truth.check_pairs(*found, q, 0.7, x),
        ),
        "pairwise_cosine": (
            lambda: pairwise_cosine(tq, tx),
            lambda found: truth.check_matrix(found, q, x),
        ),
        "pairwise_cosine medium": (
            lambda: pairwise_cosine(tq, tx, precision="medium"),
            lambda found: truth.check_matrix(found, q, x, 2e-2),
        ),
        "cosine_similarity": (
            lambda: cossim_fast.cosine_similarity(tx[:100], tq),
            lambda found: truth.check_close(found, np.diag(truth.cosines(x[:100], q))),
        ),
    }
    before, interrupter = _settings(), Interrupter()
    seconds, lines = {}, {}
    for name, (call, _) in functions.items():
        call()
        began = time.perf_counter()
        call()
        seconds[name] = time.perf_counter() - began
        lines[name] = interrupter.lines(call)
    for number in range(INTERRUPTS):
        name = list(functions)[int(rng.integers(len(functions)))]
        call, check = functions[name]
        with tally.one(name) as how:
            if rng.integers(3):
                line = int(rng.integers(1, lines[name] + 1))
                interrupted, found = interrupter.at_line(line, call)
            else:
                after = rng.uniform(0, 1.2 * seconds[name])
                interrupted, found = interrupter.after(after, call)
            how.append("interrupted" if interrupted else "answered")
            if not interrupted:
                check(found)
            changed = [key for key, value in _settings().items() if value != before[key]]
            if changed:
                torch.set_float32_matmul_precision(before["precision"])
                torch.set_num_threads(before["threads"])
                np.seterr(**before["numpy's errors"])
                raise WrongError(f"changed: {', '.join(changed)}")
            if number % 8 == 0:
                check(call())
                if not _plain_product_is_exact(a, b, exact):
                    raise WrongError("a plain product is rounded afterwards")
    if threading.active_count() > 40:
        tally.failed(f"{threading.active_count()} threads are left")


class Model:
    """An index, and what it should hold."""

    def __init__(self, rng: np.random.Generator, own: bool, path: Path | None) -> None:
        self._own, self._given = own, 0
        rows = truth.rows(rng, 400, WIDTH)
        self.index = CosineIndex(rows, self._names(400), path=path)
        self.rows = dict(zip(self.index.ids.tolist(), rows, strict=True))
        self.gone: set[int] = set()

    def _names(self, count: int) -> list[int] | None:
        self._given += count
        return list(range(self._given - count, self._given)) if self._own else None

    def add(self, rows: Any) -> Callable[[], Any]:
        """What adds rows."""
        ids = self._names(len(rows))
        return lambda: self.index.add(rows, ids)

    def added(self, rows: Any, *, surely: bool) -> None:
        """Take notice of rows that were added, all or none."""
        new = [each for each in self.index.ids.tolist() if each not in self.rows]
        if set(new) & self.gone:
            raise WrongError("an id of a removed row")
        if len(new) != len(rows) and (new or surely):
            raise WrongError(f"{len(new)} of {len(rows)} rows were added")
        self.rows.update(zip(new, rows, strict=False))

    def removed(self, ids: Any, *, surely: bool) -> None:
        """Take notice of rows that were removed, all or none."""
        left = set(ids.tolist()) & set(self.index.ids.tolist())
        if left and (surely or len(left) < len(ids)):
            raise WrongError(f"{len(ids) - len(left)} of {len(ids)} rows were removed")
        if not left:
            self.gone.update(ids.tolist())
            for each in ids.tolist():
                del self.rows[each]

    def check(self, queries: Any) -> None:
        """Look that the index holds what it should."""
        ids = self.index.ids.tolist()
        if len(set(ids)) != len(ids):
            raise WrongError("an id twice")
        if ids != list(self.rows) or len(self.index) != len(ids):
            raise WrongError("ids are neither those before nor those after")
        rows = np.stack(list(self.rows.values()))
        place = {each: row for row, each in enumerate(ids)}
        found = self.index.search(queries, 3)
        at = np.array([[place[each] for each in line] for line in found.indices.tolist()])
        truth.check_topk(found.scores, at, queries, rows, 3)


def changes(rng: np.random.Generator, folder: Path, tally: Tally) -> None:
    """`add` and `remove` are interrupted: all of a change is there, or nothing."""
    queries = truth.rows(rng, 4, WIDTH)
    interrupter = Interrupter()
    own, in_file = bool(rng.integers(2)), rng.integers(3) == 0
    lines: dict[bool, int] = {}
    model: Model | None = None
    for number in range(INTERRUPTS):
        if model is None:
            path = folder / f"rows{number}.safetensors" if in_file else None
            model = Model(rng, own, path)
        adding = bool(len(model.rows) < 300 or rng.integers(2))
        some = truth.rows(rng, int(rng.integers(1, 60)), WIDTH)
        gone = rng.choice(list(model.rows), len(some), replace=False)
        call = model.add(some) if adding else lambda gone=gone, to=model: to.index.remove(gone)
        interrupted, held = False, False
        with tally.one("add" if adding else "remove") as how:
            if adding not in lines:
                lines[adding] = interrupter.lines(call)
            elif rng.integers(4):
                line = int(rng.integers(1, 1.2 * lines[adding]))
                interrupted = interrupter.at_line(line, call)[0]
            else:
                interrupted = interrupter.after(rng.uniform(0, 0.001), call)[0]
            how.append("interrupted" if interrupted else "answered")
            if adding:
                model.added(some, surely=not interrupted)
            else:
                model.removed(gone, surely=not interrupted)
            more = truth.rows(rng, 2, WIDTH)
            model.add(more)()  # with ids of its own
            model.added(more, surely=True)
            model.check(queries)
            held = True
        if not held:
            model = None  # it is known to be wrong


BOTH = ("interrupted", "answered")
ATTACKS = (
    Attack("interrupt-calls", calls, (5, 1), BOTH, fresh=True),
    Attack("interrupt-changes", changes, (14, 1), BOTH),
)
