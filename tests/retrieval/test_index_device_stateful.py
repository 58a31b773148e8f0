"""Any sequence of changes to an index on a GPU and to one on CPU, with the same bits found."""

import pickle
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from cossim_fast import CosineIndex
from device_index import assert_alike, stand_in

D = 3
# Few values, so that there are ties, zero rows, copies and scaled copies; and NaN.
NUMBERS = st.sampled_from([0.0, 0.0, 1.0, -1.0, 2.0, 0.5, 3.0, float("nan")])
ROWS = st.lists(st.lists(NUMBERS, min_size=D, max_size=D), max_size=70)
DTYPES = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])


class Indexes(RuleBasedStateMachine):
    """The index under test and the one that it is compared with."""

    @initialize(dtype=DTYPES, strings=st.booleans())
    def begin(self, dtype, strings):
        self.strings, self.count = strings, 0
        self.pair = [
            CosineIndex(torch.empty(0, D, dtype=dtype), device=device) for device in ("cuda", None)
        ]

    def _ids(self, n):
        first, self.count = self.count, self.count + n
        return [f"{i}" if self.strings else 10 * i for i in range(first, self.count)]

    @rule(rows=ROWS)
    def add(self, rows):
        ids = self._ids(len(rows))
        for index in self.pair:
            index.add(torch.tensor(rows, dtype=torch.float32).view(-1, D), ids=ids)

    @precondition(lambda self: len(self.pair[1]))
    @rule(data=st.data())
    def remove(self, data):
        ids = self.pair[1].ids.tolist()
        gone = data.draw(st.lists(st.sampled_from(ids), unique=True))
        for index in self.pair:
            index.remove(gone)

    @rule(rows=ROWS, threshold=st.sampled_from([-1.0, 0.0, 0.5, 0.99, 1.0]), dtype=DTYPES)
    def search(self, rows, threshold, dtype):
        queries = torch.tensor(rows[:4], dtype=dtype).view(-1, D)
        assert_alike(*self.pair, queries, threshold=threshold)

    @precondition(lambda self: len(self.pair[1]))
    @rule(data=st.data())
    def search_some(self, data):
        ids = st.lists(st.sampled_from(self.pair[1].ids.tolist()), max_size=12)
        each = st.lists(ids, min_size=2, max_size=2)
        queries = torch.tensor([[1.0, 0.0, 2.0], [0.5, -1.0, 0.0]])
        what = {
            name: data.draw(st.none() | ids | each, label=name) for name in ("exclude", "where")
        }
        assert_alike(*self.pair, queries, **what)

    @rule(crossed=st.booleans())
    def save_and_load(self, crossed):
        """Each index goes on from its own file, or from that of the other."""
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder) / name for name in ("card", "plain")]
            for index, file in zip(self.pair, files, strict=True):
                index.save(file)
            if crossed:
                files.reverse()
            self.pair = [
                CosineIndex.load(file, mmap=False, device=device)
                for file, device in zip(files, ("cuda", None), strict=True)
            ]

    @rule()
    def copy(self):
        self.pair = [pickle.loads(pickle.dumps(index)) for index in self.pair]


@pytest.fixture(scope="module", autouse=True)
def _engine():
    with pytest.MonkeyPatch.context() as patch:
        stand_in(patch)
        yield


class TestIndexes(Indexes.TestCase):
    settings = settings(
        max_examples=15, stateful_step_count=12, deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )  # fmt: skip
