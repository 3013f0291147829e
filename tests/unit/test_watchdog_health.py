"""Facts over time -> verdict, on a clock that the test moves."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from watchdog.peer_health import (
    DEAD,
    DEAD_AFTER,
    DOUBTFUL,
    HEALTHY,
    KEEPALIVE_BYTES,
    UNKNOWN,
    Health,
    PeerFacts,
    Verdict,
)

WALL = 1_800_000_000.0


class World:
    """A peer, a clock, and a watchdog that looks once a second and asks when it is due."""

    def __init__(self, *, handshake_age: float = 0.0, answers: bool = True, lives: bool = True) -> None:
        self.now, self.wall = 1000.0, WALL
        self.lives, self.answers = lives, answers
        self.peer = PeerFacts("key", "203.0.113.1:51820", int(WALL - handshake_age), 1000, 1000)
        self.health = Health()
        self.questions: list[float] = []
        self.owed: float | None = None  # when the peer will send its empty packet
        self.verdict = self.look()

    def look(self) -> Verdict:
        if self.owed is not None and self.now >= self.owed:
            self.owed = None
            if self.lives:
                self.change(received=32)
        verdict = self.health.look(self.now, self.wall, self.peer)
        if self.now >= self.health.ask_at():
            self.health.asked(self.now)
            self.questions.append(self.now)
            self.change(sent=96)
            if self.lives and self.answers:
                self.health.answered()
                self.change(received=96)
                verdict = self.health.look(self.now, self.wall, self.peer)
            elif self.owed is None:
                self.owed = self.now + 10
        return verdict

    def change(self, *, received: int = 0, sent: int = 0) -> None:
        self.peer = self.peer._replace(received=self.peer.received + received, sent=self.peer.sent + sent)

    def run(self, seconds: float) -> list[str]:
        """The states seen in this time."""
        states = []
        for _ in range(int(seconds)):
            self.now += 1
            self.wall += 1
            self.verdict = self.look()
            states.append(self.verdict.state)
        return states

    def until(self, state: str, limit: int = 60) -> float:
        """Seconds until this state."""
        for second in range(1, limit + 1):
            self.run(1)
            if self.verdict.state == state:
                return second
        raise AssertionError(f"never {state}")


def test_no_device_is_unknown() -> None:
    assert Health().look(0, WALL, None).state == UNKNOWN


def test_a_fresh_handshake_is_enough_to_begin_with() -> None:
    assert World(handshake_age=1).verdict.state == HEALTHY


def test_an_old_handshake_is_not_but_the_first_answer_is() -> None:
    world = World(handshake_age=100, lives=False)
    assert world.verdict.state == UNKNOWN
    assert world.questions == [1000.0]  # asked at once
    world.lives = True
    world.run(2)
    assert world.verdict.state == HEALTHY


def test_an_idle_tunnel_is_healthy_for_hours() -> None:
    assert set(World().run(4 * 3600)) == {HEALTHY}


def test_an_idle_tunnel_whose_peer_answers_no_question_is_healthy_too() -> None:
    # WireGuard's own empty packet, 10 s after the question, is the answer.
    assert set(World(answers=False).run(4 * 3600)) == {HEALTHY}


def test_a_peer_that_falls_silent_right_after_the_start_is_doubted_soon() -> None:
    world = World()
    world.lives = False
    assert world.until(DOUBTFUL) <= 7
    assert world.until(DEAD) <= 9


def test_after_the_first_questions_are_asked_only_when_the_peer_is_quiet() -> None:
    world = World()
    for _ in range(60):
        world.run(1)
        world.change(received=1400)
    assert world.questions == [1000.0], "the first one learns how soon this peer answers"


def test_a_silent_peer_is_doubtful_within_seven_seconds_and_dead_within_fifteen() -> None:
    for offset in range(4):  # whenever in the rhythm of questions it falls silent
        world = World()
        world.run(20 + offset)
        world.lives = False
        doubt = world.until(DOUBTFUL)
        assert doubt <= 7
        assert doubt + world.until(DEAD) <= 15


def test_a_silent_peer_that_never_answered_questions_is_dead_by_wireguards_own_time() -> None:
    world = World(answers=False)
    world.run(60)
    world.lives = False
    # A question may have been waiting for its ten seconds already.
    assert DEAD_AFTER - 10 <= world.until(DEAD) <= DEAD_AFTER + 4


def test_one_way_traffic_is_no_reason_for_doubt() -> None:
    # Syslog over UDP: data out every second, nothing but an empty packet every 10 s back.
    world = World(answers=False)
    states = []
    for second in range(300):
        world.change(sent=200)
        if second % 10 == 9:
            world.change(received=32)
        states += world.run(1)
    assert set(states) == {HEALTHY}


def test_our_own_keepalives_ask_for_nothing() -> None:
    world = World()
    world.health.ask_at = lambda: float("inf")  # type: ignore[method-assign]
    for _ in range(20):
        world.change(sent=KEEPALIVE_BYTES)
        assert set(world.run(25)) == {HEALTHY}


def test_traffic_without_an_answer_is_dead_after_15_seconds_even_without_questions() -> None:
    world = World()
    world.health.ask_at = lambda: float("inf")  # type: ignore[method-assign]
    world.run(10)
    world.change(sent=148)
    assert DEAD_AFTER <= world.until(DEAD) <= DEAD_AFTER + 1


def test_a_peer_that_comes_back_is_healthy_at_once() -> None:
    world = World()
    world.run(10)
    world.lives = False
    world.until(DEAD)
    world.lives = True
    assert world.until(HEALTHY) <= 3


def test_a_session_that_was_lost_unlearns_nothing() -> None:
    """The late answer is that of a new handshake: the next silence is doubted as soon as the first."""
    world = World()
    world.run(10)
    for _ in range(3):
        world.lives = False
        assert world.until(DOUBTFUL) <= 7
        world.run(10)
        world.peer = world.peer._replace(last_handshake=int(world.wall))
        world.change(received=92)
        world.run(1)
        assert world.verdict.state == HEALTHY


def test_after_learning_wrongly_that_questions_are_answered_it_is_unlearned() -> None:
    world = World(answers=False)
    world.health.answered()
    world.run(30)
    assert set(world.run(600)) == {HEALTHY}


@pytest.mark.parametrize("jump", [86400.0, -86400.0, 1e9, -1e9])
def test_a_jump_of_the_wall_clock_changes_nothing(jump: float) -> None:
    world = World()
    world.run(30)
    world.wall += jump
    assert set(world.run(600)) == {HEALTHY}
    world.lives = False
    assert world.until(DEAD) <= 15


def test_a_handshake_after_a_jump_back_counts() -> None:
    world = World()
    world.run(5)
    world.wall -= 86400
    world.peer = world.peer._replace(last_handshake=int(world.wall))
    world.change(received=92)
    world.run(1)
    assert world.verdict.state == HEALTHY
    world.lives = False
    world.run(200)
    assert "no handshake for 2" in world.verdict.reason  # 200 s, not a day


def test_time_in_which_nobody_looked_does_not_count() -> None:
    world = World()
    world.run(30)
    world.now += 3600  # a frozen container
    world.wall += 3600
    assert world.look().state == HEALTHY
    world.lives = False
    assert 3 <= world.until(DEAD) <= 20


def test_another_server_starts_anew() -> None:
    world = World()
    world.run(5)
    world.lives = False
    world.until(DEAD)
    world.lives = True
    world.peer = PeerFacts("other", "203.0.113.2:51820", int(world.wall), 92, 148)
    world.run(1)
    assert world.verdict.state == HEALTHY


def test_a_device_made_anew_without_a_handshake_is_unknown() -> None:
    world = World()
    world.run(5)
    world.lives = False
    world.peer = PeerFacts("key", "203.0.113.1:51820", 0, 0, 0)
    world.run(1)
    assert world.verdict == (UNKNOWN, "no handshake yet with 203.0.113.1:51820")


def test_reasons_are_for_people() -> None:
    world = World()
    world.run(5)
    world.lives = False
    world.until(DOUBTFUL)
    assert world.verdict.reason.startswith("nothing heard for ")
    assert world.verdict.reason.endswith(" s from 203.0.113.1:51820")
    world.run(300)
    assert world.verdict.reason.startswith("no handshake for ")
    assert world.verdict.reason.endswith(" s with 203.0.113.1:51820")


steps = st.lists(
    st.tuples(
        st.floats(0, 30),
        st.one_of(st.none(), st.tuples(st.integers(-5000, 5000), st.integers(-5000, 5000), st.integers(-400, 400))),
        st.booleans(),
        st.booleans(),
    ),
    max_size=40,
)


@settings(max_examples=400, deadline=None)
@given(steps)
def test_any_facts_give_a_verdict(found: list[tuple[float, tuple[int, int, int] | None, bool, bool]]) -> None:
    health, now = Health(), 0.0
    peer = PeerFacts("key", "", int(WALL), 10_000, 10_000)
    for delay, change, asked, answered in found:
        now += delay
        if change is not None:
            peer = peer._replace(
                received=max(0, peer.received + change[0]),
                sent=max(0, peer.sent + change[1]),
                last_handshake=max(0, peer.last_handshake + change[2]),
            )
        verdict = health.look(now, WALL + now, peer if change is not None else None)
        assert verdict.state in (UNKNOWN, HEALTHY, DOUBTFUL, DEAD)
        assert bool(verdict.reason) == (verdict.state != HEALTHY)
        if asked:
            health.asked(now)
        if answered:
            health.answered()
        assert health.ask_at() <= now + 3 + 2 * len(found)
