"""Memory of a process that goes on and on: products come in few shapes, and streams in views.

oneDNN keeps 0.6 MB of machine code for every shape of a product that it meets. Where a processor
has no such product, or torch no oneDNN, shapes are counted all the same.
"""

import json
import random
import subprocess
import sys

import pytest
import torch

from cossim_fast import CosineIndex, _products, _shapes, pairs_above, pairwise_cosine, topk
from cossim_fast._cpu import narrow, products
from cossim_fast.retrieval.screening import operators, screens

POOL = torch.randn(400_000, generator=torch.Generator().manual_seed(0))


def rows(n, d, dtype=torch.float32):
    return POOL[: n * d].view(n, d).to(dtype)


@pytest.mark.parametrize(("least", "most"), [(16, 16), (16, 1024), (64, 1024)])
def test_spans_are_powers_of_two_and_the_last_ends_behind_the_count(least, most):
    for count in [*range(5), *range(1, 5000, 37)]:
        spans = list(_shapes.cut(count, least, most))
        ends = [0, *(span.stop for span in spans)]
        assert ends[:-1] == [span.start for span in spans]
        assert 0 <= ends[-1] - count < least
        sizes = [span.stop - span.start for span in spans]
        assert sizes == sorted(sizes, reverse=True)
        assert all(least <= size <= most and size & (size - 1) == 0 for size in sizes)


# Shapes, on any processor.


@pytest.fixture
def by_onednn(monkeypatch):
    """Products go to oneDNN, whatever is faster; what is multiplied is recorded."""
    met = set()

    def linear(a, b, start=None):
        met.add((*a.shape, len(b), start is None))
        assert start is None or start.shape == (len(a), len(b))
        return a @ b.mT if start is None else start + a @ b.mT

    def bfloat16(a, b, out):
        met.add((*a.shape, len(b)))
        out.copy_(a.float() @ b.float().mT)

    monkeypatch.setattr(_products, "linear_is_faster", lambda: True)
    monkeypatch.setattr(_products, "linear", linear)
    monkeypatch.setattr(operators, "bfloat16", bfloat16)
    monkeypatch.setattr(screens, "_bfloat16_pays", lambda: True)
    monkeypatch.setattr(products, "LARGE", 1)
    return met


@pytest.mark.parametrize("screen", ["float32", "bfloat16"])
def test_searches_multiply_few_shapes(screen, by_onednn):
    draw = random.Random(0)
    for _ in range(100):
        n, q = draw.randint(100, 3000), draw.randint(16, 300)
        topk(rows(q, 24), rows(n, 24), draw.randint(1, 20), screen=screen)
    # Rows: 64 to 2048; queries: 16, 32, 48, and 64 to 320.
    assert 1 < len(by_onednn) <= 6 * 8


def test_ranked_searches_multiply_few_shapes(by_onednn):
    draw = random.Random(0)
    for _ in range(60):
        topk(rows(draw.randint(64, 128), 24), rows(draw.randint(1000, 3000), 24), 900)
    # Queries: 64 and 128; rows: to multiples of 64, up to 2048.
    assert 1 < len(by_onednn) <= 2 * 32


@pytest.mark.parametrize("screen", ["float32", "bfloat16"])
def test_joins_multiply_few_shapes(screen, by_onednn):
    draw = random.Random(0)
    for _ in range(60):
        pairs_above(rows(draw.randint(100, 2000), 24), threshold=0.7, screen=screen)
    assert 1 < len(by_onednn) <= 6 * 12


@pytest.mark.parametrize("screen", ["float32", "bfloat16"])
def test_an_index_that_changes_multiplies_few_shapes(screen, by_onednn):
    draw, index = random.Random(0), CosineIndex(rows(500, 24), screen=screen)
    for _ in range(60):
        index.add(rows(draw.randint(1, 200), 24))
        index.remove(index.ids[: max(len(index) - 500, 0)])
        index.search(rows(draw.randint(16, 100), 24), 3)
    assert 1 < len(by_onednn) <= 5 * 4


@pytest.mark.parametrize("alone", [False, True])
def test_matrices_multiply_few_shapes(alone, by_onednn):
    draw = random.Random(0)
    for _ in range(60):
        n, m = draw.randint(520, 1100), draw.randint(520, 1100)
        pairwise_cosine(rows(n, 32), None if alone else rows(m, 32))
    assert 1 < len(by_onednn) <= (16 if alone else 64)


@pytest.mark.parametrize("kind", ["NarrowProduct", "RoundedProduct", "SplitProduct"])
def test_tiles_of_bfloat16_come_in_few_shapes(kind, monkeypatch):
    if kind == "NarrowProduct":
        made = narrow.NarrowProduct(torch.bfloat16)
    else:
        made = getattr(narrow, kind)()
    met, write = set(), made.write

    def noted(a, b, out):
        met.add((len(a[0]), len(b[0])))
        write(a, b, out)

    monkeypatch.setattr(made, "write", noted)
    monkeypatch.setattr("cossim_fast._cpu.matrix.choose_product", lambda *_: made)
    draw = random.Random(0)
    for _ in range(30):
        n, m = draw.randint(520, 1100), draw.randint(520, 1100)
        x, y = rows(n, 32, torch.bfloat16), rows(m, 32, torch.bfloat16)
        found = pairwise_cosine(x, y)
        unit_x, unit_y = (z.double() / z.double().norm(dim=1, keepdim=True) for z in (x, y))
        assert (found.double() - unit_x @ unit_y.mT).abs().max() <= 2.0**-6
    assert 1 < len(met) <= 64


