"""The next run, and its time: the watchdog's decisions. Pure: told what happened, it answers what is due.

One run of `init_wg` at a time. A run that changed something is followed by another one: only a run that found
everything right, between two equal fingerprints, settles the matter. A change during a run cannot be told
apart from what the run does, and so needs no telling apart: the fingerprints differ, and the next run looks.
"""

from __future__ import annotations

from typing import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from .facts import Fingerprint

START, DRIFT, CONFIG, PEER, VERIFY, CONFIRM, RETRY = "start", "drift", "config", "peer", "verify", "confirm", "retry"
REASONS = (START, DRIFT, CONFIG, PEER, VERIFY, CONFIRM, RETRY)

#: Exit codes of init_wg.
DONE, WRONG_CONFIG, REFUSED, NO_HANDSHAKE, FOUGHT = 0, 2, 3, 4, 5
#: In place of one, when there was no run after all.
LOST = -1

#: After a repair, seconds until the look that confirms it: what it caused has happened by then.
CONFIRM_AFTER = 0.3
#: A change so soon after a repair is somebody fighting it. So many in a row are borne, then each waits twice as
#: long as the one before, up to the cap.
FIGHT_WITHIN, FIGHT_FREE, FIGHT_FIRST, FIGHT_CAP = 0.5, 5, 0.25, 10.0
#: Right after a wait of so long: the fight is over.
FIGHT_OVER = 2.0
#: So many changes within so many seconds are a fight, too, however long after a repair each comes; over when nothing
#: has changed for so long and everything was found right.
UNDONE_TIMES, UNDONE_WITHIN, CALM_AFTER = 5, 10.0, 3.0
#: A repair that takes so long has met something.
LONG_REPAIR = 2.0
#: Failed runs: the first is repeated after so many seconds, each further one after twice as many, up to the cap.
RETRY_FIRST, RETRY_CAP = 1.0, 30.0
#: A change that comes while failed runs wait is looked at, but not more often than this.
RETRY_LEAST = 1.0


CONTESTED = "something in this pod keeps undoing the repairs: the log names it where the kernel tells"


class Run(NamedTuple):
    """One run of `init_wg up`. causes: what differed, for words and metrics; server: the one to begin with."""

    why: str
    causes: tuple[str, ...] = ()
    server: str | None = None


