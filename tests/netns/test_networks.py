"""Which networks stay open beside the tunnel, which stay closed, and that the log and `status` say so."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from tests.lab.lab import INSIDE, Lab

LAN = "192.168.7.0/24"  # the node's own address stands for a network at home
NAS, NEIGHBOUR = ("192.168.7.1", 8123), ("10.42.1.1", 5432)
STACK = {"KUBERNETES_SERVICE_HOST": ""}  # a compose stack has none


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        server = lab.serve(lab.node, *(f"http:[{address}]:{port}" for address, port in (NAS, NEIGHBOUR)))
        assert server.stdout
        assert server.stdout.readline() == b"ready\n"
        yield lab


def reached(lab: Lab) -> dict[str, bool]:
    return {
        name: lab.request(lab.pod, *where, timeout=0.8) is not None
        for name, where in {"NAS": NAS, "neighbour": NEIGHBOUR}.items()
    }


def told(lab: Lab, cidrs: str) -> str:
    """The line about the bypass, of an `up` with these networks."""
    ended = lab.init_wg("up", env={**STACK, "BYPASS_CIDRS": cidrs})
    (line,) = [line for line in ended.stderr.splitlines() if "bypass: " in line]
    assert lab.init_wg("check", env={**STACK, "BYPASS_CIDRS": cidrs}).returncode == 0
    return line


def test_one_more_network_beside_those_that_are_found(lab: Lab) -> None:
    line = told(lab, f"auto,{LAN}")
    assert reached(lab) == {"NAS": True, "neighbour": True}
    assert "10.42.1.0/24 (the pod's routes)" in line
    assert f"{LAN} (BYPASS_CIDRS)" in line
    assert "closed" not in line


def test_a_list_alone_closes_the_pods_own_network_and_says_so(lab: Lab) -> None:
    line = told(lab, "192.168.7.9/24")
    assert reached(lab) == {"NAS": True, "neighbour": False}
    assert "bypass: 192.168.7.0/24 (BYPASS_CIDRS; 192.168.7.9/24 is read as 192.168.7.0/24)" in line
    assert "closed: 10.42.1.0/24 (auto would open it)" in line
    status = lab.init_wg("status", "--json", env={**STACK, "BYPASS_CIDRS": LAN})
    assert json.loads(status.stdout)["bypass"] == {
        "networks": [LAN],
        "closed": [f"{network} (auto would open it)" for network in ("10.42.1.0/24", "fd42:1::/64")],
    }


def test_a_second_link_is_told(lab: Lab) -> None:
    lab.plug_second_uplink()
    try:
        for family in lab.families:
            lab.pod.run(["ip", f"-{family}", "route", "del", "default", "dev", "eth1"])
        lab.init_wg("up", env=STACK)
        shown = lab.init_wg("status", env=STACK).stdout
        assert "closed:      10.44.1.0/24 (on eth1, which is not the uplink eth0)" in shown
    finally:
        lab.unplug_second_uplink()


def test_a_service_host_that_is_a_name_is_told(lab: Lab) -> None:
    lab.init_wg("lockdown")
    lab.pod.run(["ip", "link", "del", "wg0"], check=False)
    ended = lab.init_wg("up", env={"KUBERNETES_SERVICE_HOST": "api.cluster.example"})
    assert "closed: services (KUBERNETES_SERVICE_HOST='api.cluster.example' is not an address" in ended.stderr


def test_a_clouds_metadata_is_refused_at_once(lab: Lab) -> None:
    """Also where the pod's own network is link-local, as on EKS with IPv6; its gateway is one of these."""
    fresh = ["address flush dev eth0 scope global", "address add 169.254.172.5/22 dev eth0"]
    fresh += ["address add fd42:1::10/64 dev eth0 nodad", "route add default via 169.254.172.1"]
    fresh += ["-6 route replace default via fd42:1::1"]
    with Lab() as other:
        for line in fresh:
            other.pod.run(["ip", *line.split()])
        other.node.run(["ip", "address", "add", "169.254.172.1/22", "dev", "pod0"])
        other.node.run(["ip", "address", "add", "169.254.169.254/32", "dev", "lo"])
        server = other.serve(other.node, "http:[169.254.169.254]:80")
        assert server.stdout
        assert server.stdout.readline() == b"ready\n"
        assert other.request(other.pod, "169.254.169.254", 80) is not None
        other.init_wg("up")
        assert other.flows()
        began = time.monotonic()
        assert other.request(other.pod, "169.254.169.254", 80, timeout=5) is None
        assert time.monotonic() - began < 2
        assert other.init_wg("check").returncode == 0


# --- a provider's network that is also the pod's ---------------------------------------------------------------------


@pytest.mark.parametrize("rp_filter", [0, 1, 2])
def test_a_resolver_at_the_gateways_address(rp_filter: int) -> None:
    """The engine's network is the provider's: the gateway is 10.42.1.1, and so is the tunnel's resolver."""
    with Lab(rp_filter=rp_filter, tunnel_ipv6=False) as lab:  # type: ignore[arg-type]
        overlapping(lab, "10.42.1.77")
        lab.init_wg("up", env=STACK)
        assert lab.traffic_source(4) == lab.provider.addresses[4]
        assert lab.pod.ok(["timeout", "6", "getent", "ahosts", "example.org"])
        assert lab.inbound(lab.far, 4)
        assert lab.inbound(lab.node, 4)
        assert lab.init_wg("check", env=STACK).returncode == 0
        lab.init_wg("down")


def overlapping(lab: Lab, address: str) -> None:
    """The pod's tunnel address is in the pod's own network, and its resolver has the gateway's address."""
    for provider in (lab.provider, lab.provider2):
        provider.run(["wg", "set", "wg0", "peer", lab.pod_key, "allowed-ips", f"{address}/32"])
        provider.run(["ip", "address", "add", "10.42.1.1/32", "dev", "wg0"])
        provider.run(["ip", "route", "add", f"{address}/32", "dev", "wg0"])
    server = lab.serve(lab.provider, "dns:[10.42.1.1]:53")
    assert server.stdout
    assert server.stdout.readline() == b"ready\n"
    text = lab.config_path.read_text().replace(INSIDE[4], address)
    lab.config_path.write_text("\n".join("DNS = 10.42.1.1" if x[:3] == "DNS" else x for x in text.split("\n")))


@pytest.mark.parametrize(("address", "whose"), [("10.42.1.10", "this pod itself, on eth0"), ("10.42.1.1", "gateway")])
def test_the_pods_own_address_in_the_tunnel_ends_at_once(lab: Lab, address: str, whose: str) -> None:
    lab.pod.run(["ip", "link", "del", "wg0"], check=False)
    path = lab.config(lab.folder / "clash" / "wg0.conf")
    path.write_text(path.read_text().replace(f"{INSIDE[4]}/32", f"{address}/32"))
    began = time.monotonic()
    ended = lab.init_wg("up", env={**STACK, "WG_CONFIG": str(path)}, check=False)
    assert ended.returncode == 2
    assert time.monotonic() - began < 5
    assert f"wg0.conf: Address {address} belongs to " in ended.stderr.splitlines()[-1]
    assert whose in ended.stderr.splitlines()[-1]
    assert not lab.flows()
