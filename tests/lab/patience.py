"""Waiting for a condition, and the error of a harness that does not work. Standard library only."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class LabError(Exception):
    """The lab itself failed: no statement about what is tested in it."""


def wait_until(condition: Callable[[], T], what: str, timeout: float = 60.0, pause: float | None = None) -> T:
    """Ask until the answer is true, and return it. Raises LabError.

    timeout: seconds, and generous, because emulated guests are slow. pause: seconds between two questions. Without one
    it is short, or as long as the question itself took: half of the time belongs to what is waited for.
    """
    asked = time.monotonic()
    deadline, short = asked + timeout, 0.001
    while not (answer := condition()):
        if (now := time.monotonic()) > deadline:
            raise LabError(f"still waiting after {timeout:g} s: {what}")
        time.sleep(min(max(short, now - asked), 0.2) if pause is None else pause)
        asked, short = time.monotonic(), min(short * 1.5, 0.02)
    return answer
