"""The ops that launch kernels: registered for CUDA, reached from the public functions, right."""

import pytest
import torch
import torch.nn.functional as F
from cossim_fast.kernels.architecture import splits_float32
from torch.autograd.gradcheck import GradcheckError

from cossim_fast import _gpu, _ops, functional
from ladder import oracle, screening
from ladder.checks import BF16, EPS, F16, F32, codes
from ladder.reach import OPS, as_cuda  # noqa: F401  (a fixture)
from ladder.runtime import DEVICE, INTERPRETING, needs_kernels
from ladder.stub import compiled_for

pytestmark = pytest.mark.kernel_contract
# The interpreter replaces the compiler in its process, so one half runs in each.
needs_compiler = pytest.mark.skipif(INTERPRETING, reason="compiles: run without TRITON_INTERPRET")


def runs_kernels(test):
    """Mark a test that runs kernels, interpreted or on a GPU, among those that compile them."""
    return pytest.mark.kernel_logic(needs_kernels(test))


ROWWISE = ["_rowwise_fwd_kernel", "_rowwise_bwd_kernel"]
PAIRWISE_FWD = ["_row_norm_kernel", "_pairwise_fwd_kernel", "_pairwise_fwd_scaled_kernel"]
SCREEN = [
    "_block_max_kernel", "_rescore_kernel", "_group_bounds_kernel", "_block_candidates_kernel",
    "_recheck_kernel", "_best_rows_kernel", "_code_rows_kernel", "_scan_rows_kernel",
]  # fmt: skip
# Norms are those of the forward.
PAIRWISE_BWD = [
    "_unit_rows_kernel",
    "_gradient_panel_kernel",  # of the ones, expanded, that a sum hands in
    "_pairwise_bwd_product_kernel",
    "_pairwise_bwd_project_kernel",
]


@pytest.mark.parametrize("name", OPS)
def test_a_cuda_body_is_registered_with_the_dispatcher(name):
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    assert has_kernel(f"cossim_fast::{name}", "CUDA")


@needs_compiler
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_public_functions_compile_and_launch_every_kernel(arch, as_cuda):  # noqa: F811
    x = torch.ones(40, 64, dtype=BF16, requires_grad=True)
    y = torch.ones(40, 64, dtype=BF16, requires_grad=True)
    for function in (functional.cosine_similarity, functional.pairwise_cosine):
        assert functional.explain(function, x, y).executor == "kernels"
    with compiled_for(arch) as launches:
        functional.cosine_similarity(x, y, dim=-1).sum().backward()
        names = [launch.name for launch in launches]
        assert names == ROWWISE
        launches.clear()
        functional.pairwise_cosine(x, y).sum().backward()
        names = [launch.name for launch in launches]
        assert names == PAIRWISE_FWD + PAIRWISE_BWD * 2
        launches.clear()
        functional.pairwise_cosine(x).sum().backward()
        assert [launch.name for launch in launches] == PAIRWISE_FWD + PAIRWISE_BWD
        launches.clear()
        torch.ops.cossim_fast.block_max(codes(40, 64, torch.int8, 0), codes(70, 64, torch.int8, 1),
                                        64, torch.ones(70, dtype=torch.bool))  # fmt: skip
        index = torch.arange(40)
        torch.ops.cossim_fast.rescore(x.detach(), y.detach(), index, index)
        for name, arguments in selection_arguments().items():
            getattr(torch.ops.cossim_fast, name)(*arguments)
        assert [launch.name for launch in launches] == SCREEN
    binary = "hsaco" if arch.startswith("gfx") else "cubin"
    assert all(launch.kernel.asm[binary] for launch in launches)
    assert all(launch.cost["bytes"] > 0 for launch in launches)


@needs_compiler
def test_float64_and_empty_rows_are_left_to_torch(as_cuda):  # noqa: F811
    x = oracle.inputs(5, 7, dtype=torch.float64)
    empty = torch.empty(5, 0)
    with compiled_for("sm_90") as launches:
        c = functional.pairwise_cosine(x)
        assert functional.cosine_similarity(empty, empty).tolist() == [0] * 5
        found = [gradients_of(function, x) for function in (as_matrix, as_rows)]
        itself = gradient_with_itself(x, torch.ones(5, 5, dtype=x.dtype))
    assert launches == []
    expected = sum(oracle.gradients(x[None], x[None], torch.ones(1, 5, 5), EPS, paired=False))
    assert oracle.error(itself, expected[0]) <= 2**-48
    for got, paired in zip(found, (False, True), strict=True):
        pair, grad = (x, x.flip(0)), x.new_ones(5) if paired else x.new_ones(1, 5, 5)
        pair = pair if paired else [t[None] for t in pair]
        expected = oracle.gradients(*(t.clone() for t in pair), grad, EPS, paired=paired)
        for side, true in zip(got, expected, strict=True):
            assert oracle.error(side, true.view(5, 7)) <= 2**-48
    assert oracle.error(c, oracle.pairwise(x[None], x[None], EPS)[0]) <= 4 * 2**-53


