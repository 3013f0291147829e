"""init_wg.server.design: the ruleset of a server, its device, its addresses and its routes.

golden/server/*.nft are whole rulesets, to be read by people; `WRITE_GOLDEN=1 pytest tests/unit/test_server_design.py`
writes them anew. tests/netns/test_server_text.py gives them to nft.
"""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from init_wg.config import server_settings
from init_wg.config.server_settings import ServerSettings
from init_wg.design.firewall import served
from init_wg.design.plan import plan
from init_wg.design.steps import OpenRuleset, SetForwarding, SetUp
from init_wg.errors import ConfigError
from init_wg.model import networks
from init_wg.model.secret import Secret
from init_wg.model.state import FORWARD_MARK, INET, INET6, PASS_MARK, Link, Rule, State
from init_wg.server.design import desired
from init_wg.server.design.desired import Circumstances
from init_wg.server.design.register import Peer, Register
from tests.golden import assert_golden
from tests.unit import build

GOLDEN = Path(__file__).parent / "golden/server"
PUBLIC = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="
NOW = Circumstances("wireguard", (INET, INET6), True, True, ("10.96.0.10",), forwards6=True)


def register(**peers: int) -> Register:
    made = {
        name: Peer(build.key(name), Secret(build.key(f"{name}'s")), None, number, active=True)
        for name, number in peers.items()
    }
    return Register(Secret(build.key("server")), made)


def server(**environment: str) -> ServerSettings:
    return server_settings.read({"PEERS": "phone,laptop", "INTERNAL_SUBNET6": "fd13:13::/64", **environment})


def ruleset(*, now: Circumstances = NOW, sites: dict[str, Any] | None = None, **environment: str) -> str:
    settings = server(**environment)
    within = desired.inside(settings, PUBLIC)
    return served.opened(desired.policy(build.settings(), settings, within, sites or {}, build.pod(), now))


RULESETS = {
    "isolated": ruleset(),
    "peer-to-peer": ruleset(PEER_TO_PEER="true"),
    "v4-only": ruleset(
        INTERNAL_SUBNET6="none", ALLOWEDIPS="0.0.0.0/0", now=NOW._replace(families=(INET,), forwards6=False)
    ),
    "without-ipv6-forwarding": ruleset(now=NOW._replace(forwards6=False)),
    "named-networks": ruleset(ALLOWEDIPS="10.96.0.0/12, 10.244.0.0/16, 169.254.169.254/32, fd00:96::/112"),
    "resolvers-outside": ruleset(PEERDNS="9.9.9.9, 2620:fe::fe"),
    "no-names": ruleset(PEERDNS="none"),
    "docker": ruleset(now=NOW._replace(nameservers=("127.0.0.11",))),
    "site-to-site": ruleset(sites={"phone": (ip_network("192.168.7.0/24"),)}),
    "without-gate": ruleset(now=NOW._replace(gate=False)),
}


@pytest.mark.parametrize("name", RULESETS)
def test_the_whole_text(name: str) -> None:
    assert_golden(RULESETS[name], GOLDEN / f"{name}.nft")


def test_every_golden_ruleset_is_tested() -> None:
    assert {file.stem for file in GOLDEN.glob("*.nft")} == set(RULESETS)


def test_the_marks_are_those_of_state() -> None:
    assert f"meta mark set {FORWARD_MARK:#010x}" in RULESETS["isolated"]
    assert f"meta mark set {PASS_MARK:#010x} accept" in RULESETS["isolated"]


@pytest.mark.parametrize("name", RULESETS)
def test_every_hook_ends_in_a_verdict(name: str) -> None:
    """While one ruleset replaces another, its rules are in force before its policies."""
    for chain in RULESETS[name].split("\tchain ")[1:]:
        lines = [line.strip() for line in chain.split("\n\t}")[0].splitlines()]
        if "policy drop" in chain:
            assert lines[-1] in ("drop", "counter drop", "jump refuse")


# --- where peers may go --------------------------------------------------------------------------------------------


def covered(address: str, *named: str) -> bool:
    spelled = desired.allowed(map(ip_network, named))
    one = networks.interval(address)
    return any(version == one[0] and first <= one[1] <= last for version, first, last in map(_interval, spelled))


def _interval(text: str) -> networks.Interval:
    first, dash, last = text.partition("-")
    if not dash:
        return networks.interval(text)
    return 6 if ":" in first else 4, int(ip_address(first)), int(ip_address(last))


@pytest.mark.parametrize("named", [("0.0.0.0/0", "::/0"), ("0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1")])
def test_a_default_route_is_the_public_internet(named: tuple[str, ...]) -> None:
    public = ("1.1.1.1", "203.0.113.80", "223.255.255.255", "2606:4700::1111", "3fff:ffff::1")
    not_public = (
        "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "100.100.100.200", "169.254.169.254",
        "127.0.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255", "fe80::1", "fc00::1", "fd00:ec2::254", "::1", "ff02::1",
        "64:ff9b::a00:1",
    )  # fmt: skip
    assert [address for address in public if not covered(address, *named)] == []
    assert [address for address in not_public if covered(address, *named)] == []


@pytest.mark.parametrize(
    ("named", "address", "may"),
    [
        ("10.43.0.0/16", "10.43.0.1", True),
        ("10.43.0.0/16", "10.44.0.1", False),
        ("10.43.0.0/16", "1.1.1.1", False),
        ("100.64.0.0/10", "100.64.0.1", True),
        ("100.64.0.0/10", "100.100.100.200", False),
        ("100.100.100.200/32", "100.100.100.200", True),
        ("169.254.169.254/32", "169.254.169.254", True),
        ("169.254.169.254/32", "169.254.169.253", False),
        ("169.254.0.0/16", "169.254.169.254", True),
        ("169.0.0.0/8", "169.254.169.254", False),
        ("169.0.0.0/8", "169.1.1.1", True),
        ("fc00::/7", "fd00:ec2::254", False),
        ("fc00::/7", "fd44::1", True),
        ("fe80::/10", "fe80::1", True),
        ("fe00::/7", "fe80::1", False),
    ],
)
def test_what_a_network_names(named: str, address: str, may: bool) -> None:
    assert covered(address, named) == may


