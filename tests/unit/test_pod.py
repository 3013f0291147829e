"""init_wg.design.pod: the uplink and the pod's own routes, from one snapshot."""

from __future__ import annotations

from typing import Any

import pytest

from init_wg.design.pod import Pod, discover, is_announced, is_stray, record, remember
from init_wg.errors import KernelError
from init_wg.model.snapshot import Interface, InterfaceAddress
from init_wg.model.state import INET, INET6, MAIN_TABLE, PROTOCOL, PROTOCOL_RA, RECORD_TABLE, TABLE, Address, Route
from tests.unit import build

WG0 = Interface(3, "wg0", "wireguard", 1370, up=True)
NET1 = Interface(4, "net1", "veth", 1500, up=True)


def recorded(*routes: Route) -> tuple[Route, ...]:
    return tuple(route._replace(table=RECORD_TABLE) for route in routes)


def test_an_ordinary_pod() -> None:
    pod = build.pod()
    assert (pod.uplink, pod.mtu, pod.links) == ("eth0", 1450, ("eth0",))
    assert [str(address) for address in pod.addresses] == ["10.244.1.7/24", "fd00:244:1::7/64"]  # no fe80
    assert {family: route.gateway for family, route in pod.defaults.items()} == {
        INET: "10.244.1.1",
        INET6: "fd00:244:1::1",
    }
    assert pod.routes == build.MAIN_ROUTES


def test_the_tunnel_is_no_part_of_the_pod() -> None:
    ours = (
        build.route("0.0.0.0/0", "wg0", metric=0),
        build.route("10.64.0.0/10", "wg0"),
        Route(INET, MAIN_TABLE, "10.96.0.0/12", "eth0", gateway="10.244.1.1", protocol=PROTOCOL),
        Route(INET, TABLE, "0.0.0.0/0", "wg0"),
    )
    address = InterfaceAddress(3, Address(INET, "10.64.0.2", 32), 0)
    pod = build.pod(
        interfaces=(build.LOOPBACK, build.UPLINK, WG0),
        addresses=(*build.POD_ADDRESSES, address),
        routes=(*build.MAIN_ROUTES, *ours),
    )
    assert pod == build.pod()


def test_the_uplink_is_the_way_of_the_best_ipv4_default_route() -> None:
    routes = (
        build.route("0.0.0.0/0", "net1", gateway="10.1.0.1", metric=100),
        build.route("0.0.0.0/0", "eth0", gateway="10.244.1.1", metric=50),
        build.route("::/0", "net1", gateway="fe80::1"),
    )
    pod = build.pod(interfaces=(build.LOOPBACK, NET1, build.UPLINK), routes=routes)
    assert pod.uplink == "eth0"
    assert pod.links == ("eth0", "net1")
    assert set(pod.defaults) == {INET}  # IPv6's leads elsewhere


