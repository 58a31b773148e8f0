"""What the tests of kernels share."""

from collections.abc import Callable, Iterator

import pytest

from ladder.runtime import kernels


@pytest.fixture
def forgets_choices(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Have `choose_config` choose anew, after a table was changed; and again after the test."""
    forget = kernels("configs").choose_config.cache_clear
    yield forget
    monkeypatch.undo()
    forget()
