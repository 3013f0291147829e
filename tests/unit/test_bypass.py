"""init_wg.design.bypass: what stays reachable beside the tunnel, and what must never."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network

import pytest

from init_wg.design import bypass
from init_wg.design.pod import Pod
from init_wg.errors import ConfigError
from init_wg.model.networks import Network, covers, interval, is_local, prefixes, spelled
from init_wg.model.state import Route
from tests.unit import build

#: A pod whose own networks lie apart from all service networks, and IPv4 only: what is found is the service's.
PLAIN = build.pod(
    addresses=(build.POD_ADDRESSES[0],),
    routes=(build.route("0.0.0.0/0", gateway="10.244.1.1"), build.linked("10.244.1.0/24", "10.244.1.7")),
)


def with_routes(*routes: Route) -> Pod:
    """The same pod with more routes on its uplink, from the beginning."""
    more = tuple(route.destination for route in routes if route.device == PLAIN.uplink)
    origin = PLAIN.origin._replace(networks=(*PLAIN.origin.networks, *more))
    return PLAIN._replace(routes=(*PLAIN.routes, *routes), origin=origin)


def chosen(cidrs: str = "auto", service: str | None = None, **more: str) -> bypass.Bypass:
    return bypass.choose(build.settings(BYPASS_CIDRS=cidrs, **more), PLAIN, build.tunnel(), service)


def networks(found: bypass.Bypass) -> list[Network]:
    return [ip_network(network) for network in found.networks]


# --- auto --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("platform", "host", "network"),
    [
        ("k3s and RKE2", "10.43.0.1", "10.43.0.0/16"),
        ("MicroK8s", "10.152.183.1", "10.152.183.0/24"),
        ("kubeadm, kind, minikube, Talos", "10.96.0.1", "10.96.0.0/12"),
        ("kubeadm, from its far end", "10.111.255.254", "10.96.0.0/12"),
        ("EKS, which lies in kubeadm's", "10.100.0.1", "10.100.0.0/16"),
        ("EKS, the other", "172.20.0.1", "172.20.0.0/16"),
        ("OpenShift", "172.30.0.1", "172.30.0.0/16"),
        ("GKE", "34.118.224.1", "34.118.224.0/20"),
        ("DigitalOcean", "10.245.0.1", "10.245.0.0/16"),
        ("AKS", "10.0.0.1", "10.0.0.0/16"),
        ("a private network of nobody we know", "192.168.77.1", "192.168.0.0/16"),
        ("a public one: its host alone", "203.0.113.9", "203.0.113.9/32"),
    ],
)
def test_the_service_network_is_deduced(platform: str, host: str, network: str) -> None:
    found = chosen(service=host)
    assert found.networks == prefixes(map(interval, (network, "10.244.0.0/16"))), platform
    assert found.spelled == spelled(map(interval, (network, "10.244.0.0/16"))), platform
    assert f"{network} (services, by KUBERNETES_SERVICE_HOST)" in found.explanation


def test_an_ipv6_service_network() -> None:
    assert "fd00:10:96::/108" in chosen(service="fd00:10:96::1").networks


@pytest.mark.parametrize("host", [None, ""])
def test_without_a_service_address_there_are_the_pods_own_routes(host: str | None) -> None:
    found = chosen(service=host)
    assert found.networks == ("10.244.1.0/24",)
    assert found.explanation == "bypass: 10.244.1.0/24 (the pod's routes)"
    assert found.closed == ()


@pytest.mark.parametrize("host", ["kubernetes.default", "10.96.0.1:443", "api\n\x1b[31m"])
def test_a_service_address_that_is_none_is_told(host: str) -> None:
    found = chosen(service=host)
    assert found.networks == ("10.244.0.0/16",)  # the pods are known without it
    (closed,) = found.closed
    assert closed.startswith(f"services (KUBERNETES_SERVICE_HOST={host!a} is not an address, and is not looked up: ")
    assert closed in found.explanation
    assert found.explanation.isprintable()


def test_an_ipv6_service_address_in_brackets() -> None:
    assert "fd00:10:96::/108" in chosen(service="[fd00:10:96::1]").networks


# --- what stays closed -------------------------------------------------------------------------------------------

SECOND_LINK = (build.linked("192.168.9.0/24")._replace(device="net1"), build.route("192.168.10.0/24", device="net1"))


@pytest.mark.parametrize("cidrs", ["auto", "private", "10.0.0.0/16", "192.168.9.0/24"])
def test_a_second_link_stays_closed_and_is_told(cidrs: str) -> None:
    pod = with_routes(*SECOND_LINK)._replace(links=("eth0", "net1", "net2"))
    found = bypass.choose(build.settings(BYPASS_CIDRS=cidrs), pod, build.tunnel(), None)
    assert found.closed[-3:] == (
        "192.168.9.0/24 (on net1, which is not the uplink eth0)",
        "192.168.10.0/24 (on net1, which is not the uplink eth0)",
        "net2 (not the uplink eth0)",
    )
    assert found.explanation.endswith(f"closed: {', '.join(found.closed)}")


def test_what_a_list_closes_is_told() -> None:
    found = chosen("192.168.7.0/24", "10.96.0.1")
    assert found.networks == ("192.168.7.0/24",)
    assert found.closed == tuple(
        f"{network} (auto would open it)" for network in ("10.244.1.0/24", "10.96.0.0/12", "10.244.0.0/16")
    )
    assert chosen("10.244.0.0/15", None).closed == ()


def test_a_public_network_of_the_pods_is_told() -> None:
    pod = with_routes(build.linked("198.51.100.0/24"))
    found = bypass.choose(build.settings(), pod, build.tunnel(), None)
    assert found.closed == ("198.51.100.0/24 (public: BYPASS_CIDRS may name it)",)
    named = bypass.choose(build.settings(BYPASS_CIDRS="auto,198.51.100.0/24"), pod, build.tunnel(), None)
    assert named.closed == ()


# --- the cloud's metadata ----------------------------------------------------------------------------------------

METADATA = ("169.254.169.254", "169.254.170.23", "fe80::1", "fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254",
            "100.100.100.200")  # fmt: skip


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("169.254.172.5/22", "169.254.172.0/22"),
        ("100.100.7.9/16", "100.100.0.0/16"),
        ("100.100.100.7/24", "100.100.100.0/24"),
        ("fd00:ec2::7/64", "fd00:ec2::/64"),
        ("fd00:ec2:7::9/24", "fd00:e00::/24"),
        ("fd20:ce::7/120", "fd20:ce::200/120"),
        ("fd20:ce::7/64", "fd20:ce::/64"),
        ("fe80::9/64", "fe80::/64"),
    ],
)
@pytest.mark.parametrize("cidrs", ["auto", "private", "auto,private"])
def test_nothing_deduced_reaches_a_clouds_metadata(address: str, network: str, cidrs: str) -> None:
    more = with_routes(build.linked(network))
    pod = more._replace(origin=more.origin._replace(addresses=(str(ip_interface(address).ip),)))
    found = bypass.choose(build.settings(BYPASS_CIDRS=cidrs), pod, build.tunnel(), "10.96.0.1")
    assert any(covers(each, ip_address("10.244.1.8")) for each in networks(found))
    assert not any(covers(each, ip_address(one)) for each in networks(found) for one in METADATA)


def test_what_is_all_metadata_is_not_told_as_opened_or_closed() -> None:
    pod = with_routes(build.linked("fd00:ec2::/64"), build.linked("169.254.172.0/22"))
    found = bypass.choose(build.settings(), pod, build.tunnel(), None)
    assert found.explanation == "bypass: 10.244.1.0/24 (the pod's routes)"


def test_metadata_can_be_named() -> None:
    assert chosen("auto,169.254.169.254").networks == ("10.244.1.0/24", "169.254.169.254/32")


@pytest.mark.parametrize("destination", ["198.51.100.0/24", "0.0.0.0/1", "128.0.0.0/1", "9.0.0.0/8", "2001:db8::/32"])
def test_a_public_route_of_the_pod_is_not_taken_over(destination: str) -> None:
    pod = with_routes(build.route(destination, gateway="10.244.1.1"))
    found = bypass.choose(build.settings(), pod, build.tunnel(), None)
    assert found.networks == ("10.244.1.0/24",)


def test_a_route_of_another_link_is_not_taken_over() -> None:
    pod = with_routes(build.route("192.168.9.0/24", device="net1"))
    assert bypass.choose(build.settings(), pod, build.tunnel(), None).networks == ("10.244.1.0/24",)


def test_link_local_networks_are_no_bypass() -> None:
    pod = with_routes(build.route("169.254.169.254/32"), build.linked("fe80::/64"))
    assert bypass.choose(build.settings(), pod, build.tunnel(), None).networks == ("10.244.1.0/24",)


def test_ipv6_pods_are_found_by_the_pods_address() -> None:
    found = bypass.choose(build.settings(), build.pod(), build.tunnel(), "10.96.0.1")
    assert found.networks == ("10.96.0.0/12", "10.244.0.0/16", "fd00:244:1::/48")


@pytest.mark.parametrize("resolver", ["10.96.0.53", "10.244.1.1", "10.244.200.1"])
def test_auto_leaves_out_what_is_inside_the_tunnel(resolver: str) -> None:
    tunnel = build.tunnel(dns=(ip_address(resolver),))
    found = bypass.choose(build.settings(), PLAIN, tunnel, "10.96.0.1")
    assert not any(covers(network, ip_address(resolver)) for network in networks(found))
    assert any(covers(network, ip_address("10.96.0.54")) for network in networks(found))


# --- private, none, a list ---------------------------------------------------------------------------------------


def test_private_is_all_private_networks_but_for_the_tunnels_own_addresses() -> None:
    found = networks(chosen("private"))
    inside = [ip_address("10.64.0.2"), ip_address("10.64.0.1"), ip_address("fc00:bbbb::2")]
    assert not any(covers(network, address) for network in found for address in inside)
    assert all(map(is_local, found))
    total = {version: sum(n.num_addresses for n in found if n.version == version) for version in (4, 6)}
    # Without the metadata services: fd00:ec2::/32, and one of Google's.
    assert total == {4: 2**24 + 2**20 + 2**16 - 2, 6: 2**121 - 2**96 - 2}


@pytest.mark.parametrize(("cidrs", "more"), [("none", {}), ("NONE", {}), ("auto", {"ENABLE_BYPASS_ROUTES": "false"}),
                                            ("10.0.0.0/16", {"ENABLE_BYPASS_ROUTES": "false"})])  # fmt: skip
def test_nothing(cidrs: str, more: dict[str, str]) -> None:
    assert chosen(cidrs, "10.96.0.1", **more) == bypass.Bypass((), "nothing bypasses the tunnel")


@pytest.mark.parametrize(
    ("cidrs", "expected"),
    [
        ("10.43.0.0/16", ["10.43.0.0/16"]),
        ("10.43.0.0/16,192.168.1.0/24", ["10.43.0.0/16", "192.168.1.0/24"]),
        (" 192.168.1.0/24 ,\n10.43.0.0/16 fd00:1::/64", ["10.43.0.0/16", "192.168.1.0/24", "fd00:1::/64"]),
        ("10.43.0.7/16", ["10.43.0.0/16"]),  # with host bits
        ("10.43.0.7", ["10.43.0.7/32"]),
        ("10.43.0.0/17 10.43.128.0/17", ["10.43.0.0/16"]),
        ("203.0.113.0/24", ["203.0.113.0/24"]),  # a public network, by its name
    ],
)
def test_a_list(cidrs: str, expected: list[str]) -> None:
    assert list(chosen(cidrs).networks) == expected
    assert chosen(cidrs).spelled == spelled(map(interval, expected))


@pytest.mark.parametrize(
    ("cidrs", "expected"),
    [
        ("auto,192.168.7.0/24", ["10.96.0.0/12", "10.244.0.0/16", "192.168.7.0/24"]),
        ("192.168.7.0/24 Auto", ["10.96.0.0/12", "10.244.0.0/16", "192.168.7.0/24"]),
        ("auto,203.0.113.9", ["10.96.0.0/12", "10.244.0.0/16", "203.0.113.9/32"]),
        ("auto auto", ["10.96.0.0/12", "10.244.0.0/16"]),
    ],
)
def test_words_and_networks_together(cidrs: str, expected: list[str]) -> None:
    found = chosen(cidrs, "10.96.0.1")
    assert list(found.networks) == expected
    for network in expected:
        assert network in found.explanation
    assert set(chosen("private").networks) < set(chosen("private,203.0.113.0/24", "10.96.0.1").networks)
    assert chosen(f"{cidrs},private", "10.96.0.1").networks == tuple(
        prefixes(map(interval, [*chosen("private").networks, *expected]))
    )


@pytest.mark.parametrize(
    ("cidrs", "said"),
    [
        ("10.43.0.0/16", "bypass: 10.43.0.0/16 (BYPASS_CIDRS)"),
        ("10.43.0.0", "bypass: 10.43.0.0/32 (BYPASS_CIDRS; 10.43.0.0 is read as 10.43.0.0/32)"),
        ("10.43.0.7/16,fd00:1::/64", "10.43.0.0/16, fd00:1::/64 (BYPASS_CIDRS; 10.43.0.7/16 is read as 10.43.0.0/16)"),
        ("fd00:1::1", "fd00:1::1/128 (BYPASS_CIDRS; fd00:1::1 is read as fd00:1::1/128)"),
        (" ".join(f"10.43.{n}.0/24" for n in range(100)), "10.43.39.0/24, and 60 more (BYPASS_CIDRS)"),
    ],
)
def test_a_list_is_told_as_it_is_understood(cidrs: str, said: str) -> None:
    assert said in chosen(cidrs).explanation


def test_what_is_inside_the_tunnel_is_told_to_be_cut_out() -> None:
    tunnel = build.tunnel(dns=(ip_address("10.244.1.1"),))
    found = bypass.choose(build.settings(), PLAIN, tunnel, None)
    assert "10.244.1.0/24 (the pod's routes; but 10.244.1.1 is inside the tunnel)" in found.explanation


@pytest.mark.parametrize(
    ("cidrs", "why"),
    [
        ("10.64.0.0/16", "10.64.0.0/16 covers 10.64.0.2"),  # the tunnel's address
        ("10.64.0.1/32", "10.64.0.1/32 covers 10.64.0.1"),  # its resolver
        ("fc00::/7", "fc00::/7 covers fc00:bbbb::2"),
        ("192.168.1.0/24 10.0.0.0/8", "10.0.0.0/8 covers 10.64.0.2"),
        ("0.0.0.0/0", "the whole internet"),
        ("::/0", "the whole internet"),
        ("0.0.0.0/1", "the whole internet"),
        ("128.0.0.0/1", "the whole internet"),
        ("8000::/1", "the whole internet"),
        ("automatic", "'automatic' is not a network"),
        ("10.0.0.0/33", "'10.0.0.0/33' is not a network"),
        ("10.43.0.0/16;10.44.0.0/16", "is not a network"),
        ("none 10.43.0.0/16", "none stands beside other words"),
        ("auto,none", "none stands beside other words"),
        ("auto 10.64.0.0/16", "10.64.0.0/16 covers 10.64.0.2"),
        ("10.43.0.0/16\n\x1b[31m\u2028", "is not a network"),
        ("x" * 100_000, "is not a network"),
    ],
)
def test_a_list_that_must_not_be(cidrs: str, why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        chosen(cidrs)
    message = str(caught.value)
    assert why in message
    assert message.startswith("environment: BYPASS_CIDRS: ")
    assert message.isascii()
    assert message.isprintable()
    assert len(message) < 250
    assert caught.value.exit_code == 2


def test_the_resolver_counts_even_far_from_the_tunnels_addresses() -> None:
    tunnel = build.tunnel(addresses=(ip_interface("10.2.0.2/32"),), dns=(ip_address("192.168.50.1"),))
    with pytest.raises(ConfigError, match=r"covers 192\.168\.50\.1, which is inside the tunnel"):
        bypass.choose(build.settings(BYPASS_CIDRS="192.168.0.0/16"), PLAIN, tunnel, None)
