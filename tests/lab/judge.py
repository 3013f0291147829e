"""The judge: captures on the node's ends of the pod's links, which the pod cannot fool, and names every leak.

Only packets that come from the pod count. Allowed are

- WireGuard to its endpoint: UDP to that address and port, with a message type and a length that WireGuard has;
- ARP and neighbour discovery for what is on the pod's link, or for the endpoint (which says no more than WireGuard's
  own packets do: wireguard-go insists on the link it used before, where a kernel without a route looks for neighbours);
- answers to connections that came in: opened from outside, as the capture saw it, by the node or the far client. What
  another host pushes into a connection that the pod had opened makes nothing an answer;
- queries for an endpoint's name, when the test says that there is one (`lookups`), over TCP only to whom it names
  (`asked_by_tcp`);
- the bypass networks, from the pod's own addresses, but no DNS (ports 53 and 853).

EVERY other packet is a leak: also fragments without a known beginning, unknown protocols, and multicast chatter. A
kernel says MLD and IGMP by itself and they carry no user data, but they tell that somebody is there, and what ought
to be sealed lets nothing out: they count, unless `allow_mld` says otherwise.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import struct
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from . import lab as of
from .lab import LabError
from .probes import tcp_ports
from .services import LOOSE_PORT

if TYPE_CHECKING:
    from .lab import Endpoint, Lab

Network = IPv4Network | IPv6Network

SNAPLEN = 256  # headers, and enough of the payload for a tag
SENTINEL_TYPE = 0x88B5  # "local experimental": nothing else uses it here, no pod answers it
TAG = re.compile(rb"init-wg-probe[:-]([a-z0-9-]+)")

ETH_IP, ETH_ARP, ETH_IPV6 = 0x0800, 0x0806, 0x86DD
ICMP, IGMP, TCP, UDP, ICMP6 = 1, 2, 6, 17, 58
HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION = 0, 43, 44, 60
OUTGOING: Final = 4  # the packet type, in a cooked capture, of what the node itself sends

# A WireGuard message's exact length by type. Data messages (4) are a header, blocks of 16 bytes and a tag; a full one
# is padded up to the tunnel's MTU only, which is any number, but not below what IPv6 asks for.
HANDSHAKE_LENGTHS = {1: 148, 2: 92, 3: 64}
DATA, DATA_MINIMUM, DATA_BLOCK, DATA_FULL = 4, 32, 16, 1280 + 32

DNS_PORTS = (53, 853)


class Segment(NamedTuple):
    """One IP packet, taken apart as far as a verdict needs it. Ports are 0 where there are none."""

    family: int
    source: bytes
    target: bytes
    protocol: int
    source_port: int
    target_port: int
    payload: bytes  # what follows the UDP or TCP header; for ICMP the whole message; else all
    length: int  # of the UDP payload, as its header says: the capture is cut off
    flags: int  # TCP's
    fragment: int | None  # its identification; None: not fragmented
    first: bool  # the packet's beginning: there are ports


@dataclass(frozen=True)
class Leak:
    """A packet that should not have left the pod."""

    time: float
    kind: str
    family: int
    what: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.family}: {self.what}"


@dataclass
class Verdict:
    """What left the pod between two marks."""

    since: float = field(default_factory=time.time)
    leaks: list[Leak] = field(default_factory=list)
    allowed: Counter[str] = field(default_factory=Counter)

    @property
    def leaked(self) -> int:
        return len(self.leaks)

    @property
    def kinds(self) -> Counter[str]:
        """Leaks by kind/family."""
        return Counter(f"{leak.kind}/{leak.family}" for leak in self.leaks)

    def __str__(self) -> str:
        fine = ", ".join(f"{count} {reason}" for reason, count in sorted(self.allowed.items())) or "nothing"
        lines = [f"leaked: {self.leaked}   (allowed: {fine})"]
        for kind, count in self.kinds.most_common():
            example = next(leak for leak in self.leaks if f"{leak.kind}/{leak.family}" == kind)
            after = f"after {example.time - self.since:.4f} s"  # since the mark
            lines.append(f"  {count:6} {kind:24} first {after}: {example.what}")
        return "\n".join(lines)


def show(address: bytes) -> str:
    return str(ip_address(address))


def dissect(family: int, data: bytes) -> Segment | None:
    """Take an IP packet apart. None: it is none, or too short to tell; that is a leak too."""
    fragment: int | None = None
    offset = 0
    try:
        if family == 4:
            head = (data[0] & 15) * 4
            identification, flags = struct.unpack_from("!HH", data, 4)
            if flags & 0x3FFF:  # more fragments, or an offset
                fragment, offset = identification, flags & 0x1FFF
            protocol, source, target = data[9], data[12:16], data[16:20]
        else:
            protocol, source, target, head = data[6], data[8:24], data[24:40], 40
            while protocol in (HOP_BY_HOP, ROUTING, DESTINATION, FRAGMENT):
                if protocol == FRAGMENT:
                    word, fragment = struct.unpack_from("!HI", data, head + 2)
                    offset = word >> 3
                    protocol, head = data[head], head + 8
                    if offset:
                        break
                else:
                    protocol, head = data[head], head + 8 + 8 * data[head + 1]
        if len(target) != (4 if family == 4 else 16):
            return None
        body = data[head:]
        if offset:
            return Segment(family, source, target, protocol, 0, 0, body, 0, 0, fragment, False)
        if protocol == UDP:
            source_port, target_port, length = struct.unpack_from("!HHH", body)
            return Segment(
                family, source, target, protocol, source_port, target_port, body[8:], length - 8, 0, fragment, True
            )
        if protocol == TCP:
            source_port, target_port = struct.unpack_from("!HH", body)
            payload = body[(body[12] >> 4) * 4 :]
            return Segment(
                family, source, target, protocol, source_port, target_port, payload, 0, body[13], fragment, True
            )
        return Segment(family, source, target, protocol, 0, 0, body, 0, 0, fragment, True)
    except (struct.error, IndexError):
        return None


def segment_of(protocol: int, data: bytes) -> Segment | None:
    """The same by EtherType; None also for what is no IP."""
    family = {ETH_IP: 4, ETH_IPV6: 6}.get(protocol)
    return dissect(family, data) if family else None


def is_wireguard(payload: bytes, length: int) -> bool:
    """Could this be a WireGuard message? Its first byte is the type, three zero bytes follow."""
    if payload[1:4] != b"\0\0\0":
        return False
    if payload[0] == DATA:
        return (length >= DATA_MINIMUM and length % DATA_BLOCK == 0) or length >= DATA_FULL
    return HANDSHAKE_LENGTHS.get(payload[0]) == length


def wire_name(name: str) -> bytes:
    """A name as DNS spells it."""
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"


class Rules:
    """Decides about single packets, in the order of the capture. Knows no capture and no lab: see for_lab()."""

    def __init__(
        self,
        *,
        endpoints: Iterable[tuple[str, int]],
        on_link: Iterable[Network],
        sources: Iterable[Network],
        bypass: Iterable[Network],
        clients: Iterable[str],
        ports: dict[tuple[int, int], str],
        resolvers: dict[str, str],
        lookups: Iterable[str] = (),
        asked_by_tcp: Iterable[str] = (),
        allow_mld: bool = False,
        allow_returns: bool = False,
    ) -> None:
        """allow_returns: a network may be new, with an address that the provider knows and no kill-switch yet."""
        self.lookups = [wire_name(name) for name in lookups]
        self.asked_by_tcp = {ip_address(address).packed for address in asked_by_tcp}
        self.endpoints = {(ip_address(address).packed, port) for address, port in endpoints}
        self.clients = {ip_address(address).packed for address in clients}
        self.ports = ports
        self.resolvers = {ip_address(address).packed: kind for address, kind in resolvers.items()}
        self.allow_mld = allow_mld
        self.allow_returns = allow_returns
        self.inbound: set[tuple[int, bytes, int, bytes, int]] = set()
        self.fragments: dict[tuple[bytes, bytes, int | None], str] = {}
        self.on_link = self._member_of(on_link)
        self.own = self._member_of(sources)
        self.bypassed = self._member_of(bypass)

    @staticmethod
    def _member_of(networks: Iterable[Network]) -> Callable[[bytes], bool]:
        known = tuple(networks)

        @lru_cache(maxsize=4096)
        def answer(packed: bytes) -> bool:
            address = ip_address(packed)
            return any(address in network for network in known)

        return answer

    def seen_inbound(self, segment: Segment) -> None:
        """A packet on its way to the pod: remember connections that the lab's own clients open."""
        if segment.source not in self.clients or not segment.first:
            return
        if segment.protocol == TCP and segment.flags & 0x12 != 0x02:  # SYN without ACK
            return
        if segment.protocol in (ICMP, ICMP6):
            if segment.payload[:1] in (b"\x08", b"\x80"):
                (identifier,) = struct.unpack_from("!H", segment.payload, 4)
                self.inbound.add((segment.protocol, segment.source, identifier, segment.target, 0))
        elif segment.protocol in (TCP, UDP):
            self.inbound.add(
                (segment.protocol, segment.source, segment.source_port, segment.target, segment.target_port)
            )

    def neighbour(self, address: bytes) -> bool:
        return self.on_link(address) or any(address == endpoint for endpoint, _ in self.endpoints)

    def allowed_arp(self, data: bytes) -> bool:
        if len(data) < 28 or data[:6] != b"\0\1\x08\0\6\4":
            return False
        request, target = data[7] == 1, data[24:28]
        # Who asks for a stranger's address on the link is about to send there, and has told whom.
        return self.neighbour(target) or (not request and target in self.clients)

    def allowed(self, segment: Segment) -> str | None:
        """Why this packet from the pod may be; None: it may not."""
        piece = (segment.source, segment.target, segment.fragment)
        if not segment.first:
            return self.fragments.get(piece)
        reason = self._allowed(segment)
        if reason and segment.fragment is not None:
            if len(self.fragments) > 4096:
                self.fragments.clear()
            self.fragments[piece] = reason
        return reason

    def _allowed(self, segment: Segment) -> str | None:
        _, source, target, protocol, _, target_port, payload, length, *_ = segment
        if protocol == UDP and (target, target_port) in self.endpoints and is_wireguard(payload, length):
            return "wireguard"
        if protocol == ICMP6 and payload:
            if payload[0] == 135:
                return "neighbour discovery" if self.neighbour(payload[8:24]) else None
            if payload[0] in (133, 136):
                return "neighbour discovery"
            if payload[0] in (131, 132, 143):
                return "mld" if self.allow_mld else None
        if self._is_answer(segment):
            return "answer"
        if self.allow_returns and self._is_return(segment):
            return "return"
        if protocol == UDP and target_port == 53 and self._is_lookup(payload):
            return "endpoint's name"
        if protocol == TCP and target_port == 53 and target in self.asked_by_tcp:
            # The handshake and the end carry nothing; a message has its length before it (RFC 1035, 4.2.2).
            return "endpoint's name" if not payload or self._is_lookup(payload[2:]) else None
        if self.bypassed(target) and self.own(source) and not (protocol in (TCP, UDP) and target_port in DNS_PORTS):
            return "bypass"
        return None

    def weigh(self, verdict: Verdict, moment: float, protocol: int, data: bytes, *, counts: bool) -> None:
        """One frame that came from a pod. counts: or it is only remembered, for the answers to it."""
        segment = segment_of(protocol, data)
        if protocol == ETH_ARP and self.allowed_arp(data):
            reason: str | None = "arp"
        else:
            reason = self.allowed(segment) if segment else None
        if not counts:
            return
        if reason:
            verdict.allowed[reason] += 1
        elif segment:
            verdict.leaks.append(Leak(moment, self.kind(segment), segment.family, self.describe(segment)))
        else:
            what = f"asks for {show(data[24:28])}" if protocol == ETH_ARP else data[:40].hex()
            verdict.leaks.append(Leak(moment, f"ethertype {protocol:#06x}", 0, what))

    def _is_lookup(self, message: bytes) -> bool:
        return any(message[12:].startswith(name) for name in self.lookups)

    def _is_answer(self, segment: Segment) -> bool:
        _, source, target, protocol, source_port, target_port, payload, *_ = segment
        if protocol in (TCP, UDP):
            return (protocol, target, target_port, source, source_port) in self.inbound
        if protocol in (ICMP, ICMP6) and len(payload) >= 8:
            if payload[0] in (0, 129):
                (identifier,) = struct.unpack_from("!H", payload, 4)
                return (protocol, target, identifier, source, 0) in self.inbound
            if payload[0] in ((3,) if protocol == ICMP else (1, 4)):  # "port unreachable" to who came in
                about = dissect(segment.family, payload[8:])
                if about and about.first:
                    key = (about.protocol, about.source, about.source_port, about.target, about.target_port)
                    return key in self.inbound and about.source == target
        return False

    def _is_return(self, segment: Segment) -> bool:
        """Does the kernel tell an endpoint that its WireGuard message met no socket? The message was the endpoint's."""
        if segment.protocol != ICMP or segment.payload[:2] != b"\3\3":
            return False
        about = dissect(segment.family, segment.payload[8:])
        return (
            about is not None
            and about.protocol == UDP
            and (about.source, about.source_port) in self.endpoints
            and (about.source, about.target) == (segment.target, segment.source)
            and is_wireguard(about.payload, about.length)
        )

    def kind(self, segment: Segment) -> str:
        """Which probe sent this? By its tag, or else by its port."""
        if found := TAG.search(segment.payload):
            return found[1].decode()
        if segment.target_port == 53 and segment.target in self.resolvers:
            return self.resolvers[segment.target] + ("-tcp" if segment.protocol == TCP else "")
        if known := self.ports.get((segment.protocol, segment.target_port)):
            return known
        names = {ICMP: "icmp", IGMP: "igmp", TCP: "tcp", UDP: "udp", ICMP6: "icmp6"}
        if segment.protocol == ICMP6 and segment.payload[:1] in (b"\x83", b"\x84", b"\x8f"):
            return "mld"
        if (segment.protocol, segment.payload[:1]) in ((ICMP, b"\x03"), (ICMP6, b"\x01"), (ICMP6, b"\x04")):
            return "icmp-error"
        return f"other-{names.get(segment.protocol, segment.protocol)}"

    @staticmethod
    def describe(segment: Segment) -> str:
        names = {ICMP: "icmp", IGMP: "igmp", TCP: "tcp", UDP: "udp", ICMP6: "icmp6"}
        source, target = show(segment.source), show(segment.target)
        name = str(names.get(segment.protocol, segment.protocol))
        if not segment.first:
            return f"{name} {source} > {target}, a later fragment"
        if segment.protocol == TCP:
            bits = (("F", 1), ("S", 2), ("R", 4), ("P", 8), ("A", 16))
            name = "tcp " + "".join(letter for letter, bit in bits if segment.flags & bit)
        elif segment.protocol in (ICMP, ICMP6) and segment.payload:
            name += f" type {segment.payload[0]}"
        if segment.protocol in (TCP, UDP):
            return f"{name} {source}:{segment.source_port} > {target}:{segment.target_port}"
        return f"{name} {source} > {target}"


