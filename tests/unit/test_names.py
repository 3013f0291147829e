"""init_wg.design.dns: resolv.conf, who is asked what, and dnsmasq's command line. Pure."""

from __future__ import annotations

import shutil
import subprocess
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest

from init_wg.config.tunnel import Endpoint, Peer
from init_wg.design import dns
from init_wg.design.dns import ResolvConf
from init_wg.design.firewall.policy import Asked, Names
from init_wg.setup import observe
from tests.unit.build import settings, tunnel

KUBE = ResolvConf(("10.96.0.10",), ("default.svc.cluster.local", "svc.cluster.local", "cluster.local"))
DUAL = ResolvConf(("10.96.0.10", "fd00:96::a", "10.96.0.11"), KUBE.search)
DOCKER = ResolvConf(("127.0.0.11",), ())
LOCAL = ResolvConf(("127.0.0.1", "::1"), ())
NOTHING = ResolvConf((), ())
BOTH = (ip_address("10.64.0.1"), ip_address("10.64.0.9"), ip_address("fc00:bbbb::1"))
TUNNEL = Names(resolvers=("10.64.0.1",), cluster=(), docker=False, forwarded=False)


@pytest.mark.parametrize(
    ("text", "nameservers", "search"),
    [
        pytest.param("", (), (), id="nothing"),
        pytest.param("nameserver 10.96.0.10\nsearch a.b c\n", ("10.96.0.10",), ("a.b", "c"), id="a kubelet's"),
        pytest.param("nameserver\t127.0.0.11\noptions ndots:0", ("127.0.0.11",), (), id="Docker's"),
        pytest.param("nameserver ::1\nnameserver FD00::A\nnameserver ::1", ("::1", "fd00::a"), (), id="once each"),
        pytest.param("nameserver fe80::1%eth0", (), (), id="with a zone, which no rule can say"),
        pytest.param("nameserver localhost\nnameserver\nnameserver 1.2.3", (), (), id="no addresses"),
        pytest.param("#nameserver 1.1.1.1\n; nameserver 1.1.1.1\n", (), (), id="comments"),
        pytest.param("nameserver 1.1.1.1 # mine", ("1.1.1.1",), (), id="a comment behind"),
        pytest.param("domain Example.COM.\n", (), ("example.com",), id="domain"),
        pytest.param("search a.b\nsearch c.d. e\n", (), ("c.d", "e"), id="the last search"),
        pytest.param("search a.b\nsearch\n", (), (), id="an empty search"),
    ],
)
def test_parse(text: str, nameservers: tuple[str, ...], search: tuple[str, ...]) -> None:
    assert dns.parse(text)[:2] == (nameservers, search)  # ndots: tests/unit/test_resolve.py


ODD = dns.parse("nameserver 10.96.0.10\nnameserver fe80::1%eth0\nnameserver localhost\n")
NAMED = tunnel().peers[0]._replace(endpoint=Endpoint("vpn.example", 51820))


@pytest.mark.parametrize(
    ("environment", "file", "told"),
    [
        pytest.param({}, {}, False, id="none is needed"),
        pytest.param({}, {"peers": (NAMED,)}, True, id="for the endpoint's name"),
        pytest.param({"DNS_MODE": "split"}, {}, True, id="split"),
        pytest.param({"DNS_MODE": "cluster"}, {}, True, id="cluster"),
        pytest.param({"DNS_MODE": "split", "ENABLE_DNS_CONFIG": "false"}, {}, False, id="not wanted"),
    ],
)
def test_a_nameserver_that_is_left_out_is_told(environment: dict[str, str], file: dict[str, Any], told: bool) -> None:
    said = dns.notices(settings(**environment), tunnel(**file), ODD)
    zone, name = (
        "/etc/resolv.conf: nameserver fe80::1%eth0 is left out: an address with a zone cannot be written in a rule",
        "/etc/resolv.conf: nameserver localhost is left out: it is no IP address",
    )
    assert said == ((zone, name) if told else ())
    assert ODD.nameservers == ("10.96.0.10",)


def test_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(observe, "RESOLV_CONF", str(tmp_path / "resolv.conf"))
    assert observe.resolv_conf() == NOTHING
    (tmp_path / "resolv.conf").write_text("nameserver 10.96.0.10\n")
    assert observe.resolv_conf().nameservers == ("10.96.0.10",)


def inside(*networks: str) -> tuple[Peer, ...]:
    """The ordinary peer, with these AllowedIPs."""
    return (tunnel().peers[0]._replace(allowed_ips=tuple(map(ip_network, networks))),)


