"""`init-wg peer ...` where no network changes: texts byte for byte, refusals, and codes that a phone can read."""

from __future__ import annotations

import json
import os
import re
import struct
import textwrap
import zlib
from ipaddress import ip_interface
from pathlib import Path

import pytest
import zxingcpp

from init_wg import cli
from init_wg.config import server_settings
from init_wg.errors import ConfigError
from init_wg.server import enrol, keys, qr, store
from init_wg.server.design import peerfile
from init_wg.server.design import register as registers
from tests.unit import build
from tests.unit.test_server_peerfile import BARE, WHOLE


@pytest.fixture
def volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A server's volume: phone is in PEERS, old no more, own was added and keeps its private key."""
    for name in [name for name in os.environ if name.startswith(("WG_", "ENABLE_", "LOG_", "SERVER"))]:
        monkeypatch.delenv(name)
    settings = {"WG_MODE": "server", "SERVER_DATA": str(tmp_path), "WG_INTERFACE": "nowhere0",
                "INTERNAL_SUBNET6": "fd13:13::/64"}  # fmt: skip
    enrol.enrol(server_settings.read({**settings, "PEERS": "phone,old"}))
    server = server_settings.read({**settings, "PEERS": "phone"})
    register = enrol.enrol(server).register
    store.save(str(tmp_path), registers.with_peer(register, "own", build.key("own"), enrol.makes(server), 254))
    for name, value in {**settings, "PEERS": "phone"}.items():
        monkeypatch.setenv(name, value)
    return tmp_path


LIST = """\
NAME   ADDRESSES                  STATE     HANDSHAKE  RECEIVED  SENT
phone  10.13.13.2, fd13:13::2     active    never      0 B       0 B
old    10.13.13.3, fd13:13::3     inactive  never      0 B       0 B
own    10.13.13.4, fd13:13::4     active    never      0 B       0 B
"""


def run(*words: str) -> int:
    return cli.run(["peer", *words])


