"""Indexes as on a GPU, on CPU tensors: the ops run their CPU bodies."""

import numpy as np
import torch

from cossim_fast.retrieval import contents, index
from cossim_fast.retrieval.device_engine import DeviceEngine
from cossim_fast.retrieval.engines import engine_on


def stand_in(monkeypatch):
    """Give an index that is to be on a GPU the engine of one, with CPU tensors."""

    def chosen(device, screen, d, path=None):
        if device is None:
            return engine_on(None, screen, d, path)
        return DeviceEngine(torch.device("cpu"))

    monkeypatch.setattr(index, "engine_on", chosen)


def is_on_device(made):
    """Whether an index has the engine of a GPU."""
    assert isinstance(made, contents.Contents)
    return isinstance(made._engine, DeviceEngine)


def assert_same(found, other):
    """The same bits, except that certificates are of two kinds."""
    for mine, theirs in zip(found[:3], other[:3], strict=True):
        if not hasattr(mine, "verify"):
            np.testing.assert_array_equal(np.asarray(mine), np.asarray(theirs))
            assert type(mine) is type(theirs)
            assert mine.dtype == theirs.dtype


def assert_alike(card, plain, queries, *, k=None, threshold=0.5, exclude=None, where=None):
    """Two indexes of the same rows answer alike."""
    assert len(card) == len(plain)
    assert card.skipped == plain.skipped
    np.testing.assert_array_equal(card.ids, plain.ids)
    what = {"exclude": exclude, "where": where}
    assert_same(*(made.range_search(queries, threshold, **what) for made in (card, plain)))
    for number in {1, min(10, len(plain)), len(plain)} if k is None else {k}:
        if len(plain):
            found = card.search(queries, number, certify=True, **what)
            assert_same(found, plain.search(queries, number, certify=True, **what))
            found.certificate.verify(None)
            assert_same(card.search(queries, number, **what), found[:2])
