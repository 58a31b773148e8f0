"""Matrices and their gradients in parts: one thread a part, and bits that nobody's pace changes."""

import threading

import pytest
import torch

from cossim_fast import _reference, _threads, pairwise_cosine
from cossim_fast._cpu.matrix import SHARED_WORK, is_shared
from cossim_fast._cpu.products import PlainProduct
from cossim_fast.testing import assert_close, make_inputs

SHAPES = [
    ((300, 40), (200, 40)),
    ((300, 40), None),
    ((3, 90, 24), (3, 70, 24)),
    ((40, 5, 6), (40, 7, 6)),
    ((500, 9), (2, 9)),
]
DTYPES = [torch.float16, torch.float32, torch.float64]


@pytest.fixture
def in_parts(set_blocks):
    """Small matrices are cut as large ones are, in several panels."""
    set_blocks(
        SHARED_WORK=1, SMALL_SHARED=1, SIDE=32, PANEL=4096, BLOCK=640, LEAF=16, MIRROR=16, FEWEST=16
    )


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def made(shapes, dtype, **kwargs):
    x, *rest = make_inputs(*(shape for shape in shapes if shape), dtype=dtype, **kwargs)
    return x, rest[0] if rest else None


@pytest.mark.usefixtures("in_parts")
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_bits_are_those_of_one_thread(shapes, dtype, threads):
    x, y = made(shapes, dtype)
    threads(1)
    alone = pairwise_cosine(x, y)
    assert_close(alone, _reference.pairwise_cosine(x, y))
    for count in (2, 3, 3, 5):
        threads(count)
        assert torch.equal(pairwise_cosine(x, y), alone)


@pytest.mark.usefixtures("in_parts")
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_are_those_of_one_thread(shapes, dtype, threads):
    x, y = made(shapes, dtype, requires_grad=True)
    leaves = [x] if y is None else [x, y]
    (weights,) = make_inputs(tuple(pairwise_cosine(x, y).shape), dtype=dtype, seed=3)

    def gradients():
        return torch.autograd.grad(pairwise_cosine(x, y), leaves, weights)

    threads(1)
    alone = gradients()
    for count in (2, 3):
        threads(count)
        for mine, wanted in zip(gradients(), alone, strict=True):
            assert_close(mine, wanted, scale=8 * wanted.abs().max().item())


@pytest.fixture
def workers(monkeypatch):
    """Record the thread, and the number of torch's threads, of each tile."""
    found = []
    write = PlainProduct.write

    def recording(self, a, b, out):
        found.append((threading.get_ident(), torch.get_num_threads()))
        return write(self, a, b, out)

    monkeypatch.setattr(PlainProduct, "write", recording)
    return found


@pytest.mark.usefixtures("in_parts")
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_no_tile_is_shared(shapes, threads, workers):
    threads(2)
    pairwise_cosine(*made(shapes, torch.float64))
    assert {count for _, count in workers} <= {1}
    assert threading.get_ident() not in {thread for thread, _ in workers}


@pytest.mark.usefixtures("in_parts")
def test_a_thread_that_is_kept_from_running_costs_its_tile_alone(threads, monkeypatch):
    threads(2)
    first, others, done = threading.Lock(), threading.Event(), []
    write = PlainProduct.write

    def kept(self, a, b, out):
        if first.acquire(blocking=False):
            assert others.wait(30)
        write(self, a, b, out)
        done.append(threading.get_ident())
        if len(done) == 3:
            others.set()

    monkeypatch.setattr(PlainProduct, "write", kept)
    x, y = made(((320, 8), (32, 8)), torch.float64)
    assert_close(pairwise_cosine(x, y), _reference.pairwise_cosine(x, y))
    assert len(done) == 4
    assert len(set(done[:3])) == 1


def test_small_matrices_and_many_threads_stay_with_torch(threads, workers):
    threads(2)
    pairwise_cosine(*make_inputs((50, 8), (40, 8), dtype=torch.float64))
    assert workers == [(threading.get_ident(), 2)]
    assert is_shared(SHARED_WORK)
    threads(_threads.MOST_THREADS + 1)
    assert not is_shared(SHARED_WORK)
