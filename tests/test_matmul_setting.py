"""The process's float32 product setting: ignored by us, and found again as it was left."""

import threading

import pytest
import torch

from cossim_fast import _dtypes, _fp32_setting, pairwise_cosine
from old_torch import needs_backend_settings


def setting() -> str:
    return _fp32_setting.get("mkldnn")


def put(value: str) -> None:
    _fp32_setting.set("mkldnn", value)


def put_on_all(value: str) -> None:
    # What torch.backends.fp32_precision = value does, but for torch's own test helpers, which
    # lock torch.backends once they are imported.
    torch._C._set_fp32_precision_setter("generic", "all", value)


@pytest.fixture(autouse=True)
def _restore_settings():
    yield
    if _fp32_setting.PER_BACKEND:
        put_on_all("none")
    put("none")


@pytest.mark.parametrize("found", ["none", "ieee", "tf32", "bf16"])
@pytest.mark.parametrize(
    ("precision", "during"),
    [("highest", ("none", "ieee")), ("high", ("tf32",)), ("medium", ("bf16",))],
)
def test_products_run_at_the_precision_asked_for(found, precision, during):
    put(found)
    before = setting()
    with _dtypes.cpu_products(precision):
        assert setting() in during
    assert setting() == before


@needs_backend_settings
def test_an_inherited_setting_stays_inherited():
    put_on_all("tf32")
    assert setting() == "tf32"
    pairwise_cosine(torch.randn(3, 4), torch.randn(5, 4))
    assert setting() == "tf32"
    put_on_all("ieee")
    assert setting() == "ieee"


def test_the_most_demanding_thread_decides_and_the_last_restores():
    put("bf16")
    inside, leave = threading.Event(), threading.Event()

    def demanding() -> None:
        with _dtypes.cpu_products("highest"):
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=demanding)
    with _dtypes.cpu_products("medium"):
        assert setting() == "bf16"
        thread.start()
        assert inside.wait(60)
        assert setting() == "ieee"
    assert setting() == "ieee"
    leave.set()
    thread.join()
    assert setting() == "bf16"


def test_an_error_inside_restores_the_setting():
    put("tf32")
    with pytest.raises(KeyError), _dtypes.cpu_products("highest"):
        raise KeyError
    assert setting() == "tf32"
