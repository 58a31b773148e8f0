"""Optional packages, imported at first use."""

import importlib
from types import ModuleType


def require(name: str, *, extra: str) -> ModuleType:
    """Import ``name``, or say which extra of cossim_fast installs it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # A package that is there but broken inside is not ours to explain.
        if error.name is None or not (name + ".").startswith(error.name + "."):
            raise
        raise ModuleNotFoundError(
            f"expected the package {name!r} to be installed, and it is not; "
            f"install it with: pip install 'cossim_fast[{extra}]'",
            name=error.name,
        ) from error
