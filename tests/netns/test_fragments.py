"""Packets that do not fit: WireGuard's own in fragments, and what routers on the way say about it."""

from __future__ import annotations

import socket
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.lab.judge import Judge
from tests.lab.lab import AF, INSIDE, Family, Lab, Member, wait_until

SIZE = 200_000
SINK = 9555
FINGERPRINT = "from watchdog.facts import Kernel; print(tuple(Kernel('wg0').fingerprint())[1:4])"


@contextmanager
def listener(member: Member, family: Family) -> Iterator[socket.socket]:
    with member.socket(AF[family], socket.SOCK_STREAM) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((member.addresses[family], SINK))
        server.listen()
        server.settimeout(60)
        yield server


def moved(lab: Lab, family: Family, *, upload: bool) -> int:
    """How many of SIZE bytes come through the tunnel, to the web host or from it."""
    count = 0
    with listener(lab.web, family) as server, lab.pod.socket(AF[family], socket.SOCK_STREAM) as client:
        client.settimeout(60)
        client.connect((lab.web.addresses[family], SINK))
        peer, _ = server.accept()
        with peer:
            peer.settimeout(60)
            sender, receiver = (client, peer) if upload else (peer, client)

            def send() -> None:
                sender.sendall(bytes(SIZE))
                sender.shutdown(socket.SHUT_WR)

            thread = threading.Thread(target=send, daemon=True)
            thread.start()
            try:
                while more := receiver.recv(1 << 16):
                    count += len(more)
            except OSError:
                pass
            thread.join(1)
    return count


@pytest.mark.parametrize("endpoint", [4, 6])
def test_a_tunnel_wider_than_the_uplink(endpoint: Family) -> None:
    """A file's MTU of 1420 on an overlay's 1420: every full packet comes in two pieces; the kernel's leave so, too."""
    with Lab(mtu=1420, endpoint_family=endpoint) as lab, Judge(lab) as judge:
        for path in (lab.config_path, lab.folder / "servers" / "1-provider.conf"):
            lab.config(path, mtu=1420)
        lab.init_wg("lockdown")
        judge.mark()
        told = lab.init_wg("up").stderr
        fitting = 1360 if endpoint == 4 else 1328  # multiples of 16: the provider's 1420 fills packets up to these
        assert "do not fit eth0, which takes 1420: " in told
        assert lab.kernel_wireguard == ("full packets are sent in fragments" in told)
        assert f"write MTU = {fitting}" in told
        assert "do not fit eth0" in lab.init_wg("status").stdout
        for family in lab.families:
            assert moved(lab, family, upload=True) == SIZE, f"IPv{family}, to the web"
            assert moved(lab, family, upload=False) == SIZE, f"IPv{family}, from the web"
        assert not judge.verdict().leaked, str(judge.verdict())


@pytest.mark.parametrize(("uplink", "way"), [(1500, 1460), (9000, 1500)])
def test_a_way_narrower_than_the_uplink(uplink: int, way: int) -> None:
    """A router behind the node tells what fits: that is learnt, and is no drift."""
    with Lab(mtu=uplink) as lab:
        lab.node.run(["ip", "link", "set", "inet0", "mtu", str(way)])
        lab.internet.run(["ip", "link", "set", "node", "mtu", str(way)])
        told = lab.init_wg("up").stderr
        assert "do not fit" not in told
        before = lab.pod.run([sys.executable, "-c", FINGERPRINT], env={"PYTHONHASHSEED": "0"}).stdout
        assert int(lab.pod.run(["cat", "/sys/class/net/wg0/mtu"]).stdout) == 1420
        for family in lab.families:
            assert moved(lab, family, upload=True) == SIZE, f"IPv{family}"
        lab.init_wg("check")
        after = lab.pod.run([sys.executable, "-c", FINGERPRINT], env={"PYTHONHASHSEED": "0"}).stdout
        assert after == before


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return int(0xFFFF - total)


def test_a_path_mtu_inside_the_tunnel_is_no_drift(plain: Lab) -> None:
    """A router behind the provider sends "fragmentation needed": the kernel remembers it as a route that ages."""
    plain.init_wg("up")
    web = plain.web.addresses[4]
    fingerprint = [sys.executable, "-c", FINGERPRINT]
    before = plain.pod.run(fingerprint, env={"PYTHONHASHSEED": "0"}).stdout
    with plain.pod.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.connect((web, 7))
        client.send(b"x")
        client.recv(100)
        about = struct.pack("!BBHHHBBH", 0x45, 0, 1480, 1, 0x4000, 60, 17, 0)
        about += socket.inet_aton(INSIDE[4]) + socket.inet_aton(web)
        about += struct.pack("!HHHH", client.getsockname()[1], 7, 1460, 0)
        message = struct.pack("!BBHHH", 3, 4, 0, 0, 1000) + about
        message = message[:2] + struct.pack("!H", checksum(message)) + message[4:]
        with plain.provider.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as router:
            router.sendto(message, (INSIDE[4], 0))
        learnt = ["ip", "route", "get", web]
        wait_until(lambda: "mtu 1000" in plain.pod.run(learnt).stdout, "the exception")
    plain.init_wg("check")
    for _ in range(2):  # it ages
        assert plain.pod.run(fingerprint, env={"PYTHONHASHSEED": "0"}).stdout == before
