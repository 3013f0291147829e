"""What the unit tests are made of: one ordinary pod with its tunnel, and random policies."""

from __future__ import annotations

import base64
import hashlib
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface, ip_network
from typing import Any

from hypothesis import strategies as st

from init_wg.config.settings import Settings, read
from init_wg.config.tunnel import Endpoint, Peer, Tunnel
from init_wg.design.bypass import Bypass
from init_wg.design.desired import Circumstances
from init_wg.design.firewall.policy import Asked, Gate, Hole, Names, Opened, Policy, Resolving, Sealed
from init_wg.design.pod import Pod, discover
from init_wg.model import networks
from init_wg.model.ports import merge
from init_wg.model.secret import Secret
from init_wg.model.snapshot import Interface, InterfaceAddress, Snapshot
from init_wg.model.state import INET, INET6, IPV6_METRIC, MAIN_TABLE, PROTOCOL_KERNEL, SCOPE_LINK, Address, Route


def key(text: str) -> str:
    """A well-formed key that nobody uses."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def clamped(text: str) -> str:
    """The private key that WireGuard makes of this one (RFC 7748, section 5)."""
    raw = bytearray(base64.b64decode(text))
    raw[0], raw[31] = raw[0] & 248, raw[31] & 127 | 64
    return base64.b64encode(raw).decode()


PRIVATE, PRESHARED = Secret(clamped(key("private"))), Secret(key("preshared"))
SERVER, OTHER_SERVER = key("server"), key("other server")
ENDPOINT = ("192.0.2.1", 51820)
BOOT = 3  # RTPROT_BOOT: what `ip route add` and network plugins write


def settings(**environment: str) -> Settings:
    """Settings from an environment that says nothing else."""
    return read(environment)


def tunnel(**changes: Any) -> Tunnel:
    """A provider's ordinary file: one peer, both families, one resolver."""
    peer = Peer(SERVER, PRESHARED, Endpoint(*ENDPOINT), (ip_network("0.0.0.0/0"), ip_network("::/0")), 25)
    ordinary = Tunnel(
        name="wg0",
        path="/etc/wireguard/wg0.conf",
        private_key=PRIVATE,
        addresses=(ip_interface("10.64.0.2/32"), ip_interface("fc00:bbbb::2/128")),
        dns=(ip_address("10.64.0.1"),),
        search=(),
        mtu=None,
        listen_port=None,
        peers=(peer,),
        notices=(),
    )
    return ordinary._replace(**changes)


def route(destination: str, device: str = "eth0", **more: Any) -> Route:
    """A route in main as a network plugin makes it."""
    family = INET6 if ":" in destination else INET
    ordinary = Route(family, MAIN_TABLE, destination, device, metric=IPV6_METRIC if family == INET6 else 0)
    return ordinary._replace(**{"protocol": BOOT, **more})


def linked(network: str, source: str | None = None) -> Route:
    """The route that the kernel itself makes for an address."""
    if ":" in network:
        return route(network, protocol=PROTOCOL_KERNEL, metric=256)
    return route(network, protocol=PROTOCOL_KERNEL, scope=SCOPE_LINK, source=source)


#: Flannel's: a /24 on the link, and all pods behind its gateway.
MAIN_ROUTES = (
    route("0.0.0.0/0", gateway="10.244.1.1"),
    linked("10.244.1.0/24", "10.244.1.7"),
    route("10.244.0.0/16", gateway="10.244.1.1"),
    route("::/0", gateway="fd00:244:1::1"),
    linked("fd00:244:1::/64"),
    linked("fe80::/64"),
)
POD_ADDRESSES = (
    InterfaceAddress(2, Address(INET, "10.244.1.7", 24), 0),
    InterfaceAddress(2, Address(INET6, "fd00:244:1::7", 64), 0),
    InterfaceAddress(2, Address(INET6, "fe80::7", 64), SCOPE_LINK),
)
LOOPBACK = Interface(1, "lo", "", 65536, up=True)
UPLINK = Interface(2, "eth0", "veth", 1450, up=True)


def snapshot(**changes: Any) -> Snapshot:
    """What rtnetlink says in an ordinary pod."""
    return Snapshot((LOOPBACK, UPLINK), POD_ADDRESSES, MAIN_ROUTES, ())._replace(**changes)


def pod(interface: str = "wg0", **changes: Any) -> Pod:
    """The pod that discovery finds there."""
    return discover(snapshot(**changes), interface)


#: DNS_MODE=tunnel: every query goes to the tunnel's resolver.
NAMES = Names(("10.64.0.1",), (), docker=False, forwarded=False)


def bypass(*cidrs: str) -> Bypass:
    """These networks, named by somebody."""
    prefixes, spelled = networks.both(map(networks.interval, cidrs))
    return Bypass(prefixes, "bypass: these", spelled)