def test_a_pod_with_ipv6_only() -> None:
    pod = build.pod(routes=build.MAIN_ROUTES[3:], addresses=build.POD_ADDRESSES[1:])
    assert pod.uplink == "eth0"
    assert set(pod.defaults) == {INET6}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"interfaces": (build.LOOPBACK,)}, "no network interface but the loopback"),
        ({"interfaces": (build.LOOPBACK, WG0)}, "no network interface but the loopback"),
        ({"routes": ()}, r"no default route \(interfaces: eth0\)"),
        ({"routes": (build.route("10.244.0.0/16"),)}, "no default route"),
        ({"routes": (Route(INET, MAIN_TABLE, "0.0.0.0/0", None, kind="unreachable", protocol=3),)}, "no default route"),
        ({"routes": (build.route("0.0.0.0/0", "wg0"),)}, "no default route"),
    ],
)
def test_a_pod_without_an_uplink(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(KernelError, match=why) as caught:
        build.pod(**changes)
    assert caught.value.exit_code == 3


def test_calicos_gateway_is_on_the_link() -> None:
    gateway = build.route("169.254.1.1/32", scope=253)
    default = build.route("0.0.0.0/0", gateway="169.254.1.1", onlink=True)
    address = InterfaceAddress(2, Address(INET, "192.168.12.7", 32), 0)
    pod = build.pod(routes=(default, gateway), addresses=(address,))
    assert pod.defaults == {INET: default}
    assert not is_stray(gateway, pod)
    assert record(pod.routes, pod.uplink) == set(recorded(default, gateway))


# --- stray routes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("route", "stray"),
    [
        (build.route("0.0.0.0/1", gateway="10.244.1.1"), True),
        (build.route("128.0.0.0/1", gateway="10.244.1.1"), True),
        (build.route("2000::/3", gateway="fd00:244:1::1"), True),
        (build.route("198.51.100.7/32", gateway="10.244.1.1"), True),
        (build.route("198.51.100.7/32"), True),  # on the link, but of nobody there
        (build.route("8.0.0.0/6", gateway="10.244.1.1"), True),  # holds all of 10/8, and more
        (build.route("0.0.0.0/0", gateway="10.244.1.1"), False),
        (build.route("::/0", gateway="fd00:244:1::1"), False),
        (build.route("10.0.0.0/8", gateway="10.244.1.1"), False),
        (build.route("100.64.0.0/10", gateway="10.244.1.1"), False),
        (build.route("169.254.169.254/32", gateway="10.244.1.1"), False),
        (build.linked("10.244.1.0/24"), False),
        (build.linked("fe80::/64"), False),
        (build.route("203.0.113.0/24", kind="unreachable"), False),
    ],
)
def test_which_routes_lead_past_the_tunnel(route: Route, stray: bool) -> None:
    assert is_stray(route, build.pod()) is stray


def test_a_pod_on_a_public_network_keeps_its_link() -> None:
    """Docker and some clouds: the pod's own address is public, and so is its gateway."""
    link, default = build.linked("203.0.113.0/24"), build.route("0.0.0.0/0", gateway="203.0.113.1")
    pod = build.pod(routes=(link, default), addresses=(InterfaceAddress(2, Address(INET, "203.0.113.7", 24), 0),))
    assert not is_stray(link, pod)
    assert is_stray(build.route("203.0.113.0/24", gateway="203.0.113.1"), pod)
    gateway = build.route("203.0.113.1/32")
    assert not is_stray(gateway, pod)


# --- the record --------------------------------------------------------------------------------------------------


def test_what_is_recorded() -> None:
    by_router = build.route("::/0", gateway="fe80::1", protocol=PROTOCOL_RA)
    elsewhere = build.route("192.168.9.0/24", "net1")
    found = record((*build.MAIN_ROUTES, by_router, elsewhere), "eth0")
    assert found == set(recorded(*build.MAIN_ROUTES[:5]))  # not fe80::/64, which the kernel makes


def test_what_main_has_lost_comes_back_from_the_record() -> None:
    pod = build.pod(routes=recorded(*build.MAIN_ROUTES[:5]))
    assert pod == build.pod(routes=build.MAIN_ROUTES[:5])._replace(recorded=pod.recorded)
    assert set(pod.recorded) == set(build.MAIN_ROUTES[:5])


def test_what_main_still_has_wins_over_the_record() -> None:
    moved = build.route("0.0.0.0/0", gateway="10.244.1.254")
    pod = build.pod(routes=(moved, *build.MAIN_ROUTES[1:], *recorded(build.MAIN_ROUTES[0])))
    assert pod.defaults[INET] == moved
    assert pod.routes == (moved, *build.MAIN_ROUTES[1:])


def test_the_network_of_an_address_that_the_pod_lost_stays_away() -> None:
    """The pod got another address, and the link's route of the old one went with it."""
    old = recorded(build.linked("10.9.9.0/24", "10.9.9.7"))
    assert build.pod(routes=(*build.MAIN_ROUTES, *old)) == build.pod()._replace(
        recorded=(build.linked("10.9.9.0/24", "10.9.9.7"),)
    )


def test_a_gateways_host_route_is_restored_although_no_address_is_in_it() -> None:
    gateway, default = build.route("169.254.1.1/32", scope=253), build.route("0.0.0.0/0", gateway="169.254.1.1")
    address = InterfaceAddress(2, Address(INET, "192.168.12.7", 32), 0)
    pod = build.pod(routes=recorded(gateway, default), addresses=(address,))
    assert set(pod.routes) == {gateway, default}