@pytest.mark.parametrize(
    ("environment", "file", "pod", "chosen"),
    [
        pytest.param({}, {}, KUBE, TUNNEL, id="tunnel is the default"),
        pytest.param({}, {}, DOCKER, TUNNEL, id="tunnel, Docker"),
        pytest.param({}, {}, NOTHING, TUNNEL, id="tunnel, no resolv.conf"),
        pytest.param(
            {}, {"dns": BOTH}, KUBE, TUNNEL._replace(resolvers=("10.64.0.1", "10.64.0.9", "fc00:bbbb::1")), id="all"
        ),
        pytest.param(
            {},
            {"dns": BOTH, "addresses": (ip_interface("10.64.0.2/32"),)},
            KUBE,
            TUNNEL._replace(resolvers=("10.64.0.1", "10.64.0.9")),
            id="only what it can reach",
        ),
        pytest.param({}, {"dns": BOTH, "peers": inside("10.64.0.1/32")}, KUBE, TUNNEL, id="what AllowedIPs cover"),
        pytest.param({}, {"peers": inside("10.0.0.0/10", "fc00::/7")}, KUBE, Asked(()), id="no AllowedIPs cover it"),
        pytest.param({"DNS_MODE": "split"}, {"peers": inside("::/0")}, KUBE, Asked(()), id="split, none covers it"),
        pytest.param({}, {"dns": ()}, KUBE, Asked(()), id="no DNS in the file"),
        pytest.param({"ENABLE_DNS_CONFIG": "false"}, {}, KUBE, Asked(()), id="not wanted"),
        pytest.param({"DNS_MODE": "cluster"}, {}, KUBE, Asked(("10.96.0.10",)), id="cluster"),
        pytest.param({"DNS_MODE": "split"}, {"dns": ()}, KUBE, Asked(()), id="split, no DNS in the file"),
        pytest.param(
            {"DNS_MODE": "split"},
            {},
            KUBE,
            TUNNEL._replace(cluster=((dns.ALIASES[4], "10.96.0.10"),), forwarded=True),
            id="split",
        ),
        pytest.param(
            {"DNS_MODE": "split"},
            {},
            DUAL,
            TUNNEL._replace(cluster=((dns.ALIASES[4], "10.96.0.10"), (dns.ALIASES[6], "fd00:96::a")), forwarded=True),
            id="split, two families",
        ),
        pytest.param(
            {"DNS_MODE": "split"}, {}, DOCKER, TUNNEL._replace(docker=True, forwarded=True), id="split, Docker"
        ),
        pytest.param({"DNS_MODE": "split"}, {}, LOCAL, TUNNEL._replace(forwarded=True), id="split, in the pod itself"),
    ],
)
def test_choose(environment: dict[str, str], file: dict[str, Any], pod: ResolvConf, chosen: Names | Asked) -> None:
    assert dns.choose(settings(**environment), tunnel(**file), pod) == chosen


@pytest.mark.parametrize(
    ("resolvers", "listening", "forwarded"),
    [
        (BOTH, True, True),
        (BOTH, False, False),  # the first one answers, until a forwarder runs
        (BOTH[:1], True, False),
        ((BOTH[0], BOTH[2]), True, False),  # one for each family needs no forwarder
    ],
)
def test_several_resolvers_are_the_forwarders(resolvers: Any, listening: bool, forwarded: bool) -> None:
    chosen = dns.choose(settings(), tunnel(dns=resolvers), KUBE, listening=listening)
    assert isinstance(chosen, Names)
    assert chosen.forwarded is forwarded
    assert dns.needs_forwarder(chosen, KUBE) is (resolvers == BOTH)


@pytest.mark.parametrize(
    ("environment", "pod", "asked"),
    [
        ({"DNS_MODE": "cluster", "ENABLE_DNS_CONFIG": "false"}, DUAL, ()),
        ({"DNS_MODE": "cluster"}, DUAL, ("10.96.0.10", "10.96.0.11", "fd00:96::a")),
        ({"DNS_MODE": "cluster"}, DOCKER, ("127.0.0.11",)),
        ({"DNS_MODE": "cluster"}, NOTHING, ()),
    ],
)
def test_asked(environment: dict[str, str], pod: ResolvConf, asked: tuple[str, ...]) -> None:
    assert dns.choose(settings(**environment), tunnel(), pod) == Asked(asked)


@pytest.mark.parametrize(
    ("chosen", "pod", "needed"),
    [
        pytest.param(TUNNEL, KUBE, False, id="the redirection does it"),
        pytest.param(TUNNEL, NOTHING, False, id="nobody to redirect"),
        pytest.param(TUNNEL, DUAL, True, id="IPv6 queries, IPv4 resolver"),
        pytest.param(TUNNEL._replace(resolvers=("10.64.0.1", "fc00:bbbb::1")), DUAL, False, id="both families"),
        pytest.param(TUNNEL, DOCKER, True, id="from the loopback nothing can be redirected into the tunnel"),
        pytest.param(TUNNEL._replace(forwarded=True), KUBE, True, id="split"),
    ],
)
def test_needs_forwarder(chosen: Names, pod: ResolvConf, needed: bool) -> None:
    assert dns.needs_forwarder(chosen, pod) is needed


