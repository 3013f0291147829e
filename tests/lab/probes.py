"""Everything a program in the pod may try to get a packet out, all the time, in both families.

Half of this file is the process that runs in the pod (one process, only the standard library, some hundred attempts
a second), half is the class that starts it and asks it what it did. Every payload carries a tag with its kind, and
every TCP kind has a port of its own, so the judge can say who sent what it caught.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    from .lab import Family, Lab

RATE = 2000  # attempts per second, over all kinds and families
BURST = 4  # attempts per wake-up
TCP_PATIENCE = 0.15  # how long a connection may take: longer than a round trip, shorter than the kernel's second SYN
PREOPENED_CONNECTIONS = 4
LOOSE_TARGETS = (8080, 40000)  # the pod's ports that get segments from nowhere: one has a listener, one has not
#: Whence raw frames come. The kernel gives no socket this port: the echo of a frame that left while the gate was away
#: is a connection that came in, and a probe from the same port would be its answer.
FRAME_PORT = 20001

# Not in Python's socket module.
IP_PKTINFO, IP_UNICAST_IF, IPV6_UNICAST_IF, SO_MARK, ETH_P_IP, ETH_P_IPV6 = 8, 50, 76, 36, 0x0800, 0x86DD
SOL_PACKET, PACKET_QDISC_BYPASS = 263, 20

Option = tuple[int, int, int | bytes]


def tag(kind: str) -> bytes:
    return f"init-wg-probe:{kind};".encode()


class Aim(NamedTuple):
    """Where the probes of one family go. Ports are those of lab.py."""

    family: int  # 4 or 6
    source: str
    web: str
    endpoint: str
    endpoint_port: int
    mark: int
    gateway_mac: str
    dns: dict[str, str]
    echo: int
    stream: int
    preopened: int
    push: int
    tcp_ports: dict[str, int]

    @property
    def af(self) -> socket.AddressFamily:
        return socket.AF_INET6 if self.family == 6 else socket.AF_INET


def checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - total


def dns_query(kind: str) -> bytes:
    """An A query; its name carries the tag."""
    labels = (f"init-wg-probe-{kind}", "example")
    name = b"".join(struct.pack("B", len(label)) + label.encode() for label in labels) + b"\0"
    return struct.pack("!HHHHHH", os.getpid() & 0xFFFF, 0x0100, 1, 0, 0, 0) + name + struct.pack("!HH", 1, 1)


def udp_packet(aim: Aim, payload: bytes) -> bytes:
    """A whole IP packet for AF_PACKET, which passes no socket, no route and no output hook."""
    source, target = ip_address(aim.source).packed, ip_address(aim.web).packed
    length = 8 + len(payload)
    head = struct.pack("!HHHH", FRAME_PORT, aim.echo, length, 0)
    pseudo = source + target + struct.pack("!II", length, socket.IPPROTO_UDP)
    udp = head[:6] + struct.pack("!H", checksum(pseudo + head + payload) or 0xFFFF) + payload
    if aim.family == 6:
        return struct.pack("!IHBB", 6 << 28, length, socket.IPPROTO_UDP, 64) + source + target + udp
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 1, 0, 64, socket.IPPROTO_UDP, 0) + source + target
    return ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:] + udp


class Prober:
    """The process in the pod."""

    def __init__(self, aims: Iterable[Aim], kinds: Iterable[str], rate: float) -> None:
        self.aims = list(aims)
        self.kinds = list(kinds)
        self.rate = rate
        self.attempts: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.turn = 0
        self.connecting: list[tuple[float, socket.socket, bytes]] = []
        self.streams: dict[int, socket.socket] = {}
        self.preopened: dict[int, list[socket.socket]] = {}
        self.registered: dict[int, socket.socket] = {}

    # --- building blocks -----------------------------------------------------------------------------------

    def uplink(self) -> str:
        """eth0, and eth1 in turn when there is one."""
        uplinks = [name for _, name in socket.if_nameindex() if name.startswith("eth")]
        return uplinks[self.turn // len(self.kinds) % len(uplinks)] if uplinks else "eth0"

    def datagram(
        self,
        aim: Aim,
        payload: bytes,
        to: tuple[str, int],
        *options: Option,
        connect: bool = False,
        bind: bool = False,
        ancillary: Sequence[tuple[int, int, bytes]] = (),
    ) -> None:
        with socket.socket(aim.af, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
            for option in options:
                sender.setsockopt(*option)
            if bind:
                sender.bind((aim.source, 0))
            if connect:
                sender.connect(to)
                sender.send(payload)
            else:
                sender.sendmsg([payload], ancillary, 0, to)

    def connection(self, aim: Aim, payload: bytes, to: tuple[str, int], *options: Option, bind: bool = False) -> None:
        """Start to connect; settle() sends the payload once the connection is there."""
        opened = socket.socket(aim.af, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            for option in options:
                opened.setsockopt(*option)
            if bind:
                opened.bind((aim.source, 0))
            code = opened.connect_ex(to)
            if code not in (0, errno.EINPROGRESS):
                raise OSError(code, os.strerror(code))
        except OSError:
            opened.close()
            raise
        self.connecting.append((time.monotonic() + TCP_PATIENCE, opened, payload))

    def settle(self) -> None:
        """Give connected ones their payload; give up on those that took too long."""
        if not self.connecting:
            return
        now = time.monotonic()
        poll = select.poll()
        for _, opened, _ in self.connecting:
            poll.register(opened, select.POLLOUT)
        done = {descriptor for descriptor, _ in poll.poll(0)}
        waiting = []
        for deadline, opened, payload in self.connecting:
            if opened.fileno() in done:
                with contextlib.suppress(OSError):
                    opened.send(payload)
                opened.close()
            elif now > deadline:
                opened.close()
            else:
                waiting.append((deadline, opened, payload))
        self.connecting = waiting

    def bound_device(self) -> Option:
        return (socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self.uplink().encode())

    @staticmethod
    def unicast_if(aim: Aim, index: int) -> Option:
        value = struct.pack("!I", index)  # in network byte order, for whatever reason
        if aim.family == 6:
            return (socket.IPPROTO_IPV6, IPV6_UNICAST_IF, value)
        return (socket.IPPROTO_IP, IP_UNICAST_IF, value)

    # --- the kinds -----------------------------------------------------------------------------------------

    def tcp(self, aim: Aim, kind: Kind) -> None:
        self.connection(aim, tag(kind.name), (aim.web, aim.tcp_ports[kind.name]))

    def tcp_stream(self, aim: Aim, kind: Kind) -> None:
        stream = self.streams.get(aim.family)
        if stream is None:
            stream = socket.socket(aim.af, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            self.streams[aim.family] = stream
            stream.connect_ex((aim.web, aim.stream))
            return
        try:
            stream.send(tag(kind.name))
            with contextlib.suppress(BlockingIOError):
                stream.recv(65536)
        except BlockingIOError:
            return  # its buffer is full, so the kernel has something to retransmit
        except OSError:
            stream.close()
            del self.streams[aim.family]
            raise

    def tcp_preopened(self, aim: Aim, kind: Kind) -> None:
        for opened in self.preopened.get(aim.family, []):
            with contextlib.suppress(OSError):  # dead connections stay: their server goes on pushing
                opened.send(tag(kind.name))
            with contextlib.suppress(OSError):
                opened.recv(65536)

    def udp_preopened(self, aim: Aim, kind: Kind) -> None:
        """Answer each datagram the server pushed, as a game or a call would."""
        opened = self.registered[aim.family]
        for _ in range(4):
            try:
                opened.recv(65536)
            except BlockingIOError:
                break
            except OSError:
                continue
            with contextlib.suppress(OSError):
                opened.send(tag(kind.name))
        opened.send(tag(kind.name))

    def udp(self, aim: Aim, kind: Kind) -> None:
        self.datagram(aim, tag(kind.name), (aim.web, aim.echo))

    def udp_connected(self, aim: Aim, kind: Kind) -> None:
        self.datagram(aim, tag(kind.name), (aim.web, aim.echo), connect=True)

    def udp_large(self, aim: Aim, kind: Kind) -> None:
        self.datagram(aim, tag(kind.name) * (4000 // len(tag(kind.name))), (aim.web, aim.echo))  # goes out in fragments

    def icmp(self, aim: Aim, kind: Kind, *options: Option) -> None:
        protocol = socket.IPPROTO_ICMPV6 if aim.family == 6 else socket.IPPROTO_ICMP
        head = struct.pack("!BBHHH", 128 if aim.family == 6 else 8, 0, 0, 4711, self.turn & 0xFFFF)
        if aim.family == 4:  # the kernel fills in ICMPv6's checksum, but not ICMP's
            head = head[:2] + struct.pack("!H", checksum(head + tag(kind.name))) + head[4:]
        with socket.socket(aim.af, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol) as sender:
            for option in options:
                sender.setsockopt(*option)
            sender.sendto(head + tag(kind.name), (aim.web, 0))

    def dns(self, aim: Aim, kind: Kind) -> None:
        self.datagram(aim, dns_query(kind.name), (aim.dns[kind.name], 53), connect=True)

    def dns_tcp(self, aim: Aim, kind: Kind) -> None:
        query = dns_query(kind.name)
        self.connection(aim, struct.pack("!H", len(query)) + query, (aim.dns["dns-public"], 53))

    def device_udp(self, aim: Aim, kind: Kind) -> None:
        self.datagram(aim, tag(kind.name), (aim.web, aim.echo), self.bound_device())

    def device_tcp(self, aim: Aim, kind: Kind) -> None:
        self.connection(aim, tag(kind.name), (aim.web, aim.tcp_ports[kind.name]), self.bound_device())

    def device_icmp(self, aim: Aim, kind: Kind) -> None:
        self.icmp(aim, kind, self.bound_device())

    def device_dns(self, aim: Aim, kind: Kind) -> None:
        self.datagram(aim, dns_query(kind.name), (aim.dns["dns-public"], 53), self.bound_device())

    def pktinfo(self, aim: Aim, kind: Kind) -> None:
        index = socket.if_nametoindex(self.uplink())
        if aim.family == 6:
            data = struct.pack("16si", b"", index)
            ancillary = [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, data)]
        else:
            ancillary = [(socket.IPPROTO_IP, IP_PKTINFO, struct.pack("i4s4s", index, b"", b""))]
        self.datagram(aim, tag(kind.name), (aim.web, aim.echo), ancillary=ancillary)

    def unicast_udp(self, aim: Aim, kind: Kind) -> None:
        option = self.unicast_if(aim, socket.if_nametoindex(self.uplink()))
        self.datagram(aim, tag(kind.name), (aim.web, aim.echo), option)

    def source_udp(self, aim: Aim, kind: Kind) -> None:
        self.datagram(aim, tag(kind.name), (aim.web, aim.echo), bind=True)

    def source_tcp(self, aim: Aim, kind: Kind) -> None:
        self.connection(aim, tag(kind.name), (aim.web, aim.tcp_ports[kind.name]), bind=True)

    @staticmethod
    def mark(aim: Aim, kind: Kind) -> Option:
        """WireGuard's own mark; or the next number, an obvious choice for a mark with another privilege."""
        return (socket.SOL_SOCKET, SO_MARK, aim.mark + kind.above)

    def mark_udp(self, aim: Aim, kind: Kind) -> None:
        self.datagram(aim, tag(kind.name), (aim.web, aim.echo), self.mark(aim, kind))

    def mark_tcp(self, aim: Aim, kind: Kind) -> None:
        self.connection(aim, tag(kind.name), (aim.web, aim.tcp_ports[kind.name]), self.mark(aim, kind))

    def mark_device_udp(self, aim: Aim, kind: Kind) -> None:
        self.datagram(aim, tag(kind.name), (aim.web, aim.echo), self.mark(aim, kind), self.bound_device())

    def mark_endpoint_udp(self, aim: Aim, kind: Kind) -> None:
        """Marked like WireGuard's own, and to its endpoint: but to another port."""
        self.datagram(aim, tag(kind.name), (aim.endpoint, aim.endpoint_port + 1), self.mark(aim, kind))

    def mark_endpoint_tcp(self, aim: Aim, kind: Kind) -> None:
        """Marked, to the endpoint's address and port: but not UDP."""
        self.connection(aim, tag(kind.name), (aim.endpoint, aim.endpoint_port), self.mark(aim, kind))

    def endpoint_udp(self, aim: Aim, kind: Kind) -> None:
        """Plain text to the endpoint's own port."""
        self.datagram(aim, tag(kind.name), (aim.endpoint, aim.endpoint_port))

    def endpoint_device_udp(self, aim: Aim, kind: Kind) -> None:
        self.datagram(aim, tag(kind.name), (aim.endpoint, aim.endpoint_port), self.bound_device())

    def packet(self, aim: Aim, kind: Kind, *options: Option) -> None:
        protocol = ETH_P_IPV6 if aim.family == 6 else ETH_P_IP
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK) as sender:
            for option in options:
                sender.setsockopt(*option)
            sender.bind((self.uplink(), protocol))
            to_mac, from_mac = bytes.fromhex(aim.gateway_mac), sender.getsockname()[4]
            sender.send(to_mac + from_mac + struct.pack("!H", protocol) + udp_packet(aim, tag(kind.name)))

    def packet_bypass(self, aim: Aim, kind: Kind) -> None:
        """Straight to the driver, past the queueing discipline."""
        self.packet(aim, kind, (SOL_PACKET, PACKET_QDISC_BYPASS, 1))

    def packet_marked(self, aim: Aim, kind: Kind) -> None:
        self.packet(aim, kind, self.mark(aim, kind))

    # --- the loop ------------------------------------------------------------------------------------------

    def open_before(self) -> None:
        """The connections that are to be older than the lockdown. Blocks until they are there, but not for ever."""
        for aim in self.aims:
            if "tcp-preopened" in self.kinds:
                for _ in range(PREOPENED_CONNECTIONS):
                    opened = socket.socket(aim.af, socket.SOCK_STREAM)
                    opened.settimeout(1)
                    with contextlib.suppress(OSError):
                        opened.connect((aim.web, aim.preopened))
                        opened.send(tag("tcp-preopened"))
                        opened.recv(65536)  # pushed by the server: the connection lives in both directions
                    opened.setblocking(False)
                    self.preopened.setdefault(aim.family, []).append(opened)
            if "udp-preopened" in self.kinds:
                opened = socket.socket(aim.af, socket.SOCK_DGRAM)
                opened.settimeout(1)
                with contextlib.suppress(OSError):
                    opened.connect((aim.web, aim.push))
                    opened.send(tag("udp-preopened"))
                    opened.recv(65536)
                opened.setblocking(False)
                self.registered[aim.family] = opened

    def attempt(self) -> None:
        kind = KINDS[self.kinds[self.turn % len(self.kinds)]]
        for aim in self.aims:
            name = f"{kind.name}/{aim.family}"
            self.attempts[name] += 1
            try:
                kind.send(self, aim, kind)
            except OSError:
                self.errors[name] += 1
        self.turn += 1

    def run(self) -> None:
        self.open_before()
        print("ready", flush=True)
        pause = BURST * len(self.aims) / self.rate
        due = time.monotonic()
        while True:
            readable, _, _ = select.select([0], [], [], max(0.0, due - time.monotonic()))
            if readable:
                if not os.read(0, 1):
                    return
                print(json.dumps({"attempts": self.attempts, "errors": self.errors}), flush=True)
            if (now := time.monotonic()) >= due:
                for _ in range(BURST):
                    self.attempt()
                self.settle()
                due = max(due + pause, now)


