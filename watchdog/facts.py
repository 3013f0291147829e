"""The seam to the kernel: what the watchdog knows of the tunnel, read cheaply and without changing anything.

A fingerprint is a number for each kind of thing that decides where packets go. It tells whether
anything changed since the setup was last found right, in about a millisecond; what the right state is, only
`init_wg` knows. It keeps no fact between calls, so that none can be stale.
"""

# Paths as plain strings: pathlib costs a megabyte here, for good.

from __future__ import annotations

import os
import socket
import struct
from typing import NamedTuple

from init_wg.config import serverfiles
from init_wg.kernel import device as wireguard
from init_wg.kernel.netlink import (
    NETLINK_NETFILTER,
    NETLINK_ROUTE,
    Socket,
    generation,
    number,
    text,
)
from init_wg.kernel.sealed import TABLE
from init_wg.kernel.walk import attribute, attribute_list, attributes
from init_wg.model import server as marks
from init_wg.model.state import RECORD_TABLE, TUN
from init_wg.model.wireguard import base64, from_base64, renewal, show_endpoint

from .peer_health import PeerFacts
from .web.metrics import PeerMetrics

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from init_wg.model.state import Peer
    from init_wg.model.wireguard import Reading

# linux/rtnetlink.h, linux/netfilter/nf_tables.h
_GET_LINK, _GET_ADDRESS, _GET_ROUTE, _GET_RULE = 18, 22, 26, 34
_NFTABLES, _GET_RULES = 10 << 8, 7
_INET = 1
_CLONED = 0x200
#: Attributes that change by themselves: IFA_CACHEINFO, IFA_FLAGS (tentative, deprecated); RTA_CACHEINFO.
_ADDRESS_NOISE, _ROUTE_NOISE = frozenset((6, 8)), frozenset((12,))
#: Of a link: IFLA_IFNAME, IFLA_MTU, IFLA_MASTER. Counters and timers are left out.
_LINK_FACTS = (3, 4, 10)
_UP = 1
_UNREACHABLE = 7  # RTN_UNREACHABLE
_MARK = socket.inet_aton(marks.DESTINATION.partition("/")[0])
_SKIP_STATISTICS = struct.pack("=HHI", 8, 29, 1 << 3)  # IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS

_LARGEST_FILE = 1 << 20
#: Seconds that wireguard-go has for an answer, which takes it a millisecond.
PATIENCE = 0.25


class Fingerprint(NamedTuple):
    """One number for each kind; equal numbers mean that nothing of the kind changed. forwarding: in server mode."""

    links: int
    addresses: int
    routes: int
    rules: int
    firewall: int
    device: int
    forwarding: int = 0

    def differences(self, other: Fingerprint) -> tuple[str, ...]:
        """The names of what differs, for people and for metrics."""
        return tuple(name for name, mine, theirs in zip(self._fields, self, other, strict=True) if mine != theirs)


class Known(NamedTuple):
    """A peer of a server, as its volume has it."""

    name: str
    addresses: tuple[str, ...]


class Kernel:
    """Reads the network namespace this process lives in. interface: the tunnel's."""

    def __init__(self, interface: str) -> None:
        self.interface = interface
        self.kind = ""
        self._last: Reading | None = None
        self._missed = False
        #: The number of the server that is set up (see init_wg.model.server), 0 when none is; by the last fingerprint.
        self.server = 0

    def fingerprint(self) -> Fingerprint:
        """Everything that decides where packets go. Raises OSError."""
        with Socket(NETLINK_ROUTE) as kernel:
            links = self._links(kernel.dump(_GET_LINK, bytes(16) + _SKIP_STATISTICS))
            addresses = _digest(map(_address, kernel.dump(_GET_ADDRESS, bytes(8))))
            listed = kernel.dump(_GET_ROUTE, bytes(12))
            routes, self.server = _digest(map(_route, listed)), _marked(listed)
            rules = _digest(kernel.dump(_GET_RULE, bytes(12)))
        return Fingerprint(links, addresses, routes, rules, generation(), settings_number(self.device()))

    def device(self) -> Reading | None:
        """WireGuard's own settings and counters; None when there is no tunnel, or a second time in a row no answer.

        Raises OSError. It waits 0.25 s at most: everything else waits meanwhile.
        """
        reading = wireguard.read(self.interface, self.kind, PATIENCE) if self.kind else None
        if reading is None and self.kind == TUN and not self._missed:
            self._missed = True  # a busy machine, perhaps
            return self._last
        self._missed = self._missed and reading is None
        self._last = reading
        return reading

    def _links(self, dump: list[bytes]) -> int:
        self.kind = ""
        seen = []
        for data in dump:
            found = attributes(data, 16)
            _, kind, index, flags, _ = struct.unpack_from("=BxHiII", data)
            if text(found.get(3, b"")) == self.interface:
                self.kind = text(attributes(found.get(18, b"")).get(1, b"")) or "other"
            seen.append((kind, index, flags & _UP, *(found.get(each) for each in _LINK_FACTS)))
        return hash(frozenset(seen))


