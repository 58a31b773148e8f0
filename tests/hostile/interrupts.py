"""Ctrl-C at random microseconds: an index is as before or after, and every setting as it was."""

import os
import signal
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
from hostile.tries import Tally, Wrong

INTERRUPTS = 350


class Sender:
    """Another process that sends this one SIGINT after so many seconds."""

    def __init__(self) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._here, there = os.pipe()
        answer, self._ask = os.pipe()
        self._target = os.getpid()
        self._pid = os.fork()
        if not self._pid:
            os.close(self._here)
            os.close(self._ask)
            while asked := os.read(answer, 8):
                until = time.perf_counter() + float(np.frombuffer(asked)[0])
                while time.perf_counter() < until:
                    pass
                os.kill(self._target, signal.SIGINT)
                os.write(there, b".")
            os._exit(0)
        os.close(answer)
        os.close(there)

    def during(self, call: Callable[[], Any], after: float) -> tuple[bool, Any]:
        """Whether a call was interrupted, and what it returned otherwise."""
        found, interrupted = None, False
        try:
            os.write(self._ask, np.float64(after).tobytes())
            found = call()
        except KeyboardInterrupt:
            interrupted = True
        # What was sent too late comes here.
        heard = b""
        while not heard:
            try:
                heard = os.read(self._here, 1)
                time.sleep(0.0005)
            except KeyboardInterrupt:
                continue
        return interrupted, found


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
            lambda found: truth.check_matrix(np.diag(found), np.eye(1), np.eye(1))
            if False
            else None,
        ),
    }
    before, sender = _settings(), Sender()
    seconds = {}
    for name, (call, _) in functions.items():
        call()
        began = time.perf_counter()
        call()
        seconds[name] = time.perf_counter() - began
    for number in range(INTERRUPTS):
        name = list(functions)[int(rng.integers(len(functions)))]
        call, check = functions[name]
        with tally.one(name) as how:
            interrupted, found = sender.during(call, rng.uniform(0, 1.2 * seconds[name]))
            how.append("interrupted" if interrupted else "answered")
            if not interrupted:
                check(found)
            changed = [key for key, value in _settings().items() if value != before[key]]
            if changed:
                torch.set_float32_matmul_precision(before["precision"])
                torch.set_num_threads(before["threads"])
                np.seterr(**before["numpy's errors"])
                raise Wrong(f"changed: {', '.join(changed)}")
            if number % 8 == 0:
                check(call())
                if not _plain_product_is_exact(a, b, exact):
                    raise Wrong("a plain product is rounded afterwards")
    if threading.active_count() > 40:
        tally.failed(f"{threading.active_count()} threads are left")


class Model:
    """What an index should hold."""

    def __init__(self, rows: Any, ids: list[int]) -> None:
        self.rows = dict(zip(ids, rows, strict=True))

    def check(self, index: CosineIndex, queries: Any) -> None:
        """Look that it does."""
        ids = index.ids.tolist()
        if len(set(ids)) != len(ids):
            raise Wrong("an id twice")
        if set(ids) != set(self.rows):
            raise Wrong(f"ids are neither those before nor those after: {len(ids)}")
        if len(index) != len(ids):
            raise Wrong("a length that is not that of the ids")
        rows = np.stack([self.rows[each] for each in ids])
        place = {each: row for row, each in enumerate(ids)}
        found = index.search(queries, 3)
        at = np.array([[place[each] for each in line] for line in found.indices.tolist()])
        truth.check_topk(found.scores, at, queries, rows, 3)


def changes(rng: np.random.Generator, folder: Path, tally: Tally) -> None:
    """`add` and `remove` are interrupted: all of a change is there, or nothing."""
    d = 24
    queries = truth.rows(rng, 4, d)
    sender = Sender()
    own = bool(rng.integers(2))  # ids of the caller's
    path = folder / "rows.safetensors" if rng.integers(3) == 0 else None
    rows = truth.rows(rng, 400, d)
    index = CosineIndex(rows, list(range(400)) if own else None, path=path)
    model, following = Model(rows, list(range(400))), 400
    seconds = 0.0005
    for _ in range(INTERRUPTS):
        adding = len(model.rows) < 300 or rng.integers(2)
        after = rng.uniform(0, 1.3 * seconds)
        began = time.perf_counter()
        with tally.one("add" if adding else "remove") as how:
            if adding:
                some = truth.rows(rng, int(rng.integers(1, 60)), d)
                ids = list(range(following, following + len(some)))
                following += len(some)
                interrupted, _ = sender.during(
                    lambda some=some, ids=ids: index.add(some, ids if own else None), after
                )
                there = index.ids.tolist()
                # Without ids of one's own, numbers of what was not added may be given again.
                if not own and not set(ids) <= set(there):
                    following = max(there, default=-1) + 1
                    new = [each for each in there if each not in model.rows]
                    if new:
                        raise Wrong(f"{len(new)} of {len(some)} rows were added")
                if set(ids) <= set(there):
                    model.rows.update(zip(ids, some, strict=True))
                elif not interrupted:
                    raise Wrong("not added")
            else:
                gone = rng.choice(sorted(model.rows), int(rng.integers(1, 60)), replace=False)
                interrupted, _ = sender.during(lambda gone=gone: index.remove(gone), after)
                there = set(index.ids.tolist())
                if not there & set(gone.tolist()):
                    for each in gone.tolist():
                        del model.rows[each]
                elif not interrupted:
                    raise Wrong("not removed")
            how.append("interrupted" if interrupted else "answered")
            if not interrupted:
                seconds = 0.9 * seconds + 0.1 * (time.perf_counter() - began)
            model.check(index, queries)
            if not own and rng.integers(4) == 0:  # the next rows get numbers of their own
                extra = truth.rows(rng, 3, d)
                known = set(index.ids.tolist())
                index.add(extra)
                new = [each for each in index.ids.tolist() if each not in known]
                if len(new) != 3:
                    raise Wrong("the next add gave an id twice")
                following = max(new) + 1
                model.rows.update(zip(new, extra, strict=True))
                model.check(index, queries)


BOTH = ("interrupted", "answered")
ATTACKS = (
    Attack("interrupt-calls", calls, (3, 1), BOTH, fresh=True),
    Attack("interrupt-changes", changes, (6, 1), BOTH),
)
