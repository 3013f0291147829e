"""The leak suite's machine: what it needs, and the labs it shares.

Everything here is real: kernels, WireGuard, nftables, captures. What is missing is named, and fails where CI is set.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.lab.judge import Judge
from tests.lab.lab import NEEDS, Lab, wireguard_go
from tests.lab.needs import demand
from tests.lab.probes import Probes


@pytest.fixture(scope="session", autouse=True)
def machine() -> None:
    """Skip, with the reason, where no lab can be built; under CI that is a failure."""
    demand("the leak suite", NEEDS)
    # A shell without job control makes what it runs in the background ignore this, and all that is started from there.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(f"wireguard-go of the labs: {wireguard_go()}")


@pytest.fixture
def plain() -> Iterator[Lab]:
    """A new lab whose pod nobody has touched."""
    with Lab() as lab:
        yield lab


@pytest.fixture(scope="module")
def protected() -> Iterator[tuple[Lab, Judge, Probes]]:
    """A pod that was sealed and set up under fire: the probes are older than the lockdown, and still running."""
    with Lab() as lab, Judge(lab) as judge, Probes(lab) as probes:
        lab.init_wg("lockdown")
        judge.mark()
        lab.init_wg("up")
        yield lab, judge, probes
