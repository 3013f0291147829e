"""The kernel -> State: what is there, in the same type as what is wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from init_wg.kernel import device, netlink, nft, rtnetlink
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
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from init_wg.model.snapshot import InterfaceAddress, Snapshot
    from init_wg.model.wireguard import Traffic

_KERNEL_RULES = frozenset(
    [Rule(family, PREFERENCE_KERNEL_MAIN, MAIN_TABLE) for family in (INET, INET6)]
    + [Rule(INET, PREFERENCE_KERNEL_DEFAULT, DEFAULT_TABLE)]
)


class Observation(NamedTuple):
    """One look at the pod: the raw snapshot, the State in it, and the sessions by public key."""

    kernel: Snapshot
    state: State
    traffic: dict[str, Traffic]


def observe(kernel: netlink.Socket, interface: str) -> Observation:
    """Read everything that decides where packets go. Raises OSError and KernelError."""
    snapshot = rtnetlink.snapshot(kernel)
    found = next((i for i in snapshot.interfaces if i.name == interface), None)
    reading = device.read(interface, found.kind) if found else None
    state = State(
        link=Link(interface, found.kind, found.mtu, found.up) if found else None,
        device=reading.device if reading else None,
        addresses=frozenset(
            entry.address for entry in snapshot.addresses if found and entry.link == found.number and _counts(entry)
        ),
        routes=frozenset(route for route in snapshot.routes if _concerns(route, interface)),
        rules=frozenset(
            rule for rule in snapshot.rules if rule.preference <= PREFERENCE_TUNNEL or rule in _KERNEL_RULES
        ),
        others=frozenset(_others(snapshot, interface)),
        ruleset=nft.listing(),
    )
    return Observation(snapshot, state, reading.traffic if reading else {})


def _counts(entry: InterfaceAddress) -> bool:
    """The kernel gives a tun device an IPv6 link-local address by itself; nothing can be reached by it."""
    return entry.scope != SCOPE_LINK


def _others(kernel: Snapshot, interface: str) -> Iterator[OtherTunnel]:
    for link in kernel.interfaces:
        if link.kind in (WIREGUARD, TUN) and link.name != interface:
            addresses = (entry.address.address for entry in kernel.addresses if entry.link == link.number)
            yield OtherTunnel(link.name, link.kind, frozenset(addresses))


def _concerns(route: Route, interface: str) -> bool:
    """Our tables whole; of main what is ours, or leads past the tunnel."""
    if route.table in (TABLE, RECORD_TABLE):
        return True
    return route.table == MAIN_TABLE and (route.protocol == PROTOCOL or route.device != interface)
