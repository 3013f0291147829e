"""(settings, register, pod) -> State: what a server sets up. Pure; the design in one file.

The pod's default route stays the uplink's, and the ruleset decides. WireGuard's own packets need no mark.
"""

from __future__ import annotations

from hashlib import sha256
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

from init_wg.config.server_settings import AUTO, NONE, networks_behind
from init_wg.design import desired as egress
from init_wg.design import dns
from init_wg.design.firewall import killswitch, served
from init_wg.errors import ConfigError
from init_wg.model import networks
from init_wg.model.state import (
    DEFAULT_TABLE,
    FORWARD_MARK,
    INET,
    INET6,
    IPV6_METRIC,
    LOCAL_TABLE,
    MAIN_TABLE,
    PREFERENCE_KERNEL_DEFAULT,
    PREFERENCE_KERNEL_MAIN,
    PREFERENCE_MAIN,
    PREFERENCE_REPLY,
    PROTOCOL,
    SCOPE_LINK,
    Address,
    Device,
    Link,
    Peer,
    Route,
    Rule,
    State,
    TunnelInterface,
)
from init_wg.server.design.register import SERVER_NUMBER

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from init_wg.config.server_settings import ServerSettings
    from init_wg.config.settings import Settings
    from init_wg.design.pod import Pod
    from init_wg.model.networks import Network
    from init_wg.server.design.register import Peer as Registered
    from init_wg.server.design.register import Register

    Networks = tuple[Network, ...]

_IIFNAME, _PROHIBIT = 3, 8  # FRA_IIFNAME, FR_ACT_PROHIBIT (linux/fib_rules.h)


class Circumstances(NamedTuple):
    """Facts that are known only at run time.

    kind: the interface to want. families: those that the kernel has switched on. gate, routed: see policy.
    nameservers: the pod's. forwards6: the kernel forwards IPv6, which only a sysctl from outside switches on.
    """

    kind: str
    families: tuple[int, ...]
    gate: bool
    routed: bool
    nameservers: tuple[str, ...]
    forwards6: bool


def inside(settings: ServerSettings, public_key: str) -> Networks:
    """The tunnel's networks: IPv4 and, unless it is switched off, IPv6.

    `auto` is a unique local /64 (RFC 4193), made of the public key: stable, and hardly another server's.
    """
    if settings.subnet6 == NONE:
        return (settings.subnet,)
    if settings.subnet6 == AUTO:
        packed = b"\xfd" + sha256(public_key.encode()).digest()[:7] + bytes(8)
        return settings.subnet, IPv6Network((packed, 64))
    return settings.subnet, ip_network(settings.subnet6)


def last_number(settings: ServerSettings) -> int:
    """The last host number: IPv4's, where the broadcast address is nobody's."""
    return settings.subnet.num_addresses - 2


def addresses(within: Networks, number: int) -> tuple[str, ...]:
    """The addresses of one number."""
    return tuple(str(network[number]) for network in within)


def allowed(named: Iterable[Network]) -> tuple[str, ...]:
    """Where peers may go, spelled as nft does.

    A public network, a default route above all, leaves out what is not public. A private one was meant. In either,
    link-local addresses and the clouds' metadata services are left out, unless they are named exactly.
    """
    found: list[networks.Interval] = []
    for network in named:
        own = [networks.interval(network)]
        if any(
            networks.interval(network) == networks.interval(each) or _within(network, each)
            for each in networks.METADATA
        ):
            found += own
            continue
        holes = networks.METADATA if networks.is_local(network) else (*networks.NOT_PUBLIC, *networks.METADATA)
        found += networks.subtract(own, map(networks.interval, holes))
    return networks.spelled(found)


def _within(network: Network, wide: Network) -> bool:
    return network.version == wide.version and network.subnet_of(wide)  # type: ignore[arg-type]


def behind(settings: ServerSettings, register: Register, within: Networks, pod: Pod) -> dict[str, Networks]:
    """The networks behind each active peer. Raises ConfigError where one overlaps another, or the tunnel's."""
    active = tuple(name for name, peer in register.peers.items() if peer.active)
    inactive = tuple(name for name, peer in register.peers.items() if not peer.active)
    found = networks_behind(settings, (*active, *inactive))
    found = {name: found[name] for name in active if name in found}
    owned = [(f"that of peer {name}", network) for name, several in found.items() for network in several]
    others = [("INTERNAL_SUBNET", within[0]), *(("INTERNAL_SUBNET6", network) for network in within[1:])]
    others += [("the pod's network", address.network) for address in pod.addresses]
    for (whose, one), (other, two) in (*combinations(owned, 2), *((mine, each) for mine in owned for each in others)):
        if one.version == two.version and one.overlaps(two):
            name = whose.removeprefix("that of peer ")
            raise ConfigError(
                f"environment: SERVER_ALLOWEDIPS_PEER_{name}: {one} overlaps {other}, {two}: each network has one place"
            )
    return found


def refuse_overlap(within: Networks, pod: Pod) -> None:
    """Raises ConfigError where the tunnel's network is the pod's, too: one of the two could not be reached."""
    for network in within:
        for address in pod.addresses:
            if network.version == address.version and network.overlaps(address.network):
                name = "INTERNAL_SUBNET" if network.version == 4 else "INTERNAL_SUBNET6"
                raise ConfigError(
                    f"environment: {name}: {network} overlaps the pod's own network {address.network}: take another one"
                )