SPLIT = TUNNEL._replace(cluster=((dns.ALIASES[4], "10.96.0.10"),), forwarded=True)
NETWORKS = ("10.244.0.0/16", "fd00:244::/48")


@pytest.mark.parametrize(
    ("chosen", "pod", "domain", "reverse", "expected"),
    [
        pytest.param(TUNNEL, DUAL, None, NETWORKS, ["--server=10.64.0.1"], id="tunnel"),
        pytest.param(
            SPLIT,
            KUBE,
            None,
            NETWORKS,
            [
                "--server=10.64.0.1",
                "--server=/cluster.local/192.0.2.53",
                "--rev-server=10.244.0.0/16,192.0.2.53",
                "--rev-server=fd00:244::/48,192.0.2.53",
            ],
            id="split",
        ),
        pytest.param(
            SPLIT,
            ResolvConf(KUBE.nameservers, ("default.svc.corp.example", "svc.corp.example", "corp.example")),
            None,
            (),
            ["--server=10.64.0.1", "--server=/corp.example/192.0.2.53"],
            id="split, the cluster's domain from the search list",
        ),
        pytest.param(
            SPLIT,
            ResolvConf(KUBE.nameservers, ("node.example",)),
            None,
            (),
            ["--server=10.64.0.1", "--server=/cluster.local/192.0.2.53"],
            id="split, a search list of the node's",
        ),
        pytest.param(
            SPLIT, KUBE, "my.own", (), ["--server=10.64.0.1", "--server=/my.own/192.0.2.53"], id="CLUSTER_DOMAIN"
        ),
        pytest.param(
            SPLIT._replace(cluster=((dns.ALIASES[4], "10.96.0.10"), (dns.ALIASES[6], "fd00:96::a"))),
            DUAL,
            None,
            (),
            ["--server=10.64.0.1", "--server=/cluster.local/192.0.2.53", "--server=/cluster.local/2001:db8::53"],
            id="split, two families",
        ),
        pytest.param(
            TUNNEL._replace(docker=True, forwarded=True),
            DOCKER,
            None,
            ("172.18.0.0/16",),
            [
                "--server=10.64.0.1",
                "--server=//127.0.0.11@127.0.0.54",
                "--rev-server=172.18.0.0/16,127.0.0.11@127.0.0.54",
            ],
            id="split, Docker: names without a dot",
        ),
        pytest.param(
            TUNNEL._replace(docker=True, forwarded=True),
            DOCKER,
            "stack_default",
            (),
            ["--server=10.64.0.1", "--server=/stack_default/127.0.0.11@127.0.0.54", "--server=//127.0.0.11@127.0.0.54"],
            id="split, Docker: and those of a network",
        ),
    ],
)
def test_forwarder(
    chosen: Names, pod: ResolvConf, domain: str | None, reverse: tuple[Any, ...], expected: list[str]
) -> None:
    command = dns.forwarder(chosen, pod, domain, reverse)
    assert command[0] == "dnsmasq"
    assert [word for word in command if word.startswith(("--server", "--rev-server"))] == expected
    # Nothing from files, nothing into files, no other user: there is one capability and nothing to write to.
    for word in ("--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--pid-file=", "--user=root", "--group="):
        assert word in command


def test_several_resolvers_are_asked_in_their_order() -> None:
    several = dns.forwarder(TUNNEL._replace(resolvers=("10.64.0.9", "10.64.0.1")), KUBE, None, ())
    assert [word for word in several if word.startswith("--s")] == [
        "--strict-order",
        "--server=10.64.0.9",
        "--server=10.64.0.1",
    ]
    assert "--strict-order" not in dns.forwarder(TUNNEL, KUBE, None, ())


def test_a_search_domain_of_the_tunnel_is_never_the_clusters() -> None:
    split = dns.forwarder(SPLIT, KUBE, None, (), ("corp.cluster.local", "cluster.local"))
    assert [word for word in split if word.startswith("--server")] == [
        "--server=10.64.0.1",
        "--server=/corp.cluster.local/10.64.0.1",
        "--server=/cluster.local/192.0.2.53",
    ]


@pytest.mark.skipif(not shutil.which("dnsmasq"), reason="the Debian package dnsmasq-base")
def test_dnsmasq_takes_the_command_line() -> None:
    chosen = SPLIT._replace(docker=True, cluster=((dns.ALIASES[4], "10.96.0.10"), (dns.ALIASES[6], "fd00:96::a")))
    command = dns.forwarder(chosen, DUAL, None, NETWORKS)
    subprocess.run([*command, "--test"], check=True, capture_output=True)


def test_a_resolv_conf_in_another_encoding_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "resolv.conf"
    file.write_bytes(b"# Gr\xfc\xdfe vom Admin\nnameserver 10.43.0.10\nsearch caf\xe9.example example.com\n")
    monkeypatch.setattr(observe, "RESOLV_CONF", str(file))
    assert observe.resolv_conf().nameservers == ("10.43.0.10",)
    assert "example.com" in observe.resolv_conf().search
