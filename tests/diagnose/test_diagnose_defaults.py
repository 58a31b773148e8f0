"""Diagnosis under another default device and dtype, and of tensors that say where they lie."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, distribute_tensor

from cossim_fast import _products, diagnose
from cossim_fast.diagnose import chance, plots
from cossim_fast.diagnose import geometry as geometry_module


def randn(*shape, seed=0):
    generator = torch.Generator(device="cpu").manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float32, device="cpu")


ROWS = randn(300, 16) + 1
LABELS = np.arange(300) % 3
HALF_ZERO = torch.cat((ROWS[:1], torch.zeros(5, 16)))
BOTH = torch.cat((ROWS, ROWS[:40]))
COUNTS = (10 * randn(40, 8)).to(torch.int32)


def pictures(report):
    return {name: len(figure.axes) for name, figure in plots.of_report(report).items()}


CALLS = {
    "embeddings": lambda: diagnose.embeddings(ROWS),
    "labels": lambda: diagnose.embeddings(ROWS, LABELS),
    "labels of a tensor": lambda: diagnose.embeddings(ROWS, torch.from_numpy(LABELS)),
    "sample": lambda: diagnose.embeddings(BOTH, sample=64),
    "wide": lambda: diagnose.embeddings(ROWS.T),
    "wider than is read whole": lambda: diagnose.embeddings(ROWS[:60].T.contiguous(), sample=8),
    "few rows": lambda: diagnose.embeddings(ROWS[:6, :4]),
    "one row with a direction": lambda: diagnose.embeddings(HALF_ZERO),
    "array": lambda: diagnose.embeddings(ROWS.numpy()),
    "integers": lambda: diagnose.embeddings(COUNTS),
    "half precision": lambda: diagnose.embeddings(ROWS.to(torch.bfloat16)),
    "pair": lambda: diagnose.pair(ROWS, 2 * ROWS),
    "pair of copies": lambda: diagnose.pair(ROWS, ROWS.clone()),
    "pair of integers": lambda: diagnose.pair(COUNTS, COUNTS.flip(0)),
    "pair of half precision": lambda: diagnose.pair(ROWS.half(), ROWS.flip(0).half()),
    "pair that is broadcast": lambda: diagnose.pair(ROWS, ROWS[:1], dim=0),
    "pair of arrays": lambda: diagnose.pair(ROWS.numpy(), ROWS.numpy()[::-1]),
}


@contextmanager
def defaults(name):
    """Make `name` the default device or dtype, as if the process had begun so."""
    before = torch.get_default_dtype()
    chance.spectrum_bounds.cache_clear()
    _products._tried.clear()
    try:
        if name == "meta":
            with torch.device("meta"):
                yield
        else:
            torch.set_default_dtype(getattr(torch, name))
            yield
    finally:
        torch.set_default_dtype(before)
        _products._tried.clear()


every_default = pytest.mark.parametrize("name", ["meta", "float64", "bfloat16", "float16"])


@every_default
@pytest.mark.parametrize("call", CALLS)
def test_no_default_changes_a_report(name, call, monkeypatch):
    monkeypatch.setattr(geometry_module, "_WIDEST", 32)
    wanted = CALLS[call]()
    with defaults(name):
        got = CALLS[call]()
        text = str(got)
    assert repr(got.to_dict()) == repr(wanted.to_dict())  # NaN is nan
    assert text == str(wanted)
    if isinstance(got, diagnose.CollapseReport):
        assert got.sample.dtype is torch.float32
        assert torch.equal(got.sample, wanted.sample)


@every_default
def test_no_default_changes_the_pictures(name, tmp_path):
    report = diagnose.embeddings(ROWS[:80], LABELS[:80])
    wanted = pictures(report)
    with defaults(name):
        assert pictures(report) == wanted
        report.to_html(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8").count("<img") == len(wanted)


@pytest.fixture
def mesh():
    store = distributed.HashStore()
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield DeviceMesh("cpu", [0])
    distributed.destroy_process_group()


def test_a_distributed_tensor_is_asked_for_in_full(mesh):
    whole = distribute_tensor(ROWS, mesh, [Replicate()])
    calls = (
        diagnose.embeddings,
        lambda x: diagnose.pair(x, x),
        lambda x: diagnose.pair(ROWS, x),
        lambda x: diagnose.embeddings(ROWS, x[:, 0]),
    )
    for call in calls:
        with pytest.raises(TypeError, match=r"DTensor.*pass \.full_tensor\(\)"):
            call(whole)
    assert diagnose.embeddings(whole.full_tensor()).verdict == diagnose.embeddings(ROWS).verdict
