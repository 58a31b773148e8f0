"""A GPU that the kernels do not know, or no Triton: nobody meets a compiler's error."""

import pytest
import torch
import triton

import cossim_fast
from cossim_fast import _checks, _dispatch, _ops, cosine_similarity, pairwise_cosine
from ladder import oracle
from ladder.checks import EPS
from ladder.reach import as_cuda  # noqa: F401  (a fixture)
from ladder.stub import target_of

pytestmark = pytest.mark.kernel_contract
# Turing, Volta, and two of AMD's without matrix cores that are known.
UNKNOWN = ("sm_75", "sm_70", "gfx1100", "gfx1201")


@pytest.fixture(params=[*UNKNOWN, "no Triton"])
def lacking(request, as_cuda, monkeypatch):  # noqa: F811
    """Words of what is missing on a device of that kind, for which CPU tensors are taken."""
    if request.param == "no Triton":
        monkeypatch.setattr(_dispatch, "_triton_is_found", lambda: False)
        return "Triton is not installed: pip install"

    class Driver:
        def get_current_target(self):
            return target_of(request.param)

        def get_current_device(self):
            return 0

    driver = Driver()
    monkeypatch.setattr(triton.runtime.driver, "_active", driver)
    return f"sm_80 or later, gfx90a or gfx942, and this is {request.param}"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_matrices_and_rows_take_torchs_operations(lacking, dtype):
    x, y = (oracle.inputs(9, 17, dtype=dtype, seed=seed).requires_grad_() for seed in (0, 1))
    for function, paired in ((pairwise_cosine, False), (cosine_similarity, True)):
        result = function(x, y)
        pair = (x.detach(), y.detach()) if paired else (x.detach()[None], y.detach()[None])
        grad = torch.ones(9) if paired else torch.ones(1, 9, 9)
        expected = (oracle.cosine if paired else oracle.pairwise)(*pair, EPS)
        unit = torch.finfo(dtype).eps
        assert oracle.error(result.detach(), expected.view(result.shape)) <= 2 * unit
        got = torch.autograd.grad(result.sum(), (x, y))
        for mine, true in zip(got, oracle.gradients(*pair, grad, EPS, paired=paired), strict=True):
            assert oracle.error(mine, true.view(9, 17)) <= 16 * unit


def test_the_registered_ops_do_too(lacking):
    x = oracle.inputs(9, 17, dtype=torch.float32)
    assert oracle.error(_ops.rowwise_fwd(x, x, EPS), torch.ones(9)) <= 2**-20
    assert (
        oracle.error(_ops.pairwise_fwd(x[None], x[None], EPS, "high")[0].diag(), torch.ones(9))
        <= 2**-20
    )
    _ops.rowwise_bwd(x[:, 0], x, x, EPS)
    grad = oracle.inputs(1, 9, 9, dtype=torch.float32, seed=1)
    _ops.pairwise_bwd(grad, x[None], x[None], EPS, "high")
    got = _ops.pairwise_self_bwd(grad, x[None], EPS, "high")
    exact = sum(oracle.gradients(x[None], x[None], grad, EPS, paired=False))
    assert oracle.error(got, exact) <= 2**-20


def test_a_search_says_what_is_missing_before_it_starts(lacking, monkeypatch):
    monkeypatch.setattr(_checks, "embedding_rows", lambda name, value, device="cpu": value)
    monkeypatch.setattr(_ops, "block_max", None)
    with pytest.raises(NotImplementedError, match=r"topk\(queries\.cpu\(\)") as refused:
        cossim_fast.topk(torch.ones(3, 8), torch.ones(5, 8), 2)
    assert lacking in str(refused.value)
