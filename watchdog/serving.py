"""The watchdog of a server: the same shell as keeper.py, for a pod that is the other end of the tunnel.

  drift    has anything changed that decides where packets go?
  roster   the peers, and who was seen lately
  listed   the file of peers, if there is one
  runs     the runs of the setup
  names    the peers' DNS forwarder

No peer has to be there, so no peer is asked anything: a server is ready as soon as everything is in place.
"""

from __future__ import annotations

import time

from init_wg import log

from . import facts
from .drift import Drift
from .exit_check import ExitCheck
from .incident import Incidents
from .names import Names
from .pages import Endpoint
from .reloader import EVERY, Watched
from .roster import Kernel, Roster
from .runs import Runs
from .scheduler import CONFIG, RETRY, RETRY_CAP, Policy, Run
from .status import Status
from .traffic import Traffic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from init_wg.config.server_settings import ServerSettings
    from init_wg.config.settings import Settings

    from .child import Ended
    from .loop import Loop, Timer
    from .supervisor import Supervisor

#: Seconds between two ticks.
TICK = 1.0
NOT_READY = "server is not ready"


class Listed:
    """The file of PEERS_FILE, "" for none. `changed` is called in the loop once it has changed and kept still."""

    #: A run has no other server to begin with.
    servers: tuple[facts.Server, ...] = ()

    def __init__(self, loop: Loop, path: str, changed: Callable[[], None]) -> None:
        self._file = Watched(loop, path, facts.file, changed) if path else None
        self._next = loop.now()

    def tick(self, now: float) -> None:
        """Look, if it is time. now: seconds of the monotonic clock."""
        if self._file is not None and now >= self._next:
            self._next = now + EVERY
            self._file.look()

    def run_begins(self, _server: str | None) -> tuple[str | None, str]:
        """The setup reads what is there."""
        return None, ""

    def run_refused(self, _ended: Ended) -> bool:
        """Where a server goes on with what was known, the run itself says so."""
        return False

    def remember(self, _server: str) -> None:
        """The run itself keeps what it needs."""


class _Names(Names):
    """The peers' names. What the forwarder is told does not depend on who the peers are, so none of them waits for a
    new one."""

    def run_worked(self, run: Run, *, renew: bool) -> None:
        """The setup is right."""
        super().run_worked(run, renew=renew and not self.running)


class Server:
    """Keeps the server as it should be, and tells everyone who asks how it is."""

    def __init__(self, loop: Loop, settings: Settings, server: ServerSettings, supervisor: Supervisor) -> None:
        self._loop = loop
        self._settings = settings
        self._kernel = Kernel(settings.interface)
        self._policy, self._incidents = Policy(loop.now()), Incidents()
        self._drift = Drift(loop, self._kernel, self._policy, self._incidents, self._go)
        supervisor.orphan_ended = self._drift.look_soon
        self._supervisor = supervisor
        self._listed = Listed(loop, server.peers_file, self.reload)
        self._names = _Names(loop, supervisor.spawn, self._policy, lambda: None, self._go, settings.interface)
        self._runs = Runs(loop, settings, supervisor, self._policy, self._incidents, self._drift, self._listed,
                          self._names, str, self._run_ended)  # fmt: skip
        self._roster = Roster(self._kernel, server.data)
        self._traffic, self._exit_check = Traffic(), ExitCheck(loop.now(), 0.0)
        self._endpoint = Endpoint(loop, settings, self._kernel, self._status, lambda: supervisor.error,
                                  lambda: self._policy.running)  # fmt: skip
        self._wake: Timer | None = None
        self._again = loop.now()

    def start(self) -> None:
        """Open everything, and begin. A part that cannot be opened is logged, and tried again; repairs matter more."""
        if self._settings.health_probe:
            self._endpoint.open()
        self._drift.open()
        self._tick()

    def stop(self) -> None:
        """End in well under a second. The kill-switch and the tunnel stay as they are."""
        self._supervisor.stop()
        self._endpoint.close()

    def reload(self) -> None:
        """SIGHUP, or another list of peers. A run validates it, and goes on with what was known if it is wrong."""
        self._policy.demanded(self._loop.now(), Run(CONFIG))
        self._go()

    def _tick(self) -> None:
        now = self._loop.now()
        self._loop.call_at(now + TICK, self._tick)
        self._runs.tick(now)
        self._drift.tick(now)
        self._listed.tick(now)
        self._names.tick()
        self._traffic.counted(now, *facts.carried(self._kernel.reading))
        if self._runs.refused and now >= self._again:
            self._again = now + RETRY_CAP
            self._policy.demanded(now, Run(RETRY))  # a full volume raises no event when it has room again
        self._go()

    def _go(self) -> None:
        """Start what is due, and wake up for what will be."""
        now = self._loop.now()
        run = self._policy.take(now)
        if run is not None:
            self._runs.begin(run)
            self._endpoint.kept.forget()
        at = self._policy.wake_at()
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None
        if at is not None:
            self._wake = self._loop.call_at(max(at, now + 0.01), self._go)
        self._publish()

    def _run_ended(self, _worked: bool | None) -> None:
        self._again = self._loop.now() + RETRY_CAP
        self._endpoint.kept.forget()
        self._roster.read()
        self._go()

    def _publish(self) -> None:
        """Answer by what is known now; a turn is logged."""
        reason, counts = self._reason(), self._roster.counts(time.time())
        ready = f"server is ready: {counts.seen} of {counts.active} peers seen in the last 3 min"
        if self._endpoint.publish(reason, ready, NOT_READY):
            words = f"{NOT_READY}: {reason}" if reason else ready
            self._incidents.turned(self._loop.now(), words)
            log.log("warning" if reason else "info", words)

    def _reason(self) -> str:
        """Why the server is not ready, "" when it is."""
        missing = f"{self._settings.interface} is gone and is being made again" if self._kernel.reading is None else ""
        return (
            self._runs.failure
            or self._drift.unknown
            or self._policy.unsettled(self._loop.now())
            or missing
            or self._names.trouble
        )

    def _status(self) -> Status:
        return Status(
            reason=self._reason(),
            verdict="",
            servers=(),
            server=None,
            settled=self._policy.settled and self._policy.idle,
            running=self._policy.running,
            bad_configuration=self._runs.refused,
            dns_mode="",
            forwarder=self._names.running,
            incidents=self._incidents,
            exit_check=self._exit_check,
            key_contention=False,
            traffic=self._traffic,
            known=self._roster.known,
            served=self._roster.counts(time.time()),
            now=self._loop.now(),
        )
