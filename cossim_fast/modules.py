"""Modules (torch.nn.Module) for the functions."""

from __future__ import annotations

from torch import Tensor, nn

from cossim_fast.functional import cosine_similarity


class CosineSimilarity(nn.CosineSimilarity):
    """Return `cosine_similarity` of two inputs, in place of :class:`torch.nn.CosineSimilarity`.

    Args:
        dim: the dimension to reduce.
        eps: the smallest norm to divide by, at least 0.

    Shapes, dtypes, errors, derivatives and promises are those of
    :func:`cossim_fast.cosine_similarity`. It has no parameters and no buffers, and cannot be
    scripted by ``torch.jit.script``; use ``torch.jit.trace``, ``torch.compile`` or
    ``torch.export``. It is an instance of torch's module for tools that look for that.

    >>> import torch
    >>> CosineSimilarity(dim=-1)(torch.tensor([3.0, 4.0]), torch.tensor([4.0, 3.0]))
    tensor(0.9600)
    """

    def __init__(self, dim: int = 1, eps: float = 1e-8) -> None:
        super().__init__(dim, eps)

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        """Return the cosine similarity of x1 and x2 along `dim`."""
        return cosine_similarity(x1, x2, self.dim, self.eps)

    def extra_repr(self) -> str:
        """Show the arguments in the module's repr."""
        return f"dim={self.dim}, eps={self.eps}"
