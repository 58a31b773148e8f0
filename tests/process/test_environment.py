"""The state of the process changes no answer that it does not change in torch's function."""

import threading
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from cossim_fast import (
    _fp32_setting,
    _reference,
    cosine_similarity,
    pairwise_cosine,
    testing,
)
from cossim_fast.testing import make_inputs
from old_torch import set_setting

# Nothing here sums more numbers.
assert_close = partial(testing.assert_close, terms=128)

pytestmark = pytest.mark.usefixtures("small_calls")


def matrix_inputs():
    """Rows that need every branch: ordinary, zero, too large and too small to be squared."""
    x, y = make_inputs((40, 64), (50, 64))
    x[1], x[2] = 0, x[2] * 1e30
    y[3] *= 1e-30
    return x, y


def broadcast(x, y):
    return cosine_similarity(x[:, None], y[None], -1, 1e-35)


def pairwise(x, y):
    return pairwise_cosine(x, y, eps=1e-35)


def pairs(x, y):
    return cosine_similarity(x[:, :40], y[:40, :40].expand(40, 40), 1, 1e-35)


def vmapped(x, y):
    return torch.vmap(lambda a, b: pairwise_cosine(a, b, eps=1e-35))(x[None], y[None])[0]


def registered(x, y):
    return torch.ops.cossim_fast.pairwise_fwd(x[None], y[None], 1e-35, "highest")[0]


CALLS = {f.__name__: f for f in (broadcast, pairwise, pairs, vmapped, registered)}
DIFFERENTIABLE = ("broadcast", "pairwise", "pairs", "registered")


def check_everything():
    """Values and gradients of every call are those of float64, and stay on CPU in float32."""
    x, y = matrix_inputs()
    full = _reference.pairwise_cosine(x, y, 1e-35)
    expected = dict.fromkeys(CALLS, full)
    expected["pairs"] = _reference.cosine_similarity(x[:, :40], y[:40, :40], 1, 1e-35)
    for name, call in CALLS.items():
        result = call(x, y)
        assert (result.dtype, result.device.type) == (torch.float32, "cpu")
        assert_close(result, expected[name], name=name)
    assert_close(pairwise_cosine(x, eps=1e-35), _reference.pairwise_cosine(x, None, 1e-35))
    if torch.is_inference_mode_enabled() or not torch.is_grad_enabled():
        return
    x, y = (t.requires_grad_() for t in make_inputs((40, 64), (50, 64)))
    wide = [t.detach().double().requires_grad_() for t in (x, y)]
    theirs = F.cosine_similarity(wide[0][:, None], wide[1][None], -1)
    by_matrix = torch.autograd.grad(theirs.sin().sum(), wide)
    theirs = F.cosine_similarity(wide[0][:, :40], wide[1][:40, :40])
    by_pairs = torch.autograd.grad(theirs.sin().sum(), wide)
    for name in DIFFERENTIABLE:
        got = torch.autograd.grad(CALLS[name](x, y).sin().sum(), (x, y))
        wanted = by_pairs if name == "pairs" else by_matrix
        for mine, exact in zip(got, wanted, strict=True):
            assert (mine.dtype, mine.device.type) == (torch.float32, "cpu")
            assert_close(mine, exact, scale=8, name=f"gradient of {name}")


def test_in_a_process_as_it_starts():
    check_everything()


@pytest.mark.parametrize("words", ["high", "medium"])
def test_set_float32_matmul_precision(words):
    torch.set_float32_matmul_precision(words)
    try:
        before = _fp32_setting.get("mkldnn")
        check_everything()
        assert torch.get_float32_matmul_precision() == words
        assert _fp32_setting.get("mkldnn") == before
    finally:
        torch.set_float32_matmul_precision("highest")
        set_setting("mkldnn", "none")


@pytest.mark.parametrize("setting", ["bf16", "tf32", "ieee", "none"])
def test_mkldnn_fp32_precision(setting):
    before = _fp32_setting.get("mkldnn")
    set_setting("mkldnn", setting)
    try:
        found = _fp32_setting.get("mkldnn")
        check_everything()
        assert _fp32_setting.get("mkldnn") == found
    finally:
        set_setting("mkldnn", before)


