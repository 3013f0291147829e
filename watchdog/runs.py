"""The runs of the setup: each is begun, waited for, and what it says is taken to heart."""

from __future__ import annotations

from init_wg import log

from . import scheduler, status
from .scheduler import CONFIRM, DRIFT, PEER, START, VERIFY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from init_wg.config.settings import Settings

    from .child import Child, Ended
    from .drift import Drift
    from .facts import Fingerprint, Server
    from .incident import Incidents
    from .loop import Loop
    from .scheduler import Policy, Run
    from .supervisor import Supervisor

    class Configuration(Protocol):
        """The files that a run reads."""

        servers: tuple[Server, ...]

        def run_begins(self, server: str | None) -> tuple[str | None, str]: ...
        def run_refused(self, ended: Ended) -> bool: ...
        def remember(self, server: str) -> None: ...

    class Answers(Protocol):
        """The answers to DNS queries, which depend on what is set up."""

        def run_worked(self, run: Run, *, renew: bool) -> None: ...


#: Seconds that a run may take beyond the handshakes it waits for; for each server beyond its handshake.
TIMEOUT, PER_SERVER = 60.0, 10.0


class Runs:
    """At most one at a time. server: tells the name of the one that is set up now; `ended` is called in the loop after
    each, with whether it worked. A None says that the file on disk turned out to be bad, and no change was made."""

    def __init__(
        self,
        loop: Loop,
        settings: Settings,
        supervisor: Supervisor,
        policy: Policy,
        incidents: Incidents,
        drift: Drift,
        configuration: Configuration,
        names: Answers,
        server: Callable[[], str],
        ended: Callable[[bool | None], None],
    ) -> None:
        self._loop = loop
        self._settings = settings
        self._supervisor = supervisor
        self._policy = policy
        self._incidents = incidents
        self._drift = drift
        self._configuration = configuration
        self._names = names
        self._server = server
        self._done = ended
        self._child: Child | None = None
        self._deletions = 0  # when the run began
        #: Why the setup is not right, "" when it is; what the last failed run said.
        self.failure = "the setup has not run yet"
        #: Why a server could not take what is new, "" when it could; everything that was known is in place.
        self.refused = ""

    def begin(self, run: Run) -> None:
        """Start it; the policy counts it as running already."""
        before = self._drift.fingerprint()
        self._deletions = self._drift.deletions()
        self._incidents.run_begins(run)
        server, config = self._configuration.run_begins(run.server)
        word = ("node", "up") if self._settings.mode == "node" else ("up",)
        command = ("init_wg", *word, *(("--server", server) if server else ()))
        timeout = TIMEOUT + max(1, len(self._configuration.servers)) * (self._settings.handshake_timeout + PER_SERVER)

        def ended(how: Ended) -> None:
            self._ended(run, before, how)

        self._child = self._supervisor.spawn(command, timeout, ended, quiet=run.why != START, config=config)
        if self._child is None:
            self.failure = self._supervisor.error
            self._policy.finished(self._loop.now(), scheduler.LOST, None, None)

    def tick(self, now: float) -> None:
        """A mistake of ours came between a run and its child: without this, it would have been the last run."""
        if self._policy.running is not None and self._child is None:
            self._policy.finished(now, scheduler.LOST, None, None)

    def _ended(self, run: Run, before: Fingerprint | None, ended: Ended) -> None:
        self._child = None
        now = self._loop.now()
        if ended.code == scheduler.WRONG_CONFIG and self._configuration.run_refused(ended):
            self._policy.finished(now, scheduler.DONE, None, None)
            if run.why in (PEER, VERIFY):
                self._policy.demanded(now, run)  # the peer is no better for that
            self._done(None)
            return
        known, self.refused = self.refused, status.failure(ended) if status.goes_on(ended) else ""
        if not known or self.refused != known:
            log.relay(ended.errors)
        after = self._fingerprint_after(before)
        changed = before is None or after is None or before != after
        worked = ended.code == scheduler.DONE or bool(self.refused)
        self._policy.finished(now, scheduler.DONE if worked else ended.code, before, after)
        if worked:
            line = self._worked(run, now, now - ended.seconds, changed=changed)
        else:
            self.failure = status.failure(ended)
            line = self._incidents.failed(run, now, now - ended.seconds, ended.code, self.failure)
        if line:
            log.log(*line)
        self._done(worked)

    def _fingerprint_after(self, before: Fingerprint | None) -> Fingerprint | None:
        self._drift.forget_events()
        after = self._drift.fingerprint()
        if self._drift.deletions() != self._deletions and before == after:
            return None  # what the run put right was taken away again meanwhile: that looks as if nothing had been
        return after

    def _worked(self, run: Run, now: float, began: float, *, changed: bool) -> tuple[str, str] | None:
        self.failure = ""
        self._configuration.remember(self._server())  # first: the DNS forwarder starts from what this remembers
        self._names.run_worked(run, renew=changed and run.why not in (DRIFT, CONFIRM))
        slowed = self._policy.slowed
        if self.refused:
            self._incidents.dismissed()
            return None
        return self._incidents.repaired(run, now, began, self._server, changed=changed, slowed=slowed)