def for_lab(
    lab: Lab,
    *,
    endpoints: Iterable[Endpoint] | None = None,
    lookups: Iterable[str] = (),
    asked_by_tcp: Iterable[str] = (),
    allow_mld: bool = False,
) -> Rules:
    """The rules of a lab. More endpoints than the first provider's are for tests that fail over."""
    link_local = (IPv6Network("fe80::/10"),)
    gateways = [
        net
        for family in lab.families
        for net in (
            ip_network(lab.gateway(family)),
            ip_network(lab.pod.addresses[family]),
        )
    ]
    link = gateways if lab.on_link_gateway else of.POD_NETWORKS
    return Rules(
        endpoints=[lab.provider.endpoint] if endpoints is None else endpoints,
        on_link=(*link, *of.SECOND_UPLINK_NETWORKS, *link_local),
        sources=(*of.POD_NETWORKS, *of.SECOND_UPLINK_NETWORKS, *link_local),
        bypass=lab.bypass,
        clients=[
            address for family in of.FAMILIES for address in (*lab.node_addresses(family), lab.far.addresses[family])
        ],
        ports={
            **{(TCP, port): kind for kind, port in tcp_ports(of.PROBE_PORTS.start).items()},
            (TCP, of.STREAM): "tcp-stream",
            (TCP, of.PREOPENED): "tcp-preopened",
            (UDP, of.PUSH): "udp-preopened",
            (TCP, LOOSE_PORT): "tcp-loose",
            (TCP, of.WIREGUARD_PORT): "mark-endpoint-tcp",
        },
        resolvers={
            address: kind
            for kind, addresses in (
                ("dns-tunnel", of.TUNNEL_DNS),
                ("dns-node", of.NODE_DNS),
                ("dns-cluster", of.CLUSTER_DNS),
                ("dns-public", of.PUBLIC_DNS),
            )
            for address in addresses.values()
        },
        lookups=[spelled for name in lookups for spelled in (name, *(f"{name}.{domain}" for domain in of.SEARCH))],
        asked_by_tcp=asked_by_tcp,
        allow_mld=allow_mld,
    )


