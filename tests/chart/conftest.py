"""Helm's library: named when it is absent, and a failure where CI is set."""

from __future__ import annotations

import pytest

from tests.chart import helm
from tests.containers import manifests


@pytest.fixture(scope="session", autouse=True)
def tools() -> None:
    if absent := helm.missing():
        (pytest.fail if manifests.in_ci() else pytest.skip)(f"missing: {absent}")
