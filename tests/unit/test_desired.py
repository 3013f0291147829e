"""init_wg.design.desired: (Settings, Tunnel, Pod) -> State."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface
from operator import attrgetter
from typing import Any

import pytest

from init_wg.design import desired
from init_wg.design.firewall.policy import Asked, Names
from init_wg.model.snapshot import InterfaceAddress
from init_wg.model.state import (
    FWMARK,
    INET,
    INET6,
    MAIN_TABLE,
    PASS_MARK,
    PROTOCOL,
    RECORD_TABLE,
    TABLE,
    UNREACHABLE_METRIC,
    Address,
    Device,
    Link,
    OtherTunnel,
    Peer,
    Route,
    Rule,
    State,
)
from tests.unit import build


def state(environment: dict[str, str] | None = None, pod: dict[str, Any] | None = None,
          tunnel: dict[str, Any] | None = None, **now: Any) -> State:  # fmt: skip
    return desired.state(
        build.settings(**(environment or {})),
        build.tunnel(**(tunnel or {})),
        build.pod(**(pod or {})),
        build.circumstances(**now),
    )


ORDINARY = state()
by_preference = attrgetter("preference")


def routes(found: State, table: int, protocol: int = PROTOCOL) -> set[Route]:
    return {route for route in found.routes if route.table == table and route.protocol == protocol}


def test_link_device_and_addresses() -> None:
    (own,) = ORDINARY.interfaces
    assert own.link == Link("wg0", "wireguard", 1370, up=True)
    peer = Peer(build.SERVER, build.PRESHARED, build.ENDPOINT, frozenset(["0.0.0.0/0", "::/0"]), 25)
    assert own.device == Device(build.PRIVATE, None, FWMARK, frozenset([peer]))
    assert own.addresses == {Address(INET, "10.64.0.2", 32), Address(INET6, "fc00:bbbb::2", 128)}


def test_another_name_for_the_interface() -> None:
    found = state({"WG_INTERFACE": "tunnel"})
    assert [each.link for each in found.interfaces] == [Link("tunnel", "wireguard", 1370, up=True)]
    assert {route.device for route in routes(found, TABLE)} == {"tunnel", None}
    assert '"tunnel"' in found.ruleset
    assert "wg0" not in found.ruleset


@pytest.mark.parametrize(
    ("uplink", "configured", "addresses", "expected"),
    [
        (1450, None, ("10.64.0.2/32",), 1370),
        (1500, None, ("10.64.0.2/32",), 1420),
        (9001, None, ("10.64.0.2/32",), 1420),  # the way beyond the pod's link is seldom as wide
        (1450, 1280, ("10.64.0.2/32",), 1280),
        (1450, 1420, ("10.64.0.2/32",), 1420),  # the file's own, even if it is too large
        (1300, None, ("10.64.0.2/32",), 1220),
        (1300, None, ("10.64.0.2/32", "fc00::2/128"), 1280),  # below, the kernel takes IPv6 away
    ],
)
def test_mtu(uplink: int, configured: int | None, addresses: tuple[str, ...], expected: int) -> None:
    pod = {"interfaces": (build.LOOPBACK, build.UPLINK._replace(mtu=uplink))}
    tunnel = {"mtu": configured, "addresses": tuple(map(ip_interface, addresses))}
    found = state(pod=pod, tunnel=tunnel)
    assert [each.link.mtu for each in found.interfaces] == [expected]


def test_wireguard_go_gets_what_fits() -> None:
    """It loses packets that the kernel would have to cut (UDP_SEGMENT). A peer fills packets up to a multiple of 16."""
    pod = {"interfaces": (build.LOOPBACK, build.UPLINK._replace(mtu=1450))}
    for configured, expected in ((1420, 1376), (1391, 1376), (1390, 1390), (1300, 1300)):
        found = state(pod=pod, tunnel={"mtu": configured}, kind="tun")
        assert [each.link.mtu for each in found.interfaces] == [expected]


@pytest.mark.parametrize("kind", ["wireguard", "tun"])
@pytest.mark.parametrize(
    ("uplink", "configured", "endpoint", "told"),
    [
        (1450, 1390, "192.0.2.1", None),
        (1450, 1391, "192.0.2.1", "write MTU = 1376"),
        (1450, 1371, "2001:db8::1", "write MTU = 1360"),
        (1500, None, "2001:db8::1", None),
        (1320, None, "192.0.2.1", "the least that IPv6 allows"),
    ],
)
def test_an_mtu_that_does_not_fit_is_told(
    uplink: int, configured: int | None, endpoint: str, told: str | None, kind: str
) -> None:
    pod = build.pod(interfaces=(build.LOOPBACK, build.UPLINK._replace(mtu=uplink)))
    said = desired.mtu_notice(build.tunnel(mtu=configured), pod, kind, {build.SERVER: (endpoint, 51820)})
    assert (told in said) if said and told else said is told


# --- rules -------------------------------------------------------------------------------------------------------


def test_the_rules_in_the_order_in_which_they_are_asked() -> None:
    """IPv4's replies by their source, IPv6's by a mark: see design 4."""
    assert sorted((rule for rule in ORDINARY.rules if rule.family == INET), key=by_preference) == [
        Rule(INET, 0, 255),
        Rule(INET, 50, TABLE, destination="10.64.0.1", port=53),
        Rule(INET, 100, MAIN_TABLE, source="10.244.1.7"),
        Rule(INET, 200, MAIN_TABLE, suppress_prefix_length=0),
        Rule(INET, 300, TABLE, mark=FWMARK, invert=True),
        Rule(INET, 32766, MAIN_TABLE),
        Rule(INET, 32767, 253),
    ]
    assert sorted((rule for rule in ORDINARY.rules if rule.family == INET6), key=by_preference) == [
        Rule(INET6, 0, 255),
        Rule(INET6, 100, MAIN_TABLE, mark=PASS_MARK),
        Rule(INET6, 200, MAIN_TABLE, suppress_prefix_length=0),
        Rule(INET6, 300, TABLE, mark=FWMARK, invert=True),
        Rule(INET6, 32766, MAIN_TABLE),
    ]


def test_no_ipv6_rule_goes_by_the_pods_address() -> None:
    """The kernel's second look-up would match it, and leak (measured)."""
    assert not any(rule.source for rule in ORDINARY.rules if rule.family == INET6)


