"""What the modules of all losses have in common."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

# Arguments that a repr leaves out.
_UNSAID = ("precision", "group")


class LossModule(nn.Module):
    """Keeps the arguments of a loss, and hands them to its function.

    A tensor that is an ``nn.Parameter`` is learned; another is a buffer.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self._options = tuple(options)
        for name, value in options.items():
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def options(self) -> dict[str, Any]:
        """The arguments as they are now, by name."""
        return {name: getattr(self, name) for name in self._options}

    def extra_repr(self) -> str:
        """Show the arguments in the module's repr."""
        shown = {name: value for name, value in self.options().items() if name not in _UNSAID}
        texts = {n: repr(v) if isinstance(v, str) else str(v) for n, v in shown.items()}
        return ", ".join(f"{name}={text}" for name, text in texts.items())
