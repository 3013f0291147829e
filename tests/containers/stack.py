"""The stack of compose/, between a provider and the web; everything in containers.

stack0   172.30.7.0/24      the stack's network: only `holder` is on it, all others share its namespace
inet0    198.51.100.0/24    the internet: provider .2 (wireguard-go, masquerades its peer), web .3
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from ipaddress import IPv4Network
from pathlib import Path
from typing import Self

from .capture import Capture
from .engine import IMAGE, LAB_IMAGE, ROOT, Engine, EngineError, compose_command, docker_command, wait_until

STACK, INTERNET = IPv4Network("172.30.7.0/24"), IPv4Network("198.51.100.0/24")
PROVIDER, WEB, PORT = "198.51.100.2", "198.51.100.3", 51820
TUNNEL, PEER = "10.64.0.1/24", "10.64.0.2/32"
PROJECT = "stack"
FILES = ("compose/compose.yaml", "compose/compose.userspace.yaml", "tests/containers/stack.yaml")
JOINED = ("run", "--detach", "--init", "--network", "internet", "--restart", "always")
SERVER_FILES = ("compose/compose.server.yaml", "compose/compose.server.userspace.yaml")


class Project:
    """A project of compose, of files in the checkout. settings: what they take from the environment."""

    def __init__(self, engine: Engine, name: str, files: tuple[str, ...]) -> None:
        self.engine, self.project, self.files = engine, name, files
        self.settings: dict[str, str] = {}
        command = compose_command()
        if command is None:
            raise EngineError("there is no compose")
        self._compose = command

    def compose(self, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run compose on the files under test."""
        files = [word for file in self.files for word in ("-f", str(ROOT / file))]
        return self.engine.run(*self._compose, "-p", self.project, *files, *arguments, timeout=timeout, **self.settings)

    def name(self, service: str) -> str:
        """The container of a service; version 1 writes stack_app_1, version 2 stack-app-1."""
        label = ["--filter", f"label=com.docker.compose.project={self.project}"]
        label += ["--filter", f"label=com.docker.compose.service={service}"]
        names = self.engine.docker("ps", "--all", *label, "--format", "{{.Names}}").split()
        return names[0] if names else ""


def make_internet(engine: Engine) -> None:
    """The network `internet` with the web in it."""
    name = "com.docker.network.bridge.name=inet0"
    engine.docker("network", "create", "--subnet", str(INTERNET), "--opt", name, "internet")
    engine.docker(*JOINED, "--name", "web", "--ip", WEB, LAB_IMAGE, "python3", "/lab/web.py")
    connect_networks(engine)


def remove_internet(engine: Engine, *containers: str) -> None:
    """With the other containers in it."""
    engine.try_docker("rm", "-f", "-v", *containers, "web")
    engine.try_docker("network", "rm", "internet")


def connect_networks(engine: Engine) -> None:
    """Docker keeps its networks apart; one of these is the internet."""
    engine.inside("iptables", "-I", "DOCKER-USER", "-j", "ACCEPT")


def seen_as(engine: Engine, container: str) -> str:
    """Where the web sees a container's requests come from; "" when there is no answer."""
    fetch = ["wget", "-q", "-t", "1", "-T", "2", "-O", "-", f"http://{WEB}/"]
    return engine.try_docker("exec", container, *fetch) or ""


