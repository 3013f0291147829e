"""Ports that a provider forwards to the pod, and that change while it runs: VPN_INPUT_PORTS and its file."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.lab import INSIDE, Lab, wait_until
from tests.netns.chaos import Watchdog

PORTS = (49160, 51999, 52005)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """The provider forwards all of its ports to the pod; these answer there."""
    with Lab(tunnel_ipv6=False) as lab:
        table = "table ip forwarded { chain pre { type nat hook prerouting priority dstnat; "
        table += f'iifname "eth0" tcp dport 49000-53000 dnat to {INSIDE[4]}; }}; }}'
        lab.provider.run(["nft", "-f", "-"], stdin=table)
        server = lab.serve(lab.pod, *(f"http:[0.0.0.0]:{port}" for port in PORTS))
        assert server.stdout
        assert server.stdout.readline() == b"ready\n"
        yield lab


def reached(lab: Lab) -> list[int]:
    """From far away, by the provider's own address."""
    return [p for p in PORTS if lab.request(lab.far, lab.provider.addresses[4], p, timeout=0.8) is not None]


def test_ranges(lab: Lab) -> None:
    for listed, expected in (("51000-52000", [51999]), ("49160,52000-52010", [49160, 52005]), ("none", [])):
        lab.init_wg("up", env={"VPN_INPUT_PORTS": listed})
        assert reached(lab) == expected
        assert lab.init_wg("check", env={"VPN_INPUT_PORTS": listed}).returncode == 0


def write(file: Path, text: str) -> None:
    """As by a client that replaces the file at once."""
    new = file.with_suffix(".new")
    new.write_text(text)
    new.rename(file)


def test_a_file_that_changes(lab: Lab, tmp_path: Path) -> None:
    """Written by rename and in place; a connection that is open stays when its port is closed for others."""
    file = tmp_path / "forwarded_port"
    env = {"VPN_INPUT_PORTS": "52005", "VPN_INPUT_PORTS_FILE": str(file)}
    with Watchdog(lab, env=env) as watchdog:
        wait_until(watchdog.active, "the tunnel", 30)
        wait_until(lambda: reached(lab) == [52005], "only what is listed", 10)
        write(file, "49160\n")
        wait_until(lambda: reached(lab) == [49160, 52005], "the first port", 15)
        with lab.far.socket(socket.AF_INET, socket.SOCK_STREAM) as stream:
            stream.settimeout(5)
            stream.connect((lab.provider.addresses[4], 49160))
            file.write_text("51999\n")
            wait_until(lambda: reached(lab) == [51999, 52005], "the second port", 15)
            stream.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert stream.recv(100).startswith(b"HTTP/")
        write(file, "port 49160\n")
        wait_until(lambda: "forwarded_port:1: not a port" in watchdog.log(), "the warning", 15)
        assert reached(lab) == [51999, 52005]
        file.unlink()
        wait_until(lambda: reached(lab) == [52005], "no port", 15)
        assert watchdog.active()
