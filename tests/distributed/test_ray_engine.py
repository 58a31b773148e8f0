"""The engine on a small cluster: what is in flight, what dies, what fails."""

import os
import signal
import threading
import time

import pytest

import ray_tasks
from cossim_fast.distributed import ray_engine
from cossim_fast.distributed.grid import Block
from cossim_fast.distributed.ray_engine import RayEngine
from small_cluster import MEMORY

pytestmark = [pytest.mark.ray, pytest.mark.xdist_group("ray")]

MB = 1_000_000


def tasks_of(function, *arguments, memory=MB):
    return [Block(f"task {n}", function, some, memory) for n, some in enumerate(arguments)]


def test_results_come_with_their_tasks_in_any_order(engine):
    tasks = tasks_of(ray_tasks.squared, *((n, 0.3 * (n % 3 == 0)) for n in range(20)))
    found = {task.name: result for task, result in engine.run(tasks)}
    assert found == {f"task {n}": n * n for n in range(20)}


def test_at_most_two_tasks_a_slot_are_in_flight(cluster, engine):
    taken = 0
    ended = 0
    most = 0

    def tasks():
        nonlocal taken
        for n in range(30):
            taken += 1
            yield Block(f"task {n}", ray_tasks.squared, (n,), MB)

    for _ in engine.run(tasks()):
        most = max(most, taken - ended)
        ended += 1
    assert ended == 30
    # One more has been made, and waits to be submitted.
    assert 2 <= most <= 2 * len(cluster.nodes) + 1


@pytest.mark.usefixtures("engine")
def test_memory_that_is_declared_limits_what_runs_at_a_time():
    with RayEngine(patience=0) as engine:  # the connection that is there
        (task,) = tasks_of(ray_tasks.squared, (3,), memory=MEMORY)
        assert [result for _, result in engine.run([task])] == [9]
        (task,) = tasks_of(ray_tasks.squared, (3,), memory=2 * MEMORY)
        with pytest.raises(RuntimeError, match=r"expected a node with 1 CPUs and 8000 MB"):
            list(engine.run([task]))


def test_a_task_has_as_many_threads_as_processors(engine):
    assert [n for _, n in engine.run(tasks_of(ray_tasks.threads, ()))] == [1]


def test_an_error_of_the_users_arrives_as_it_is_and_cancels_the_rest(engine):
    tasks = [
        *tasks_of(ray_tasks.unreadable, ("part-7.parquet", 12)),
        *tasks_of(ray_tasks.squared, *((n, 60.0) for n in range(3))),
    ]
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"^row 12 of part-7.parquet is null$") as caught:
        list(engine.run(tasks))
    assert type(caught.value) is ValueError
    # The slots are free again.
    assert [n for _, n in engine.run(tasks_of(ray_tasks.squared, (5,)))] == [25]
    assert time.monotonic() - began < 30


def test_a_worker_that_dies_is_replaced(engine, tmp_path):
    (task,) = tasks_of(ray_tasks.dies, (str(tmp_path / "log"), 1))
    assert [result for _, result in engine.run([task])] == ["done"]
    assert (tmp_path / "log").stat().st_size == 2


def test_a_task_whose_worker_always_dies_is_an_error(engine, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_engine, "_RETRIES", 1)
    (task,) = tasks_of(ray_tasks.dies, (str(tmp_path / "log"), 1000))
    with pytest.raises(RuntimeError, match="the worker of task 0 died 2 times"):
        list(engine.run([task]))
    assert (tmp_path / "log").stat().st_size == 2


def test_ctrl_c_cancels_what_is_in_flight(engine):
    tasks = tasks_of(ray_tasks.squared, *((n, 60.0 if n else 0.0) for n in range(9)))
    began = time.monotonic()
    found = engine.run(tasks)
    next(found)
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        next(found)
    assert [n for _, n in engine.run(tasks_of(ray_tasks.squared, (5,)))] == [25]
    assert time.monotonic() - began < 30


def test_killed_nodes_and_late_ones(cluster, engine, tmp_path):
    """Two of three nodes are killed and one comes late: only what was in flight runs again."""
    cluster.to(3)
    log = tmp_path / "log"
    tasks = tasks_of(ray_tasks.logged, *((str(log), n, 0.3) for n in range(30)))
    found = []
    for _, result in engine.run(tasks):
        found.append(result)
        if len(found) == 4:
            cluster.kill(cluster.nodes[0])
            cluster.kill(cluster.nodes[0])
        if len(found) == 10:
            cluster.add()
    assert sorted(found) == list(range(30))
    lines = [line.split() for line in log.read_text(encoding="utf-8").splitlines()]
    started = [int(number) for word, number, *_ in lines if word == "start"]
    ended = [int(number) for word, number, *_ in lines if word == "end"]
    assert len(started) - 30 <= 6  # two in flight for each of three
    assert len(ended) - 30 <= 2  # ended, and died before it said so
    cluster.to(3)
