"""torch's setting of float32 products, in one set of words whatever the torch."""

import pytest
import torch

from cossim_fast import _fp32_setting, pairwise_cosine
from old_torch import TORCH, needs_backend_settings, set_setting


@pytest.fixture
def before_2_9(monkeypatch):
    """Let the module take this torch for one without a setting for each backend."""
    monkeypatch.setattr(_fp32_setting, "PER_BACKEND", False)
    yield
    _restore()


def _restore():
    torch.set_float32_matmul_precision("highest")
    if TORCH >= (2, 9):
        for backend in ("cuda", "mkldnn"):
            torch._C._set_fp32_precision_setter(backend, "matmul", "none")


def test_each_torch_is_read_by_what_it_has():
    assert (TORCH >= (2, 9)) == _fp32_setting.PER_BACKEND


@pytest.mark.parametrize("word", ["ieee", "tf32", "bf16"])
def test_what_is_set_is_read_again(word):
    found = _fp32_setting.get("mkldnn")
    set_setting("mkldnn", word)
    try:
        assert _fp32_setting.get("mkldnn") == word
    finally:
        set_setting("mkldnn", found)
        _restore()
    assert _fp32_setting.get("mkldnn") in ("none", "ieee")


@needs_backend_settings
@pytest.mark.parametrize("word", ["ieee", "tf32"])
@pytest.mark.parametrize("backend", ["cuda", "mkldnn"])
def test_each_backend_has_its_own(backend, word):
    set_setting(backend, word)
    try:
        found = {b: torch._C._get_fp32_precision_getter(b, "matmul") for b in ("cuda", "mkldnn")}
        assert found.pop(backend) == word
        assert set(found.values()) == {"none"}
    finally:
        _restore()


@pytest.mark.usefixtures("before_2_9")
@pytest.mark.parametrize(
    ("old", "word"), [("highest", "ieee"), ("high", "tf32"), ("medium", "bf16")]
)
def test_old_torch_has_one_setting_for_the_process(old, word):
    torch.set_float32_matmul_precision(old)
    assert _fp32_setting.get("cuda") == _fp32_setting.get("mkldnn") == word


@pytest.mark.usefixtures("before_2_9")
@pytest.mark.parametrize("setting", ["highest", "high", "medium"])
def test_dynamo_takes_the_setting_for_a_constant(setting):
    torch._dynamo.reset()
    torch.set_float32_matmul_precision(setting)
    x, y = torch.randn(2, 9, 40, generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(pairwise_cosine, fullgraph=True, backend="aot_eager")
    expected = torch.nn.functional.cosine_similarity(x[:, None].double(), y[None].double(), dim=-1)
    torch.testing.assert_close(compiled(x, y).double(), expected, rtol=0, atol=1e-6)
    torch._dynamo.reset()
