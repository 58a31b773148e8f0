"""The bound that `pairwise_cosine` states for each precision."""

import torch
import torch.nn.functional as F

from cossim_fast import _reference, pairwise_cosine
from cossim_fast.testing import assert_close, measured_tolerance

# What a factor is rounded by, by the word for the precision.
ROUNDING = {"highest": 0.0, "high": 2.0**-11, "medium": 2.0**-8}


def check_bound(x, y, words):
    """The error is within the bound of the docstring, and about that of torch's own product."""
    u, d = ROUNDING[words], x.shape[1]
    bound = 2 * u + u * u + 2 * (d + 4) * 2.0**-24
    result = pairwise_cosine(x, y, precision=words)
    exact = _reference.pairwise_cosine(x, y)
    to_round = torch.finfo(x.dtype).eps / 2 if x.dtype != torch.float32 else 0
    assert (result.double() - exact).abs().max() <= bound + to_round
    if words == "highest":
        a, b = (F.normalize(t.float()) for t in (x, x if y is None else y))
        plain = torch.mm(a, b.T).to(x.dtype)
        assert_close(result, exact, tolerance=measured_tolerance(plain, exact))
