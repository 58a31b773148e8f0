"""What every test file shares: one hypothesis profile, the process's settings, tiny blocks."""

import importlib
import importlib.util
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import pytest
import torch
import torch.testing._internal.common_utils  # loads a profile of its own: ours comes after it

import arithmetic
from cossim_fast import _fp32_setting

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


# What measures memory or time runs in one process, one test after the other.
MEASURING = {
    "test_bench_busy.py", "test_bench_run.py", "test_index_files.py",
    "test_loss_memory.py", "test_memory.py", "test_memory_growth.py",
}  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep tests that measure out of each other's way where tests run in parallel."""
    for item in items:
        if item.path.name in MEASURING:
            item.add_marker(pytest.mark.xdist_group("measuring"))


def pytest_sessionstart() -> None:
    """Refuse to interpret kernels by a Triton that the ladder does not know: once, not a file."""
    # What a shell starts in the background ignores Ctrl-C, which tests send.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if os.environ.get("TRITON_INTERPRET") and importlib.util.find_spec("triton"):
        import triton

        from ladder import interpreter

        try:
            interpreter.check_version(triton.__version__)
        except interpreter.UnknownTritonError as error:
            raise pytest.UsageError(str(error)) from None


def _process_settings() -> dict[str, Any]:
    return {
        "float32 matmul precision": torch.get_float32_matmul_precision(),
        "mkldnn matmul precision": _fp32_setting.get("mkldnn"),
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


@pytest.fixture(autouse=True)
def _processors_do_not_limit_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests of several threads run as many as they ask torch for, on any machine."""
    monkeypatch.setattr("cossim_fast._threads.processors", lambda: 64)


BLOCKED_MODULES = [
    importlib.import_module(f"cossim_fast.{name}")
    for name in (
        "_cpu.blocks",
        "_cpu.rows",
        "_cpu.units",
        "_cpu.products",
        "_cpu.narrow",
        "_cpu.matrix",
        "_cpu.gradients",
        "_cpu.matrix_gradients",
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


@pytest.fixture
def processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Multiply as a kind of processor does, for tests with `every_processor`; return its name."""
    name: str = request.param
    arithmetic.become(monkeypatch, name)
    return name


@pytest.fixture
def int8_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let int8 come first: with this processor's product, or a model where that is of no use."""
    arithmetic.become(monkeypatch, arithmetic.PROCESSORS[-1])


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Two threads of torch, whatever the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
