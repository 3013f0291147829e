"""(Settings, Tunnel, Pod) -> State: what must be there. Pure; the design in one file."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from init_wg.design import pod as pods
from init_wg.design import reach
from init_wg.design.firewall import killswitch
from init_wg.design.firewall.policy import Asked, Gate, Names, Opened
from init_wg.model import networks, server
from init_wg.model.state import (
    DEFAULT,
    DEFAULT_TABLE,
    FWMARK,
    INET,
    INET6,
    IPV6_METRIC,
    LOCAL_TABLE,
    MAIN_TABLE,
    PASS_MARK,
    PREFERENCE_KERNEL_DEFAULT,
    PREFERENCE_KERNEL_MAIN,
    PREFERENCE_MAIN,
    PREFERENCE_NAMES,
    PREFERENCE_REPLY,
    PREFERENCE_TUNNEL,
    PROTOCOL,
    SCOPE_LINK,
    TABLE,
    TUN,
    UNREACHABLE_METRIC,
    Address,
    Device,
    Link,
    OtherTunnel,
    Peer,
    Route,
    Rule,
    State,
    TunnelInterface,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from init_wg.config.settings import Settings
    from init_wg.config.tunnel import Tunnel
    from init_wg.design.bypass import Bypass
    from init_wg.design.pod import Pod

#: Outer IPv6 header 40, UDP 8, WireGuard 16 + 16 (whitepaper, section 5.4.6); an IPv4 header has 20.
OVERHEAD, OVERHEAD_IPV4 = 80, 60
#: wg-quick's default, and the most that is chosen by itself: a pod's link may be wider than its way to the provider.
MAXIMUM_MTU = 1420
#: WireGuard fills packets up to a multiple of this, but not above its own interface's MTU: a peer's may be larger than
#: ours.
PADDING = 16
DNS_PORT = 53
LINK_LOCAL = "169.254.0.0/16"  # RFC 3927, section 7: not to be sent to a router
MINIMUM_IPV6_MTU = 1280  # RFC 8200, section 5


class Circumstances(NamedTuple):
    """The facts that are known only at run time.

    kind: the interface to want, "wireguard" or "tun". endpoints: public key -> address and port, resolved.
    families: those that the pod's kernel has switched on. gate: the egress hook, where it has
    one. others: the pod's interfaces that may be tunnels, but are not called as ours is. dns: where queries go.
    """

    kind: str
    endpoints: dict[str, tuple[str, int]]
    families: tuple[int, ...]
    gate: Gate | None
    bypass: Bypass
    others: frozenset[OtherTunnel]
    dns: Names | Asked
    older: tuple[int, ...] = ()


def state(settings: Settings, tunnel: Tunnel, pod: Pod, now: Circumstances) -> State:
    """Everything that has to be there for the pod to be sealed and tunnelled."""
    return State(
        interfaces=(_interface(settings, tunnel, pod, now),),
        routes=frozenset((server.mark(tunnel.name), *_routes(settings, tunnel, pod, now))),
        rules=frozenset(rule for family in now.families for rule in _rules(family, pod, tunnel)),
        others=frozenset(other for other in now.others if not other.addresses & {str(a.ip) for a in tunnel.addresses}),
        ruleset=killswitch.opened(policy(settings, tunnel, pod, now)) if settings.kill_switch else "",
    )


def nothing(have: State) -> State:
    """The state that is left when all that is ours is taken away."""
    ours = (PREFERENCE_NAMES, PREFERENCE_REPLY, PREFERENCE_MAIN, PREFERENCE_TUNNEL)
    return State(
        interfaces=(),
        routes=frozenset(r for r in have.routes if r.table == MAIN_TABLE and r.protocol != PROTOCOL),
        rules=frozenset(rule for rule in have.rules if rule.preference not in ours),
        others=have.others,
        ruleset="",
    )


def policy(settings: Settings, tunnel: Tunnel, pod: Pod, now: Circumstances) -> Opened:
    """All that the kill-switch's text depends on. IPv6 stays closed where the tunnel has no IPv6 address."""
    on_link = ("fe80::/10", *_on_link(pod))
    neighbours = ("ff02::/16", *on_link, *_without_gateway(pod, now))
    return Opened(
        tunnel=settings.interface,
        uplink=pod.uplink,
        gate=now.gate,
        tunnel_addresses=networks.hosts(a.ip for a in tunnel.addresses if _family(a.version) in now.families),
        inside=networks.spelled(reach.inside(tunnel)),
        pod_addresses=networks.hosts(a.ip for a in pod.addresses),
        endpoints=tuple(sorted(set(now.endpoints.values()))),
        bypass=now.bypass.spelled,
        on_link=networks.spelled(map(networks.interval, on_link)),
        neighbours=networks.spelled(map(networks.interval, neighbours)),
        input_ports=settings.input_ports,
        advertised=bool(pod.origin.announced),
        dns=now.dns,
        older=now.older,
    )


