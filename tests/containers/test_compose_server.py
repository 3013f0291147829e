"""compose/compose.server.yaml on a real daemon, as a newcomer starts it: two commands, and a peer is in.

The peer is the product in egress mode, on another network; its Endpoint is the port that Docker publishes.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .engine import IMAGE, LAB_IMAGE, Engine, docker_command, wait_until
from .stack import INTERNET, SERVER_FILES, Project, make_internet, remove_internet, seen_as

HOST = str(next(INTERNET.hosts()))  # the daemon's side of the internet, where it publishes ports
HOME, CLIENT = "192.168.33.0/24", "192.168.33.7"
CONFINED = ["--cap-drop=ALL", "--cap-add=NET_ADMIN", "--security-opt=no-new-privileges", "--read-only"]


class Server(Project):
    """The stack of the file, once up() was called; and a peer elsewhere."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        super().__init__(engine, "server", SERVER_FILES)
        self.folder = folder

    def up(self, peers: str = "") -> None:
        """peers: PEERS, "" for the file's own."""
        self.settings = {"SERVERURL": HOST, "PEERS": peers}
        started = self.compose("up", "--detach")
        assert started.returncode == 0, started.stderr
        wait_until(lambda: self.asked("init-wg-health").returncode == 0, "the server is ready", 40)

    def asked(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """A command in the server's container, without a terminal."""
        return self.compose("exec", "-T", "server", *argv)

    def peers(self) -> dict[str, dict[str, object]]:
        told = json.loads(self.asked("init-wg", "peer", "list", "--json").stdout)
        return {peer["name"]: peer for peer in told["peers"]}

    def join(self, text: str) -> None:
        """The peer's file into the product's own egress mode; an app joins its network, as in compose.yaml."""
        file = self.folder / "wg0.conf"
        file.touch(mode=0o600)
        file.write_text(text)
        able = [*CONFINED, "--tmpfs=/run", "--device=/dev/net/tun", f"--volume={file}:/etc/wireguard/wg0.conf:ro"]
        there = ["--name=client", "--network=home", f"--ip={CLIENT}", "--env=WG_IMPLEMENTATION=userspace"]
        self.engine.docker("run", "--detach", *there, *able, IMAGE, "init-wg-watchdog")
        self.engine.docker("run", "--detach", "--name=app", "--network=container:client", LAB_IMAGE, "sleep", "1000")

    def leave(self) -> None:
        self.engine.docker("rm", "--force", "app", "client")

    def source(self) -> str:
        """Where the web sees the app's requests come from; "" when there is no answer."""
        return seen_as(self.engine, "app")


@pytest.fixture(scope="module")
def server(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(engine, tmp_path_factory.mktemp("server"))
    try:
        make_internet(engine)
        engine.docker("network", "create", "--subnet", HOME, "home")
        yield made
    finally:
        made.compose("down", "--volumes", "--timeout", "2")
        remove_internet(engine, "app", "client")
        engine.try_docker("network", "rm", "home")


def test_two_commands_and_a_peer_is_in(server: Server) -> None:
    server.up()
    assert server.asked("init-wg", "peer", "show", "phone", "--qr", "--force").stdout.count("\n") > 20
    refused = server.asked("init-wg", "peer", "show", "phone", "--qr")
    assert refused.returncode == 2
    assert "stdout is no terminal" in refused.stdout + refused.stderr  # version 1 of compose mixes them

    server.join(server.asked("init-wg", "peer", "show", "phone").stdout)
    seen = wait_until(server.source, "the web is reached", 30)
    assert seen
    assert server.peers()["phone"]["latest_handshake"]
    # The control: without the server the same app reaches nothing.
    server.engine.docker("pause", server.name("server"))
    assert server.source() == ""
    server.engine.docker("unpause", server.name("server"))
    wait_until(server.source, "the web is reached again", 30)


def test_a_new_container_is_the_same_server(server: Server) -> None:
    """`down` and `up`, as for a new image: the volume has the keys, and the peer comes back by itself."""
    before = server.asked("init-wg", "peer", "show", "phone").stdout
    server.compose("down", "--timeout", "2")
    assert server.source() == ""
    server.up()
    assert server.asked("init-wg", "peer", "show", "phone").stdout == before
    wait_until(server.source, "the peer is back", 60)


def test_a_peer_that_leaves_the_list_is_refused(server: Server) -> None:
    assert server.source()
    server.up("laptop")
    assert server.peers()["phone"]["active"] is False
    assert server.source() == ""
    server.leave()


def test_it_has_what_it_needs_and_no_more(server: Server) -> None:
    config = json.loads(server.engine.docker("inspect", server.name("server")))[0]["HostConfig"]
    assert (config["CapDrop"], config["CapAdd"]) == (["ALL"], ["NET_ADMIN"])
    assert config["ReadonlyRootfs"] is True
    assert config["SecurityOpt"] == ["no-new-privileges"]
    assert not config["Privileged"]
    assert not config.get("Sysctls")
    # A log is read by many.
    logged = server.engine.run(docker_command(), "logs", server.name("server"))
    file = server.asked("init-wg", "peer", "show", "phone").stdout
    secrets = [line.split(" = ")[1] for line in file.splitlines() if line.startswith(("PrivateKey", "PresharedKey"))]
    assert [len(secret) for secret in secrets] == [44, 44]
    assert not [secret for secret in secrets if secret in logged.stdout + logged.stderr]
