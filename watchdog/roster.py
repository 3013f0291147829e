"""The peers of a server: who they are by the volume, and who of them was seen lately by the device."""

from __future__ import annotations

import json
import os
import socket

from init_wg.kernel import forwarding
from init_wg.kernel.netlink import NETLINK_ROUTE, Socket
from init_wg.model.serving import FILE, SEEN

from . import facts
from .web.metrics import Served

TYPE_CHECKING = False
if TYPE_CHECKING:
    from init_wg.model.wireguard import Reading


class Kernel(facts.Kernel):
    """For a server: which links forward is a fact, and where a peer comes from is its own business."""

    def __init__(self, interface: str) -> None:
        super().__init__(interface)
        #: The device at the last look, None when there was none.
        self.reading: Reading | None = None

    def fingerprint(self) -> facts.Fingerprint:
        """Everything that decides where packets go. Raises OSError."""
        seen = super().fingerprint()
        with Socket(NETLINK_ROUTE) as kernel:
            forwards = hash((forwarding.links(kernel), forwarding.ipv6()))
        return seen._replace(device=_told(self.reading), forwarding=forwards)

    def device(self) -> Reading | None:
        """As every Kernel."""
        self.reading = super().device()
        return self.reading


def _told(reading: Reading | None) -> int:
    """Everything the device is told."""
    if reading is None:
        return 0
    device = reading.device
    return hash(device._replace(peers=frozenset(peer._replace(endpoint=None) for peer in device.peers)))


class Roster:
    """folder: the volume. It is read again after each run, and the setup complains of it."""

    def __init__(self, kernel: Kernel, folder: str) -> None:
        self._kernel = kernel
        self._path = os.path.join(folder, FILE)
        self._inactive = 0
        #: By public key.
        self.known: dict[str, facts.Known] = {}

    def read(self) -> None:
        """The volume, as it is now. The keys in it are not kept."""
        try:
            with open(self._path, encoding="utf-8") as file:
                whole = json.load(file)
            peers, networks = whole["peers"], whole["networks"]
            self.known = {peer["public_key"]: _known(name, peer, networks) for name, peer in peers.items()}
            self._inactive = sum(not peer["active"] for peer in peers.values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
            self.known, self._inactive = {}, 0

    def counts(self, wall: float) -> Served:
        """By the last look. wall: Unix seconds."""
        sessions = self._kernel.reading.traffic.values() if self._kernel.reading else ()
        seen = sum(each.latest_handshake > wall - SEEN for each in sessions)
        return Served(len(sessions), seen, self._inactive)


def _known(name: str, peer: dict[str, int], networks: list[str]) -> facts.Known:
    return facts.Known(name, tuple(_address(network, peer["number"]) for network in networks))


def _address(network: str, number: int) -> str:
    """Of this number in the network; as `ipaddress` has it, without its megabyte."""
    first = network.partition("/")[0]
    family, size = (socket.AF_INET6, 16) if ":" in first else (socket.AF_INET, 4)
    value = int.from_bytes(socket.inet_pton(family, first), "big") + number
    return socket.inet_ntop(family, value.to_bytes(size, "big"))