def _digest(parts: Iterable[bytes]) -> int:
    """One number for many byte strings, whatever their order: the kernel's own order is not a fact."""
    return sum(map(hash, parts)) & 0xFFFFFFFFFFFFFFFF


def _address(data: bytes) -> bytes:
    return data[:2] + data[3:8] + _without(data, 8, _ADDRESS_NOISE)  # the third byte is flags


def _route(data: bytes) -> bytes:
    # An exception that the kernel has learnt (a path's MTU, a redirect) is no route of anybody's, and ages.
    if struct.unpack_from("=I", data, 8)[0] & _CLONED:
        return b""
    # IPv4's routes carry nothing that changes by itself, and there may be ten thousand of them.
    return data if data[0] == socket.AF_INET else data[:12] + _without(data, 12, _ROUTE_NOISE)


def _marked(routes: Iterable[bytes]) -> int:
    """The server that is set up, by its route (init_wg.model.server); 0 without one."""
    for data in routes:
        if data[7] == _UNREACHABLE and data[0] == socket.AF_INET and data[1] == 32:
            found = attributes(data, 12)
            if number(found.get(15, b"")) == RECORD_TABLE and found.get(1) == _MARK:  # RTA_TABLE, RTA_DST
                return number(found.get(6, b""))  # RTA_PRIORITY
    return 0


def _without(data: bytes, header: int, noise: frozenset[int]) -> bytes:
    return b"".join(
        kind.to_bytes(2, "big") + value for kind, value in attribute_list(data, header) if kind not in noise
    )


def settings_number(reading: Reading | None) -> int:
    """Everything a device is told, without what it counts."""
    return 0 if reading is None else hash(reading.device)


def counters(chain: str, table: str = TABLE) -> tuple[int, ...]:
    """Packets counted by a chain of the kill-switch, or of another table of the inet family, by its rules in their
    order; () when there is none.

    "refuse": all that was refused, TCP and then everything else; "refuse_name": DNS among it; "names": queries that
    were redirected. Read as nft does (NFTA_RULE_EXPRESSIONS, "counter"). Raises OSError.
    """
    body = bytes([_INET, 0, 0, 0]) + attribute(1, table.encode() + b"\0") + attribute(2, chain.encode() + b"\0")
    try:
        with Socket(NETLINK_NETFILTER) as kernel:
            rules = kernel.dump(_NFTABLES | _GET_RULES, body)
    except FileNotFoundError:
        return ()
    counted = []
    for rule in rules:
        found = attributes(rule, 4)
        if text(found.get(2, b"")) != chain or text(found.get(1, b"")) != table:
            continue  # kernels before 5.8 ignore the chain in the question
        for _, expression in attribute_list(found.get(4, b"")):
            parts = attributes(expression)
            if text(parts.get(1, b"")) == "counter":
                counted.append(int.from_bytes(attributes(parts.get(2, b"")).get(2, b""), "big"))
    return tuple(counted)


def carrier(reading: Reading | None) -> PeerFacts | None:
    """The peer whose life is the tunnel's: the one to which most is routed.

    With several peers the others may be idle or away without anything being wrong with the egress.
    """
    if reading is None or not reading.device.peers:
        return None
    peer = min(reading.device.peers, key=_reach)
    traffic = reading.traffic[peer.public_key]
    return PeerFacts(
        public_key=peer.public_key,
        endpoint=show_endpoint(peer.endpoint),
        last_handshake=int(traffic.latest_handshake),
        received=traffic.received_bytes,
        sent=traffic.sent_bytes,
    )


def carried(reading: Reading | None) -> tuple[int, int]:
    """Bytes received from and sent to all peers since the device was made."""
    traffic = reading.traffic.values() if reading else ()
    return sum(each.received_bytes for each in traffic), sum(each.sent_bytes for each in traffic)


def routed(reading: Reading | None) -> tuple[frozenset[str], frozenset[str]]:
    """The networks that are routed to the carrier, and those of the other peers."""
    if reading is None or not reading.device.peers:
        return frozenset(), frozenset()
    first, *others = sorted(reading.device.peers, key=_reach)
    return first.allowed_ips, frozenset(network for peer in others for network in peer.allowed_ips)


