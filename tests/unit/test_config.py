"""init_wg.config.tunnel: what providers write is read, and every mistake gets one line: where, and what to do."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
import stat
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import wgconfig

from init_wg.config.tunnel import Endpoint, Tunnel, load, refuse_own_key, servers
from init_wg.config.x25519 import public_key
from init_wg.errors import ConfigError
from init_wg.model.secret import Secret
from tests.unit.build import clamped

CONFIGS = Path(__file__).parent / "configs"


def key(text: str) -> str:
    """A well-formed key that nobody uses; the made-up ones in configs/ come from here too."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


PRIVATE = clamped(key("private"))
PRESHARED = key("preshared")
SERVER = key("server")
OTHER = key("other server")
GOOD = f"""\
[Interface]
PrivateKey = {PRIVATE}
Address = 10.64.0.2/32, fd00::2/128
DNS = 10.64.0.1

[Peer]
PublicKey = {SERVER}
PresharedKey = {PRESHARED}
AllowedIPs = 0.0.0.0/0, ::/0
Endpoint = 192.0.2.1:51820
"""
SECOND_PEER = f"[Peer]\nPublicKey = {OTHER}\nAllowedIPs = 10.9.0.0/16\nEndpoint = 192.0.2.2:51820\n"


def with_line(number: int, text: str) -> str:
    """GOOD with one line replaced; an empty text leaves an empty line, so the others keep their numbers."""
    lines = GOOD.split("\n")
    lines[number - 1] = text
    return "\n".join(lines)


def written(folder: Path, content: str | bytes, name: str = "wg0.conf") -> str:
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    file.chmod(0o600)
    return str(file)


def refusal(path: str) -> str:
    """The error of load(): one line, with the file's name, and nowhere a secret, nor in the traceback."""
    with pytest.raises(ConfigError) as caught:
        load(path)
    message = str(caught.value)
    assert message.isprintable()
    assert path in message
    for secret in (PRIVATE, PRESHARED):
        assert secret[:12] not in "".join(traceback.format_exception(caught.value))
    return message


# ---------------------------------------------------------------------------- what is read


