"""What every test file shares: one hypothesis profile, the process's settings, tiny blocks."""

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import pytest
import torch
import torch.testing._internal.common_utils  # loads a profile of its own: ours comes after it

hypothesis.settings.register_profile(
    "suite",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=60,
    suppress_health_check=[
        hypothesis.HealthCheck.too_slow,
        hypothesis.HealthCheck.function_scoped_fixture,
    ],
)
hypothesis.settings.load_profile("suite")


def _process_settings() -> dict[str, Any]:
    return {
        "float32 matmul precision": torch.get_float32_matmul_precision(),
        "mkldnn matmul precision": torch.backends.mkldnn.matmul.fp32_precision,
        "default dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "grad mode": torch.is_grad_enabled(),
        "autocast on cpu": torch.is_autocast_enabled("cpu"),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


@pytest.fixture(autouse=True)
def _process_is_left_as_it_was() -> Iterator[None]:
    """No call and no test may leave a setting of the process changed."""
    before = _process_settings()
    yield
    assert _process_settings() == before


BLOCKED_MODULES = [
    importlib.import_module(f"cossim_fast.{name}")
    for name in (
        "_cpu",
        "_cpu_units",
        "_cpu_products",
        "_cpu_narrow",
        "_cpu_matrix",
        "_cpu_gradients",
        "_cpu_matrix_gradients",
        "functional",
    )
]


@pytest.fixture
def set_blocks(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that sets BLOCK, PANEL and their kin in every module that has them."""

    def set_all(**sizes: int) -> None:
        for name, size in sizes.items():
            holders = [module for module in BLOCKED_MODULES if hasattr(module, name)]
            assert holders, f"no module has a constant {name} any more"
            for module in holders:
                monkeypatch.setattr(module, name, size)

    return set_all


@pytest.fixture(params=["small calls as they are", "small calls blocked"])
def small_calls(request: pytest.FixtureRequest, set_blocks: Callable[..., None]) -> None:
    """Run a test twice: small inputs have a path of their own, unless told otherwise."""
    if request.param == "small calls blocked":
        set_blocks(SMALL=-1)
