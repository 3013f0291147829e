"""Who is started with what, who is told of whose end, and that all end with the watchdog."""

from __future__ import annotations

import errno
import os
import signal

import pytest

from tests.unit.build_watchdog import StillLoop, System
from watchdog.child import Ended
from watchdog.supervisor import LAST_GRACE, Supervisor


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch, loop: StillLoop) -> System:
    return System(monkeypatch, loop)


class Told:
    """What a supervisor told."""

    def __init__(self) -> None:
        self.ended: list[Ended] = []
        self.orphans = 0

    def orphan(self) -> None:
        self.orphans += 1


@pytest.fixture
def told() -> Told:
    return Told()


def test_a_program_of_ours_with_our_environment(loop: StillLoop, system: System, told: Told) -> None:
    supervisor = Supervisor(loop, {"WG_CONFIG": "/a", "OTHER": "kept"}, told.orphan)
    assert supervisor.spawn(("init_wg", "up"), 5, told.ended.append)
    assert supervisor.spawn(("init_wg", "up"), 5, told.ended.append, quiet=True, config="/b")
    usual, quiet = system.started
    assert usual.argv[1:] == ("-P", "-m", "init_wg", "up")
    assert usual.environment == {"WG_CONFIG": "/a", "OTHER": "kept"}
    assert quiet.environment == {"WG_CONFIG": "/b", "OTHER": "kept", "LOG_LEVEL": "warning"}


@pytest.mark.parametrize(("level", "quietly"), [("debug", "debug"), ("DEBUG", "DEBUG"), ("info", "warning")])
def test_who_wants_to_see_everything_sees_it(
    loop: StillLoop, system: System, told: Told, level: str, quietly: str
) -> None:
    Supervisor(loop, {"LOG_LEVEL": level}, told.orphan).spawn(("init_wg", "up"), 5, told.ended.append, quiet=True)
    assert system.started[0].environment["LOG_LEVEL"] == quietly


def test_what_cannot_be_started_is_said_until_something_can(
    loop: StillLoop, system: System, told: Told, capsys: pytest.CaptureFixture[str]
) -> None:
    supervisor = Supervisor(loop, {}, told.orphan)
    system.full = OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    assert supervisor.spawn(("init_wg", "up"), 5, told.ended.append) is None
    assert supervisor.error == f"cannot start a program: {os.strerror(errno.EAGAIN)}"
    assert supervisor.error in capsys.readouterr().err
    system.full = None
    assert supervisor.spawn(("init_wg", "up"), 5, told.ended.append)
    assert supervisor.error == ""


def test_each_is_told_of_its_own_and_orphans_are_reaped(loop: StillLoop, system: System, told: Told) -> None:
    supervisor = Supervisor(loop, {}, told.orphan)
    other: list[Ended] = []
    supervisor.spawn(("init_wg", "up"), 5, told.ended.append)
    supervisor.spawn(("init_wg", "check"), 5, other.append)
    up, _ = system.started
    system.ended = [(up.pid, 3), (4711, 0), (4712, 0)]
    supervisor.reap()
    assert [ended.code for ended in told.ended] == [-3]
    assert not other
    assert told.orphans == 2
    system.ended = [(up.pid, 0)]  # the number of a child that was reaped is anybody's
    supervisor.reap()
    assert len(told.ended) == 1
    assert told.orphans == 3


def test_all_end_with_it_and_nobody_is_told(loop: StillLoop, system: System, told: Told) -> None:
    supervisor = Supervisor(loop, {}, told.orphan)
    for _ in range(2):
        supervisor.spawn(("init_wg", "up"), 5, told.ended.append)
    obedient, stubborn = system.started
    stubborn.obeys = {signal.SIGKILL}
    system.ended = [(4711, 0)]
    before = loop.now()
    supervisor.stop()
    assert LAST_GRACE <= loop.now() - before < 1
    assert obedient.signals == [signal.SIGTERM]
    assert stubborn.signals == [signal.SIGTERM, signal.SIGKILL]
    assert not told.ended
    assert not told.orphans


def test_without_children_it_ends_at_once(loop: StillLoop, system: System, told: Told) -> None:
    before = loop.now()
    Supervisor(loop, {}, told.orphan).stop()
    assert loop.now() == before
