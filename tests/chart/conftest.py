"""Helm's library: named when it is absent, and a failure where CI is set."""

from __future__ import annotations

import pytest

from tests.chart import helm
from tests.lab.needs import demand


@pytest.fixture(scope="session", autouse=True)
def tools() -> None:
    demand("the chart's suite", helm.NEEDS)
