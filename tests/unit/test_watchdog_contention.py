"""Somebody else with our key: what looks like it, and what does not. On a clock that the test moves."""

from __future__ import annotations

import pytest

from watchdog.contention import TIMES, WITHIN, Contention
from watchdog.peer_health import PeerFacts

SESSION_ENDS = 15.0  # WireGuard gives a session up


class World:
    """A watchdog that looks once a second and asks every second one, and its peer."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.peer = PeerFacts("key", "203.0.113.1:51820", 1_800_000_000, 1000, 1000)
        self.contention = Contention()
        self.alarms = 0

    def run(self, seconds: float, *, heard: bool = True) -> None:
        for second in range(int(seconds)):
            self.now += 1.0
            sent = 96 if second % 2 == 0 else 0
            self.peer = self.peer._replace(
                sent=self.peer.sent + sent, received=self.peer.received + (sent if heard else 0)
            )
            self.alarms += self.contention.look(self.now, self.peer)

    def handshake(self) -> None:
        self.peer = self.peer._replace(
            last_handshake=self.peer.last_handshake + 30, received=self.peer.received + 92, sent=self.peer.sent + 148
        )

    def dies(self, lived: float, silent: float = SESSION_ENDS) -> None:
        """A session, its silent end, and the next one."""
        self.run(lived)
        self.run(silent, heard=False)
        self.handshake()


@pytest.mark.parametrize("lived", [0, 1, 18, 60, 100])
def test_two_clients_that_take_the_session_from_each_other(lived: float) -> None:
    world = World()
    for _ in range(TIMES + 1):
        world.dies(lived)
    world.run(1)
    assert world.contention.look(world.now, world.peer)


def test_it_ends_with_the_first_session_that_is_renewed_alive() -> None:
    world = World()
    for _ in range(TIMES + 1):
        world.dies(10)
    world.run(120)
    assert world.alarms
    world.handshake()
    world.run(1)
    assert not world.contention.look(world.now, world.peer)


def test_or_when_none_has_died_for_long() -> None:
    world = World()
    for _ in range(TIMES + 1):
        world.dies(10)
    world.run(WITHIN + 1)
    assert not world.contention.look(world.now, world.peer)


def test_a_silent_server_does_not_answer_the_first_try() -> None:
    world = World()
    for silent in (20, 25, 30, 21, 40, 95, 20, 20):
        world.dies(10, silent)
    world.run(5)
    assert not world.alarms


def test_a_server_that_comes_back_serves_the_old_session() -> None:
    world = World()
    for _ in range(20):
        world.run(10)
        world.run(12, heard=False)
    assert not world.alarms


def test_three_restarts_of_the_server() -> None:
    world = World()
    for _ in range(TIMES - 1):
        world.dies(40)
    world.run(120)
    world.handshake()
    for _ in range(TIMES - 1):
        world.dies(40)
    world.run(30)
    assert not world.alarms


def test_an_old_session_may_die() -> None:
    world = World()
    for _ in range(2 * TIMES):
        world.dies(125)
    world.run(1)
    assert not world.alarms


def test_sessions_that_are_renewed_alive_are_nobody_elses() -> None:
    """By hand, by a repair, or by time."""
    world = World()
    for _ in range(50):
        world.run(5)
        world.handshake()
    assert not world.alarms


def test_another_endpoint_and_a_tunnel_made_anew_begin_a_new_count_of_time() -> None:
    world = World()
    for number in range(2 * TIMES):
        world.run(5)
        world.run(14, heard=False)
        world.peer = world.peer._replace(endpoint=f"203.0.113.{number}:51820", last_handshake=0, received=0, sent=0)
        world.run(2)
        world.handshake()
    assert not world.alarms
    assert not world.contention.look(world.now, None)
