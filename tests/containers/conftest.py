"""The daemon that the container tests share, and what is said where there can be none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.needs import demand

from .engine import NEEDS, Engine


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """A Docker daemon with both images built. What is missing is named, and fails where CI is set."""
    demand("the container suite", NEEDS)
    with Engine() as running:
        _ = running.images
        yield running
