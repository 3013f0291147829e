"""UDP flows from before the lockdown are nobody's who came in, whatever their port; and who comes in is answered."""

from __future__ import annotations

import contextlib
import socket
from typing import NamedTuple

import pytest

from tests.lab.judge import Judge
from tests.lab.lab import AF, Family, Lab

SERVER = 9777


class Flow(NamedTuple):
    """Both ends of a flow, in the test's hands."""

    client: socket.socket
    server: socket.socket
    address: tuple[str, int]

    def push_and_answer(self) -> None:
        """The server speaks first, as one that streams does; the client answers what it hears, or speaks anyway."""
        self.server.sendto(b"push", self.address)
        with contextlib.suppress(OSError):
            self.client.recv(100)
        with contextlib.suppress(OSError):
            self.client.sendto(b"answer", self.server.getsockname()[:2])


def begin(lab: Lab, ends: contextlib.ExitStack, family: Family, port: int, *, connected: bool) -> Flow:
    client = ends.enter_context(lab.pod.socket(AF[family], socket.SOCK_DGRAM))
    server = ends.enter_context(lab.web.socket(AF[family], socket.SOCK_DGRAM))
    server.bind((lab.web.addresses[family], SERVER))
    client.bind((lab.pod.addresses[family], port))
    client.settimeout(0.3)
    if connected:
        client.connect(server.getsockname()[:2])
    client.sendto(b"question", server.getsockname()[:2])
    assert server.recv(100) == b"question"
    return Flow(client, server, (lab.pod.addresses[family], port))


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(("port", "connected"), [(5000, True), (45000, True), (45000, False)])
def test_an_older_flow_is_nobodys_who_came_in(plain: Lab, family: Family, port: int, connected: bool) -> None:
    with contextlib.ExitStack() as ends, Judge(plain) as judge:
        flow = begin(plain, ends, family, port, connected=connected)
        plain.init_wg("lockdown")
        judge.mark()
        flow.push_and_answer()
        plain.init_wg("up")
        for _ in range(2):
            flow.push_and_answer()
        plain.pod.run(["nft", "delete", "rule", "inet", "init_wg", "input", "handle", _handle(plain)])
        plain.init_wg("up")  # its rule is put back, and remembers
        plain.init_wg("up")
        flow.push_and_answer()
        plain.pod.run(["nft", "flush", "ruleset"])
        plain.init_wg("up")
        flow.push_and_answer()
        assert not judge.verdict().leaked, str(judge.verdict())


def _handle(lab: Lab) -> str:
    listed = lab.pod.run(["nft", "--handle", "list", "chain", "inet", "init_wg", "input"]).stdout
    return next(line.rpartition(" ")[2] for line in listed.splitlines() if "@older" in line)


@pytest.mark.parametrize("port", [5001, 40500])
def test_a_server_is_reached_whatever_its_port(plain: Lab, port: int) -> None:
    plain.init_wg("up")
    server = plain.serve(plain.pod, *(f"echo:[{plain.pod.addresses[family]}]:{port}" for family in plain.families))
    assert server.stdout
    assert server.stdout.readline() == b"ready\n"
    for family in plain.families:
        for client in (plain.node, plain.far):
            assert plain.inbound(client, family, port=port, udp=True), f"IPv{family}, {client.name}"
    assert plain.init_wg("check").returncode == 0
