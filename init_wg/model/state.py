"""The one State type, wanted or observed, and every constant that both sides must agree on.

Setup, repair and check are the same function over it: observe, compare, apply what differs, observe
again. Everything here is a plain immutable value; addresses and networks are text as the kernel's own
tools spell them ("10.0.0.0/8", "fd00::1"), so that comparing is `==` and printing is `print`.
"""

# No `from __future__ import annotations`: NamedTuple would compile every one of them at every start.
from typing import NamedTuple

from init_wg.model.secret import Secret

INET, INET6 = 2, 10  # AF_INET, AF_INET6
FAMILIES = (INET, INET6)
DEFAULT = {INET: "0.0.0.0/0", INET6: "::/0"}

#: The mark on WireGuard's own packets; also the routing table everything else is sent to.
FWMARK = 51820
TABLE = 51820
#: The mark on packets that the kill-switch let pass to the uplink; the egress gate asks for it, and IPv6
#: replies are routed by it.
PASS_MARK = 51821
#: No rule looks this table up: it remembers the uplink's own routes, so that they can be put back.
RECORD_TABLE = 51821
MAIN_TABLE, DEFAULT_TABLE, LOCAL_TABLE = 254, 253, 255

#: There, routes without a device remember what the pod had when it was first set up; their metrics say what each is.
METRIC_SEEN, METRIC_NETWORK, METRIC_ADDRESS, METRIC_ANNOUNCED = 51820, 51821, 51822, 51823

#: Who made a route (rtm_protocol): the numbers below 16 are the kernel's, up to 255 are free to use.
PROTOCOL = 151
PROTOCOL_KERNEL, PROTOCOL_RA = 2, 9

#: Under the tunnel's default route; the value systemd and others use for "last resort".
UNREACHABLE_METRIC = 4278198272
#: What the kernel itself gives an IPv6 route that names no metric (IP6_RT_PRIO_USER).
IPV6_METRIC = 1024

#: On packets that a server's rules let the kernel forward: without it, there is no route for them.
FORWARD_MARK = 51822

PREFERENCE_NAMES, PREFERENCE_REPLY, PREFERENCE_MAIN, PREFERENCE_TUNNEL = 50, 100, 200, 300
#: Foreign rules up to our last one would be asked before ours: they are drift. Later ones are left alone.
PREFERENCE_KERNEL_MAIN, PREFERENCE_KERNEL_DEFAULT = 32766, 32767

SCOPE_UNIVERSE, SCOPE_LINK = 0, 253

WIREGUARD, TUN = "wireguard", "tun"


class Link(NamedTuple):
    """The tunnel's interface. kind: "wireguard" (kernel), "tun" (wireguard-go) or whatever is there."""

    name: str
    kind: str
    mtu: int
    up: bool


class Peer(NamedTuple):
    """A peer as the device has it: the endpoint is an address, never a name; keepalive in seconds."""

    public_key: str
    preshared_key: Secret | None
    endpoint: tuple[str, int] | None
    allowed_ips: frozenset[str]
    keepalive: int


class Device(NamedTuple):
    """WireGuard's own settings. A wanted listen_port of None accepts whatever the kernel chose."""

    private_key: Secret
    listen_port: int | None
    fwmark: int
    peers: frozenset[Peer]


class Address(NamedTuple):
    """An address of the tunnel's interface, e.g. (2, "10.64.1.2", 32)."""

    family: int
    address: str
    prefix_length: int


class Route(NamedTuple):
    """A route. gateway may be of the other family (RTA_VIA); device is None for the unreachable ones. `other` holds
    what we never use (a source prefix, a type of service, a nexthop object), as raw attributes."""

    family: int
    table: int
    destination: str
    device: str | None
    gateway: str | None = None
    kind: str = "unicast"
    source: str | None = None
    metric: int = 0
    scope: int = SCOPE_UNIVERSE
    onlink: bool = False
    protocol: int = PROTOCOL
    other: tuple[tuple[int, bytes], ...] = ()


class Rule(NamedTuple):
    """A policy rule; port is the destination's. `other` holds selectors we never use, as raw attributes: their presence
    is a difference."""

    family: int
    preference: int
    table: int
    source: str | None = None
    destination: str | None = None
    mark: int | None = None
    invert: bool = False
    suppress_prefix_length: int | None = None
    port: int | None = None
    action: int = 1  # FR_ACT_TO_TBL
    other: tuple[tuple[int, bytes], ...] = ()


class OtherTunnel(NamedTuple):
    """A WireGuard or tun interface that is not ours by name. With our address it is ours, renamed by somebody."""

    name: str
    kind: str
    addresses: frozenset[str]


class TunnelInterface(NamedTuple):
    """One of our interfaces, whole. device is None while no WireGuard answers there."""

    link: Link
    device: Device | None
    addresses: frozenset[Address]


class State(NamedTuple):
    """All that decides where the pod's packets go. interfaces: in the order of their names, which differ.
    ruleset: nft's own listing, "" when there is none. forwarding: by which devices IPv4 packets may come in to be
    forwarded; looked at in server mode only."""

    interfaces: tuple[TunnelInterface, ...]
    routes: frozenset[Route]
    rules: frozenset[Rule]
    others: frozenset[OtherTunnel]
    ruleset: str
    forwarding: frozenset[str] = frozenset()

    def interface(self, name: str) -> TunnelInterface | None:
        """The one of that name, if it is there."""
        return next((each for each in self.interfaces if each.link.name == name), None)

    def device(self, name: str) -> Device | None:
        """The WireGuard device of that name, if it is there and answers."""
        found = self.interface(name)
        return found.device if found else None
