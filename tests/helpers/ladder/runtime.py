"""Where kernels run in this process: on a GPU if there is one, interpreted if asked for, or not."""

import importlib
from types import ModuleType

import pytest
import torch
import triton

from ladder import interpreter
from ladder.stub import StubDriver

INTERPRETING = interpreter.is_interpreting()
DEVICE = "cpu" if INTERPRETING else "cuda"

if INTERPRETING:
    interpreter.harden()
    # Launchers ask the driver for the architecture, to choose a tile; the interpreter has no other.
    triton.runtime.driver.set_active(StubDriver("sm_80"))

needs_kernels = pytest.mark.skipif(
    not INTERPRETING and not torch.cuda.is_available(),
    reason="kernels run on a GPU, or with TRITON_INTERPRET=1 (make test does both halves)",
)
needs_interpreter = pytest.mark.skipif(
    not INTERPRETING, reason="looks into the interpreter: run with TRITON_INTERPRET=1"
)


def kernels(module: str) -> ModuleType:
    """Import a module of the kernels as they are; mutants offer the same call."""
    return importlib.import_module(f"cossim_fast.kernels.{module}")
