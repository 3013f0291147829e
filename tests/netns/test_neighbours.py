"""Hostile neighbours, and rules of other people in the pod: what they may not do, and what has to go on working."""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from tests.lab.judge import Judge
from tests.lab.lab import AF, INSIDE, Family, Lab
from tests.lab.probes import Probes

ECHO = 5555
IN_CLUSTER: dict[Family, str] = {4: "10.42.1.77", 6: "fd42:1::77"}  # on the link, and nobody is there
FORGE = """
import socket, struct, sys
family, source, target, port = int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
kind = socket.AF_INET if family == 4 else socket.AF_INET6
pack = lambda address: socket.inet_pton(kind, address)
data = b"forged"
def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16: total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - total or 0xFFFF
length = 8 + len(data)
pseudo = pack(source) + pack(target) + struct.pack("!HH", 17, length)
udp = struct.pack("!HHHH", 5555, port, length, 0) + data
udp = udp[:6] + struct.pack("!H", checksum(pseudo + udp)) + udp[8:]
if family == 4:
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 1, 0, 64, 17, 0) + pack(source) + pack(target)
else:
    head = struct.pack("!IHBB", 0x60000000, length, 17, 64) + pack(source) + pack(target)
s = socket.socket(kind, socket.SOCK_RAW, socket.IPPROTO_RAW)
s.setsockopt(socket.SOL_SOCKET, 25, b"wg0")
s.sendto(head + udp, (target, 0))
"""


@contextlib.contextmanager
def frames(lab: Lab) -> Iterator[Callable[[], list[bytes]]]:
    """What the node's end of the pod's link hears from the pod, as raw frames."""
    with lab.node.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as tap:
        tap.bind(("pod0", 3))

        def heard() -> list[bytes]:
            found = []
            tap.settimeout(0.3)
            with contextlib.suppress(TimeoutError):
                while True:
                    data, (_, _, kind, *_) = tap.recvfrom(4096)
                    if kind != 4:  # PACKET_OUTGOING
                        found.append(data)
            return found

        yield heard


def test_the_tunnels_address_is_nobodys_beside_it(plain: Lab) -> None:
    with Judge(plain) as judge:
        plain.init_wg("up")
        judge.mark()
        for family in plain.families:
            with plain.pod.socket(AF[family], socket.SOCK_DGRAM) as sender:
                sender.bind((INSIDE[family], 0))
                for target in (plain.service.addresses[family], plain.gateway(family)):
                    with contextlib.suppress(OSError):
                        sender.sendto(b"from inside", (target, 7777))
        assert not judge.verdict().leaked, str(judge.verdict())
        assert plain.request(plain.pod, plain.service.addresses[4], 80)
    with frames(plain) as heard:
        for asked in (INSIDE[4], plain.pod.addresses[4]):
            plain.node.run(["ip", "neighbour", "flush", "dev", "pod0"])
            plain.node.run(["ping", "-c1", "-W1", "-I", "pod0", asked], check=False)
        told = {socket.inet_ntoa(frame[28:32]) for frame in heard() if frame[12:14] == b"\x08\x06"}
    assert plain.pod.addresses[4] in told
    assert INSIDE[4] not in told


@pytest.mark.parametrize("state", ["sealed", "up"])
def test_arp_and_neighbour_discovery_carry_nothing_else(plain: Lab, state: str) -> None:
    plain.init_wg("lockdown")
    if state == "up":
        plain.init_wg("up")
    node, text = plain.node.link_address("pod0"), b"exfiltration " * 50
    with frames(plain) as heard, plain.pod.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind(("eth0", 0))
        own = raw.getsockname()[4]
        address = {name: socket.inet_aton(name) for name in ("10.42.1.10", "10.42.1.1")}
        for operation in (1, 2):
            arp = struct.pack("!HHBBH", 1, 0x800, 6, 4, operation)
            arp += own + address["10.42.1.10"] + node + address["10.42.1.1"]
            with contextlib.suppress(OSError):
                raw.send(node + own + b"\x08\x06" + arp + text)
        with plain.pod.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as asker:
            asker.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 255)
            for kind in (133, 135, 136):
                message = struct.pack("!BBHI", kind, 0, 0, 0) + b"\xfe\x80" + bytes(14) + text
                with contextlib.suppress(OSError):
                    asker.sendto(message, ("fe80::1", 0, 0, 2))
        assert not [frame for frame in heard() if b"exfiltration" in frame]
    assert plain.node.ok(["ping", "-c1", "-W2", plain.pod.addresses[6]]) == (state == "up")