def as_matrix(x, y):
    return functional.pairwise_cosine(x, y)


def as_rows(x, y):
    return functional.cosine_similarity(x, y, dim=-1)


def gradients_of(function, x):
    leaves = [t.clone().requires_grad_() for t in (x, x.flip(0))]
    return torch.autograd.grad(function(*leaves).sum(), leaves)


def gradient_with_itself(x, grad):
    rows = x.clone().requires_grad_()
    return torch.autograd.grad(functional.pairwise_cosine(rows), rows, grad)[0]


@runs_kernels
@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=str)
def test_a_matrix_with_itself_has_one_gradient(dtype, as_cuda, monkeypatch):  # noqa: F811
    """Not one a side that autograd adds, nor one twice."""
    monkeypatch.setattr(_ops, "pairwise_bwd", None)
    x, grad = oracle.inputs(31, 67, dtype=dtype), oracle.inputs(31, 31, dtype=dtype, seed=2)
    got = gradient_with_itself(x.to(DEVICE), grad.to(DEVICE)).cpu()
    sides = x[None], x[None], grad[None], EPS
    plain, exact = (
        sum(f(*sides, paired=False)) for f in (oracle.torch_gradients, oracle.gradients)
    )
    oracle.assert_no_worse(got[None], plain, exact)


@runs_kernels
def test_second_derivatives_of_a_matrix_with_itself(as_cuda):  # noqa: F811
    def second(function, x):
        x = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(function(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    def plain(x):
        return F.cosine_similarity(x[:, None], x[None], dim=-1)

    x = oracle.inputs(9, 20, dtype=F32)
    got, exact = second(functional.pairwise_cosine, x.to(DEVICE)).cpu(), second(plain, x.double())
    assert oracle.error(got, exact) <= 2 * oracle.error(second(plain, x), exact)


@runs_kernels
@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=str)
def test_public_functions_give_the_kernels_numbers(dtype, as_cuda):  # noqa: F811
    x, y = oracle.inputs(31, 67, dtype=dtype), oracle.inputs(31, 67, dtype=dtype, seed=1)
    a, b = (t.to(DEVICE, copy=True).requires_grad_() for t in (x, y))
    rows = functional.cosine_similarity(a, b, dim=-1).detach().cpu()
    oracle.assert_no_worse(rows, F.cosine_similarity(x, y, dim=-1), oracle.cosine(x, y, EPS))
    matrix = functional.pairwise_cosine(a, b)
    grad = oracle.inputs(1, 31, 31, dtype=dtype, seed=2)
    found = torch.autograd.grad(matrix, (a, b), grad[0].to(DEVICE))
    expected = oracle.gradients(x[None], y[None], grad, EPS, paired=False)
    plain = oracle.torch_gradients(x[None], y[None], grad, EPS, paired=False)
    for side in range(2):
        oracle.assert_no_worse(found[side].cpu()[None], plain[side], expected[side])


@runs_kernels
@pytest.mark.parametrize("precision", ["highest", "high"])
@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=str)
def test_public_functions_give_the_bits_of_the_ops(dtype, precision, as_cuda):  # noqa: F811
    """They launch without the ops, and take the norms of the forward for both gradients."""
    x, y = (oracle.inputs(n, 23, dtype=dtype, seed=n).to(DEVICE) for n in (9, 7))
    for first, second in ((x, y), (x, x)):
        leaves = [t.clone().requires_grad_() for t in (first, second)]
        pair = leaves if first is not second else (leaves[0], None)
        got = functional.pairwise_cosine(*pair, precision=precision)
        batch = leaves[0][None]
        other = batch if pair[1] is None else leaves[1][None]
        wanted = _ops.pairwise_fwd(batch, other, EPS, precision)[0]
        assert torch.equal(got, wanted)
        grad = oracle.inputs(*got.shape, dtype=dtype, seed=3).to(DEVICE)
        gradients = [torch.autograd.grad(c, leaves, grad, allow_unused=True) for c in (got, wanted)]
        for mine, theirs in zip(*gradients, strict=True):
            assert (mine is None and theirs is None) or torch.equal(mine, theirs)
    leaves = [t.clone().requires_grad_() for t in (x, x.flip(0))]
    rows = functional.cosine_similarity(*leaves, dim=-1), _ops.rowwise_fwd(*leaves, EPS)
    assert torch.equal(*rows)
    gradients = [torch.autograd.grad(c, leaves, x[:, 0]) for c in rows]
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


