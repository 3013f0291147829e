"""What several of the watchdog's unit tests begin with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.unit.build_watchdog import StillLoop

# How long one example takes says how busy the machine is.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


@pytest.fixture
def loop() -> Iterator[StillLoop]:
    """A clock that the test moves."""
    made = StillLoop()
    yield made
    made.close()