def test_gradients_of_matrices_multiply_few_shapes(by_onednn):
    draw = random.Random(0)
    for _ in range(30):
        n, m = draw.randint(520, 1100), draw.randint(520, 1100)
        x, y = rows(n, 32).clone().requires_grad_(), rows(m, 32)
        pairwise_cosine(x, y).sum().backward()
    # Forward 64; backward 24 numbers of rows at most, and 3 of columns.
    assert 1 < len(by_onednn) <= 64 + 24 * 3


@pytest.mark.parametrize(("n", "m"), [(129, 200), (513, 575), (600, 1030), (1100, 1024)])
@pytest.mark.parametrize("alone", [False, True])
def test_padding_does_not_show(n, m, alone, by_onednn):
    x, y = rows(n, 40).clone(), rows(m, 40)
    x.requires_grad_()
    other = x if alone else y
    found = pairwise_cosine(x, None if alone else y)
    unit = [z.double() / z.double().norm(dim=1, keepdim=True) for z in (x, other)]
    wanted = unit[0] @ unit[1].mT
    assert (found.double() - wanted).abs().max() <= 1e-6
    grad = torch.linspace(-1, 1, wanted.numel()).view_as(wanted)
    (mine,) = torch.autograd.grad(found, x, grad)
    (theirs,) = torch.autograd.grad(wanted, x, grad.double())
    assert (mine.double() - theirs).abs().max() <= 1e-5 * theirs.abs().max()


# Memory, in a process of its own: what a fork of it takes more.

MEASURE = """
import ctypes, gc, json, os, random, sys, torch
from cossim_fast import CosineIndex, cosine_similarity, pairwise_cosine, topk

torch.set_num_threads(1)
draw, pool = random.Random(0), torch.randn(1_500_000)

def rows(most, d, dtype=torch.float32):
    n = draw.randint(most // 2, most)
    return pool[: n * d].view(n, d).to(dtype)

def search(screen):
    topk(rows(300, 64), rows(3000, 64), draw.randint(1, 50), screen=screen)

index = CosineIndex(pool[: 1000 * 64].view(-1, 64), screen="bfloat16")
def change():
    index.add(rows(400, 64))
    index.remove(index.ids[: len(index) - 1000])
    index.search(rows(100, 64), 5)

def matrix(dtype, grad=False):
    x, y = rows(1100, 384, dtype), rows(1100, 384, dtype)
    found = pairwise_cosine(x.clone().requires_grad_(grad), y)
    if grad:
        found.sum().backward()

def held():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/status") as status:
        (now,) = [line.split()[1] for line in status if line.startswith("VmRSS")]
    return int(now) / 1e3

CASES = {
    "bfloat16 screen": (80, lambda: search("bfloat16")),
    "float32 screen": (80, lambda: search("float32")),
    "index": (60, change),
    "float32 matrix": (40, lambda: matrix(torch.float32)),
    "bfloat16 matrix": (40, lambda: matrix(torch.bfloat16)),
    "gradients": (12, lambda: matrix(torch.float32, True)),
    "paired rows": (200, lambda: cosine_similarity(*[rows(3000, draw.randint(1, 90))] * 2)),
}
for name, (times, call) in CASES.items():
    sys.stdout.flush()
    if os.fork() == 0:
        for _ in range(4):
            call()
        before = held()
        for _ in range(times):
            call()
        print(json.dumps([name, held() - before]), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""


def said_by(code):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_calls_of_many_shapes_leave_little_behind():
    grown = dict(said_by(MEASURE))
    assert len(grown) == 7
    assert max(grown.values()) < 48, grown


STREAM = """
import json, torch
from cossim_fast import topk

N, D = 150_000, 384
torch.set_num_threads(1)
some, queries = torch.randn(10_000, D), torch.randn(70, D)

def blocks():
    for _ in range(3):
        block = some.repeat(N // len(some), 1)
        yield block
        del block

def now(key):
    with open("/proc/self/status") as status:
        (found,) = [line.split()[1] for line in status if line.startswith(key)]
    return int(found) / 1e3

topk(queries, some, 5)
before = now("VmRSS")
with open("/proc/self/clear_refs", "w") as high:
    high.write("5")  # the peak starts anew
topk(queries, blocks(), 5)
print(json.dumps([N * D * 4 / 1e6, now("VmHWM") - before]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="writes to /proc")
def test_large_blocks_of_an_iterator_are_held_one_at_a_time():
    ((block, peak),) = said_by(STREAM)
    # Of a stretch of 2^24 numbers: its rows, where they are joined, its codes, and tiles.
    assert peak < block + 250, (block, peak)