def test_a_plain_file(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    tunnel = load(path)
    assert (tunnel.name, tunnel.path) == ("wg0", path)
    assert tunnel.private_key == PRIVATE
    assert tunnel.addresses == (ip_interface("10.64.0.2/32"), ip_interface("fd00::2/128"))
    assert tunnel.dns == (ip_address("10.64.0.1"),)
    assert (tunnel.search, tunnel.mtu, tunnel.listen_port, tunnel.notices) == ((), None, None, ())
    (peer,) = tunnel.peers
    assert (peer.public_key, peer.preshared_key) == (SERVER, PRESHARED)
    assert peer.endpoint == Endpoint("192.0.2.1", 51820)
    assert peer.allowed_ips == (ip_network("0.0.0.0/0"), ip_network("::/0"))
    assert peer.keepalive == 0


def test_secrets_never_show_themselves(tmp_path: Path) -> None:
    tunnel = load(written(tmp_path, GOOD))
    assert isinstance(tunnel.private_key, Secret)
    assert isinstance(tunnel.peers[0].preshared_key, Secret)
    assert PRIVATE not in repr(tunnel)
    assert PRESHARED not in repr(tunnel)


def test_a_private_key_that_is_not_clamped_is_what_wireguard_makes_of_it(tmp_path: Path) -> None:
    loose = key("private")
    assert loose != PRIVATE
    assert load(written(tmp_path, with_line(2, f"PrivateKey = {loose}"))).private_key == PRIVATE
    ones, wanted = (base64.b64encode(raw).decode() for raw in (b"\xff" * 32, b"\xf8" + b"\xff" * 30 + b"\x7f"))
    assert load(written(tmp_path, with_line(2, f"PrivateKey = {ones}"))).private_key == wanted


def test_a_preshared_key_of_zeroes_is_none(tmp_path: Path) -> None:
    zeroes = f"PresharedKey = {'A' * 43}="
    assert load(written(tmp_path, with_line(8, zeroes))).peers[0].preshared_key is None


STRAY = str.maketrans("AEIMQUYcgkosw048", "BFJNRVZdhlptx159")  # the last character before the "=", with a bit too many


@pytest.mark.parametrize("line", [2, 7, 8])
def test_a_key_with_stray_bits_is_read_in_its_one_spelling(tmp_path: Path, line: int) -> None:
    was = GOOD.split("\n")[line - 1]
    stray = was[:-2] + was[-2].translate(STRAY) + "="
    assert stray != was
    assert load(written(tmp_path, with_line(line, stray))) == load(written(tmp_path, GOOD))


def test_the_same_public_key_in_two_spellings_is_one_peer(tmp_path: Path) -> None:
    stray = SERVER[:-2] + SERVER[-2].translate(STRAY) + "="
    text = with_line(9, "AllowedIPs = 10.0.0.0/13") + SECOND_PEER.replace(OTHER, stray)
    assert "the same PublicKey as in line 7" in refusal(written(tmp_path, text))


def test_a_peer_with_our_own_public_key_is_refused(tmp_path: Path) -> None:
    own = base64.b64encode(public_key(base64.b64decode(PRIVATE))).decode()
    text = with_line(9, "AllowedIPs = 10.0.0.0/13") + SECOND_PEER.replace(OTHER, own)
    refuse_own_key(load(written(tmp_path, GOOD)))
    tunnel = load(written(tmp_path, text))
    with pytest.raises(ConfigError, match=r"wg0\.conf:12: this PublicKey belongs to this file's own PrivateKey: put"):
        refuse_own_key(tunnel)


class Provider(NamedTuple):
    addresses: list[str]
    dns: list[str]
    endpoints: list[Endpoint]
    allowed_ips: list[list[str]]
    keepalive: int = 0
    mtu: int | None = None
    listen_port: int | None = None
    preshared: bool = False
    hooks: str = ""


EVERYTHING = ["0.0.0.0/0", "::/0"]
PROVIDERS = {
    "mullvad": Provider(
        ["10.64.207.31/32", "fc00:bbbb:bbbb:bb01::1:cf1e/128"],
        ["10.64.0.1"],
        [Endpoint("192.0.2.66", 51820)],
        [EVERYTHING],
        hooks="PostUp (line 6), PreDown (line 7)",
    ),
    "proton": Provider(["10.2.0.2/32"], ["10.2.0.1"], [Endpoint("198.51.100.34", 51820)], [EVERYTHING], keepalive=25),
    "ivpn": Provider(
        ["172.27.14.9/32", "fd00:4956:504e:ffff::ac1b:e09/128"],
        ["172.16.0.1"],
        [Endpoint("us-tx.wg.example.net", 2049)],
        [EVERYTHING],
        preshared=True,
    ),
    "airvpn": Provider(
        ["10.142.88.3/32", "fd7d:76ee:e68f:a993:6b5a:8c3b:4d1e:7f20/128"],
        ["10.128.0.1", "fd7d:76ee:e68f:a993::1"],
        [Endpoint("2001:db8:1637::1", 1637)],
        [EVERYTHING],
        keepalive=15,
        mtu=1320,
        preshared=True,
    ),
    "man-wg-quick": Provider(
        ["10.200.100.8/24"],
        ["10.200.100.1"],
        [Endpoint("demo.wireguard.com", 51820)],
        [["0.0.0.0/0"]],
        preshared=True,
    ),
    # The two-file form: its addresses are in man-wg.address.
    "man-wg": Provider(
        ["10.192.122.1/24", "10.10.0.1/16", "fd00:122::1/64"],
        [],
        [
            Endpoint("192.95.5.67", 1234),
            Endpoint("2607:5300:60:6b0::c05f:543", 2468),
            Endpoint("test.wireguard.com", 18981),
        ],
        [["10.192.122.3/32", "10.192.124.0/24"], ["10.192.122.4/32", "192.168.0.0/16"], ["10.10.10.230/32"]],
        listen_port=51820,
    ),
}


@pytest.mark.parametrize("name", PROVIDERS)
def test_what_providers_write(name: str) -> None:
    tunnel, wanted = load(str(CONFIGS / f"{name}.conf")), PROVIDERS[name]
    assert tunnel.name == name
    assert tunnel.addresses == tuple(map(ip_interface, wanted.addresses))
    assert tunnel.dns == tuple(map(ip_address, wanted.dns))
    assert (tunnel.mtu, tunnel.listen_port) == (wanted.mtu, wanted.listen_port)
    assert [peer.endpoint for peer in tunnel.peers] == wanted.endpoints
    assert [peer.allowed_ips for peer in tunnel.peers] == [
        tuple(map(ip_network, networks)) for networks in wanted.allowed_ips
    ]
    assert {peer.keepalive for peer in tunnel.peers} == {wanted.keepalive}
    assert {peer.preshared_key is not None for peer in tunnel.peers} == {wanted.preshared}
    assert (f"ignored: {wanted.hooks}:" in " ".join(tunnel.notices)) == bool(wanted.hooks)


def test_every_key_in_every_spelling() -> None:
    tunnel = load(str(CONFIGS / "everything.conf"))
    assert tunnel.private_key == clamped(key("a made-up private key"))
    assert tunnel.addresses == (ip_interface("10.64.0.2/32"), ip_interface("fd00:64::2/64"))
    assert tunnel.dns == (ip_address("10.64.0.1"), ip_address("fd00:64::1"))
    assert tunnel.search == ("corp.example.com", "lab")
    assert (tunnel.mtu, tunnel.listen_port) == (1280, 1)
    first, second = tunnel.peers
    assert (first.endpoint, second.endpoint) == (Endpoint("vpn_1.example.com.", 65535), Endpoint("vpn2", 1))
    assert first.allowed_ips == (ip_network("10.0.0.0/8"), ip_network("fd00:8::/32"))
    assert second.allowed_ips == (ip_network("192.168.0.0/16"), ip_network("192.168.1.0/24"))
    assert (first.keepalive, second.keepalive) == (0, 65535)
    assert (first.preshared_key, second.preshared_key) == (None, key("a made-up preshared key"))
    ignored = [re.findall(r"(\w+) \(lines? ([0-9, ]+)\)", notice) for notice in tunnel.notices]
    assert ignored[:3] == [
        [("PreUp", "20"), ("PostUp", "21, 22"), ("PreDown", "23"), ("PostDown", "24")],
        [("Table", "11")],
        [("SaveConfig", "12")],
    ]


@pytest.mark.parametrize(
    ("spelled", "same_as"),
    [
        (GOOD.replace("\n", "\r\n"), GOOD),
        ("\ufeff" + GOOD, GOOD),
        (GOOD.removesuffix("\n"), GOOD),
        (GOOD.upper().replace(PRIVATE.upper(), PRIVATE), None),
        (GOOD.replace(" = ", "="), GOOD),
        (GOOD.replace(" = ", "\t =  "), GOOD),
        (GOOD.replace("\n", "  # ein Kommentar über nichts \U0001f9e6\n"), GOOD),
        (GOOD.replace("0.0.0.0/0, ::/0", "0.0.0.0/0,::/0"), GOOD),
        (GOOD.replace("0.0.0.0/0, ::/0", "0.0.0.0/0\nAllowedIPs = ::/0"), GOOD),
        (GOOD.replace("0.0.0.0/0, ::/0", "9.9.9.9/0, 0.0.0.0/0, fd00::1/0"), GOOD),
    ],
    ids=["crlf", "bom", "no newline", "upper", "tight", "tabs", "comments", "list", "repeated", "host bits"],
)
def test_spellings_that_mean_the_same(tmp_path: Path, spelled: str, same_as: str | None) -> None:
    if same_as is None:  # base64 has both cases, so only the names can be in capitals
        spelled = "\n".join(
            f"{name.upper()}{equals}{value}"
            for name, equals, value in (line.partition("=") for line in GOOD.split("\n"))
        )
    path = written(tmp_path, spelled)
    again = load(path)
    written(tmp_path, same_as or GOOD)
    assert again == load(path)


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        (f"FwMark = {mark}", "notices", ()) for mark in ("51820", "0xca6c", "0xCA6C", "0x0000ca6c")
    ]
    + [
        ("MTU = 1420", "mtu", 1420),
        ("MTU = 65535", "mtu", 65535),
        ("ListenPort = 65535", "listen_port", 65535),
        ("DNS = fd00::53", "dns", (ip_address("fd00::53"),)),
        ("DNS = corp.example.com, lan.", "search", ("corp.example.com", "lan.")),
        ("DNS = 9.9.9.9, 9.9.9.9, a, a", "dns", (ip_address("9.9.9.9"),)),
    ],
)  # fmt: skip
def test_single_keys_of_the_interface(tmp_path: Path, line: str, field: str, value: object) -> None:
    assert getattr(load(written(tmp_path, with_line(4, line))), field) == value


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("[2001:DB8:0::1]:1", "2001:db8::1", 1),
        ("vpn.example.com:65535", "vpn.example.com", 65535),
        ("vpn.example.com.:80", "vpn.example.com.", 80),
        ("wireguard:51820", "wireguard", 51820),
        ("xn--zrich-kva.example:53", "xn--zrich-kva.example", 53),
        ("1.2.3.4.example:53", "1.2.3.4.example", 53),
    ],
)
def test_endpoints(tmp_path: Path, text: str, host: str, port: int) -> None:
    tunnel = load(written(tmp_path, with_line(10, f"Endpoint = {text}")))
    assert tunnel.peers[0].endpoint == Endpoint(host, port)


# ---------------------------------------------------------------------------- notices


@pytest.mark.parametrize(
    ("line", "notice"),
    [
        (
            "PostUp = a\nPreUp = b\npostup = c",
            "PostUp (lines 4, 6), PreUp (line 5): init-wg runs no commands",
        ),
        ("PreDown = a\nPostDown =", "PreDown (line 4), PostDown (line 5): init-wg runs no commands"),
        ("FwMark = 0x1", "FwMark (line 4): init-wg always uses the mark 51820"),
        ("FwMark = off", "FwMark (line 4): init-wg always uses the mark 51820"),
        ("Table = 1234", "Table (line 4): init-wg makes its own routes"),
        ("Table = auto", "Table (line 4): init-wg makes its own routes"),
        ("SaveConfig = true", "SaveConfig (line 4): init-wg never writes to the file"),
    ],
)
def test_what_is_ignored_is_said_once(tmp_path: Path, line: str, notice: str) -> None:
    path = written(tmp_path, with_line(4, line))
    (said,) = load(path).notices
    assert said.startswith(f"{path}: ignored: {notice}")


