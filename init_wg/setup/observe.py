"""The kernel -> State: what is there, in the same type as what is wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from init_wg.design import dns
from init_wg.design.dns import ResolvConf
from init_wg.kernel import device, netlink, nft, rtnetlink_read
from init_wg.model.state import (
    DEFAULT_TABLE,
    INET,
    INET6,
    MAIN_TABLE,
    PREFERENCE_KERNEL_DEFAULT,
    PREFERENCE_KERNEL_MAIN,
    PREFERENCE_TUNNEL,
    PROTOCOL,
    RECORD_TABLE,
    SCOPE_LINK,
    TABLE,
    TUN,
    WIREGUARD,
    Link,
    OtherTunnel,
    Route,
    Rule,
    State,
    TunnelInterface,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from init_wg.model.snapshot import Interface, InterfaceAddress, Snapshot
    from init_wg.model.wireguard import Reading, Traffic

RESOLV_CONF = "/etc/resolv.conf"
_KERNEL_RULES = frozenset(
    [Rule(family, PREFERENCE_KERNEL_MAIN, MAIN_TABLE) for family in (INET, INET6)]
    + [Rule(INET, PREFERENCE_KERNEL_DEFAULT, DEFAULT_TABLE)]
)


class Observation(NamedTuple):
    """One look at the pod: the raw snapshot, the State in it, the sessions by interface and public key, and its own
    resolvers."""

    kernel: Snapshot
    state: State
    traffic: dict[str, dict[str, Traffic]]
    resolv_conf: ResolvConf

    def sessions(self, interface: str) -> dict[str, Traffic]:
        """Those of one interface, by public key; empty when it does not answer."""
        return self.traffic.get(interface, {})


def observe(kernel: netlink.Socket, *names: str) -> Observation:
    """Read everything that decides where packets go. `names` are our interfaces'. Raises OSError and KernelError."""
    snapshot = rtnetlink_read.snapshot(kernel)
    ours = sorted((each for each in snapshot.interfaces if each.name in names), key=lambda each: each.name)
    readings = {each.name: device.read(each.name, each.kind) for each in ours}
    state = State(
        interfaces=tuple(_ours(each, readings[each.name], snapshot) for each in ours),
        routes=frozenset(route for route in snapshot.routes if _concerns(route, names)),
        rules=frozenset(
            rule for rule in snapshot.rules if rule.preference <= PREFERENCE_TUNNEL or rule in _KERNEL_RULES
        ),
        others=frozenset(_others(snapshot, names)),
        ruleset=nft.listing(),
    )
    return Observation(
        snapshot, state, {name: reading.traffic for name, reading in readings.items() if reading}, resolv_conf()
    )


def look(*names: str) -> Observation:
    """The same with a socket of its own."""
    with netlink.Socket() as kernel:
        return observe(kernel, *names)


def resolv_conf() -> ResolvConf:
    """The pod's; an empty one where there is none."""
    try:
        with open(RESOLV_CONF, encoding="utf-8", errors="replace") as file:  # of people, in whatever encoding
            return dns.parse(file.read())
    except OSError:
        return ResolvConf((), ())


def _ours(link: Interface, reading: Reading | None, kernel: Snapshot) -> TunnelInterface:
    addresses = (entry.address for entry in kernel.addresses if entry.link == link.number and _counts(entry))
    return TunnelInterface(
        Link(link.name, link.kind, link.mtu, link.up), reading.device if reading else None, frozenset(addresses)
    )


def _counts(entry: InterfaceAddress) -> bool:
    """The kernel gives a tun device an IPv6 link-local address by itself; nothing can be reached by it."""
    return entry.scope != SCOPE_LINK


def _others(kernel: Snapshot, names: tuple[str, ...]) -> Iterator[OtherTunnel]:
    for link in kernel.interfaces:
        if link.kind in (WIREGUARD, TUN) and link.name not in names:
            addresses = (entry.address.address for entry in kernel.addresses if entry.link == link.number)
            yield OtherTunnel(link.name, link.kind, frozenset(addresses))


def _concerns(route: Route, names: tuple[str, ...]) -> bool:
    """Our tables whole; of main what is ours, or leads past the tunnel."""
    if route.table in (TABLE, RECORD_TABLE):
        return True
    return route.table == MAIN_TABLE and (route.protocol == PROTOCOL or route.device not in names)