@pytest.mark.parametrize("rp_filter", [0, 2])
def test_nobody_in_the_tunnel_speaks_for_the_cluster(rp_filter: int) -> None:
    """The provider sends as a cluster's service, to the pod's address and to the tunnel's."""
    with Lab(rp_filter=rp_filter) as lab:  # type: ignore[arg-type]  # 0 and 2 are of its values
        lab.init_wg("up", env={"VPN_INPUT_PORTS": "40123"})
        allowed = [*INSIDE.values(), *lab.pod.addresses.values()]
        lab.provider.run(["wg", "set", "wg0", "peer", lab.pod_key, "allowed-ips", ",".join(allowed)])
        for family in lab.families:
            # Only for what is bound to wg0: the tunnel's own packets to the pod go another way.
            lab.provider.run(["ip", f"-{family}", "route", "add", "default", "dev", "wg0", "table", "77"])
            lab.provider.run(["ip", f"-{family}", "rule", "add", "oif", "wg0", "lookup", "77"])
            with lab.pod.socket(AF[family], socket.SOCK_DGRAM) as client:
                client.bind(("", 40123))
                client.settimeout(0.5)
                client.sendto(b"a question beside the tunnel", (IN_CLUSTER[family], ECHO))
                beside = (IN_CLUSTER[family], lab.gateway(family))
                for source in beside:
                    for target in (lab.pod.addresses[family], INSIDE[family]):
                        forged = [sys.executable, "-c", FORGE, str(family), source, target, "40123"]
                        lab.provider.run(forged)
                        with pytest.raises(TimeoutError):
                            client.recv(100)
                # And whoever is inside may come in by the forwarded port.
                lab.provider.run(
                    [sys.executable, "-c", FORGE, str(family), lab.web.addresses[family], INSIDE[family], "40123"]
                )
                assert client.recv(100) == b"forged"
        assert lab.flows()


def test_a_mark_of_somebody_elses_opens_nothing(plain: Lab) -> None:
    """A chain that marks every packet as let through: IPv6 is routed by that mark."""
    plain.init_wg("up")
    with Judge(plain) as judge, Probes(plain, ["udp-unconnected", "tcp-connect", "dns-cluster"], loose=False) as probes:
        judge.mark()
        hooks = ("type route hook output priority -300", "type filter hook postrouting priority -1")
        for number, hook in enumerate(hooks):
            chain = f"chain c {{ {hook}; meta mark set 0xca6d; }}"
            plain.pod.run(["nft", "-f", "-"], stdin=f"table inet other{number} {{ {chain}; }}\n")
            probes.round(4)
        assert not judge.verdict().leaked, str(judge.verdict())
    checked = plain.init_wg("check", check=False)
    assert checked.returncode == 5
    assert "table inet other0: wanted no mark of init-wg's" in checked.stdout
    assert "table inet other1" in checked.stdout


@pytest.mark.parametrize("family", [4, 6])
def test_a_proxy_of_a_service_mesh_is_reached(plain: Lab, family: Family) -> None:
    """Whatever the pod opens is redirected to a local port, and so is what comes in: that port answers."""
    word, here = {4: ("ip", "127.0.0.1"), 6: ("ip6", "::1")}[family]
    pod = plain.pod.addresses[family]
    proxy = plain.serve(plain.pod, f"http:[{here}]:15001", f"http:[{pod}]:15006")
    assert proxy.stdout
    assert proxy.stdout.readline() == b"ready\n"
    rules = f"""table {word} mesh {{
        chain out {{ type nat hook output priority -100; oifname eth0 tcp dport 81 redirect to :15001; }}
        chain in {{ type nat hook prerouting priority -100; tcp dport 82 redirect to :15006; }}
    }}
    """
    plain.pod.run(["nft", "-f", "-"], stdin=rules)
    with Judge(plain) as judge:
        plain.init_wg("up")
        judge.mark()
        assert plain.request(plain.pod, IN_CLUSTER[family], 81), "in the cluster"
        for client in (plain.node, plain.far):
            assert plain.inbound(client, family, port=82), client.name
        assert not judge.verdict().leaked, str(judge.verdict())
    plain.init_wg("check")


def test_nobody_is_asked_for_what_was_sent_without_rules(plain: Lab) -> None:
    """Sent past all routes while the deciding table is gone: the kernel asks for a far address, again and again."""
    plain.init_wg("up")
    web = plain.web.addresses[4]
    unresolved = ["ip", "neighbour", "show", web, "dev", "eth0", "nud", "incomplete"]
    with frames(plain) as heard, plain.pod.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
        plain.pod.run(["nft", "delete", "table", "inet", "init_wg"])
        sender.sendto(b"past all routes", (web, 9))
        assert plain.pod.run(unresolved).stdout
        plain.init_wg("up")
        assert not plain.pod.run(unresolved).stdout
        plain.pod.run(["nft", "delete", "table", "netdev", "init_wg"])
        time.sleep(1.2)  # it asks every second
        assert not [frame for frame in heard() if frame[38:42] == socket.inet_aton(web)]