def circumstances(**changes: Any) -> Circumstances:
    """Kernel WireGuard, an address as endpoint, both families, the egress hook; 10.96/12 beside the tunnel."""
    ordinary = Circumstances(
        kind="wireguard",
        endpoints={SERVER: ENDPOINT},
        families=(INET, INET6),
        gate=Gate(("eth0",), routed=True),
        bypass=bypass("10.96.0.0/12", "10.244.0.0/16", "fd00:244:1::/64"),
        others=frozenset(),
        dns=NAMES,
    )
    return ordinary._replace(**changes)


def resolving(otherwise: Sealed | Opened, hole: Hole | None) -> Policy:
    """With this hole, if any."""
    return Resolving(otherwise, hole) if hole else otherwise


# --- random policies ---------------------------------------------------------------------------------------------

ports = st.integers(1, 65535)
port_ranges = st.tuples(ports, st.integers(0, 300))
names = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}", fullmatch=True)
#: Few bits set or many, so that runs of zeros, which IPv6 spells in a way of its own, are often there.
_ipv6_numbers = st.builds(
    lambda groups: int.from_bytes(b"".join(group.to_bytes(2, "big") for group in groups), "big"),
    st.lists(st.sampled_from((0, 0, 0, 1, 0xFFFF, 0xFE80, 0x0A00)) | st.integers(0, 0xFFFF), min_size=8, max_size=8),
)
LINK_LOCAL = [networks.interval("fe80::/10"), networks.interval("ff02::/16")]
ipv4 = st.builds(IPv4Address, st.integers(0x01000000, 0xDFFFFFFF))
ipv6 = st.builds(IPv6Address, _ipv6_numbers.filter(lambda number: number >> 112))


@st.composite
def network(draw: st.DrawFn) -> networks.Network:
    """Of any length that may bypass a tunnel."""
    if draw(st.booleans()):
        return ip_network((int(draw(ipv4)), draw(st.integers(2, 32))), strict=False)
    return ip_network((draw(ipv6), draw(st.integers(2, 128))), strict=False)


def intervals(most: int) -> st.SearchStrategy[list[networks.Interval]]:
    return st.lists(network().map(networks.interval), max_size=most)


@st.composite
def hosts(draw: st.DrawFn, least: int = 0) -> tuple[str, ...]:
    """Addresses of both families, in the order that desired.policy gives them."""
    found = draw(st.sets(ipv4 | ipv6, min_size=least, max_size=4))
    return tuple(str(address) for address in sorted(found, key=lambda a: (a.version, int(a))))


@st.composite
def names_policy(draw: st.DrawFn) -> Names:
    """Any redirection of DNS."""
    resolvers = draw(st.lists((ipv4 | ipv6).map(str), max_size=3, unique=True))
    cluster = draw(st.lists(st.one_of(st.tuples(ipv4, ipv4), st.tuples(ipv6, ipv6)), max_size=3))
    pairs = tuple((str(alias), str(resolver)) for alias, resolver in cluster)
    return Names(tuple(resolvers), pairs, docker=draw(st.booleans()), forwarded=draw(st.booleans()))


holes = st.none() | st.builds(Hole, hosts(least=1), ports)


@st.composite
def opened(draw: st.DrawFn, links: tuple[str, ...] | None = None) -> Opened:
    """Any opened kill-switch. `links`: the interfaces that exist, where that matters (the gate names them)."""
    near = [network for network in draw(intervals(3)) if network[0] == 6]
    there = st.lists(names if links is None else st.sampled_from(links or ("eth0",)), unique=True, max_size=4)
    gated = draw(there) if links != () else []
    return Opened(
        tunnel=draw(names),
        uplink=draw(names),
        gate=Gate(tuple(sorted(gated)), draw(st.booleans())) if gated else None,
        tunnel_addresses=draw(hosts(least=1)),
        inside=draw(st.just(("0.0.0.0/0", "::/0")) | intervals(12).map(networks.spelled)),
        pod_addresses=draw(hosts(least=1)),
        endpoints=tuple(sorted(draw(st.sets(st.tuples((ipv4 | ipv6).map(str), ports), max_size=4)))),
        bypass=networks.spelled(draw(intervals(12))),
        on_link=networks.spelled(near),
        neighbours=networks.spelled([*LINK_LOCAL, *near]),
        input_ports=merge([f"{low}-{min(low + more, 65535)}" for low, more in draw(st.lists(port_ranges, max_size=6))]),
        dns=draw(names_policy() | st.builds(Asked, hosts())),
        older=tuple(sorted(draw(st.sets(ports, max_size=12)))),
        advertised=draw(st.booleans()),
    )
