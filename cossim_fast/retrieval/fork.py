"""What a forked child has to do without: the threads of its parent, and what they held."""

from __future__ import annotations

import os
import weakref
from typing import Protocol

import torch

# The process whose threads were last seen to: this one, until a child looks.
_process = os.getpid()


class Forkable(Protocol):
    """Something that is told when it finds itself in a child."""

    def forked(self) -> None:
        """Be fit for use in a child process that was forked."""


_WATCHED: weakref.WeakSet[Forkable] = weakref.WeakSet()


def watch(something: Forkable) -> None:
    """Call its ``forked`` in every child that is forked from now on."""
    _WATCHED.add(something)


def one_thread_after_fork() -> None:
    """Leave OpenMP's threads alone in a forked child, where a wait for them never ends.

    They stay in the parent. torch's own DataLoader does the same in its workers. It is done once
    in a child: one whose parent had started no threads may set their number again afterwards.
    """
    global _process  # noqa: PLW0603 - the process is one
    if os.getpid() != _process:
        _process = os.getpid()
        torch.set_num_threads(1)


def _after_fork() -> None:
    for watched in list(_WATCHED):
        watched.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