def test_a_record_that_names_the_tunnel_is_no_record() -> None:
    forged = recorded(build.route("0.0.0.0/0", "wg0"), build.route("10.0.0.0/8", device="wg0"))
    assert discover(build.snapshot(routes=(*build.MAIN_ROUTES, *forged)), "wg0") == build.pod()


# --- what the pod had from the beginning -------------------------------------------------------------------------

#: Of a neighbour that advertises fd99::/64 (and, once, a whole /8) when the pod has long been set up.
LATER = (InterfaceAddress(2, Address(INET6, "fd99::a:b", 64), 0, announced=True),)
LATER_ROUTES = (
    build.linked("fd99::/64"),
    build.route("fd00::/8", gateway="fe80::9", protocol=PROTOCOL_RA),
    build.route("2001:db8:9::/48", gateway="fe80::9", protocol=PROTOCOL_RA),
)


def remembered(pod: Pod) -> tuple[Route, ...]:
    return tuple(remember(pod.origin, (INET, INET6)))


def test_at_first_all_that_is_there_counts() -> None:
    pod = build.pod()
    assert pod.origin.networks == ("10.244.0.0/16", "10.244.1.0/24", "fd00:244:1::/64")
    assert pod.origin.addresses == ("10.244.1.7/32", "fd00:244:1::7/128")
    assert pod.origin.announced == ()
    assert build.pod(routes=(*build.MAIN_ROUTES, *remembered(pod))).origin == pod.origin


def test_what_is_advertised_later_changes_nothing() -> None:
    before = build.pod()
    routes = (*build.MAIN_ROUTES, *LATER_ROUTES)
    after = build.pod(routes=(*routes, *remembered(before)), addresses=(*build.POD_ADDRESSES, *LATER))
    assert after == before._replace(routes=routes)
    for route in LATER_ROUTES:
        assert is_announced(route, after)
        assert not is_stray(route, after)  # it would come again with the next advertisement


def test_a_pod_that_lives_by_advertisements_keeps_them() -> None:
    """Its CNI leaves IPv6 to the link's router: that prefix counts, another one later does not."""
    routes = (*build.MAIN_ROUTES, LATER_ROUTES[0])
    before = build.pod(routes=routes, addresses=(*build.POD_ADDRESSES, *LATER))
    assert "fd99::/64" in before.origin.networks
    assert before.origin.announced == ("fd99::/64",)
    rogue = (InterfaceAddress(2, Address(INET6, "fd66::1", 64), 0, announced=True), build.linked("fd66::/64"))
    renewed = InterfaceAddress(2, Address(INET6, "fd99::c:d", 64), 0, announced=True)  # a temporary one
    after = build.pod(
        routes=(*routes, rogue[1], *remembered(before)), addresses=(*build.POD_ADDRESSES, *LATER, renewed, rogue[0])
    )
    assert after.origin == before.origin
    assert {str(address.ip) for address in after.addresses} == {"10.244.1.7", "fd00:244:1::7", "fd99::a:b", "fd99::c:d"}
    assert is_announced(rogue[1], after)
    assert not is_announced(routes[-1], after)


def test_a_pod_that_was_moved_begins_anew() -> None:
    """Docker's `network connect`: another link, another address. What is advertised moves nobody."""
    before = build.pod()
    moved = (InterfaceAddress(2, Address(INET, "10.9.0.7", 24), 0),)
    routes = (build.linked("10.9.0.0/24"), build.route("0.0.0.0/0", gateway="10.9.0.1"), *remembered(before))
    assert build.pod(routes=routes, addresses=moved).origin.networks == ("10.9.0.0/24",)
    assert build.pod(routes=routes, addresses=LATER).origin == before.origin


def test_a_network_by_hand_is_no_advertisement() -> None:
    """An address that somebody gave the pod has a route of the kernel's, too."""
    before = build.pod()
    given = InterfaceAddress(2, Address(INET6, "2001:db8:7::7", 64), 0)
    link = build.linked("2001:db8:7::/64")
    after = build.pod(routes=(*build.MAIN_ROUTES, link, *remembered(before)), addresses=(*build.POD_ADDRESSES, given))
    assert not is_announced(link, after)
    assert str(after.addresses[-1].ip) == "2001:db8:7::7"
    assert after.origin == before.origin
