"""Products that round their factors, as torch's do where a setting or oneDNN's environment says so.

They are registered in torch's own dispatcher, so every thread, operator and derivative meets them.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

Round = Callable[[Tensor], Tensor]


def to_bfloat16(x: Tensor) -> Tensor:
    """8 bits, as ONEDNN_DEFAULT_FPMATH_MODE=BF16."""
    return x.bfloat16().float()


def to_tf32(x: Tensor) -> Tensor:
    """11 bits, as on tensor cores."""
    return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def to_float16(x: Tensor) -> Tensor:
    """11 bits of a narrow range, as ONEDNN_DEFAULT_FPMATH_MODE=F16."""
    return x.half().float()


@contextlib.contextmanager
def rounding(round_factor: Round) -> Iterator[None]:
    """Have every float32 product on CPU round its factors, and sum without a further error."""

    def product(a: Tensor, b: Tensor) -> Tensor:
        if a.dtype == torch.float32:
            a, b = round_factor(a), round_factor(b)
        # numpy, since torch's product is what is replaced.
        found = np.matmul(a.double().numpy(force=True), b.double().numpy(force=True))
        return torch.as_tensor(found)

    def plain(a: Tensor, b: Tensor) -> Tensor:
        return product(a, b).to(a.dtype)

    def plain_out(a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
        return out.copy_(product(a, b))

    def added(c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
        return (product(a, b) * alpha + (c * beta if beta else 0)).to(a.dtype)

    def added_out(
        c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1, out: Tensor
    ) -> Tensor:
        return out.copy_(added(c, a, b, beta=beta, alpha=alpha))

    def added_here(c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
        return c.copy_(added(c, a, b, beta=beta, alpha=alpha))

    def layer(a: Tensor, b: Tensor, *_: object) -> Tensor:
        return product(a, b.T).to(a.dtype)

    def layer_added(a: Tensor, start: Tensor, b: Tensor, *_: object) -> Tensor:
        return start + product(a, b.T).to(a.dtype)

    library = torch.library.Library("aten", "IMPL")
    onednn = torch.library.Library("mkldnn", "IMPL")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a kernel is replaced
            for name in ("mm", "bmm", "dot", "vdot"):
                library.impl(name, plain, "CPU")
            for name in ("mm.out", "bmm.out"):
                library.impl(name, plain_out, "CPU")
            for name in ("addmm", "baddbmm", "addmv"):
                library.impl(name, added, "CPU")
                library.impl(f"{name}.out", added_out, "CPU")
                library.impl(f"{name}_", added_here, "CPU")
            onednn.impl("_linear_pointwise", layer, "CPU")
            onednn.impl("_linear_pointwise.binary", layer_added, "CPU")
        yield
    finally:
        library._destroy()
        onednn._destroy()
