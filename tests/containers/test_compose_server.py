"""compose/compose.server.yaml on a real daemon, as a newcomer starts it: two commands, and a peer is in.

The peer is the product in egress mode, on another network; its Endpoint is the port that Docker publishes.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .engine import IMAGE, LAB_IMAGE, ROOT, Engine, compose_command, docker_command, wait_until
from .stack import SERVER_FILES

INTERNET, HOST, WEB = "198.51.100.0/24", "198.51.100.1", "198.51.100.3"
HOME, CLIENT = "192.168.33.0/24", "192.168.33.7"
PROJECT = "server"
CONFINED = ["--cap-drop=ALL", "--cap-add=NET_ADMIN", "--security-opt=no-new-privileges", "--read-only"]


class Server:
    """The internet, and the stack of the file once up() was called."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.engine, self.folder = engine, folder

    def compose(self, *arguments: str, peers: str = "") -> subprocess.CompletedProcess[str]:
        files = [word for file in SERVER_FILES for word in ("-f", str(ROOT / file))]
        command = compose_command()
        assert command
        return self.engine.run(*command, "-p", PROJECT, *files, *arguments, SERVERURL=HOST, PEERS=peers)

    def up(self, peers: str = "") -> None:
        """peers: PEERS, "" for the file's own."""
        started = self.compose("up", "--detach", peers=peers)
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

    def seen_as(self) -> str:
        """The address that the web sees the app come from; "" for none."""
        fetch = ["wget", "-q", "-t", "1", "-T", "2", "-O", "-", f"http://{WEB}/"]
        return self.engine.try_docker("exec", "app", *fetch) or ""


@pytest.fixture(scope="module")
def server(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(engine, tmp_path_factory.mktemp("server"))
    engine.docker("network", "create", "--subnet", INTERNET, "--gateway", HOST, "internet")
    engine.docker("network", "create", "--subnet", HOME, "home")
    # Docker keeps its networks apart; one of these is the internet.
    engine.inside("iptables", "-I", "DOCKER-USER", "-j", "ACCEPT")
    try:
        engine.docker(
            "run", "--detach", "--init", "--name=web", "--network=internet", f"--ip={WEB}", LAB_IMAGE,
            "python3", "/lab/web.py",
        )  # fmt: skip
        yield made
    finally:
        made.compose("down", "--volumes", "--timeout", "2")
        for name in ("app", "client", "web"):
            engine.try_docker("rm", "--force", name)
        engine.try_docker("network", "rm", "internet", "home")


def test_two_commands_and_a_peer_is_in(server: Server) -> None:
    server.up()
    assert server.asked("init-wg", "peer", "show", "phone", "--qr", "--force").stdout.count("\n") > 20
    refused = server.asked("init-wg", "peer", "show", "phone", "--qr")
    assert refused.returncode == 2
    assert "stdout is no terminal" in refused.stdout + refused.stderr  # version 1 of compose mixes them

    server.join(server.asked("init-wg", "peer", "show", "phone").stdout)
    seen = wait_until(server.seen_as, "the web is reached", 30)
    assert seen
    assert server.peers()["phone"]["latest_handshake"]
    # The control: without the server the same app reaches nothing.
    server.engine.docker("pause", name_of(server))
    assert server.seen_as() == ""
    server.engine.docker("unpause", name_of(server))
    wait_until(server.seen_as, "the web is reached again", 30)


def name_of(server: Server) -> str:
    """The container; version 1 of compose writes server_server_1, version 2 server-server-1."""
    label = f"label=com.docker.compose.project={PROJECT}"
    return server.engine.docker("ps", "--all", "--filter", label, "--format", "{{.Names}}")


def test_a_new_container_is_the_same_server(server: Server) -> None:
    """`down` and `up`, as for a new image: the volume has the keys, and the peer comes back by itself."""
    before = server.asked("init-wg", "peer", "show", "phone").stdout
    server.compose("down", "--timeout", "2")
    assert server.seen_as() == ""
    server.up()
    assert server.asked("init-wg", "peer", "show", "phone").stdout == before
    wait_until(server.seen_as, "the peer is back", 60)


def test_a_peer_that_leaves_the_list_is_refused(server: Server) -> None:
    assert server.seen_as()
    server.up("laptop")
    assert server.peers()["phone"]["active"] is False
    assert server.seen_as() == ""
    server.leave()


def test_it_has_what_it_needs_and_no_more(server: Server) -> None:
    config = json.loads(server.engine.docker("inspect", name_of(server)))[0]["HostConfig"]
    assert (config["CapDrop"], config["CapAdd"]) == (["ALL"], ["NET_ADMIN"])
    assert config["ReadonlyRootfs"] is True
    assert config["SecurityOpt"] == ["no-new-privileges"]
    assert not config["Privileged"]
    assert not config.get("Sysctls")
    # A log is read by many.
    logged = server.engine.run(docker_command(), "logs", name_of(server))
    file = server.asked("init-wg", "peer", "show", "phone").stdout
    secrets = [line.split(" = ")[1] for line in file.splitlines() if line.startswith(("PrivateKey", "PresharedKey"))]
    assert [len(secret) for secret in secrets] == [44, 44]
    assert not [secret for secret in secrets if secret in logged.stdout + logged.stderr]