def _on_link(pod: Pod) -> Iterator[str]:
    """The networks of the pod's own link, and its gateways."""
    yield from (str(address.network) for address in pod.addresses)
    yield from (default.gateway for default in pod.defaults.values() if default.gateway)
    for route in pod.routes:
        direct = route.device == pod.uplink and route.gateway is None and route.kind == "unicast"
        passing = pods.is_stray(route, pod) or pods.is_announced(route, pod)
        if direct and route.destination not in DEFAULT.values() and not passing:
            yield route.destination


def _without_gateway(pod: Pod, now: Circumstances) -> Iterator[str]:
    """With a default route that has no gateway, all that may be reached is a neighbour."""
    if not all(default.gateway for default in pod.defaults.values()):
        yield from (address for address, _ in now.endpoints.values())
        yield from now.bypass.networks


def _mtu(tunnel: Tunnel, pod: Pod, kind: str, endpoints: dict[str, tuple[str, int]]) -> int:
    """The file's, or what fits. wireguard-go hands several packets to the kernel at once (UDP_SEGMENT), and loses all
    of them where one would need fragments: there, what fits goes before what the file says."""
    least = MINIMUM_IPV6_MTU if any(address.version == 6 for address in tunnel.addresses) else 0
    if not tunnel.mtu:
        return max(min(pod.mtu - OVERHEAD, MAXIMUM_MTU), least)
    return max(_fitting(pod, _overhead(endpoints), tunnel.mtu), least) if kind == TUN else tunnel.mtu


def _fitting(pod: Pod, overhead: int, wanted: int) -> int:
    """`wanted`, or, where that does not fit the uplink, the most of which packets fit in both directions."""
    room = pod.mtu - overhead
    return wanted if wanted <= room else room - room % PADDING


def _overhead(endpoints: dict[str, tuple[str, int]]) -> int:
    return OVERHEAD if any(":" in address for address, _ in endpoints.values()) else OVERHEAD_IPV4


def mtu_notice(tunnel: Tunnel, pod: Pod, kind: str, endpoints: dict[str, tuple[str, int]]) -> str | None:
    """A sentence about a tunnel's packets that do not fit the uplink; None when they do."""
    overhead = _overhead(endpoints)
    mtu = _mtu(tunnel, pod, kind, endpoints)
    if mtu + overhead <= pod.mtu:
        if not tunnel.mtu or mtu == tunnel.mtu:
            return None
        return (
            f"{tunnel.path}: MTU = {tunnel.mtu} and WireGuard's own {overhead} bytes do not fit {pod.uplink}, which "
            f"takes {pod.mtu}: wireguard-go gets an MTU of {mtu}; write MTU = {mtu}, or leave the line out"
        )
    why = f"{tunnel.path}: MTU = {mtu}" if tunnel.mtu else f"the tunnel's MTU of {mtu}, the least that IPv6 allows,"
    advice = f": write MTU = {_fitting(pod, overhead, mtu)}, or leave the line out" if tunnel.mtu else ""
    return (
        f"{why} and WireGuard's own {overhead} bytes do not fit {pod.uplink}, which takes {pod.mtu}: "
        f"full packets are sent in fragments, which is slow{advice}"
    )


def _interface(settings: Settings, tunnel: Tunnel, pod: Pod, now: Circumstances) -> TunnelInterface:
    addresses = (a for a in tunnel.addresses if _family(a.version) in now.families)
    return TunnelInterface(
        link=Link(settings.interface, now.kind, _mtu(tunnel, pod, now.kind, now.endpoints), up=True),
        device=_device(tunnel, now.endpoints),
        addresses=frozenset(Address(_family(a.version), str(a.ip), a.network.prefixlen) for a in addresses),
    )


def _device(tunnel: Tunnel, endpoints: dict[str, tuple[str, int]]) -> Device:
    return Device(
        private_key=tunnel.private_key,
        listen_port=tunnel.listen_port,
        fwmark=FWMARK,
        peers=frozenset(
            Peer(
                public_key=peer.public_key,
                preshared_key=peer.preshared_key,
                endpoint=endpoints.get(peer.public_key),
                allowed_ips=frozenset(map(str, peer.allowed_ips)),
                keepalive=peer.keepalive,
            )
            for peer in tunnel.peers
        ),
    )


