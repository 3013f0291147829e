"""The cluster that all tests share, and what is said where there can be none."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.containers import engine
from tests.lab.needs import demand

from . import build
from .capture import JUDGED
from .cluster import Cluster


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What all captures came to."""
    if JUDGED:
        judged = f"{JUDGED['allowed'] + JUDGED['leaked']:,} packets of pods judged on the node"
        terminalreporter.write_line(f"{judged}: {JUDGED['leaked']} leaked (controls: {JUDGED['control']:,} in clear)")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """One node's Kubernetes with all images. What is missing is named, and fails where CI is set."""
    demand("the cluster's suite", engine.NEEDS, build.NEEDS)
    # A shell without job control makes what it runs in the background ignore this, and all that is started from there.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with Cluster() as running:
        yield running