@runs_kernels
@pytest.mark.parametrize("dtype", [F32, F16, torch.float64], ids=str)
def test_out_is_written_where_it_lies(dtype, as_cuda):  # noqa: F811
    x, y = (oracle.inputs(2, n, 23, dtype=dtype, seed=n).to(DEVICE) for n in (9, 7))
    for first, second in ((x, y), (x[0], y[0]), (x[0], None), (x[:, :0], y)):
        wanted = functional.pairwise_cosine(first, second)
        padded = wanted.new_full((*wanted.shape[:-1], wanted.shape[-1] + 3), 9.0)
        for out in (torch.empty_like(wanted), torch.empty_like(wanted.mT).mT, padded[..., 1:-2]):
            version = out._version
            assert functional.pairwise_cosine(first, second, out=out) is out
            assert torch.equal(out, wanted)
            assert out._version > version or not out.numel()
        assert bool((padded[..., [0, -2, -1]] == 9).all())


@runs_kernels
def test_what_torch_does_to_a_result_or_its_gradient(as_cuda):  # noqa: F811
    x, y = (oracle.inputs(n, 8, dtype=F32, seed=n).to(DEVICE).requires_grad_() for n in (5, 4))
    for function, pair in ((as_matrix, (x, y)), (as_rows, (x, x.detach().flip(0)))):
        c = function(*pair)
        grad = oracle.inputs(*c.shape, dtype=F32, seed=1).to(DEVICE)
        (wanted,) = torch.autograd.grad(c, x, grad, retain_graph=True)
        # A gradient that is kept as its negative, and several at once.
        (negative,) = torch.autograd.grad(c, x, torch._neg_view(-grad), retain_graph=True)
        torch.testing.assert_close(negative, wanted, rtol=0, atol=2**-20)
        (batch,) = torch.autograd.grad(
            c, x, torch.stack([grad, 2 * grad]), is_grads_batched=True, retain_graph=True
        )
        torch.testing.assert_close(batch, torch.stack([wanted, 2 * wanted]), rtol=0, atol=2**-18)
        (doubled,) = torch.autograd.grad(function(*pair).mul_(2), x, grad)
        torch.testing.assert_close(doubled, 2 * wanted, rtol=0, atol=2**-20)
        negated = [torch._neg_view(-t.detach()) for t in pair]
        torch.testing.assert_close(function(*negated), c.detach(), rtol=0, atol=2**-20)
    with torch.inference_mode():
        kept = y.detach().clone()
    assert functional.pairwise_cosine(x, kept).requires_grad


