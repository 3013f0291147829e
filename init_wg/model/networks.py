"""Sets of networks, as sorted disjoint intervals of numbers: the spelling that nft prints back."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from socket import inet_ntop, inet_pton  # with these nft and ip read and print
from typing import TYPE_CHECKING

from init_wg.model.state import INET, INET6

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address
Interval = tuple[int, int, int]  # version, first and last address

PRIVATE = tuple(map(ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")))
#: Not public, though not RFC 1918 either: carriers and some clouds' pods (RFC 6598), and link-local.
LOCAL = (*PRIVATE, *map(ip_network, ("100.64.0.0/10", "169.254.0.0/16", "fe80::/10")))
#: Where nobody on the internet is either: this host, multicast and reserved; all of IPv6 but global unicast.
NOT_PUBLIC = (
    *LOCAL,
    *map(ip_network, ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/3", "::/3", "4000::/2", "8000::/1")),
)

#: Link-local services of a node, and where clouds hand out a machine's credentials, also at addresses that look private
#: (AWS, Google, Alibaba): what nobody named must not reach them.
METADATA = tuple(
    map(ip_network, ("169.254.0.0/16", "fe80::/10", "fd00:ec2::/32", "fd20:ce::254/128", "100.100.100.200/32"))
)

_FAMILY, _BITS = {4: INET, 6: INET6}, {4: 32, 6: 128}
#: How a length is written, and how many bits it leaves to the hosts.
_HOST_BITS = {v: {"": 0, **{f"/{length}": bits - length for length in range(bits + 1)}} for v, bits in _BITS.items()}


def is_local(network: Network) -> bool:
    """Does all of it lie in address space that is nobody's on the internet?"""
    return any(network.version == wide.version and network.subnet_of(wide) for wide in LOCAL)  # type: ignore[arg-type]


def covers(network: Network, address: Address) -> bool:
    """`in`, without the error for the other family."""
    return network.version == address.version and address in network


def hosts(addresses: Iterable[Address | str]) -> tuple[str, ...]:
    """Each address once, in its one spelling and in nft's order: IPv4 first, then by number."""
    found = {ip_address(address) for address in addresses}
    return tuple(map(str, sorted(found, key=lambda address: (address.version, int(address)))))


def without(networks: Iterable[Network], holes: Iterable[Address | Network]) -> list[Network]:
    """The networks with single addresses, or smaller networks, cut out."""
    left = list(networks)
    for hole in map(ip_network, holes):
        left = [part for network in left for part in _outside(network, hole)]
    return left


def _outside(network: Network, hole: Network) -> Iterable[Network]:
    if network.version != hole.version or not network.overlaps(hole):
        return (network,)
    return () if network.subnet_of(hole) else network.address_exclude(hole)  # type: ignore[arg-type]


def interval(network: Network | str) -> Interval:
    """All that a network covers. Text may be whatever ipaddress takes for one, host bits too. Raises ValueError."""
    address, slash, length = (text := str(network)).partition("/")
    version = 6 if ":" in address else 4
    try:  # the usual spelling, at a fifth of ipaddress's price: there may be thousands
        number = int.from_bytes(inet_pton(_FAMILY[version], address), "big")
        host_bits = _HOST_BITS[version][slash + length]
    except (OSError, KeyError):
        found = ip_network(text, strict=False)
        number, host_bits = int(found[0]), found.max_prefixlen - found.prefixlen
    first = number >> host_bits << host_bits
    return version, first, first + (1 << host_bits) - 1


def merge(intervals: Iterable[Interval]) -> list[Interval]:
    """Sorted and disjoint; what overlaps or touches is one, as nft's interval sets do it."""
    merged: list[Interval] = []
    for version, first, last in sorted(intervals):
        if merged and merged[-1][0] == version and first <= merged[-1][2] + 1:
            merged[-1] = (version, merged[-1][1], max(last, merged[-1][2]))
        else:
            merged.append((version, first, last))
    return merged


def subtract(intervals: Iterable[Interval], holes: Iterable[Interval]) -> list[Interval]:
    """The rest of the intervals without the holes: sorted and disjoint."""
    left: list[Interval] = []
    cuts = merge(holes)
    for version, start, last in merge(intervals):
        first = start
        for _, low, high in (cut for cut in cuts if cut[0] == version and cut[1] <= last and cut[2] >= start):
            if low > first:
                left.append((version, first, low - 1))
            first = max(first, high + 1)
        if first <= last:
            left.append((version, first, last))
    return left


def prefixes(intervals: Iterable[Interval]) -> tuple[str, ...]:
    """The fewest prefixes that cover the same, as routes have them: a host with its length."""
    return both(intervals)[0]


def spelled(intervals: Iterable[Interval]) -> tuple[str, ...]:
    """As nft prints them: a prefix where the interval is one (a host without its length), else first-last."""
    return both(intervals)[1]


def both(intervals: Iterable[Interval]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The prefixes, and nft's spelling."""
    found: list[str] = []
    spellings: list[str] = []
    for version, first, last in merge(intervals):
        parts = list(_prefixes(version, first, last))
        found += parts
        if len(parts) > 1:
            spellings.append(f"{_show(version, first)}-{_show(version, last)}")
        else:
            spellings.append(parts[0] if first < last else _show(version, first))
    return tuple(found), tuple(spellings)


def _prefixes(version: int, first: int, last: int) -> Iterator[str]:
    """The largest that begins where the interval does and does not reach further, and so on."""
    while first <= last:
        host_bits = (last - first + 1).bit_length() - 1
        if first:
            host_bits = min(host_bits, (first & -first).bit_length() - 1)
        yield f"{_show(version, first)}/{_BITS[version] - host_bits}"
        first += 1 << host_bits


def _show(version: int, number: int) -> str:
    return inet_ntop(_FAMILY[version], number.to_bytes(_BITS[version] // 8, "big"))
