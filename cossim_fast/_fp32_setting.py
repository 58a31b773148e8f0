"""What torch lets a float32 matrix product do to its factors: read and set, on old torch too.

In torch's words of 2.9 and later: "ieee" leaves factors whole, "tf32" and "bf16" let them be
rounded, "none" leaves them whole, and says that nobody has set anything.
"""

from __future__ import annotations

import torch

# Since 2.9 each backend has a setting of its own. Before, torch.set_float32_matmul_precision is
# all there is: it holds for every backend and every thread of the process, so a call that asks for
# another precision than is set changes it for all of them until it returns.
PER_BACKEND = hasattr(torch._C, "_get_fp32_precision_getter")

_BY_WORD = {"none": "highest", "ieee": "highest", "tf32": "high", "bf16": "medium"}
_BY_OLD_WORD = {"highest": "ieee", "high": "tf32", "medium": "bf16"}


def get(backend: str) -> str:
    """Return what float32 products of this backend ("cuda" or "mkldnn") may do."""
    if PER_BACKEND:
        found: str = torch._C._get_fp32_precision_getter(backend, "matmul")
        return found
    return _BY_OLD_WORD[torch.get_float32_matmul_precision()]


def set(backend: str, word: str) -> None:
    """Let float32 products of this backend do `word`; before 2.9, those of every backend."""
    if PER_BACKEND:
        torch._C._set_fp32_precision_setter(backend, "matmul", word)
    else:
        torch.set_float32_matmul_precision(_BY_WORD[word])