def test_every_ipv4_address_of_the_pod_answers_by_its_own_way() -> None:
    second = InterfaceAddress(2, Address(INET, "10.244.1.8", 24), 0)
    found = state(pod={"addresses": (*build.POD_ADDRESSES, second)})
    assert {r.source for r in found.rules if r.preference == 100 and r.family == INET} == {"10.244.1.7", "10.244.1.8"}


# --- routes ------------------------------------------------------------------------------------------------------


def test_the_tunnels_table() -> None:
    assert routes(ORDINARY, TABLE) == {
        Route(INET, TABLE, "0.0.0.0/0", "wg0", scope=253),
        Route(INET6, TABLE, "::/0", "wg0", metric=1024),
        Route(INET, TABLE, "0.0.0.0/0", None, kind="unreachable", metric=UNREACHABLE_METRIC),
        Route(INET6, TABLE, "::/0", None, kind="unreachable", metric=UNREACHABLE_METRIC),
        Route(INET, TABLE, "169.254.0.0/16", None, kind="unreachable"),
    }


def test_a_link_local_resolver_is_reached_in_the_tunnel() -> None:
    found = state(tunnel={"dns": (ip_address("169.254.1.53"),)})
    assert not [route for route in found.routes if route.destination == "169.254.0.0/16"]


def test_ipv6_is_refused_where_the_tunnel_has_none_of_it() -> None:
    """It is still sent to the tunnel: past it there is no way for it either."""
    found = state(tunnel={"addresses": (ip_interface("10.64.0.2/32"),)})
    assert {route.kind for route in routes(found, TABLE) if route.family == INET6} == {"unicast", "unreachable"}
    assert 'oifname "wg0" ip saddr 10.64.0.2 accept' in found.ruleset
    assert 'oifname "wg0" ip6' not in found.ruleset


def test_a_pod_without_ipv6_wants_nothing_of_it() -> None:
    found = state(pod={"routes": build.MAIN_ROUTES[:3], "addresses": build.POD_ADDRESSES[:1]}, families=(INET,))
    families = {rule.family for rule in found.rules} | {route.family for route in found.routes}
    assert families | {address.family for each in found.interfaces for address in each.addresses} == {INET}
    assert "fc00:bbbb::2" not in found.ruleset


def test_bypass_routes_go_as_the_default_route_goes() -> None:
    assert routes(ORDINARY, MAIN_TABLE) == {  # 10.244/16 and fd00:244:1::/64 are there already
        Route(INET, MAIN_TABLE, "10.96.0.0/12", "eth0", gateway="10.244.1.1"),
    }


def test_bypass_routes_copy_calicos_flags() -> None:
    default = build.route("0.0.0.0/0", gateway="169.254.1.1", onlink=True, source="192.168.12.7")
    address = InterfaceAddress(2, Address(INET, "192.168.12.7", 32), 0)
    pod = {"routes": (default, build.route("169.254.1.1/32", scope=253)), "addresses": (address,)}
    found = state(pod=pod, bypass=build.bypass("10.96.0.0/12", "fd00:1::/64"))
    assert routes(found, MAIN_TABLE) == {
        Route(INET, MAIN_TABLE, "10.96.0.0/12", "eth0", gateway="169.254.1.1", source="192.168.12.7", onlink=True)
    }  # and none for IPv6, which has no default route to copy


