"""A peer's file, byte for byte; and where names and keys come from."""

from __future__ import annotations

import pytest

from init_wg.config import server_settings, syntax
from init_wg.model.secret import Secret
from init_wg.server import enrol
from init_wg.server.design import desired, peerfile
from init_wg.server.design.register import Peer
from tests.unit import build

PUBLIC = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="
PEER = Peer(
    public_key=build.key("phone"),
    key=Secret("yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk="),
    preshared_key=Secret("TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0="),
    number=2,
    active=True,
)
WHOLE = """\
[Interface]
PrivateKey = yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=
Address = 10.13.13.2/32, fd13:13::2/128
DNS = 10.13.13.1, fd13:13::1
MTU = 1370

[Peer]
PublicKey = xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=
PresharedKey = TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=
Endpoint = vpn.example.com:31820
AllowedIPs = 0.0.0.0/0, ::/0
PersistentKeepalive = 25
"""
BARE = """\
[Interface]
PrivateKey = yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=
Address = 10.13.13.2/32
MTU = 1370

[Peer]
PublicKey = xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=
Endpoint = [2001:db8::7]:51820
AllowedIPs = 10.43.0.0/16
"""


def text(peer: Peer, host: str, **environment: str) -> str:
    settings = server_settings.read({"PEERS": "1", "INTERNAL_SUBNET6": "fd13:13::/64", **environment})
    within = desired.inside(settings, PUBLIC)
    made = peerfile.text(peer, settings, within, PUBLIC, host, desired.mtu(build.pod(), within))
    if peer.key:
        syntax.sections(made, "phone.conf")  # and wgconfig reads the same
    return made


def test_the_whole_file() -> None:
    assert text(PEER, "vpn.example.com", SERVERPORT="31820") == WHOLE


def test_what_is_switched_off_is_not_in_it() -> None:
    settings = {"INTERNAL_SUBNET6": "none", "PEERDNS": "none", "PEER_KEEPALIVE": "0", "ALLOWEDIPS": "10.43.0.0/16"}
    assert text(PEER._replace(preshared_key=None), "2001:db8::7", **settings) == BARE


def test_other_resolvers() -> None:
    assert "\nDNS = 9.9.9.9, 2620:fe::fe\n" in text(PEER, "a.example", PEERDNS="9.9.9.9,2620:fe::fe")


def test_a_peer_with_a_key_of_its_own_fills_it_in() -> None:
    made = text(PEER._replace(key=None), "a.example")
    assert f"# PrivateKey = the one of the public key {PEER.public_key}\n" in made
    assert "\nPrivateKey" not in made


def test_preshared_keys_can_be_switched_off() -> None:
    assert enrol.makes(server_settings.read({"PEERS": "1", "PRESHARED_KEYS": "false"})).preshared() is None


def test_the_forwarder_asks_the_pods_resolvers() -> None:
    argv = desired.forwarder(("10.13.13.1",), ("10.96.0.10",))
    assert argv[0] == "dnsmasq"
    assert {"--no-resolv", "--port=10053", "--listen-address=127.0.0.1,10.13.13.1", "--server=10.96.0.10"} <= set(argv)
    assert "--strict-order" not in argv
    assert "--strict-order" in desired.forwarder((), ("10.96.0.10", "10.96.0.11"))


@pytest.mark.parametrize("peers", ["2", "phone,laptop"])
def test_the_names_of_the_environment(peers: str) -> None:
    assert len(enrol.names(server_settings.read({"PEERS": peers}))) == 2
