"""The exit check as a child: started when it is due, and judged when it ends."""

from __future__ import annotations

from init_wg import log

from .exit_check import ExitCheck

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from init_wg.config.settings import Settings

    from .child import Child, Ended
    from .facts import Server
    from .incident import Incidents
    from .loop import Loop
    from .supervisor import Spawn

#: Seconds that one may take.
TIMEOUT = 45.0


class Verification:
    """At most one at a time. `exhausted` is called in the loop when it is the next server's turn."""

    def __init__(
        self,
        loop: Loop,
        settings: Settings,
        spawn: Spawn,
        incidents: Incidents,
        exhausted: Callable[[float], None],
    ) -> None:
        self._loop = loop
        self._settings = settings
        self._spawn = spawn
        self._incidents = incidents
        self._exhausted = exhausted
        self._child: Child | None = None
        self.check = ExitCheck(loop.now(), settings.verify_interval, settings.verify_failures)

    @property
    def trouble(self) -> str:
        """How it failed, "" when it did not."""
        return self.check.words if self.check.failed else ""

    def due(self, now: float) -> bool:
        """Is one wanted, and none under way?"""
        return bool(self._settings.verify_url) and self._child is None and self.check.due(now)

    def begin(self, server: Server | None, ended: Callable[[], None]) -> None:
        """Start one. `ended` is called when it is over."""
        settings, resolvers = self._settings, server.resolvers if server else ()
        verify = f"{__package__}.verify"
        command = (verify, settings.verify_url, settings.verify_expect, settings.interface, *resolvers)
        failovers = self._incidents.failovers

        def over(how: Ended) -> None:
            self._ended(how, current=failovers == self._incidents.failovers)
            ended()

        self._child = self._spawn(command, TIMEOUT, over)
        if self._child is None:
            self.check.postponed(self._loop.now())

    def _ended(self, ended: Ended, *, current: bool) -> None:
        self._child = None
        now = self._loop.now()
        if not current:  # the server that it is about has been left meanwhile
            self.check.postponed(now)
            return
        line = self.check.finished(now, ended.last_line(), passed=ended.code == 0)
        if line:
            log.log(*line)
        if self.check.exhausted:
            self._exhausted(now)
