"""The shell around the decisions: everything that happens comes in here, and everything that is done goes out.

When all is well it wakes once a second: it reads the device (for the verdict, and because WireGuard announces no
change of its own); every third second it asks the peer a question, if nothing was heard; every second second it
looks at the config files; every fifth it compares the fingerprint. Nothing else, but for the kernel's events and
for those who ask at :9999.
"""

from __future__ import annotations

import time
from select import EPOLLIN

from init_wg import log
from init_wg.errors import InitWgError

from . import events, facts, scheduler, status
from .exit_check import ExitCheck
from .forwarder import Forwarder
from .incident import Incidents
from .pages import Endpoint
from .peer_health import DEAD, HEALTHY, UNKNOWN, Health, Verdict
from .ping import Probe
from .reloader import Reloader
from .scheduler import CONFIG, CONFIRM, DRIFT, PEER, START, VERIFY, Policy, Run
from .status import Status
from .supervisor import Supervisor
from .traffic import Traffic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from init_wg.config.settings import Settings
    from init_wg.model.wireguard import Reading

    from .child import Child, Ended
    from .facts import Fingerprint
    from .loop import Loop, Timer

#: Seconds between two looks at the device, and at the fingerprint.
TICK, LOOK_EVERY = 1.0, 5.0
#: The fingerprint of ten thousand routes takes longer: it is taken more seldom, so that it stays below 0.1 %.
LOOK_SHARE = 1000.0
#: After an event, seconds until the look: whoever changes one thing is about to change the next.
DEBOUNCE = 0.005
#: A peer without a session begins a handshake at every look; every so often, slow links have seconds for one.
HANDSHAKE_SLOWLY_EVERY, HANDSHAKE_SLOWLY = 8, 2.5
#: Seconds that an exit check may take; that a run may take beyond the handshakes it waits for.
EXIT_CHECK_TIMEOUT, RUN_TIMEOUT = 45.0, 60.0


