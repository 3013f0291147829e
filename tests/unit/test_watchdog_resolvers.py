"""The tunnel's resolvers: which of them the forwarder should query first, by how they answer over time."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.unit.build_watchdog import StillLoop
from watchdog import resolvers
from watchdog.resolvers import ANSWERS, CALM, EVERY, MISSES, Resolvers

FIRST, SECOND = BOTH = "127.0.0.91", "127.0.0.92"


class Two:
    """Two resolvers, each of which answers or does not; and the forwarder, which is started anew when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, loop: StillLoop) -> None:
        self.loop = loop
        self.sockets, port = _pair()
        monkeypatch.setattr(resolvers, "DNS_PORT", port)
        self.answering = {FIRST, SECOND}
        self.order: tuple[str, ...] = (FIRST, SECOND)
        self.reordered = 0
        self.queried_first = FIRST
        self.it = Resolvers(loop, "lo", self.reorder)

    def reorder(self) -> None:
        self.reordered += 1
        self.queried_first = next((address for address in self.order if address in self.answering), FIRST)

    def rounds(self, count: int) -> None:
        """Each is a question to everybody, and its time."""
        for _ in range(count):
            self.it.tick(self.order, self.queried_first)
            for address, each in self.sockets.items():
                _answer(each, answers=address in self.answering)
            for known in self.it._known.values():  # noqa: SLF001 - the still loop does not wait for sockets
                self.it._ready(known)  # noqa: SLF001
            self.loop.advance(EVERY)


def _pair() -> tuple[dict[str, socket.socket], int]:
    """Both on one port, whichever both addresses have free."""
    for _ in range(20):
        made = {address: socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) for address in BOTH}
        try:
            made[FIRST].bind((FIRST, 0))
            port: int = made[FIRST].getsockname()[1]
            made[SECOND].bind((SECOND, port))
        except OSError:
            for each in made.values():
                each.close()
        else:
            return made, port
    raise OSError("no port is free")


def _answer(server: socket.socket, *, answers: bool) -> None:
    try:
        while True:
            data, who = server.recvfrom(512)
            if answers:
                server.sendto(data, who)
    except BlockingIOError:
        return


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch, loop: StillLoop) -> Iterator[Two]:
    made = Two(monkeypatch, loop)
    yield made
    made.it.close()
    for each in made.sockets.values():
        each.close()


def test_while_both_answer_nothing_happens(two: Two) -> None:
    two.rounds(50)
    assert two.reordered == 0


@pytest.mark.parametrize("how", ["silent", "refusing"])
def test_the_second_is_queried_soon_after_the_first_fell_silent(two: Two, how: str) -> None:
    two.rounds(10)
    two.answering = {SECOND}
    if how == "refusing":
        two.sockets.pop(FIRST).close()
    two.rounds(MISSES + 1)
    assert two.reordered == 1
    assert two.queried_first == SECOND
    two.rounds(50)
    assert two.reordered == 1, "it stays so"


def test_the_first_is_queried_again_once_it_answers_but_not_too_soon(two: Two) -> None:
    two.rounds(10)
    two.answering = {SECOND}
    two.rounds(MISSES + 1)
    two.answering = {FIRST, SECOND}
    two.rounds(ANSWERS + 2)
    assert two.reordered == 1
    two.rounds(int(CALM / EVERY))
    assert two.reordered == 2
    assert two.queried_first == FIRST


def test_one_lost_answer_changes_nothing(two: Two) -> None:
    two.rounds(10)
    for _ in range(20):
        two.answering = {SECOND}
        two.rounds(1)
        two.answering = {FIRST, SECOND}
        two.rounds(1)
    assert two.reordered == 0


def test_when_nobody_answers_the_order_stays(two: Two) -> None:
    """The tunnel may be down; the next server's resolvers are others."""
    two.rounds(10)
    two.answering = set()
    two.rounds(20)
    assert two.reordered == 0


def test_without_a_forwarder_or_a_choice_nobody_is_asked(two: Two) -> None:
    two.queried_first = ""
    two.rounds(3)
    assert not two.it._known  # noqa: SLF001
    two.order, two.queried_first = (FIRST,), FIRST
    two.rounds(3)
    assert not two.it._known  # noqa: SLF001


def test_an_order_that_nobody_knows_is_left_alone(two: Two) -> None:
    two.queried_first = "10.64.0.1"
    two.rounds(20)
    assert two.reordered == 0


def test_a_spelling_makes_no_difference() -> None:
    assert resolvers._spelled("FD00:0::1") == resolvers._spelled("fd00::1") == "fd00::1"  # noqa: SLF001