def test_a_bypass_by_a_gateway_of_the_other_family() -> None:
    default = build.route("0.0.0.0/0", gateway="fe80::1")
    found = state(pod={"routes": (default,)}, bypass=build.bypass("10.96.0.0/12"))
    assert {route.gateway for route in routes(found, MAIN_TABLE)} == {"fe80::1"}


def test_the_pods_own_routes_are_kept_and_recorded() -> None:
    assert {route for route in ORDINARY.routes if route.protocol != PROTOCOL and route.table == MAIN_TABLE} == set(
        build.MAIN_ROUTES
    )
    assert {route for route in ORDINARY.routes if route.table == RECORD_TABLE and route.device} == {
        route._replace(table=RECORD_TABLE) for route in build.MAIN_ROUTES[:5]
    }


@pytest.mark.parametrize(("network", "kept"), [("198.51.100.0/24", True), ("203.0.113.0/24", False)])
def test_a_stray_route_stays_only_within_what_was_named(network: str, kept: bool) -> None:
    stray = build.route("198.51.100.7/32", gateway="10.244.1.1")
    found = state(pod={"routes": (*build.MAIN_ROUTES, stray)}, bypass=build.bypass(network))
    assert (stray in found.routes) is kept
    assert (stray._replace(table=RECORD_TABLE) in found.routes) is kept


@pytest.mark.parametrize(("family", "resolver"), [(INET, "10.244.0.53"), (INET6, "fd00:244:1::53")])
def test_the_tunnels_resolver_is_asked_in_the_tunnel_whatever_covers_it(family: int, resolver: str) -> None:
    """Here a network of the pod's own does: the rule is asked before main."""
    found = state(tunnel={"dns": (ip_address(resolver),)})
    assert {rule for rule in found.rules if rule.destination} == {
        Rule(family, 50, TABLE, destination=resolver, port=53)
    }
    assert min(rule.preference for rule in found.rules if rule.table == MAIN_TABLE) > 50


@pytest.mark.parametrize(
    ("queries", "expected"),
    [
        (Asked(("169.254.20.10",)), {"169.254.20.10/32"}),
        (Asked(("10.244.1.1",)), {"10.244.1.1/32"}),
        (Asked(("127.0.0.11", "::1")), set()),  # Docker's needs no way
        (
            Names((), (("192.0.2.53", "10.96.0.10"),), docker=False, forwarded=True),
            {"192.0.2.53/32", "10.96.0.10/32"},
        ),
    ],
)
def test_the_clusters_resolvers_have_a_way_beside_the_tunnel(queries: Names | Asked, expected: set[str]) -> None:
    found = state(bypass=build.bypass(), dns=queries)
    assert {route.destination for route in routes(found, MAIN_TABLE)} == expected
    assert {route.gateway for route in routes(found, MAIN_TABLE)} <= {"10.244.1.1"}


# --- the kill-switch and what is beside --------------------------------------------------------------------------


def test_no_kill_switch_where_it_is_switched_off() -> None:
    assert state({"ENABLE_KILL_SWITCH": "false"}) == ORDINARY._replace(ruleset="")


def test_the_gate_only_where_the_kernel_has_it() -> None:
    assert "table netdev init_wg" in ORDINARY.ruleset
    assert "table netdev" not in state(gate=None).ruleset


def test_where_names_may_be_asked() -> None:
    query = "meta l4proto { tcp, udp } th dport 53"
    beside = f"\t\tip daddr 10.96.0.10 {query} meta mark set"
    assert f"{query} counter dnat ip to 10.64.0.1" in ORDINARY.ruleset
    assert beside not in ORDINARY.ruleset
    cluster = state(dns=Asked(("10.96.0.10",))).ruleset
    assert "dnat ip to" not in cluster
    assert beside in cluster


def test_ports_that_peers_may_open() -> None:
    assert 'iifname "wg0" meta l4proto { tcp, udp } th dport 6881 accept' in state({"VPN_INPUT_PORTS": "6881"}).ruleset
    assert "th dport 6881" not in ORDINARY.ruleset


def test_a_tunnel_with_our_address_is_ours_renamed() -> None:
    ours = OtherTunnel("old", "wireguard", frozenset(["10.64.0.2", "fe80::1"]))
    strange = OtherTunnel("tun0", "tun", frozenset(["10.8.0.2"]))
    assert state(others=frozenset([ours, strange])).others == {strange}


def test_nothing_leaves_what_others_made() -> None:
    foreign = Rule(INET, 150, 7)
    left = desired.nothing(ORDINARY._replace(rules=ORDINARY.rules | {foreign}))
    assert left.routes == set(build.MAIN_ROUTES)
    assert {rule.preference for rule in left.rules} == {0, 150, 32766, 32767}
    assert (left.interfaces, left.ruleset) == ((), "")