def test_hooks_are_not_run_and_their_text_is_not_kept(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    hooks = "\n".join(f"{name} = touch {trace}" for name in ("PreUp", "PostUp", "PreDown", "PostDown"))
    tunnel = load(written(tmp_path, with_line(4, hooks)))
    assert not trace.exists()
    assert "touch" not in repr(tunnel)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, False), (0o644, True), (0o604, True)])
def test_a_file_that_all_can_read_is_pointed_out(tmp_path: Path, mode: int, warned: bool) -> None:
    path = written(tmp_path, GOOD)
    Path(path).chmod(mode)
    assert [notice.partition(": ")[2] for notice in load(path).notices] == (
        ["everybody can read this file and the key in it: set its mode to 0400"] if warned else []
    )


# ---------------------------------------------------------------------------- bad lines


class Mistake(NamedTuple):
    """GOOD with line `at` replaced by `text`; the error is about line `line` (`at` if 0) and says `says`."""

    at: int
    text: str
    says: str
    line: int = 0


HALF = PRIVATE[:22]
MISTAKES = {
    # keys
    "no PrivateKey": Mistake(2, "", "this [Interface] has no PrivateKey: add", 1),
    "no PublicKey": Mistake(7, "", "this [Peer] has no PublicKey: add", 6),
    "no Endpoint": Mistake(10, "", "without it this pod can never reach the peer", 6),
    "no AllowedIPs": Mistake(9, "", "this [Peer] has no AllowedIPs: add", 6),
    "no Address, no file": Mistake(3, "", "this [Interface] has no Address: add it, or put it in", 1),
    "short key": Mistake(2, f"PrivateKey = {PRIVATE[1:]}", "PrivateKey has 43 characters"),
    "long key": Mistake(7, f"PublicKey = {SERVER}=", "PublicKey has 45 characters"),
    "key in hexadecimal": Mistake(2, f"PrivateKey = {'ab' * 32}", "PrivateKey has 64 characters"),
    "key cut in two": Mistake(2, f"PrivateKey = {PRIVATE[:30]}\n{PRIVATE[30:]}", "unknown key: correct", 3),
    "key, not base64": Mistake(2, f"PrivateKey = !{PRIVATE[1:]}", "PrivateKey is not base64"),
    "key, URL base64": Mistake(8, f"PresharedKey = _{PRESHARED[1:]}", "PresharedKey is not base64"),
    "key, '=' inside": Mistake(2, f"PrivateKey = {PRIVATE[:21]}={PRIVATE[22:]}", "PrivateKey is not"),
    "key, no '='": Mistake(2, f"PrivateKey = {PRIVATE[:43]}A", "PrivateKey is not exact base64 of 32 bytes"),
    "key of 31 bytes": Mistake(2, f"PrivateKey = {PRIVATE[:42]}==", "PrivateKey is not"),
    "private key of zeroes": Mistake(2, f"PrivateKey = {'A' * 43}=", "PrivateKey is all zeroes"),
    "public key of zeroes": Mistake(7, f"PublicKey = {'A' * 43}=", "PublicKey is all zeroes"),
    "placeholder": Mistake(2, "PrivateKey = <your key>", "PrivateKey has a placeholder"),
    "placeholder, a word": Mistake(7, "PublicKey = YOUR_SERVER_KEY", "PublicKey has a placeholder"),
    "placeholder, a variable": Mistake(3, "Address = ${WG_ADDRESS}", "Address has a placeholder"),
    "placeholder, a template": Mistake(8, "PresharedKey = {{ psk }}", "PresharedKey has a placeholder"),
    "placeholder, a host": Mistake(10, "Endpoint = <server>:51820", "Endpoint has a placeholder"),
    "quotes": Mistake(2, f'PrivateKey = "{PRIVATE}"', "PrivateKey has quotation marks around its value: delete"),
    "single quotes": Mistake(4, "DNS = '10.64.0.1'", "DNS has quotation marks around its value: delete"),
    "a quote at one end": Mistake(10, 'Endpoint = "192.0.2.1:51820', "Endpoint has quotation marks"),
    # addresses
    "multicast": Mistake(3, "Address = 224.0.0.1/32", "Address has a multicast address"),
    "IPv6 multicast": Mistake(3, "Address = ff02::1/128", "Address has a multicast address"),
    "unspecified": Mistake(3, "Address = 0.0.0.0/32", "Address has an address that means 'none'"),
    "this network": Mistake(3, "Address = 0.1.2.3/32", "Address has an address that means 'none'"),
    "IPv6 unspecified": Mistake(3, "Address = ::/128", "Address has an address that means 'none'"),
    "loopback": Mistake(3, "Address = 127.0.0.1/8", "Address has a loopback address"),
    "IPv6 loopback": Mistake(3, "Address = ::1/128", "Address has a loopback address"),
    "broadcast": Mistake(3, "Address = 255.255.255.255", "Address has the broadcast address"),
    "mapped": Mistake(3, "Address = ::ffff:10.0.0.1/128", "Address has an IPv4 address dressed as IPv6"),
    "zone": Mistake(3, "Address = fe80::1%eth0/64", "Address has an IPv6 zone"),
    "prefix 33": Mistake(3, "Address = 10.0.0.1/33", "Address must be an IP address and a prefix length"),
    "prefix 129": Mistake(3, "Address = fd00::1/129", "a prefix length from 0 to 128"),
    "prefix 0": Mistake(3, "Address = 10.0.0.1/0", "Address has the prefix /0"),
    "prefix empty": Mistake(3, "Address = 10.0.0.1/", "a prefix length from 0 to 32"),
    "prefix signed": Mistake(3, "Address = 10.0.0.1/+8", "a prefix length from 0 to 32"),
    "prefix 08": Mistake(3, "Address = 10.0.0.1/08", "a prefix length from 0 to 32"),
    "netmask": Mistake(3, "Address = 10.0.0.1/255.0.0.0", "a prefix length from 0 to 32"),
    "two slashes": Mistake(3, "Address = 10.0.0.1/8/8", "a prefix length from 0 to 32"),
    "octet 256": Mistake(3, "Address = 10.0.0.256", "Address has something that is not an IP address"),
    "octet 010": Mistake(3, "Address = 10.0.0.010", "Address has something that is not an IP address"),
    "host name as address": Mistake(3, "Address = vpn.example", "Address has something that is not an IP"),
    "bad IPv6": Mistake(3, "Address = fd00:::1", "Address has something that is not an IPv6 address"),
    "spaces for commas": Mistake(3, "Address = 10.0.0.1 10.0.0.2", "put commas between several"),
    "the same address": Mistake(3, "Address = 10.0.0.1/32\nAddress = 10.0.0.1/24", "as in line 3", 4),
    "comma at the end": Mistake(3, "Address = 10.0.0.1,", "Address has a comma with nothing beside it"),
    "comma twice": Mistake(9, "AllowedIPs = ::/0,,1.1.1.1", "AllowedIPs has a comma with nothing beside"),
    # DNS
    "DNS 0.0.0.0": Mistake(4, "DNS = 0.0.0.0", "DNS has an address that means 'none'"),
    "DNS loopback": Mistake(4, "DNS = 127.0.0.53", "DNS has a loopback address"),
    "DNS digits": Mistake(4, "DNS = 10.64.0", "DNS has something that is not an IP address"),
    "DNS number": Mistake(4, "DNS = 10640", "DNS has something that is not an IP address"),
    "DNS with a port": Mistake(4, "DNS = 10.64.0.1:53", "DNS has something that is not an IPv6 address"),
    "DNS, bad name": Mistake(4, "DNS = -corp.example", "neither an IP address nor a domain name"),
    "DNS, empty label": Mistake(4, "DNS = corp..example", "neither an IP address nor a domain name"),
    "DNS, long label": Mistake(4, f"DNS = {'a' * 64}.example", "neither an IP address nor a domain name"),
    "DNS, long name": Mistake(4, f"DNS = {'a.' * 127}a", "neither an IP address nor a domain name"),
    "DNS, URL": Mistake(4, "DNS = dns.example/query", "neither an IP address nor a domain name"),
    "DNS, a key": Mistake(4, f"DNS = {PRIVATE}", "neither an IP address nor a domain name"),
    # numbers
    "ListenPort 0": Mistake(4, "ListenPort = 0", "ListenPort must be a port from 1 to 65535"),
    "ListenPort 70000": Mistake(4, "ListenPort = 70000", "ListenPort must be a port from 1 to 65535"),
    "ListenPort -1": Mistake(4, "ListenPort = -1", "ListenPort must be a port from 1 to 65535"),
    "ListenPort 051820": Mistake(4, "ListenPort = 051820", "ListenPort has a number with zeroes in front"),
    "ListenPort 5e3": Mistake(4, "ListenPort = 5e3", "ListenPort must be a port"),
    "ListenPort 5_1": Mistake(4, "ListenPort = 5_1", "ListenPort must be a port"),
    "ListenPort, unicode": Mistake(4, "ListenPort = ٥١٨٢٠", "ListenPort has a character that is not ASCII"),
    "a very long number": Mistake(4, f"MTU = {'1' * 5000}", "MTU has a number with zeroes in front, or one"),
    "MTU 0": Mistake(4, "MTU = 0", "MTU must be an MTU from 576 to 65535"),
    "MTU 70000": Mistake(4, "MTU = 70000", "MTU must be an MTU from 576 to 65535"),
    "MTU without IPv6": Mistake(4, "MTU = 1279", "MTU is below 1280, but there is an IPv6 Address"),
    "keepalive 65536": Mistake(8, "PersistentKeepalive = 65536", "'off' or a number of seconds from 0"),
    "keepalive on": Mistake(8, "PersistentKeepalive = on", "'off' or a number of seconds from 0 to 65535"),
    "FwMark of 33 bits": Mistake(4, "FwMark = 0x100000000", "FwMark is not a mark of 32 bits"),
    "FwMark 0x": Mistake(4, "FwMark = 0x", "FwMark is not a mark of 32 bits"),
    "FwMark 0xg": Mistake(4, "FwMark = 0xg", "FwMark is not a mark of 32 bits"),
    "FwMark 2**32": Mistake(4, "FwMark = 4294967296", "FwMark must be 'off', a number or 0x"),
    "FwMark on": Mistake(4, "FwMark = on", "FwMark must be 'off', a number or 0x"),
    "Table": Mistake(4, "Table = a b", "Table is not 'off', 'auto' or a routing table"),
    "SaveConfig": Mistake(4, "SaveConfig = yes", "SaveConfig is neither true nor false"),
    # endpoints
    "endpoint, no port": Mistake(10, "Endpoint = vpn.example", "Endpoint has no port"),
    "endpoint, empty port": Mistake(10, "Endpoint = vpn.example:", "Endpoint must be a port from 1"),
    "endpoint, port 0": Mistake(10, "Endpoint = vpn.example:0", "Endpoint must be a port from 1 to 65535"),
    "endpoint, port 70000": Mistake(10, "Endpoint = 192.0.2.1:70000", "Endpoint must be a port from 1"),
    "endpoint, port name": Mistake(10, "Endpoint = vpn.example:https", "Endpoint must be a port from 1"),
    "endpoint, no host": Mistake(10, "Endpoint = :51820", "Endpoint names an impossible host"),
    "endpoint, only dots": Mistake(10, "Endpoint = .:51820", "Endpoint names an impossible host"),
    "endpoint, bare IPv6": Mistake(10, "Endpoint = 2001:db8::1:51820", "write an IPv6 address in brackets"),
    "endpoint, IPv6 no port": Mistake(10, "Endpoint = [2001:db8::1]", "Endpoint must be a port"),
    "endpoint, open bracket": Mistake(10, "Endpoint = [2001:db8::1:5", "write an IPv6 address in brackets"),
    "endpoint, IPv4 in brackets": Mistake(10, "Endpoint = [192.0.2.1]:5", "something that is not an IPv6"),
    "endpoint, zone": Mistake(10, "Endpoint = [fe80::1%2]:5", "Endpoint has an IPv6 zone"),
    "endpoint, 256": Mistake(10, "Endpoint = 192.0.2.256:5", "something that is not an IP address"),
    "endpoint, short IPv4": Mistake(10, "Endpoint = 10.1:5", "something that is not an IP address"),
    "endpoint, hexadecimal": Mistake(10, "Endpoint = 0x7f000001:5", "something that is not an IP address"),
    "endpoint, multicast": Mistake(10, "Endpoint = 224.0.0.1:5", "Endpoint has a multicast address"),
    "endpoint, unspecified": Mistake(10, "Endpoint = [::]:5", "Endpoint has an address that means 'none'"),
    "endpoint, broadcast": Mistake(10, "Endpoint = 255.255.255.255:5", "Endpoint has the broadcast"),
    "endpoint, URL": Mistake(10, "Endpoint = udp://vpn.example:5", "Endpoint has several colons"),
    "endpoint, user": Mistake(10, "Endpoint = me@vpn.example:5", "Endpoint names an impossible host"),
    "endpoint, space": Mistake(10, "Endpoint = vpn example:5", "Endpoint names an impossible host"),
    "endpoint, hyphen": Mistake(10, "Endpoint = vpn-.example:5", "Endpoint names an impossible host"),
    "endpoint, umlaut": Mistake(10, "Endpoint = zürich.example:5", "a character that is not ASCII"),
    "two endpoints": Mistake(10, "Endpoint = a:1, b:2", "Endpoint has a comma, but takes one value"),
    # allowed IPs
    "AllowedIPs, name": Mistake(9, "AllowedIPs = everything", "AllowedIPs has something that is not an IP"),
    "AllowedIPs, prefix": Mistake(9, "AllowedIPs = 0.0.0.0/33", "a prefix length from 0 to 32"),
    "AllowedIPs, short": Mistake(9, "AllowedIPs = 0/0", "AllowedIPs has something that is not an IP"),
    # structure
    "unknown key": Mistake(4, "Jitter = 4", "unknown key Jitter: correct it"),
    "AmneziaWG": Mistake(4, "Jc = 4", "Jc belongs to AmneziaWG, which is not supported: get a plain WireGuard file"),
    "AmneziaWG, small": Mistake(4, "s1 = 4", "s1 belongs to AmneziaWG, which is not supported"),
    "AmneziaWG 1.5": Mistake(4, "I1 = <b 0xc0ff>", "I1 belongs to AmneziaWG, which is not supported"),
    "AmneziaWG, in a peer": Mistake(8, "AdvancedSecurity = on", "AdvancedSecurity belongs to AmneziaWG"),
    "unknown key, a value of a key": Mistake(2, f"PrivKey = {PRIVATE}", "unknown key PrivKey: correct it"),
    "unknown key, shaped as a key": Mistake(2, PRIVATE, "unknown key: correct it"),
    "unknown key, shaped as half a key": Mistake(2, f"{HALF} = {HALF}", "unknown key: correct it"),
    "unknown key, the end of a key": Mistake(4, "ZmFrZSBrZXk=", "unknown key: correct it"),
    "unknown key, letters and an '='": Mistake(4, "ZmFrZSBrZXkb==", "unknown key: correct it"),
    "unknown key, a digit within": Mistake(4, "Zm9vYmFyYmF6 = 1", "unknown key: correct it"),
    "unknown key, two words": Mistake(2, f"Private {PRIVATE} = 1", "unknown key: correct it"),
    "no name": Mistake(2, f"= {PRIVATE}", "unknown key: correct it"),
    "no '='": Mistake(2, f"PrivateKey {PRIVATE[:43]}", "not a 'Key = value' line"),
    "a colon for '='": Mistake(3, "Address: 10.0.0.1", "not a 'Key = value' line: write '=' instead of the colon"),
    "a comment of another kind": Mistake(5, "; comment", "not a 'Key = value' line"),
    "a name alone": Mistake(4, "MTU", "not a 'Key = value' line"),
    "no value": Mistake(4, "DNS =", "DNS has no value"),
    "only a comment": Mistake(2, f"PrivateKey = # {PRIVATE}", "PrivateKey has no value"),
    "unknown section": Mistake(6, "[Client]", "an unknown section: only [Interface] and [Peer]"),
    "another program's section": Mistake(6, "[WireGuardPeer]", "; this may be a file of systemd-networkd"),
    "section, no bracket": Mistake(6, "[Peer", "an unknown section"),
    "section, more text": Mistake(6, f"[Peer] PublicKey = {SERVER}", "an unknown section"),
    "section, other bracket": Mistake(6, "[Peer)", "an unknown section"),
    "section, empty": Mistake(6, "[", "an unknown section"),
    "section, spaces": Mistake(6, "[ Peer ]", "an unknown section"),
    "before any section": Mistake(1, "MTU = 1400\n[Interface]", "MTU stands before any section"),
    "peer's in Interface": Mistake(4, "Endpoint = a:1", "Endpoint stands below [Interface]: move it below [P"),
    "interface's in Peer": Mistake(8, "DNS = 9.9.9.9", "DNS stands below [Peer]: move it below [Interface]"),
    "hook in Peer": Mistake(8, "PostUp = a", "PostUp stands below [Peer]: move it below [Interface]"),
    "twice": Mistake(4, "MTU = 1400\nMTU = 1400", "MTU stands already in line 4: keep one of the two", 5),
    "twice, other case": Mistake(3, f"PRIVATEKEY = {PRIVATE}", "PrivateKey stands already in line 2"),
    "two keys in one line": Mistake(2, f"PrivateKey = {PRIVATE}, {PRIVATE}", "but takes one value"),
    "two [Interface]": Mistake(5, "[Interface]", "a second [Interface], the first is in line 1: keep one"),
    "HTML": Mistake(1, "<!DOCTYPE html>", "HTML, not a WireGuard configuration: download it anew"),
    "HTML after blanks": Mistake(1, "\n\n  <html>", "HTML, not a WireGuard configuration", 3),
    "NUL": Mistake(4, "DNS = \0", "NUL bytes, so a binary file"),
    "NUL in a comment": Mistake(4, "# \0", "NUL bytes, so a binary file"),
    "escape": Mistake(4, "# \x1b[2J", "a control character: delete it"),
    "carriage return": Mistake(4, "# a\rMTU = 9", "a control character (a carriage return): save the file"),
    "vertical tab": Mistake(4, "DNS = 9.9.9.9\x0bMTU = 1400", "a control character: delete it"),
    "next line": Mistake(4, "DNS = 9.9.9.9\x85MTU = 1400", "a control character: delete it"),
    "no-break space": Mistake(4, "DNS\u00a0= 9.9.9.9", "unknown key: it has U+00A0 NO-BREAK SPACE"),
    "zero-width space": Mistake(4, "\u200bDNS = 9.9.9.9", "unknown key: it has U+200B ZERO WIDTH SPACE"),
    "smart quote": Mistake(4, "DNS = \u201c9.9.9.9\u201d", "not ASCII (U+201C LEFT DOUBLE QUOTATION MARK)"),
    "no-break space in a value": Mistake(4, "DNS =\u00a09.9.9.9", "DNS has a character that is not ASCII"),
    "line separator": Mistake(4, "DNS = 9.9.9.9\u2028", "DNS has a character that is not ASCII"),
    "second byte order mark": Mistake(6, "\ufeff[Peer]", "not a 'Key = value' line"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_has_one_clear_line(tmp_path: Path, name: str) -> None:
    mistake = MISTAKES[name]
    path = written(tmp_path, with_line(mistake.at, mistake.text))
    message = refusal(path)
    assert message.startswith(f"{path}:{mistake.line or mistake.at}: ")
    assert mistake.says in message
    assert HALF[:8] not in message


def second_peer(**changes: str) -> str:
    """GOOD, all but its AllowedIPs, with another peer below, whose [Peer] is in line 11."""
    text = with_line(9, "AllowedIPs = 10.0.0.0/13, fd00:1::/32")
    lines = SECOND_PEER.splitlines()
    return text + "\n".join(changes.get(line.partition(" ")[0], line) for line in lines) + "\n"


@pytest.mark.parametrize(
    ("changes", "line", "says"),
    [
        ({"PublicKey": f"PublicKey = {SERVER}"}, 12, "the same PublicKey as in line 7: keep one of the two"),
        ({"AllowedIPs": "AllowedIPs = 10.0.0.0/13"}, 13, "a network that the peer in line 9 has: keep it in one peer"),
        ({"AllowedIPs": "AllowedIPs = 1.1.1.1\nAllowedIPs = 10.0.0.0/13"}, 14, "the peer in line 9 has"),
        ({"AllowedIPs": "AllowedIPs = 1.1.1.1, fd00:1::/32"}, 13, "the peer in line 9 has"),
        ({"Endpoint": ""}, 11, "this [Peer] has no Endpoint: add the server's host:port"),
        ({"PublicKey": ""}, 11, "this [Peer] has no PublicKey"),
    ],
)
def test_mistakes_with_two_peers(tmp_path: Path, changes: dict[str, str], line: int, says: str) -> None:
    path = written(tmp_path, second_peer(**changes))
    message = refusal(path)
    assert message.startswith(f"{path}:{line}: ")
    assert says in message


@pytest.mark.parametrize(
    "networks",
    [
        "10.8.0.0/13, 9.0.0.0/8, 0.0.0.0/32, fd00:2::/32, ::/128",
        "10.3.4.5",
        "0.0.0.0/0, ::/0",
        "10.0.0.0/8, fd00:1:1::/64",
    ],
)
def test_one_peers_networks_may_lie_within_anothers(tmp_path: Path, networks: str) -> None:
    """An exit and a second peer for one network: the longest prefix decides."""
    assert len(load(written(tmp_path, second_peer(AllowedIPs=f"AllowedIPs = {networks}"))).peers) == 2


def test_many_networks_take_no_time(tmp_path: Path) -> None:
    """As many as the size allows: comparing each with each would take seconds."""
    halves = [", ".join(f"{top}.{n >> 8}.{n & 255}.0/24" for n in range(2000)) for top in (10, 11)]
    text = with_line(9, f"AllowedIPs = {halves[0]}") + SECOND_PEER.replace("10.9.0.0/16", halves[1])
    assert [len(peer.allowed_ips) for peer in load(written(tmp_path, text)).peers] == [2000, 2000]


# ---------------------------------------------------------------------------- bad files


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", ": an empty file: put a WireGuard configuration in it"),
        (b"\n \t\r\n", ": an empty file"),
        (b"\xef\xbb\xbf", ": an empty file"),
        (b"# only\n# comments\n", ": an empty file"),
        (b"[Peer]\n", ": no [Interface] section"),
        (f"[Interface]\nPrivateKey = {PRIVATE}\nAddress = 10.0.0.1".encode(), ": no [Peer] section"),
        (b"<html><body>Sign in</body></html>", ":1: HTML"),
        (b'{"private_key": 1}', ": JSON, not a WireGuard configuration: download"),
        (b'[{"type": "wireguard"}]', ": JSON"),
        (b"\x7fELF\x02\x01\x01\0\0", ":1: NUL bytes: a program"),
        (b"PK\x03\x04\x14\0\0\0", ":1: NUL bytes: a ZIP archive: unpack it"),
        (b"\x89PNG\r\n\x1a\n", ":1: not UTF-8 text: a picture"),
        (b"\0\1\2", ":1: NUL bytes, so a binary file"),
        (base64.b64encode(GOOD.encode()), ": base64 of a configuration: put the text itself in stringData"),
        (base64.encodebytes(GOOD.encode()), ": base64 of a configuration"),
        (base64.b64encode(base64.b64encode(GOOD.encode()) + b"\n"), ": base64 of a configuration"),
        (PRIVATE.encode(), ": one key, not a configuration: put it behind"),
        (GOOD.replace("\n", "\\n").encode(), ": has '\\n' instead of line ends: write real ones"),
        (GOOD.replace("\n", " ").encode(), ": is all in one line, but [Interface] and every key need a line end"),
        (b"client\nremote vpn.example 1194\n<ca>\n", ": an OpenVPN configuration: download"),
        (b"apiVersion: v1\nkind: Secret\n", ": a Kubernetes manifest: mount the Secret"),
        (b"---\nserver: vpn.example\nport: 51820\n", ": YAML, not a WireGuard configuration"),
        (b"interface: wg0\n  public key: abc\n", ": the output of `wg show`"),
        (b"-----BEGIN PRIVATE KEY-----\n", ": PEM, a certificate or a key of another kind"),
        (b"wireguard://abc@192.0.2.1:51820", ": a link for another program"),
        (b"#!/bin/sh\nwg-quick up wg0\n", ": a script: name the configuration itself"),
        (b"{{ wg_config }}", ": a template that nobody filled in"),
        (b"[Interface]\nMTU = 1400\n\xff\xfe", ":3: not UTF-8 text"),
        (GOOD.encode("utf-16"), ":1: NUL bytes: UTF-16 text, as Windows writes it: save it as UTF-8"),
        (GOOD.encode("utf-16-le"), ":1: NUL bytes: UTF-16 text"),
        (GOOD.encode("utf-16-be"), ":1: NUL bytes: UTF-16 text"),
        (b"[Interface]\n# Z\xfcrich\n", ":2: not UTF-8 text"),
        (GOOD.replace("\n", "\r").encode(), ":1: a control character"),
        (b"#" * (64 * 1024 + 1), ": larger than 64 KiB"),
    ],
)
def test_files_that_are_something_else(tmp_path: Path, content: bytes, says: str) -> None:
    path = written(tmp_path, content)
    assert refusal(path).startswith(path + says)


