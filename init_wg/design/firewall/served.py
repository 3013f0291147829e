"""The packets that a server forwards for its peers, as nftables text, spelled as nft prints it: see killswitch. Pure.

The same two tables as the kill-switch has, under the same names: a pod is sealed by the one, and opened by either.

  inet init_wg    forward decides about the peers, packet by packet; input and output about the pod itself, which
                  reaches nothing but its resolvers. Both stamp what they let pass to the uplink.
  netdev init_wg  the egress gate: what is not stamped does not leave, if the first table is deleted, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from init_wg.design.firewall.killswitch import (
    _ADMITTED,
    _ARP_SIZE,
    _DNS,
    _INPUT,
    _ND_SIZE,
    _OUTPUT,
    _PASS,
    _REFUSE,
    _REPLY,
    _STAMP,
    _WIREGUARD_MESSAGE,
    FORWARDER_PORT,
    _by_family,
    _Chain,
    _families_of,
    _gate,
    _set,
    _sets,
    _table,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

#: In the pod the server always has WireGuard's usual port; SERVERPORT is the one outside.
PORT = 51820
_FORWARD = "0x0000ca6e"  # state.FORWARD_MARK; a unit test holds them together
_ERRORS = "icmp type { destination-unreachable, time-exceeded, parameter-problem }"
_ERRORS6 = "icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem }"


class Served(NamedTuple):
    """All that the rules depend on. Addresses and networks are text; networks are sorted and disjoint.

    links, routed: for the gate, as in policy.Gate. own: the tunnel's addresses here. inside: the peers' networks.
    allowed: where they may go. names: their queries to `own` are for the forwarder. peer_dns: resolvers outside that
    they may ask. resolvers: those that the pod may ask; docker: the engine's asks for it, from this network.
    advertised: the pod lives by router advertisements. forwards6: the kernel forwards IPv6.
    """

    tunnel: str
    uplink: str
    links: tuple[str, ...]
    routed: bool
    own: tuple[str, ...]
    inside: tuple[str, ...]
    allowed: tuple[str, ...]
    peer_to_peer: bool
    names: bool
    peer_dns: tuple[str, ...]
    resolvers: tuple[str, ...]
    docker: bool
    pod_addresses: tuple[str, ...]
    health_port: int | None
    advertised: bool
    forwards6: bool


def opened(policy: Served) -> str:
    """The whole ruleset of a running server."""
    chains: list[_Chain] = [("admit", "", [f"ct state new ct mark set ct mark | {_ADMITTED}", "accept"])]
    if policy.names:
        chains.append(("names", "type nat hook prerouting priority dstnat; policy accept;", _names(policy)))
    chains.append(("sources", "type nat hook postrouting priority srcnat; policy accept;", _sources(policy)))
    chains.append(("marked", "type filter hook prerouting priority mangle; policy accept;", _marked(policy)))
    if not policy.forwards6:
        chains.append(("arriving", "type filter hook prerouting priority filter; policy accept;", _arriving(policy)))
    chains += [
        ("granted", "", _granted(policy)),
        ("forward", "type filter hook forward priority filter; policy drop;", _forward(policy)),
        ("input", _INPUT, _input(policy)),
        ("uplink", "", _uplink(policy)),
        ("output", _OUTPUT, _output(policy)),
        ("leaving", "type filter hook postrouting priority filter; policy drop;", _leaving(policy)),
    ]
    sets = [*_sets("inside", policy.inside), *_sets("allowed", policy.allowed)]
    return _table("inet", [_REFUSE, *chains], sets) + _gate(policy.links, _arp(policy), [], routed=policy.routed)


def _names(policy: Served) -> list[str]:
    """Port 53 needs a capability that the pod does not have: queries to the server go to the forwarder's port."""
    to_us = _by_family("daddr", policy.own)
    return [f'iifname "{policy.tunnel}" {match} {_DNS} counter redirect to :{FORWARDER_PORT}' for match in to_us]


def _sources(policy: Served) -> list[str]:
    """By source: the input interface can be asked here only since Linux 5.7."""
    return [f'oifname "{policy.uplink}" {match} masquerade' for match in _by_sets("inside", "saddr", policy.inside)]


def _marked(policy: Served) -> list[str]:
    """A rule of the routing policy refuses to forward what has no mark: so with these tables flushed nothing is
    forwarded, however the kernel's forwarding is set."""
    mark = f"meta mark set {_FORWARD}"
    return [f'iifname "{policy.tunnel}" {mark}', f'iifname "{policy.uplink}" ct direction reply {mark}']


def _arriving(policy: Served) -> list[str]:
    """Without IPv6 forwarding the kernel drops in silence what peers send, before the forward chain: refused here, at
    once, so that they try IPv4."""
    own = [address for address in policy.own if ":" in address]
    what = f"ip6 daddr != {_set(own)}" if own else "meta nfproto ipv6"
    return [f'iifname "{policy.tunnel}" {what} jump refuse']


