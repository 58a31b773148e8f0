"""Every loss under what torch does to functions: derivatives of all kinds, scaling, compilation."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cossim_fast import losses
from cossim_fast.testing import make_inputs

N, D = 6, 3
LABELS = torch.tensor([0, 1, 2, 0, 1, 0])
IDS = torch.tensor([0, 1, 2, 3, 1, 5])


@dataclass(frozen=True)
class Case:
    """A loss with its settings, of rows and numbers."""

    function: Callable[..., Tensor]
    rows: tuple[str, ...]
    numbers: dict[str, float] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    def leaves(self, dtype: torch.dtype = torch.float64, size: int = N) -> list[Tensor]:
        """Leaves that want gradients: rows of a dtype, then numbers."""
        rows = make_inputs(*[(size, D)] * len(self.rows), dtype=dtype, requires_grad=True)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        numbers = [torch.tensor(value, dtype=wide) for value in self.numbers.values()]
        return rows + [number.requires_grad_() for number in numbers]

    def shortened(self, size: int) -> "Case":
        """The case for the first rows."""
        settings = {
            name: x[:size] if isinstance(x, Tensor) else x for name, x in self.settings.items()
        }
        return Case(self.function, self.rows, self.numbers, settings)

    def __call__(self, *leaves: Tensor) -> Tensor:
        return self.function(
            **dict(zip((*self.rows, *self.numbers), leaves, strict=True)), **self.settings
        )


PAIR, TEMPERATURE = ("queries", "keys"), {"temperature": 0.3}
CASES = {
    "info_nce": Case(losses.info_nce, PAIR, TEMPERATURE),
    "info_nce, ids and a margin": Case(
        losses.info_nce, PAIR, TEMPERATURE, {"query_ids": IDS, "key_ids": IDS, "margin": 0.1}
    ),
    "info_nce, symmetric": Case(losses.info_nce, PAIR, TEMPERATURE, {"symmetric": True}),
    "info_nce, none": Case(losses.info_nce, PAIR, TEMPERATURE, {"reduction": "none"}),
    "clip": Case(losses.clip, ("image", "text"), {"logit_scale": 3.0}),
    "siglip": Case(losses.siglip, ("image", "text"), {"logit_scale": 3.0, "logit_bias": -1.0}),
    "siglip, ids, none": Case(
        losses.siglip, ("image", "text"), {"logit_scale": 3.0, "logit_bias": -1.0},
        {"image_ids": IDS, "text_ids": IDS, "reduction": "none"},
    ),
    "nt_xent": Case(losses.nt_xent, ("z0", "z1"), TEMPERATURE),
    "nt_xent, ids, none": Case(
        losses.nt_xent, ("z0", "z1"), TEMPERATURE, {"ids": IDS, "reduction": "none"}
    ),
    "sup_con": Case(losses.sup_con, ("z",), TEMPERATURE, {"labels": LABELS}),
    "sup_con, none": Case(
        losses.sup_con, ("z",), TEMPERATURE, {"labels": LABELS, "reduction": "none"}
    ),
    "sup_con of others": Case(
        losses.sup_con, ("z", "ref"), TEMPERATURE, {"labels": LABELS, "ref_labels": IDS}
    ),
    "batch_hard_triplet": Case(
        losses.batch_hard_triplet, ("z",), {}, {"labels": LABELS, "margin": 1.0}
    ),
}  # fmt: skip
EVERY = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def gradients(case, leaves, loss=None):
    value = case(*leaves) if loss is None else loss
    return torch.autograd.grad(value.sum(), leaves, materialize_grads=True)


def assert_same(got, expected, rtol=1e-5):
    for mine, wanted in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=rtol, atol=rtol)


@EVERY
def test_first_and_second_derivatives(case):
    case = case.shortened(4)
    leaves = case.leaves(size=4)
    assert torch.autograd.gradcheck(case, leaves, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(
        case, leaves, check_fwd_over_rev=True, check_batched_grad=True
    )


@EVERY
def test_under_functorch(case):
    leaves = case.leaves(torch.float32)
    numbers = tuple(range(len(leaves)))
    total = lambda *leaves: case(*leaves).sum()  # noqa: E731
    assert_same(torch.func.grad(total, numbers)(*leaves), gradients(case, leaves))
    several = [torch.stack([leaf, 1.5 * leaf.flip(0) if leaf.dim() else leaf]) for leaf in leaves]
    by_vmap = torch.func.vmap(torch.func.grad(total, numbers))(*several)
    for i in range(2):
        one = [leaf[i].detach().requires_grad_() for leaf in several]
        assert_same([found[i] for found in by_vmap], gradients(case, one))


@EVERY
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_changes_nothing(case, dtype):
    leaves = case.leaves(torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        value = case(*leaves)
        found = gradients(case, leaves, value)
    assert value.dtype == torch.float32
    assert torch.equal(value, case(*leaves))
    for mine, wanted in zip(found, gradients(case, leaves), strict=True):
        assert torch.equal(mine, wanted)


@EVERY
def test_scaled_gradients_of_float16_rows_do_not_vanish(case):
    """GradScaler's factor is there before they are rounded: of 1e-5, float16 has 8 bits."""
    leaves = [
        (3000 * leaf if leaf.dim() else leaf).detach().requires_grad_()
        for leaf in case.leaves(torch.float16)
    ]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    loss = case(*leaves).sum()
    scaled = torch.autograd.grad(scaler.scale(loss), leaves, materialize_grads=True)
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    for mine, wanted in zip(scaled, gradients(case, wide), strict=True):
        times = wanted * 2.0**16
        atol = 1e-5 * times.abs().max().item()
        torch.testing.assert_close(mine.double(), times, rtol=2.0**-11, atol=atol)


