"""What several of the watchdog's unit tests begin with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.build_watchdog import StillLoop


@pytest.fixture
def loop() -> Iterator[StillLoop]:
    """A clock that the test moves."""
    made = StillLoop()
    yield made
    made.close()
