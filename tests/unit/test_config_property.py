"""init_wg.config under 10,000 mangled provider files: a whole tunnel, or one line that says why not.

The judge is a second reader, written here with regular expressions and nothing of the parser's: what the file
says by it must be what the tunnel has, to the last network. `derandomize` makes every run the same; a failing
example is printed as the operations that lead to it.
"""

from __future__ import annotations

import os
import re
import tempfile
import traceback
from base64 import b64decode, b64encode
from collections import Counter
from ipaddress import ip_address, ip_interface, ip_network
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from init_wg.config.tunnel import Endpoint, Tunnel, load
from init_wg.errors import ConfigError
from tests.unit.build import clamped

CONFIGS = Path(__file__).parent / "configs"
CORPUS = {path.name: path.read_bytes() for path in sorted(CONFIGS.glob("*.conf"))}
ADDRESSES = (CONFIGS / "man-wg.address").read_bytes()

# wireguard-tools' own description of a key: 32 bytes in base64, in the only spelling there is.
KEY = re.compile(r"[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=")
ANY_KEY = re.compile(rb"[A-Za-z0-9+/]{43}=")
ZEROES = "A" * 43 + "="
PIECE = 12  # characters of a key that must not be seen in a message

# ---------------------------------------------------------------------------- mangling

Operation = tuple[str, int, int, bytes]

SNIPPETS = [
    b"[Interface]", b"[Peer]", b"[peer", b"[Bogus]", b"#! ", b"# ", b"=", b",", b"\n", b"\r\n", b"\r", b"\0", b"\t",
    b"\xef\xbb\xbf", b"\xff", "\u0661\u0662".encode(), "\u2028".encode(), "\x85".encode(), "\u00a0".encode(),
    "\u00b2".encode(), "\u00fc".encode(), "\U0001f9e6".encode(), "\u202e".encode(), b"\x1b[31m", b" ", b"0", b"/", b":",
    b"MTU = 1420", b"mtu=1280", b"ListenPort = 0", b"PrivateKey", b"Endpoint = [::1]:70000", b"AllowedIPs = ::/0",
    b"AllowedIPs = 10.0.0.0/8", b"DNS = 9.9.9.9", b"DNS = corp.example", b"PostUp = reboot", b"Jc = 4", b"FwMark = 0x1",
    b"PersistentKeepalive = off", b"Address = 10.9.8.7/32", b"SaveConfig = true", b"Table = off", b"9" * 5000,
    b"PresharedKey = bm90IGEgcmVhbCBrZXksIGJ1dCAzMiBieXRlcyBsb25nISE=",
    b"PublicKey = dGhlIGtleSBvZiBhbm90aGVyIHNlcnZlciwgbm90IHJlYWw=",
]  # fmt: skip

MANGLINGS = [
    "flip", "byte", "insert", "insert line", "delete line", "duplicate line", "join lines", "cut line",
    "swap lines", "truncate", "shuffle sections", "duplicate section", "change case", "crlf", "nothing",
]  # fmt: skip

OPERATIONS = st.tuples(
    st.sampled_from(MANGLINGS),
    st.integers(0, 2**16),
    st.integers(0, 2**16),
    st.sampled_from(SNIPPETS),
)


def mangled(data: bytes, operations: list[Operation]) -> bytes:
    for operation in operations:
        data = mangled_once(data, *operation)
    return data


def mangled_once(data: bytes, name: str, where: int, other: int, snippet: bytes) -> bytes:
    at = where % (len(data) + 1)
    lines = data.split(b"\n")
    line, second = where % len(lines), other % len(lines)
    match name:
        case "flip" if at < len(data):
            return data[:at] + bytes([data[at] ^ (1 << other % 8)]) + data[at + 1 :]
        case "byte":
            return data[:at] + bytes([other % 256]) + data[at + 1 :]
        case "insert":
            return data[:at] + snippet + data[at:]
        case "insert line":
            lines.insert(line, snippet)
        case "delete line":
            del lines[line]
        case "duplicate line":
            lines.insert(second, lines[line])
        case "join lines" if line + 1 < len(lines):
            lines[line : line + 2] = [lines[line] + lines[line + 1]]
        case "cut line":
            cut = other % (len(lines[line]) + 1)
            lines[line : line + 1] = [lines[line][:cut], lines[line][cut:]]
        case "swap lines":
            lines[line], lines[second] = lines[second], lines[line]
        case "truncate":
            return data[:at]
        case "shuffle sections" | "duplicate section":
            parts = re.split(rb"(?m)^(?=\[)", data)
            part = parts[where % len(parts)] if name == "duplicate section" else parts.pop(where % len(parts))
            parts.insert(other % (len(parts) + 1), part)
            return b"".join(parts)
        case "change case":
            lines[line] = re.sub(rb"^[^=]*", lambda found: found[0].swapcase(), lines[line])
        case "crlf":
            return data.replace(b"\n", b"\r\n")
    return b"\n".join(lines)