@runs_kernels
def test_second_derivatives_go_through_differentiable_torch(as_cuda):  # noqa: F811
    x, y = oracle.inputs(31, 67, dtype=F32), oracle.inputs(29, 67, dtype=F32, seed=1)

    def second(function, x, y):
        x = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(function(x, y).square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    def plain(x, y):
        return F.cosine_similarity(x[:, None], y[None], dim=-1)

    got = second(functional.pairwise_cosine, x.to(DEVICE), y.to(DEVICE)).cpu()
    expected = second(plain, x.double(), y.double())
    assert oracle.error(got, expected) <= 2 * oracle.error(second(plain, x, y), expected)


# Central differences err by step^2 / 6 of a third derivative, and by 2^-24 / step. Along random
# directions, since an interpreted launch takes long.
DIFFERENCES = {"eps": 2**-8, "atol": 2**-10, "rtol": 2**-10, "fast_mode": True}


@runs_kernels
@pytest.mark.filterwarnings("ignore:Input #. requires gradient and is not a double precision")
@pytest.mark.parametrize("order", ["first", "second"])
@pytest.mark.parametrize("name", ["rowwise_fwd", "pairwise_fwd"])
def test_derivatives_match_finite_differences(name, order, as_cuda):  # noqa: F811
    """Torch's own check, of the kernels' float32: it finds a wrong factor, not a rounding."""
    shape, rest = ((3, 5), (EPS,)) if name == "rowwise_fwd" else ((1, 3, 5), (EPS, "highest"))
    x = oracle.inputs(*shape, dtype=F32).to(DEVICE).requires_grad_()
    y = oracle.inputs(*shape, dtype=F32, seed=1).to(DEVICE).requires_grad_()
    check = torch.autograd.gradcheck if order == "first" else torch.autograd.gradgradcheck
    assert check(lambda x, y: getattr(_ops, name)(x, y, *rest), (x, y), **DIFFERENCES)


@runs_kernels
@pytest.mark.filterwarnings("ignore:Input #. requires gradient and is not a double precision")
def test_the_check_of_derivatives_can_fail(monkeypatch, as_cuda):  # noqa: F811
    """A hundredth too much is found."""
    true = _ops.rowwise_bwd
    monkeypatch.setattr(_ops, "rowwise_bwd", lambda *a: [side * 1.01 for side in true(*a)])
    x = oracle.inputs(3, 5, dtype=F32).to(DEVICE).requires_grad_()
    with pytest.raises(GradcheckError, match="Jacobian"):
        torch.autograd.gradcheck(
            lambda x: _ops.rowwise_fwd(x, x.detach().flip(0), EPS), (x,), **DIFFERENCES
        )


@runs_kernels
def test_mixed_dtypes_are_promoted(as_cuda):  # noqa: F811
    x, y = oracle.inputs(5, 16, dtype=F16), oracle.inputs(4, 16, dtype=F32, seed=1)
    c = functional.pairwise_cosine(x.to(DEVICE), y.to(DEVICE)).cpu()
    assert c.dtype == F32
    assert oracle.error(c[None], oracle.pairwise(x[None], y[None], EPS)) <= 2**-22


def screen_arguments():
    eligible = torch.ones(70, dtype=torch.bool)
    eligible[::7] = False
    yield codes(5, 40, torch.int8, 0), codes(70, 40, torch.int8, 1), 32, eligible
    yield codes(5, 40, BF16, 0), codes(70, 40, BF16, 1), 64, None


def selection_arguments() -> dict:
    """Arguments of the other ops of a search."""
    s = screening.example()
    terms, reach = (s.query_terms, s.block_terms), torch.zeros(len(s.queries))
    n = len(s.queries)
    pairs = torch.tensor([2 * n, 3 * n + 1, 6 * n + 4], dtype=torch.int32)
    return {
        "block_thresholds": (s.maxima, *terms, 3, 16),
        "block_candidates": (s.maxima, *terms, reach, 5),
        "recheck": (
            s.query_codes, s.corpus_codes, *terms, reach, pairs, 64, s.eligible, 7
        ),
        "best_rows": (s.query_codes, s.corpus_codes, pairs, 64, s.eligible),
        "code_rows": (s.corpus, torch.zeros(s.corpus.shape[1])),
        "scan_rows": (torch.zeros(3, s.corpus.shape[1]), s.corpus),
    }  # fmt: skip


@needs_compiler
def test_screen_and_rescoring_keep_the_contract_of_an_op():
    for arguments in screen_arguments():
        torch.library.opcheck(_ops.block_max, arguments)
    x = oracle.inputs(6, 130, dtype=F32)
    index = torch.tensor([0, 3, 5, 1])
    torch.library.opcheck(_ops.rescore, (x, x, index, index.flip(0)))
    for name, arguments in selection_arguments().items():
        torch.library.opcheck(getattr(_ops, name), arguments)


@runs_kernels
def test_kernels_keep_the_contract_of_an_op(monkeypatch):
    """Schema, fake body, autograd and tracing, with kernels for bodies."""
    if INTERPRETING:
        for name in OPS:
            bodies = getattr(_ops, name)._backend_fns
            monkeypatch.setitem(bodies, None, bodies["cuda"])
    x, y = (oracle.inputs(5, 16, dtype=F32, seed=seed).to(DEVICE) for seed in range(2))
    for op, pair, rest in [
        (_ops.rowwise_fwd, (x, y), (EPS,)),
        (_ops.pairwise_fwd, (x[None], y[None]), (EPS, "highest")),
    ]:
        leaves = (t.clone().requires_grad_() for t in pair)
        torch.library.opcheck(op, (*leaves, *rest))
    torch.library.opcheck(_ops.rowwise_bwd, (x[:, 0], x, y, EPS))
    grad = torch.ones(1, 5, 5, device=DEVICE)
    torch.library.opcheck(_ops.pairwise_self_bwd, (grad, x[None], EPS, "highest"))
    torch.library.opcheck(_ops.pairwise_fwd, (*[x[None].clone().requires_grad_()] * 2, EPS, "high"))
    torch.library.opcheck(_ops.pairwise_bwd, (grad, x[None], y[None], EPS, "highest"))


def on_device_under_test(op, arguments, monkeypatch):
    with monkeypatch.context() as patch:
        if INTERPRETING:
            patch.setitem(op._backend_fns, None, op._backend_fns["cuda"])
        moved = (x.to(DEVICE) if isinstance(x, torch.Tensor) else x for x in arguments)
        return op(*moved).cpu()


@runs_kernels
def test_screen_agrees_with_its_cpu_body(monkeypatch):
    for arguments in screen_arguments():
        on_cpu = _ops.block_max(*arguments)
        found = on_device_under_test(_ops.block_max, arguments, monkeypatch)
        tolerance = 0 if on_cpu.dtype == torch.int32 else 2**-22
        torch.testing.assert_close(found, on_cpu, rtol=0, atol=tolerance)


@runs_kernels
@pytest.mark.parametrize("dtype", [torch.float64, F32, F16, BF16], ids=str)
def test_rescoring_agrees_with_its_cpu_body(dtype, monkeypatch):
    x = oracle.inputs(9, 300, dtype=dtype)
    x[2] = 0
    x[3, 7] = torch.nan
    index = torch.arange(9)
    for shift in range(9):
        arguments = (x, x, index, index.roll(shift))
        found = on_device_under_test(_ops.rescore, arguments, monkeypatch)
        expected = _ops.rescore(*arguments)
        torch.testing.assert_close(found, expected, rtol=0, atol=2**-48, equal_nan=True)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"corpus": torch.zeros(4, 9, dtype=torch.int8)}, ValueError, r"got \(3, 8\) and \(4, 9\)"),
        ({"corpus": torch.zeros(4, 8)}, TypeError, "both int8 or both bfloat16"),
        ({"block": 48}, ValueError, "32 or 64 rows, got 48"),
        ({"eligible": torch.ones(3, dtype=torch.bool)}, ValueError, r"shape \(4,\)"),
    ],
)
def test_screen_refuses_what_it_cannot_do(change, error, message):
    arguments = {
        "queries": torch.zeros(3, 8, dtype=torch.int8),
        "corpus": torch.zeros(4, 8, dtype=torch.int8),
        "block": 64,
        "eligible": None,
    }
    with pytest.raises(error, match=message):
        torch.ops.cossim_fast.block_max(**(arguments | change))


