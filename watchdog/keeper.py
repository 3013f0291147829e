"""The shell around the decisions: it makes the parts, gives each its turn, and starts what is due.

  drift         has anything changed that decides where packets go?
  tunnel        the device, and whether its peer is alive
  reloader      the configuration on disk
  runs          the runs of the setup
  names         the DNS forwarder
  verification  from where does the world see us?
  account       what is said of all that, at :9999 and in the log

When all is well it wakes once a second: it reads the device (for the verdict, and because WireGuard announces no
change of its own). Every third second it asks the peer a question, if nothing was heard; every second second it
looks at the config files; every fifth it compares the fingerprint. Where there are several resolvers, it asks them
every fifth second, too. It does no more, but for the kernel's events and for those who ask at :9999.
"""

from __future__ import annotations

from init_wg import log

from . import facts, scheduler
from .account import Account, Parts
from .drift import Drift
from .incident import Incidents
from .names import Names
from .peer_health import DEAD, HEALTHY
from .reloader import Reloader
from .runs import Runs
from .scheduler import CONFIG, PEER, VERIFY, Policy, Run
from .tunnel import Tunnel
from .verification import Verification

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from init_wg.config.settings import Settings

    from .child import Child, Ended
    from .loop import Loop, Timer
    from .supervisor import Supervisor

#: Seconds between two looks at the device.
TICK = 1.0


class Keeper:
    """Keeps the tunnel as it should be, and tells everyone who asks how it is."""

    def __init__(self, loop: Loop, settings: Settings, supervisor: Supervisor) -> None:
        self._loop = loop
        kernel, spawn = facts.Kernel(settings.interface), supervisor.spawn
        policy, incidents = Policy(loop.now()), Incidents()
        drift = Drift(loop, kernel, policy, incidents, self._go)
        supervisor.orphan_ended = drift.look_soon
        config, ports = settings.config, settings.input_ports_file
        reloader = Reloader(loop, spawn, config, lambda: tunnel.server, self._configured, ports)
        tunnel = Tunnel(loop, kernel, lambda: reloader.servers, self._answered)

        def start(command: tuple[str, ...], timeout: float, ended: Callable[[Ended], None]) -> Child | None:
            return spawn(command, timeout, ended, config=reloader.set_up_from(tunnel.server_now()))

        names = Names(loop, start, policy, lambda: tunnel.server, self._go, settings.interface)
        runs = Runs(
            loop, settings, supervisor, policy, incidents, drift, reloader, names, tunnel.server_now, self._run_ended
        )
        verification = Verification(loop, settings, spawn, incidents, lambda now: self._fail_over(now, VERIFY))
        self._parts = Parts(supervisor, policy, incidents, drift, tunnel, reloader, names, runs, verification)
        self._account = Account(loop, settings, kernel, self._parts)
        self._wake: Timer | None = None

    def start(self) -> None:
        """Open everything, and begin. A part that cannot be opened is logged, and tried again; repairs matter more."""
        self._account.open()
        self._parts.drift.open()
        self._tick()

    def stop(self) -> None:
        """End in well under a second. The kill-switch and the tunnel stay as they are."""
        self._parts.supervisor.stop()
        self._account.close()

    def reload(self) -> None:
        """SIGHUP: read the configuration again."""
        log.info("asked to read the configuration again")
        self._parts.reloader.reload()

    def _tick(self) -> None:
        parts, now = self._parts, self._loop.now()
        self._loop.call_at(now + TICK, self._tick)
        parts.runs.tick(now)
        self._observe(now)
        parts.drift.tick(now)
        parts.reloader.tick(now)
        parts.names.tick()
        well = parts.tunnel.verdict.state == HEALTHY and not parts.runs.failure and not parts.drift.unknown
        if well and parts.verification.due(now):
            parts.verification.begin(parts.tunnel.server, self._go)
        self._go()

    def _observe(self, now: float) -> None:
        """The device, and the verdict on its peer."""
        policy, tunnel = self._parts.policy, self._parts.tunnel
        if tunnel.read(now):
            self._parts.drift.look_next(now)
        before, verdict = tunnel.judge(now)
        if verdict.state == DEAD and before.state != DEAD:
            log.warning(f"{verdict.reason}: the peer is dead")
            self._fail_over(now, PEER)
        elif verdict.state == HEALTHY:
            policy.heard(now, back=before.state != HEALTHY)
        if policy.running is None:
            tunnel.begin_handshake(now)

    def _answered(self) -> None:
        if self._parts.tunnel.verdict.state != HEALTHY:
            self._observe(self._loop.now())
            self._account.publish()

    def _go(self) -> None:
        """Start what is due, and wake up for what will be."""
        policy, now = self._parts.policy, self._loop.now()
        run = policy.take(now)
        if run is not None:
            self._parts.runs.begin(run)
            self._account.outdated()
        at = policy.wake_at()
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None
        if at is not None:
            self._wake = self._loop.call_at(max(at, now + 0.01), self._go)
        self._account.publish()

    def _run_ended(self, worked: bool | None) -> None:
        """None: it found out that the file on disk is bad, and changed nothing."""
        self._account.outdated()
        if worked is not None:
            self._observe(self._loop.now())
        self._go()

    def _fail_over(self, now: float, why: str) -> None:
        """The next server; with one only, a new handshake with it."""
        current = self._parts.tunnel.server
        server = scheduler.next_server(self._parts.reloader.names, current.name if current else None)
        self._parts.incidents.failovers += 1
        self._parts.policy.demanded(now, Run(why, (), server))

    def _configured(self) -> None:
        """There is a new configuration, and it is good."""
        self._parts.policy.demanded(self._loop.now(), Run(CONFIG))
        self._go()
