"""The DNS forwarder's keeper: when names count as answered, and when not."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from select import EPOLLIN
from typing import Any, cast

import pytest

from init_wg.design.firewall import killswitch
from tests.unit.build_watchdog import Process, StillLoop, System
from watchdog import forwarder
from watchdog.child import Child, Ended
from watchdog.forwarder import HUNG, PORT, QUERY, Forwarder


class Names:
    """A forwarder that is asked on a port of the test's own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, loop: StillLoop) -> None:
        self.loop = loop
        self.system = System(monkeypatch, loop)
        self.server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.server.bind(("127.0.0.1", 0))
        monkeypatch.setattr(forwarder, "PORT", self.server.getsockname()[1])
        self.turns = 0
        self.it = Forwarder(loop, self.spawn, self.turned)

    def spawn(self, command: tuple[str, ...], timeout: float, ended: object, **_: object) -> Child | None:
        start: Any = self.system._start  # noqa: SLF001
        return cast("Child", start(self.loop, ("-m", *command), {}, timeout, ended))

    def turned(self) -> None:
        self.turns += 1

    @property
    def process(self) -> Process:
        return self.system.started[-1]

    def answers(self) -> int:
        """To all questions that wait; how many they were."""
        count = 0
        while True:
            try:
                data, who = self.server.recvfrom(512)
            except BlockingIOError:
                break
            assert data == QUERY
            self.server.sendto(data, who)
            count += 1
        self.it._asker._ready(EPOLLIN)  # noqa: SLF001 - the still loop does not wait for sockets
        return count


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch, loop: StillLoop) -> Iterator[Names]:
    made = Names(monkeypatch, loop)
    yield made
    made.it._asker.end()  # noqa: SLF001
    made.server.close()


def seconds(names: Names, count: int) -> None:
    for _ in range(count):
        names.loop.advance(1)
        names.it.tick()


def test_the_port_is_the_kill_switchs() -> None:
    assert PORT == killswitch.FORWARDER_PORT


def test_a_process_that_runs_proves_nothing(names: Names) -> None:
    assert names.it.trouble
    names.it.ensure()
    assert names.it.trouble == "the DNS forwarder has not answered yet"
    names.loop.advance(0.1)
    assert names.answers() > 3, "it is asked often at first"
    assert names.it.trouble == ""
    assert names.turns == 1


def test_where_none_is_needed_there_is_no_trouble(names: Names) -> None:
    names.it.ensure()
    names.process.exits(0)
    assert names.it.trouble == ""
    names.it.renew()
    assert names.it.trouble == "", "what was not needed is thought not to be, until it is known"


def test_one_that_ends_is_red_until_the_next_one_answers(names: Names) -> None:
    names.it.ensure()
    names.process.exits(3, "dnsmasq is not installed\n")
    assert names.it.trouble == "the DNS forwarder does not run (dnsmasq is not installed)"
    names.loop.advance(0.1)
    assert names.it.trouble == "the DNS forwarder has not answered yet"
    names.answers()
    assert names.it.trouble == ""


def test_one_that_hangs_is_red_and_replaced(names: Names) -> None:
    names.it.ensure()
    names.answers()
    seconds(names, 3)
    assert names.it.trouble == "the DNS forwarder does not answer"
    seconds(names, HUNG)
    assert names.process.signals
    names.process.finished(Ended(-9, "", "", 20.0, late=False))
    names.loop.advance(0.2)
    names.answers()
    assert names.it.trouble == ""
    assert len(names.system.started) == 2


def test_an_answer_of_nobodys_is_none(names: Names) -> None:
    names.it.ensure()
    _, who = names.server.recvfrom(512)
    names.server.sendto(b"\0\0 another question's", who)
    names.it._asker._ready(EPOLLIN)  # noqa: SLF001
    assert names.it.trouble


def test_a_bad_new_file_says_nothing_of_the_old_need(names: Names) -> None:
    names.it.ensure()
    names.process.exits(0)
    names.it.renew()
    names.process.exits(2, "wg0.conf:1: what is this?\n")
    assert names.it.trouble == ""
