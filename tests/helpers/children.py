"""What spawned processes run: they import it by its name, as they cannot import tests."""

from multiprocessing.connection import Connection
from multiprocessing.queues import Queue
from typing import Any


def time_case(answer: Connection, case: Any) -> None:
    """Time a case of the benchmarks beside a busy process."""
    import timing

    timing.BUDGET_BESIDE = 0.01
    answer.send(timing.time_case(case))


def time_and_measure(queue: "Queue[Any]", case: Any) -> None:
    """Time a case and measure its memory where no other test is disturbed by threads and gc."""
    import memory
    import timing
    from cases import OURS

    timing.BUDGET = 0.01
    queue.put((timing.time_case(case), memory.peak_bytes(case, OURS)))
