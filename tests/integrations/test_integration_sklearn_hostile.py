"""scikit-learn's names with every kind of tensor and array: its answer, or one error.

What scikit-learn itself checks, lists and text for instance, is left to it.
"""

import pytest
import torch

pytest.importorskip("sklearn")

from cossim_fast.integrations.sklearn import CosineNeighbors, cosine_similarity
from hostile_values import (
    ARRAYS,
    FLOAT8_TENSORS,
    FLOAT_ARRAYS,
    FLOAT_TENSORS,
    FUNCTIONAL,
    TENSORS,
    TEXT_ARRAYS,
    UNSIGNED_ARRAYS,
    UNSIGNED_TENSORS,
    WHOLE_ARRAYS,
    WHOLE_TENSORS,
    in_float64,
    made,
)  # fmt: skip

READ = {
    *FLOAT_TENSORS, *WHOLE_TENSORS, *UNSIGNED_TENSORS, *FLOAT8_TENSORS, *FLOAT_ARRAYS,
    *WHOLE_ARRAYS, *UNSIGNED_ARRAYS,
}  # fmt: skip
OURS = {*TENSORS, "masked array"} - {*FUNCTIONAL} - READ


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [*TENSORS, *ARRAYS])
def test_the_right_answer_or_one_clear_error(kind):
    x = made(kind)
    if kind in READ:
        unit = torch.nn.functional.normalize(in_float64(kind))
        found = torch.from_numpy(cosine_similarity(x)).double()
        torch.testing.assert_close(found, unit @ unit.mT, atol=5e-3, rtol=0)
        distances, _ = CosineNeighbors(n_neighbors=1).fit(x).kneighbors(made(kind))
        nearest = (1 - (unit @ unit.mT)).min(1).values
        torch.testing.assert_close(
            torch.from_numpy(distances)[:, 0].double(), nearest, atol=5e-3, rtol=0
        )
        return
    if kind in TEXT_ARRAYS:
        return  # read, or not, as that version of scikit-learn does
    for call in (cosine_similarity, CosineNeighbors(n_neighbors=1).fit):
        with pytest.raises((TypeError, ValueError)) as caught:
            call(made(kind))
        if kind in OURS:
            assert "expected X" in str(caught.value)
