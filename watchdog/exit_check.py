"""From where does the world see us? The answers of `watchdog.verify` are judged, one after the other. Pure.

One failure may be the asked server's own. As with a probe of Kubernetes, only so many in a row count: then the tunnel
has failed, and stays failed until a check has passed.
"""

from __future__ import annotations

#: After a failure, and after one that could not be started, seconds until the next check: at most this.
AGAIN = 10.0


class ExitCheck:
    """Times are seconds of the monotonic clock. interval: seconds between two checks while they pass. threshold: how
    many have to fail in a row."""

    def __init__(self, now: float, interval: float, threshold: int = 3) -> None:
        self._interval = interval
        self._threshold = threshold
        self._due = now
        self._failures = 0
        #: How many passed, how many failed.
        self.results: dict[str, int] = {}
        #: What the last one said, "" before there was one.
        self.words = ""

    def due(self, now: float) -> bool:
        """Is it time for the next one?"""
        return now >= self._due

    def postponed(self, now: float) -> None:
        """It could not be started, which says nothing about the exit."""
        self._due = now + min(self._interval, AGAIN)

    def finished(self, now: float, words: str, *, passed: bool) -> tuple[str, str] | None:
        """One ended and said this. Returns the log's line, as its level and its words, if that is news."""
        result = "passed" if passed else "failed"
        self.results[result] = self.results.get(result, 0) + 1
        words = words or "the exit check ended without a word"
        news = not self.words or self._failures > 0
        self._due = now + (self._interval if passed else min(self._interval, AGAIN))
        self._failures = 0 if passed else self._failures + 1
        self.words = words
        if not passed:
            number = (self._failures - 1) % self._threshold + 1
            return "warning", f"{words} ({number} of {self._threshold})"
        return ("info", words) if news else None

    @property
    def failed(self) -> bool:
        """The tunnel counts as failed."""
        return self._failures >= self._threshold

    @property
    def exhausted(self) -> bool:
        """Failed so many times in a row, once more: it is the next server's turn."""
        return self._failures > 0 and self._failures % self._threshold == 0