def _forward(policy: Served) -> list[str]:
    tunnel, uplink = policy.tunnel, policy.uplink
    back = f'iifname "{uplink}" oifname "{tunnel}" ct direction reply'
    return [
        # Peers have files without an MTU, and there are firewalls that drop ICMP: without this their downloads hang.
        "tcp flags syn tcp option maxseg size set rt mtu",
        f'iifname "{tunnel}" oifname "{tunnel}" {"accept" if policy.peer_to_peer else "jump refuse"}',
        f'iifname "{tunnel}" oifname "{uplink}" jump granted',
        f'iifname "{tunnel}" jump refuse',
        # An error may come from any router on the way.
        f"{back} ct state related accept",
        # By address, too: when ALLOWEDIPS shrinks, what flows already ends.
        *(f"{back} {match} accept" for match in _by_sets("allowed", "saddr", policy.allowed)),
        *(f"{back} {match} accept" for match in _by_family("saddr", policy.peer_dns)),
        # Nobody outside begins anything with a peer.
        "counter drop",
    ]


def _granted(policy: Served) -> list[str]:
    """With a peer's own source, so that it is masqueraded, and to where ALLOWEDIPS say."""
    rules = []
    inside = dict(_families_of(policy.inside))
    for family, _ in _families_of(policy.allowed):
        if family in inside:
            rules.append(f"{family} saddr @inside_{family} {family} daddr @allowed_{family} {_STAMP}")
    for family, resolvers in _families_of(policy.peer_dns):
        if family in inside:
            rules.append(f"{family} saddr @inside_{family} {family} daddr {_set(resolvers)} {_DNS} {_STAMP}")
    return [*rules, "jump refuse"]


def _input(policy: Served) -> list[str]:
    tunnel, uplink = f'iifname "{policy.tunnel}"', f'iifname "{policy.uplink}"'
    own = dict(_families_of(policy.own))
    rules = ['iif "lo" accept']
    if policy.names:
        rules.append(f"{tunnel} ct status dnat meta l4proto {{ tcp, udp }} th dport {FORWARDER_PORT} accept")
    if "ip" in own:
        rules.append(f"{tunnel} ip daddr {_set(own['ip'])} icmp type echo-request accept")
    if "ip6" in own:
        rules.append(f"{tunnel} ip6 daddr {_set(own['ip6'])} icmpv6 type echo-request accept")
    # The health endpoint is the cluster's, not the peers'.
    rules.append(f"{tunnel} jump refuse")
    # To the tunnel's addresses, but not through the tunnel: CVE-2019-14899.
    rules += [f"{match} drop" for match in _by_family("daddr", policy.own)]
    rules.append(f"{uplink} udp dport {PORT} {_WIREGUARD_MESSAGE} accept")
    heard = ["nd-neighbor-solicit", "nd-neighbor-advert", *(["nd-router-advert"] if policy.advertised else [])]
    rules.append(f"{uplink} icmpv6 type {_set(heard)} ip6 hoplimit 255 accept")
    # Answers of the pod's resolvers, and errors about what the server sends.
    rules += [f"{uplink} ct direction reply accept", f"{uplink} ct state related accept"]
    if policy.health_port:
        rules.append(f"{uplink} tcp dport {policy.health_port} jump admit")
    return [*rules, "drop"]


def _output(policy: Served) -> list[str]:
    return [
        'oif "lo" accept',
        # The forwarder's answers, and refusals. The server itself asks its peers nothing.
        f'oifname "{policy.tunnel}" ct direction reply accept',
        f'oifname "{policy.uplink}" jump uplink',
        "jump refuse",
    ]


def _uplink(policy: Served) -> list[str]:
    """All that the pod itself may send, by what it is and never by a mark alone."""
    # The tunnel's addresses are nobody's outside of it.
    rules = [f"{match} return" for match in _by_family("saddr", policy.own)]
    rules.append(f"udp sport {PORT} {_WIREGUARD_MESSAGE} {_STAMP}")
    rules.append(f"{_REPLY} {_STAMP}")
    # "Too big" to who sends a peer larger packets than its tunnel takes.
    rules += [f"ct state related {errors} {_STAMP}" for errors in (_ERRORS, _ERRORS6)]
    rules += [f"{match} {_DNS} {_STAMP}" for match in _by_family("daddr", policy.resolvers)]
    if policy.docker:  # its resolver asks from here, whom only the engine knows
        rules.append(f"meta skuid 0 {_DNS} {_STAMP}")
    types = "icmpv6 type { nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert }"
    own = ["ip6 saddr { ::, fe80::/10 }", *(m for m in _by_family("saddr", policy.pod_addresses) if m[:3] == "ip6")]
    return [*rules, *(f"{types} ip6 hoplimit 255 {_ND_SIZE} {sender} {_STAMP}" for sender in own)]


def _leaving(policy: Served) -> list[str]:
    """The second look, at the device that a packet really takes: another table may have sent it elsewhere since."""
    return [
        'oif "lo" accept',
        f'oifname "{policy.tunnel}" accept',
        f'oifname "{policy.uplink}" meta mark {_PASS} accept',
        "counter drop",
    ]


def _arp(policy: Served) -> list[str]:
    """With the pod's own addresses only."""
    own = [address for address in policy.pod_addresses if ":" not in address]
    return [f"{_ARP_SIZE} arp operation {{ request, reply }} arp saddr ip {_set(own)} accept"] if own else []


def _by_sets(name: str, field: str, networks: Iterable[str]) -> list[str]:
    return [f"{family} {field} @{name}_{family}" for family, _ in _families_of(networks)]
