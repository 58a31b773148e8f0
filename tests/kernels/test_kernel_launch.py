"""A launch like an earlier one takes the binary of that one: the one that Triton would choose."""

from contextlib import nullcontext

import pytest
import torch
import triton
from cossim_fast.kernels import launch, pairwise, row_norm, rowwise
from triton.tools.tensor_descriptor import TensorDescriptor

from ladder.checks import BF16, EPS, F16, F32
from ladder.runtime import INTERPRETING
from ladder.stub import StubDriver, compiled_for

pytestmark = [
    pytest.mark.kernel_contract,
    pytest.mark.skipif(INTERPRETING, reason="compiles: run without TRITON_INTERPRET"),
]


def unaligned(*shape, dtype=F32):
    return torch.empty(torch.Size(shape).numel() + 1, dtype=dtype, device="cpu")[1:].view(shape)


def rows(*shape, dtype=F32):
    return torch.empty(shape, dtype=dtype, device="cpu")


# Everything that Triton compiles anew for: dtypes, alignment, ones, multiples of 16, long strides,
# a pointer that is None, a constant.
PAIRS = {
    "plain": (rows(6, 32), rows(6, 32)),
    "other rows": (rows(6, 32), rows(6, 32)),
    "more rows": (rows(16, 32), rows(16, 32)),
    "one row": (rows(1, 32), rows(1, 32)),
    "narrower": (rows(6, 32, dtype=BF16), rows(6, 32, dtype=BF16)),
    "mixed": (rows(6, 32, dtype=F16), rows(6, 32)),
    "unaligned": (unaligned(6, 32), rows(6, 32)),
    "both unaligned": (unaligned(6, 32), unaligned(6, 32)),
    "odd": (rows(6, 33), rows(6, 33)),
    "columns": (rows(32, 6).mT, rows(6, 32)),
    "apart": (rows(6, 48)[:, :32], rows(6, 32)),
    "far apart": (rows(32).as_strided((1, 32), (2**33, 1)), rows(1, 32)),
    "wider": (rows(6, 600), rows(6, 600)),
}


@pytest.fixture
def chosen(monkeypatch):
    """What is launched, and what Triton's own launch of the same arguments chooses."""
    pairs = []
    original = launch.Kernel._launch

    def both(self, grid, *arguments, **constants):
        before = len(launches)
        original(self, grid, *arguments, **constants)
        (launched,) = launches[before:]
        plain = self.run(*arguments, grid=grid, warmup=True, **constants)
        pairs.append((launched.kernel, plain))

    monkeypatch.setattr(launch.Kernel, "_launch", both)
    with compiled_for("sm_90") as launches:
        yield pairs


def test_rows_of_every_kind_take_the_binary_that_triton_would(chosen):
    rowwise._rowwise_fwd_kernel.remembered.clear()
    for _ in range(3):
        for x, y in PAIRS.values():
            rowwise.launch_rowwise_fwd(x, y, EPS)
    assert len(chosen) == 3 * len(PAIRS)
    assert all(launched is plain for launched, plain in chosen)
    assert len({id(launched) for launched, _ in chosen}) > 6
    assert len(rowwise._rowwise_fwd_kernel.remembered) == len(PAIRS) - 1  # "other rows" are alike


def test_matrices_too_whose_tiles_are_described(chosen):
    """Few of the pairs: each compiles three kernels, a second apiece."""
    for _ in range(2):
        for name in ("plain", "more rows", "one row"):
            first, second = (t.half()[None] for t in PAIRS[name])
            pairwise.launch_pairwise_fwd(first, second, EPS)
            pairwise.launch_pairwise_fwd(first, first, EPS)
    assert all(launched is plain for launched, plain in chosen)


def test_architectures_and_new_values_are_told_apart(chosen):
    x = rows(1, 6, 32)
    for arch in ("sm_90", "sm_80", "sm_90", "sm_80"):
        with compiled_for(arch) as launches:
            row_norm.launch_row_norm(x, EPS)
            row_norm.launch_row_norm(x, 2 * EPS)
        assert {str(found.kernel.metadata.target.arch) for found in launches} <= {arch[3:]}


def test_the_same_arguments_arrive(monkeypatch):
    """Both launches hand the driver's launcher the same arguments, constants included."""
    arrived = []
    launcher = lambda self, source, metadata: lambda *arguments: arrived.append(arguments)  # noqa: E731
    monkeypatch.setattr(StubDriver, "launcher_cls", launcher)
    monkeypatch.setattr(triton.runtime.driver, "_active", StubDriver("sm_90"))
    pairwise._pairwise_fwd_kernel.device_caches.clear()
    pairwise._pairwise_fwd_kernel.remembered.clear()
    x, y = rows(1, 6, 32, dtype=F16), rows(1, 7, 32, dtype=F16)
    out = rows(1, 6, 7, dtype=F16)
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda self, shape, dtype=None: out)
    norms = row_norm.RowNorms(rows(13), rows(13), None, slice(6), slice(6, None))
    for _ in range(2):
        pairwise.launch_pairwise_fwd(x, y, EPS, norms=norms)
    first, second = arrived
    metadata = 6  # made anew for each launch
    for at, (one, other) in enumerate(zip(first, second, strict=True)):
        if isinstance(one, TensorDescriptor):
            assert vars(one) == vars(other) | {"base": one.base}
            assert one.base is other.base
        elif isinstance(one, torch.Tensor):
            assert (one.data_ptr(), one.shape) == (other.data_ptr(), other.shape)
        elif at != metadata:
            assert one is other or one == other
    pairwise._pairwise_fwd_kernel.device_caches.clear()


def test_a_descriptor_is_the_one_that_triton_makes():
    for x in (rows(1, 6, 32, dtype=F16), rows(2, 9, 64, dtype=F32), rows(1, 8, 32, dtype=F16)):
        made = launch.descriptor(x, (1, 64, 16))
        expected = TensorDescriptor.from_tensor(x, [1, 64, 16])
        assert type(made) is TensorDescriptor
        assert made.base is x
        assert vars(made) | {"base": None} == vars(expected) | {"base": None}


class OnDevice:
    """All that is asked of a tensor."""

    def __init__(self, index):
        self.get_device = lambda: index


def test_the_device_of_a_tensor_becomes_current(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert launch.on_device(OnDevice(0)).idx == 0
    assert launch.on_device(OnDevice(2)).idx == 2
    assert isinstance(launch.on_device(OnDevice(1)), nullcontext)
    monkeypatch.delattr(torch.cuda, "current_device")  # nothing is asked for a tensor on CPU
    assert isinstance(launch.on_device(rows(2)), nullcontext)


def test_what_is_remembered_is_bounded(monkeypatch, chosen):
    monkeypatch.setattr(launch, "MOST_REMEMBERED", 4)
    for n in range(1, 12):
        row_norm.launch_row_norm(rows(1, n, 32), EPS)
    assert 0 < len(row_norm._row_norm_kernel.remembered) <= 4
    assert all(launched is plain for launched, plain in chosen)
