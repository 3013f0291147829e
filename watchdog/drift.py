"""Has anything changed that decides where packets go? The kernel's events tell when to look, the fingerprint tells
what has changed."""

from __future__ import annotations

from select import EPOLLIN

from init_wg import log
from init_wg.errors import InitWgError

from . import events

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .facts import Fingerprint, Kernel
    from .incident import Incidents
    from .loop import Loop, Timer
    from .scheduler import Policy

#: Seconds between two looks without an event.
LOOK_EVERY = 5.0
#: The fingerprint of ten thousand routes takes longer: it is taken more seldom, so that it stays below 0.1 %.
LOOK_SHARE = 1000.0
#: After an event, seconds until the look: whoever changes one thing is about to change the next.
DEBOUNCE = 0.005


class Drift:
    """Looks, and tells the policy. `looked` is called in the loop after a look that an event called for."""

    def __init__(
        self, loop: Loop, kernel: Kernel, policy: Policy, incidents: Incidents, looked: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._kernel = kernel
        self._policy = policy
        self._incidents = incidents
        self._looked = looked
        self._events: events.Events | None = None
        self._soon: Timer | None = None
        self._next = loop.now()
        #: Why it is not known whether anything changed, "" when it is. A run need not follow, so it ends by itself.
        self.unknown = ""

    def open(self) -> None:
        """Listen to the kernel. Without its events, changes are found every 5 s only."""
        try:
            self._events = events.Events()
        except OSError as error:
            log.error(f"the kernel's events are not available ({error.strerror}): changes are found every 5 s only")
            return
        if self._events.without_nftables:
            log.warning(f"nftables' events are not available ({self._events.without_nftables})")
        for each in self._events.sockets:
            self._loop.watch(each.fileno(), EPOLLIN, self._handler(each.fileno()))

    def tick(self, now: float) -> None:
        """Look, if it is time."""
        if now >= self._next:
            self._look()

    def look_next(self, now: float) -> None:
        """At the next tick: the device has changed."""
        self._next = now

    def look_soon(self) -> None:
        """After an event; or an orphan ended: perhaps wireguard-go, and its interface with it."""
        if self._soon is None:
            self._soon = self._loop.call_later(DEBOUNCE, self._look_and_tell)

    def fingerprint(self) -> Fingerprint | None:
        """The present one; None when the kernel does not tell."""
        try:
            seen = self._kernel.fingerprint()
        except (OSError, InitWgError) as error:
            self.unknown = f"the kernel does not tell its state: {error}"
            return None
        self.unknown = ""
        return seen

    def deletions(self) -> int:
        """How many events told of something that was taken away, as far as they were read."""
        return self._events.deletions if self._events else 0

    def forget_events(self) -> None:
        """Read those that wait, and do nothing for them: a run itself has caused them."""
        for each in self._events.sockets if self._events else ():
            self._read(each.fileno())

    def _read(self, fd: int) -> tuple[events.Author, ...]:
        return self._events.read(fd).authors if self._events else ()

    def _handler(self, fd: int) -> Callable[[int], None]:
        def ready(_events: int) -> None:
            authors = self._read(fd)
            if self._policy.running is None:
                self._incidents.noticed(self._loop.now(), authors, events.named)
                self.look_soon()

        return ready

    def _look_and_tell(self) -> None:
        self._soon = None
        self._look()
        self._looked()

    def _look(self) -> None:
        if self._policy.running is not None:
            return
        began = self._loop.now()
        seen = self.fingerprint()
        now = self._loop.now()
        self._next = now + max(LOOK_EVERY, (now - began) * LOOK_SHARE)
        if seen is None or not self._policy.observed(now, seen):
            self._incidents.dismissed()
