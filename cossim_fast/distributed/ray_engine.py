"""Tasks on a Ray cluster: the one module that knows Ray.

A task computes a block. What it computes goes into a file, and its result is small. Ray runs a task
again whose worker or node died; an error that the task itself raised is the user's, and arrives as
it is.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from typing import Any

from cossim_fast._extras import require
from cossim_fast.distributed.grid import Block

# Tasks in flight for each that can run: the next one waits on the node as one ends.
_AHEAD = 2
# Times that Ray runs a task again whose worker or node died.
_RETRIES = 8
# [seconds] Between looks at the nodes of the cluster, which come and go.
_LOOK = 1.0
# [seconds] To wait for an address to answer.
_ANSWER = 10.0
# [seconds] To wait for a node that a task fits on: a cluster that grows starts one in minutes.
_PATIENCE = 600.0


class RayEngine:
    """Runs tasks on a cluster, while it is entered.

    Args:
        address: ``"local"`` starts Ray on this machine and ends it; ``"auto"`` or ``"host:port"``
            joins a cluster that runs. Where this process is connected to one, it is used.
        cpus_per_task: processors of a task, and its threads.
        patience: seconds to wait for a node that a task fits on.
    """

    def __init__(
        self, address: str = "auto", *, cpus_per_task: int = 1, patience: float = _PATIENCE
    ) -> None:
        self._address, self._cpus, self._patience = address, cpus_per_task, patience
        self._ours = False  # whether the connection is
        self._remote: Any = None  # what Ray makes of `_called`
        self._left: list[Any] = []  # in flight when a run stopped
        self._looked = -_LOOK
        self._fitting = 0

    def __enter__(self) -> RayEngine:
        self._ray = require("ray", extra="distributed")
        return self

    def __exit__(self, *raised: object) -> None:
        self._remote = None
        if self._ours:
            # Ends what is in flight. Cancelled first, a task whose result is on its way makes
            # Ray 2.60 abort this process ("Tried to complete task that was not pending").
            self._left = []
            self._ray.shutdown()
        else:
            self._cancel()

    def _connect(self) -> None:
        """Join the cluster, or start one; not before there is something to do."""
        if self._remote is not None:
            return
        if not self._ray.is_initialized():
            options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
            if self._address == "local":
                self._patience = 0.0  # no node will come
                options["include_dashboard"] = False
            try:
                _look_for(self._address)
                self._ray.init(self._address, **options)
            except ConnectionError as error:
                raise ConnectionError(
                    f"expected a Ray cluster at address={self._address!r}, and none answers; start "
                    'one with `ray start --head`, or pass address="local" to start Ray on this '
                    "machine"
                ) from error
            self._ours = True
        self._remote = self._ray.remote(_called)

    def run(self, tasks: Iterable[Block]) -> Generator[tuple[Block, Any], None, None]:
        """Yield each task with its result, as they end.

        At most two tasks for each that the cluster can run at a time are submitted, and one until
        the first has ended, from which the others may learn; the next is taken from ``tasks`` only
        then. Where the caller stops, or a task fails, what is in flight is cancelled when the next
        run begins, or the engine ends.

        Raises:
            RuntimeError: no node can run a task, or a task's worker died again and again.
            Exception: what a task raised.
        """
        self._cancel()
        waiting: Iterator[Block] | None = iter(tasks)
        flying: dict[Any, Block] = {}
        most = ahead = 1
        self._looked = -_LOOK
        try:
            while True:
                while waiting is not None and len(flying) < most:
                    task = next(waiting, None)
                    if task is None:
                        waiting = None
                        break
                    self._connect()
                    most = ahead * self._fitting_now(task)
                    flying[self._submitted(task)] = task
                if not flying:
                    return
                for ref in self._ended(list(flying)):
                    ahead = _AHEAD
                    ended = flying.pop(ref)
                    yield ended, self._result(ref, ended)
                if flying:  # nodes come and go
                    most = ahead * self._fitting_now(next(iter(flying.values())))
        finally:
            self._left += flying

    def _cancel(self) -> None:
        """Cancel what was in flight when a run stopped."""
        left, self._left = self._left, []
        for ref in left:
            with suppress(Exception):  # a cluster that is gone runs nothing
                self._ray.cancel(ref, force=True)

    def _submitted(self, task: Block) -> Any:
        remote = self._remote.options(
            num_cpus=self._cpus,
            memory=task.memory,
            max_retries=_RETRIES,
            name=task.name,
        )
        return remote.remote(self._cpus, task.function, *task.arguments)

    def _ended(self, flying: list[Any]) -> list[Any]:
        """Those that have ended; at least one, unless it is time to look at the nodes again."""
        ended, others = self._ray.wait(flying, num_returns=1, timeout=_LOOK)
        if ended and others:
            more, _ = self._ray.wait(others, num_returns=len(others), timeout=0)
            ended = [*ended, *more]
        return list(ended)

    def _result(self, ref: Any, task: Block) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(ref)
        except errors.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, errors.RaySystemError):
                raise RuntimeError(
                    f"expected every node to be able to import what {task.name} needs; install the "
                    f"same version of cossim_fast on all of them. Ray says: {cause}"
                ) from None
            raise cause if isinstance(cause, BaseException) else error from None
        except errors.RayError as error:
            raise RuntimeError(
                f"the worker of {task.name} died {_RETRIES + 1} times, or could not be started; a "
                f"task was promised {task.memory / 1e6:.0f} MB. Ray says: {error}"
            ) from error

    def _fitting_now(self, task: Block) -> int:
        """How many such tasks the nodes can run at a time."""
        since = time.monotonic()
        while time.monotonic() - self._looked >= _LOOK or not self._fitting:
            nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
            self._fitting = sum(self._fits(task, node) for node in nodes)
            self._looked = time.monotonic()
            if self._fitting:
                break
            if time.monotonic() - since >= self._patience:
                none: dict[str, float] = {}
                largest = max(nodes, key=lambda node: node.get("memory", 0.0), default=none)
                raise RuntimeError(
                    f"expected a node with {self._cpus} CPUs and {task.memory / 1e6:.0f} MB of "
                    f"memory for {task.name}, and none has them: the one with most memory has "
                    f"{largest.get('CPU', 0):.0f} CPUs and {largest.get('memory', 0) / 1e6:.0f} "
                    "MB; add a larger node, or make the tasks smaller"
                )
            time.sleep(_LOOK)
        return self._fitting

    def _fits(self, task: Block, node: dict[str, float]) -> int:
        """How many such tasks a node can run at a time."""
        by_memory = node.get("memory", 0.0) // task.memory if task.memory else float("inf")
        return int(min(node.get("CPU", 0.0) // self._cpus, by_memory))


def _look_for(address: str) -> None:
    """See whether anybody is at ``host:port``, for which Ray itself waits a minute.

    Raises:
        ConnectionError: nobody is.
    """
    host, _, port = address.rpartition(":")
    if not host or "://" in address or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER).close()
    except OSError as error:
        raise ConnectionError(str(error)) from error


def _called(threads: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """Make a call in a worker, with as many threads as processors were promised."""
    import torch  # noqa: PLC0415

    torch.set_num_threads(threads)
    return function(*arguments)
