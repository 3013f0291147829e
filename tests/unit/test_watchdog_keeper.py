"""What joins the parts: what they say at :9999 of one trouble or another, and that each trouble has an end."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from init_wg.config.settings import read
from init_wg.errors import KernelError
from init_wg.kernel import sealed
from init_wg.model.secret import Secret
from init_wg.model.state import Device, Peer
from init_wg.model.wireguard import Reading, Traffic
from tests.unit.build_watchdog import Port, Process, StillLoop, System
from watchdog import events, facts, tunnel
from watchdog.facts import Fingerprint
from watchdog.keeper import Keeper
from watchdog.supervisor import Supervisor

RIGHT = Fingerprint(1, 2, 3, 4, 5, 6)
WELL = (200, "VPN is active")
BUSY = KernelError("the network changes faster than it can be read")
FULL = OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
SERVER = "first"


class Pod:
    """A kernel in which all is well, a file that is right, and a watchdog."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, loop: StillLoop, config: Path, **env: str) -> None:
        self.loop = loop
        self.fingerprint_fails: Exception | None = None
        self.fingerprint_is = RIGHT
        self.received = 0
        self.peer_is_silent = False
        self.system, self.port = System(monkeypatch, loop), Port(monkeypatch)
        monkeypatch.setattr(facts, "Kernel", lambda _: self)
        monkeypatch.setattr(sealed, "in_place", lambda: True)
        monkeypatch.setattr(facts, "counters", lambda _: (0, 0))
        monkeypatch.setattr(facts, "begin_anew", lambda *_: False)
        monkeypatch.setattr(tunnel, "Probe", lambda *_: self)
        monkeypatch.setattr(events, "Events", self.no_events)
        environment: Mapping[str, str] = {"WG_CONFIG": str(config), **env}
        self.keeper = Keeper(loop, read(environment), Supervisor(loop, environment))
        self.keeper.start()

    # --- the kernel ---

    interface = "wg0"
    kind = "wireguard"
    server = 0

    def fingerprint(self) -> Fingerprint:
        if self.fingerprint_fails:
            raise self.fingerprint_fails
        return self.fingerprint_is

    def device(self) -> Reading:
        self.received += 0 if self.peer_is_silent else 100  # somebody downloads something
        peer = Peer(SERVER, None, ("203.0.113.51", 51820), frozenset(("0.0.0.0/0",)), 0)
        return Reading(Device(Secret("key"), 1, 51820, frozenset((peer,))), {SERVER: Traffic(1.0, self.received, 1)})

    def no_events(self) -> events.Events:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    # --- the questions ---

    def aim(self, resolvers: Iterable[str], networks: Iterable[str], others: Iterable[str]) -> None:
        pass

    refused: frozenset[str] = frozenset()

    def ask(self) -> bool:
        return True

    # --- what the tests do ---

    def commands(self) -> list[str]:
        return [" ".join(each.command) for each in self.system.started]

    def last(self, command: str) -> Process:
        return [each for each in self.system.started if " ".join(each.command).startswith(command)][-1]

    def settle(self) -> None:
        """The first run finds everything right; no forwarder is needed."""
        self.last("init_wg up").exits(0)
        self.last("init_wg names").exits(0)
        self.loop.advance(2)
        assert self.port.get("/") == WELL


@pytest.fixture
def config(tmp_path: Path) -> Path:
    made = tmp_path / "wg0.conf"
    made.write_text(f"PublicKey = {SERVER}\n")
    return made


@pytest.fixture
def pod(monkeypatch: pytest.MonkeyPatch, loop: StillLoop, config: Path) -> Pod:
    return Pod(monkeypatch, loop, config)


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch, loop: StillLoop, config: Path) -> Pod:
    return Pod(monkeypatch, loop, config, VERIFY_URL="https://exit.example/")


def test_it_is_red_until_the_setup_has_run(pod: Pod) -> None:
    assert pod.port.get("/") == (503, "VPN is not active: the setup has not run yet")
    pod.settle()
    pod.loop.advance(60)
    assert pod.commands() == ["init_wg up", "init_wg names"]


def test_a_change_is_repaired_and_the_repair_confirmed(pod: Pod) -> None:
    pod.settle()
    pod.fingerprint_is = RIGHT._replace(rules=44)
    pod.loop.advance(6)
    pod.fingerprint_is = RIGHT
    pod.last("init_wg up").exits(0)
    pod.loop.advance(1)
    pod.last("init_wg up").exits(0)
    pod.loop.advance(60)
    assert pod.commands().count("init_wg up") == 3
    assert 'init_wg_repairs_total{reason="rules"} 1' in pod.port.get("/metrics")[1]


def test_no_page_of_before_a_run_is_told_after_it(pod: Pod) -> None:
    """No time passes here: pages are kept for a while, but not beyond the begin or the end of a run."""

    def repairing() -> str:
        return str(json.loads(pod.port.get("/status")[1])["repairing"])

    pod.settle()
    pod.keeper.reload()
    assert repairing() == "None"
    pod.last("init_wg check").exits(0)
    assert repairing() == "config"
    pod.last("init_wg up").exits(0)
    assert repairing() == "None"


