"""The daemon that the container tests share, and what is said where there can be none."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from .engine import Engine, missing


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """A Docker daemon with both images built. What is missing is named, and fails where CI is set."""
    if lacking := missing():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"the container suite needs {lacking}")
    with Engine() as running:
        _ = running.images
        yield running
