"""An endpoint in the pod itself: a program that hides WireGuard's packets, and sends them on to its own server.

What `up` says about it is true: the program reaches its server only if BYPASS_CIDRS names the server.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.lab.lab import Lab

#: UDP from port 51900 of the loopback to a server and back. A real one would also change the bytes.
RELAY = """
import selectors, socket, sys
here = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); here.bind(("127.0.0.1", 51900))
there = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); there.bind(("", 0))
server, client = (sys.argv[1], 51820), None
both = selectors.DefaultSelector(); both.register(here, 1); both.register(there, 1)
print("ready", flush=True)
while True:
    for key, _ in both.select():
        try:
            data, source = key.fileobj.recvfrom(65536)
            if key.fileobj is here:
                client = source
                there.sendto(data, server)
            elif client:
                here.sendto(data, client)
        except OSError:
            continue
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(tunnel_ipv6=False) as lab:
        argv = [sys.executable, "-c", RELAY, lab.provider.addresses[4]]
        relay = lab.pod.popen(argv, stdout=subprocess.PIPE)
        assert relay.stdout
        assert relay.stdout.readline() == b"ready\n"
        text = lab.config_path.read_text().replace(f"{lab.provider.addresses[4]}:51820", "localhost:51900")
        assert "localhost" in text
        lab.config_path.write_text(text)
        yield lab


def test_the_server_must_be_named(lab: Lab) -> None:
    ended = lab.init_wg("up", env={"HANDSHAKE_TIMEOUT": "2"}, check=False)
    assert ended.returncode == 4
    assert "Endpoint is in this pod: " in ended.stderr
    assert lab.traffic_source(4) is None


def test_a_named_server_is_reached(lab: Lab) -> None:
    env = {"BYPASS_CIDRS": lab.provider.addresses[4]}
    lab.init_wg("up", env=env)
    assert lab.traffic_source(4) == lab.provider.addresses[4]
    assert lab.init_wg("check", env=env).returncode == 0