class Kind(NamedTuple):
    """One way to try. port: it has a TCP port of its own at the web host; plain: it goes where the routes lead it, so
    routing alone must stop it, too, with the firewall flushed; needs_raw: only with CAP_NET_RAW; before: it needs a
    connection that is older than the lockdown; above: this much is added to WireGuard's mark.
    """

    name: str
    send: Callable[[Prober, Aim, Kind], None]
    port: bool = False
    plain: bool = False
    needs_raw: bool = False
    before: bool = False
    above: int = 0


KINDS = {
    kind.name: kind
    for kind in (
        Kind("tcp-connect", Prober.tcp, port=True, plain=True),
        Kind("tcp-stream", Prober.tcp_stream, plain=True),
        Kind("tcp-preopened", Prober.tcp_preopened, plain=True, before=True),
        Kind("udp-unconnected", Prober.udp, plain=True),
        Kind("udp-connected", Prober.udp_connected, plain=True),
        Kind("udp-large", Prober.udp_large, plain=True),
        Kind("udp-preopened", Prober.udp_preopened, plain=True, before=True),
        Kind("icmp-echo", Prober.icmp, plain=True, needs_raw=True),
        Kind("dns-tunnel", Prober.dns, plain=True),
        Kind("dns-node", Prober.dns, plain=True),
        Kind("dns-cluster", Prober.dns, plain=True),
        Kind("dns-public", Prober.dns, plain=True),
        Kind("dns-public-tcp", Prober.dns_tcp, port=True, plain=True),
        Kind("device-udp", Prober.device_udp),
        Kind("device-tcp", Prober.device_tcp, port=True),
        Kind("device-icmp", Prober.device_icmp, needs_raw=True),
        Kind("device-dns", Prober.device_dns),
        Kind("pktinfo-udp", Prober.pktinfo),
        Kind("unicast-if-udp", Prober.unicast_udp),
        Kind("source-udp", Prober.source_udp),
        Kind("source-tcp", Prober.source_tcp, port=True),
        Kind("mark-udp", Prober.mark_udp),
        Kind("mark-tcp", Prober.mark_tcp, port=True),
        Kind("mark-device-udp", Prober.mark_device_udp),
        Kind("stamp-udp", Prober.mark_udp, above=1),
        Kind("stamp-tcp", Prober.mark_tcp, port=True, above=1),
        Kind("stamp-device-udp", Prober.mark_device_udp, above=1),
        Kind("mark-endpoint-udp", Prober.mark_endpoint_udp),
        Kind("mark-endpoint-tcp", Prober.mark_endpoint_tcp, port=True),
        Kind("endpoint-udp", Prober.endpoint_udp),
        Kind("endpoint-device-udp", Prober.endpoint_device_udp),
        Kind("packet-udp", Prober.packet, needs_raw=True),
        Kind("packet-bypass-udp", Prober.packet_bypass, needs_raw=True),
        Kind("packet-mark-udp", Prober.packet_marked, needs_raw=True),
        Kind("packet-stamp-udp", Prober.packet_marked, needs_raw=True, above=1),
    )
}
PLAIN = tuple(kind.name for kind in KINDS.values() if kind.plain)


