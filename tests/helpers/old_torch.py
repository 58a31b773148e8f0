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


def set_setting(backend, word, op="matmul"):
    """Let float32 products of a backend do `word` of 2.9; before, those of every backend."""
    if TORCH >= (2, 9):
        torch._C._set_fp32_precision_setter(backend, op, word)
    else:
        words = {"none": "highest", "ieee": "highest", "tf32": "high", "bf16": "medium"}
        torch.set_float32_matmul_precision(words[word])