def test_a_server_s_own_file_is_recognised(tmp_path: Path) -> None:
    text = with_line(10, "").replace("DNS = 10.64.0.1", "ListenPort = 51820")
    assert "this may be the server's own file: use the client's" in refusal(written(tmp_path, text))


def test_two_servers_in_one_file_belong_in_two(tmp_path: Path) -> None:
    text = GOOD + SECOND_PEER.replace("10.9.0.0/16", "0.0.0.0/0")
    message = refusal(written(tmp_path, text))
    assert "wg0.conf:13: AllowedIPs has a network that the peer in line 9 has: " in message
    assert "for fail-over, write each server into a file of its own, all in one folder (WG_CONFIG)" in message
    assert "write each server into a file of its own" in refusal(written(tmp_path, GOOD + GOOD))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "[::1]", "localhost", "LOCALHOST."])
def test_what_an_endpoint_in_the_pod_itself_can_do_is_told(tmp_path: Path, host: str) -> None:
    tunnel = load(written(tmp_path, with_line(10, f"Endpoint = {host}:51820")))
    (notice,) = tunnel.notices
    assert notice.startswith(f"{tunnel.path}:10: Endpoint is in this pod: ")
    assert "BYPASS_CIDRS" in notice
    assert tunnel.peers[0].endpoint in (("127.0.0.1", 51820), ("127.1.2.3", 51820), ("::1", 51820))