def test_the_precision_setting_is_restored_when_a_call_fails():
    set_setting("mkldnn", "bf16")
    try:
        x, y = make_inputs((4, 5), (4, 5))
        with torch.inference_mode():
            frozen = torch.empty(4, 4)
        with pytest.raises(RuntimeError, match="Inplace update to inference tensor"):
            pairwise_cosine(x, y, out=frozen)
        assert _fp32_setting.get("mkldnn") == "bf16"
    finally:
        set_setting("mkldnn", "none")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        check_everything()
    finally:
        torch.set_default_dtype(torch.float32)


def test_default_device():
    x, y = matrix_inputs()
    expected = pairwise(x, y)
    with torch.device("meta"):
        for call in (broadcast, pairwise):
            result = call(x, y)
            assert result.device.type == "cpu"
            assert torch.equal(result, expected)
        assert cosine_similarity(x, y[:40]).device.type == "cpu"
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(pairwise(x, y).sum(), x)
        assert gradient.device.type == "cpu"


def test_flush_denormal():
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    try:
        check_everything()
        tiny = torch.full((3, 8), 1e-37)
        assert_close(cosine_similarity(tiny, tiny, eps=0.0), torch.ones(3))
        assert_close(pairwise_cosine(tiny, eps=0.0), torch.ones(3, 3))
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_grad_modes(mode):
    x, y = matrix_inputs()
    expected = pairwise(x, y)
    with mode():
        check_everything()
        leaf = x.clone().requires_grad_()
        result = pairwise(leaf, y)
    assert not result.requires_grad
    assert torch.equal(result, expected)


def test_deterministic_algorithms_with_memory_filled_with_nan():
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    try:
        check_everything()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("threads", [1, 2])
def test_number_of_threads(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        check_everything()
    finally:
        torch.set_num_threads(before)


AUTOCAST = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("to", AUTOCAST, ids=str)
def test_autocast_lowers_no_precision(to):
    with torch.autocast("cpu", dtype=to):
        check_everything()


@pytest.mark.parametrize("to", AUTOCAST, ids=str)
@pytest.mark.parametrize("first", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("second", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_autocast_gives_the_dtype_of_torch(first, second, to):
    x, y = torch.ones(3, 1, 4, dtype=first), torch.ones(1, 3, 4, dtype=second)
    with torch.autocast("cpu", dtype=to):
        assert cosine_similarity(x, y, -1).dtype == F.cosine_similarity(x, y, -1).dtype
        x, y = x.expand(3, 3, 4).contiguous(), y.expand(3, 3, 4).contiguous()
        assert cosine_similarity(x, y, -1).dtype == F.cosine_similarity(x, y, -1).dtype


def test_backward_outside_autocast_of_a_forward_inside_and_the_other_way_round():
    x, y = make_inputs((9, 16), (9, 16), requires_grad=True)
    expected = torch.autograd.grad(pairwise_cosine(x, y).sum(), (x, y))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = pairwise_cosine(x, y)
    outside = pairwise_cosine(x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        from_outside = torch.autograd.grad(outside.sum(), (x, y))
    for got in (torch.autograd.grad(inside.sum(), (x, y)), from_outside):
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_threads_that_want_different_precisions_get_at_least_what_they_asked_for():
    before = _fp32_setting.get("mkldnn")
    x, y = make_inputs((64, 128), (48, 128))
    expected = _reference.pairwise_cosine(x, y)
    failures = []
    start = threading.Barrier(4)

    def work(precision):
        start.wait()
        try:
            for _ in range(25):
                leaf = x.clone().requires_grad_()
                result = pairwise_cosine(leaf, y, precision=precision)
                result.sum().backward()
                if precision == "highest":
                    assert_close(result, expected)
                else:
                    assert (result - expected).abs().max() <= 2.0**-7
        except Exception as error:  # raised by the main thread
            failures.append(error)

    words = ("highest", "medium", "high", "highest")
    workers = [threading.Thread(target=work, args=(word,)) for word in words]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures
    assert _fp32_setting.get("mkldnn") == before
