"""What the adapters' tests share."""

from collections.abc import Iterator

import pytest

from ranks import Ranks


@pytest.fixture(scope="session", params=[2, 3])
def ranks(request: pytest.FixtureRequest) -> Iterator[Ranks]:
    """Processes that talk to each other; libraries' losses talk to all that there are."""
    with Ranks(request.param) as some:
        yield some