def test_which_applications_use_the_tunnel_is_no_choice_here(tmp_path: Path) -> None:
    """As the Android program exports it."""
    tunnel = load(written(tmp_path, with_line(5, "ExcludedApplications = com.example.a, com.example.b")))
    assert [notice.partition(": ")[2] for notice in tunnel.notices] == [
        "ignored: ExcludedApplications (line 5): the whole pod uses the tunnel"
    ]


def test_the_largest_file_that_is_read(tmp_path: Path) -> None:
    assert load(written(tmp_path, GOOD.encode().ljust(64 * 1024, b"#"))).name == "wg0"


def test_a_file_of_100_mb_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, GOOD)
    os.truncate(path, 100 * 1024 * 1024)
    monkeypatch.setattr("builtins.open", lambda *_: pytest.fail("it was opened"))
    with pytest.raises(ConfigError) as caught:
        load(path)
    monkeypatch.undo()
    assert "larger than 64 KiB" in str(caught.value)


def test_a_file_that_grows_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files in /proc have the size 0, others may grow after they were measured."""
    path = written(tmp_path, b"#" * 1_000_000)
    measured = SimpleNamespace(st_mode=stat.S_IFREG | 0o600, st_size=0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", lambda path: measured)
        with pytest.raises(ConfigError) as caught:
            load(path)
    assert "larger than 64 KiB" in str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    path = str(tmp_path / "wg0.conf")
    assert refusal(path).startswith(f"{path}: no such file or folder: mount it there, or name the right one")
    below = written(tmp_path, GOOD, "file") + "/wg0.conf"
    assert "no such file or folder" in refusal(below)


def test_a_link_to_nothing(tmp_path: Path) -> None:
    path = tmp_path / "wg0.conf"
    path.symlink_to("..data/wg0.conf")
    assert "no such file" in refusal(str(path))


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    assert "a folder, not a file" in refusal(str(tmp_path))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs on this system")
def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    path = str(tmp_path / "wg0.conf")
    os.mkfifo(path)
    assert "not a regular file" in refusal(path)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no /dev/zero on this system")
def test_a_device_is_not_read() -> None:
    assert "not a regular file" in refusal("/dev/zero")


@contextmanager
def unprivileged() -> Iterator[None]:
    """As root, for whom every file is readable: as nobody. Else nothing."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="Windows has no such modes")
