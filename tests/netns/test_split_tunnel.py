"""Split tunnels: what no AllowedIPs covers is not inside the tunnel, and an idle one is not dead."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from typing import NamedTuple

import pytest

from tests.lab.judge import Judge
from tests.lab.lab import FAMILIES, HTTP, INSIDE, TUNNEL_DNS, Lab, wait_until
from tests.netns.chaos import Watchdog

EVERYTHING = "AllowedIPs = 0.0.0.0/0, ::/0"
ONLY_RESOLVER = "AllowedIPs = 10.64.0.0/24"
WITHOUT_PRIVATE = (
    "AllowedIPs = 0.0.0.0/5, 8.0.0.0/7, 11.0.0.0/8, 12.0.0.0/6, 16.0.0.0/4, 32.0.0.0/3, 64.0.0.0/2, 128.0.0.0/3, "
    "160.0.0.0/5, 168.0.0.0/6, 172.0.0.0/12, 172.32.0.0/11, 172.64.0.0/10, 172.128.0.0/9, 173.0.0.0/8, 174.0.0.0/7, "
    "176.0.0.0/4, 192.0.0.0/9, 192.128.0.0/11, 192.160.0.0/13, 192.169.0.0/16, 192.170.0.0/15, 192.172.0.0/14, "
    "192.176.0.0/12, 192.192.0.0/10, 193.0.0.0/8, 194.0.0.0/7, 196.0.0.0/6, 200.0.0.0/5, 208.0.0.0/4"
)


class File(NamedTuple):
    """What is written in place of the ordinary AllowedIPs and DNS."""

    allowed: str
    dns: bool = False
    keepalive: int | None = None


def write(lab: Lab, file: File, name: str = "wg0.conf") -> None:
    path = lab.config(lab.folder / "config" / name, dns=file.dns, keepalive=file.keepalive)
    text = path.read_text()
    assert EVERYTHING in text
    path.write_text(text.replace(EVERYTHING, file.allowed))


@contextlib.contextmanager
def tunnelled(file: File) -> Iterator[Lab]:
    with Lab() as lab:
        write(lab, file)
        lab.init_wg("up", timeout=20)
        yield lab


def refusal(lab: Lab, address: str, kind: int, port: int = HTTP) -> float:
    """Seconds until a connection there, or a datagram, is refused."""
    started = time.monotonic()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with lab.pod.socket(family, kind) as client:
        client.settimeout(5)
        with pytest.raises(OSError) as refused:  # whichever call is told first
            client.connect((address, port))
            for _ in range(3):
                client.send(b"x")
                time.sleep(0.01)
        assert not isinstance(refused.value, TimeoutError)
    return time.monotonic() - started


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["tcp", "udp"])
@pytest.mark.parametrize(
    ("file", "outside"),
    [
        pytest.param(File(ONLY_RESOLVER), (4, 6), id="a small network"),
        pytest.param(File("AllowedIPs = 0.0.0.0/1, 128.0.0.0/1"), (6,), id="halves of one family"),
        pytest.param(File("AllowedIPs = ::/0"), (4,), id="IPv6 only"),
    ],
)
def test_what_is_in_neither_is_refused_at_once(file: File, outside: tuple[int, ...], kind: int) -> None:
    with Lab() as lab, Judge(lab) as judge:
        write(lab, file)
        lab.init_wg("lockdown")
        judge.mark()
        lab.init_wg("up", timeout=20)
        for family in FAMILIES:
            address = lab.web.addresses[family]
            if family in outside:
                assert refusal(lab, address, kind) < 1
            else:
                assert lab.traffic_source(family) == lab.provider.addresses[family]
        assert lab.init_wg("check").returncode == 0
        assert not judge.verdict().leaked


def test_what_the_peer_is_allowed_is_reached() -> None:
    with tunnelled(File(ONLY_RESOLVER)) as lab, lab.pod.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(2)
        client.connect((TUNNEL_DNS[4], 53))
        assert client.getsockname()[0] == INSIDE[4]
        client.send(bytes.fromhex("7764 0100 0001 0000 0000 0000 00 0002 0001"))
        assert client.recv(512)


def test_hundreds_of_networks_and_drift_in_them() -> None:
    many = [network for network in ip_network("0.0.0.0/0").subnets(new_prefix=10) if network.num_addresses][::2]
    with tunnelled(File("AllowedIPs = " + ", ".join(map(str, [*many, "10.64.0.0/16"])))) as lab:
        assert lab.init_wg("check").returncode == 0
        lab.pod.run(["nft", "list", "set", "inet", "init_wg", "inside_ip"])
        assert refusal(lab, "0.64.0.1", socket.SOCK_STREAM) < 1
        lab.pod.run(["ip", "route", "del", "default", "dev", "wg0", "table", "51820"])
        assert lab.init_wg("check", check=False).returncode == 5
        lab.init_wg("up")
        assert lab.init_wg("check").returncode == 0


@pytest.mark.parametrize("dead", [0, 1])
def test_one_of_several_peers_is_enough_whatever_the_order(dead: int) -> None:
    """Each has its own networks, the resolver is in none of them, and only one peer answers."""
    with Lab() as lab:
        write(lab, File("AllowedIPs = 10.64.1.0/24", dns=True))
        other = lab.config(lab.folder / "other.conf", provider=lab.provider2).read_text().partition("[Peer]")[2]
        with lab.config_path.open("a") as file:
            file.write("\n[Peer]" + other.replace(EVERYTHING, "AllowedIPs = 10.64.2.0/24"))
        (lab.provider, lab.provider2)[dead].silence()
        started = time.monotonic()
        done = lab.init_wg("up", timeout=30)
        assert time.monotonic() - started < 5
        assert f"DNS {TUNNEL_DNS[4]}, {TUNNEL_DNS[6]} is in no AllowedIPs" in done.stderr


# --- what is told ----------------------------------------------------------------------------------------------------


def test_up_and_check_tell_what_an_exclusion_list_closes() -> None:
    with Lab(tunnel_ipv6=False) as lab:
        path = lab.config()
        path.write_text(path.read_text().replace("AllowedIPs = 0.0.0.0/0", WITHOUT_PRIVATE))
        closed = "AllowedIPs leave out the private networks 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16"
        checked = lab.init_wg("check", str(path)).stdout
        assert closed in checked
        assert f"DNS {TUNNEL_DNS[4]} is in no AllowedIPs" in checked
        told = lab.init_wg("up", env={"BYPASS_CIDRS": "192.168.0.0/16"}).stderr
        assert "leave out the private networks 10.0.0.0/8, 172.16.0.0/12, and BYPASS_CIDRS does not name them" in told
        assert lab.traffic_source(4) == lab.provider.addresses[4]
        assert "leave out" not in lab.init_wg("up").stderr, "said once"


# --- the watchdog ----------------------------------------------------------------------------------------------------


def mute(lab: Lab) -> None:
    """Nobody inside answers a datagram, nor says that it did not arrive."""
    rules = "type filter hook output priority 0; oifname wg0 icmp type != echo-reply drop"
    lab.provider.run(["nft", "-f", "-"], stdin=f"table ip mute {{ chain out {{ {rules}; }}; }}")


@pytest.mark.parametrize(
    ("file", "prepare"),
    [
        pytest.param(File("AllowedIPs = 10.64.0.0/16"), None, id="idle"),
        pytest.param(File("AllowedIPs = 10.64.0.77/32"), mute, id="one host that answers nothing"),
        pytest.param(
            File("AllowedIPs = fc00:bbbb:bbbb:bb01::/64", dns=True, keepalive=25), None, id="IPv6 only, keepalive"
        ),
    ],
)
def test_an_idle_split_tunnel_is_not_dead(file: File, prepare: Callable[[Lab], None] | None) -> None:
    with Lab() as lab:
        write(lab, file)
        if prepare:
            prepare(lab)
        lab.init_wg("up", timeout=20)
        with Watchdog(lab) as watchdog:
            wait_until(watchdog.active, "green", 20)
            end = time.monotonic() + 20
            while time.monotonic() < end:
                assert watchdog.active(), watchdog.ask()
                time.sleep(0.25)
            assert "dead" not in watchdog.log()


def test_a_dead_split_tunnel_is() -> None:
    with tunnelled(File("AllowedIPs = 10.64.0.0/16")) as lab, Watchdog(lab) as watchdog:
        wait_until(watchdog.active, "green", 20)
        lab.provider.silence()
        wait_until(lambda: not watchdog.active(), "red", 20)
        wait_until(lambda: "the peer is dead" in watchdog.log(), "dead", 10)
        lab.provider.speak()
        wait_until(watchdog.active, "green again", 20)
