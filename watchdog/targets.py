"""Whom to ask through the tunnel: only addresses that the peer's AllowedIPs cover. Pure.

For any other WireGuard has no peer: the kernel refuses the packet, and wireguard-go swallows it without an error. An
unanswered question would then say that the peer is dead, when nobody has asked it.
"""

# Without ipaddress, which costs a megabyte here, for good.

from __future__ import annotations

import socket
from typing import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

DNS_PORT = 53
#: Where traceroute starts; nobody listens there.
UNREACHED_PORT = 33434
#: TEST-NET-1 and the documentation prefix: with one hop to live, these only have to be routed into the tunnel.
NOWHERE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
_BITS = {socket.AF_INET: 32, socket.AF_INET6: 128}
#: How many resolvers are asked, and how many hosts are tried for one that is not the tunnel's own address.
_RESOLVERS, _HOSTS = 2, 4


#: A network: its family, how many bits it leaves to the hosts, its first address, and whether it is the peer's.
_Way = tuple[int, int, int, bool]


class Target(NamedTuple):
    """One question: where it goes, after how many hops it ends (0: it need not), and whether it travels as an
    application's packet does, or is told to take the tunnel."""

    address: str
    port: int
    hops: int
    ordinary: bool


def choose(
    resolvers: Iterable[str], networks: Iterable[str], others: Iterable[str] = ()
) -> tuple[tuple[Target, ...], ...]:
    """For each question its possible targets, the best one first. networks: a peer's AllowedIPs, as "10.0.0.0/8";
    others: those of the other peers, which may lie within."""
    ways = tuple((*_parsed(each), mine) for group, mine in ((networks, True), (others, False)) for each in group)
    reached = [address for address in resolvers if _covered(address, ways)]
    found: list[tuple[Target, ...]] = [
        (Target(address, DNS_PORT, 0, ordinary=False),) for address in reached[:_RESOLVERS]
    ]
    for family, nowhere in NOWHERE.items():
        if _covered(nowhere, ways):
            found.append((Target(nowhere, UNREACHED_PORT, 1, ordinary=True),))
        elif hosts := _hosts(family, ways):
            found.append(tuple(Target(host, UNREACHED_PORT, 1, ordinary=False) for host in hosts))
    return tuple(found)


def _hosts(family: int, ways: Iterable[_Way]) -> list[str]:
    """Hosts of the widest networks: the first ones, as the peer's own address often is, and one in the middle."""
    hosts: list[str] = []
    length = _BITS[socket.AddressFamily(family)] // 8
    for host_bits, first in sorted(((b, f) for v, b, f, mine in ways if mine and v == family), reverse=True):
        size = 1 << host_bits
        numbers = {first + each for each in (*range(size > 2, min(size, _HOSTS)), size // 2)}  # RFC 3021: two are hosts
        some = [socket.inet_ntop(family, number.to_bytes(length, "big")) for number in sorted(numbers)]
        hosts += [host for host in some if _covered(host, ways)]
        if len(hosts) >= _HOSTS:
            break
    return hosts


def _covered(address: str, ways: Iterable[_Way]) -> bool:
    """Does the peer have it? The longest prefix decides, as in a routing table."""
    family, _, number = _parsed(address)
    found = [(bits, mine) for way, bits, first, mine in ways if way == family and number >> bits == first >> bits]
    return bool(found) and min(found)[1]


def _parsed(network: str) -> tuple[int, int, int]:
    """The family, how many bits are left to the hosts, and the first address as a number."""
    address, _, length = network.partition("/")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    number = int.from_bytes(socket.inet_pton(family, address), "big")
    return family, _BITS[family] - int(length or _BITS[family]), number
