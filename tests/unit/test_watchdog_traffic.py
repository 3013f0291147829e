"""The rates behind the picture of the last ten minutes."""

from __future__ import annotations

from watchdog.traffic import INTERVAL, KEPT, Traffic


def test_rates_are_bytes_per_second() -> None:
    traffic = Traffic()
    for second in range(int(3 * INTERVAL) + 1):
        traffic.counted(1000.0 + second, 5_000_000 + 200 * second, 70 * second)
    assert traffic.received == [200, 200, 200]
    assert traffic.sent == [70, 70, 70]


def test_a_device_that_is_made_anew_begins_at_nothing() -> None:
    traffic = Traffic()
    traffic.counted(0.0, 1000, 1000)
    traffic.counted(INTERVAL, 50, 2000)
    assert (traffic.received, traffic.sent) == ([50 / INTERVAL], [1000 / INTERVAL])


def test_a_frozen_container_makes_no_peak() -> None:
    traffic = Traffic()
    traffic.counted(0.0, 0, 0)
    traffic.counted(1000 * INTERVAL, 1000, 0)
    assert traffic.received == [0]


def test_it_does_not_grow() -> None:
    traffic = Traffic()
    for number in range(3 * KEPT):
        traffic.counted(number * INTERVAL, int(number * INTERVAL), 0)
    assert traffic.received == [1] * KEPT
    assert len(traffic.sent) == KEPT
