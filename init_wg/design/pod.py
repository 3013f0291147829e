"""The pod as it is: its uplink, its own routes, its resolvers. Derived from one snapshot, without I/O."""

from __future__ import annotations

from ipaddress import ip_interface, ip_network
from typing import TYPE_CHECKING, NamedTuple

from init_wg.errors import ConfigError, KernelError
from init_wg.model.networks import is_local
from init_wg.model.state import (
    DEFAULT,
    FAMILIES,
    MAIN_TABLE,
    PROTOCOL,
    PROTOCOL_RA,
    RECORD_TABLE,
    SCOPE_LINK,
    Route,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from ipaddress import IPv4Interface, IPv6Interface

    from init_wg.config.tunnel import Tunnel
    from init_wg.model.snapshot import Snapshot


class Pod(NamedTuple):
    """What the tunnel is built on.

    uplink, mtu: the interface of the main table's best default route, and its MTU in bytes.
    links: every interface but the loopback and the tunnel.
    addresses: the uplink's own (without IPv6's link-local ones).
    defaults: family -> the default route that WireGuard's own packets take; a family without one is missing.
    routes: the main table's routes that are not ours, and those that are only in our record of it.
    """

    uplink: str
    mtu: int
    links: tuple[str, ...]
    addresses: tuple[IPv4Interface | IPv6Interface, ...]
    defaults: dict[int, Route]
    routes: tuple[Route, ...]
    recorded: tuple[Route, ...]


def discover(kernel: Snapshot, tunnel: str) -> Pod:
    """Raises KernelError when there is no uplink. `tunnel` is the name of the interface that is ours."""
    names = {interface.number: interface for interface in kernel.interfaces}
    links = tuple(sorted(i.name for i in kernel.interfaces if i.name not in ("lo", tunnel)))
    if not links:
        raise KernelError("this pod has no network interface but the loopback: nothing to send the tunnel through")
    main = tuple(
        route
        for route in kernel.routes
        if route.table == MAIN_TABLE and route.protocol != PROTOCOL and route.device != tunnel
    )
    recorded = tuple(
        route._replace(table=MAIN_TABLE)
        for route in kernel.routes
        if route.table == RECORD_TABLE and route.device not in (tunnel, None)
    )
    # What main has lost is taken from the record: a tunnel without the uplink's default route goes nowhere.
    defaults = {f: r for f in FAMILIES if (r := _default(main, f) or _default(recorded, f))}
    if not defaults:
        raise KernelError(
            f"the pod has no default route (interfaces: {', '.join(links)}): the tunnel's packets need one; "
            "is the pod's network plugin ready?"
        )
    uplink = str(next(iter(defaults.values())).device)
    defaults = {family: route for family, route in defaults.items() if route.device == uplink}
    addresses = tuple(
        ip_interface(f"{entry.address.address}/{entry.address.prefix_length}")
        for entry in kernel.addresses
        if names[entry.link].name == uplink and entry.scope < SCOPE_LINK
    )
    mtu = next(interface.mtu for interface in kernel.interfaces if interface.name == uplink)
    lost = tuple(route for route in _restorable(recorded, addresses) if _twin(route) not in set(map(_twin, main)))
    return Pod(uplink, mtu, links, addresses, defaults, main + lost, recorded)


def apart(pod: Pod, tunnel: Tunnel, *, new: bool) -> Pod:
    """The pod without the tunnel's addresses, which somebody may have put on its uplink, too.

    new: the tunnel has not got them yet. Raises ConfigError when they were the pod's, or its gateway's, before.
    """
    inside = {interface.ip for interface in tunnel.addresses}
    gateways = {default.gateway for default in pod.defaults.values()}
    taken = [a for a in tunnel.addresses if a.ip in {own.ip for own in pod.addresses} or str(a.ip) in gateways]
    if new and taken:
        whose = "this pod's gateway" if str(taken[0].ip) in gateways else f"this pod itself, on {pod.uplink}"
        raise ConfigError(
            f"{tunnel.path}: Address {taken[0].ip} belongs to {whose}: the pod's network and the provider's overlap; "
            "give the pod's network another range, or take another server's file"
        )
    return pod._replace(addresses=tuple(own for own in pod.addresses if own.ip not in inside))


def record(routes: Iterable[Route], uplink: str) -> frozenset[Route]:
    """The copies that help to put the uplink's routes back. Not those that the kernel or a router renews."""
    return frozenset(
        route._replace(table=RECORD_TABLE)
        for route in routes
        if route.device == uplink and route.protocol != PROTOCOL_RA and not route.destination.startswith("fe80:")
    )


def is_stray(route: Route, pod: Pod) -> bool:
    """A route that no network plugin makes and nobody named: it leads public addresses past the tunnel.

    Kept are default routes, private networks, and the link that the pod itself or its gateway is on.
    """
    if route.destination in DEFAULT.values() or route.kind != "unicast":
        return False
    network = ip_network(route.destination)
    gateways = {default.gateway for default in pod.defaults.values()}
    on_link = route.gateway is None and (
        any(address.version == network.version and address.ip in network for address in pod.addresses)
        or str(network.network_address) in gateways
    )
    return not on_link and not is_local(network)


def _default(routes: Iterable[Route], family: int) -> Route | None:
    found = [
        r
        for r in routes
        if r.family == family and r.destination == DEFAULT[family] and r.kind == "unicast" and r.device
    ]
    return min(found, key=lambda route: route.metric, default=None)


def _restorable(recorded: Iterable[Route], addresses: Iterable[IPv4Interface | IPv6Interface]) -> Iterable[Route]:
    """A link's own network is put back only while the pod has an address in it: a new address brings its own."""
    mine = tuple(addresses)
    for route in recorded:
        network = ip_network(route.destination)
        own_link = route.gateway is None and network.prefixlen not in (0, network.max_prefixlen)
        if not own_link or any(a.version == network.version and a.ip in network for a in mine):
            yield route


def _twin(route: Route) -> tuple[int, str, int]:
    """What makes two routes of one table the same place."""
    return route.family, route.destination, route.metric