def state(
    settings: Settings,
    server: ServerSettings,
    register: Register,
    within: Networks,
    pod: Pod,
    now: Circumstances,
    have: State,
) -> State:
    """Everything that has to be there. Raises ConfigError."""
    refuse_overlap(within, pod)
    sites = behind(server, register, within, pod)
    own = tuple(network for network in within if family(network) in now.families)
    routes = {route for route in have.routes if route.table == MAIN_TABLE and route.protocol != PROTOCOL}
    routes.update(_routes(settings.interface, sites, now))
    interface = TunnelInterface(
        Link(settings.interface, now.kind, mtu(pod, within), up=True),
        _device(register, within, sites),
        frozenset(Address(family(n), str(n[SERVER_NUMBER]), n.prefixlen) for n in own),
    )
    return State(
        interfaces=(interface,),
        routes=frozenset(routes),
        rules=frozenset(_rules(settings.interface, pod.uplink, now.families)),
        others=frozenset(
            each for each in have.others if not each.addresses.intersection(addresses(own, SERVER_NUMBER))
        ),
        ruleset=served.opened(policy(settings, server, within, sites, pod, now)),
        forwarding=frozenset((settings.interface, pod.uplink)),
    )


def mtu(pod: Pod, within: Networks) -> int:
    """In bytes: what fits the uplink with IPv6 outside, and the peers' files have the same."""
    least = egress.MINIMUM_IPV6_MTU if len(within) > 1 else 0
    return max(min(pod.mtu - egress.OVERHEAD, egress.MAXIMUM_MTU), least)


def policy(
    settings: Settings,
    server: ServerSettings,
    within: Networks,
    sites: dict[str, Networks],
    pod: Pod,
    now: Circumstances,
) -> served.Served:
    """All that the ruleset's text depends on."""
    own = [network[SERVER_NUMBER] for network in within if family(network) in now.families]
    everywhere = (*within, *(network for several in sites.values() for network in several))
    return served.Served(
        tunnel=settings.interface,
        uplink=pod.uplink,
        links=pod.links if now.gate else (),
        routed=now.routed,
        own=networks.hosts(own),
        inside=networks.spelled(map(networks.interval, everywhere)),
        allowed=allowed(server.allowed_ips),
        peer_to_peer=server.peer_to_peer,
        names=server.peer_dns is None,
        peer_dns=networks.hosts(server.peer_dns or ()),
        resolvers=networks.hosts(a for a in now.nameservers if not ip_address(a).is_loopback),
        docker=killswitch.DOCKER_RESOLVER in now.nameservers,
        pod_addresses=networks.hosts(address.ip for address in pod.addresses),
        health_port=settings.health_port if settings.health_probe else None,
        advertised=bool(pod.origin.announced),
        forwards6=now.forwards6,
    )


def forwarder(listening: Iterable[str], nameservers: Iterable[str]) -> tuple[str, ...]:
    """dnsmasq's command line: it asks the pod's resolvers for the peers. On the loopback the watchdog asks whether it
    lives."""
    return dns.dnsmasq(("127.0.0.1", *listening), nameservers)


def _device(register: Register, within: Networks, sites: dict[str, Networks]) -> Device:
    peers = frozenset(_peer(peer, within, sites.get(name, ())) for name, peer in register.peers.items() if peer.active)
    return Device(register.key, served.PORT, 0, peers)


def _peer(peer: Registered, within: Networks, site: Networks) -> Peer:
    """It has no endpoint, because it comes to us, and no keepalive, because that is for who is behind a NAT."""
    own = (f"{address}/{128 if ':' in address else 32}" for address in addresses(within, peer.number))
    return Peer(peer.public_key, peer.preshared_key, None, frozenset((*own, *map(str, site))), 0)


def _routes(interface: str, sites: dict[str, Networks], now: Circumstances) -> Iterator[Route]:
    """To the networks behind peers; to the peers themselves the kernel makes its own."""
    for network in (network for several in sites.values() for network in several):
        version = family(network)
        if version in now.families:
            metric = IPV6_METRIC if version == INET6 else 0
            scope = SCOPE_LINK if version == INET else 0
            yield Route(version, MAIN_TABLE, str(network), interface, metric=metric, scope=scope)


def _rules(tunnel: str, uplink: str, families: Iterable[int]) -> Iterator[Rule]:
    """Forwarded is what the ruleset has marked, and nothing else: also while there is no ruleset. What is for the pod
    itself is found in the table of local addresses before. Then the kernel's own rules."""
    for version in families:
        yield Rule(version, 0, LOCAL_TABLE)
        for name in (tunnel, uplink):
            coming_in = ((_IIFNAME, name.encode() + b"\0"),)
            yield Rule(version, PREFERENCE_REPLY, MAIN_TABLE, mark=FORWARD_MARK, other=coming_in)
            yield Rule(version, PREFERENCE_MAIN, 0, action=_PROHIBIT, other=coming_in)
        yield Rule(version, PREFERENCE_KERNEL_MAIN, MAIN_TABLE)
        if version == INET:
            yield Rule(version, PREFERENCE_KERNEL_DEFAULT, DEFAULT_TABLE)


def family(network: IPv4Network | IPv6Network) -> int:
    """AF_INET or AF_INET6."""
    return INET if network.version == 4 else INET6
