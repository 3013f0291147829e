"""What these tests need, named where it is missing."""

from __future__ import annotations

import os
import shutil

import pytest


@pytest.fixture(scope="session", autouse=True)
def machine() -> None:
    """Skip, with the reason, where there is no Prometheus; under CI that is a failure."""
    if lacking := [name for name in ("prometheus", "promtool") if not shutil.which(name)]:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"missing: {', '.join(lacking)}")
