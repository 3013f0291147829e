"""The packets that may leave the pod, as nftables text: the file a security reviewer reads.

Pure text, in nft's own spelling, so that `nft --stateless list` returns it byte for byte and drift is text
inequality. The spellings are those that every nft from 1.0.6 on prints alike: later ones turn `priority -105` into
`dstnat - 5`, and write a comparison of masked TCP flags in another way. Two tables, always loaded together in one
transaction:

  inet init_wg    decides. Its output chain drops by policy and stamps what it lets pass to the uplink.
  netdev init_wg  the egress gate (kernel 5.16): sees every frame that leaves a link, also those that never
                  meet the output hook (AF_PACKET). What no look-up has routed, what is not stamped and is not
                  WireGuard: dropped. If the first table is deleted, nothing is stamped, and the gate closes.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing's own costs 5 ms, a quarter of the lockdown
if TYPE_CHECKING:
    from collections.abc import Iterable

    from init_wg.design.firewall.policy import Hole, Names, Opened

NAME = "init_wg"
# state.FWMARK and state.PASS_MARK, spelled as nft prints them; a unit test holds them together. Not imported:
# the lockdown loads this module before anything else.
MARKS = _FWMARK, _PASS = "0x0000ca6c", "0x0000ca6d"
# Docker's embedded resolver: it answers from the host's network, where no rule of the pod reaches.
DOCKER_RESOLVER = "127.0.0.11"
# Where the forwarder listens, and the source by which it is known when it asks Docker's resolver itself.
FORWARDER_PORT, FORWARDER_SOURCE = 10053, "127.0.0.54"
# On connections that came in and were let in: a bit of the connection's mark, whose others may be somebody's.
_ADMITTED = "0x08000000"
_DNS = "meta l4proto { tcp, udp } th dport 53"
_INPUT_PORTS = "meta l4proto { tcp, udp } th dport"
_NFPROTO = {"ip": "ipv4", "ip6": "ipv6"}
# True for every packet that a routing look-up has sent here, for want of a better word: the expression reads the
# realm of the packet's route and matches nothing if it has none, as a frame from AF_PACKET, whatever its mark.
_ROUTED = "meta rtclassid != 4294967295"
# The four message types of the WireGuard protocol (whitepaper, section 5.4): a type byte and three zero bytes.
_WIREGUARD_MESSAGE = "@th,64,32 { 0x1000000, 0x2000000, 0x3000000, 0x4000000 }"
# The two bytes in which IPv4 has its fragment's flags and offset, each by itself: nft versions print a comparison of
# both in different words. Together true for every fragment but a packet's first.
_IP_LATER = ("@nh,56,8 != 0x0", "@nh,48,8 != { 0x0, 0x20, 0x40, 0x60, 0x80, 0xa0, 0xc0, 0xe0 }")
_IP6_LATER = "frag nexthdr 17 frag frag-off != 0"
# The type of a family's addresses, and how many elements nft prints in one line of a set that has a name.
_NEXT_LINE = ",\n\t\t\t     "
_OLDER, _PORTS_A_LINE = "older", 5
_SETS = {"ip": ("ipv4_addr", 2), "ip6": ("ipv6_addr", 1)}
_EVERYTHING = {"ip": "0.0.0.0/0", "ip6": "::/0"}


_Chain = tuple[str, str, list[str]]  # name, hook, rules
_Set = tuple[str, list[str]]  # name, and what describes it
# Every chain with a hook ends in a verdict of its own: while one ruleset replaces another, the new rules are in force
# an instant before the new policies (582 replacements let 144 frames pass an egress chain that ended without; 0 with).
_OUTPUT = "type filter hook output priority filter; policy drop;"
_INPUT = "type filter hook input priority filter; policy drop;"
_COMMON: list[_Chain] = [("forward", "type filter hook forward priority filter; policy drop;", ["drop"])]
_REFUSE: _Chain = (
    "refuse",
    "",
    ["meta l4proto tcp counter reject with tcp reset", "counter reject with icmpx admin-prohibited"],
)


def sealed(links: Iterable[str], hole: Hole | None = None, *, routed: bool = True) -> str:
    """The lockdown: nothing leaves and nothing enters but through the loopback (and the hole for one query).

    links: what the gate watches; routed: whether the kernel has realms (CONFIG_IP_ROUTE_CLASSID).
    """
    outgoing, incoming = _query(hole) if hole else ([], [])
    if hole and any(_family(resolver) == "ip6" for resolver in hole.resolvers):
        # Before IPv6 can ask, it has to find its neighbour on the link.
        neighbours = "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } ip6 hoplimit 255"
        outgoing.append(f"{neighbours} {_ND_SIZE} ip6 daddr {{ fe80::/10, ff02::/16 }} {_STAMP}")
        incoming.append(f"{neighbours} accept")
    docker = _why(f"ip daddr {DOCKER_RESOLVER} jump refuse", _DOCKER)
    output = [*outgoing, docker, 'oif "lo" accept', "jump refuse"]
    chains = [("output", _OUTPUT, output), ("input", _INPUT, [*incoming, 'iif "lo" accept', "drop"]), *_COMMON]
    inet = _table("inet", [_REFUSE, *chains])
    # What an application sends does not come so far as to need a neighbour; our query does.
    arp = f"{_ARP_SIZE} ether type arp accept" if hole else f"{_ARP_SIZE} arp operation reply accept"
    return inet + _gate(tuple(links), [_why(arp, _ARP)], [], routed=routed)


def opened(policy: Opened, hole: Hole | None = None) -> str:
    """Only the tunnel, its own packets, replies to connections that came in, and the bypass networks (and the hole for
    one query)."""
    admit = [_why(f"ct state new ct mark set ct mark | {_ADMITTED}", "so that its replies may leave"), "accept"]
    chains: list[_Chain] = [("refuse_name", "", ["counter jump refuse"]), ("admit", "", admit)]
    if policy.names:
        chains.append(("names", "type nat hook output priority -115; policy accept;", _redirected(policy.names)))
        chains.append(("sources", "type nat hook postrouting priority srcnat; policy accept;", _sources(policy)))
    if replies := _replies(policy):
        chains.append(("replies", "type route hook output priority mangle; policy accept;", replies))
    chains += [("uplink", "", _uplink(policy, hole)), ("output", _OUTPUT, _output(policy, hole))]
    chains += [("arriving", "type filter hook prerouting priority raw; policy accept;", _arriving(policy))]
    chains += [("input", _INPUT, _input(policy, hole)), *_COMMON]
    chains.append(("leaving", "type filter hook postrouting priority filter; policy drop;", _leaving(policy)))
    narrow = [to for _, _, members in _inside_of(policy) for to in members if to not in _EVERYTHING.values()]
    sets = [*_sets("bypass", policy.bypass), *_sets("inside", narrow), _older(policy.older)]
    inet = _table("inet", [_REFUSE, *chains], sets)
    if not policy.gate:
        return inet
    wireguard = [f"{rule} accept" for rule in _wireguard(policy)]
    later = "WireGuard's later fragments have no ports"
    wireguard += [_why(f"{rule} accept", later) for rule in _later_fragments(policy)]
    return inet + _gate(policy.gate.links, _arp(policy), wireguard, routed=policy.gate.routed)


def creation(ruleset: str) -> str:
    """The text that loads `ruleset` where there is none, and fails where there is one. A third of the time of a
    replacement: nothing is deleted, so the kernel has not to wait until no packet is in the old rules any more."""
    return "".join(f"create table {family} {NAME}\n" for family in _families(ruleset)) + ruleset


def replacement(ruleset: str) -> str:
    """The text that puts `ruleset` in place of whatever is there: one transaction, no instant without rules."""
    return removal(_families(ruleset)) + ruleset


def removal(families: Iterable[str] = ("inet", "netdev")) -> str:
    """Delete our tables, whether they are there or not: `table` first creates what `delete` then finds."""
    return "".join(f"table {family} {NAME}\ndelete table {family} {NAME}\n" for family in families)


def _families(ruleset: str) -> list[str]:
    return [family for family in ("inet", "netdev") if f"table {family} {NAME} {{" in ruleset]


def _output(policy: Opened, hole: Hole | None) -> list[str]:
    """The first look, at the device that was meant: to refuse at once. A DNAT or REDIRECT of anybody's has sent a
    packet elsewhere without this chain seeing it: such a packet is let through here by its new destination, and
    `leaving` sees where it really goes.

    The order matters: what is refused by name stands before the wider rule that would accept it.
    """
    tunnel = f'oifname "{policy.tunnel}"'
    rules = _query(hole)[0] if hole else []
    rules += _docker_resolver(policy)
    rules.append('oif "lo" accept')
    # Never the tunnel inside itself: without their mark WireGuard's own packets come here, the provider takes what
    # arrives for the pod having moved into the tunnel, and the two go on feeding each other for ever.
    loop = "never the tunnel inside itself"
    rules += [
        _why(f"{tunnel} {_family(a)} daddr {a} udp dport {port} jump refuse", loop) for a, port in policy.endpoints
    ]
    # Only with the tunnel's own source: a packet of the pod's address in the tunnel would come back elsewhere.
    rules += [f"{tunnel} {match} accept" for match in _inside(policy)]
    rules.append(f'oifname "{policy.uplink}" jump uplink')
    # IPv6 replies were re-routed by their mark.
    rules += [_why(f"{rule} accept", "routed anew by its mark") for rule in _ipv6_replies(policy)]
    if policy.names:
        rules += [f"ct status dnat {_family(a)} daddr {a} {_DNS} accept" for a in policy.names.resolvers]
    # To the pod itself: the forwarder, or the proxy of a service mesh.
    own = ["ip daddr 127.0.0.0/8", "ip6 daddr ::1", *_by_family("daddr", policy.pod_addresses)]
    rules += [_why(f"ct status dnat {match} accept", "redirected to the pod itself") for match in own]
    rules.append(_why(f"{_NAME_PORTS} jump refuse_name", "DNS outside the tunnel would leak names"))
    return [*rules, "jump refuse"]


def _uplink(policy: Opened, hole: Hole | None) -> list[str]:
    """All that may leave on the uplink, by what it is and never by a mark alone: whose routes or rules brought it
    here does not matter, therefore. What comes to the end is refused by `output`, and dropped by `leaving`."""
    rules = [
        _why(f"{rule} accept", "WireGuard, by its form too: anybody may set a mark") for rule in _wireguard(policy)
    ]
    # `output` has stamped the query, and `leaving` sees it with that mark.
    rules += _query(hole, _PASS)[0] if hole else []
    # The tunnel's addresses are nobody's outside of it.
    lost = "the tunnel's own source never leaves in clear"
    rules += [_why(f"{match} return", lost) for match in _by_family("saddr", policy.tunnel_addresses)]
    # Replies to connections that came in. Never `ct state established`: with a rule or a route lost, that would
    # let every established flow of the tunnel out in clear.
    only = "replies only: established flows of the tunnel would leak here"
    rules += [
        _why(f"{_REPLY} ct original {match} {_STAMP}", only) for match in _by_family("daddr", policy.pod_addresses)
    ]
    rules += _neighbour_discovery(policy)
    rules += [f"{match} {_DNS} {_STAMP}" for match in _by_family("daddr", policy.asked)]
    for alias, resolver in policy.names.cluster if policy.names else ():
        family = _family(alias)
        query = f"ct original {family} daddr {alias} {family} daddr {resolver} {_DNS} {_STAMP}"
        rules.append(_why(query, "only the forwarder knows this alias"))
    rules.append(_why(f"{_NAME_PORTS} return", "no DNS to the bypass networks"))
    return [*rules, *(f"{match} {_STAMP}" for match in _beside("daddr", policy))]


def _neighbour_discovery(policy: Opened) -> list[str]:
    """With the pod's own addresses, to the link only (hop limit 255), and no larger than the kernel makes it."""
    types = "icmpv6 type { nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert }"
    near = _by_family("daddr", policy.neighbours)[-1]
    own = ["ip6 saddr { ::, fe80::/10 }", *(m for m in _by_family("saddr", policy.pod_addresses) if m[:3] == "ip6")]
    return [f"{types} ip6 hoplimit 255 {_ND_SIZE} {sender} {near} {_STAMP}" for sender in own]


