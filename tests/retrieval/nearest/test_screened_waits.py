"""How often the search of a GPU makes the host wait: counted on CPU tensors."""

from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cossim_fast.retrieval.nearest import screened_topk as screened_module
from ladder import screening
from ladder.searching import gaussian, search, search_range


class Synchronisations(TorchDispatchMode):
    """Counts what makes the host wait for a device, were the tensors there.

    Values that are read or come from the host, and sizes that depend on values. What an op's CPU
    body does is not seen.
    """

    READING = (
        "_local_scalar_dense", "nonzero", "masked_select", "_unique2", "bincount", "equal",
        "repeat_interleave", "lift_fresh",
    )  # fmt: skip

    def __init__(self):
        super().__init__()
        self.seen = []
        self.within_op = False

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        name = function.name().removeprefix("aten::").split(".")[0]
        indices = arguments[1] if name in ("index", "index_put", "index_put_") else ()
        by_mask = any(x is not None and x.dtype == torch.bool for x in indices)
        if name in self.READING or by_mask:
            self.seen.append(name)
        self.within_op = True
        try:
            return function(*arguments, **(named or {}))
        finally:
            self.within_op = False


@contextmanager
def synchronisations(monkeypatch):
    """Within, the list of what makes the host wait."""
    mode = Synchronisations()
    with monkeypatch.context() as patch, mode:
        for name in ("tolist", "cpu", "numpy"):
            original = getattr(torch.Tensor, name)

            def reading(self, *arguments, name=name, original=original):
                if not mode.within_op:
                    mode.seen.append(name)
                return original(self, *arguments)

            patch.setattr(torch.Tensor, name, reading)
        yield mode.seen


def test_a_search_waits_for_the_device_once_a_pass(monkeypatch):
    s = screening.screen(*gaussian(9, 4000, 16))
    with synchronisations(monkeypatch) as seen:
        search(s, 10)
    assert seen == ["tolist"]
    with synchronisations(monkeypatch) as seen:
        search(s, 70)  # fewer blocks than that
    assert seen == ["tolist"]
    with synchronisations(monkeypatch) as seen:
        search_range(s, torch.full((9,), 0.8, dtype=torch.float64))
    assert seen == ["nonzero", "tolist"]
    monkeypatch.setattr(screened_module, "MAXIMA_AT_ONCE", 250)
    with synchronisations(monkeypatch) as seen:
        search(s, 10)
    assert seen == ["tolist"] * 3


WAITING = {
    "item": lambda x: x[0].item(),
    "int": lambda x: int(x[0]),
    "bool": lambda x: bool(x[1] > 0),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "nonzero": lambda x: x.nonzero(),
    "read by a mask": lambda x: x[x > 1],
    "written by a mask": lambda x: x.clone().index_put_((x > 1,), x[:2]),
    "unique": lambda x: x.unique(),
    "bincount": lambda x: x.long().bincount(),
    "repeat_interleave": lambda x: x.repeat_interleave(x.long()),
    "equal": lambda x: torch.equal(x, x.clone()),
    "tensor": lambda x: torch.tensor([1.0, 2.0], dtype=x.dtype, device=x.device),
}


@pytest.mark.parametrize("name", WAITING)
def test_waiting_is_seen(name, monkeypatch):
    """The counter above misses none of these."""
    with synchronisations(monkeypatch) as seen:
        WAITING[name](torch.arange(4.0))
    assert len(seen) == 1
