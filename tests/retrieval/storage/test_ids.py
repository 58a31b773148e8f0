"""Adding no rows, with no ids, changes nothing, whatever the ids of an index are."""

import numpy as np
import pytest
import torch

from cossim_fast import CosineIndex

NO_IDS = {
    "none": None,
    "list": [],
    "whole numbers": np.empty(0, np.int64),
    "strings": np.empty(0, "U3"),
    "objects": np.empty(0, object),
    "tensor": torch.empty(0, dtype=torch.int64),
}
IDS = {"counted": None, "whole numbers": [5, 6, 7], "strings": ["a", "b", "c"]}
MORE = {"counted": None, "whole numbers": [8], "strings": ["d"]}


@pytest.mark.parametrize("in_file", [False, True])
@pytest.mark.parametrize("none", NO_IDS)
@pytest.mark.parametrize("kind", IDS)
def test_no_rows_are_added_to_any_index(kind, none, in_file, tmp_path):
    index = CosineIndex(torch.eye(3), ids=IDS[kind], path=tmp_path / "rows" if in_file else None)
    before = index.ids
    index.add(torch.zeros(0, 3), NO_IDS[none])
    np.testing.assert_array_equal(index.ids, before)
    index.add(torch.ones(1, 3), MORE[kind])
    assert index.ids.tolist() == [*before.tolist(), *(MORE[kind] or [3])]


@pytest.mark.parametrize("none", NO_IDS)
@pytest.mark.parametrize("kind", IDS)
def test_an_index_that_began_with_no_rows_takes_any_ids(kind, none):
    index = CosineIndex(torch.zeros(0, 3), NO_IDS[none])
    index.add(torch.eye(3), IDS[kind])
    assert index.ids.tolist() == (IDS[kind] or [0, 1, 2])


def test_an_id_without_a_row_is_refused():
    index = CosineIndex(torch.eye(3), IDS["strings"])
    with pytest.raises(ValueError, match=r"expected ids of shape \(0,\), got \(1,\)"):
        index.add(torch.zeros(0, 3), ["d"])