def _arp(policy: Opened) -> list[str]:
    """With the pod's own addresses only. Who asks for a stranger on the link is about to send there. Answers may go
    to anyone: a node asks from any of its addresses."""
    own = [address for address in policy.pod_addresses if ":" not in address]
    if not own:
        return []
    sender = f"arp saddr ip {_set(own)}"
    near = [match.removeprefix("ip daddr ") for match in _by_family("daddr", policy.neighbours) if match[:3] == "ip "]
    asked = [f"{_ARP_SIZE} arp operation request {sender} arp daddr ip {match} accept" for match in near]
    return [_why(rule, _ARP) for rule in (f"{_ARP_SIZE} arp operation reply {sender} accept", *asked)]


def _docker_resolver(policy: Opened) -> list[str]:
    """Docker's embedded resolver asks from the host's network: only the forwarder may ask it, for a stack's own
    names; in `cluster`, everybody."""
    if DOCKER_RESOLVER in policy.asked:
        return []
    known = []
    if policy.names and policy.names.docker:
        known = [f"{_by_forwarder(policy.names)} ip saddr {FORWARDER_SOURCE} ip daddr {DOCKER_RESOLVER} accept"]
    return [*known, _why(f"ip daddr {DOCKER_RESOLVER} jump refuse_name", _DOCKER)]