@EVERY
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(case, reentrant):
    leaves = case.leaves(torch.float32)
    value = checkpoint(case, *leaves, use_reentrant=reentrant)
    value.sum().backward()
    for leaf, wanted in zip(leaves, gradients(case, leaves), strict=True):
        assert torch.equal(leaf.grad, wanted)


@EVERY
def test_compiled(case):
    torch._dynamo.reset()
    leaves = case.leaves(torch.float32)
    compiled = torch.compile(case, backend="aot_eager", fullgraph=True)
    value = compiled(*leaves)
    torch.testing.assert_close(value, case(*leaves), rtol=1e-5, atol=1e-6)
    assert_same(gradients(case, leaves, value), gradients(case, leaves))


@EVERY
def test_a_frozen_side_costs_the_other_nothing(case):
    leaves = case.leaves(torch.float32)
    expected = gradients(case, leaves)
    for i, wanted in enumerate(expected):
        alone = [leaf.detach().requires_grad_(i == j) for j, leaf in enumerate(leaves)]
        (found,) = torch.autograd.grad(case(*alone).sum(), alone[i])
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)


@EVERY
def test_the_result_may_be_edited_and_backward_run_twice(case):
    leaves = case.leaves(torch.float32)
    value = case(*leaves)
    value.mul_(2.0)
    once = torch.autograd.grad(value.sum(), leaves, retain_graph=True, materialize_grads=True)
    again = torch.autograd.grad(value.sum(), leaves, materialize_grads=True)
    for mine, other, wanted in zip(once, again, gradients(case, leaves), strict=True):
        assert torch.equal(mine, other)
        assert torch.equal(mine, 2 * wanted)


@EVERY
def test_rows_edited_before_the_backward_pass_are_refused_or_make_no_difference(case):
    leaves = case.leaves(torch.float32)
    expected = gradients(case, leaves)
    inputs = [leaf.clone() for leaf in leaves]
    value = case(*inputs)
    with torch.no_grad():
        inputs[0].mul_(3.0)
    try:
        found = torch.autograd.grad(value.sum(), inputs, materialize_grads=True)
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)  # noqa: PT017
        return
    for mine, wanted in zip(found, expected, strict=True):
        assert torch.equal(mine, wanted)


@pytest.fixture
def unwritten_memory_is_nan():
    """Fill what torch.empty returns with NaN."""
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@EVERY
@pytest.mark.parametrize("size", [0, 1, 6])
def test_no_unwritten_memory_is_read(case, size, request):
    case = case.shortened(size)
    leaves = case.leaves(torch.float32, size)
    expected, value = gradients(case, leaves), case(*leaves)
    assert value.isfinite().all()
    request.getfixturevalue("unwritten_memory_is_nan")
    assert torch.empty(3).isnan().all()
    assert torch.equal(case(*leaves), value)
    with torch.no_grad():
        torch.testing.assert_close(case(*leaves), value)
    for mine, wanted in zip(gradients(case, leaves), expected, strict=True):
        assert torch.equal(mine, wanted)


@EVERY
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients_the_value_is_the_same(case, context):
    leaves = case.leaves(torch.float32)
    with context():
        value = case(*leaves)
    torch.testing.assert_close(value, case(*leaves).detach(), rtol=1e-6, atol=1e-7)
    assert not value.requires_grad


@EVERY
@pytest.mark.parametrize("default", [torch.float64, torch.float16], ids=str)
def test_the_default_dtype_changes_no_bit(case, default):
    leaves = case.leaves(torch.float32)
    expected, value = gradients(case, leaves), case(*leaves)
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        assert torch.equal(case(*leaves), value)
        found = gradients(case, leaves)
    finally:
        torch.set_default_dtype(before)
    for mine, wanted in zip(found, expected, strict=True):
        assert torch.equal(mine, wanted)
