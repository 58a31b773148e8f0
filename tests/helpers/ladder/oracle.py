"""Float64 answers for the kernels' tests, and the error that plain torch makes at the same task."""

import torch
import torch.nn.functional as F
from torch import Tensor

import rounding


def inputs(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Gaussian entries, drawn in float32 whatever the dtype."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype)


def cosine(x: Tensor, y: Tensor, eps: float) -> Tensor:
    """Cosine of paired rows in float64: the definition, on rows scaled so that none overflows."""
    x, y = x.double(), y.double()
    norm_x = torch.linalg.vector_norm(x, dim=-1).clamp_min(eps)
    norm_y = torch.linalg.vector_norm(y, dim=-1).clamp_min(eps)
    return ((x / norm_x[..., None]) * (y / norm_y[..., None])).sum(-1)


def pairwise(x: Tensor, y: Tensor, eps: float) -> Tensor:
    return cosine(x[:, :, None, :], y[:, None, :, :], eps)


def gradients(x: Tensor, y: Tensor, grad: Tensor, eps: float, *, paired: bool) -> tuple:
    """Gradients in float64, by automatic differentiation of torch's own function."""
    x, y = x.double().requires_grad_(), y.double().requires_grad_()
    pair = (x, y) if paired else (x[:, :, None, :], y[:, None, :, :])
    c = F.cosine_similarity(*pair, dim=-1, eps=eps)
    return torch.autograd.grad(c, (x, y), grad.double())


def torch_gradients(x: Tensor, y: Tensor, grad: Tensor, eps: float, *, paired: bool) -> tuple:
    """The same in the inputs' dtype: what plain torch gives."""
    x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
    pair = (x, y) if paired else (x[:, :, None, :], y[:, None, :, :])
    c = F.cosine_similarity(*pair, dim=-1, eps=eps)
    return torch.autograd.grad(c, (x, y), grad.to(c.dtype))


def error(got: Tensor, expected: Tensor) -> float:
    """Largest absolute error; NaN where either is NaN, so that no comparison passes by accident."""
    return float((got.double() - expected.double()).abs().max())


def assert_no_worse(got: Tensor, plain: Tensor, expected: Tensor, more: float = 0.0) -> None:
    """Assert that got errs at most twice as much as plain torch's answer, and by ``more`` at most.

    A unit in the last place of the largest value is allowed where torch happens to be exact.
    """
    assert got.shape == expected.shape
    scale = float(expected.double().abs().max())
    allowed = 2 * max(error(plain, expected), torch.finfo(plain.dtype).eps * scale / 2)
    largest = error(got, expected)
    assert largest <= allowed + more, f"error {largest:.3g}, plain torch {allowed / 2:.3g}"


def rounded_product(x: Tensor, y: Tensor, eps: float, precision: str) -> Tensor:
    """Cosines from a float32 product of inputs rounded as torch's lower precisions round them.

    "high" multiplies tf32 values, "medium" bfloat16 ones: the least of what
    ``torch.set_float32_matmul_precision`` documents for the two.
    """
    norms = torch.linalg.vector_norm(x, dim=-1).clamp_min(eps)[:, :, None]
    norms = norms * torch.linalg.vector_norm(y, dim=-1).clamp_min(eps)[:, None, :]
    rounded = rounding.to_tf32 if precision == "high" else rounding.to_bfloat16
    return (rounded(x) @ rounded(y).mT) / norms
