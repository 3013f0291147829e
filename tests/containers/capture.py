"""What leaves the stack's network, counted on the daemon's side, where no container reaches.

One tcpdump on every interface of the daemon's network, begun before the daemon itself: nothing has to be there yet,
and what goes away and comes back (a container's link, the bridge) is not missed. What the packets mean is decided by
the judge of tests/lab. Counted are frames that come in from the stack's containers, known by their Ethernet addresses,
which Docker derives from their IP addresses. A frame is seen on the container's link, and again on the bridge.
"""

from __future__ import annotations

import signal
import struct
import subprocess
import tempfile
import time
from ipaddress import IPv4Network, ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.lab.judge import OUTGOING, SNAPLEN, Rules, Verdict, segment_of
from tests.lab.pcap import packets, require_complete, wait_for_start

if TYPE_CHECKING:
    from .engine import Engine

DOCKER_PREFIX = b"\x02\x42"


class Capture:
    """From `with` to its end, in one boot of the engine. verdict() may be asked as often as one likes."""

    def __init__(self, engine: Engine, network: IPv4Network, gateway: str, endpoint: tuple[str, int]) -> None:
        self.engine = engine
        self.network = network
        self.gateway = gateway
        self.endpoint = endpoint
        self.forgiven: list[bytes] = []

    def __enter__(self) -> Self:
        self.folder = tempfile.TemporaryDirectory(prefix="init-wg-capture-")
        self.file = Path(self.folder.name) / "pcap"
        self.errors = Path(self.folder.name) / "errors"
        argv = ["tcpdump", "-i", "any", "-y", "LINUX_SLL2", "-p", "-n", "-s", str(SNAPLEN), "-B", "32768"]
        argv += ["--immediate-mode", "-U", "-Z", "root", "-w", str(self.file)]
        with self.errors.open("wb") as errors:
            self.tcpdump = subprocess.Popen([*self.engine.enter, *argv], stderr=errors, stdout=subprocess.DEVNULL)
        wait_for_start(self.tcpdump, self.errors)
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self.folder.cleanup()

    def end(self) -> None:
        """Stop, and be sure that nothing was lost. A power failure ends tcpdump too, and it is reaped here."""
        if self.tcpdump.poll() is None:
            self.tcpdump.send_signal(signal.SIGINT)
        if self.tcpdump.wait(20) < 0:
            return
        require_complete(self.errors)

    def forgive(self, address: str) -> None:
        """A container of this address was not the stack's."""
        self.forgiven.append(ip_address(address).packed)

    def verdict(self, since: float = 0.0) -> Verdict:
        """Everything that came from the stack's containers since then (Unix seconds), judged."""
        time.sleep(0.2)  # tcpdump writes each packet at once, but takes them from the kernel in blocks
        rules = Rules(
            endpoints=[self.endpoint],
            on_link=[self.network],
            sources=[self.network],
            bypass=[self.network],
            clients=[self.gateway],
            ports={},
            resolvers={},
            allow_returns=True,
        )
        verdict = Verdict()
        for moment, packet in packets(self.file.read_bytes()):
            self._packet(rules, verdict, moment, packet, since)
        return verdict

    def _packet(self, rules: Rules, verdict: Verdict, moment: float, packet: bytes, since: float) -> None:
        protocol, direction, length = struct.unpack_from("!H8xBB", packet)
        sender, data = packet[12 : 12 + length], packet[20:]
        if direction == OUTGOING:
            if segment := segment_of(protocol, data):
                rules.seen_inbound(segment)
            return
        if sender[:2] != DOCKER_PREFIX or ip_address(sender[2:6]) not in self.network:
            return
        if sender[2:6] in self.forgiven:
            return
        rules.weigh(verdict, moment, protocol, data, counts=moment >= since)
