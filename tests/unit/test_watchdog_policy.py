"""When what is run: the decisions, on a clock that the test moves."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from watchdog.facts import Fingerprint
from watchdog.scheduler import (
    CALM_AFTER,
    CONFIG,
    CONFIRM,
    CONFIRM_AFTER,
    CONTESTED,
    DRIFT,
    FIGHT_CAP,
    FIGHT_FIRST,
    FIGHT_FREE,
    FIGHT_OVER,
    FOUGHT,
    LONG_REPAIR,
    PEER,
    RETRY,
    RETRY_CAP,
    START,
    UNDONE_TIMES,
    UNDONE_WITHIN,
    Policy,
    Run,
    next_server,
)

RIGHT = Fingerprint(1, 2, 3, 4, 5, 6)
BROKEN = RIGHT._replace(rules=44, firewall=55)


def settled(now: float = 0.0) -> Policy:
    policy = Policy(now)
    run = policy.take(now)
    assert run is not None
    assert run.why == START
    policy.finished(now, 0, RIGHT, RIGHT)
    assert policy.settled
    assert policy.take(now + 100) is None
    assert policy.wake_at() is None
    return policy


def test_it_begins_with_a_run() -> None:
    settled()


def test_one_run_at_a_time() -> None:
    policy = Policy(0)
    assert policy.take(0)
    policy.demanded(1, Run(CONFIG))
    assert policy.take(1) is None
    policy.finished(2, 0, RIGHT, RIGHT)
    assert policy.take(2) == Run(CONFIG)


def test_a_change_is_repaired_at_once_and_then_confirmed() -> None:
    policy = settled()
    assert policy.observed(10, RIGHT) == ()
    assert policy.take(10) is None
    assert policy.observed(10, BROKEN) == ("rules", "firewall")
    assert policy.take(10) == Run(DRIFT, ("rules", "firewall"))
    policy.finished(10.2, 0, BROKEN, RIGHT)
    assert not policy.settled
    assert policy.take(10.2) is None
    assert policy.wake_at() == 10.2 + CONFIRM_AFTER
    assert policy.take(10.2 + CONFIRM_AFTER) == Run(CONFIRM)
    policy.finished(11, 0, RIGHT, RIGHT)
    assert policy.settled
    assert policy.wake_at() is None


def test_a_change_between_repair_and_confirmation_is_repaired_at_once() -> None:
    policy = settled()
    policy.observed(10, BROKEN)
    policy.take(10)
    policy.finished(10.2, 0, BROKEN, RIGHT)
    policy.observed(10.3, BROKEN)
    assert policy.take(10.3) == Run(DRIFT, ("rules", "firewall"))


def test_a_change_during_the_confirmation_is_looked_at_again() -> None:
    policy = settled()
    policy.observed(10, BROKEN)
    policy.take(10)
    policy.finished(10.2, 0, BROKEN, RIGHT)
    policy.take(11)
    policy.finished(11.1, 0, RIGHT, BROKEN)  # the run saw it right; now it is not
    assert not policy.settled
    assert policy.take(11.1) == Run(CONFIRM), "no need to wait: this was no doing of ours"


def test_who_fights_is_slowed_down_and_who_does_not_is_not() -> None:
    policy, now, waits = settled(), 100.0, []
    for _ in range(FIGHT_FREE + 12):
        policy.observed(now, BROKEN)
        at = policy.wake_at()
        assert at is not None
        waits.append(at - now)
        assert policy.take(at)
        now = at + 0.2
        policy.finished(now, 0, BROKEN, RIGHT)
        now += 0.01  # and changed again at once
    assert waits[: FIGHT_FREE + 1] == [0.0] * (FIGHT_FREE + 1)
    assert waits == sorted(waits)
    assert waits[-1] == FIGHT_CAP
    policy.take(now + 1)
    policy.finished(now + 2, 0, RIGHT, RIGHT)
    policy.observed(now + 60, BROKEN)
    assert policy.take(now + 60)


def test_a_fight_inside_one_run_counts_as_one_and_ends_when_all_was_quiet() -> None:
    policy = settled()
    now = 10.0
    for _ in range(8):
        policy.observed(now, BROKEN)
        now = policy.wake_at() or now
        assert policy.take(now)
        policy.finished(now, FOUGHT, BROKEN, BROKEN._replace(firewall=int(now * 1000)))
    assert policy.slowed
    policy.observed(now, BROKEN)
    waits = []
    for _ in range(2):  # the rival has gone: one run repairs, the next one, a long wait later, finds all right
        at = policy.wake_at()
        assert at is not None
        waits.append(at - now)
        now = at
        assert policy.take(now)
        policy.finished(now, 0, RIGHT, RIGHT._replace(links=99) if len(waits) == 1 else RIGHT)
    assert FIGHT_FIRST < waits[0] <= FIGHT_CAP
    assert waits[1] >= FIGHT_OVER
    assert policy.settled
    assert not policy.slowed
    policy.observed(now + 0.1, BROKEN)
    assert policy.take(now + 0.1)


def test_many_faults_a_second_apart_are_all_repaired_at_once() -> None:
    policy, now = settled(), 100.0
    for _ in range(300):
        policy.observed(now, BROKEN)
        assert policy.take(now)
        policy.finished(now + 0.2, 0, BROKEN, RIGHT)
        assert policy.take(now + 0.6)
        policy.finished(now + 0.7, 0, RIGHT, RIGHT)
        now += 1.3


def test_failed_runs_are_repeated_ever_more_slowly() -> None:
    policy, now, waits = Policy(0), 0.0, []
    policy.take(0)
    for _ in range(12):
        policy.finished(now, 4, BROKEN, BROKEN)
        at = policy.wake_at()
        assert at is not None
        waits.append(at - now)
        run = policy.take(at)
        assert run is not None
        assert run.why == RETRY
        now = at
    assert waits[:6] == [1, 2, 4, 8, 16, RETRY_CAP]
    assert set(waits[6:]) == {RETRY_CAP}


def test_a_wrong_configuration_is_not_tried_again_soon_but_a_new_one_at_once() -> None:
    policy = Policy(0)
    policy.take(0)
    policy.finished(0, 2, RIGHT, RIGHT)
    assert policy.wake_at() == RETRY_CAP
    policy.demanded(5, Run(CONFIG))
    assert policy.take(5) == Run(CONFIG)


def test_a_change_while_failed_runs_wait_is_looked_at_soon() -> None:
    policy, now = Policy(0), 0.0
    policy.take(0)
    for _ in range(8):
        policy.finished(now, 3, RIGHT, RIGHT)
        now += 1
        policy.take(now + 100)
    policy.finished(now, 3, RIGHT, RIGHT)
    policy.observed(now + 5, BROKEN)
    assert policy.take(now + 5) == Run(DRIFT, ("rules", "firewall"))


def test_a_failing_run_that_changes_things_does_not_call_for_itself() -> None:
    policy = Policy(0)
    policy.take(0)
    policy.finished(1, 5, RIGHT, BROKEN)
    assert policy.observed(1.1, BROKEN) == ()
    assert policy.take(1.5) is None


def test_a_dead_peer_gets_another_server_and_a_live_one_keeps_his() -> None:
    policy = settled()
    policy.demanded(10, Run(PEER, (), "b"))
    assert policy.take(10) == Run(PEER, (), "b")
    policy.finished(25, 4, RIGHT, BROKEN)
    policy.heard(25.5)
    assert policy.take(25.5) == Run(RETRY)  # no server: the one that is set up
    policy.finished(26, 0, BROKEN, BROKEN)
    assert policy.settled
    policy.demanded(30, Run(PEER, (), "b"))
    policy.heard(30)
    assert policy.take(30) is None


def test_without_a_fingerprint_nothing_is_settled() -> None:
    policy = Policy(0)
    policy.take(0)
    policy.finished(0, 0, None, None)
    assert not policy.settled
    assert policy.wake_at() is not None


def test_servers_go_round_and_round() -> None:
    assert next_server(("a", "b", "c"), "a") == "b"
    assert next_server(("a", "b", "c"), "c") == "a"
    assert next_server(("a", "b", "c"), "gone") == "a"
    assert next_server(("a",), "a") == "a"
    assert next_server((), None) is None


happenings = st.lists(
    st.one_of(
        st.tuples(st.just("look"), st.sampled_from([RIGHT, BROKEN])),
        st.tuples(st.just("end"), st.tuples(st.sampled_from([0, 2, 3, 4, 5, -9]), st.booleans())),
        st.tuples(st.just("demand"), st.sampled_from([Run(CONFIG), Run(PEER, (), "a")])),
        st.tuples(st.just("heard"), st.none()),
        st.tuples(st.just("wait"), st.floats(0.001, 40)),
    ),
    max_size=60,
)


@settings(max_examples=600, deadline=None)
@given(happenings)
def test_whatever_happens_drift_is_looked_at_in_bounded_time(found: list[tuple[str, object]]) -> None:
    policy, now, world = Policy(0), 0.0, RIGHT
    before = world
    for what, detail in found:
        if what == "look" and isinstance(detail, Fingerprint):
            world = detail
            policy.observed(now, world)
        elif what == "end" and policy.running and isinstance(detail, tuple):
            code, repaired = detail
            world = RIGHT if repaired else world
            policy.finished(now, code, before, world)
        elif what == "demand" and isinstance(detail, Run):
            policy.demanded(now, detail)
        elif what == "heard":
            policy.heard(now)
        elif what == "wait" and isinstance(detail, float):
            now += detail
        if policy.take(now):
            before = world
        at = policy.wake_at()
        assert at is None or at <= now + max(RETRY_CAP, FIGHT_CAP)
        if not policy.running and at is None:
            assert policy.settled


def change_and_repair(policy: Policy, now: float) -> float:
    """Something changes, a repair and its confirmation follow; returns when that was."""
    policy.observed(now, BROKEN)
    for _ in range(2):
        at = policy.wake_at()
        assert at is not None
        now = max(now, at)
        assert policy.take(now)
        now += 0.1
        policy.finished(now, 0, RIGHT, RIGHT)
        if policy.wake_at() is None:
            break
    return now


def test_repairs_that_are_undone_each_second_are_no_peace() -> None:
    """Each comes too long after the repair to slow it down; and traffic is interrupted each second."""
    policy = settled()
    for number in range(UNDONE_TIMES):
        assert policy.unsettled(10 + number) == ""
        change_and_repair(policy, 10 + number)
    end = 10 + UNDONE_TIMES
    assert not policy.slowed
    assert policy.unsettled(end) == CONTESTED
    assert policy.unsettled(end + CALM_AFTER) == ""
    assert policy.unsettled(end + CALM_AFTER + 100) == ""


def test_changes_now_and_then_are_no_fight() -> None:
    policy = settled()
    for number in range(20):
        at = 10 + number * (UNDONE_WITHIN / (UNDONE_TIMES - 1) + 0.5)
        change_and_repair(policy, at)
        assert policy.unsettled(at + 0.3) == ""


def test_repairs_that_are_slowed_down_are_red_until_the_fight_is_over() -> None:
    policy = settled()
    now = 10.0
    while not policy.slowed:
        now = change_and_repair(policy, now) + 0.01
    assert policy.unsettled(now) == CONTESTED
    while policy.slowed:
        now = change_and_repair(policy, now + FIGHT_CAP)
    assert policy.unsettled(now + CALM_AFTER + 1) == ""


def test_a_repair_that_does_not_end_is_red() -> None:
    policy = settled()
    policy.observed(10, BROKEN)
    assert policy.take(10)
    assert policy.unsettled(11) == ""
    assert policy.unsettled(10 + LONG_REPAIR) == "a repair (rules, firewall) has taken 2 s so far"