def _by_forwarder(names: Names) -> str:
    """Sent by the forwarder itself: no other process may ask the cluster's resolver, or the engine's, what it likes.

    By its user and its group: there is no capability to become another user or to join a group of processes. An
    application that runs as root is told apart only where its group is another (runAsGroup).
    """
    return f"meta skuid 0 meta skgid {names.group}"


def _redirected(names: Names) -> list[str]:
    """Before Docker's own (-100), and only the first packet of a flow comes here."""
    rules = [_why(f"meta mark {_FWMARK} return", "the query for an endpoint's name")]
    if names.docker:
        rules.append(f"{_by_forwarder(names)} ip saddr {FORWARDER_SOURCE} return")
    for alias, resolver in names.cluster:
        family, forwarder = _family(alias), _by_forwarder(names)
        rules.append(f"{forwarder} {family} daddr {alias} {_DNS} counter dnat {family} to {resolver}")
    rules += [f"{_family(a)} daddr {a} {_DNS} return" for a in names.resolvers]
    # No source on the loopback can be sent into the tunnel, so Docker's resolver is always the forwarder's; what
    # else answers on the loopback is a resolver of the pod's own, and its queries come by here too.
    rules.append(f"ip daddr {DOCKER_RESOLVER} {_DNS} counter redirect to :{FORWARDER_PORT}")
    rules += ["ip daddr 127.0.0.0/8 return", "ip6 daddr ::1 return"]
    if names.forwarded:
        return [*rules, f"{_DNS} counter redirect to :{FORWARDER_PORT}"]
    for family, (first, *_) in _families_of(names.resolvers):
        rules.append(f"meta nfproto {_NFPROTO[family]} {_DNS} counter dnat {family} to {first}")
    return [*rules, f"{_DNS} counter redirect to :{FORWARDER_PORT}"]  # a family that the tunnel has no resolver of


