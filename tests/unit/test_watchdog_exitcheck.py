"""Exit checks, one after the other: when the next one is due, when the tunnel has failed, and what is said of it."""

from __future__ import annotations

import pytest

from watchdog.exit_check import AGAIN, ExitCheck

THRESHOLD = 3


def test_the_first_one_is_due_at_once() -> None:
    check = ExitCheck(100, 300)
    assert check.due(100)
    assert not check.failed
    assert not check.exhausted
    assert check.words == ""


def test_who_passes_is_mentioned_once_and_asked_at_the_interval() -> None:
    check = ExitCheck(0, 300)
    assert check.finished(1, "the exit is 203.0.113.9", passed=True) == ("info", "the exit is 203.0.113.9")
    assert not check.due(300.9)
    assert check.due(301)
    assert check.finished(302, "the exit is 203.0.113.9", passed=True) is None
    assert check.results == {"passed": 2}


@pytest.mark.parametrize(("interval", "wait"), [(300, AGAIN), (2, 2)])
def test_after_a_failure_it_is_soon_asked_again(interval: float, wait: float) -> None:
    check = ExitCheck(0, interval)
    check.finished(10, "no answer", passed=False)
    assert not check.due(10 + wait - 0.1)
    assert check.due(10 + wait)


def test_only_so_many_in_a_row_count() -> None:
    check = ExitCheck(0, 300)
    for _ in range(3):
        for _ in range(THRESHOLD - 1):
            check.finished(0, "no answer", passed=False)
            assert not check.failed
            assert not check.exhausted
        check.finished(0, "the exit is 203.0.113.9", passed=True)
        assert not check.exhausted
    assert check.results == {"failed": 3 * (THRESHOLD - 1), "passed": 3}


def test_once_failed_it_stays_so_until_one_passes_and_each_server_has_its_chances() -> None:
    check = ExitCheck(0, 300)
    exhausted = []
    for number in range(1, 3 * THRESHOLD + 1):
        check.finished(0, "no answer", passed=False)
        assert check.failed == (number >= THRESHOLD)
        if check.exhausted:
            exhausted.append(number)
    assert exhausted == [THRESHOLD, 2 * THRESHOLD, 3 * THRESHOLD]
    assert check.finished(0, "the exit is 203.0.113.9", passed=True) == ("info", "the exit is 203.0.113.9")
    assert not check.failed
    assert not check.exhausted


def test_each_failure_is_said_with_its_number() -> None:
    check = ExitCheck(0, 300)
    said = [check.finished(0, "no answer", passed=False) for _ in range(2 * THRESHOLD)]
    assert said == [("warning", f"no answer ({number} of 3)") for number in (1, 2, 3, 1, 2, 3)]
    assert check.words == "no answer"


def test_who_ends_without_a_word_has_one_put_in_its_mouth() -> None:
    check = ExitCheck(0, 300)
    assert check.finished(0, "", passed=False) == ("warning", "the exit check ended without a word (1 of 3)")
    assert check.words == "the exit check ended without a word"


def test_one_that_could_not_be_started_is_neither_passed_nor_failed() -> None:
    check = ExitCheck(0, 300)
    check.postponed(100)
    assert not check.due(100 + AGAIN - 0.1)
    assert check.due(100 + AGAIN)
    assert check.results == {}
    assert check.words == ""


@pytest.mark.parametrize("threshold", [1, 5])
def test_how_many_have_to_fail_is_a_setting(threshold: int) -> None:
    check = ExitCheck(0, 300, threshold)
    for number in range(1, 2 * threshold + 1):
        line = check.finished(0, "no answer", passed=False)
        assert line == ("warning", f"no answer ({(number - 1) % threshold + 1} of {threshold})")
        assert check.failed == (number >= threshold)
        assert check.exhausted == (number % threshold == 0)