# ---------------------------------------------------------------------------- the judge


class Said(NamedTuple):
    """What a file says: for each section its name, and its keys (in small letters) with their texts."""

    sections: list[tuple[str, dict[str, list[str]]]]

    def named(self, name: str) -> list[dict[str, list[str]]]:
        return [keys for found, keys in self.sections if found == name]


def second_reading(data: bytes) -> Said:
    """Asserts as it reads: whatever has no plain meaning must not have become a tunnel."""
    text = re.sub(r"\A\ufeff", "", data.decode("utf-8"))
    said = Said([])
    for line in re.split(r"\r?\n", text):
        assert not re.search(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]", line)
        content = re.sub(r"#.*\Z", "", line).strip(" \t")
        if content in ("", "\ufeff"):
            assert content == ""
        elif header := re.fullmatch(r"\[(interface|peer)\]", content, re.IGNORECASE):
            said.sections.append((header[1].lower(), {}))
        else:
            pair = re.fullmatch(r"(\w+)[ \t]*=[ \t]*(.*)", content, re.ASCII)
            assert pair, "a line that is no pair"
            keys = said.sections[-1][1]
            keys.setdefault(pair[1].lower(), []).extend(part.strip(" \t") for part in pair[2].split(","))
    return said


ONCE = {"privatekey", "mtu", "listenport", "fwmark", "table", "saveconfig", "publickey", "presharedkey", "endpoint"}
ONCE |= {"persistentkeepalive"}
HOOKS = {"preup", "postup", "predown", "postdown"}
INTERFACE_KEYS = {"privatekey", "address", "dns", "mtu", "listenport", "fwmark", "table", "saveconfig"} | HOOKS
PEER_KEYS = {"publickey", "presharedkey", "endpoint", "allowedips", "persistentkeepalive"}


def assert_well_formed(tunnel: Tunnel, data: bytes, address_data: bytes | None) -> None:
    said = second_reading(data)
    (interface,) = said.named("interface")
    peers = said.named("peer")
    assert interface.keys() <= INTERFACE_KEYS
    for keys in (interface, *peers):
        assert all(len(values) == 1 for name, values in keys.items() if name in ONCE)
    assert_interface(tunnel, interface, address_data)
    assert len(tunnel.peers) == len(peers) > 0
    for number, keys in enumerate(peers):
        assert_peer(tunnel, number, keys)
    assert len({peer.public_key for peer in tunnel.peers}) == len(peers)
    for one, two in combinations(tunnel.peers, 2):
        assert not set(one.allowed_ips) & set(two.allowed_ips)
    for name in HOOKS & interface.keys():
        assert name in " ".join(tunnel.notices).lower()
    assert all(notice.isprintable() for notice in tunnel.notices)
    assert_nothing_of_a_key([*tunnel.notices, repr(tunnel)], [tunnel.private_key])


def canonical(text: str) -> str:
    """Without the bits beyond the 32 bytes."""
    return b64encode(b64decode(text)).decode()


def assert_interface(tunnel: Tunnel, said: dict[str, list[str]], address_data: bytes | None) -> None:
    assert KEY.fullmatch(tunnel.private_key)
    assert [tunnel.private_key] == [clamped(text) for text in said["privatekey"]]
    if "address" in said:
        addresses = said["address"]
    else:
        assert address_data is not None
        plain = re.sub(r"#.*", "", address_data.decode("utf-8-sig"))
        addresses = re.findall(r"[^\s,]+", plain)
    assert list(tunnel.addresses) == [ip_interface(text) for text in addresses]
    assert tunnel.addresses
    for address in tunnel.addresses:
        assert not (address.ip.is_loopback or address.ip.is_multicast or address.ip.is_unspecified)
        assert address.network.prefixlen > 0
    servers = [text for text in said.get("dns", []) if re.fullmatch(r"[0-9.]+|.*:.*", text)]
    assert list(tunnel.dns) == list(dict.fromkeys(ip_address(text) for text in servers))
    assert set(tunnel.search) == set(said.get("dns", [])) - set(servers)
    assert all(re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*)", name) for name in tunnel.search)
    assert [str(tunnel.mtu)] == said.get("mtu", ["None"])
    assert tunnel.mtu is None or 576 <= tunnel.mtu <= 65535
    assert [str(tunnel.listen_port)] == said.get("listenport", ["None"])
    assert tunnel.listen_port is None or 1 <= tunnel.listen_port <= 65535


