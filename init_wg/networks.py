"""Sets of networks, as sorted disjoint intervals of numbers: the spelling that nft prints back."""

from __future__ import annotations

from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
    summarize_address_range,
)
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address

PRIVATE = tuple(map(ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")))
#: Not public, though not RFC 1918 either: carriers and some clouds' pods (RFC 6598), and link-local.
LOCAL = (*PRIVATE, *map(ip_network, ("100.64.0.0/10", "169.254.0.0/16", "fe80::/10")))


_BITS = {4: 32, 6: 128}
_ADDRESS: dict[int, type[Address]] = {4: IPv4Address, 6: IPv6Address}
_NETWORK: dict[int, type[Network]] = {4: IPv4Network, 6: IPv6Network}


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


def without(networks: Iterable[Network], holes: Iterable[Address]) -> list[Network]:
    """The networks with single addresses cut out."""
    left = list(networks)
    for hole in holes:
        point = ip_network(hole)
        left = [
            part
            for network in left
            for part in (network.address_exclude(point) if covers(network, hole) else (network,))  # type: ignore[arg-type]
        ]
    return left


def merge(networks: Iterable[Network]) -> list[tuple[int, int, int]]:
    """Sorted, disjoint (version, first, last); what overlaps or touches is one, as nft's interval sets do it."""
    merged: list[tuple[int, int, int]] = []
    for version, first, last in sorted(map(_interval, networks)):
        if merged and merged[-1][0] == version and first <= merged[-1][2] + 1:
            merged[-1] = (version, merged[-1][1], max(last, merged[-1][2]))
        else:
            merged.append((version, first, last))
    return merged


def spelled(networks: Iterable[Network]) -> tuple[str, ...]:
    """As nft prints them: a prefix where the interval is one (a host without its length), else first-last."""
    return tuple(_spell(*interval) for interval in merge(networks))


def prefixes(networks: Iterable[Network]) -> tuple[Network, ...]:
    """The fewest prefixes that cover the same."""
    found: list[Network] = []
    for version, first, last in merge(networks):
        size = last - first + 1
        if _is_prefix(first, size):
            found.append(_NETWORK[version]((first, _BITS[version] - size.bit_length() + 1)))
        else:
            found += summarize_address_range(_ADDRESS[version](first), _ADDRESS[version](last))
    return tuple(found)


def _spell(version: int, first: int, last: int) -> str:
    address, size = _ADDRESS[version], last - first + 1
    if size == 1:
        return str(address(first))
    if _is_prefix(first, size):
        return f"{address(first)}/{_BITS[version] - size.bit_length() + 1}"
    return f"{address(first)}-{address(last)}"


def _interval(network: Network) -> tuple[int, int, int]:
    first = int(network.network_address)
    return network.version, first, first + (1 << (network.max_prefixlen - network.prefixlen)) - 1


def _is_prefix(first: int, size: int) -> bool:
    return size & (size - 1) == 0 and first % size == 0