# --- networks ------------------------------------------------------------------------------------------------------


def test_the_ipv6_network_is_the_public_keys() -> None:
    settings = server(INTERNAL_SUBNET6="auto")
    _, mine = desired.inside(settings, PUBLIC)
    assert mine == desired.inside(settings, PUBLIC)[1] != desired.inside(settings, build.key("other"))[1]
    assert mine.prefixlen == 64
    assert mine.subnet_of(ip_network("fd00::/8"))  # type: ignore[arg-type]
    assert desired.inside(server(INTERNAL_SUBNET6="none"), PUBLIC) == (settings.subnet,)


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"INTERNAL_SUBNET": "10.244.1.0/24"}, "INTERNAL_SUBNET: 10.244.1.0/24 overlaps the pod's own network"),
        ({"INTERNAL_SUBNET6": "fd00:244::/32"}, "INTERNAL_SUBNET6: fd00:244::/32 overlaps the pod's own network"),
        ({"SERVER_ALLOWEDIPS_PEER_phone": "10.13.13.128/25"}, "PEER_phone: 10.13.13.128/25 overlaps INTERNAL_SUBNET"),
        ({"SERVER_ALLOWEDIPS_PEER_phone": "10.244.0.0/16"}, "PEER_phone: 10.244.0.0/16 overlaps the pod's network"),
        (
            {"SERVER_ALLOWEDIPS_PEER_phone": "192.168.0.0/16", "SERVER_ALLOWEDIPS_PEER_laptop": "192.168.7.0/24"},
            "overlaps that of peer ",
        ),
    ],
)
def test_networks_that_have_two_places(environment: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        wanted(environment)


def wanted(environment: dict[str, str], have: State | None = None, **peers: int) -> State:
    settings = server(**environment)
    known = register(**(peers or {"phone": 2, "laptop": 3}))
    within = desired.inside(settings, PUBLIC)
    empty = State((), frozenset(), frozenset(), frozenset(), "")
    return desired.state(build.settings(), settings, known, within, build.pod(), NOW, have or empty)


# --- the whole state -----------------------------------------------------------------------------------------------


def test_the_state() -> None:
    state = wanted({"SERVER_ALLOWEDIPS_PEER_phone": "192.168.7.0/24"})
    (interface,) = state.interfaces
    assert interface.link == Link("wg0", "wireguard", 1370, up=True)
    assert {f"{a.address}/{a.prefix_length}" for a in interface.addresses} == {"10.13.13.1/24", "fd13:13::1/64"}
    assert interface.device is not None
    assert (interface.device.listen_port, interface.device.fwmark) == (51820, 0)
    peers = {peer.public_key: peer for peer in interface.device.peers}
    assert peers[build.key("phone")].allowed_ips == {"10.13.13.2/32", "fd13:13::2/128", "192.168.7.0/24"}
    assert peers[build.key("laptop")].allowed_ips == {"10.13.13.3/32", "fd13:13::3/128"}
    assert all((peer.endpoint, peer.keepalive) == (None, 0) for peer in peers.values())
    assert [(route.destination, route.device) for route in state.routes] == [("192.168.7.0/24", "wg0")]
    assert state.forwarding == {"wg0", "eth0"}


def test_without_marks_there_is_no_way_to_be_forwarded() -> None:
    """What comes in by either device is looked up with the mark, or refused; whatever the tables say."""
    rules = wanted({}).rules
    for name in (b"wg0\0", b"eth0\0"):
        for family in (INET, INET6):
            mine = [rule for rule in rules if rule.family == family and (3, name) in rule.other]
            marked, refused = sorted(mine, key=lambda rule: rule.preference)
            assert (marked.mark, marked.table, marked.action) == (FORWARD_MARK, 254, 1)
            assert (refused.mark, refused.action) == (None, 8)


def test_an_inactive_peer_is_not_on_the_device() -> None:
    known = register(phone=2)
    gone = known._replace(peers={"phone": known.peers["phone"]._replace(active=False)})
    settings = server()
    empty = State((), frozenset(), frozenset(), frozenset(), "")
    within = desired.inside(settings, PUBLIC)
    state = desired.state(build.settings(), settings, gone, within, build.pod(), NOW, empty)
    assert state.interfaces[0].device is not None
    assert not state.interfaces[0].device.peers


def test_forwarding_comes_before_the_opening_and_that_before_the_link() -> None:
    want = wanted({})
    have = State((), frozenset(), frozenset(), frozenset(), "sealed")
    steps = [type(step) for step in plan(want, have, "sealed")]
    assert steps.index(SetForwarding) < steps.index(OpenRuleset) < steps.index(SetUp)
    assert not plan(want, want, "sealed")


def test_forwarding_that_is_lost_is_a_difference() -> None:
    want = wanted({})
    (step,) = plan(want, want._replace(forwarding=frozenset({"wg0"})), "sealed")
    assert str(step) == "IPv4 forwarding of eth0: wanted on, found off"


def test_what_egress_mode_left_is_taken_away() -> None:
    left = Rule(INET, 300, 51820, mark=51820, invert=True)
    want = wanted({})
    assert left not in want.rules
    assert [step.what for step in plan(want, want._replace(rules=want.rules | {left}), "")] == [
        "rule 300: not from all fwmark 51820 lookup 51820"
    ]
