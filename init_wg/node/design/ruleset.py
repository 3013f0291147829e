"""The one table of node mode, as nftables text, spelled as nft prints it. Pure.

Mullvad's app accepts what bears a connection mark of its own, 0xf41 ("excluded": talpid-core/src/firewall/linux.rs).
That mark is a licence, and a licence that stays is a leak: its other chains masquerade and route by it. So ours exists
only while the VPN's chains look. They are at priority 0; it is set at -20, and taken away at 20.

  forward, input, output   before -> the VPN's chain -> after
  prerouting, output       replies to those who came in by the uplink leave by it again: by main, past the VPN's table
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from init_wg.config.node_settings import Ports

NAME = "init_wg_node"
#: Of a connection: what Mullvad's chains accept; and, while rp_filter looks, that kube-proxy's bit was set.
LICENCE, MASQUERADED = 0xF41, 0xF40
#: kube-proxy's "masquerade this" in a packet's mark. Mullvad's mark has the same bit.
KUBE_PROXY = 0x4000
BEFORE, AFTER = -20, 20
#: The first after kube-proxy's -100; the others before its, and before the VPN's -150.
RP_FILTER, REPLIES, REPLIES_OF_HOST = -85, -190, -170


class Policy(NamedTuple):
    """All that the rules depend on. Networks and addresses are text, sorted and disjoint.

    uplinks: the devices of default routes. machine: this machine's own addresses on them. mark, tunnel: the VPN's.
    """

    uplinks: tuple[str, ...]
    machine: tuple[str, ...]
    pods: tuple[str, ...]
    inbound: tuple[Ports, ...]
    peers: tuple[str, ...]
    mark: int
    tunnel: str


class _Chain(NamedTuple):
    name: str
    hook: str  # "" for one that is jumped to
    rules: list[str]


def text(policy: Policy) -> str:
    """The whole table."""
    chains = [
        _Chain("licence", "", [f"ct mark set {_hex(LICENCE)} accept"]),
        *(_named(policy) if policy.inbound and policy.machine else ()),
        *_hooks(policy),
    ]
    lines = [f"table inet {NAME} {{"]
    for number, chain in enumerate(chains):
        lines += ["", f"\tchain {chain.name} {{"] if number else [f"\tchain {chain.name} {{"]
        lines += [f"\t\t{chain.hook}; policy accept;"] if chain.hook else []
        lines += [f"\t\t{rule}" for rule in chain.rules]
        lines += ["\t}"]
    return "\n".join([*lines, "}", ""])


def replacement(ruleset: str) -> str:
    """In one transaction: there is no moment without one of the two."""
    return f"table inet {NAME}\ndelete table inet {NAME}\n{ruleset}"


def _named(policy: Policy) -> list[_Chain]:
    """What is done to a packet of a connection that came to a named port."""
    mark = f"meta mark set {_hex(policy.mark)}"
    return [
        _Chain("licence_named", "", _ports(policy, "goto licence")),
        _Chain("reply_named", "", _ports(policy, mark)),
        _Chain("rp_filter_named", "", _ports(policy, "goto rp_filter")),
        # Strict rp_filter asks for the way back with the packet's mark (src_valid_mark, which the VPN sets).
        _Chain("rp_filter", "", [
            f"meta mark & {_hex(KUBE_PROXY)} == {_hex(KUBE_PROXY)} ct mark set {_hex(MASQUERADED)}",
            mark,
        ]),
        # Routed: nobody must take the VPN's mark for kube-proxy's any more.
        _Chain("unmark", "", [
            f"ct mark {_hex(MASQUERADED)} meta mark set {_hex(KUBE_PROXY)}",
            f"ct mark != {_hex(MASQUERADED)} meta mark set {_hex(0)}",
            f"ct mark {_hex(MASQUERADED)} ct mark set {_hex(0)}",
        ]),
    ]  # fmt: skip


def _ports(policy: Policy, action: str) -> list[str]:
    """A rule for each: nft 1.0.6 cannot print a set of them."""
    return [
        f"meta l4proto {each.protocol} ct original proto-dst {port} {action}"
        for each in policy.inbound
        for port in each.ports
    ]


def _hooks(policy: Policy) -> Iterator[_Chain]:
    outside = _devices((*policy.uplinks, policy.tunnel))
    uplinks = _devices(policy.uplinks) if policy.uplinks else ""
    came = [f"ct original {match}" for match in _by_family("daddr", policy.machine)] if policy.inbound else []
    if came and uplinks:
        yield _Chain("replies_of_pods", _hook("filter", "prerouting", REPLIES), [
            f"iifname != {outside} ct direction reply {asked} jump reply_named" for asked in came
        ])  # fmt: skip
        yield _Chain("came_in", _hook("filter", "prerouting", RP_FILTER), [
            f"iifname {uplinks} ct direction original ct mark {_hex(0)} {asked} jump rp_filter_named" for asked in came
        ])  # fmt: skip
        yield _Chain("replies_of_host", _hook("route", "output", REPLIES_OF_HOST), [
            *(f"{match} meta mark set {_hex(policy.mark)}" for match in _by_family("daddr", policy.peers)),
            *(f"ct direction reply {asked} jump reply_named" for asked in came),
        ])  # fmt: skip
    elif policy.peers:
        yield _Chain("replies_of_host", _hook("route", "output", REPLIES_OF_HOST), [
            f"{match} meta mark set {_hex(policy.mark)}" for match in _by_family("daddr", policy.peers)
        ])  # fmt: skip
    yield _Chain("forward_before", _hook("filter", "forward", BEFORE), _forward(policy, outside, uplinks, came))
    yield _after("forward")
    yield _Chain("input_before", _hook("filter", "input", BEFORE), _input(policy, outside, uplinks, came))
    yield _after("input")
    yield _Chain("output_before", _hook("filter", "output", BEFORE), _output(policy, came))
    yield _after("output", [
        # Routed: kube-proxy would take the VPN's mark for its own.
        f"{match} meta mark {_hex(policy.mark)} meta mark set {_hex(0)}" for match in _by_family("daddr", policy.peers)
    ])  # fmt: skip
    yield _Chain("leaving", _hook("filter", "postrouting", AFTER), [
        # Multi-node clusters reach other nodes' pods inside of an overlay, or through a route to a peer.
        *(f"oifname {outside} {match} counter drop" for match in _by_family("daddr", policy.pods)),
    ])  # fmt: skip


def _forward(policy: Policy, outside: str, uplinks: str, came: list[str]) -> list[str]:
    pods = list(_by_family("saddr", policy.pods))
    to_pods = list(_by_family("daddr", policy.pods))
    within = f"iifname != {outside} oifname != {outside}"
    rules = [f"meta mark {_hex(policy.mark)} jump unmark"] if came and uplinks else []
    # A mark of somebody else's is his: such a flow stays as it would be without us.
    rules.append(f"ct mark != {_hex(0)} accept")
    rules += [
        f"{within} {source} {target} goto licence" for source in pods for target in to_pods if _same(source, target)
    ]
    if not (came and uplinks):
        return rules
    for asked in came:
        rules += [
            f"iifname {uplinks} oifname != {outside} {target} ct direction original {asked} jump licence_named"
            for target in to_pods
            if _same(asked, target)
        ]
    # It would show an outsider that this machine's address and the VPN's are one.
    rules += [
        f'ct direction reply iifname != {outside} oifname "{policy.tunnel}" {asked} counter drop' for asked in came
    ]
    for asked in came:
        rules += [
            f"ct direction reply iifname != {outside} oifname {uplinks} {source} {asked} jump licence_named"
            for source in pods
            if _same(asked, source)
        ]
    return rules


def _input(policy: Policy, outside: str, uplinks: str, came: list[str]) -> list[str]:
    rules = []
    if came and uplinks:
        rules += [
            f"iifname {uplinks} meta mark {_hex(policy.mark)} ct direction original {asked} jump unmark"
            for asked in came
        ]
    rules.append(f"ct mark != {_hex(0)} accept")
    rules += [f"iifname != {outside} {source} goto licence" for source in _by_family("saddr", policy.pods)]
    if uplinks:
        rules += [f"iifname {uplinks} {source} goto licence" for source in _by_family("saddr", policy.peers)]
        rules += [f"iifname {uplinks} ct direction original {asked} jump licence_named" for asked in came]
    return rules


def _output(policy: Policy, came: list[str]) -> list[str]:
    mark = f"meta mark {_hex(policy.mark)}"
    return [
        f"ct mark != {_hex(0)} accept",
        # Not by device: after a DNAT this chain still sees the device from before. `leaving` sees the true one.
        *(f"{match} goto licence" for match in _by_family("daddr", policy.pods)),
        *(f"{match} {mark} goto licence" for match in _by_family("daddr", policy.peers)),
        *(f"ct direction reply {mark} {asked} jump licence_named" for asked in came if policy.uplinks),
    ]


def _after(hook: str, more: Iterable[str] = ()) -> _Chain:
    gone = f"ct mark {_hex(LICENCE)} ct mark set {_hex(0)}"
    return _Chain(f"{hook}_after", _hook("filter", hook, AFTER), [gone, *more])


def _hook(kind: str, hook: str, priority: int) -> str:
    return f"type {kind} hook {hook} priority {priority}"


def _hex(number: int) -> str:
    return f"0x{number:08x}"


def _devices(names: Iterable[str]) -> str:
    return _set([f'"{name}"' for name in dict.fromkeys(names)])


def _by_family(field: str, values: Iterable[str]) -> Iterator[str]:
    for family, found in (("ip", [v for v in values if ":" not in v]), ("ip6", [v for v in values if ":" in v])):
        if found:
            yield f"{family} {field} {_set(found)}"


def _set(values: list[str]) -> str:
    return f"{{ {', '.join(values)} }}" if len(values) > 1 else values[0]


def _same(one: str, other: str) -> bool:
    """Are both of one family?"""
    return ("ip6 " in one) == ("ip6 " in other)
