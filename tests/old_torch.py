"""Where old versions of torch differ from new ones, in one place: all else is tested alike."""

import pytest
import torch

TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])

# F.cosine_similarity refuses a negative or NaN eps; before, it computes with it.
REFUSES_EPS = TORCH >= (2, 11)

needs_backend_settings = pytest.mark.skipif(
    TORCH < (2, 9),
    reason="torch before 2.9 has one setting of float32 products, which nothing inherits",
)
