"""The process's float32 product setting: ignored by us, and found again as it was left."""

import threading

import pytest
import torch

from cossim_fast import _dtypes, pairwise_cosine


def setting() -> str:
    return torch._C._get_fp32_precision_getter("mkldnn", "matmul")


@pytest.fixture(autouse=True)
def _restore_settings():
    before = torch.backends.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision
    yield
    torch.backends.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision = before


@pytest.mark.parametrize("found", ["none", "ieee", "tf32", "bf16"])
@pytest.mark.parametrize(
    ("precision", "during"),
    [("highest", ("none", "ieee")), ("high", ("tf32",)), ("medium", ("bf16",))],
)
def test_products_run_at_the_precision_asked_for(found, precision, during):
    torch.backends.mkldnn.matmul.fp32_precision = found
    with _dtypes.cpu_products(precision):
        assert setting() in during
    assert setting() == found


def test_an_inherited_setting_stays_inherited():
    torch.backends.fp32_precision = "tf32"
    assert setting() == "tf32"
    pairwise_cosine(torch.randn(3, 4), torch.randn(5, 4))
    assert setting() == "tf32"
    torch.backends.fp32_precision = "ieee"
    assert setting() == "ieee"


def test_the_most_demanding_thread_decides_and_the_last_restores():
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    inside, leave = threading.Event(), threading.Event()

    def demanding() -> None:
        with _dtypes.cpu_products("highest"):
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=demanding)
    with _dtypes.cpu_products("medium"):
        assert setting() == "bf16"
        thread.start()
        assert inside.wait(10)
        assert setting() == "ieee"
    assert setting() == "ieee"
    leave.set()
    thread.join()
    assert setting() == "bf16"


def test_an_error_inside_restores_the_setting():
    torch.backends.mkldnn.matmul.fp32_precision = "tf32"
    with pytest.raises(KeyError), _dtypes.cpu_products("highest"):
        raise KeyError
    assert setting() == "tf32"
