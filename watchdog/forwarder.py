"""The DNS forwarder, where DNS_MODE needs one: `init_wg names` becomes it, and this keeps it alive.

While it is away names fail and nothing leaks: the kill-switch leads every query to its port, and only there.
"""

from __future__ import annotations

from init_wg import log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from watchdog.child import Child, Ended
    from watchdog.loop import Loop, Timer
    from watchdog.supervisor import Spawn

#: Seconds until it is started again: at once the first time, then doubling.
AGAIN_FIRST, AGAIN_LAST = 0.05, 10.0
#: It ran for so long: whatever ended it is not a mistake in its command line.
STEADY = 10.0
FOR_EVER = 1e9


class Forwarder:
    """One child, restarted when it ends, renewed when what it was told has changed."""

    def __init__(self, loop: Loop, spawn: Spawn) -> None:
        self._loop = loop
        self._spawn = spawn
        self._child: Child | None = None
        self._again: Timer | None = None
        self._delay = AGAIN_FIRST
        self._renewed = False
        #: None: not asked yet; False: no server and no mode needs it.
        self.needed: bool | None = None

    @property
    def running(self) -> bool:
        """Is there a forwarder?"""
        return self._child is not None

    def ensure(self) -> None:
        """After a setup: start it unless it runs, is about to, or is not needed."""
        if self._child is None and self._again is None and self.needed is not False:
            self._start()

    def renew(self) -> None:
        """Another server or another configuration: ask anew whether it is needed, and for what."""
        self.needed = None
        if self._child is not None:
            self._renewed = True
            self._child.end()
        else:
            self.ensure()

    def _start(self) -> None:
        self._again = None
        self._child = self._spawn(("init_wg", "names"), FOR_EVER, self._ended)
        if self._child is None:
            self._later()

    def _ended(self, ended: Ended) -> None:
        self._child = None
        if self._renewed:
            self._renewed = False
            self._start()
        elif ended.code == 0:  # it never ends by itself with 0: this was "not needed"
            self.needed = False
        else:
            self.needed = True
            if ended.seconds > STEADY:
                self._delay = AGAIN_FIRST
            why = f"by signal {-ended.code}" if ended.code < 0 else ended.last_line() or f"with status {ended.code}"
            log.warning(f"the DNS forwarder ended ({why}); starting it again")
            self._later()

    def _later(self) -> None:
        self._again = self._loop.call_later(self._delay, self._start)
        self._delay = min(self._delay * 2, AGAIN_LAST)
