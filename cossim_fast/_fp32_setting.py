"""What torch lets a float32 matrix product do to its factors: read on old torch too.

In torch's words of 2.9 and later: "ieee" leaves factors whole, "tf32" and "bf16" let them be
rounded, "none" leaves them whole, and says that nobody has set anything.
"""

from __future__ import annotations

import torch

# Since 2.9 each backend has a setting of its own. Before, torch.set_float32_matmul_precision is
# all there is: it holds for every backend.
PER_BACKEND = hasattr(torch._C, "_get_fp32_precision_getter")

_BY_OLD_WORD = {"highest": "ieee", "high": "tf32", "medium": "bf16"}


def get(backend: str) -> str:
    """Return what float32 products of this backend ("cuda" or "mkldnn") may do."""
    if PER_BACKEND:
        found: str = torch._C._get_fp32_precision_getter(backend, "matmul")
        return found
    return _BY_OLD_WORD[torch.get_float32_matmul_precision()]
