"""The public functions on a GPU: against float64, at sizes of many tiles, in torch's company."""

import pickle
import threading

import pytest
import torch
import torch.nn.functional as F

import cossim_fast
from cossim_fast import _ops, cosine_similarity, explain, pairwise_cosine
from cossim_fast.retrieval.nearest.streamed import search_stream
from search_data import CORPORA, make

pytestmark = [
    pytest.mark.kernel_contract,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
EPS = 1e-8


def drawn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(shape, generator=generator, device="cuda").to(dtype)


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    assert got.is_cuda
    return float((got.double() - expected).abs().max())


def plain_matrix(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.normalize(x.double(), dim=-1, eps=EPS) @ F.normalize(y.double(), dim=-1, eps=EPS).mT


@DTYPES
@pytest.mark.parametrize("shape", [(5000, 768), (3, 1, 4099), (7, 300, 65), (2, 0, 8), (4, 0)])
def test_paired_rows(dtype, shape):
    x, y = drawn(*shape, dtype=dtype), drawn(*shape, dtype=dtype, seed=1)
    for dim in range(-1, len(shape) - 1):
        expected = F.cosine_similarity(x.double(), y.double(), dim=dim)
        got = cosine_similarity(x, y, dim=dim)
        assert (got.dtype, got.shape) == (dtype, expected.shape)
        if got.numel():
            plain = error(F.cosine_similarity(x, y, dim=dim), expected)
            assert error(got, expected) <= max(2 * plain, torch.finfo(dtype).eps)


@DTYPES
@pytest.mark.parametrize("shape", [(1000, 777, 768), (130, 4100, 50), (1, 3, 1029)])
def test_matrix(dtype, shape):
    n, m, d = shape
    x, y = drawn(n, d, dtype=dtype), drawn(m, d, dtype=dtype, seed=1)
    expected = plain_matrix(x, y)
    got = pairwise_cosine(x, y)
    # Half a unit of the result, and the bound of a float32 sum.
    allowed = torch.finfo(dtype).eps / 2 + (0 if dtype == torch.float64 else 2 * (d + 4) * 2**-24)
    assert error(got, expected) <= allowed + 8 * torch.finfo(torch.float64).eps
    assert got.dtype == dtype
    broadcast = cosine_similarity(x[:, None], y[None], dim=-1)
    assert error(broadcast, expected) <= allowed + 8 * torch.finfo(torch.float64).eps
    out = torch.empty_like(got)
    assert pairwise_cosine(x, y, out=out) is out
    assert torch.equal(out, got)


@pytest.mark.parametrize(("precision", "u"), [("highest", 0), ("high", 2**-11), ("medium", 2**-8)])
def test_precisions_keep_their_bounds(precision, u):
    for d in (64, 768, 4096):
        x, y = drawn(300, d), drawn(400, d, seed=1)
        got = pairwise_cosine(x, y, precision=precision)
        assert error(got, plain_matrix(x, y)) <= 2 * u + u * u + 2 * (d + 4) * 2**-24
    # As much as a product without tensor cores, in practice.
    if precision == "highest":
        plain = error(F.normalize(x) @ F.normalize(y).mT, plain_matrix(x, y))
        assert error(got, plain_matrix(x, y)) <= 4 * plain


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_a_matrix_with_itself_is_symmetric(dtype):
    x = drawn(700, 96, dtype=dtype)
    got = pairwise_cosine(x)
    assert torch.equal(got, got.mT)
    allowed = torch.finfo(dtype).eps / 2 + 2 * (96 + 4) * 2**-24
    assert error(got, plain_matrix(x, x)) <= allowed


@DTYPES
def test_gradients(dtype):
    x, y = drawn(500, 384, dtype=dtype), drawn(650, 384, dtype=dtype, seed=1)
    for function, pair, grad in (
        (pairwise_cosine, (x, y), drawn(500, 650, dtype=dtype, seed=2)),
        (lambda x, y: cosine_similarity(x, y, dim=-1), (x, y[:500]), drawn(500, dtype=dtype)),
    ):
        leaves = [t.clone().requires_grad_() for t in pair]
        found = torch.autograd.grad(function(*leaves), leaves, grad)
        wide = [t.double().requires_grad_() for t in pair]
        both = wide if grad.dim() == 1 else (wide[0][:, None], wide[1][None])
        expected = torch.autograd.grad(F.cosine_similarity(*both, dim=-1), wide, grad.double())
        for got, true in zip(found, expected, strict=True):
            assert got.dtype == dtype
            largest = float(true.abs().max())
            # A factor of the product is rounded, and the result.
            assert error(got, true) <= 4 * max(torch.finfo(dtype).eps, 2**-24) * largest


def gradients_by_formula(
    x: torch.Tensor, y: torch.Tensor, grad: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    leaves = [t.double().clone().requires_grad_() for t in (x, y)]
    return torch.autograd.grad(plain_matrix(*leaves), leaves, grad.double())


@DTYPES
def test_gradients_of_a_matrix_with_itself(dtype):
    x, grad = drawn(500, 384, dtype=dtype), drawn(500, 500, dtype=dtype, seed=2)
    leaf = x.clone().requires_grad_()
    for given in (grad, grad.mT, grad[:1, :1].expand(500, 500)):
        (got,) = torch.autograd.grad(pairwise_cosine(leaf), leaf, given)
        true = sum(gradients_by_formula(x, x, given))
        largest = float(true.abs().max())
        assert error(got, true) <= 8 * max(torch.finfo(dtype).eps, 2**-24) * largest


@pytest.mark.parametrize("scale", [1e-30, 1e-9, 1.0, 1e30])
@pytest.mark.parametrize("shape", [(500, 640), (131, 77)])
def test_gradients_at_a_lower_precision_keep_any_magnitude(shape, scale):
    x, y = drawn(shape[0], 384), drawn(shape[1], 384, seed=1)
    grad = drawn(*shape, seed=2) * scale
    leaves = [t.clone().requires_grad_() for t in (x, y)]
    found = torch.autograd.grad(pairwise_cosine(*leaves, precision="high"), leaves, grad)
    for got, true in zip(found, gradients_by_formula(x, y, grad), strict=True):
        assert error(got, true) <= 2**-10 * float(true.abs().max())


def test_a_row_of_any_magnitude():
    x = drawn(9, 72)
    x *= (10.0 ** torch.linspace(-38, 37, 9, device="cuda"))[:, None]
    expected = plain_matrix(x.double() * 1e60, x.double() * 1e60)
    assert error(pairwise_cosine(x, eps=0.0), expected) <= 2**-21
    rows = cosine_similarity(x, x.flip(0), dim=-1, eps=0.0)
    assert error(rows, expected.flip(0).diagonal()) <= 2**-21


def test_autocast_modes_and_settings_change_nothing():
    x, y = drawn(200, 64), drawn(300, 64, seed=1)
    expected = pairwise_cosine(x, y)
    with torch.autocast("cuda"), torch.inference_mode():
        assert torch.equal(pairwise_cosine(x, y), expected)
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        assert torch.equal(pairwise_cosine(x, y), expected)
    finally:
        torch.backends.cuda.matmul.fp32_precision = "none"
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        got = pairwise_cosine(x, y)
    stream.synchronize()
    assert torch.equal(got, expected)


def test_compiled_calls_and_captured_graphs():
    x, y = drawn(200, 64), drawn(300, 64, seed=1)
    compiled = torch.compile(pairwise_cosine, fullgraph=True)
    assert error(compiled(x, y), plain_matrix(x, y)) <= 2**-21
    expected = pairwise_cosine(x, y)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = pairwise_cosine(x, y)
    x.copy_(drawn(200, 64, seed=2))
    graph.replay()
    assert not torch.equal(got, expected)
    assert torch.equal(got, pairwise_cosine(x, y))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("precision", ["highest", "high"])
def test_gradients_are_captured_and_nothing_waits(dtype, precision):
    x, y = (drawn(n, 64, dtype=dtype).requires_grad_() for n in (200, 300))
    grad = drawn(200, 300, dtype=dtype, seed=2)

    def gradients():
        matrix = pairwise_cosine(x, y, precision=precision)
        rows = cosine_similarity(x, y[:200], dim=-1)
        return torch.autograd.grad((matrix, rows), (x, y), (grad, grad[:, 0]))

    before = gradients()
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = gradients()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        gradients()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = gradients()
    graph.replay()
    for first, second, third in zip(before, again, got, strict=True):
        assert torch.equal(first, second)
        assert torch.equal(first, third)


def test_what_runs_is_told():
    x = drawn(3, 8)
    assert explain(pairwise_cosine, x).executor == "kernels"


def all_scores(queries: torch.Tensor, corpus: torch.Tensor) -> torch.Tensor:
    """The score of every pair, by the device that ranks by it."""
    pairs = torch.cartesian_prod(torch.arange(len(queries)), torch.arange(len(corpus))).cuda()
    return _ops.rescore(queries, corpus, *pairs.mT.contiguous()).view(len(queries), -1)


@pytest.mark.parametrize("k", [1, 10, 70])
@pytest.mark.parametrize("screen", ["auto", "int8", "streamed"])
@pytest.mark.parametrize("kind", CORPORA)
def test_topk_is_brute_force(kind, screen, k, monkeypatch):
    dtype = torch.float64 if kind == "near" else torch.float32
    queries, corpus = (x.cuda() for x in make(kind, 5000, 40, 6, dtype))
    if screen == "streamed":
        monkeypatch.setitem(search_stream.__kwdefaults__, "size", 1 << 17)
        found = cossim_fast.topk(queries, corpus.cpu(), k, certify=True)
    else:
        found = cossim_fast.topk(queries, corpus, k, screen=screen, certify=True)
    scores = all_scores(queries, corpus)
    # A stable sort: equal scores by position.
    ranked, rows = scores.nan_to_num(-9.0).sort(dim=1, descending=True, stable=True)
    ranked, rows = ranked[:, :k], rows[:, :k].masked_fill(ranked[:, :k] == -9, -1)
    assert torch.equal(found.indices, rows)
    assert torch.equal(found.scores.nan_to_num(-9.0), ranked.to(dtype))
    found.certificate.verify(None)
    if kind != "near":
        on_cpu = cossim_fast.topk(queries.cpu(), corpus.cpu(), k)
        torch.testing.assert_close(found.scores.cpu(), on_cpu.scores, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_topk_of_many_queries_and_rows(dtype):
    queries, corpus = drawn(300, 384, dtype=dtype), drawn(100_003, 384, dtype=dtype, seed=1)
    corpus[5000:5100] = corpus[7]
    queries[3] = corpus[7]
    found = cossim_fast.topk(queries, corpus, 20)
    plain = plain_matrix(queries, corpus).sort(dim=1, descending=True, stable=True)
    torch.testing.assert_close(found.scores.double(), plain.values[:, :20], rtol=0, atol=2**-23)
    assert found.indices[3].tolist() == [7, *range(5000, 5019)]
    clear = plain.values[:, 18] - plain.values[:, 21] > 2**-40
    apart = (plain.values[:, :20].diff(dim=1).abs() > 2**-40).all(1) & clear
    assert int(apart.sum()) > 250
    assert torch.equal(found.indices[apart], plain.indices[apart, :20])


@pytest.mark.parametrize("q", [1, 300])
def test_a_corpus_of_the_host_is_streamed(q):
    """Blocks of 256 MB, ten of them: no buffer is overwritten too early."""
    queries, corpus = drawn(q, 384), drawn(1_700_003, 384, seed=1)
    corpus[1_000_000] = queries[0]
    on_host = corpus.cpu()
    expected = cossim_fast.topk(queries, corpus, 20)
    torch.cuda.synchronize()
    for rows in (on_host, iter(on_host.split(100_000))):
        for got, wanted in zip(cossim_fast.topk(queries, rows, 20), expected, strict=True):
            assert torch.equal(got, wanted)


def test_more_elements_than_32_bits_count():
    """The last rows of inputs and results of more than 2^31 elements."""
    if torch.cuda.get_device_properties(0).total_memory < 40 * 2**30:
        pytest.skip("needs 40 GB")
    x = drawn(2**31 // 512 + 7, 512, dtype=torch.float16)
    y = x.roll(1, 0)
    got = cosine_similarity(x, y, dim=-1)
    assert error(got[-9:], F.cosine_similarity(x[-9:].double(), y[-9:].double())) <= 2**-11
    del y
    few = x[-9:].contiguous()
    matrix = pairwise_cosine(x, few)
    assert error(matrix[-9:], plain_matrix(few, few)) <= 2**-10
    del matrix
    matrix = pairwise_cosine(x[:46_500], x[-46_500:])
    assert matrix.numel() > 2**31
    expected = plain_matrix(x[46_500 - 9 : 46_500], x[-9:])
    assert error(matrix[-9:, -9:], expected) <= 2**-10
    del matrix
    found = cossim_fast.topk(few, x, 1)
    assert found.indices[:, 0].tolist() == list(range(len(x) - 9, len(x)))


@DTYPES
def test_an_index_on_the_gpu_finds_what_one_on_the_cpu_finds(dtype, tmp_path):
    queries, corpus = drawn(70, 100, dtype=dtype), drawn(9000, 100, dtype=dtype, seed=1)
    corpus[5], corpus[6, 0], corpus[8000:8100] = 0, torch.nan, 2 * corpus[7]
    queries[0], queries[1, 3] = corpus[7], torch.nan
    card = cossim_fast.CosineIndex(corpus[:5000].cpu(), device="cuda")
    plain = cossim_fast.CosineIndex(corpus[:5000].cpu())
    for index in (card, plain):
        index.add(corpus[5000:7000] if index is card else corpus[5000:7000].cpu())
        index.add(corpus[7000:].cpu().numpy() if dtype != torch.bfloat16 else corpus[7000:].cpu())
        index.remove(range(0, 9000, 10))
    card.save(tmp_path / "card")
    cards = [card, cossim_fast.CosineIndex.load(tmp_path / "card", device="cuda"),
             pickle.loads(pickle.dumps(card))]  # fmt: skip
    assert all(index.device == torch.device("cuda", 0) for index in cards)
    where = torch.arange(len(card)) % 3 == 0
    for options in ({}, {"exclude": plain.search(queries.cpu(), 3).indices}, {"where": where}):
        wanted = plain.search(queries.cpu(), 20, **options)
        reached = plain.range_search(queries.cpu(), 0.31234, **options)
        for index in (*cards, cossim_fast.CosineIndex.load(tmp_path / "card")):
            asked = queries if index.device.type == "cuda" else queries.cpu()
            found = index.search(asked, 20, certify=True, **options)
            assert found.scores.device == found.indices.device == asked.device
            assert torch.equal(found.indices.cpu(), wanted.indices)
            torch.testing.assert_close(found.scores.cpu(), wanted.scores, equal_nan=True)
            found.certificate.verify(2000)
            hits = index.range_search(asked, 0.31234, **options)
            assert torch.equal(hits.lims.cpu(), reached.lims)
            assert torch.equal(hits.indices.cpu(), reached.indices)
    from_host = card.search(queries.cpu(), 20)
    assert not from_host.scores.is_cuda
    assert torch.equal(from_host.indices, plain.search(queries.cpu(), 20).indices)
    assert torch.equal(card.search(queries.half(), 9).scores.cpu().isnan().any(1).nonzero(),
                       torch.tensor([[1]]))  # fmt: skip


def test_an_index_on_the_gpu_is_searched_in_streams_of_threads():
    queries, corpus = drawn(50, 64), drawn(20_000, 64, seed=1)
    index = cossim_fast.CosineIndex(corpus[:10_000], device="cuda")
    ends = range(10_000, 20_001, 1000)
    allowed = [cossim_fast.topk(queries, corpus[:end], 10).indices for end in ends]
    wrong, done = [], threading.Event()

    def search() -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.default_stream())
        with torch.cuda.stream(stream):
            while not done.is_set():
                found = index.search(queries, 10).indices
                if not any(torch.equal(found, each) for each in allowed):
                    wrong.append(found)

    torch.cuda.synchronize()
    threads = [threading.Thread(target=search) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for begin in ends[:-1]:
            index.add(corpus[begin : begin + 1000])
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert not wrong
    assert torch.equal(index.search(queries, 10).indices, allowed[-1])