def test_rescoring_refuses_what_it_cannot_do():
    x, index = torch.zeros(3, 8), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(TypeError, match=r"floating queries and corpus.*int64"):
        torch.ops.cossim_fast.rescore(x, x.long(), index, index)
    with pytest.raises(TypeError, match=r"torch\.int64"):
        torch.ops.cossim_fast.rescore(x, x, index, index.int())
    with pytest.raises(ValueError, match=r"one shape \(p,\)"):
        torch.ops.cossim_fast.rescore(x, x, index, index[:1])


@runs_kernels
@pytest.mark.parametrize("itself", [False, True])
def test_float32_is_multiplied_by_torch_where_triton_cannot(itself, as_cuda, monkeypatch):  # noqa: F811
    """Triton before 3.6 splits no float32; what needs no split takes kernels as elsewhere."""
    launchers = _gpu._kernels()
    taken = []

    def launched(*arguments, **rest):
        taken.append("kernel")
        return launch(*arguments, **rest)

    launch = launchers.matrix
    monkeypatch.setattr(launchers, "matrix", launched)
    monkeypatch.setattr(launchers, "splits_float32", lambda: False)
    monkeypatch.setattr(launchers, "matrix_gradient", None)
    monkeypatch.setattr(launchers, "matrix_self_gradient", None)
    x, y = (oracle.inputs(9, 20, dtype=F32, seed=seed) for seed in range(2))
    a, b = (t.to(DEVICE, copy=True).requires_grad_() for t in (x, y))
    other, wide = (a, x) if itself else (b, y)
    matrix = functional.pairwise_cosine(a, None if itself else b)
    assert not taken
    assert oracle.error(matrix.detach().cpu(), oracle.cosine(x[:, None], wide[None], EPS)) <= 2**-20
    grad = oracle.inputs(9, 9, dtype=F32, seed=2)
    found = torch.autograd.grad(matrix, (a, other)[: 1 if itself else 2], grad.to(DEVICE))
    expected = oracle.gradients(x[None], wide[None], grad[None], EPS, paired=False)
    expected = [sum(expected)] if itself else expected
    for mine, true in zip(found, expected, strict=True):
        assert oracle.error(mine.cpu(), true.view(9, 20)) <= 2**-18
    functional.pairwise_cosine(a.detach(), b.detach(), precision="high")
    functional.pairwise_cosine(a.detach().half(), b.detach().half())
    assert taken == ["kernel"] * 2


def test_this_triton_splits_float32():
    assert splits_float32()
