"""What spawned processes run: they import it by its name, as they cannot import tests."""

import datetime
import json
import os
import warnings
from multiprocessing.connection import Connection
from multiprocessing.queues import Queue
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cossim_fast import CosineIndex
from cossim_fast.diagnose import CollapseMonitor, CollapseWarning
from diagnose_inputs import randn

# Seconds; a loaded machine takes tens of them to start two processes.
LONGEST_WAIT = 120


def search(index: CosineIndex, queries: Tensor, answer: Connection) -> None:
    """Search an index, and add to it."""
    found = index.search(queries, 5, exclude=[0])
    index.add(queries)
    answer.send((found.scores.numpy(), found.indices.numpy(), len(index)))


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


def train(rank: int, path: str) -> None:
    """Train one of two replicas with a monitor, and write what it saw to a file."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{path}/rendezvous",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=LONGEST_WAIT),
    )
    torch.manual_seed(0)
    network = nn.parallel.DistributedDataParallel(nn.Linear(8, 8))
    log = f"{path}/log.jsonl"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", CollapseWarning)
        with CollapseMonitor(network, every=2, log=log) as monitor:
            for step in range(4):
                batch = randn(32, 8, seed=10 * rank + step) + 1000.0 * (step >= 2)
                network(batch).sum().backward()
    count = sum(issubclass(each.category, CollapseWarning) for each in caught)
    with open(f"{path}/{rank}.json", "w") as file:
        json.dump({"records": len(monitor.records), "warnings": count}, file)
    # Gloo's threads abort a process whose peer leaves first, or that ends with one of its users.
    del network
    dist.barrier()
    dist.destroy_process_group()
    # Nor does the interpreter take down what is left of them: that aborts now and then, too.
    os._exit(0)
