"""What these tests need, named where it is missing."""

from __future__ import annotations

import pytest

from tests.lab.needs import Needs, demand


@pytest.fixture(scope="session", autouse=True)
def machine() -> None:
    """Skip, with the reason, where there is no Prometheus; under CI that is a failure."""
    demand("the monitoring suite", Needs({"prometheus": "prometheus", "promtool": "prometheus"}))
