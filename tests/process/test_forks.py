"""Children that are forked while other threads are inside calls: they end, with right answers."""

import os
import select
import signal
import threading
import time
from functools import partial

import numpy as np
import pytest
import torch

from cossim_fast import (
    CosineIndex,
    _lazily,
    _reference,
    _threads,
    cosine_similarity,
    deduplicate,
    pairs_above,
    pairwise_cosine,
    topk,
)
from cossim_fast.retrieval.screening import operators
from cossim_fast.testing import assert_close
from search_data import brute_force, make

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning"),
]

# Seconds that a child has: it takes far less than one.
PATIENCE = 60
FORKS = 40


def forked(work):
    """Run work in a child; return what it wrote, or fail where it hangs."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        said = b"nothing"
        try:
            work()
            said = b"right"
        except BaseException as error:
            said = f"{type(error).__name__}: {error}".encode()
        finally:
            os.write(write, said)
            os._exit(0)
    os.close(write)
    there = select.select([read], [], [], PATIENCE)[0]
    said = os.read(read, 1 << 16).decode() if there else "the child hangs"
    os.close(read)
    if not there:
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return said


class Work:
    """What threads of the parent do all the time, and what a child does, with the right answers."""

    def __init__(self):
        self.queries, self.corpus = make("clustered", 700, 96, 12, torch.float32)
        self.scores, self.best = brute_force(self.queries, self.corpus, 10)
        names = np.array([f"{n:04}" for n in range(len(self.corpus))], dtype=object)
        self.index, self.names = CosineIndex(self.corpus, ids=names), names[self.best.numpy()]
        self.exact = _reference.pairwise_cosine(self.queries, self.corpus)
        close = _reference.pairwise_cosine(self.corpus, self.corpus) >= 0.9
        self.pairs = {*map(tuple, torch.nonzero(close.triu(1)).tolist())}
        self.stop, self.failed, self.turns = threading.Event(), [], []

    def by_child(self):
        queries, corpus = self.queries, self.corpus
        for found in (topk(queries, corpus, 10), CosineIndex(corpus).search(queries, 10)):
            assert torch.equal(found.indices, self.best)
            assert torch.equal(found.scores, self.scores.float())
        # Of the index that another thread changes meanwhile, rows that stay.
        found = self.index.search(queries, 10, exclude=self.index.ids[700:])
        assert (found.indices == self.names).all()
        self.index.add(-corpus[:1], ids=["child"])
        self.index.remove(["child"])
        assert_close(pairwise_cosine(queries, corpus), self.exact)
        assert_close(pairwise_cosine(queries.half(), corpus.half()), self.exact, scale=4)
        assert_close(cosine_similarity(corpus[:12], queries), self.exact.diagonal())
        i, j, _ = pairs_above(corpus, threshold=0.9)
        assert {*zip(i.tolist(), j.tolist(), strict=True)} == self.pairs
        assert len(deduplicate(corpus, 0.9).kept) <= len(corpus)

    def by_thread(self, number):
        some = 10 + len(self.turns) % 97  # shapes that were not met before
        if number == 0:
            self.index.add(-self.corpus[:3], ids=["a", "b", "c"])
            self.index.remove(["a", "b", "c"])
        elif number == 1:
            self.index.search(self.queries, 10, exclude=["0000"])
            topk(self.queries, self.corpus, 10, screen="float32")
        elif number == 2:
            wide = torch.randn(200, 384)
            pairwise_cosine(wide, wide[:some])
            pairwise_cosine(wide.bfloat16(), wide[:some].bfloat16())
        else:
            pairs_above(self.corpus[: 300 + some], threshold=0.9)
        self.turns.append(number)

    def until_stopped(self, number):
        try:
            while not self.stop.is_set():
                self.by_thread(number)
        except BaseException as error:
            self.failed.append(error)
            raise


@pytest.mark.usefixtures("two_threads")
def test_children_of_a_process_whose_threads_are_inside_calls():
    work, said = Work(), []
    for _ in range(3):  # the threads of OpenMP, and what is tried once, are there
        work.by_child()
    threads = [threading.Thread(target=work.until_stopped, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    try:
        while len(said) < FORKS and {*said} <= {"right"}:
            said.append(forked(work.by_child))
    finally:
        work.stop.set()
        for thread in threads:
            thread.join()
    assert said == ["right"] * FORKS
    assert not work.failed
    assert {*work.turns} == {0, 1, 2, 3}


def test_products_of_shapes_that_are_new():
    """oneDNN makes code for each, under a lock: without a wait 14 of 82 children hung (Zen 5)."""
    stop = threading.Event()

    def product(number):
        a = torch.ones((16 + number % 301, 64), dtype=torch.bfloat16)
        b = torch.ones((16 + number % 211, 64), dtype=torch.bfloat16)
        operators.bfloat16(a, b, torch.empty((len(a), len(b)), dtype=torch.bfloat16))

    def in_child(number):
        _threads.one_thread_after_fork()
        for more in range(5):
            product(31 * number + more)

    def on_and_on(number):
        while not stop.is_set():
            product(number)
            number += 7

    threads = [threading.Thread(target=on_and_on, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        said = [forked(partial(in_child, number)) for number in range(FORKS)]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert said == ["right"] * FORKS


def test_a_fork_waits_for_a_product_and_holds_off_the_next():
    inside, go_on, done = threading.Event(), threading.Event(), []

    def product():
        inside.set()
        go_on.wait()
        done.append("product")

    def two():
        _threads.unforked(product)
        _threads.unforked(done.append, "next")

    thread = threading.Thread(target=two)
    thread.start()
    inside.wait()
    timer = threading.Timer(0.1, go_on.set)
    timer.start()
    said = forked(lambda: done[0] == "product" or 1 / 0)
    assert said == "right"
    thread.join()
    timer.join()
    assert done == ["product", "next"]


def test_products_are_formed_where_no_fork_falls_in(monkeypatch):
    """Of all kinds: what is inside is seen from the locks that a fork would wait for."""
    seen = []
    x = torch.randn(40, 64)

    def held():
        lock = _threads._inside.get(threading.get_ident())
        seen.append(lock is not None and lock._is_owned())

    real = torch.mm

    def mm(*arguments, **named):
        held()
        return real(*arguments, **named)

    monkeypatch.setattr(torch, "mm", mm)
    monkeypatch.setattr(_threads, "usable_threads", lambda: 1)
    monkeypatch.setattr("cossim_fast._products._FEW", 0)
    pairwise_cosine(x)
    operators.bfloat16(x.bfloat16(), x.bfloat16(), torch.empty(40, 40, dtype=torch.bfloat16))
    topk(x, x, 3, screen="float32")
    assert seen
    assert all(seen)


def test_locks_are_let_go_after_a_fork_in_both():
    _threads.unforked(time.sleep, 0)

    def free():
        thread = threading.Thread(target=_threads.unforked, args=(time.sleep, 0))
        thread.start()
        thread.join(10)
        assert not thread.is_alive()
        assert _threads._making.acquire(blocking=False)
        _threads._making.release()

    assert forked(free) == "right"
    free()


def test_a_fork_that_is_interrupted_before_it_holds_anything_lets_go_of_the_rest():
    """Ctrl-C ends `_before_fork` anywhere; what comes after releases what is held."""
    others = [type(_threads._making)() for _ in range(3)]
    before = _threads._held[:]
    _threads._held[:] = others
    others[0].acquire()
    with pytest.raises(RuntimeError, match="release"):
        list(_threads._Released())
    _threads._held[:] = before
    assert not any(lock._is_owned() for lock in others)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(
    "door",
    [
        lambda x: cosine_similarity(x, x),
        pairwise_cosine,
        lambda x: topk(x, x, 3),
        pairs_above,
        lambda x: deduplicate(x, 0.9),
        CosineIndex,
        lambda x: INDEX.search(x, 3),
        lambda x: INDEX.range_search(x, 0.5),
        lambda x: INDEX.add(embeddings=x),
        lambda x: INDEX.remove([0]),
    ],
)
def test_every_door_leaves_openmp_alone_in_a_child(door):
    x = torch.randn(30, 16)

    def child():
        door(x)
        assert torch.get_num_threads() == 1

    assert forked(child) == "right"
    assert torch.get_num_threads() == 2


INDEX = CosineIndex(torch.randn(50, 16))


def test_what_is_computed_lazily_takes_no_lock():
    """A child finds functools.cached_property's held, before Python 3.12."""
    going, asked = threading.Event(), threading.Event()

    class Held:
        def __init__(self, wait):
            self.wait = wait

        @_lazily.lazily
        def value(self):
            """What it is."""
            if self.wait:
                going.set()
                asked.wait()
            return 7

    thread = threading.Thread(target=lambda: Held(True).value)
    thread.start()
    going.wait()
    assert forked(lambda: Held(False).value == 7 or 1 / 0) == "right"
    asked.set()
    thread.join()
    held = Held(False)
    assert (held.value, held.__dict__["value"], Held.value.__doc__) == (7, 7, "What it is.")
