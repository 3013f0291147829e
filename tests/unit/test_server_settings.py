"""init_wg.config.server_settings and peer_names: the grammar of PEERS, and every refusal of the contract."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest

from init_wg.config import peer_names
from init_wg.config.server_settings import TABLE, ServerSettings, networks_behind, read
from init_wg.errors import ConfigError

DEFAULTS = ServerSettings(
    peers=("peer1",),
    peers_file="",
    url="",
    port=51820,
    subnet=ip_network("10.13.13.0/24"),  # type: ignore[arg-type]
    subnet6="auto",
    allowed_ips=(ip_network("0.0.0.0/0"), ip_network("::/0")),
    peer_to_peer=False,
    peer_dns=None,
    keepalive=25,
    preshared_keys=True,
    data="/var/lib/init-wg",
)


def test_the_defaults() -> None:
    assert read({"PEERS": "1"}) == DEFAULTS


def test_every_default_is_the_same_as_an_empty_value() -> None:
    assert read({**dict.fromkeys([setting.name for setting in TABLE], " "), "PEERS": "1"}) == DEFAULTS


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("3", ("peer1", "peer2", "peer3")),
        (" 1 ", ("peer1",)),
        ("0", ()),
        ("phone", ("phone",)),
        ("phone,laptop", ("phone", "laptop")),
        ("phone, laptop\tcar\n", ("phone", "laptop", "car")),
        ("1st 2", ("1st", "2")),
        ("a.b-c_d", ("a.b-c_d",)),
        ("x" * 31, ("x" * 31,)),
        ("peer1,peer2", ("peer1", "peer2")),
    ],
)
def test_peers(text: str, names: tuple[str, ...]) -> None:
    assert read({"PEERS": text}).peers == peer_names.parse(text) == names


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x" * 32, "no name"),
        ("-phone", "no name"),
        (".hidden", "no name"),
        ("_a", "no name"),
        ("pho/ne", "no name"),
        ("..", "no name"),
        ("my phone!", "no name"),
        ("téléphone", "no name"),
        ("a;b", "no name"),
        ("phone,Phone", "capitals"),
        ("phone,laptop,phone", "phone twice"),
        ("10001", "10000"),
        ("9" * 30, "10000"),
        ("٣", "smaller number, or names"),
        ("-1", "no name"),
        ("1.5e3!", "no name"),
    ],
)
def test_peers_that_are_refused(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=r"environment: PEERS (has|asks) ") as refused:
        read({"PEERS": text})
    assert says in str(refused.value)
    assert refused.value.exit_code == 2


def test_a_file_of_peers_has_comments() -> None:
    assert peer_names.in_lines("# mine\nphone\n\nlaptop # the old one\r\n") == ("phone", "laptop")


@pytest.mark.parametrize(
    ("name", "value", "field", "expected"),
    [
        ("SERVERURL", "vpn.example.com", "url", "vpn.example.com"),
        ("SERVERURL", "AUTO", "url", "auto"),
        ("SERVERURL", "203.0.113.7", "url", "203.0.113.7"),
        ("SERVERURL", "2001:db8::7", "url", "2001:db8::7"),
        ("SERVERURL", "[2001:db8::7]", "url", "2001:db8::7"),
        ("SERVERPORT", "31820", "port", 31820),
        ("INTERNAL_SUBNET", "10.20.0.0", "subnet", ip_network("10.20.0.0/24")),
        ("INTERNAL_SUBNET", "10.20.0.0/16", "subnet", ip_network("10.20.0.0/16")),
        ("INTERNAL_SUBNET6", "NONE", "subnet6", "none"),
        ("INTERNAL_SUBNET6", "fd13::/64", "subnet6", ip_network("fd13::/64")),
        ("ALLOWEDIPS", "10.43.0.0/16 ::/0", "allowed_ips", (ip_network("10.43.0.0/16"), ip_network("::/0"))),
        ("ALLOWEDIPS", "10.43.0.1/16", "allowed_ips", (ip_network("10.43.0.0/16"),)),
        ("PEER_TO_PEER", "yes", "peer_to_peer", True),
        ("PEERDNS", "auto", "peer_dns", None),
        ("PEERDNS", "none", "peer_dns", ()),
        ("PEERDNS", "9.9.9.9, 2620:fe::fe", "peer_dns", ("9.9.9.9", "2620:fe::fe")),
        ("PEER_KEEPALIVE", "0", "keepalive", 0),
        ("PEER_KEEPALIVE", "off", "keepalive", 0),
        ("PRESHARED_KEYS", "false", "preshared_keys", False),
        ("LOG_CONFS", "false", "preshared_keys", True),
        ("SERVER_DATA", "/config", "data", "/config"),
    ],
)
def test_what_settings_may_be(name: str, value: str, field: str, expected: Any) -> None:
    assert getattr(read({"PEERS": "1", name: value}), field) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("SERVERURL", bad) for bad in ("https://vpn.example.com", "vpn.example.com:51820", "a b", "127", "[::1")),
        *(("SERVERPORT", bad) for bad in ("0", "65536", "auto", "-1")),
        *(
            ("INTERNAL_SUBNET", bad)
            for bad in (
                "10.13.13.1/24",
                "8.8.8.0/24",
                "10.0.0.0/15",
                "10.13.13.0/31",
                "fd00::/64",
                "127.0.0.0/8",
                "auto",
            )
        ),
        *(("INTERNAL_SUBNET6", bad) for bad in ("fd13::1/64", "fd13::/127", "fe80::/64", "10.13.13.0/24", "yes")),
        *(("ALLOWEDIPS", bad) for bad in ("all", "10.0.0.0/33", ",")),
        ("PEER_TO_PEER", "maybe"),
        *(("PEERDNS", bad) for bad in ("dns.example.com", "1.2.3", "auto,9.9.9.9")),
        *(("PEER_KEEPALIVE", bad) for bad in ("65536", "-1", "25s")),
        ("PRESHARED_KEYS", "2"),
        ("LOG_CONFS", "perhaps"),
        ("SERVER_DATA", "config"),
    ],
)
def test_what_is_refused_names_its_variable(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"environment: {name}=.* is not understood: it may be "):
        read({"PEERS": "1", name: value})


def test_keys_are_never_logged() -> None:
    with pytest.raises(ConfigError, match=r"LOG_CONFS=true: secrets do not go into logs"):
        read({"PEERS": "1", "LOG_CONFS": "true"})


def test_without_peers_there_is_nothing_to_serve() -> None:
    with pytest.raises(ConfigError, match="PEERS is not set"):
        read({})
    with pytest.raises(ConfigError, match="both set"):
        read({"PEERS": "1", "PEERS_FILE": "/peers"})
    assert read({"PEERS_FILE": "/peers"}).peers is None


def test_what_linuxserver_has_beside_is_told_once() -> None:
    (notice,) = read({"PEERS": "1", "PUID": "1000", "PGID": "1000", "TZ": "Etc/UTC"}).notices
    assert "PUID, PGID, TZ: accepted and ignored" in notice
    assert read({"PEERS": "1", "TZ": ""}).notices == ()


def test_networks_behind_a_peer() -> None:
    environment = {
        "PEERS": "site-a,b",
        "SERVER_ALLOWEDIPS_PEER_site_a": "192.168.7.0/24,192.168.8.0/24",
        "SERVER_ALLOWEDIPS_PEER_b": "fd77::/64",
    }
    settings = read(environment)
    assert networks_behind(settings, settings.peers or ()) == {
        "site-a": (ip_network("192.168.7.0/24"), ip_network("192.168.8.0/24")),
        "b": (ip_network("fd77::/64"),),
    }


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("SERVER_ALLOWEDIPS_PEER_b", "192.168.7.0/24", "there is no peer of that name"),
        ("SERVER_ALLOWEDIPS_PEER_a", "here", "not understood"),
        ("SERVER_ALLOWEDIPS_PEER_a", "0.0.0.0/0", "default route"),
        ("SERVER_ALLOWEDIPS_PEER_a", "::/0", "default route"),
    ],
)
def test_networks_that_are_refused(name: str, value: str, says: str) -> None:
    with pytest.raises(ConfigError, match=f"environment: {name}.*{says}"):
        networks_behind(read({"PEERS": "a", name: value}), ("a",))
