"""init_wg.kernel.device: the differences that are told, and both languages in which they are."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from init_wg.errors import KernelError
from init_wg.kernel import device, netlink, rtnetlink_write, walk, wg_netlink, wg_uapi
from init_wg.kernel.wg_netlink import _peer as _kernel_peer
from init_wg.model import wireguard
from init_wg.model.secret import Secret
from init_wg.model.state import FWMARK, TUN, Device, Peer
from init_wg.model.wireguard import Change, Traffic
from tests.unit import build

PEER = Peer(build.SERVER, build.PRESHARED, build.ENDPOINT, frozenset(["0.0.0.0/0", "::/0"]), 25)
OTHER = Peer(build.OTHER_SERVER, None, ("2001:db8::1", 51820), frozenset(["10.9.0.0/16"]), 0)
DEVICE = Device(build.PRIVATE, 51820, FWMARK, frozenset([PEER]))
QUIET, AWAKE = PEER._replace(keepalive=0), ((build.SERVER, 25),)
NOTHING = Change(None, None, None, (), ())
ANOTHER_KEY = Secret(build.key("another"))


# --- differences -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("have", "want", "expected"),
    [
        (DEVICE, DEVICE, NOTHING),
        (None, DEVICE, Change(build.PRIVATE, 51820, FWMARK, (), (QUIET,), AWAKE)),
        (None, DEVICE._replace(listen_port=None), Change(build.PRIVATE, None, FWMARK, (), (QUIET,), AWAKE)),
        (None, DEVICE._replace(peers=frozenset([OTHER])), Change(build.PRIVATE, 51820, FWMARK, (), (OTHER,))),
        (DEVICE, DEVICE._replace(listen_port=None), NOTHING),
        (DEVICE, DEVICE._replace(listen_port=4), NOTHING._replace(listen_port=4)),
        # No session is another key's: the peers begin anew.
        (
            DEVICE,
            DEVICE._replace(private_key=ANOTHER_KEY),
            Change(ANOTHER_KEY, None, None, (build.SERVER,), (QUIET,), AWAKE),
        ),
        (DEVICE._replace(fwmark=0), DEVICE, NOTHING._replace(fwmark=FWMARK)),
        (DEVICE, DEVICE._replace(fwmark=0), NOTHING._replace(fwmark=0)),
        (DEVICE, DEVICE._replace(peers=frozenset()), NOTHING._replace(removed=(build.SERVER,))),
        (DEVICE, DEVICE._replace(peers=frozenset([PEER, OTHER])), NOTHING._replace(peers=(OTHER,))),
        (
            DEVICE,
            DEVICE._replace(peers=frozenset([OTHER])),
            NOTHING._replace(removed=(build.SERVER,), peers=(OTHER,)),
        ),
        (
            DEVICE,
            DEVICE._replace(peers=frozenset([PEER._replace(keepalive=0)])),
            NOTHING._replace(keepalives=((build.SERVER, 0),)),
        ),
        (
            DEVICE,
            DEVICE._replace(peers=frozenset([PEER._replace(keepalive=7, allowed_ips=OTHER.allowed_ips)])),
            NOTHING._replace(peers=(PEER._replace(allowed_ips=OTHER.allowed_ips),), keepalives=((build.SERVER, 7),)),
        ),
        # A server is no public key: another endpoint, or another preshared key, is another server's or account's.
        *(
            (
                DEVICE,
                DEVICE._replace(peers=frozenset([PEER._replace(**other)])),
                NOTHING._replace(removed=(build.SERVER,), peers=(QUIET._replace(**other),), keepalives=AWAKE),
            )
            for other in (
                {"endpoint": (build.ENDPOINT[0], 443)},
                {"endpoint": ("2001:db8::1", 51820)},
                {"preshared_key": None},
            )
        ),
    ],
)
def test_only_what_differs_is_told(have: Device | None, want: Device, expected: Change) -> None:
    assert wireguard.change(have, want) == expected


def test_the_mark_comes_before_the_peers() -> None:
    """Or the first handshake leaves unmarked, is refused, and waits 5 s."""
    assert Change._fields[2:] == ("fwmark", "removed", "peers", "keepalives")


# --- the kernel's language ---------------------------------------------------------------------------------------

networks = st.lists(build.network().map(str), min_size=1, max_size=5).map(frozenset)
peers = st.builds(
    Peer,
    public_key=st.binary(min_size=32, max_size=32).map(wireguard.base64),
    preshared_key=st.none() | st.just(build.PRESHARED),
    endpoint=st.none() | st.tuples((build.ipv4 | build.ipv6).map(str), build.ports),
    allowed_ips=networks,
    keepalive=st.integers(0, 65535),
)


secrets = st.binary(min_size=32, max_size=32).map(wireguard.base64)
changes = st.builds(
    Change,
    private_key=st.none() | secrets.map(Secret),
    listen_port=st.none() | st.integers(0, 65535),
    fwmark=st.none() | st.integers(0, 2**32 - 1),
    removed=st.lists(secrets, max_size=2).map(tuple),
    peers=st.lists(peers, max_size=2).map(tuple),
    keepalives=st.lists(st.tuples(secrets, st.integers(0, 65535)), max_size=2).map(tuple),
)


@settings(max_examples=60, deadline=None)
@given(change=changes)
def test_the_messages_to_the_kernel_are_pyroute2s_own(change: Change) -> None:
    wanted = [
        ("PRIVATE_KEY", change.private_key),
        ("LISTEN_PORT", change.listen_port),
        ("FWMARK", change.fwmark),
    ]
    told: list[list[tuple[str, object]]] = [
        [(f"WGDEVICE_A_{key}", value) for key, value in wanted if value is not None]
    ]
    told += [[("WGDEVICE_A_PEERS", [{"attrs": [*_key(key), ("WGPEER_A_FLAGS", 1)]}])] for key in change.removed]
    told += [[("WGDEVICE_A_PEERS", [{"attrs": _attributes(peer)}])] for peer in change.peers]
    for key, seconds in change.keepalives:  # WGPEER_F_UPDATE_ONLY: no peer is made by that
        alone = [("WGPEER_A_FLAGS", 4), ("WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL", seconds)]
        told.append([("WGDEVICE_A_PEERS", [{"attrs": [*_key(key), *alone]}])])
    assert list(wg_netlink.messages("wg0", change)) == [_pyroute2("wg0", part) for part in told if part]


def _key(key: str) -> list[tuple[str, object]]:
    return [("WGPEER_A_PUBLIC_KEY", key)]


def _attributes(peer: Peer) -> list[tuple[str, object]]:
    networks = [(network, *network.split("/")) for network in sorted(peer.allowed_ips)]
    allowed = [
        {
            "attrs": [
                ("WGALLOWEDIP_A_FAMILY", 10 if ":" in network else 2),
                ("WGALLOWEDIP_A_IPADDR", ip_address(address).packed),
                ("WGALLOWEDIP_A_CIDR_MASK", int(length)),
            ]
        }
        for network, address, length in networks
    ]
    host, port = peer.endpoint or ("", 0)
    return [
        *_key(peer.public_key),
        ("WGPEER_A_FLAGS", 2),  # WGPEER_F_REPLACE_ALLOWEDIPS: "peers are set whole"
        ("WGPEER_A_PRESHARED_KEY", peer.preshared_key or wireguard.NO_KEY),
        ("WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL", peer.keepalive),
        *([("WGPEER_A_ENDPOINT", {"addr": host, "port": port})] if peer.endpoint else []),
        ("WGPEER_A_ALLOWEDIPS", allowed),
    ]


def _pyroute2(name: str, attributes: list[tuple[str, object]]) -> bytes:
    message = rtnetlink_write.messages("generic.wireguard").wgmsg()
    message["cmd"], message["version"] = 1, 1
    message["attrs"] = [("WGDEVICE_A_IFNAME", name), *attributes]
    message.encode()
    return bytes(message.data[walk.HEADER.size :])


@settings(max_examples=60, deadline=None)
@given(peer=peers)
def test_any_peer_comes_back_from_the_kernels_language(peer: Peer) -> None:
    (body,) = wg_netlink.messages("wg0", NOTHING._replace(peers=(peer,)))
    ((_, encoded),) = walk.attribute_list(walk.attributes(body, 4)[8])
    assert _kernel_peer(walk.attributes(encoded)) == (peer, Traffic(0, 0, 0))


def test_a_peer_with_thousands_of_networks_is_told_in_parts() -> None:
    """An attribute has at most 64 KiB; only the first part replaces what is there."""
    networks = frozenset(f"2001:db8::{n + 1:x}/128" for n in range(2500))
    bodies = list(wg_netlink.messages("wg0", NOTHING._replace(peers=(PEER._replace(allowed_ips=networks),))))
    told = []
    for body in bodies:
        assert len(body) < 1 << 16
        ((_, encoded),) = walk.attribute_list(walk.attributes(body, 4)[8])
        fields = walk.attributes(encoded)
        told.append((netlink.number(fields[3]), _kernel_peer(fields)[0].allowed_ips))
    assert [flags for flags, _ in told] == [2, 0, 0]
    assert frozenset().union(*(some for _, some in told)) == networks


# --- wireguard-go's language -------------------------------------------------------------------------------------


@contextmanager
def answering(folder: Path, answer: str) -> Iterator[list[str]]:
    """A real socket that gives one answer to whatever is asked, and keeps the questions."""
    asked: list[str] = []
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "wg0.sock"))
    listener.listen()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            question = b""
            while not question.endswith(b"\n\n"):
                question += connection.recv(1 << 16)
            asked.append(question.decode())
            connection.sendall(answer.encode())

    thread = threading.Thread(target=serve)
    thread.start()
    yield asked
    thread.join(5)
    listener.close()


@pytest.fixture
def sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(wg_uapi, "SOCKETS", str(tmp_path))
    return tmp_path


def hexed(key: str) -> str:
    return wireguard.from_base64(key).hex()


ANSWER = f"""\
private_key={hexed(build.PRIVATE)}
listen_port=51820
fwmark=51820
public_key={hexed(build.SERVER)}
preshared_key={hexed(build.PRESHARED)}
protocol_version=1
endpoint=192.0.2.1:51820
last_handshake_time_sec=1700000000
last_handshake_time_nsec=500000000
tx_bytes=10
rx_bytes=20
persistent_keepalive_interval=25
allowed_ip=0.0.0.0/0
allowed_ip=::/0
public_key={hexed(build.OTHER_SERVER)}
preshared_key={"0" * 64}
protocol_version=1
endpoint=[2001:db8::1]:51820
last_handshake_time_sec=0
last_handshake_time_nsec=0
tx_bytes=0
rx_bytes=0
persistent_keepalive_interval=0
allowed_ip=10.9.0.0/16
errno=0

