"""What is here runs inside the guest only: ../test_kernel.py boots one and runs all of it. For a part:

.venv/bin/python -m tests.kernel.guest -- .venv/bin/python -m pytest tests/kernel/inside -k NAME
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.kernel.inside.shell import sh

if TYPE_CHECKING:
    from tests.lab.judge import Judge
    from tests.lab.lab import Lab
    from tests.lab.probes import Probes

inside = os.environ.get("INIT_WG_GUEST") == "1"
collect_ignore_glob = [] if inside else ["test_*.py"]

PATIENCE = 300  # seconds until something is a failure: the host may be busy, and this machine is emulated on it
RATE = 100  # attempts per second, at most
OTHER_PORT = 51830  # where a provider may listen, too

# A kind for each way out, in both families; tests/netns has all of them.
KINDS = """
tcp-connect udp-unconnected udp-connected icmp-echo dns-public source-udp endpoint-udp
device-udp device-tcp device-icmp pktinfo-udp mark-udp mark-device-udp
packet-udp packet-mark-udp packet-stamp-udp
""".split()  # noqa: SIM905 (a list that people edit)


class Stage(NamedTuple):
    """A lab with probes in its pod, and the judge on its node: one for all tests, to build one takes a while.

    The probes rest but for fire(): here they would leave little time for anything else.
    """

    lab: Lab
    judge: Judge
    probes: Probes

    @contextmanager
    def fire(self) -> Iterator[None]:
        """Everything is tried, at least once, and until the end of this block."""
        (prober,) = self.probes.running
        prober.send_signal(signal.SIGCONT)
        try:
            before, _ = self.probes.counts()
            yield
            self._all_tried_since(before)
        finally:
            prober.send_signal(signal.SIGSTOP)

    def _all_tried_since(self, before: Counter[str]) -> None:
        deadline = time.monotonic() + PATIENCE
        while any(self.probes.counts()[0][name] == before[name] for name in self.probes.names):
            assert time.monotonic() < deadline, "the probes stand still"
            time.sleep(0.1)  # asking takes their time

    def try_everything(self) -> None:
        with self.fire():
            pass

    def nothing_leaked(self, spares: frozenset[str] = frozenset()) -> None:
        """Since the last time."""
        verdict = self.judge.verdict()
        assert not [leak for leak in verdict.leaks if leak.kind not in spares], str(verdict)


@pytest.fixture(scope="session")
def bare() -> Iterator[Stage]:
    """A pod that nobody has touched."""
    from tests.lab.judge import Judge, for_lab
    from tests.lab.lab import WIREGUARD_PORT, Endpoint, Lab
    from tests.lab.probes import Probes

    with Lab() as lab:
        endpoints = [
            Endpoint(address, port)
            for provider in (lab.provider, lab.provider2)
            for address in provider.addresses.values()
            for port in (WIREGUARD_PORT, OTHER_PORT)
        ]
        rules = for_lab(lab, endpoints=endpoints)
        with Judge(lab, rules) as judge, Probes(lab, KINDS, rate=RATE, loose=False) as probes:
            probes.running[0].send_signal(signal.SIGSTOP)
            yield Stage(lab, judge, probes)


@pytest.fixture(scope="session")
def protected(bare: Stage) -> Stage:
    """The same pod, sealed and set up under fire."""
    bare.lab.init_wg("lockdown", timeout=PATIENCE)
    bare.judge.mark()
    with bare.fire():
        bare.lab.init_wg("up", timeout=PATIENCE)
    bare.try_everything()
    bare.nothing_leaked()
    return bare


@pytest.fixture
def stage(protected: Stage) -> Stage:
    """The protected pod, with the provider's own file, whatever the test before has left."""
    from tests.kernel.inside import product

    lab = protected.lab
    before = lab.config_path.read_text()
    if lab.config().read_text() != before:
        product.run(lab, "up")
    protected.judge.mark()
    return protected


@pytest.fixture
def pair() -> Iterator[tuple[str, str]]:
    """Two network namespaces with a cable between them.

    left: cable 192.0.2.1, 2001:db8::1 ─────── right: cable 192.0.2.2, 2001:db8::2
    """
    names = ("left", "right")
    for name in names:
        sh(f"ip netns add {name}; ip -n {name} link set lo up")
    sh("ip link add cable netns left type veth peer name cable netns right")
    for number, name in enumerate(names, 1):
        sh(f"ip -n {name} address add 192.0.2.{number}/24 dev cable")
        sh(f"ip -n {name} address add 2001:db8::{number}/64 dev cable nodad")
        sh(f"ip -n {name} link set cable up")
    yield names
    sh("ip -n left link delete cable")  # now, and not when the kernel finds the time for a whole namespace
    sh("ip netns delete left; ip netns delete right")