def test_an_unreadable_file_and_an_unreadable_folder() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = written(folder, GOOD)
        folder.chmod(0o755)
        Path(path).chmod(0)
        with unprivileged():
            assert refusal(path).startswith(f"{path}: no permission to read it: correct its owner or mode")
        folder.chmod(0)
        with unprivileged(), pytest.raises(ConfigError, match="no permission to list it: correct its owner"):
            servers(name)
        folder.chmod(0o755)


@pytest.mark.parametrize("path", ["", "wg\0.conf", "a" * 5000])
def test_paths_that_cannot_be(path: str) -> None:
    for function in (load, servers):
        with pytest.raises(ConfigError) as caught:
            function(path)
        assert str(caught.value).isprintable()


def test_an_odd_file_name_stays_on_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(str(tmp_path / "a\nb\udce4.conf"))
    assert "a?b?.conf: no such file" in str(caught.value)


# ---------------------------------------------------------------------------- wg0.address

BARE = with_line(3, "")


@pytest.mark.parametrize(
    "text",
    [
        "10.0.0.2/24,fd00::2/64",
        "10.0.0.2/24\nfd00::2/64\n",
        "\ufeff# mine\r\n10.0.0.2/24 , \tfd00::2/64 # both\r\n\r\n",
    ],
)
def test_addresses_in_a_file_beside(tmp_path: Path, text: str) -> None:
    path = written(tmp_path, BARE)
    written(tmp_path, text.encode(), "wg0.address")
    tunnel = load(path)
    assert tunnel.addresses == (ip_interface("10.0.0.2/24"), ip_interface("fd00::2/64"))
    assert tunnel.notices == ()


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("", 1, "no address in this file"),
        ("# 10.0.0.2\n", 1, "no address in this file"),
        ("\nAddress = 10.0.0.2/32", 2, "Address has something that is not an IP address"),
        ("10.0.0.2/32\n10.0.0.3/40", 2, "a prefix length from 0 to 32"),
        ("10.0.0.2/32\n\n10.0.0.2/24", 3, "the same address as in line 1"),
        ("10.0.0.2/32,\nfd00::1", 1, "a comma with nothing beside it"),
        ("fd00::1\n127.0.0.1", 2, "a loopback address"),
        ("fd00::1\n\0", 2, "NUL bytes, so a binary file"),
        (f"fd00::1\n{PRIVATE}", 2, "not an IP address"),
    ],
)
def test_mistakes_in_the_file_beside(tmp_path: Path, text: str, line: int, says: str) -> None:
    path = written(tmp_path, BARE)
    beside = written(tmp_path, text, "wg0.address")
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{beside}:{line}: ")
    assert says in str(caught.value)
    assert PRIVATE[:8] not in str(caught.value)