class Policy:
    """Times are seconds of the monotonic clock; fingerprints are compared, never understood."""

    def __init__(self, now: float) -> None:
        self.running: Run | None = None
        #: Setup was found right, and nothing changed since.
        self.settled = False
        #: Failed runs in a row, and changes right after a repair in a row.
        self.failures = self.fights = 0
        self._seen: Fingerprint | None = None
        self._ended = now
        self._code = DONE  # of the last run
        self._waited = 0.0  # between the last run and this one
        self._began = now
        self._changes: tuple[float, ...] = ()  # the last ones
        self._contested = False
        self._due: dict[str, tuple[float, Run]] = {START: (now, Run(START))}

    # --- what happened ---------------------------------------------------------------------------------------------

    def observed(self, now: float, seen: Fingerprint) -> tuple[str, ...]:
        """A fingerprint was taken while nothing ran. Returns what changed since the last run."""
        if self.running or self._seen is None:
            return ()
        differences = seen.differences(self._seen)
        if differences and DRIFT not in self._due:
            self.settled = False
            self._changed(now)
            if now - self._ended <= FIGHT_WITHIN:
                self.fights += 1
            else:
                self.fights = 0
            self._due.pop(CONFIRM, None)
            self._due[DRIFT] = (self._allowed(now), Run(DRIFT, differences))
        return differences

    def demanded(self, now: float, run: Run) -> None:
        """Something else calls for a run: a new configuration, a dead peer, a failed verification."""
        if run.why == CONFIG:
            self.failures = self.fights = 0  # whatever failed, this may be the answer to it
            self._due.pop(RETRY, None)
        self._due[run.why] = (max(now, self._due[RETRY][0]) if RETRY in self._due else now, run)

    def heard(self, now: float, *, back: bool = False) -> None:
        """The peer lives: no other server is wanted, and a run that failed for want of one may be right now. back: it
        was not heard before."""
        self._due.pop(PEER, None)
        retry = self._due.get(RETRY)
        if retry is not None and (retry[1].server is not None or (back and self._code == NO_HANDSHAKE)):
            self._due[RETRY] = (now, Run(RETRY))

    def finished(self, now: float, code: int, before: Fingerprint | None, after: Fingerprint | None) -> None:
        """The run ended with this exit code. Without a fingerprint (the kernel refused), nothing is settled."""
        run, self.running = self.running, None
        steady = before is not None and before == after
        self._seen, self._ended, self._code = after, now, code
        if code != DONE:
            self.failures += 1
            self.settled = False
            if code == FOUGHT:  # several repairs in a row, in one run
                self.fights = max(self.fights, FIGHT_FREE) + 1
            # A wrong configuration does not become right by trying again.
            exponent = 16 if code == WRONG_CONFIG else min(self.failures - 1, 16)
            delay = min(RETRY_CAP, RETRY_FIRST * 2**exponent)
            self._due[RETRY] = (now + delay, (run or Run(RETRY))._replace(why=RETRY))
            return
        self.failures = 0
        self._due.pop(RETRY, None)
        self.settled = steady
        if steady and self._waited >= FIGHT_OVER:
            self.fights = 0
        if not steady:
            delay = CONFIRM_AFTER
            if run and run.why == CONFIRM:  # somebody changed something just then, or still does
                self.fights += 1
                self._changed(now)
                delay = 0.0
            self._due[CONFIRM] = (max(now + delay, self._allowed(now)), Run(CONFIRM))

    # --- what to do ------------------------------------------------------------------------------------------------

    def take(self, now: float) -> Run | None:
        """The run that is due now, if any; it counts as running from now on."""
        if self.running:
            return None
        for why in (START, CONFIG, PEER, VERIFY, DRIFT, RETRY, CONFIRM):
            due, run = self._due.get(why, (now + 1, Run(why)))
            if due <= now:
                # Every run does the whole work, whatever called for it.
                kept = {PEER, VERIFY} - {why} if run.server is None else set()
                self._due = {each: value for each, value in self._due.items() if each in kept}
                self.running, self._waited, self._began = run, now - self._ended, now
                return run
        return None

    def wake_at(self) -> float | None:
        """When take() will have something, as far as is known."""
        if self.running or not self._due:
            return None
        return min(due for due, _ in self._due.values())

    def _allowed(self, now: float) -> float:
        """When a repair may begin: at once, unless something keeps fighting or failing."""
        allowed = now
        if self.fights > FIGHT_FREE:
            allowed = now + min(FIGHT_CAP, FIGHT_FIRST * 2 ** min(self.fights - FIGHT_FREE - 1, 16))
        if self.failures:
            allowed = max(allowed, self._ended + RETRY_LEAST)
        return allowed

    def _changed(self, now: float) -> None:
        self._changes = (*self._changes, now)[-UNDONE_TIMES:]
        if len(self._changes) == UNDONE_TIMES and now - self._changes[0] <= UNDONE_WITHIN:
            self._contested = True

    def unsettled(self, now: float) -> str:
        """Why traffic may not flow though no run has failed: repairs do not last, or do not end. Else ""."""
        if self.slowed or self._contested:
            # Calm since the last change and since the last run, which found everything right.
            calm = now - max((self._ended, *self._changes[-1:]))
            if not self.settled or not self.idle or calm < CALM_AFTER:
                return CONTESTED
            self._contested, self.fights = False, 0
        if self.running and self.running.why in (DRIFT, RETRY) and now - self._began >= LONG_REPAIR:
            return f"a repair ({causes_in_words(self.running.causes)}) has taken {now - self._began:.0f} s so far"
        return ""

    @property
    def idle(self) -> bool:
        """No run is under way, and none is due."""
        return self.running is None and not self._due

    @property
    def slowed(self) -> bool:
        """Something fights the repairs, so they wait."""
        return self.fights > FIGHT_FREE


def next_server(servers: tuple[str, ...], current: str | None) -> str | None:
    """The one after the current one, round and round; None when there is no choice of names."""
    if not servers:
        return None
    if current not in servers:
        return servers[0]
    return servers[(servers.index(current) + 1) % len(servers)]


def causes_in_words(causes: Iterable[str]) -> str:
    """For the log."""
    return ", ".join(causes) or "nothing in particular"
