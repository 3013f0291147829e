"""Docker's embedded resolver (127.0.0.11), on a daemon whose own upstream is a resolver that tells what it was asked.

With a loopback address in the host's resolv.conf the daemon asks from its own network: no rule of the stack's reaches
that query, and no capture at the stack's sees it. Only what the upstream was asked is evidence.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.lab import services

from .engine import LAB_IMAGE, Engine, wait_until
from .stack import INTERNET, PROJECT, STACK, TUNNEL, Stack

#: A caching resolver on the host, which the daemon asks itself; or another, which it asks from the stack's network.
ON_HOST, ELSEWHERE = "127.0.0.1", str(next(INTERNET.hosts()))
TUNNEL_DNS = TUNNEL.partition("/")[0]
NAME, UNKNOWN = "www.example.com", "no-such-service"
BY_TUNNEL, BY_UPSTREAM = "203.0.113.1", "203.0.113.2"


class Resolver(NamedTuple):
    """A resolver that answers every name with one address."""

    log: Path

    @property
    def asked(self) -> list[str]:
        """The names it was asked for so far; the watchdog asks for none, which is the root."""
        return [name for line in self.log.read_text().splitlines() if (name := line.split(" ")[2])]


class Docker(NamedTuple):
    """The stack, the provider's resolver, and the daemon's."""

    stack: Stack
    tunnel: Resolver
    upstream: Resolver


@contextlib.contextmanager
def resolver(folder: Path, network: Path, answer: str, *addresses: str) -> Iterator[Resolver]:
    """A resolver in a network namespace, of tests/lab."""
    folder.mkdir()
    zone, log = folder / "zone", folder / "log"
    zone.write_text(json.dumps({"*": [answer]}))
    log.touch()
    servers = [f"dns:{address}:53" for address in addresses]
    argv = ["nsenter", f"--net={network}", "--", sys.executable, services.__file__, *servers]
    environment = {**os.environ, "LAB_ZONE": str(zone), "LAB_QUERIES": str(log)}
    with subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == b"ready\n"
            yield Resolver(log)
        finally:
            process.terminate()


def network_of(engine: Engine, container: str) -> Path:
    """The network namespace of a container, seen from here."""
    pid = engine.inspect(container, "{{.State.Pid}}")
    return Path(f"/proc/{engine.first}/root/proc/{pid}/ns/net")


@pytest.fixture(scope="module")
def docker(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docker]:
    folder = tmp_path_factory.mktemp("dns")
    resolv_conf = engine.folder / "resolv.conf"
    before = resolv_conf.read_text()
    with contextlib.ExitStack() as ends:
        stack = ends.enter_context(Stack(engine))
        provider = network_of(engine, "provider")
        tunnel = ends.enter_context(resolver(folder / "tunnel", provider, BY_TUNNEL, TUNNEL_DNS))
        daemon = Path(f"/proc/{engine.first}/ns/net")
        upstream = ends.enter_context(resolver(folder / "upstream", daemon, BY_UPSTREAM, ON_HOST, ELSEWHERE))
        ends.callback(resolv_conf.write_text, before)
        stack.write_config(dns=TUNNEL_DNS)
        yield Docker(stack, tunnel, upstream)


def resolve(docker: Docker, name: str) -> str:
    """What an application is told, by the C library and the resolv.conf that Docker wrote; "" for nothing."""
    stack = docker.stack
    patience = "--env=RES_OPTIONS=timeout:2 attempts:1"
    answer = stack.engine.try_docker("exec", patience, stack.name("noise"), "getent", "ahostsv4", name)
    return answer.split()[0] if answer else ""


def docker_nat(docker: Docker) -> str:
    """Docker's own table in the stack's network: it leads 127.0.0.11 to the daemon."""
    network = network_of(docker.stack.engine, docker.stack.name("holder"))
    listed = ["nsenter", f"--net={network}", "--", "nft", "--stateless", "list", "table", "ip", "nat"]
    return subprocess.run(listed, capture_output=True, text=True, check=True).stdout


@contextlib.contextmanager
def up(docker: Docker, mode: str, nameserver: str = ON_HOST) -> Iterator[str]:
    """The stack in a mode, on a host with this nameserver, and a service beside it. Returns the service's address.

    Docker's NAT rules stay what they were when the stack was only sealed.
    """
    stack = docker.stack
    stack.settings |= {"DNS_MODE": mode, "CLUSTER_DOMAIN": f"{PROJECT}_default"}
    (stack.engine.folder / "resolv.conf").write_text(f"nameserver {nameserver}\n")  # read for each new container
    assert stack.up("holder").returncode == 0
    before = docker_nat(docker)
    assert "127.0.0.11" in before
    address = str(STACK[77])
    beside = ["run", "--detach", f"--network={PROJECT}_default", "--network-alias=database", f"--ip={address}"]
    started = stack.up("watchdog", "noise")
    assert started.returncode == 0, started.stderr
    stack.engine.docker(*beside, "--name=database", LAB_IMAGE, "sleep", "infinity")
    try:
        yield address
        assert docker_nat(docker) == before
        verdict = stack.capture.verdict()
        assert not verdict.leaked, str(verdict)
    finally:
        stack.engine.docker("rm", "--force", "database")
        stack.down()


def test_tunnel(docker: Docker) -> None:
    """Every name goes to the tunnel's resolver, whatever Docker would have said."""
    asked = len(docker.upstream.asked)
    with up(docker, "tunnel"):
        wait_until(lambda: resolve(docker, NAME) == BY_TUNNEL, "the tunnel's resolver answers", 20)
        resolve(docker, UNKNOWN)
        assert {NAME, UNKNOWN} <= set(docker.tunnel.asked)
        assert docker.upstream.asked[asked:] == []


def test_split(docker: Docker) -> None:
    """Docker is asked for names without a dot; one that is no service's it passes on, and never another one."""
    asked, through = len(docker.upstream.asked), len(docker.tunnel.asked)
    with up(docker, "split") as address:
        wait_until(lambda: resolve(docker, NAME) == BY_TUNNEL, "the tunnel's resolver answers", 20)
        assert resolve(docker, "database") == address
        assert resolve(docker, "holder").startswith(str(STACK).rpartition(".")[0])
        assert resolve(docker, f"database.{PROJECT}_default") == address
        assert resolve(docker, UNKNOWN) == BY_UPSTREAM
        assert NAME in docker.tunnel.asked[through:]
        assert not {"database", "holder", UNKNOWN} & set(docker.tunnel.asked[through:])
        assert set(docker.upstream.asked[asked:]) == {UNKNOWN}


def test_split_where_docker_asks_from_the_stacks_network(docker: Docker) -> None:
    """What it wants to ask of somebody outside comes back to the forwarder, and ends there."""
    asked, through = len(docker.upstream.asked), len(docker.tunnel.asked)
    with up(docker, "split", ELSEWHERE) as address:
        wait_until(lambda: resolve(docker, NAME) == BY_TUNNEL, "the tunnel's resolver answers", 20)
        assert resolve(docker, "database") == address
        assert resolve(docker, UNKNOWN) == ""
        assert set(docker.tunnel.asked[through:]) == {NAME}
        assert docker.upstream.asked[asked:] == []


def test_cluster(docker: Docker) -> None:
    """The control: what the other modes hide is seen here."""
    asked = len(docker.upstream.asked)
    with up(docker, "cluster") as address:
        wait_until(lambda: resolve(docker, NAME) == BY_UPSTREAM, "Docker answers", 20)
        assert resolve(docker, "database") == address
        assert NAME in docker.upstream.asked[asked:]
        assert "see every name" in docker.stack.log("init-wg")