def test_the_list(volume: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert run("list") == 0
    assert run("list", "--json") == 0
    text, _, data = capfdbinary.readouterr().out.decode().partition("{")
    assert [line.split() for line in text.splitlines()] == [line.split() for line in LIST.splitlines()]
    rows = json.loads("{" + data)["peers"]
    assert rows[1] == {
        "name": "old", "active": False, "needs_new_file": False, "addresses": ["10.13.13.3", "fd13:13::3"],
        "endpoint": None, "latest_handshake": 0, "received_bytes": 0, "sent_bytes": 0,
    }  # fmt: skip
    whole = text + data
    kept = re.findall(r'"[A-Za-z0-9+/]{43}="', (volume / "server.json").read_text())
    assert len(kept) == 9  # the positive control: the server's, and of three peers all but one private key
    assert not [key for key in kept if key.strip('"') in whole]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["add", "phone"], "peer add phone: this name is in PEERS: change it there"),
        (["add", "Phone"], "peer add Phone: this name is in PEERS: change it there"),
        (["remove", "phone"], "peer remove phone: this name is in PEERS: change it there"),
        (["add", "../x"], "peer add: a name has 1 to 31 letters"),
        (["add", "x" * 32], "peer add: a name has 1 to 31 letters"),
        (["show", "nobody"], "peer show nobody: there is no such peer: init-wg peer list shows them"),
        (["secret", "phone", "nobody"], "peer secret nobody: there is no such peer"),
        (["secret", "own"], "peer secret own: this peer keeps its private key itself"),
        (["show", "own", "--qr"], "peer show own: this peer keeps its private key itself"),
        (["show", "phone", "--qr"], "peer show phone --qr: stdout is no terminal"),
        ([], "usage: init-wg peer --help"),
        (["list", "--yaml"], "usage: init-wg peer --help"),
        (["show"], "usage: init-wg peer --help"),
        (["show", "phone", "--qr", "--png"], "usage: init-wg peer --help"),
        (["show", "--force"], "usage: init-wg peer --help"),
        (["show", "phone", "--jpeg"], "usage: init-wg peer --help"),
        (["add", "x", "--private-key", "y"], "usage: init-wg peer --help"),
        (["secret"], "usage: init-wg peer --help"),
        (["secret", "--all"], "usage: init-wg peer --help"),
    ],
)
def test_refusals_change_nothing(words: list[str], says: str, volume: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = (volume / "server.json").read_bytes()
    assert run(*words) == 2
    shown = capfd.readouterr()
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    assert line.startswith(f"init-wg: error: {says}")
    assert (volume / "server.json").read_bytes() == before


def test_names_of_the_file_are_decided_there(
    volume: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    listed = volume.parent / "peers"
    listed.write_text("tablet\n")
    monkeypatch.setenv("PEERS", "")
    monkeypatch.setenv("PEERS_FILE", str(listed))
    assert run("remove", "tablet") == 2
    assert "peer remove tablet: this name is in PEERS_FILE: change it there" in capfd.readouterr().err


def test_a_client_has_no_peers_of_its_own(
    volume: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WG_MODE", "egress")
    for words in (["list"], ["show", "phone"], ["add", "x"], ["remove", "x"], ["secret", "phone"]):
        assert run(*words) == 2
        assert "only a server has peers of its own: set WG_MODE=server" in capfd.readouterr().err


def test_before_the_first_run_there_is_nothing_to_show(
    volume: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (volume / "server.json").unlink()
    assert run("list") == 2
    assert "no server has run with this volume yet: run init-wg up first" in capfd.readouterr().err


def test_a_picture_is_nothing_for_a_terminal(
    volume: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    theirs, ours = os.openpty()
    with os.fdopen(theirs, "rb"), os.fdopen(ours, "w") as terminal:
        monkeypatch.setattr("sys.stdout", terminal)
        assert run("show", "phone", "--png") == 2
    assert "peer show phone --png: stdout is a terminal: send it to a file (> phone.png)" in capfd.readouterr().err


def test_outdated_files_are_those_of_the_peers_that_were_there() -> None:
    server = server_settings.read({"PEERS": "a"})
    register = registers.listed(registers.Register(keys.pair()[0], {}), ("a", "b"), enrol.makes(server), 254)
    register, _ = registers.moved(register, ("10.13.13.0/24",), 100.0)
    assert not register.needs_new_file(register.peers["a"], 0)
    register, _ = registers.moved(register, ("10.14.0.0/24",), 200.0)
    register = registers.with_peer(register, "c", None, enrol.makes(server), 254)
    assert [register.needs_new_file(peer, 150.0) for peer in register.peers.values()] == [True, True, False]
    assert not register.needs_new_file(register.peers["a"], 201.0)
    without = registers.without(register, "a")
    assert without.outdated == (3,)
    assert registers.decode(registers.encode(without)) == without


def test_a_suspended_peer_stays_out_until_it_is_removed_or_listed() -> None:
    server = server_settings.read({"PEERS": "a"})
    register = registers.Register(keys.pair()[0], {})
    register = registers.suspended(registers.with_peer(register, "x", None, enrol.makes(server), 254), "x")
    assert not registers.listed(register, ("a",), enrol.makes(server), 254).peers["x"].active
    assert not registers.known(register, ("a",)).peers["x"].active
    assert registers.listed(register, ("x",), enrol.makes(server), 254).peers["x"].active
    with pytest.raises(ConfigError, match="peer remove y: there is no such peer"):
        registers.suspended(register, "y")


SECRET = f"""\
apiVersion: v1
kind: Secret
metadata:
  name: init-wg
type: Opaque
stringData:
  phone.conf: |
{textwrap.indent(BARE, "    ")}\
  tv.conf: |
    [Interface]
"""


def test_the_secret_of_kubernetes() -> None:
    assert peerfile.secret({"phone": BARE, "tv": "[Interface]\n"}) == SECRET


def test_where_the_server_is() -> None:
    def host(url: str, *addresses: str) -> str:
        pod = build.pod()._replace(addresses=tuple(map(ip_interface, addresses)))
        return peerfile.host(server_settings.read({"PEERS": "1", "SERVERURL": url}), pod)

    assert host("vpn.example.com", "10.42.0.5/24") == "vpn.example.com"
    assert host("auto", "2a00:1450::5/64", "10.42.0.5/24", "8.8.4.4/24") == "8.8.4.4"
    assert host("auto", "10.42.0.5/24", "2a00:1450::5/64") == "2a00:1450::5"
    with pytest.raises(ConfigError, match="SERVERURL is auto, and this pod has no public address"):
        host("auto", "10.42.0.5/24", "fd00::5/64", "100.64.0.9/10")
    with pytest.raises(ConfigError, match="SERVERURL is not set"):
        host("", "8.8.4.4/24")


# --- codes ---------------------------------------------------------------------------------------------------------


def read(rows: list[list[bool]]) -> str:
    """The text in a code; rows of dark (True) and light modules or pixels. The judge is not who drew it."""
    large = [[dark for dark in row for _ in range(4)] for row in rows for _ in range(4)]
    pixels = bytes(0 if dark else 255 for row in large for dark in row)
    (found,) = zxingcpp.read_barcodes(memoryview(pixels).cast("B", (len(large), len(large[0]))))
    return str(found.text)


def test_a_terminal_shows_the_file() -> None:
    lines = qr.terminal(WHOLE).decode().splitlines()
    assert all(line.startswith("\033[40;97m") and line.endswith("\033[0m") for line in lines)
    bare = [re.sub(r"\033\[[0-9;]*m", "", line) for line in lines]
    assert max(map(len, bare)) <= 80
    # White on black: a block is light.
    rows = [[mark not in light for mark in line] for line in bare for light in ("█▀", "█▄")]
    assert read(rows) == WHOLE


def test_a_png_shows_the_file() -> None:
    data = qr.picture(WHOLE, "png")
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    parts, at = dict[bytes, bytes](), 8
    while at < len(data):
        (length,) = struct.unpack_from("!I", data, at)
        parts[data[at + 4 : at + 8]] = data[at + 8 : at + 8 + length]
        at += length + 12
    width, height, depth, colours = struct.unpack_from("!IIBB", parts[b"IHDR"])
    assert (depth, colours) == (1, 0)
    raw, line = zlib.decompress(parts[b"IDAT"]), (width + 7) // 8 + 1
    assert len(raw) == height * line
    rows, above = list[list[bool]](), bytes(line - 1)
    for start in range(0, len(raw), line):
        method, coded = raw[start], raw[start + 1 : start + line]
        assert method in (0, 2)  # as it is, or the difference to the row above (PNG, 9.2)
        above = bytes((a + b) % 256 for a, b in zip(coded, above, strict=True)) if method else coded
        rows.append([not above[x // 8] >> (7 - x % 8) & 1 for x in range(width)])
    assert len(rows) == height
    assert read(rows) == WHOLE


def test_an_svg_shows_the_file() -> None:
    text = qr.picture(WHOLE, "svg").decode()
    size, scale = int(re.search(r'width="(\d+)"', text)[1]), 4  # type: ignore[index]
    modules = size // scale
    rows = [[False] * modules for _ in range(modules)]
    x = y = 0.0
    for word, numbers in re.findall(r"([Mmh])([-\d. ]+)", re.findall(r' d="([^"]*)"', text)[-1]):
        values = [float(number) for number in numbers.split()]
        if word == "h":
            for column in range(int(x), int(x + values[0])):
                rows[int(y)][column] = True
            x += values[0]
        else:
            x, y = (values[0], values[1]) if word == "M" else (x + values[0], y + values[1])
    assert read(rows) == WHOLE
    assert 'fill="#fff"' in text  # on a dark page, too