class Keeper:
    """Keeps the tunnel as it should be, and tells everyone who asks how it is."""

    def __init__(self, loop: Loop, settings: Settings, environment: Mapping[str, str]) -> None:
        self._loop = loop
        self._settings = settings
        now = loop.now()
        self._policy = Policy(now)
        self._health = Health()
        self._exit_check = ExitCheck(now, settings.verify_interval)
        self._incidents = Incidents()
        self._traffic = Traffic()
        self._kernel = facts.Kernel(settings.interface)
        self._supervisor = Supervisor(loop, environment, self._look_soon)
        self._reloader = Reloader(
            loop,
            self._supervisor.spawn,
            settings.config,
            self._server_in_use,
            self._configured,
            settings.input_ports_file,
        )
        self._probe = Probe(loop, settings.interface, self._answered)
        self._forwarder = Forwarder(loop, self._supervisor.spawn, self._names_turned)
        self._endpoint = Endpoint(
            loop, settings, self._kernel, self._status, lambda: self._supervisor.error, lambda: self._policy.running
        )
        self._events: events.Events | None = None
        self._deletions = 0  # when the run began
        self._wake: Timer | None = None
        self._look_due: Timer | None = None
        self._next_look = now
        self._reading: Reading | None = None
        self._leading = False  # a run has to lead queries to the forwarder, or away from it
        self._aimed: tuple[int, facts.Server | None] = (0, None)  # at which tunnel the questions are
        self._verdict = Verdict(UNKNOWN, "the setup has not run yet")
        self._handshakes, self._handshake_at = 0, now + LOOK_EVERY
        #: Why the setup is not right, "" when it is; what the last failed run said.
        self._setup = "the setup has not run yet"
        #: Why it is not known whether the setup is right, "" when it is. A run need not follow, so it ends by itself.
        self._unknown = ""
        self._run: Child | None = None
        self._exit_child: Child | None = None

    # --- start and end ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Open everything, and begin. What cannot be opened is said, and tried again; repairs matter more."""
        if self._settings.health_probe:
            self._endpoint.open()
        try:
            self._events = events.Events()
        except OSError as error:
            log.error(f"the kernel's events are not available ({error.strerror}): changes are found every 5 s only")
        else:
            if self._events.without_nftables:
                log.warning(f"nftables' events are not available ({self._events.without_nftables})")
            for each in self._events.sockets:
                self._loop.watch(each.fileno(), EPOLLIN, self._event_handler(each.fileno()))
        self._tick()

    def stop(self) -> None:
        """End in well under a second. The kill-switch and the tunnel stay as they are."""
        self._supervisor.stop()
        self._endpoint.close()

    def reload(self) -> None:
        """SIGHUP: read the configuration again."""
        log.info("asked to read the configuration again")
        self._reloader.reload()

    def reap(self) -> None:
        """SIGCHLD: a child ended."""
        self._supervisor.reap()

    # --- looking ---------------------------------------------------------------------------------------------------

    def _event_handler(self, fd: int) -> Callable[[int], None]:
        def ready(_events: int) -> None:
            if self._events is None:
                return
            batch = self._events.read(fd)
            if self._policy.running is None:
                self._incidents.noticed(self._loop.now(), batch.authors, events.named)
                self._look_soon()

        return ready

    def _look_soon(self) -> None:
        """After an event; or an orphan ended: perhaps wireguard-go, and its interface with it."""
        if self._look_due is None:
            self._look_due = self._loop.call_later(DEBOUNCE, self._look_and_go)

    def _look_and_go(self) -> None:
        self._look_due = None
        self._look()
        self._go()

    def _fingerprint(self) -> Fingerprint | None:
        try:
            seen = self._kernel.fingerprint()
        except (OSError, InitWgError) as error:
            self._unknown = f"the kernel does not tell its state: {error}"
            return None
        self._unknown = ""
        return seen

    def _look(self) -> None:
        """Did anything change?"""
        if self._policy.running is not None:
            return
        began = self._loop.now()
        seen = self._fingerprint()
        now = self._loop.now()
        self._next_look = now + max(LOOK_EVERY, (now - began) * LOOK_SHARE)
        if seen is None or not self._policy.observed(now, seen):
            self._incidents.dismissed()

    def _tick(self) -> None:
        now = self._loop.now()
        self._loop.call_at(now + TICK, self._tick)
        if self._policy.running is not None and self._run is None:
            # A mistake of ours came between: without this, it would have been the last run.
            self._policy.finished(now, scheduler.LOST, None, None)
        self._observe_device(now)
        if now >= self._next_look:
            self._look()
        self._reloader.tick(now)
        self._forwarder.tick()
        if self._settings.verify_url and self._exit_check.due(now):
            self._check_exit()
        self._go()

    def _observe_device(self, now: float) -> None:
        before, self._reading = self._reading, self._read_device()
        if facts.settings_number(before) != facts.settings_number(self._reading):
            self._next_look = now  # WireGuard itself announces nothing
        server = self._server_in_use()
        tunnel = (facts.settings_number(self._reading), server)
        if tunnel != self._aimed:
            self._aimed = tunnel
            self._probe.aim(server.resolvers if server else (), *facts.routed(self._reading))
        self._traffic.counted(now, *facts.carried(self._reading))
        verdict = self._health.look(now, time.time(), facts.carrier(self._reading))
        due = now >= self._health.ask_at() or bool(self._probe.refused)
        if self._reading is not None and due and self._probe.ask():
            self._health.asked(now)
        if verdict.state == DEAD and self._verdict.state != DEAD:
            log.warning(f"{verdict.reason}: the peer is dead")
            self._fail_over(now, PEER)
        elif verdict.state == HEALTHY:
            self._policy.heard(now, back=self._verdict.state != HEALTHY)
        self._verdict = verdict
        if verdict.state != HEALTHY and now >= self._handshake_at and self._policy.running is None:
            self._begin_handshake(now)

    def _begin_handshake(self, now: float) -> None:
        """Nobody answers: so a peer that comes back is found soon. A run does the same for itself."""
        self._handshakes += 1
        self._handshake_at = now + (HANDSHAKE_SLOWLY if self._handshakes % HANDSHAKE_SLOWLY_EVERY == 0 else 0.0)
        try:
            if self._reading is not None and facts.begin_anew(self._kernel, self._reading, time.time()):
                self._probe.ask()  # without PersistentKeepalive, only data begins one
        except (OSError, InitWgError):
            return  # the next look finds out what is wrong

    def _read_device(self) -> Reading | None:
        try:
            return self._kernel.device()
        except (OSError, InitWgError):
            return None

    def _server_in_use(self) -> facts.Server | None:
        return facts.current(self._reloader.servers, self._kernel.server, self._reading)

    def _answered(self) -> None:
        self._health.answered()
        if self._verdict.state != HEALTHY:
            self._observe_device(self._loop.now())
            self._publish()

    def _names_turned(self) -> None:
        """The forwarder began to answer, or ended. With several resolvers, queries are led to it only while it runs."""
        server = self._server_in_use()
        if server and len(server.resolvers) > 1 and self._forwarder.needed:
            self._leading = True
            self._policy.demanded(self._loop.now(), Run(CONFIRM))
        self._go()

    # --- doing -----------------------------------------------------------------------------------------------------

    def _go(self) -> None:
        """Start what is due, and wake up for what will be."""
        now = self._loop.now()
        run = self._policy.take(now)
        if run is not None:
            self._begin(run)
        at = self._policy.wake_at()
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None
        if at is not None:
            self._wake = self._loop.call_at(max(at, now + 0.01), self._go)
        self._publish()

    def _begin(self, run: Run) -> None:
        before = self._fingerprint()
        self._deletions = self._events.deletions if self._events else 0
        self._incidents.run_begins(run)
        server, config = self._reloader.run_begins(run.server)
        command = ("init_wg", "up", *(("--server", server) if server else ()))
        timeout = RUN_TIMEOUT + max(1, len(self._reloader.servers)) * (self._settings.handshake_timeout + 10)

        def ended(how: Ended) -> None:
            self._ended(run, before, how)

        self._run = self._supervisor.spawn(command, timeout, ended, quiet=run.why != START, config=config)
        if self._run is None:
            self._setup = self._supervisor.error
            self._policy.finished(self._loop.now(), scheduler.LOST, None, None)

    def _ended(self, run: Run, before: Fingerprint | None, ended: Ended) -> None:
        """A run of the setup is over."""
        self._run = None
        now = self._loop.now()
        if ended.code == scheduler.WRONG_CONFIG and self._reloader.run_refused(ended):
            self._policy.finished(now, scheduler.DONE, None, None)
            if run.why in (PEER, VERIFY):
                self._policy.demanded(now, run)  # the peer is no better for that
            self._go()
            return
        log.relay(ended.errors)
        if self._events:
            for each in self._events.sockets:
                self._events.read(each.fileno())  # what the run itself caused
        after = self._fingerprint()
        if self._events and self._events.deletions != self._deletions and before == after:
            after = None  # what the run put right was taken away again meanwhile: that looks as if nothing had been
        changed = before is None or after is None or before != after
        self._policy.finished(now, ended.code, before, after)
        if ended.code == scheduler.DONE:
            self._setup = ""
            self._leading = self._leading and run.why != CONFIRM
            if changed and run.why not in (DRIFT, CONFIRM):
                self._forwarder.renew()  # perhaps another server, with another resolver
            else:
                self._forwarder.ensure()
            began, slowed = now - ended.seconds, self._policy.slowed
            line = self._incidents.repaired(run, now, began, self._server_now, changed=changed, slowed=slowed)
        else:
            self._setup = status.failure(ended)
            line = self._incidents.failed(ended.code)
        if line:
            log.log(*line)
        self._observe_device(now)
        if ended.code == scheduler.DONE:
            self._reloader.run_worked()
        self._go()

    def _server_now(self) -> str:
        server = facts.current(self._reloader.servers, self._kernel.server, self._read_device())
        return server.name if server else ""

    def _fail_over(self, now: float, why: str) -> None:
        """The next server; with one only, a new handshake with it."""
        current = self._server_in_use()
        server = scheduler.next_server(self._reloader.names, current.name if current else None)
        self._incidents.failovers += 1
        self._policy.demanded(now, Run(why, (), server))

    def _configured(self) -> None:
        """There is a new configuration, and it is good."""
        self._policy.demanded(self._loop.now(), Run(CONFIG))
        self._go()

    def _check_exit(self) -> None:
        if self._exit_child is not None or self._verdict.state != HEALTHY or self._setup or self._unknown:
            return
        server = self._server_in_use()
        settings, resolvers = self._settings, server.resolvers if server else ()
        verify = f"{__package__}.verify"
        command = (verify, settings.verify_url, settings.verify_expect, settings.interface, *resolvers)
        failovers = self._incidents.failovers

        def ended(how: Ended) -> None:
            self._exit_checked(how, current=failovers == self._incidents.failovers)

        self._exit_child = self._supervisor.spawn(command, EXIT_CHECK_TIMEOUT, ended)
        if self._exit_child is None:
            self._exit_check.postponed(self._loop.now())

    def _exit_checked(self, ended: Ended, *, current: bool) -> None:
        self._exit_child = None
        now = self._loop.now()
        if not current:  # the server that it is about has been left meanwhile
            self._exit_check.postponed(now)
            return
        line = self._exit_check.finished(now, ended.last_line(), passed=ended.code == 0)
        if line:
            log.log(*line)
        if self._exit_check.exhausted:
            self._fail_over(now, VERIFY)
        self._go()

    # --- telling ---------------------------------------------------------------------------------------------------

    def _reason(self) -> str:
        """Why the VPN is not active, "" when it is."""
        return status.reason(
            setup=self._setup or self._unknown,
            unsettled=self._policy.unsettled(self._loop.now()),
            missing=self._settings.interface if self._reading is None else "",
            verdict=self._verdict,
            remedy=status.trying(self._policy.running, self._reloader.names),
            diverted=self._diverted(),
            names=self._forwarder.trouble or ("queries do not go to the DNS forwarder yet" if self._leading else ""),
            exit_check=self._exit_check.words if self._exit_check.failed else "",
        )

    def _diverted(self) -> str:
        """Something refuses applications' packets before they get into the tunnel, or leads them past it."""
        families = self._probe.refused & facts.covered(self._reading)
        if not families:
            return ""
        return f"{' and '.join(sorted(families))} packets do not get into the tunnel: another table or rule takes them"

    def _publish(self) -> None:
        reason = self._reason()
        if not self._endpoint.publish(reason):
            return
        server, peer = self._server_in_use(), facts.carrier(self._reading)
        line = (
            ("warning", f"VPN is not active: {reason}")
            if reason
            else (
                "info",
                f"VPN is active: {server.name if server else self._settings.interface}"
                + (f" at {peer.endpoint}" if peer else ""),
            )
        )
        self._incidents.turned(self._loop.now(), line[1])
        log.log(*line)

    def _status(self) -> Status:
        return Status(
            reason=self._reason(),
            verdict=self._verdict.state,
            servers=self._reloader.servers,
            server=self._server_in_use(),
            settled=self._policy.settled and self._policy.idle,
            running=self._policy.running,
            bad_configuration=self._reloader.refused,
            dns_mode=self._settings.dns_mode,
            forwarder=self._forwarder.running,
            incidents=self._incidents,
            exit_check=self._exit_check,
            traffic=self._traffic,
            now=self._loop.now(),
        )
