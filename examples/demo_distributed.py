"""An exact search by three nodes, one of which is killed: the answer is the single machine's.

The nodes are processes of Ray's on this machine. Usage: python examples/demo_distributed.py
[--rows N] [--queries N]
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet
import torch

import cossim_fast
from cossim_fast import distributed

NODES, K, WIDTH = 3, 10, 384
FILES = 8
# A node that does not answer is given up after a second and a half.
HEALTH = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 500,
    "health_check_failure_threshold": 3,
}
NODE = {"num_cpus": 1, "memory": 4_000_000_000, "object_store_memory": 80_000_000}


def main() -> None:
    """Make files, search them on a small cluster and here, and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=80_000)
    parser.add_argument("--queries", type=int, default=8000)
    given = parser.parse_args()
    # Ray's sockets need short names; what it writes goes with the folder.
    folder = Path(tempfile.mkdtemp(prefix="cossim-", dir="/tmp"))
    os.environ |= {
        "HOME": str(folder), "RAY_TMPDIR": str(folder), "RAY_USAGE_STATS_ENABLED": "0"
    }  # fmt: skip
    os.environ.pop("RAY_ADDRESS", None)
    say = partial(print, file=sys.stdout, flush=True)
    try:
        with redirect_stdout(io.StringIO()):  # Ray prints a page of its log when a node dies
            demo(folder, given.rows, given.queries, say)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def demo(folder: Path, n: int, q: int, say: Callable[[str], None]) -> None:
    """The same search by a cluster that loses a node, and by this process."""
    import ray  # noqa: PLC0415 - reads the environment as it is imported
    from ray.cluster_utils import Cluster  # noqa: PLC0415

    corpus, queries = rows_of(n, seed=0), rows_of(q, seed=1)
    (folder / "corpus").mkdir()
    for number, part in enumerate(corpus.chunk(FILES)):
        np.save(folder / "corpus" / f"part-{number}.npy", part.numpy())
    np.save(folder / "queries.npy", queries.numpy())
    say(f"{n} rows of {WIDTH} numbers in {FILES} files, {q} queries, the {K} nearest of each")
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            **NODE, "num_cpus": 0, "include_dashboard": False, "_system_config": HEALTH
        },
    )  # fmt: skip
    try:
        nodes = [cluster.add_node(**NODE) for _ in range(NODES)]
        ray.init(cluster.address, log_to_driver=False, logging_level="error")
        say(f"a cluster of {NODES} nodes with one processor each is there")
        with ThreadPoolExecutor(1) as pool:
            search = pool.submit(
                distributed.topk,
                folder / "queries.npy",
                folder / "corpus",
                k=K,
                output=folder / "out",
                queries_per_task=-(-q // 4),
                rows_per_task=-(-n // 32),
            )
            done = wait_for_blocks(folder / "out" / "_blocks", 30, search)
            cluster.remove_node(nodes[0], allow_graceful=False)
            say(f"after {done} blocks a node is killed, with the tasks that run on it")
            found = search.result()
        say(f"{found.blocks} blocks were computed by {NODES - 1} nodes in the end")
    finally:
        ray.shutdown()
        cluster.shutdown()
    parts = [pyarrow.parquet.read_table(path) for path in sorted(folder.glob("out/part-*"))]
    table = pyarrow.concat_tables(part.replace_schema_metadata() for part in parts)
    scores, rows = cossim_fast.topk(queries, corpus, K)
    same = np.array_equal(table["row"], rows.flatten()) and np.array_equal(
        table["score"], scores.flatten()
    )
    if not same:
        raise SystemExit("the answer differs from that of cossim_fast.topk: please report it")
    say(f"all {table.num_rows} rows and scores are those of cossim_fast.topk, bit by bit")


def rows_of(n: int, *, seed: int) -> torch.Tensor:
    """Clustered rows (n, WIDTH) in float16, as embeddings are; some are copies of others."""
    drawn = torch.Generator().manual_seed(seed)
    centres = torch.randn(500, WIDTH, generator=torch.Generator().manual_seed(7))
    x = centres[torch.randint(500, (n,), generator=drawn)]
    x = x + 0.7 * torch.randn(n, WIDTH, generator=drawn)
    x[::50] = x[1::50][: len(x[::50])]
    return x.half()


def wait_for_blocks(folder: Path, count: int, search: Future[distributed.Finished]) -> int:
    """Wait until so many blocks are there, and return how many are."""
    while (there := len(list(folder.glob("[!.]*.parquet")))) < count:
        if search.done():  # with an error, which is shown
            search.result()
            raise SystemExit("the search was over before a node could be killed; give more --rows")
        time.sleep(0.02)
    return there


if __name__ == "__main__":
    main()