def assert_peer(tunnel: Tunnel, number: int, said: dict[str, list[str]]) -> None:
    peer = tunnel.peers[number]
    assert said.keys() <= PEER_KEYS
    assert [peer.public_key] == [canonical(text) for text in said["publickey"]]
    assert KEY.fullmatch(peer.public_key)
    preshared = [canonical(text) for text in said.get("presharedkey", [ZEROES])]
    assert [peer.preshared_key or ZEROES] == preshared
    assert peer.preshared_key is None or KEY.fullmatch(peer.preshared_key)
    assert list(peer.allowed_ips) == list(dict.fromkeys(ip_network(text, strict=False) for text in said["allowedips"]))
    assert peer.allowed_ips
    assert isinstance(peer.endpoint, Endpoint)
    host, port = peer.endpoint
    assert 1 <= port <= 65535
    (text,) = said["endpoint"]
    if bracketed := re.fullmatch(r"\[(.*)\]:([1-9][0-9]*)", text):
        assert (ip_address(host), str(port)) == (ip_address(bracketed[1]), bracketed[2])
    else:
        assert f"{host}:{port}" == text
        assert re.fullmatch(r"[A-Za-z0-9_.-]+", host)
    (keepalive,) = said.get("persistentkeepalive", ["off"])
    assert str(peer.keepalive) == ("0" if keepalive.lower() == "off" else keepalive)
    assert 0 <= peer.keepalive <= 65535


def assert_nothing_of_a_key(texts: list[str], keys: list[str]) -> None:
    for key in keys:
        pieces = {key[start : start + PIECE] for start in range(len(key) - PIECE)}
        assert not any(piece in text for text in texts for piece in pieces)


def assert_one_clear_line(error: ConfigError, paths: tuple[Path, ...], contents: list[bytes]) -> None:
    message = str(error)
    assert message.isprintable()
    assert len(message) < 400
    assert message.startswith(tuple(f"{path}:" for path in paths))
    keys = {found.decode() for content in contents for found in ANY_KEY.findall(content)}
    assert_nothing_of_a_key([message, "".join(traceback.format_exception(error))], sorted(keys))


# ---------------------------------------------------------------------------- the tests


def outcome(folder: Path, original: bytes, data: bytes, address_data: bytes | None) -> str:
    """Loads the file and judges the result. Any exception but ConfigError is a failure."""
    path, beside = folder / "wg0.conf", folder / "wg0.address"
    path.write_bytes(data)
    path.chmod(0o600)
    if address_data is not None:
        beside.write_bytes(address_data)
    try:
        tunnel = load(str(path))
    except ConfigError as error:
        assert_one_clear_line(error, (path, beside), [original, data, *filter(None, [address_data])])
        return "refused"
    assert_well_formed(tunnel, data, address_data)
    return "read"


#: Mangled files; fewer while somebody works on the code, since all of them take a minute.
EXAMPLES = 9000 if os.environ.get("CI") else 900


def test_mangled_files() -> None:
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:

        @settings(max_examples=EXAMPLES, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
        @given(st.sampled_from(sorted(CORPUS)), st.lists(OPERATIONS, min_size=1, max_size=5))
        def run(name: str, operations: list[Operation]) -> None:
            data = mangled(CORPUS[name], operations)
            # man-wg.conf needs its .address; beside the others it is only pointed out.
            outcomes[outcome(Path(folder), CORPUS[name], data, ADDRESSES)] += 1

        run()
    # Both ends must have been reached often, else the mangling is too strong or too weak to prove anything.
    assert outcomes.total() >= EXAMPLES
    assert min(outcomes["read"], outcomes["refused"]) > EXAMPLES / 9


def test_mangled_address_files() -> None:
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:

        @settings(max_examples=EXAMPLES // 9, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
        @given(st.lists(OPERATIONS, min_size=1, max_size=3))
        def run(operations: list[Operation]) -> None:
            data = CORPUS["man-wg.conf"]
            outcomes[outcome(Path(folder), data, data, mangled(ADDRESSES, operations))] += 1

        run()
    assert outcomes.total() >= EXAMPLES // 9
    assert min(outcomes["read"], outcomes["refused"]) > EXAMPLES / 90


def test_the_corpus_itself_is_well_formed(tmp_path: Path) -> None:
    """The judge accepts what is right, so that its silence above means something."""
    for name, data in CORPUS.items():
        assert outcome(tmp_path, data, data, ADDRESSES) == "read", name
