"""The ops that launch kernels: registered for CUDA, reached from the public functions, right."""

import pytest
import torch
import torch.nn.functional as F

from cossim_fast import _ops, functional
from ladder import oracle
from ladder.checks import BF16, EPS, F16, F32, codes
from ladder.reach import OPS, as_cuda  # noqa: F401  (a fixture)
from ladder.runtime import INTERPRETING, needs_interpreter
from ladder.stub import compiled_for

pytestmark = pytest.mark.kernel_contract
# The interpreter replaces the compiler in its process, so one half runs in each.
needs_compiler = pytest.mark.skipif(INTERPRETING, reason="compiles: run without TRITON_INTERPRET")
ROWWISE = ["_rowwise_fwd_kernel", "_rowwise_bwd_kernel"]
PAIRWISE_FWD = ["_row_norm_kernel"] * 2 + ["_pairwise_fwd_kernel"]
PAIRWISE_BWD = ["_row_norm_kernel"] * 2 + [
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
    with compiled_for(arch) as launches:
        functional.cosine_similarity(x, y, dim=-1).sum().backward()
        names = [launch.name for launch in launches]
        assert names == ROWWISE
        launches.clear()
        functional.pairwise_cosine(x, y).sum().backward()
        names = [launch.name for launch in launches]
        assert names == PAIRWISE_FWD + PAIRWISE_BWD * 2
        launches.clear()
        torch.ops.cossim_fast.block_max(codes(40, 64, torch.int8, 0), codes(70, 64, torch.int8, 1),
                                        64, torch.ones(70, dtype=torch.bool))  # fmt: skip
        index = torch.arange(40)
        torch.ops.cossim_fast.rescore(x.detach(), y.detach(), index, index)
        assert [launch.name for launch in launches] == ["_block_max_kernel", "_rescore_kernel"]
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
    assert launches == []
    assert oracle.error(c, oracle.pairwise(x[None], x[None], EPS)[0]) <= 4 * 2**-53


@needs_interpreter
@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=str)
def test_public_functions_give_the_kernels_numbers(dtype, as_cuda):  # noqa: F811
    x, y = oracle.inputs(31, 67, dtype=dtype), oracle.inputs(31, 67, dtype=dtype, seed=1)
    x.requires_grad_()
    y.requires_grad_()
    rows = functional.cosine_similarity(x, y, dim=-1)
    oracle.assert_no_worse(
        rows.detach(), F.cosine_similarity(x, y, dim=-1).detach(), oracle.cosine(x, y, EPS).detach()
    )
    matrix = functional.pairwise_cosine(x, y)
    grad = oracle.inputs(1, 31, 31, dtype=dtype, seed=2)
    found = torch.autograd.grad(matrix, (x, y), grad[0])
    leaves = x.detach()[None], y.detach()[None]
    expected = oracle.gradients(*leaves, grad, EPS, paired=False)
    plain = oracle.torch_gradients(*leaves, grad, EPS, paired=False)
    for side in range(2):
        oracle.assert_no_worse(found[side][None], plain[side], expected[side])


@needs_interpreter
def test_second_derivatives_go_through_differentiable_torch(as_cuda):  # noqa: F811
    x, y = oracle.inputs(4, 9, dtype=F32), oracle.inputs(3, 9, dtype=F32, seed=1)

    def hessian_product(function, x, y):
        x = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(function(x, y).square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    got = hessian_product(functional.pairwise_cosine, x, y)
    wide = x.double(), y.double()
    expected = hessian_product(lambda x, y: F.cosine_similarity(x[:, None], y[None], dim=-1), *wide)
    assert oracle.error(got, expected) <= 1e-6 * float(expected.abs().max())


@needs_interpreter
def test_mixed_dtypes_are_promoted(as_cuda):  # noqa: F811
    x, y = oracle.inputs(5, 16, dtype=F16), oracle.inputs(4, 16, dtype=F32, seed=1)
    c = functional.pairwise_cosine(x, y)
    assert c.dtype == F32
    assert oracle.error(c[None], oracle.pairwise(x[None], y[None], EPS)) <= 2**-22


def screen_arguments():
    eligible = torch.ones(70, dtype=torch.bool)
    eligible[::7] = False
    yield codes(5, 40, torch.int8, 0), codes(70, 40, torch.int8, 1), 32, eligible
    yield codes(5, 40, BF16, 0), codes(70, 40, BF16, 1), 64, None


@needs_compiler
def test_screen_and_rescoring_keep_the_contract_of_an_op():
    for arguments in screen_arguments():
        torch.library.opcheck(_ops.block_max, arguments)
    x = oracle.inputs(6, 130, dtype=F32)
    index = torch.tensor([0, 3, 5, 1])
    torch.library.opcheck(_ops.rescore, (x, x, index, index.flip(0)))


@needs_interpreter
def test_screen_on_cpu_and_interpreted_agree(monkeypatch):
    for arguments in screen_arguments():
        on_cpu = _ops.block_max(*arguments)
        with monkeypatch.context() as patch:
            patch.setitem(_ops.block_max._backend_fns, None, _ops.block_max._backend_fns["cuda"])
            interpreted = _ops.block_max(*arguments)
        assert on_cpu.dtype == interpreted.dtype
        if on_cpu.dtype == torch.int32:
            assert on_cpu.equal(interpreted)
        else:
            torch.testing.assert_close(on_cpu, interpreted, rtol=0, atol=2**-22)


@needs_interpreter
@pytest.mark.parametrize("dtype", [torch.float64, F32, F16, BF16], ids=str)
def test_rescoring_on_cpu_and_interpreted_gives_the_same_bits(dtype, monkeypatch):
    x = oracle.inputs(9, 300, dtype=dtype)
    x[2] = 0
    x[3, 7] = torch.nan
    index = torch.arange(9)
    for shift in range(9):
        arguments = (x, x, index, index.roll(shift))
        on_cpu = _ops.rescore(*arguments)
        with monkeypatch.context() as patch:
            patch.setitem(_ops.rescore._backend_fns, None, _ops.rescore._backend_fns["cuda"])
            interpreted = _ops.rescore(*arguments)
        torch.testing.assert_close(on_cpu, interpreted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"corpus": torch.zeros(4, 9, dtype=torch.int8)}, ValueError, r"got \(3, 8\) and \(4, 9\)"),
        ({"corpus": torch.zeros(4, 8)}, TypeError, "both int8 or both bfloat16"),
        ({"block": 48}, ValueError, "32, 64 or 128 rows, got 48"),
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
    with pytest.raises(TypeError, match="one floating dtype"):
        torch.ops.cossim_fast.rescore(x, x.double(), index, index)
    with pytest.raises(TypeError, match=r"torch\.int64"):
        torch.ops.cossim_fast.rescore(x, x, index, index.int())
    with pytest.raises(ValueError, match=r"one shape \(p,\)"):
        torch.ops.cossim_fast.rescore(x, x, index, index[:1])