def _sources(policy: Opened) -> list[str]:
    """A redirected query has the source of the way it was meant to go: give it the tunnel's."""
    rules = []
    for resolver in policy.names.resolvers if policy.names else ():
        family = _family(resolver)
        own = next((address for address in policy.tunnel_addresses if _family(address) == family), None)
        if own:
            match = f"{family} saddr != {own} {family} daddr {resolver} {_DNS}"
            rule = f'oifname "{policy.tunnel}" {match} snat {family} to {own}'
            rules.append(_why(rule, "redirected after it had its source"))
    return rules


# Connection tracking begins an instant before the rules are in force, and takes a packet of an old flow that comes
# in just then for a new connection. What the input chain has not admitted is no reply, therefore.
_REPLY = f"ct direction reply ct mark & {_ADMITTED} == {_ADMITTED}"
_STAMP = f"meta mark set {_PASS} accept"
_NAME_PORTS = "meta l4proto { tcp, udp } th dport { 53, 853 }"
# An Ethernet header and the ARP message for IPv4; a neighbour message with one option, a link-layer address. Sizes as
# the kernel makes them: behind a longer one, anything could be carried.
_ARP_SIZE = "meta length 42"
_ARP = "no longer than the kernel makes it"
_DOCKER = "Docker's resolver asks from the host's network"
_ND_SIZE = "ip6 length <= 32"