def test_a_setup_that_failed_says_why_and_is_tried_again(pod: Pod) -> None:
    pod.last("init_wg up").exits(4, "init-wg: error: no handshake\n")
    assert pod.port.get("/") == (503, "VPN is not active: no handshake")
    pod.loop.advance(2)
    assert pod.commands() == ["init_wg up", "init_wg up"]


def test_an_exit_that_is_wrong_three_times_is_red_and_left(verified: Pod) -> None:
    verified.settle()
    for number in range(3):
        assert verified.port.get("/") == WELL, number
        verified.loop.advance(12)
        verified.last("watchdog.verify https://exit.example/").exits(1, "the wrong exit\n")
    assert verified.port.get("/") == (503, "VPN is not active: the wrong exit")
    assert verified.commands()[-1] == "init_wg up --server wg0"


def test_a_setup_that_could_not_be_started_is_red_until_it_could(pod: Pod) -> None:
    pod.settle()
    pod.system.full = FULL
    pod.fingerprint_is = RIGHT._replace(rules=44)
    pod.loop.advance(6)
    assert pod.port.get("/") == (503, f"VPN is not active: cannot start a program: {FULL.strerror}")
    pod.system.full = None
    pod.loop.advance(31)
    pod.last("init_wg up").exits(0)
    pod.loop.advance(1)
    assert pod.port.get("/") == WELL


def test_a_kernel_that_was_too_busy_for_a_moment_is_red_for_that_moment(pod: Pod) -> None:
    pod.settle()
    pod.fingerprint_fails = BUSY
    pod.loop.advance(6)
    assert pod.port.get("/") == (503, f"VPN is not active: the kernel does not tell its state: {BUSY}")
    pod.fingerprint_fails = None
    pod.loop.advance(6)
    assert pod.port.get("/") == WELL
    assert pod.commands().count("init_wg up") == 1, "nothing had changed"


def test_an_exit_check_that_could_not_be_started_is_no_trouble_of_the_tunnel(verified: Pod) -> None:
    verified.settle()
    verified.last("watchdog.verify").exits(0, "the exit is 203.0.113.9\n")
    verified.system.full = FULL
    verified.loop.advance(305)
    assert verified.port.get("/") == WELL
    assert verified.port.get("/livez")[0] == 503
    checks = len(verified.system.started)
    verified.system.full = None
    verified.loop.advance(11)
    assert verified.port.get("/livez")[0] == 200
    assert len(verified.system.started) == checks + 1


def test_an_exit_check_of_a_server_that_was_left_says_nothing_of_the_next(verified: Pod) -> None:
    verified.settle()
    verified.loop.advance(1)
    check = verified.last("watchdog.verify")
    verified.peer_is_silent = True
    verified.loop.advance(40)
    verified.last("init_wg up --server").exits(0)
    verified.peer_is_silent = False
    check.exits(1, "the wrong exit\n")
    assert 'init_wg_exit_checks_total{result="failed"}' not in verified.port.get("/metrics")[1]
    verified.loop.advance(12)
    assert verified.last("watchdog.verify") is not check


def test_a_dead_peer_is_dealt_with_though_every_file_has_become_bad(
    monkeypatch: pytest.MonkeyPatch, loop: StillLoop, tmp_path: Path
) -> None:
    """With what worked; it is no reason to leave it at that."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.conf").write_text(f"PublicKey = {SERVER}\n")
    pod = Pod(monkeypatch, loop, tmp_path)
    pod.settle()
    pod.peer_is_silent = True
    pod.loop.advance(40)
    pod.last("init_wg up --server").exits(2, "init-wg: error: a bad file\n")
    for _ in range(3):
        again = pod.last("init_wg up --server")
        assert again.environment["WG_CONFIG"] != str(tmp_path)
        again.exits(4, "init-wg: error: no handshake\n")
        pod.loop.advance(31)
        assert pod.last("init_wg up --server") is not again


def test_a_new_file_that_could_not_be_validated_is_validated_later(pod: Pod, config: Path) -> None:
    pod.settle()
    pod.system.full = FULL
    config.write_text("PublicKey = the second\n")
    pod.loop.advance(10)
    assert pod.port.get("/") == WELL
    pod.system.full = None
    pod.loop.advance(10)
    assert pod.commands()[-1] == f"init_wg check {config}"


MISTAKE = ValueError("a mistake of ours")


def test_a_mistake_at_the_beginning_of_a_run_does_not_end_all_repairs(pod: Pod) -> None:
    pod.settle()
    pod.loop.forgive()
    pod.system.full = MISTAKE
    pod.fingerprint_is = RIGHT._replace(rules=44)
    pod.loop.advance(6)
    assert MISTAKE in pod.loop.mistakes
    pod.system.full = None
    pod.loop.advance(31)
    assert pod.commands().count("init_wg up") == 2


def test_a_mistake_at_the_end_of_a_run_does_not_end_all_repairs(pod: Pod) -> None:
    pod.settle()
    pod.fingerprint_is = RIGHT._replace(rules=44)
    pod.loop.advance(6)
    pod.fingerprint_fails = MISTAKE
    with pytest.raises(ValueError, match=str(MISTAKE)):
        pod.last("init_wg up").exits(0)
    pod.fingerprint_fails = None
    pod.loop.advance(31)
    assert pod.commands().count("init_wg up") == 3
