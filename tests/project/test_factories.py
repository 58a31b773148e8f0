"""Every tensor that the package makes names its device and, where it holds floats, its dtype."""

import ast
from pathlib import Path

import pytest
from torch.utils._device import _device_constructors

import cossim_fast

PACKAGE = Path(cossim_fast.__file__).parent
KERNELS = PACKAGE.parent / "kernels"
SOURCES = {
    f"{folder.name}/{path.relative_to(folder).as_posix()}": path.read_text(encoding="utf-8")
    for folder in (PACKAGE, KERNELS)
    for path in sorted(folder.rglob("*.py"))
}
# What makes a tensor by torch's default device; most by its default dtype too.
FACTORIES = {each.__name__ for each in _device_constructors()} | {"Tensor", "FloatTensor"}
# These hold whole numbers, unless they are given floats.
WHOLE = {"arange", "randint", "randperm", "tril_indices", "triu_indices"}
# By file: what takes the dtype of what a caller gave, and looks at what it got.
ALLOWED = {"cossim_fast/_checks/arrays.py": {"torch.tensor(value, device='cpu')"}}


def _is_whole(call: ast.Call) -> bool:
    """Whether torch makes whole numbers or booleans of what is written there."""
    if call.func.attr == "full" and len(call.args) == 2:
        value = call.args[1]
        value = value.operand if isinstance(value, ast.UnaryOp) else value
        return isinstance(value, ast.Constant) and isinstance(value.value, int)
    return call.func.attr in WHOLE


def trouble(source: str, allowed: frozenset[str] = frozenset()) -> list[str]:
    """Calls that leave a dtype or a device to torch, and factories that come by another name."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "torch":
            hidden = {name.name for name in node.names} & (FACTORIES - {"Tensor"})
            found.extend(f"line {node.lineno}: from torch import {name}" for name in hidden)
        if not (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in FACTORIES
            and ast.unparse(node.func.value) in ("torch", "torch.fft", "torch.nested")
        ):
            continue
        given = {keyword.arg for keyword in node.keywords}
        missing = {"device"} - given
        if not _is_whole(node):
            missing |= {"dtype"} - given
        if missing and ast.unparse(node) not in allowed:
            found.append(
                f"line {node.lineno}: no {', '.join(sorted(missing))}: {ast.unparse(node)}"
            )
    return found


@pytest.mark.parametrize("name", SOURCES)
def test_dtype_and_device_are_named(name):
    assert trouble(SOURCES[name], frozenset(ALLOWED.get(name, ()))) == []


def test_what_is_allowed_is_there():
    for name, calls in ALLOWED.items():
        written = {
            ast.unparse(x) for x in ast.walk(ast.parse(SOURCES[name])) if isinstance(x, ast.Call)
        }
        assert calls <= written


@pytest.mark.parametrize(
    "line",
    [
        "torch.zeros(3)",
        "torch.zeros(3, dtype=torch.float32)",
        "torch.zeros(3, device=x.device)",
        "torch.full((3,), 0.5, device='cpu')",
        "torch.full((3,), n, device='cpu')",
        "torch.arange(3)",
        "torch.tensor([1], device='cpu')",
        "torch.Tensor(3)",
        "from torch import empty",
    ],
)
def test_it_sees_what_is_missing(line):
    assert len(trouble(line)) == 1


@pytest.mark.parametrize(
    "line",
    [
        "torch.zeros(3, dtype=torch.float32, device='cpu')",
        "torch.full((3,), -1, device='cpu')",
        "torch.arange(3, device='cpu')",
        "x.new_zeros(3)",
        "torch.zeros_like(x)",
        "np.zeros(3)",
    ],
)
def test_it_sees_what_is_there(line):
    assert trouble(line) == []
