"""Where the AllowedIPs of a file lead: what is inside the tunnel, and what is not. Pure.

WireGuard sends a packet to the peer whose AllowedIPs cover its destination. For any other the kernel answers
ENOKEY, and wireguard-go swallows it without a word: nothing may be asked, provoked or redirected there.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING

from init_wg.model import networks

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from init_wg.config.tunnel import Peer, Tunnel
    from init_wg.model.networks import Address, Interval, Network

#: How many networks a sentence lists.
_LISTED = 6


def inside(tunnel: Tunnel) -> tuple[Interval, ...]:
    """All that goes into the tunnel, sorted and disjoint: the AllowedIPs of the families that it has an address of."""
    return _inside(tunnel.peers, frozenset(address.version for address in tunnel.addresses))


@lru_cache(maxsize=4)  # a run asks often, and there may be thousands
def _inside(peers: tuple[Peer, ...], versions: frozenset[int]) -> tuple[Interval, ...]:
    allowed = (network for peer in peers for network in peer.allowed_ips if network.version in versions)
    return tuple(networks.merge(map(networks.interval, allowed)))


def covers(tunnel: Tunnel, address: Address) -> bool:
    """Does this address lie inside the tunnel?"""
    number = int(address)
    return any(v == address.version and first <= number <= last for v, first, last in inside(tunnel))


def resolvers(tunnel: Tunnel) -> tuple[Address, ...]:
    """The DNS servers of the file that can be asked through the tunnel, in its order."""
    return tuple(address for address in tunnel.dns if covers(tunnel, address))


def targets(tunnel: Tunnel, peer: Peer) -> Iterator[str]:
    """Addresses to which a packet goes by this peer: resolvers first, then hosts of its networks, never the tunnel's
    own."""
    own = {interface.ip for interface in tunnel.addresses}
    versions = {address.version for address in own}
    found = chain(tunnel.dns, chain.from_iterable(map(_hosts, peer.allowed_ips)))
    for address in found:
        if address.version in versions and address not in own and _peer_of(tunnel, address) is peer:
            yield str(address)


def _hosts(network: Network) -> Iterator[Address]:
    """The first ones, and one in the middle. Not the network's own address, unless it has no other."""
    at = 0 if network.num_addresses <= 2 else 1  # RFC 3021: both of two are hosts
    yield from (network[number] for number in range(at, min(network.num_addresses, 4)))
    if network.num_addresses > 4:
        yield network[network.num_addresses // 2]


def _peer_of(tunnel: Tunnel, address: Address) -> Peer | None:
    """The longest prefix decides, as in a routing table."""
    ways = [(n.prefixlen, peer) for peer in tunnel.peers for n in peer.allowed_ips if networks.covers(n, address)]
    return max(ways, key=lambda way: way[0])[1] if ways else None


def notes(tunnel: Tunnel, bypass: Iterable[str] | None) -> Iterator[str]:
    """All that will not be reached, in sentences. bypass: the networks beside the tunnel; None: not known here."""
    usable = resolvers(tunnel)
    lost = [str(address) for address in tunnel.dns if address not in usable]
    if lost:
        yield (
            f"{tunnel.path}: DNS {', '.join(lost)} is in no AllowedIPs of a family that the tunnel has an address of, "
            "so it cannot be asked through the tunnel and is not used: add it to AllowedIPs, or name another resolver"
        )
    allowed = inside(tunnel)
    versions = {address.version for address in tunnel.addresses}
    everything = [networks.interval(wide) for wide in ("0.0.0.0/0", "::/0") if networks.interval(wide)[0] in versions]
    if list(allowed) == everything:
        return
    beside = [networks.interval(network) for network in bypass or ()]
    own = [networks.interval(str(address.ip)) for address in tunnel.addresses]
    private = [networks.interval(wide) for wide in networks.PRIVATE if wide.version in versions]
    closed = networks.subtract(private, [*allowed, *beside])
    if networks.subtract(closed, own):
        unless = "unless BYPASS_CIDRS names them" if bypass is None else "and BYPASS_CIDRS does not name them"
        yield (
            f"{tunnel.path}: AllowedIPs leave out the private networks {_list(networks.spelled(closed))}, {unless}: "
            "connections there are refused; name those that are needed, as in BYPASS_CIDRS=auto,192.168.1.0/24"
        )
    nobodys = [networks.interval(wide) for wide in networks.NOT_PUBLIC]
    public = networks.spelled(networks.subtract(everything, [*allowed, *beside, *nobodys]))
    if len(public) > _LISTED:
        yield f"{tunnel.path}: only {_list(networks.spelled(allowed))} is inside the tunnel: all else is refused"
    elif public:
        yield f"{tunnel.path}: AllowedIPs leave out {_list(public)}: connections there are refused"


def _list(found: tuple[str, ...]) -> str:
    more = len(found) - _LISTED
    return ", ".join(found[:_LISTED]) + (f" and {more} more" if more > 0 else "")
