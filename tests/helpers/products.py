"""Products as other processors form them: added up in another order, or from rounded factors."""

import torch

MM, BMM = torch.mm, torch.bmm


def _in_parts(a, b, parts):
    """Cut the sums in parts, add up the products of each one after the other, then the parts."""
    total = None
    for some in torch.arange(a.shape[-1]).chunk(parts):
        held = None
        for k in some.tolist():
            product = a[..., :, k : k + 1] * b[..., k : k + 1, :]
            held = product if held is None else held.add_(product)
        total = held if total is None else total.add_(held)
    return a.new_zeros(*a.shape[:-1], b.shape[-1]) if total is None else total


def _rounded(a, b):
    low = a.to(torch.bfloat16).to(a.dtype), b.to(torch.bfloat16).to(b.dtype)
    return BMM(*low) if a.dim() > 2 else MM(*low)


# By any of these a float32 product is as it may be.
RIGHT = {
    "one after the other": lambda a, b: _in_parts(a, b, 1),
    "16 partial sums": lambda a, b: _in_parts(a, b, 16),
    "from the last to the first": lambda a, b: _in_parts(a.flip(-1), b.flip(-2), 1),
}
# By these it is not: the factors, or every 16th term.
WRONG = {
    "bfloat16 factors": _rounded,
    "a term is lost": lambda a, b: RIGHT["16 partial sums"](a[..., 1:], b[..., 1:, :]),
}


def form_by(monkeypatch, product):
    """Let torch.mm and torch.bmm form their results by `product`."""

    def formed(a, b, *, out=None):
        result = product(a, b)
        return result if out is None else out.copy_(result)

    monkeypatch.setattr("cossim_fast._products._tried", {})  # what was tried of others
    for name in ("mm", "bmm"):
        monkeypatch.setattr(torch, name, formed)