def _ipv6_replies(policy: Opened) -> list[str]:
    matches = [match for match in _by_family("daddr", policy.pod_addresses) if match.startswith("ip6")]
    return [f"{_REPLY} ct original {match}" for match in matches]


def _replies(policy: Opened) -> list[str]:
    """IPv6 replies find the way home by a mark: `from <pod address>` would also catch the second look-up
    that IPv6 makes, with a source it chose itself, when the first one failed."""
    return [_why(f"{rule} meta mark set {_PASS}", "the way home, by a routing rule") for rule in _ipv6_replies(policy)]


def _wireguard(policy: Opened) -> list[str]:
    """WireGuard's own packets: by mark and address and port and form. A mark alone proves nothing: an
    application with CAP_NET_RAW may set any (since Linux 5.17)."""
    return [
        f"meta mark {_FWMARK} {_family(address)} daddr {address} udp dport {port} {_WIREGUARD_MESSAGE}"
        for address, port in policy.endpoints
    ]


def _later_fragments(policy: Opened) -> list[str]:
    """What WireGuard's own packets become where they do not fit the uplink: the egress hook sees them afterwards.

    Only a first fragment has a port and a form, and is looked at as a whole packet is. The chains before saw the
    packet itself: a later fragment that comes so far is one of WireGuard's, or of somebody with NET_RAW who sets our
    mark, while the first table is deleted.
    """
    rules = []
    for address in dict.fromkeys(address for address, _ in policy.endpoints):
        to = f"meta mark {_FWMARK} {_family(address)} daddr {address}"
        if _family(address) == "ip":
            rules += [f"{to} meta l4proto udp {later}" for later in _IP_LATER]
        else:
            rules.append(f"{to} {_IP6_LATER}")
    return rules


def _input(policy: Opened, hole: Hole | None) -> list[str]:
    tunnel, uplink = f'iifname "{policy.tunnel}"', f'iifname "{policy.uplink}"'
    rules = _query(hole)[1] if hole else []
    rules.append('iif "lo" accept')
    inner = "the provider is not inside its own tunnel"
    rules += [_why(f"{tunnel} {_family(a)} saddr {a} udp sport {port} drop", inner) for a, port in policy.endpoints]
    rules.append(f"{tunnel} ct state established,related accept")
    if policy.input_ports:
        rules.append(f"{tunnel} {_INPUT_PORTS} {_set(policy.input_ports)} accept")
    spoofed = "not through the tunnel: CVE-2019-14899"
    rules += [_why(f"{match} drop", spoofed) for match in _by_family("daddr", policy.tunnel_addresses)]
    rules.append(f"{uplink} ct direction reply accept")
    rules += [f"{uplink} {_family(a)} saddr {a} udp sport {port} accept" for a, port in policy.endpoints]
    # Any neighbour can advertise itself, or other ways: routes, addresses, and what leads to it.
    unheard = "nd-redirect" if policy.advertised else "{ nd-router-advert, nd-redirect }"
    rules.append(_why(f"{uplink} icmpv6 type {unheard} drop", "any neighbour could change the routes"))
    # A flow from before the lockdown: its server goes on sending, conntrack would take that for a connection that
    # came in, and what the pod answers for a reply. In mid-stream TCP, and UDP to a socket that is as old, only the
    # bypass networks may begin.
    old = "a flow from before the lockdown"
    rules += [_why(f"{uplink} ct state new tcp flags {flags} counter drop", old) for flags in ("! syn", "fin,rst,ack")]
    rules += [f"{uplink} {match} jump admit" for match in _beside("saddr", policy)]
    rules.append(_why(f"{uplink} ct state new udp dport @{_OLDER} counter drop", old))
    return [*rules, f"{uplink} jump admit"]