class Judge:
    """A capture from `with` to its end. mark() begins a judged stretch of time, verdict() says what left since then."""

    def __init__(self, lab: Lab, rules: Rules | None = None) -> None:
        self.lab = lab
        self.rules = rules or for_lab(lab)
        self.file = lab.folder / f"capture-{os.urandom(4).hex()}.pcap"
        self.watched: set[int] = set()
        self.current = Verdict()
        self.pending = b""
        self.tokens: set[bytes] = set()

    def __enter__(self) -> Self:
        node = self.lab.node
        with node.inside():
            self.watched = {socket.if_nametoindex(name) for name in ("pod0", "pod1")}
        self.file.touch()
        self.errors = self.file.with_suffix(".txt").open("w+b")
        # "any" also has links that come and go; -U and immediate mode: what was captured is in the file at once.
        argv = ["tcpdump", "-i", "any", "-y", "LINUX_SLL2", "-p", "-n", "-s", str(SNAPLEN), "-B", "32768"]
        argv += ["--immediate-mode", "-U", "-Z", "root", "-w", str(self.file)]
        self.tcpdump = node.popen(argv, stdout=subprocess.DEVNULL, stderr=self.errors, new_session=True)
        self.reader = self.file.open("rb")
        self.sender = node.socket(socket.AF_PACKET, socket.SOCK_RAW)
        self.sender.bind(("pod0", SENTINEL_TYPE))
        self.header_read = False
        self.mark()  # returns when a sentinel was captured: from here on nothing is missed
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.tcpdump.send_signal(signal.SIGINT)
        self.tcpdump.wait()
        self.errors.seek(0)
        last_words = self.errors.read().decode()
        for file in (self.errors, self.reader, self.sender):
            file.close()
        lost = re.search(r"(\d+) packets dropped by kernel", last_words)
        if kind is None and (not lost or int(lost[1])):
            raise LabError(f"the capture is not complete, nothing it says counts: {last_words.strip()}")

    def mark(self) -> None:
        """What comes from the pod is judged from now on; what came before is forgotten."""
        # What left before this moment may be read after it: a link's queue is emptied by a soft interrupt, which a busy
        # machine puts off. The kernel stamps a packet with the time before it waits there.
        now = time.time()
        self._flush()
        self.current = Verdict(since=now)

    def verdict(self) -> Verdict:
        """What left the pod since the last mark(), up to this moment. The next stretch begins here."""
        self._flush()
        result, self.current = self.current, Verdict(since=self.current.since)
        return result

    def _flush(self, timeout: float = 30.0) -> None:
        """Read on to a packet sent just now: it was captured, so all that was before it is read too."""
        token = os.urandom(16)
        frame = self.sender.getsockname()[4] * 2 + struct.pack("!H", SENTINEL_TYPE) + token + b"\0" * 32
        deadline = time.monotonic() + timeout
        again = 0.0
        while token not in self.tokens:
            if (now := time.monotonic()) > deadline:
                raise LabError("the capture does not see its sentinel")
            if now > again:  # more than once only while tcpdump starts
                self.sender.send(frame)
                again = now + 0.1
            if not self._read():
                if self.tcpdump.poll() is not None:
                    self.errors.seek(0)
                    raise LabError(f"tcpdump ended: {self.errors.read().decode().strip()}")
                time.sleep(0.001)
        self.tokens.clear()

    def _read(self) -> bool:
        """Judge what the capture file has got meanwhile."""
        more = self.reader.read()
        if not more:
            return False
        data = self.pending + more
        position = 0
        if not self.header_read:
            if len(data) < 24:
                self.pending = data
                return False
            magic, link_type = struct.unpack_from("<I16xI", data)
            if magic != 0xA1B2C3D4 or link_type & 0xFFFF != 276:
                raise LabError("an unknown capture format")
            self.header_read, position = True, 24
        while position + 16 <= len(data):
            seconds, microseconds, size, _ = struct.unpack_from("<IIII", data, position)
            if position + 16 + size > len(data):
                break
            self._packet(seconds + microseconds / 1e6, data[position + 16 : position + 16 + size])
            position += 16 + size
        self.pending = data[position:]
        return True

    def _packet(self, moment: float, packet: bytes) -> None:
        protocol, index, direction = struct.unpack_from("!H2xI2xB", packet)
        if index not in self.watched or (moment < self.current.since and direction != OUTGOING):
            return
        data = packet[20:]
        if direction == OUTGOING:
            if protocol == SENTINEL_TYPE:
                self.tokens.add(data[:16])
            elif protocol in (ETH_IP, ETH_IPV6):
                segment = dissect(4 if protocol == ETH_IP else 6, data)
                if segment:
                    self.rules.seen_inbound(segment)
            return
        if protocol == ETH_ARP:
            if self.rules.allowed_arp(data):
                self.current.allowed["arp"] += 1
            else:
                who = show(data[24:28]) if len(data) >= 28 else "?"
                self.current.leaks.append(Leak(moment, "arp", 4, f"asks the link for {who}"))
            return
        if protocol not in (ETH_IP, ETH_IPV6):
            self.current.leaks.append(Leak(moment, "other", 0, f"ethertype {protocol:#06x}, {len(data)} bytes"))
            return
        family = 4 if protocol == ETH_IP else 6
        segment = dissect(family, data)
        if segment is None:
            self.current.leaks.append(Leak(moment, "malformed", family, data[:40].hex()))
        elif reason := self.rules.allowed(segment):
            self.current.allowed[reason] += 1
        else:
            leak = Leak(moment, self.rules.kind(segment), family, self.rules.describe(segment))
            self.current.leaks.append(leak)
