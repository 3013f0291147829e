"""Kernel WireGuard as it is, without init_wg: two namespaces, wireguard-tools, and a capture between them."""

import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kernel.inside.shell import sh


@contextmanager
def capture(namespace: str) -> Iterator[list[str]]:
    """What tcpdump sees on a namespace's cable during this block: a line for each packet, after the block."""
    seen: list[str] = []
    command = ["ip", "netns", "exec", namespace, "tcpdump", "--immediate-mode", "-lntq", "-i", "cable"]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as tcpdump:
        assert tcpdump.stdout
        assert tcpdump.stderr
        try:
            while "listening on" not in (line := tcpdump.stderr.readline()):
                assert line, "tcpdump ended"
            yield seen
            time.sleep(0.3)  # a packet's way through tcpdump
        finally:
            tcpdump.terminate()
            seen.extend(filter(None, tcpdump.stdout.read().splitlines()))


@pytest.fixture
def tunnel(pair: tuple[str, str], tmp_path: Path) -> tuple[str, str]:
    """wg0 in both namespaces, 10.99.0.1 and .2, fd99::1 and ::2, over the cable."""
    public = []
    for name in pair:
        sh(f"umask 077; wg genkey >{tmp_path}/{name}")
        public.append(sh(f"wg pubkey <{tmp_path}/{name}").strip())
    for mine, theirs, name in ((1, 2, pair[0]), (2, 1, pair[1])):
        sh(
            f"""
            ip -n {name} link add wg0 type wireguard
            wg set wg0 private-key {tmp_path}/{name} listen-port 51820 fwmark 51820
            wg set wg0 peer {public[theirs - 1]} endpoint 192.0.2.{theirs}:51820 \
                allowed-ips 10.99.0.{theirs},fd99::{theirs}
            ip -n {name} address add 10.99.0.{mine}/24 dev wg0
            ip -n {name} address add fd99::{mine}/64 dev wg0
            ip -n {name} link set wg0 up
            """,
            name,
        )
    return pair


def test_two_namespaces_shake_hands_and_counters_move(tunnel: tuple[str, str]) -> None:
    left, right = tunnel
    assert sh("wg show wg0 latest-handshakes", left).split()[1] == "0"

    with capture(right) as seen:
        sh("ping -c2 -i0.2 -W5 10.99.0.2; ping -c2 -i0.2 -W5 fd99::2", left)

    for name in tunnel:
        (_, received, sent) = sh("wg show wg0 transfer", name).split()
        assert int(received) > 4 * 84
        assert int(sent) > 4 * 84
        assert abs(time.time() - int(sh("wg show wg0 latest-handshakes", name).split()[1])) < 60

    # On the cable: WireGuard's packets and the search for neighbours, and no ping.
    assert sum("UDP" in line for line in seen) >= 2 + 2 * 4, seen
    strangers = [line for line in seen if not re.search(r"\.51820: UDP|ARP|neighbor|router|multicast", line)]
    assert not strangers


def test_the_capture_would_have_seen_a_ping_beside_the_tunnel(tunnel: tuple[str, str]) -> None:
    left, right = tunnel
    with capture(right) as seen:
        sh("ping -c1 -W5 192.0.2.2", left)
    assert any("ICMP echo request" in line for line in seen), seen