def _rules(family: int, pod: Pod, tunnel: Tunnel) -> Iterator[Rule]:
    """In the order in which the kernel asks them. Those of the kernel itself belong to the State too: without
    them nothing is delivered, or the tunnel's own packets find no way."""
    yield Rule(family, 0, LOCAL_TABLE)
    # Queries that were redirected have the pod's address, and so have their answers when rp_filter looks at them;
    # and a network of the pod's may cover the resolver's address. Queries alone: the pod's own gateway may have it too.
    for resolver in reach.resolvers(tunnel):
        if _family(resolver.version) == family:
            yield Rule(family, PREFERENCE_NAMES, TABLE, destination=str(resolver), port=DNS_PORT)
    # Replies go back the way the request came, and strict rp_filter finds the pod's address on the uplink.
    if family == INET:
        for address in pod.addresses:
            if address.version == 4:
                yield Rule(family, PREFERENCE_REPLY, MAIN_TABLE, source=str(address.ip))
    else:
        # By mark, not by address: see killswitch._replies.
        yield Rule(family, PREFERENCE_REPLY, MAIN_TABLE, mark=PASS_MARK)
    # All that is more specific than a default route: the pod's networks and the bypass.
    yield Rule(family, PREFERENCE_MAIN, MAIN_TABLE, suppress_prefix_length=0)
    # Everything that is not WireGuard's own goes into the tunnel.
    yield Rule(family, PREFERENCE_TUNNEL, TABLE, mark=FWMARK, invert=True)
    yield Rule(family, PREFERENCE_KERNEL_MAIN, MAIN_TABLE)
    if family == INET:
        yield Rule(family, PREFERENCE_KERNEL_DEFAULT, DEFAULT_TABLE)


def _routes(settings: Settings, tunnel: Tunnel, pod: Pod, now: Circumstances) -> Iterator[Route]:
    kept = [route for route in pod.routes if not pods.is_stray(route, pod) or _named(route, now.bypass.networks)]
    yield from kept
    yield from pods.record((route for route in kept if not pods.is_announced(route, pod)), pod.uplink)
    yield from pods.remember(pod.origin, now.families)
    for family in now.families:
        metric = IPV6_METRIC if family == INET6 else 0
        # With wg0 gone, or the firewall flushed: "no route to host", instead of main's default route.
        yield Route(family, TABLE, DEFAULT[family], None, kind="unreachable", metric=UNREACHABLE_METRIC)
        # Nothing link-local is beyond a link, in the tunnel least of all: who looks for a cloud's metadata gets an
        # answer at once. But some providers have a resolver there.
        if family == INET and not any(each.is_link_local for each in _inside(tunnel)):
            yield Route(family, TABLE, LINK_LOCAL, None, kind="unreachable")
        # Also for a family that the tunnel has no address of: its packets end in the kill-switch there, and the
        # replies of that family, which are routed anew by their mark, need some route to come so far.
        scope = SCOPE_LINK if family == INET else 0
        yield Route(family, TABLE, DEFAULT[family], settings.interface, metric=metric, scope=scope)
        if default := pod.defaults.get(family):
            there = {route.destination for route in kept}
            for network in (*now.bypass.networks, *_asked(now)):
                if (":" in network) == (family == INET6) and network not in there:
                    there.add(network)
                    yield _beside(network, default, metric)


def _inside(tunnel: Tunnel) -> Iterator[networks.Address | networks.Network]:
    """What the configuration says is in the tunnel."""
    yield from tunnel.dns
    yield from (interface.ip for interface in tunnel.addresses)
    yield from (network for peer in tunnel.peers for network in peer.allowed_ips)


def _beside(destination: str, default: Route, metric: int) -> Route:
    """The way that the default route goes, for one network: same gateway, device, source and flags."""
    return Route(
        default.family,
        MAIN_TABLE,
        destination,
        default.device,
        gateway=default.gateway,
        source=default.source,
        metric=metric,
        scope=default.scope,
        onlink=default.onlink,
    )


def _asked(now: Circumstances) -> Iterator[str]:
    """The cluster's resolvers, which may be in no bypass network (NodeLocal DNSCache: 169.254.20.10), and the
    forwarder's names for them, so that its queries begin with the pod's source and on the uplink."""
    named = now.dns.resolvers if isinstance(now.dns, Asked) else chain.from_iterable(now.dns.cluster)
    for address in named:
        if not ip_address(address).is_loopback:
            yield str(ip_network(address))


def _named(route: Route, bypass: tuple[str, ...]) -> bool:
    version, first, last = networks.interval(route.destination)
    return any(v == version and low <= first and last <= high for v, low, high in map(networks.interval, bypass))


def _family(version: int) -> int:
    return INET if version == 4 else INET6
