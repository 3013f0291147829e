"""init_wg.design.firewall.killswitch: the text that decides what may leave.

golden/*.nft are whole rulesets, to be read by people; `WRITE_GOLDEN=1 pytest tests/unit/test_killswitch.py` writes
them anew. That nft understands and returns them byte for byte is tested in tests/netns/test_killswitch_text.py.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from init_wg.design.firewall import killswitch
from init_wg.design.firewall.policy import Asked, Gate, Hole, Names, Opened, Resolving, Sealed
from init_wg.design.firewall.ruleset import text as ruleset
from init_wg.model.state import FWMARK, PASS_MARK
from tests.golden import assert_golden
from tests.unit import build

GOLDEN = Path(__file__).parent / "golden"
GATE = Gate(("eth0",), routed=True)
ORDINARY = Opened(
    tunnel="wg0",
    uplink="eth0",
    gate=GATE,
    tunnel_addresses=("10.64.0.2", "fc00:bbbb::2"),
    inside=("0.0.0.0/0", "::/0"),
    pod_addresses=("10.244.1.7", "fd00:244:1::7"),
    endpoints=(("192.0.2.1", 51820),),
    bypass=("10.96.0.0/12", "10.244.0.0/16", "fd00:244:1::/64"),
    on_link=("10.244.1.0/24", "fd00:244:1::/64"),
    neighbours=("10.244.1.0/24", "fd00:244:1::/64", "fe80::/10", "ff02::/16"),
    input_ports=(),
    dns=build.NAMES,
    older=(5000, 40123),
)
SPLIT = Names(("10.64.0.1", "fc00::53"), (("192.0.2.53", "10.96.0.10"),), docker=True, forwarded=True)
HOLE = Hole(("10.96.0.10", "fd00:96::a"), 40000)
RULESETS = {
    "sealed": ruleset(Sealed(GATE)),
    "sealed-with-hole": ruleset(Resolving(Sealed(GATE), HOLE)),
    "sealed-without-gate": ruleset(Sealed(None)),
    "opened": ruleset(ORDINARY),
    "opened-with-hole": ruleset(Resolving(ORDINARY, HOLE)),
    "opened-without-gate": ruleset(ORDINARY._replace(gate=None)),
    "opened-without-realms": ruleset(ORDINARY._replace(gate=GATE._replace(routed=False))),
    "opened-several-links": ruleset(ORDINARY._replace(gate=GATE._replace(links=("eth0", "net1")))),
    "opened-input-ports": ruleset(ORDINARY._replace(input_ports=("6881", "50000-50100"))),
    "opened-several-endpoints": ruleset(
        ORDINARY._replace(endpoints=(("192.0.2.1", 51820), ("198.51.100.2", 443), ("2001:db8::1", 51820)))
    ),
    "opened-dns-several": ruleset(
        ORDINARY._replace(dns=build.NAMES._replace(resolvers=("10.64.0.9", "fc00:bbbb::1", "10.64.0.1")))
    ),
    "opened-dns-split": ruleset(ORDINARY._replace(dns=SPLIT)),
    "opened-dns-cluster": ruleset(ORDINARY._replace(dns=Asked(("10.96.0.10", "fd00:96::a")))),
    "opened-dns-docker": ruleset(ORDINARY._replace(dns=Asked(("127.0.0.11",)))),
    "opened-inside-some": ruleset(
        ORDINARY._replace(inside=("10.64.0.0/16", "11.0.0.0-126.255.255.255", "198.51.100.7", "fc00:bbbb::/64"))
    ),
    "opened-inside-one-family": ruleset(ORDINARY._replace(inside=("0.0.0.0/0",))),
    "opened-v4-only": ruleset(
        ORDINARY._replace(
            tunnel_addresses=("10.64.0.2",),
            pod_addresses=("10.244.1.7",),
            bypass=("10.96.0.0/12",),
            on_link=("10.244.1.0/24",),
            neighbours=("10.244.1.0/24", "fe80::/10", "ff02::/16"),
        )
    ),
}


@pytest.mark.parametrize("name", RULESETS)
def test_the_whole_text(name: str) -> None:
    assert_golden(RULESETS[name], GOLDEN / f"{name}.nft")


def test_every_golden_ruleset_is_tested() -> None:
    assert {file.stem for file in GOLDEN.glob("*.nft")} == set(RULESETS)


def test_the_marks_are_those_of_state() -> None:
    """killswitch spells them itself: importing state before the lockdown would cost more than the lockdown."""
    marks = set(re.findall(r"meta mark (?:set )?(0x\w+)", RULESETS["opened"]))
    assert marks == {f"{FWMARK:#010x}", f"{PASS_MARK:#010x}"}


# --- reviewing any text ------------------------------------------------------------------------------------------

# An address, network or range. Simple, so that matching stays linear: nft itself checks the spelling.
ONE = r"[0-9a-f:.]+(?:/\d+)?(?:-[0-9a-f:.]+)?"
ANY = rf"(?:{ONE}|{{ {ONE}(?:, {ONE})+ }})"
HOST = r"(?:ip daddr [0-9.]+|ip6 daddr [0-9a-f:]+)"
DNS = r"meta l4proto { tcp, udp } th dport 53"
NEIGHBOURS = "nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert"
REPLY = r"ct direction reply ct mark & 0x08000000 == 0x08000000"  # and the input chain has let it in
PASS = r"meta mark set 0x0000ca6d accept"
WIREGUARD = (
    rf"meta mark 0x0000ca6c {HOST} udp dport \d+ @th,64,32 {{ 0x1000000, 0x2000000, 0x3000000, 0x4000000 }} accept"
)
#: All that may ever be accepted on the way out. A new line in the kill-switch has to be argued for here.
OUTPUT = (
    r'oif "lo" accept',
    # into the tunnel, with the tunnel's own address, to where AllowedIPs lead
    rf'oifname "(?P<tunnel>[^"]+)" (?:ip|ip6) saddr {ANY}(?: ip6? daddr @inside_ip6?)? accept',
    r'oifname "(?P<uplink>[^"]+)" jump uplink',
    # What was sent elsewhere since its device was chosen; `leaving` sees where to. Replies over IPv6:
    rf"{REPLY} ct original ip6 daddr {ANY} accept",
    # redirected queries, into the tunnel
    rf"ct status dnat {HOST} {DNS} accept",
    # to the pod itself
    rf"ct status dnat (?:ip daddr 127\.0\.0\.0/8|ip6 daddr ::1|(?:ip|ip6) daddr {ANY}) accept",
    # the forwarder's own, to Docker's resolver
    r"meta skuid 0 meta skgid \d+ ip saddr 127\.0\.0\.54 ip daddr 127\.0\.0\.11 accept",
)
#: What may leave on the uplink: looked at twice, by the device that was meant and by the one that is taken.
UPLINK = (
    # WireGuard's own packets: mark, address, port and form
    WIREGUARD,
    # replies to connections that came in
    rf"{REPLY} ct original (?:ip|ip6) daddr {ANY} {PASS}",
    # neighbour discovery, on the link only (hop limit 255), and of its own size
    rf"icmpv6 type {{ {NEIGHBOURS} }} ip6 hoplimit 255 ip6 length <= 32 ip6 saddr {ANY} ip6 daddr {ANY} {PASS}",
    # the forwarder's queries to the cluster's resolver, which it alone knows by an alias
    rf"ct original {HOST} {HOST} {DNS} {PASS}",
    # resolvers that everybody may ask on the uplink (DNS_MODE=cluster)
    ASKED := rf"(?:ip|ip6) daddr {ANY} {DNS} {PASS}",
)
#: What bypasses the tunnel by name: last, after DNS is refused.
BESIDE = rf"(?:ip daddr @bypass_ip|ip6 daddr @bypass_ip6) {PASS}"
#: The hole for a query: our mark, these resolvers, this source port, and 53 as what was asked for.
QUERY = rf"meta mark 0x0000ca6c (?:ip|ip6) daddr {ANY} udp sport \d+ ct original proto-dst 53 {PASS}"
#: The second look sees it with the stamp of the first.
QUERY_AGAIN = QUERY.replace("ca6c", "ca6d", 1)
#: And an IPv6 resolver's way there: without it, a sealed pod finds no neighbour.
NEIGHBOUR = (
    r"icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } ip6 hoplimit 255 ip6 length <= 32 "
    rf"ip6 daddr {ANY} {PASS}"
)
LEAVING = (
    r'oif "lo" accept',
    r'oifname "(?P<tunnel>[^"]+)" accept',
    r'oifname "(?P<uplink>[^"]+)" jump uplink',
)
ROUTED = (
    r"meta mark 0x0000ca6d accept",
    WIREGUARD,
    # WireGuard's later fragments, which have no port and no form
    rf"meta mark 0x0000ca6c ip daddr {ANY} meta l4proto udp @nh,56,8 != 0x0 accept",
    rf"meta mark 0x0000ca6c ip daddr {ANY} meta l4proto udp @nh,48,8 != {{ 0x0, [^}}]* 0xe0 }} accept",
    rf"meta mark 0x0000ca6c ip6 daddr {ANY} frag nexthdr 17 frag frag-off != 0 accept",
)
BASE = {
    "output": "type filter hook output priority filter; policy drop;",
    "input": "type filter hook input priority filter; policy drop;",
    "forward": "type filter hook forward priority filter; policy drop;",
    "leaving": "type filter hook postrouting priority filter; policy drop;",
    # These choose a way, and let nothing out.
    "replies": "type route hook output priority mangle; policy accept;",
    "arriving": "type filter hook prerouting priority raw; policy accept;",
    "names": "type nat hook output priority -115; policy accept;",
    "sources": "type nat hook postrouting priority srcnat; policy accept;",
}


#: What nft takes for one, at most 128 bytes.
COMMENT = re.compile(r' comment "[A-Za-z0-9 .,:\'-]{1,128}"$')


def chains(text: str) -> dict[str, list[str]]:
    """Chain -> its lines, without their comments."""
    found = re.findall(r"\tchain (\w+) \{\n(.*?)\t\}\n", text, re.DOTALL)
    return {name: [COMMENT.sub("", line.strip()) for line in body.splitlines()] for name, body in found}


def sets(text: str) -> dict[str, list[str]]:
    """Set -> its elements."""
    found = re.findall(r"\tset (\w+) \{\n(.*?)\t\}\n", text, re.DOTALL)
    return {name: body.partition("elements = {")[2].strip(" }\n").replace(",", " ").split() for name, body in found}


def review(text: str, tunnel: str, uplink: str, *, hole: bool) -> None:
    """What a reviewer checks, on whatever text: nothing but the shapes above is let out."""
    seen = chains(text)
    assert all(re.fullmatch(ONE, element) for elements in sets(text).values() for element in elements)
    assert {name: lines[0] for name, lines in seen.items() if name in BASE} == {
        name: hook for name, hook in BASE.items() if name in seen
    }
    assert {"output", "input", "forward", "refuse"} <= set(seen)
    assert seen["forward"] == [BASE["forward"], "drop"]
    # The policy is not enough while rules are replaced: each hook's last word is a verdict.
    last = {"output": "jump refuse", "forward": "drop", "leaving": "counter drop", "egress": "counter drop"}
    assert {name: seen[name][-1] for name in last if name in seen} == {
        name: last[name] for name in last if name in seen
    }
    assert seen["input"][-1] == "drop" or seen["input"][-1].endswith(" jump admit")
    assert seen["output"][-1] == "jump refuse"
    for name in ("refuse", "refuse_name", "replies", "names", "sources"):
        assert not any(re.search(r"\baccept\b", line) for line in seen.get(name, [])[name in BASE :])
    assert not any(word in line for line in seen["output"] for word in ("established", "related", "queue", "return"))
    query, again = ([QUERY, NEIGHBOUR], [QUERY_AGAIN]) if hole else ([], [])
    shapes = {"output": (*OUTPUT, *query), "uplink": (*UPLINK, BESIDE, *again), "leaving": LEAVING, "routed": ROUTED}
    for name, allowed in shapes.items():
        for line in seen.get(name, [])[1 if name in BASE else 0 :]:
            if not re.search(r"\baccept\b|jump uplink", line):
                continue
            matches = [match for shape in allowed if (match := re.fullmatch(shape, line))]
            assert matches, f"{name}: {line}"
            assert {"tunnel": tunnel, "uplink": uplink}.items() >= matches[0].groupdict().items()
    for line in seen.get("replies", [])[1:]:  # marks only; the verdict is the output chain's
        assert re.fullmatch(rf"{REPLY} ct original ip6 daddr {ANY} meta mark set 0x0000ca6d", line)
    if "egress" in seen:
        assert re.fullmatch(
            r"type filter hook egress device(?:s =)? .* priority filter; policy drop;", seen["egress"][0]
        )
        accepts = [line for line in seen["egress"][1:] if "accept" in line or "jump" in line]
        assert accepts[-1] in ("meta rtclassid != 4294967295 jump routed", "jump routed")
        sealed = ["meta length 42 ether type arp accept"], ["meta length 42 arp operation reply accept"]
        own = rf"meta length 42 arp operation (?:reply|request) arp saddr ip {ANY}(?: arp daddr ip {ANY})? accept"
        assert accepts[:-1] in sealed or all(re.fullmatch(own, line) for line in accepts[:-1])


@settings(max_examples=80, deadline=None)
@given(policy=build.opened(), hole=build.holes)
def test_any_opened_kill_switch_lets_out_only_what_is_allowed(policy: Opened, hole: Hole | None) -> None:
    text = ruleset(build.resolving(policy, hole))
    review(text, policy.tunnel, policy.uplink, hole=hole is not None)
    output, uplink = chains(text)["output"], chains(text)["uplink"]
    # Every endpoint and nothing else is reached by WireGuard's packets.
    ends = re.findall(r"meta mark 0x0000ca6c (?:ip|ip6) daddr (\S+) udp dport (\d+)", "\n".join(uplink))
    assert ends == [(address, str(port)) for address, port in policy.endpoints]
    # DNS and Docker's resolver are refused before a wider rule could accept them.
    assert "meta l4proto { tcp, udp } th dport { 53, 853 } jump refuse_name" in output
    refused = uplink.index("meta l4proto { tcp, udp } th dport { 53, 853 } return")
    assert not any(re.fullmatch(BESIDE, line) for line in uplink[:refused])
    # Nobody has the tunnel's addresses outside of it, but for WireGuard's own packets and our own query.
    ours = [number for number, line in enumerate(uplink) if re.fullmatch(rf"(?:ip|ip6) saddr {ANY} return", line)]
    assert len(ours) == len({":" in address for address in policy.tunnel_addresses})
    assert all(re.fullmatch(f"{WIREGUARD}|{QUERY_AGAIN}", line) for line in uplink[: ours[0]])
    assert output.index("ip daddr 127.0.0.11 jump refuse_name") < output.index('oif "lo" accept')
    asked = [line for line in uplink if re.fullmatch(ASKED, line)]
    assert len(asked) == len({":" in resolver for resolver in policy.asked})
    beside_tunnel = [line for line in uplink if re.fullmatch(BESIDE, line)]
    assert len(beside_tunnel) == len({":" in network for network in policy.bypass})
    found = sets(text)
    assert tuple(n for name in ("bypass_ip", "bypass_ip6") for n in found.get(name, ())) == policy.bypass
    assert set(re.findall(r"@(\w+) ", text)) == set(found)
    # Into the tunnel only goes what AllowedIPs cover.
    for family, everything in (("ip", "0.0.0.0/0"), ("ip6", "::/0")):
        own = any((":" in address) == (family == "ip6") for address in policy.tunnel_addresses)
        inside = [network for network in policy.inside if (":" in network) == (family == "ip6")]
        assert found.get(f"inside_{family}", []) == (inside if own and inside != [everything] else [])
        into = [line for line in output if re.fullmatch(rf'oifname "[^"]+" {family} saddr .* accept', line)]
        assert len(into) == (own and bool(inside))
        assert all(f" {family} daddr @inside_{family} " in line for line in into) or inside == [everything]
    assert killswitch.older(text) == policy.older == tuple(map(int, found["older"]))
    assert text.count("\t\tflags constant,interval\n") == len(found) - 1


@settings(max_examples=40, deadline=None)
@given(
    links=st.lists(build.names, unique=True, max_size=4),
    hole=build.holes,
    routed=st.booleans(),
)
def test_any_lockdown_lets_out_nothing(links: list[str], hole: Hole | None, routed: bool) -> None:
    gate = Gate(tuple(links), routed) if links else None
    text = ruleset(build.resolving(Sealed(gate), hole))
    review(text, "", "", hole=hole is not None)
    output = [line for line in chains(text)["output"] if re.search(r"\baccept\b", line)]
    assert [line for line in output if not re.fullmatch(f"{QUERY}|{NEIGHBOUR}", line)] == ['oif "lo" accept']
    assert ("table netdev" in text) == bool(links)


@pytest.mark.parametrize(
    "line",
    [
        "accept",
        "ct state established accept",
        "meta mark 0x0000ca6c accept",
        'oifname "eth0" meta mark 0x0000ca6c udp dport 51820 accept',
        'oifname "eth0" ct direction reply accept',
        'oifname "eth0" accept',
        'oifname "eth1" ip daddr 10.0.0.0/8 meta mark set 0x0000ca6d accept',
        'oifname "eth0" ip daddr 10.0.0.0/8 meta mark set 0x0000ca6d accept',
        'oifname "eth1" ip daddr @bypass_ip meta mark set 0x0000ca6d accept',
        'oifname "wg0" accept',
        'oifname "eth0" ct direction reply ct original ip daddr 10.42.0.5 meta mark set 0x0000ca6d accept',
        "udp dport 53 accept",
    ],
)
def test_the_reviewer_notices(line: str) -> None:
    """Positive control: each of these would leak, in a chain that is right otherwise."""
    text = RULESETS["opened"]
    review(text, "wg0", "eth0", hole=False)
    with pytest.raises(AssertionError):
        review(text.replace("\t\tjump refuse", f"\t\t{line}\n\t\tjump refuse"), "wg0", "eth0", hole=False)


@pytest.mark.parametrize("hook", ["output", "input", "forward", "postrouting", "egress"])
def test_the_reviewer_notices_a_policy(hook: str) -> None:
    changed = re.sub(rf"(hook {hook} .*)policy drop", r"\1policy accept", RULESETS["opened"])
    assert changed != RULESETS["opened"]
    with pytest.raises(AssertionError):
        review(changed, "wg0", "eth0", hole=False)


def test_what_comes_in() -> None:
    lines = chains(RULESETS["opened"])["input"]
    to_tunnel = lines.index("ip daddr 10.64.0.2 drop")
    assert lines.index("ip6 daddr fc00:bbbb::2 drop") == to_tunnel + 1
    # CVE-2019-14899: nothing from the uplink is accepted before that, and from the tunnel only what we asked for.
    assert [line for line in lines[:to_tunnel] if "accept" in line] == [
        'iif "lo" accept',
        'iifname "wg0" ct state established,related accept',
    ]
    assert not any(line.startswith('iifname "wg0"') for line in lines[to_tunnel:])


@pytest.mark.parametrize("name", [name for name in RULESETS if name.startswith("opened")])
def test_a_rule_that_ends_a_packets_way_says_why(name: str) -> None:
    """But for the last one of a chain, which says no to all the rest."""
    for chain in re.findall(r"\tchain (?:uplink|output|arriving|input) \{\n(.*?)\t\}\n", RULESETS[name], re.DOTALL):
        for line in chain.splitlines()[:-1]:
            assert not re.search(r"(?:drop|return|refuse|refuse_name)$", line), line


def test_the_ports_of_older_sockets_are_remembered() -> None:
    assert killswitch.older(RULESETS["opened"]) == (5000, 40123)
    assert killswitch.older(RULESETS["sealed"]) is None
    assert killswitch.older(ruleset(ORDINARY._replace(older=()))) == ()


# --- loading -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RULESETS)
def test_replacing_is_one_transaction_over_what_the_text_has(name: str) -> None:
    text = RULESETS[name]
    families = ["inet", "netdev"] if "table netdev" in text else ["inet"]
    before = "".join(f"table {family} init_wg\ndelete table {family} init_wg\n" for family in families)
    assert killswitch.replacement(text) == before + text
    assert killswitch.creation(text) == "".join(f"create table {family} init_wg\n" for family in families) + text


def test_removal_names_only_our_tables() -> None:
    assert killswitch.removal().split("\n") == [
        "table inet init_wg", "delete table inet init_wg", "table netdev init_wg", "delete table netdev init_wg", "",
    ]  # fmt: skip
    assert all("flush" not in text for text in RULESETS.values())


@pytest.mark.parametrize(("name", "expected"), [
    ("opened", (True, True)), ("opened-without-realms", (True, False)), ("opened-without-gate", (False, False)),
])  # fmt: skip
def test_which_gate_is_in_a_text(name: str, expected: tuple[bool, bool]) -> None:
    assert killswitch.has_gate(RULESETS[name]) == expected