def input_ports(ruleset: str, tunnel: str) -> list[str]:
    """The ports that this text opens to peers in the tunnel, as _input has written them."""
    start = f'iifname "{tunnel}" {_INPUT_PORTS} '
    found = [line.strip() for line in ruleset.splitlines() if line.strip().startswith(start)]
    words = [line.removeprefix(start).removesuffix(" accept").strip("{ }").split(", ") for line in found]
    return [word for each in words for word in each]


def _leaving(policy: Opened) -> list[str]:
    """The second look, at the device that a packet really takes: the output chain does not see where another
    table's route chain or a DNAT has sent it afterwards."""
    return [
        'oif "lo" accept',
        f'oifname "{policy.tunnel}" accept',
        _why(f'oifname "{policy.uplink}" jump uplink', "again: another table may have sent it here"),
        "counter drop",
    ]


def _arriving(policy: Opened) -> list[str]:
    """Out of the tunnel comes only what is for the tunnel's addresses, and from none that is reached beside it: nobody
    inside can speak for the cluster. Before connection tracking, which would take it for an answer, and give back
    their old addresses to the answers of a resolver that was not the one asked."""
    tunnel = f'iifname "{policy.tunnel}"'
    rules = []
    for family, words in _NFPROTO.items():
        own = [address for address in policy.tunnel_addresses if _family(address) == family]
        stray = f"{family} daddr != {_set(own)}" if own else f"meta nfproto {words}"
        rules.append(_why(f"{tunnel} {stray} drop", "not for the tunnel's own address"))
    # Errors are tied to what they are about: the kernel drops one that is not addressed to its sender.
    rules.append(f"{tunnel} icmp type {{ destination-unreachable, time-exceeded, parameter-problem }} accept")
    too_big = "destination-unreachable, packet-too-big, time-exceeded, parameter-problem"
    rules.append(f"{tunnel} icmpv6 type {{ {too_big} }} accept")
    # A network of the pod's may cover the tunnel's resolvers. A rule for each: they stand in the order of the file, and
    # nft would list a set of them in its own.
    resolvers = policy.names.resolvers if policy.names else ()
    rules += [f"{tunnel} {_family(a)} saddr {a} accept" for a in resolvers]
    outside = [*_beside("saddr", policy), *_by_family("saddr", policy.on_link)]
    return rules + [_why(f"{tunnel} {match} counter drop", "no peer speaks for the cluster") for match in outside]


def _query(hole: Hole, mark: str = _FWMARK) -> tuple[list[str], list[str]]:
    """Out and back. The original port: Docker's own rules have changed 53 to another before we see it."""
    outgoing = [
        _why(
            f"meta mark {mark} {match} udp sport {hole.source_port} ct original proto-dst 53 {_STAMP}",
            "the query for an endpoint's name",
        )
        for match in _by_family("daddr", hole.resolvers)
    ]
    incoming = [
        f"{match} udp dport {hole.source_port} ct direction reply accept"
        for match in _by_family("saddr", hole.resolvers)
    ]
    return outgoing, incoming


def has_gate(ruleset: str) -> tuple[bool, bool]:
    """Is the gate in this text, and does it ask whether a packet was routed?"""
    return f"table netdev {NAME} {{" in ruleset, _ROUTED in ruleset


def _gate(links: tuple[str, ...], arp: list[str], wireguard: list[str], *, routed: bool) -> str:
    if not links:
        return ""
    devices = f'device "{links[0]}"' if len(links) == 1 else f"devices = {{ {', '.join(links)} }}"
    hook = f"type filter hook egress {devices} priority filter; policy drop;"
    ask = _why(f"{_ROUTED} jump routed", "a raw frame has no route") if routed else "jump routed"
    egress = [*arp, ask, "counter drop"]
    accepted = [_why(f"meta mark {_PASS} accept", "the other table let it pass"), *wireguard]
    return _table("netdev", [("routed", "", accepted), ("egress", hook, egress)])


