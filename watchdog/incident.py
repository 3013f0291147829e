"""From the first sign of a change to its repair: who made it, how long it took, what to log and to count. Pure."""

from __future__ import annotations

from typing import NamedTuple

from .scheduler import CONFIG, CONFIRM, DRIFT, FOUGHT, PEER, START, VERIFY, causes_in_words
from .web.metrics import Histogram

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .events import Author
    from .scheduler import Run

#: Authors of changes that are told in one line; a flood of them must not make it, or this program, grow.
_AUTHORS = 4
#: Of what happened, so much is kept for the status page: lines, and characters of one. At most 64 KiB in all.
RECENT, LONGEST = 50, 400
_SLOWED = "something keeps changing this, so repairs are slowed down"


class Incident(NamedTuple):
    """A repair, or a run that failed; the application of another configuration is none."""

    at: float  # seconds of the monotonic clock
    why: str  # what called for the run
    changed: tuple[str, ...]  # the kinds of things that had changed, for DRIFT
    changed_by: tuple[str, ...]  # processes, where the kernel tells
    seconds: float  # from the first sign to the end of the run
    failure: str  # the run's own words, "" when everything is right again


class Incidents:
    """The one that is open, if any, and the counters of those before. Times are seconds of the monotonic clock.

    A line of the log is its level and its words.
    """

    def __init__(self) -> None:
        self._noticed: float | None = None
        #: Their processes' numbers and names, "" where it is not known.
        self._authors: dict[int, str] = {}
        #: By what called for them; by what had changed; how long it took; failed runs; dead peers and failed exits.
        self.runs: dict[str, int] = {}
        self.repairs: dict[str, int] = {}
        self.repair_seconds = Histogram()
        self.failed_repairs = self.failovers = 0
        #: What happened lately, oldest first: when, and the words of the log.
        self.recent: list[tuple[float, str]] = []
        #: When the VPN became active, or ceased to be.
        self.turned_at: float | None = None
        #: The latest that has ended.
        self.last: Incident | None = None

    def noticed(self, now: float, authors: Iterable[Author], named: Callable[[Author], Author]) -> None:
        """The kernel's events told of a change. `named` finds an author's name, which may cost something."""
        if self._noticed is None:
            self._noticed = now
        for author in authors:
            if author.pid and (author.pid in self._authors or len(self._authors) < _AUTHORS):
                self._authors[author.pid] = named(author).name or self._authors.get(author.pid, "")

    def dismissed(self) -> None:
        """No change that matters has come."""
        self._noticed = None
        self._authors.clear()

    def turned(self, now: float, words: str) -> None:
        """The VPN became active, or ceased to be."""
        self.turned_at = now
        self._keep(now, words)

    def run_begins(self, run: Run) -> None:
        """Count it."""
        self.runs[run.why] = self.runs.get(run.why, 0) + 1

    def repaired(
        self, run: Run, now: float, began: float, server: Callable[[], str], *, changed: bool, slowed: bool
    ) -> tuple[str, str] | None:
        """A run that began then found everything right or made it so. server: the name of the one that is used now."""
        line = self._line(run, now, began, server, changed=changed, slowed=slowed)
        if line and line[0] != "debug":
            self._keep(now, line[1])
        return line

    def _line(
        self, run: Run, now: float, began: float, server: Callable[[], str], *, changed: bool, slowed: bool
    ) -> tuple[str, str] | None:
        seconds = now - (self._noticed or began)
        authors = self._named()
        self.dismissed()
        if run.why == CONFIRM and not changed:
            return None
        if run.why == DRIFT and not changed:
            return "debug", f"{causes_in_words(run.causes)} changed, and nothing had to be repaired"
        if run.why == START:
            return "info", f"the setup is {'made' if changed else 'in place'} ({seconds:.2f} s)"
        for cause in run.causes or (run.why,):
            self.repairs[cause] = self.repairs.get(cause, 0) + 1
        self.repair_seconds.add(seconds)
        if run.why != CONFIG:
            self.last = Incident(now, run.why, run.causes, authors, seconds, "")
        if run.why == DRIFT:
            slow = f"; {_SLOWED}" if slowed else ""
            return "info", f"repaired in {seconds:.2f} s: {causes_in_words(run.causes)}{_by(authors)}{slow}"
        if run.why in (PEER, VERIFY):
            return "info", f"connected to {server() or 'a server'} after {seconds:.2f} s"
        if run.why == CONFIG:
            return "info", f"the configuration is applied ({seconds:.2f} s)"
        return None

    def failed(self, run: Run, now: float, began: float, code: int, words: str) -> tuple[str, str] | None:
        """A run that began then ended with this exit code of init_wg, other than 0, and these words."""
        authors = self._named()
        seconds = now - (self._noticed or began)
        self.last = Incident(now, run.why, run.causes, authors, seconds, words[:LONGEST])
        self.dismissed()
        self.failed_repairs += 1
        return ("warning", f"{_SLOWED}{_by(authors)}") if code == FOUGHT else None

    def _keep(self, now: float, words: str) -> None:
        self.recent.append((now, words[:LONGEST]))
        del self.recent[:-RECENT]

    def _named(self) -> tuple[str, ...]:
        return tuple(f"{name or 'process'} ({pid})" for pid, name in self._authors.items())


def _by(authors: tuple[str, ...]) -> str:
    return f", changed by {', '.join(authors)}" if authors else ""
