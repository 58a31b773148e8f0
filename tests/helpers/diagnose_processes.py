"""A watched training run in each of two processes; a spawned one finds no file of tests."""

import datetime
import json
import os
import warnings

import torch
import torch.distributed as dist
from torch import nn

from cossim_fast.diagnose import CollapseMonitor, CollapseWarning

# Seconds; a loaded machine takes tens of them to start two processes.
LONGEST_WAIT = 120


def train_in_process(rank: int, path: str) -> None:
    """Train, and write what was recorded and warned of."""
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
                batch = _randn(10 * rank + step) + 1000.0 * (step >= 2)
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


def _randn(seed: int) -> torch.Tensor:
    return torch.randn(32, 8, generator=torch.Generator().manual_seed(seed))