def _inside(policy: Opened) -> list[str]:
    """From the tunnel's addresses, to where AllowedIPs lead: wireguard-go swallows all else without an error."""
    return [
        f"{family} saddr {_set(addresses)}"
        + ("" if members == [_EVERYTHING[family]] else f" {family} daddr @inside_{family}")
        for family, addresses, members in _inside_of(policy)
    ]


def _inside_of(policy: Opened) -> list[tuple[str, list[str], list[str]]]:
    """For each family the tunnel's addresses, and where AllowedIPs lead."""
    inside = dict(_families_of(policy.inside))
    return [(family, own, inside[family]) for family, own in _families_of(policy.tunnel_addresses) if family in inside]


def _beside(field: str, policy: Opened) -> list[str]:
    """One match per family for the bypass networks: `ip daddr @bypass_ip`."""
    return [f"{family} {field} @bypass_{family}" for family, _ in _families_of(policy.bypass)]


def _sets(name: str, networks: Iterable[str]) -> list[_Set]:
    """Networks by name: there may be thousands, and written out in two rules they take nft twice as long.
    Constant: none is added while a rule asks for it."""
    found = []
    for family, members in _families_of(networks):
        kind, width = _SETS[family]
        found.append((f"{name}_{family}", [f"type {kind}", "flags constant,interval", _elements(members, width)]))
    return found


def _older(ports: tuple[int, ...]) -> _Set:
    """A set, and not a rule, holds the ports: it cannot be deleted while a rule asks for it."""
    elements = _elements(list(map(str, ports)), _PORTS_A_LINE)
    return _OLDER, ["type inet_service", *([elements] if ports else [])]


def older(ruleset: str) -> tuple[int, ...] | None:
    """The ports in a text that opened() has made; None when it has not."""
    _, there, rest = ruleset.partition(f"\tset {_OLDER} {{\n")
    if not there:
        return None
    words = rest.partition("\t}\n")[0].partition("elements = {")[2].replace(",", " ").split()
    return tuple(int(word) for word in words if word.isdecimal())


def _elements(members: list[str], width: int) -> str:
    lines = [", ".join(members[at : at + width]) for at in range(0, len(members), width)]
    return f"elements = {{ {_NEXT_LINE.join(lines)} }}"


def _table(family: str, chains: list[_Chain], sets: Iterable[_Set] = ()) -> str:
    blocks = [(f"set {name}", lines) for name, lines in sets]
    blocks += [(f"chain {name}", [hook, *rules]) for name, hook, rules in chains]
    bodies = [
        "\n".join([f"\t{title} {{", *(f"\t\t{line}" for line in lines if line), "\t}\n"]) for title, lines in blocks
    ]
    return f"table {family} {NAME} {{\n" + "\n".join(bodies) + "}\n"


def _by_family(field: str, values: Iterable[str]) -> list[str]:
    """One match per family: `ip daddr { ... }` and `ip6 daddr { ... }`, only for what is there."""
    return [f"{family} {field} {_set(members)}" for family, members in _families_of(values)]


def _families_of(values: Iterable[str]) -> list[tuple[str, list[str]]]:
    """What there is of each family, if anything."""
    values = tuple(values)
    families = [(word, [v for v in values if _family(v) == word]) for word in ("ip", "ip6")]
    return [(word, members) for word, members in families if members]


def _why(rule: str, reason: str) -> str:
    """The rule with its reason as a comment. nft keeps it byte for byte, so a live pod explains itself."""
    return f'{rule} comment "{reason}"'


def _set(members: Iterable[str]) -> str:
    """nft prints a set of one without braces."""
    listed = list(members)
    return listed[0] if len(listed) == 1 else f"{{ {', '.join(listed)} }}"


def _family(address: str) -> str:
    return "ip6" if ":" in address else "ip"
