"""A Ray cluster of several nodes on this machine, all of whose processes end with it."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# A node that does not answer is given up after a second and a half.
_HEALTH = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 500,
    "health_check_failure_threshold": 3,
}
# [bytes] Of each node's shared memory, of which nothing here needs any.
_STORE = 80_000_000
# [bytes] That each node says it has.
MEMORY = 4_000_000_000
# Where Ray keeps its files and tokens, and that it tells nobody.
_OWN = ("HOME", "PYTHONPATH", "RAY_ADDRESS", "RAY_TMPDIR", "RAY_USAGE_STATS_ENABLED")


class SmallCluster:
    """A head without processors, and nodes with one each."""

    def __init__(self, folder: Path, nodes: int) -> None:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(
            initialize_head=True,
            shutdown_at_exit=True,
            head_node_args={
                "num_cpus": 0,
                "memory": MEMORY,
                "object_store_memory": _STORE,
                "include_dashboard": False,
                "_system_config": _HEALTH,
            },
        )
        self.address = self._cluster.address
        self.nodes: list[Any] = []
        self.folder = folder
        for _ in range(nodes):
            self.add()

    def add(self, *, wait: bool = True, cpus: int = 1) -> Any:
        """Start one more node."""
        node = self._cluster.add_node(
            wait=wait, num_cpus=cpus, memory=MEMORY, object_store_memory=_STORE
        )
        self.nodes.append(node)
        return node

    def kill(self, node: Any) -> None:
        """End a node's processes with SIGKILL, as a machine that fails."""
        self.nodes.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)

    def to(self, count: int) -> None:
        """Add nodes, or take some away, until there are so many."""
        while len(self.nodes) > count:
            self.kill(self.nodes[-1])
        while len(self.nodes) < count:
            self.add()

    def workers(self) -> list[int]:
        """The processes that have worked on tasks, or do."""
        # By the names of their tasks; agents of the nodes have other names.
        named = (b"ray::_blocks", b"ray::part-", b"ray::IDLE")
        return [pid for pid in processes_of(self.folder) if _command(pid).startswith(named)]

    def jobs_of(self, pid: int) -> list[str]:
        """The jobs of a driver that the cluster has not given up."""
        from ray._private.state import jobs

        return [job["JobID"] for job in jobs() if job["DriverPid"] == pid and not job["IsDead"]]

    def shutdown(self) -> None:
        """End all processes."""
        self._cluster.shutdown()


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has ended
        return b""


def processes_of(folder: Path) -> list[int]:
    """The processes of Ray's that have a folder in their command line or environment."""
    found = []
    needle = os.fsencode(folder)
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            said = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            zombie = (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:  # it has ended meanwhile, or is somebody else's
            continue
        if needle in said and not zombie:
            found.append(int(entry.name))
    return found


@contextmanager
def own_ray() -> Iterator[Path]:
    """A folder for all that Ray writes, HOME among it; gone afterwards, as are its processes."""
    before = {name: os.environ.get(name) for name in _OWN}
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # sockets have short names
    os.environ |= {
        "HOME": str(folder),
        "PYTHONPATH": str(Path(__file__).parent),  # workers import what tests have them do
        "RAY_TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    os.environ.pop("RAY_ADDRESS", None)
    try:
        yield folder
        patience = time.monotonic() + 20
        while (left := processes_of(folder)) and time.monotonic() < patience:
            time.sleep(0.2)
        assert not left, f"processes of Ray are left: {left}"
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def small_cluster(nodes: int) -> Iterator[SmallCluster]:
    """A cluster with so many nodes."""
    with own_ray() as folder:
        cluster = SmallCluster(folder, nodes)
        try:
            yield cluster
        finally:
            cluster.shutdown()