class Stack(Project):
    """The internet is there from `with` on; the stack itself after up()."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine, PROJECT, FILES)
        self.captures: list[Capture] = []

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="init-wg-stack-")
        self.folder = Path(self._folder.name)
        self.config = self.folder / "wireguard"
        self.config.mkdir()
        self.settings = {
            "INIT_WG_IMAGE": IMAGE,
            "APP_IMAGE": LAB_IMAGE,
            "WG_CONFIG_FOLDER": str(self.config),
            "STACK_NETWORK": str(STACK),
            "HANDSHAKE_TIMEOUT": "4",
            "WEB": WEB,
        }
        try:
            _ = self.engine.images
            self._internet()
            self.write_config()
            self.listen()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.down()
            remove_internet(self.engine, "provider")
        finally:
            for capture in self.captures:
                capture.__exit__()
            self._folder.cleanup()

    # --- the internet ----------------------------------------------------------------------------------------------

    def _internet(self) -> None:
        engine, secret = self.engine, self.folder / "provider"
        secret.mkdir()
        self.private, self.public = _keys()
        provider_private, self.provider_public = _keys()
        (secret / "private").write_text(provider_private)
        make_internet(engine)
        able = ["--cap-add", "NET_ADMIN", "--device", "/dev/net/tun", "--sysctl", "net.ipv4.ip_forward=1"]
        serve = ["sh", "/lab/provider.sh", "/secret/private", self.public, TUNNEL, PEER, str(PORT)]
        mount = ["--volume", f"{secret}:/secret:ro"]
        engine.docker(*JOINED, *able, *mount, "--name", "provider", "--ip", PROVIDER, LAB_IMAGE, *serve)
        wait_until(lambda: "ready" in engine.docker("logs", "provider"), "the provider is ready")

    def write_config(self, text: str | None = None, dns: str | None = None) -> None:
        """The provider's file, with DNS or without, or another."""
        file = self.config / "wg0.conf"
        file.touch(mode=0o600)
        file.write_text(
            f"[Interface]\nPrivateKey = {self.private}\nAddress = {PEER}\n"
            f"{f'DNS = {dns}' if dns else ''}\n"
            f"[Peer]\nPublicKey = {self.provider_public}\nEndpoint = {PROVIDER}:{PORT}\nAllowedIPs = 0.0.0.0/0\n"
            if text is None
            else text
        )

    # --- the stack -------------------------------------------------------------------------------------------------

    def up(self, *services: str) -> subprocess.CompletedProcess[str]:
        """Like anybody would start it."""
        return self.compose("up", "--detach", *services)

    def down(self) -> None:
        self.compose("down", "--volumes", "--timeout", "2")

    def state(self, service: str) -> str:
        """created, running, restarting, exited, dead; "" when there is none."""
        return self.engine.inspect(self.name(service), "{{.State.Status}}")

    def exit_code(self, service: str) -> int:
        return int(self.engine.inspect(self.name(service), "{{.State.ExitCode}}") or -1)

    def health(self, service: str = "watchdog") -> str:
        """starting, healthy, unhealthy; as Docker shows it."""
        return self.engine.inspect(self.name(service), "{{if .State.Health}}{{.State.Health.Status}}{{end}}")

    def last_check(self) -> str:
        """What the latest health check printed."""
        log = json.loads(self.engine.inspect(self.name("watchdog"), "{{json .State.Health.Log}}") or "[]")
        return str(log[-1]["Output"]) if log else ""

    def log(self, service: str) -> str:
        ended = self.engine.run(docker_command(), "logs", self.name(service))
        return ended.stdout + ended.stderr

    def source(self, service: str = "app") -> str:
        """Where the web sees the app's requests come from; "" when there is no answer."""
        return seen_as(self.engine, self.name(service))

    def tunnelled(self) -> bool:
        return self.source() == PROVIDER

    # --- the judge -------------------------------------------------------------------------------------------------

    def listen(self) -> None:
        """Count from now on, in this boot of the engine."""
        gateway = str(next(STACK.hosts()))
        capture = Capture(self.engine, STACK, gateway, (PROVIDER, PORT))
        self.captures.append(capture.__enter__())

    @property
    def capture(self) -> Capture:
        return self.captures[-1]


def _keys() -> tuple[str, str]:
    def wg(argument: str, stdin: str = "") -> str:
        return subprocess.run(["wg", argument], input=stdin, capture_output=True, text=True, check=True).stdout.strip()

    private = wg("genkey")
    return private, wg("pubkey", private)
