"""One cluster for all tests that need one."""

from collections.abc import Iterator

import pytest

from small_cluster import SmallCluster, small_cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[SmallCluster]:
    """A head and three nodes of one processor each; a test that kills some adds others."""
    pytest.importorskip("ray")
    with small_cluster(3) as here:
        yield here


@pytest.fixture(scope="session")
def engine(cluster: SmallCluster) -> Iterator[object]:
    """This process's connection to it, which all calls of a session share with their workers."""
    import ray

    from cossim_fast.distributed.ray_engine import RayEngine

    ray.init(cluster.address, log_to_driver=False, logging_level="error")
    with RayEngine() as connected:
        yield connected
    ray.shutdown()