def test_no_address_says_where_it_can_be_put(tmp_path: Path) -> None:
    path = written(tmp_path, BARE)
    beside = tmp_path / "wg0.address"
    assert refusal(path) == f"{path}:1: this [Interface] has no Address: add it, or put it in {beside}"
    beside.mkdir()
    with pytest.raises(ConfigError, match="address: a folder, not a file"):
        load(path)


def test_an_address_file_without_use_is_pointed_out(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    beside = written(tmp_path, "10.0.0.2", "wg0.address")
    tunnel = load(path)
    assert tunnel.addresses[0] == ip_interface("10.64.0.2/32")
    assert tunnel.notices == (f"{beside}: ignored: {path} has an Address of its own",)


# ---------------------------------------------------------------------------- servers()


def test_a_file_is_the_one_server(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD, "any.name")
    assert servers(path) == (path,)


def test_a_folder_has_its_servers_in_name_order(tmp_path: Path) -> None:
    for name in ("b.conf", "a.conf", "c.conf", "a.address", "note.txt", ".hidden.conf", ".conf"):
        written(tmp_path, GOOD, name)
    (tmp_path / "folder.conf").mkdir()
    assert servers(str(tmp_path)) == tuple(str(tmp_path / f"{name}.conf") for name in "abc")
    assert servers(f"{tmp_path}/") == servers(str(tmp_path))


def test_a_kubernetes_secret(tmp_path: Path) -> None:
    """A volume of a Secret: files are links into ..data, itself a link to a folder with a time in its name."""
    real = tmp_path / "..2026_11_20_13_42_00.123456789"
    real.mkdir()
    (tmp_path / "..data").symlink_to(real.name)
    for name, content in (("wg1.conf", GOOD), ("wg0.conf", BARE), ("wg0.address", "10.0.0.2")):
        written(real, content, name)
        (tmp_path / name).symlink_to(f"..data/{name}")
    found = servers(str(tmp_path))
    assert found == (str(tmp_path / "wg0.conf"), str(tmp_path / "wg1.conf"))
    assert [load(path).addresses[0].ip for path in found] == [ip_address("10.0.0.2"), ip_address("10.64.0.2")]


def test_a_pattern_selects_a_replicas_servers(tmp_path: Path) -> None:
    for name in ("web-1.b", "web-1.a", "web-10.a", "web-2.a", ".web-1.c", "web-1"):
        written(tmp_path, GOOD, f"{name}.conf")
    (tmp_path / "web-1.d.conf").mkdir()
    assert servers(f"{tmp_path}/web-1.*.conf") == tuple(str(tmp_path / f"web-1.{name}.conf") for name in "ab")
    assert servers(f"{tmp_path}/web-10.*") == (str(tmp_path / "web-10.a.conf"),)
    assert servers(f"{tmp_path}/*.conf") == servers(str(tmp_path)), "a folder is a pattern, too"
    star = written(tmp_path, GOOD, "web-*.conf")
    assert servers(star) == (star,), "a file of that very name"


def test_a_replica_without_a_file_is_told_which_there_are(tmp_path: Path) -> None:
    pattern = f"{tmp_path}/web-3.*.conf"

    def refused(path: str) -> str:
        with pytest.raises(ConfigError) as caught:
            servers(path)
        return str(caught.value)

    assert refused(pattern).startswith(f"{pattern}: no file matches: there is no *.conf at all: put one for this")
    for number in range(10):
        written(tmp_path, GOOD, f"web-{number % 3}.{number}.conf")
    assert "there is web-0.0.conf, web-0.3.conf, " in refused(pattern)
    assert ", web-2.2.conf and 2 more: put one for this replica beside them, or correct WG_CONFIG" in refused(pattern)
    assert "nothing has replaced $(NAME)" in refused(f"{tmp_path}/$(POD_NAME).*.conf")
    assert "nothing has replaced $(NAME)" in refused(f"{tmp_path}/$(POD_NAME).conf/")
    assert "no such file or folder" in refused(f"{tmp_path}/none/web-1.*.conf")


def test_a_folder_without_servers(tmp_path: Path) -> None:
    written(tmp_path, GOOD, "wg0.txt")
    with pytest.raises(ConfigError) as caught:
        servers(str(tmp_path))
    assert str(caught.value).startswith(f"{tmp_path}: a folder without *.conf: put")
    assert "there is wg0.txt: the name of the file, or of the Secret's key, has to end in .conf" in str(caught.value)


def test_a_folder_that_docker_made_for_a_file(tmp_path: Path) -> None:
    made = tmp_path / "wg0.conf"
    made.mkdir()
    for path in (tmp_path, made):
        with pytest.raises(ConfigError) as caught:
            servers(str(path))
        assert str(caught.value).startswith(f"{made}: a folder, not a file: what is mounted here is a folder")
        assert "bind mount" in str(caught.value)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        servers(str(tmp_path / "wireguard"))
    assert str(caught.value).startswith(f"{tmp_path}/wireguard: no such file or folder: mount it there")


# ---------------------------------------------------------------------------- what wgconfig does by itself


def bare(text: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What wgconfig alone makes of a text: the reason for each check."""
    parser = wgconfig.WGConfig()
    parser.read_from_fileobj(io.StringIO(text))
    peers = parser.get_peers(keys_only=False, include_disabled=True)
    return parser.get_interface(), list(peers.values())


def read(folder: Path, text: str) -> Tunnel:
    return load(written(folder, text))


def test_trap_a_byte_order_mark_loses_the_interface(tmp_path: Path) -> None:
    text = "\ufeff" + GOOD
    interface, peers = bare(text)
    assert (interface, len(peers)) == ({}, 1)
    assert read(tmp_path, text).private_key == PRIVATE


def test_trap_keys_are_case_sensitive(tmp_path: Path) -> None:
    text = with_line(2, f"privatekey = {PRIVATE}")
    assert "PrivateKey" not in bare(text)[0]
    assert read(tmp_path, text).private_key == PRIVATE


def test_trap_a_key_in_two_cases_is_two_keys(tmp_path: Path) -> None:
    text = with_line(4, "MTU = 1400\nmtu = 1500")
    assert {"MTU": 1400, "mtu": 1500}.items() <= bare(text)[0].items()
    assert ":5: MTU stands already in line 4" in refusal(written(tmp_path, text))


def test_trap_a_second_peer_with_the_same_key_overwrites_the_first(tmp_path: Path) -> None:
    text = second_peer(PublicKey=f"PublicKey = {SERVER}")
    assert [peer["Endpoint"] for peer in bare(text)[1]] == ["192.0.2.2:51820"]
    assert "the same PublicKey as in line 7" in refusal(written(tmp_path, text))


def test_trap_peers_without_a_key_overwrite_each_other(tmp_path: Path) -> None:
    text = with_line(7, "") + SECOND_PEER.replace("PublicKey", "#")
    assert len(bare(text)[1]) == 1
    assert ":6: this [Peer] has no PublicKey" in refusal(written(tmp_path, text))


@pytest.mark.parametrize("comment", ["#! Endpoint = 203.0.113.6:1", "Endpoint = 192.0.2.1:51820#! , 203.0.113.6:1"])
def test_trap_some_comments_are_live(tmp_path: Path, comment: str) -> None:
    text = with_line(10, comment)
    assert "203.0.113.6:1" in str(bare(text)[1][0]["Endpoint"])
    if comment.startswith("#"):
        assert ":6: this [Peer] has no Endpoint" in refusal(written(tmp_path, text))
    else:
        assert read(tmp_path, text).peers[0].endpoint == Endpoint("192.0.2.1", 51820)


def test_trap_a_whole_section_in_such_comments_is_live(tmp_path: Path) -> None:
    text = GOOD + SECOND_PEER.replace("\n", "\n#! ").replace("[", "#! [")
    assert len(bare(text)[1]) == 2
    assert len(read(tmp_path, text).peers) == 1


@pytest.mark.parametrize("junk", ["Lorem ipsum", "PrivateKey", "; a comment", "Jc = 4"])
def test_trap_junk_becomes_a_key(tmp_path: Path, junk: str) -> None:
    text = with_line(5, junk)
    assert junk.partition(" =")[0] in bare(text)[0]
    assert f"{tmp_path}/wg0.conf:5: " in refusal(written(tmp_path, text))


def test_trap_keys_before_any_section_are_dropped(tmp_path: Path) -> None:
    text = "MTU = 1400\n" + GOOD
    assert "MTU" not in bare(text)[0]
    assert ":1: MTU stands before any section" in refusal(written(tmp_path, text))


def test_trap_a_second_interface_replaces_the_first(tmp_path: Path) -> None:
    text = GOOD + "[Interface]\nMTU = 1400\n"
    assert bare(text)[0] == {"MTU": 1400}
    assert ":11: a second [Interface]" in refusal(written(tmp_path, text))


@pytest.mark.parametrize("header", ["[Peer", f"[Peer] PresharedKey = {PRESHARED}", "[Peer][Interface]"])
def test_trap_headers_are_read_loosely(tmp_path: Path, header: str) -> None:
    text = with_line(6, header)
    assert len(bare(text)[1]) == 1
    assert ":6: an unknown section" in refusal(written(tmp_path, text))


def test_trap_digits_become_a_number(tmp_path: Path) -> None:
    text = with_line(4, "DNS = 0123")
    assert bare(text)[0]["DNS"] == 123
    assert ":4: DNS has a number with zeroes in front" in refusal(written(tmp_path, text))


def test_trap_digits_of_other_scripts_are_numbers_too(tmp_path: Path) -> None:
    text = with_line(4, "MTU = ١٤٢٠")
    assert bare(text)[0]["MTU"] == 1420
    assert ":4: MTU has a character that is not ASCII" in refusal(written(tmp_path, text))
    text = with_line(4, "MTU = 142²")
    with pytest.raises(ValueError, match="invalid literal"):
        bare(text)
    assert ":4: MTU has a character that is not ASCII" in refusal(written(tmp_path, text))


def test_trap_after_an_exception_there_is_half_a_result(tmp_path: Path) -> None:
    text = GOOD + "[Other]\n" + SECOND_PEER
    parser = wgconfig.WGConfig()
    parser.read_from_fileobj(io.StringIO(text))
    with pytest.raises(ValueError, match="Unsupported section"):
        parser.get_interface()
    assert parser.get_interface()["PrivateKey"] == PRIVATE
    assert len(parser.get_peers()) == 1
    assert ":11: an unknown section" in refusal(written(tmp_path, text))


def test_trap_a_name_is_changed_into_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert wgconfig.WGConfig("wg0").filename == "/etc/wireguard/wg0.conf"
    written(tmp_path, GOOD, "wg0")
    monkeypatch.chdir(tmp_path)
    assert load("wg0").private_key == PRIVATE


class Absent(wgconfig.WGConfig):  # type: ignore[misc]  # wgconfig has no types
    def get_interface(self, include_details: bool = False) -> dict[str, Any]:
        return {}


class OneTooMany(wgconfig.WGConfig):  # type: ignore[misc]
    def get_peers(self, **options: bool) -> dict[str, Any]:
        peers: dict[str, Any] = super().get_peers(**options)
        return {**peers, "more": {"PublicKey": OTHER}}


class Raising(wgconfig.WGConfig):  # type: ignore[misc]
    def get_interface(self, include_details: bool = False) -> dict[str, Any]:
        raise RuntimeError(PRIVATE)


@pytest.mark.parametrize("other", [Absent, OneTooMany, Raising])
def test_wgconfig_must_agree_with_the_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: type) -> None:
    """Should a release of wgconfig read something else, then nothing is taken from it."""
    monkeypatch.setattr(wgconfig, "WGConfig", other)
    assert "wgconfig reads this file differently" in refusal(written(tmp_path, GOOD))


def test_the_types_come_without_wgconfig() -> None:
    """wgconfig is imported only by load(), the standard library's slow parts not at all."""
    import subprocess

    program = "import sys; before = set(sys.modules); import init_wg.config; print(*set(sys.modules) - before)"
    # -S: without the site module, which may import anything for an editable installation.
    done = subprocess.run(
        [sys.executable, "-S", "-c", program],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not {"wgconfig", "pathlib", "dataclasses", "argparse", "logging", "base64"} & set(done.stdout.split())
