"""An index on a GPU with kernels for all its operations, interpreted, beside one on the CPU."""

import pytest
import torch

from cossim_fast import CosineIndex, _ops
from device_index import is_on_device, stand_in
from ladder.reach import SCREEN_OPS
from ladder.runtime import needs_interpreter
from search_data import make

pytestmark = [pytest.mark.kernel_logic, needs_interpreter]
F16, F32, F64 = torch.float16, torch.float32, torch.float64


@pytest.fixture(autouse=True)
def _by_kernels(monkeypatch):
    stand_in(monkeypatch)
    for name in SCREEN_OPS:
        bodies = getattr(_ops, name)._backend_fns
        monkeypatch.setitem(bodies, None, bodies["cuda"])


# Those of one dtype are in `test_screened_topk.test_kernels_give_the_same_ranks`.
@pytest.mark.parametrize(("store", "asked"), [(F16, F32), (F32, F64)], ids=str)
def test_the_same_rows(store, asked, tmp_path):
    queries, corpus = make("holes", 140, 19, 2, F32)
    queries[1, 3] = torch.nan
    card, plain = (CosineIndex(corpus[:100], store=store, device=on) for on in ("cuda", None))
    for index in (card, plain):
        index.add(corpus[100:130])
        index.add(2 * corpus[130:])
        index.remove(range(0, 140, 8))
    assert len(card._snapshot.parts) == 3
    card.save(tmp_path / "index")
    card = CosineIndex.load(tmp_path / "index", device="cuda")
    assert is_on_device(card)
    queries = queries.to(asked)
    exclude = plain.search(queries, 2).indices
    found, wanted = (index.search(queries, 5, exclude=exclude) for index in (card, plain))
    assert torch.equal(found.indices, wanted.indices)
    torch.testing.assert_close(found.scores, wanted.scores, rtol=0, atol=2.0**-24, equal_nan=True)
    hits, reached = (index.range_search(queries, 0.2718) for index in (card, plain))
    assert torch.equal(hits.lims, reached.lims)
    assert torch.equal(hits.indices, reached.indices)