def tcp_ports(first: int) -> dict[str, int]:
    """A port of the web host for each kind that connects to it."""
    return {kind.name: first + number for number, kind in enumerate(each for each in KINDS.values() if each.port)}


class Probes:
    """The probes of a lab's pod, running from `with` to its end.

    `kinds` are any of KINDS. Beside them the web host sends "tcp-loose": segments from the middle of connections that
    nobody knows. The only right answer is silence: a firewall that takes them for connections that came in lets the
    pod's resets out. raw: the prober has CAP_NET_RAW.
    """

    def __init__(
        self, lab: Lab, kinds: Iterable[str] = tuple(KINDS), *, rate: float = RATE, loose: bool = True, raw: bool = True
    ) -> None:
        self.lab = lab
        self.kinds = list(kinds)
        self.rate = rate
        self.loose = loose
        self.raw = raw
        self.running: list[subprocess.Popen[bytes]] = []

    @property
    def names(self) -> set[str]:
        """kind/family of all that is tried here."""
        return {f"{kind}/{family}" for kind in self.kinds for family in self.lab.families}

    def aim(self, family: Family) -> Aim:
        from . import lab as of

        lab = self.lab
        return Aim(
            family=family,
            source=lab.pod.addresses[family],
            web=lab.web.addresses[family],
            endpoint=lab.provider.addresses[family],
            endpoint_port=of.WIREGUARD_PORT,
            mark=of.MARK,
            gateway_mac=lab.node.link_address("pod0").hex(),
            dns={
                "dns-tunnel": of.TUNNEL_DNS[family],
                "dns-node": of.NODE_DNS[family],
                "dns-cluster": of.CLUSTER_DNS[family],
                "dns-public": of.PUBLIC_DNS[family],
            },
            echo=of.ECHO,
            stream=of.STREAM,
            preopened=of.PREOPENED,
            push=of.PUSH,
            tcp_ports=tcp_ports(of.PROBE_PORTS.start),
        )

    def __enter__(self) -> Self:
        aims = [self.aim(family)._asdict() for family in self.lab.families]
        order = json.dumps({"aims": aims, "kinds": self.kinds, "rate": self.rate})
        argv = [sys.executable, "-I", "-S", str(Path(__file__)), order]
        if not self.raw:
            argv = ["setpriv", "--bounding-set=-net_raw", *argv]
        prober = self.lab.pod.popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, new_session=True)
        self.running = [prober]
        if self.loose:
            addresses = [self.lab.pod.addresses[family] for family in self.lab.families]
            targets = [f"loose:[{address}]:{port}" for address in addresses for port in LOOSE_TARGETS]
            self.running.append(self.lab.serve(self.lab.web, *targets))
        for process in self.running:
            assert process.stdout
            if process.stdout.readline() != b"ready\n":
                raise RuntimeError("the probes did not start")
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.running:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe:
                    with contextlib.suppress(OSError):
                        pipe.close()

    def counts(self) -> tuple[Counter[str], Counter[str]]:
        """How often each kind/family was tried so far, and how often the kernel refused it."""
        prober = self.running[0]
        assert prober.stdin and prober.stdout
        prober.stdin.write(b"?")
        prober.stdin.flush()
        answer = json.loads(prober.stdout.readline())
        return Counter(answer["attempts"]), Counter(answer["errors"])

    def round(self, times: int = 1, timeout: float = 30.0) -> None:
        """Wait until every kind was tried this many times more: what "under load" means, on machines of any speed."""
        before, _ = self.counts()
        deadline = time.monotonic() + timeout
        while not all(self.counts()[0][name] >= before[name] + times for name in self.names):
            if time.monotonic() > deadline:
                raise RuntimeError("the probes stand still")
            time.sleep(0.005)


if __name__ == "__main__":
    orders = json.loads(sys.argv[1])
    Prober((Aim(**fields) for fields in orders["aims"]), orders["kinds"], orders["rate"]).run()
