"""A plugin: every public function runs under another default dtype or device, tests do not.

    DEFAULT=float16 pytest -p under_defaults tests/functional     (or float64, bfloat16, meta)

What a test makes is as ever, so that it says the same of the package; what the package makes
without naming dtype and device is not. It is all the difference that a default may make.
"""

import contextlib
import functools
import importlib
import inspect
import os
import pkgutil
import sys
import threading

import torch

import cossim_fast
from cossim_fast import cli, diagnose, files, integrations

DEFAULT = os.environ.get("DEFAULT", "float16")
_CLASSES = {
    cossim_fast.CosineIndex: ("add", "remove", "search", "range_search", "save", "explain"),
    diagnose.CollapseMonitor: ("observe", "compare"),
}
_FUNCTIONS = (
    cossim_fast.cosine_similarity,
    cossim_fast.pairwise_cosine,
    cossim_fast.topk,
    cossim_fast.pairs_above,
    cossim_fast.deduplicate,
    cossim_fast.communities,
    cossim_fast.explain,
    diagnose.pair,
    diagnose.embeddings,
    files.load,
    files.load_column,
    cli.main,
)
_lock, _inside, _here = threading.Lock(), [], threading.local()


@contextlib.contextmanager
def other_default():
    """The default, restored when the last of several threads leaves."""
    if DEFAULT == "meta":
        with torch.device("meta"):
            yield
        return
    with _lock:
        if not _inside:
            torch.set_default_dtype(getattr(torch, DEFAULT))
        _inside.append(None)
    try:
        yield
    finally:
        with _lock:
            _inside.pop()
            if not _inside:
                torch.set_default_dtype(torch.float32)


def under(function):
    """A function under the other default; traced and compiled it is the function alone."""

    @functools.wraps(function)
    def call(*args, **kwargs):
        traced = torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
        # A default device is a mode, which calls the function that it was given once more.
        if traced or getattr(_here, "set", False):
            return function(*args, **kwargs)
        _here.set = True
        try:
            with other_default():
                return function(*args, **kwargs)
        finally:
            _here.set = False

    return call


def pytest_configure():
    """Put the functions in place, before any test imports one."""
    for found in pkgutil.iter_modules(cossim_fast.__path__, "cossim_fast."):
        if found.name not in ("cossim_fast.kernels", "cossim_fast.cli"):
            importlib.import_module(found.name)
    wrapped = {id(function): under(function) for function in _FUNCTIONS}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "cossim_fast":
            for key, value in list(vars(module).items()):
                if id(value) in wrapped:
                    setattr(module, key, wrapped[id(value)])
    for kind, names in {**_CLASSES, **_adapters()}.items():
        for name in names:
            method = inspect.getattr_static(kind, name)
            setattr(kind, name, under(method))
        kind.__init__ = under(kind.__init__)


def _adapters():
    """Classes of the adapters whose libraries are here, with their public methods.

    Their functions are put in place as they are found.
    """
    classes = {}
    for found in pkgutil.iter_modules(integrations.__path__, integrations.__name__ + "."):
        try:
            module = importlib.import_module(found.name)
        except ModuleNotFoundError:
            continue
        for key, value in list(vars(module).items()):
            if key.startswith("_") or getattr(value, "__module__", None) != found.name:
                continue
            # That one is told by its identity, where it is the score of a search.
            if inspect.isfunction(value) and key != "cos_sim":
                setattr(module, key, under(value))
            elif inspect.isclass(value):
                methods = {n for n, m in vars(value).items() if inspect.isfunction(m)}
                classes[value] = [name for name in methods if not name.startswith("_")]
    return classes