"""


def test_on_linux_reading_wireguard_go(sockets: Path) -> None:
    with answering(sockets, ANSWER) as asked:
        reading = device.read("wg0", TUN)
    assert asked == ["get=1\n\n"]
    assert reading
    assert reading.device == DEVICE._replace(peers=frozenset([PEER, OTHER]))
    assert reading.traffic == {
        build.SERVER: Traffic(1700000000.5, 20, 10),
        build.OTHER_SERVER: Traffic(0, 0, 0),
    }


def test_on_linux_reading_a_wireguard_go_that_is_not_configured(sockets: Path) -> None:
    with answering(sockets, "errno=0\n\n"):
        reading = device.read("wg0", TUN)
    assert reading
    assert reading.device == Device(Secret("A" * 43 + "="), 0, 0, frozenset())


@pytest.mark.parametrize("answer", ["", "private_key=", "private_key=abc\n"])
def test_on_linux_half_an_answer_is_none(sockets: Path, answer: str) -> None:
    with answering(sockets, answer):
        assert device.read("wg0", TUN) is None


def test_nobody_answers(sockets: Path) -> None:
    assert device.read("wg0", TUN) is None
    (sockets / "wg0.sock").write_text("")  # what a killed wireguard-go leaves, as far as connecting goes
    assert device.read("wg0", TUN) is None
    with pytest.raises(KernelError, match="does not answer"):
        device.write("wg0", TUN, NOTHING)


def test_a_foreign_interface_is_no_device() -> None:
    assert device.read("wg0", "dummy") is None


def test_on_linux_writing_wireguard_go(sockets: Path) -> None:
    """The order is the device's: the mark, what goes, what comes; every peer whole."""
    change = Change(build.PRIVATE, 51820, FWMARK, (ANOTHER_KEY,), (PEER, OTHER))
    with answering(sockets, "errno=0\n\n") as asked:
        device.write("wg0", TUN, change)
    assert asked[0].splitlines() == [
        "set=1",
        f"private_key={hexed(build.PRIVATE)}",
        "listen_port=51820",
        "fwmark=51820",
        f"public_key={hexed(ANOTHER_KEY)}",
        "remove=true",
        f"public_key={hexed(build.SERVER)}",
        f"preshared_key={hexed(build.PRESHARED)}",
        "endpoint=192.0.2.1:51820",
        "persistent_keepalive_interval=25",
        "replace_allowed_ips=true",
        "allowed_ip=0.0.0.0/0",
        "allowed_ip=::/0",
        f"public_key={hexed(build.OTHER_SERVER)}",
        f"preshared_key={'0' * 64}",
        "endpoint=[2001:db8::1]:51820",
        "persistent_keepalive_interval=0",
        "replace_allowed_ips=true",
        "allowed_ip=10.9.0.0/16",
        "",
    ]


def test_on_linux_a_keepalive_alone_leaves_the_rest_of_its_peer(sockets: Path) -> None:
    with answering(sockets, "errno=0\n\n") as asked:
        device.write("wg0", TUN, NOTHING._replace(keepalives=AWAKE))
    assert asked == [f"set=1\npublic_key={hexed(build.SERVER)}\nupdate_only=true\npersistent_keepalive_interval=25\n\n"]


def test_on_linux_what_does_not_differ_is_not_written(sockets: Path) -> None:
    with answering(sockets, "errno=0\n\n") as asked:
        device.write("wg0", TUN, NOTHING._replace(fwmark=0))
    assert asked == ["set=1\nfwmark=0\n\n"]


def test_on_linux_an_error_of_wireguard_go_is_raised(sockets: Path) -> None:
    with answering(sockets, "errno=-22\n\n"), pytest.raises(OSError, match="Invalid argument") as caught:
        device.write("wg0", TUN, NOTHING)
    assert caught.value.errno == 22