def covered(reading: Reading | None) -> frozenset[str]:
    """The families, "IPv4" and "IPv6", of which everything is routed to a peer."""
    networks = {network for peer in reading.device.peers for network in peer.allowed_ips} if reading else set()
    whole = {"IPv4": ("0.0.0.0/0", "0.0.0.0/1 128.0.0.0/1"), "IPv6": ("::/0", "::/1 8000::/1")}
    return frozenset(name for name, ways in whole.items() if any(networks.issuperset(way.split()) for way in ways))


def begin_anew(kernel: Kernel, reading: Reading, wall: float) -> bool:
    """Let the carrier begin a handshake now, if it has no session left; returns whether it does. wall: Unix seconds.

    WireGuard itself tries every 5 s only, and gives up after 90. A session of less than 180 s is left alone: a peer
    that comes back may know it still, and then serves it at once. Raises OSError and InitWgError.
    """
    peer = min(reading.device.peers, key=_reach, default=None)
    if peer is None or reading.traffic[peer.public_key].lives(wall):
        return False
    wireguard.write(kernel.interface, kernel.kind, renewal((peer,)), PATIENCE)
    return True


def _reach(peer: Peer) -> tuple[int, str]:
    """Smaller is more: the length of the shortest prefix that is routed to this peer."""
    return min((int(network.rpartition("/")[2]) for network in peer.allowed_ips), default=129), peer.public_key


def files(path: str) -> int:
    """The looks of the config files from outside: an equal number means that nobody changed them.

    stat(2) follows links, so the symlink swap by which the kubelet updates a Secret shows as other inodes.
    """
    folder = serverfiles.split(path)[0] or path
    try:
        paths = [folder + "/" + name for name in sorted(os.listdir(folder)) if not name.startswith(".")]
    except NotADirectoryError:
        # Beside a `wg setconf` file there may be its .address file.
        paths = [path, path.removesuffix(".conf") + ".address"]
    except OSError as error:
        return hash((path, error.errno))
    return hash(tuple(map(file, paths)))


def file(path: str) -> tuple[object, ...]:
    """The same for one file."""
    try:
        status = os.stat(path)
    except OSError as error:
        return (path, error.errno)
    return (path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class Server(NamedTuple):
    """The facts that the watchdog has to know of a server's file: whose it is, and whom to ask through its tunnel."""

    name: str
    public_keys: frozenset[str]
    resolvers: tuple[str, ...]


def servers(path: str) -> tuple[Server, ...]:
    """The servers in the order in which they are tried. init_wg complains of files that cannot be read."""
    try:
        folder, names = serverfiles.listing(path)
    except NotADirectoryError:
        return (_server(path),)
    except OSError:
        return ()
    return tuple(_server(f"{folder}/{name}") for name in names)


def _server(path: str) -> Server:
    keys, resolvers = set(), []
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            lines = file.read(_LARGEST_FILE).splitlines()
    except OSError:
        lines = []
    for line in lines:
        word, _, value = line.partition("#")[0].partition("=")
        word, value = word.strip().lower(), value.strip()
        if word == "publickey":
            keys.add(_spelled(value))
        elif word == "dns":
            resolvers += [each for each in value.replace(",", " ").split() if is_address(each)]
    return Server(os.path.basename(path).removesuffix(".conf"), frozenset(keys), tuple(resolvers))


def _spelled(key: str) -> str:
    """As the device spells it: some programs write bits that no byte has into the last character."""
    try:
        return base64(from_base64(key))
    except ValueError:
        return key


def is_address(host: str) -> bool:
    """An address, rather than a name?"""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except (OSError, ValueError):
            continue
        return True
    return False


def current(known: tuple[Server, ...], mark: int, reading: Reading | None) -> Server | None:
    """The server that is set up: by its number (see init_wg.model.server), else the first with the device's peers."""
    for server in known:
        if marks.number(server.name) == mark:
            return server
    if reading is None:
        return None
    keys = {peer.public_key for peer in reading.device.peers}
    return next((server for server in known if server.public_keys == keys), None)


def peers(reading: Reading | None, known: Mapping[str, Known]) -> tuple[PeerMetrics, ...]:
    """All peers, the tunnel's carrier first. known: what is known of them beside, by public key."""
    if reading is None:
        return ()
    return tuple(
        PeerMetrics(
            public_key=peer.public_key,
            endpoint=show_endpoint(peer.endpoint),
            allowed_ips=tuple(sorted(peer.allowed_ips)),
            latest_handshake=reading.traffic[peer.public_key].latest_handshake,
            received_bytes=reading.traffic[peer.public_key].received_bytes,
            sent_bytes=reading.traffic[peer.public_key].sent_bytes,
            **known[peer.public_key]._asdict() if peer.public_key in known else {},
        )
        for peer in sorted(reading.device.peers, key=_reach)
    )
