"""The pod as it is: its uplink, its own routes, its resolvers. Derived from one snapshot, without I/O."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network
from typing import TYPE_CHECKING, NamedTuple

from init_wg.errors import ConfigError, KernelError
from init_wg.model.networks import is_local
from init_wg.model.state import (
    DEFAULT,
    FAMILIES,
    INET,
    INET6,
    MAIN_TABLE,
    METRIC_ADDRESS,
    METRIC_ANNOUNCED,
    METRIC_NETWORK,
    METRIC_SEEN,
    PROTOCOL,
    PROTOCOL_KERNEL,
    PROTOCOL_RA,
    RECORD_TABLE,
    SCOPE_LINK,
    Route,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from ipaddress import IPv4Interface, IPv6Interface

    from init_wg.config.tunnel import Tunnel
    from init_wg.model.snapshot import InterfaceAddress, Snapshot


#: A kind of route that no look-up takes for a way, in a table that none asks.
_REMEMBERED = "throw"
_METRICS = (METRIC_NETWORK, METRIC_ADDRESS, METRIC_ANNOUNCED)  # in the order of Origin's fields


class Origin(NamedTuple):
    """The pod's networks and addresses when it was first set up: the destinations of the uplink's routes, its
    addresses, and the IPv6 prefixes that a router had advertised. A neighbour's later advertisement opens nothing."""

    networks: tuple[str, ...]
    addresses: tuple[str, ...]
    announced: tuple[str, ...]


class Pod(NamedTuple):
    """The ground on which the tunnel is built.

    uplink, mtu: the interface of the main table's best default route, and its MTU in bytes.
    links: every interface but the loopback and the tunnel.
    addresses: the uplink's own (without IPv6's link-local ones, and those that somebody advertised later).
    defaults: family -> the default route that WireGuard's own packets take; a family without one is missing.
    routes: the main table's routes that are not ours, and those that are only in our record of it.
    origin: what of all that was there from the beginning.
    """

    uplink: str
    mtu: int
    links: tuple[str, ...]
    addresses: tuple[IPv4Interface | IPv6Interface, ...]
    defaults: dict[int, Route]
    routes: tuple[Route, ...]
    recorded: tuple[Route, ...]
    origin: Origin


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
    entries = [each for each in kernel.addresses if names[each.link].name == uplink and each.scope < SCOPE_LINK]
    lost = tuple(
        route
        for route in _restorable(recorded, [_interface(entry) for entry in entries])
        if _twin(route) not in set(map(_twin, main))
    )
    routes = main + lost
    origin = _remembered(kernel.routes, entries) or _origin(routes, entries, uplink)
    mtu = next(interface.mtu for interface in kernel.interfaces if interface.name == uplink)
    return Pod(uplink, mtu, links, _addresses(entries, origin), defaults, routes, recorded, origin)


def _addresses(entries: Iterable[InterfaceAddress], origin: Origin) -> tuple[IPv4Interface | IPv6Interface, ...]:
    """The pod's own: those that a neighbour announced only if they were announced at the first time."""
    announced = tuple(map(ip_network, origin.announced))
    return tuple(
        _interface(entry)
        for entry in entries
        if not entry.announced or any(ip_address(entry.address.address) in network for network in announced)
    )


def _interface(entry: InterfaceAddress) -> IPv4Interface | IPv6Interface:
    return ip_interface(f"{entry.address.address}/{entry.address.prefix_length}")


def _origin(routes: Iterable[Route], entries: Iterable[InterfaceAddress], uplink: str) -> Origin:
    """At the first time, all that is there."""
    entries = tuple(entries)
    routes = [r for r in routes if r.device == uplink and r.kind == "unicast" and not r.destination.startswith("fe80:")]
    advertised = [str(_interface(entry).network) for entry in entries if entry.announced]
    advertised += [route.destination for route in routes if route.protocol == PROTOCOL_RA]
    return Origin(
        networks=_each(route.destination for route in routes if route.destination not in DEFAULT.values()),
        addresses=_each(str(ip_network(entry.address.address)) for entry in entries),
        announced=_each(advertised),
    )


def _remembered(routes: Iterable[Route], entries: Iterable[InterfaceAddress]) -> Origin | None:
    """From our record; None when there is none, or when the pod was moved: it has addresses, and none of those."""
    found: dict[int, list[str]] = {}
    for route in routes:
        if route.table == RECORD_TABLE and route.kind == _REMEMBERED:
            found.setdefault(route.metric, []).append(route.destination)
    if METRIC_SEEN not in found:
        return None
    before = set(found.get(METRIC_ADDRESS, ()))
    now = {str(ip_network(entry.address.address)) for entry in entries if not entry.announced}
    if now and before.isdisjoint(now):
        return None
    return Origin(*(_each(found.get(metric, ())) for metric in _METRICS))


def remember(origin: Origin, families: Iterable[int]) -> Iterable[Route]:
    """The routes that keep it in the kernel, for as long as the pod's network lives. No rule looks them up."""
    families = tuple(families)
    yield Route(INET, RECORD_TABLE, DEFAULT[INET], None, kind=_REMEMBERED, metric=METRIC_SEEN)
    for metric, destinations in zip(_METRICS, origin, strict=True):
        for destination in destinations:
            family = INET6 if ":" in destination else INET
            if family in families:
                yield Route(family, RECORD_TABLE, destination, None, kind=_REMEMBERED, metric=metric)


def _each(destinations: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(destinations)))


def is_announced(route: Route, pod: Pod) -> bool:
    """An IPv6 route that was advertised since the beginning, or that the kernel made for what was: they come and go."""
    if route.family != INET6 or route.device != pod.uplink or route.protocol not in (PROTOCOL_KERNEL, PROTOCOL_RA):
        return False
    if route.destination == DEFAULT[INET6] or route.destination in pod.origin.networks:
        return False
    network = ip_network(route.destination)
    own = any(address.version == 6 and address.ip in network for address in pod.addresses)
    return route.protocol == PROTOCOL_RA or not (own or network.is_link_local)


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
    if route.destination in DEFAULT.values() or route.kind != "unicast" or route.protocol == PROTOCOL_RA:
        return False
    if is_announced(route, pod):
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
