"""init_wg.design.bypass: what stays reachable beside the tunnel, and what must never."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network

import pytest

from init_wg.design import bypass
from init_wg.errors import ConfigError
from init_wg.model.networks import Network, covers, interval, is_local, prefixes, spelled
from tests.unit import build

#: A pod whose own networks lie apart from all service networks, and IPv4 only: what is found is the service's.
PLAIN = build.pod(
    addresses=(build.POD_ADDRESSES[0],),
    routes=(build.route("0.0.0.0/0", gateway="10.244.1.1"), build.linked("10.244.1.0/24", "10.244.1.7")),
)


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


@pytest.mark.parametrize("host", [None, "", "kubernetes.default", "10.96.0.1:443"])
def test_without_a_service_address_there_are_the_pods_own_routes(host: str | None) -> None:
    found = chosen(service=host)
    assert found.networks == ("10.244.1.0/24",)
    assert found.explanation == "bypass: 10.244.1.0/24 (the pod's routes)"


@pytest.mark.parametrize("destination", ["198.51.100.0/24", "0.0.0.0/1", "128.0.0.0/1", "9.0.0.0/8", "2001:db8::/32"])
def test_a_public_route_of_the_pod_is_not_taken_over(destination: str) -> None:
    pod = PLAIN._replace(routes=(*PLAIN.routes, build.route(destination, gateway="10.244.1.1")))
    found = bypass.choose(build.settings(), pod, build.tunnel(), None)
    assert found.networks == ("10.244.1.0/24",)


def test_a_route_of_another_link_is_not_taken_over() -> None:
    pod = PLAIN._replace(routes=(*PLAIN.routes, build.route("192.168.9.0/24", device="net1")))
    assert bypass.choose(build.settings(), pod, build.tunnel(), None).networks == ("10.244.1.0/24",)


def test_link_local_networks_are_no_bypass() -> None:
    pod = PLAIN._replace(routes=(*PLAIN.routes, build.route("169.254.169.254/32"), build.linked("fe80::/64")))
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
    assert total == {4: 2**24 + 2**20 + 2**16 - 2, 6: 2**121 - 1}


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
        ("auto 10.43.0.0/16", "'auto' is not a network"),
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
