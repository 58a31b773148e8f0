"""Jobs on the cluster: kills of workers, nodes and the driver, and the command line."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import cossim_fast
from cossim_fast import distributed
from cossim_fast.distributed import outputs
from cossim_fast.retrieval import TooManyPairsError
from shards_on_disk import read, rows_of, write

pytestmark = [pytest.mark.ray, pytest.mark.xdist_group("ray")]


@pytest.fixture
def nearest(tmp_path):
    """Files of queries and rows, the local answer, and a check of an output against it."""
    corpus, queries = rows_of(6000, 32), rows_of(900, 32, seed=1)
    c = write(tmp_path / "c", corpus, [0, 1, 64, 128, 193, 3000], "npy")
    q = write(tmp_path / "q", queries, [400], "npy")
    scores, rows = (found.numpy() for found in cossim_fast.topk(queries, corpus, 10))
    query, rank = np.nonzero(rows >= 0)

    def check(output):
        found = read(output)
        np.testing.assert_array_equal(found["query"], query)
        np.testing.assert_array_equal(found["row"], rows[query, rank])
        np.testing.assert_array_equal(found["score"], scores[query, rank])

    return q, c, tmp_path / "out", check


@pytest.mark.usefixtures("engine")
def test_topk_pairs_and_duplicates_are_the_local_ones(nearest, tmp_path):
    q, c, out, check = nearest
    done = distributed.topk(q, c, k=10, output=out, queries_per_task=300, rows_per_task=1000)
    check(out)
    assert done.computed == done.blocks > 20
    corpus = rows_of(6000, 32)
    pairs = distributed.pairs_above(c, threshold=0.75, output=tmp_path / "p", rows_per_task=2000)
    i, j, scores = cossim_fast.pairs_above(corpus, threshold=0.75)
    found = read(tmp_path / "p")
    order = np.lexsort((found["j"], found["i"]))
    assert pairs.lines == len(order)
    np.testing.assert_array_equal(found["i"][order], i)
    np.testing.assert_array_equal(found["j"][order], j)
    np.testing.assert_array_equal(found["score"][order], scores)
    distributed.deduplicate(c, 0.75, keep="last", output=tmp_path / "d", rows_per_task=2000)
    expected = cossim_fast.deduplicate(corpus, 0.75, keep="last")
    found = read(tmp_path / "d")
    dropped = found["kept_row"] != found["row"]
    np.testing.assert_array_equal(found["row"][dropped], expected.dropped)
    np.testing.assert_array_equal(found["kept_row"][dropped], expected.representatives)
    linked = distributed.connected_components(tmp_path / "p", output=tmp_path / "l")
    assert linked.lines == 6000


def wait_for(condition, seconds=60.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "nothing happened"
        time.sleep(0.01)


def blocks_in(output):
    return sorted((output / "_blocks").glob("[!.]*.parquet"))


@pytest.mark.usefixtures("engine")
def test_kills_of_a_worker_and_of_nodes_change_nothing(cluster, nearest):
    """A worker, then two of three nodes are killed; one comes late."""
    q, c, out, check = nearest
    cluster.to(3)
    options = {"k": 10, "queries_per_task": 300, "rows_per_task": 150}
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(distributed.topk, q, c, output=out, **options)
        wait_for(lambda: len(blocks_in(out)) > 3 and cluster.workers())
        os.kill(cluster.workers()[0], signal.SIGKILL)
        wait_for(lambda: len(blocks_in(out)) > 20)
        for node in cluster.nodes[:2]:
            cluster.kill(node)
        assert not running.done()
        cluster.add()
        done = running.result()
    check(out)
    assert done.computed == done.blocks > 120
    cluster.to(3)


@pytest.mark.usefixtures("engine")
def test_a_driver_that_was_killed_is_replaced(cluster, nearest):
    """No finished block is computed again; a damaged one is."""
    q, c, out, check = nearest
    draw = random.Random(0)
    arguments = [cluster.address, q, c, str(out)]
    script = os.path.join(os.path.dirname(os.path.dirname(__file__)), "helpers", "ray_driver.py")
    driver = subprocess.Popen([sys.executable, script, *arguments])
    target = draw.randrange(1, 50)
    wait_for(lambda: len(blocks_in(out)) >= target)
    driver.kill()
    driver.wait()
    wait_for(lambda: not cluster.jobs_of(driver.pid))
    finished = blocks_in(out)
    assert finished
    # As a kill between the temporary file and its renaming leaves it.
    (out / "_blocks" / f".{finished[0].name}.1-{'0' * 16}.part").write_bytes(b"half")
    damaged = draw.choice(finished)
    damaged.write_bytes(damaged.read_bytes()[:-9])
    assert not outputs.is_whole(out, f"_blocks/{damaged.name}")
    options = {"k": 10, "queries_per_task": 300, "rows_per_task": 250}
    done = distributed.topk(q, c, output=out, **options)
    check(out)
    assert done.computed == done.blocks - len(finished) + 1
    assert distributed.topk(q, c, output=out, **options).computed == 0


def cossim(*arguments):
    command = [
        sys.executable,
        "-c",
        "from cossim_fast.cli import main; main()",
        *map(str, arguments),
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_command_goes_on_after_ctrl_c(cluster, nearest):
    q, c, out, check = nearest
    arguments = ["topk", q, c, "-o", out, "--ray", cluster.address, "--rows-per-task", 120]
    first = cossim(*arguments, "--progress")
    wait_for(lambda: len(blocks_in(out)) > 4)
    first.send_signal(signal.SIGINT)
    _, said = first.communicate(timeout=60)
    assert first.returncode == 130, said
    assert f"interrupted; {out} has what was found: the same command goes on from it" in said
    assert "blocks/s" in said
    there = len(blocks_in(out))
    assert 4 < there < 50
    second = cossim(*arguments)
    printed, said = second.communicate(timeout=100)
    assert (second.returncode, printed) == (0, "")
    check(out)
    last = said.splitlines()[-1]
    computed, blocks = map(int, re.search(r"(\d+) of (\d+) blocks were", last).groups())
    # Tasks that were stopped while they wrote may have come to the end.
    assert blocks - there - 3 <= computed <= blocks - there


@pytest.mark.usefixtures("cluster")  # whose HOME and folder it gets
def test_ray_on_this_machine_alone(nearest, tmp_path):
    q, _, _, _ = nearest
    out = tmp_path / "dedup"
    done = cossim("dedup", q, "--threshold", 0.7, "-o", out, "--ray", "local")
    printed, said = done.communicate(timeout=100)
    assert (done.returncode, printed) == (0, ""), said
    found = read(out)
    expected = cossim_fast.deduplicate(rows_of(900, 32, seed=1), 0.7)
    dropped = found["kept_row"] != found["row"]
    np.testing.assert_array_equal(found["row"][dropped], expected.dropped)
    np.testing.assert_array_equal(found["kept_row"][dropped], expected.representatives)


@pytest.mark.usefixtures("engine")
def test_an_error_of_a_worker_arrives_as_it_is(nearest, tmp_path):
    q, c, _, _ = nearest
    with pytest.raises(TooManyPairsError, match="at most max_pairs=3") as caught:
        distributed.pairs_above(q, c, 0.7, output=tmp_path / "p", max_pairs=3)
    assert caught.value.found > 3
