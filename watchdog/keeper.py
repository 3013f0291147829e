"""The shell around the decisions: everything that happens comes in here, and everything that is done goes out.

When all is well it wakes once a second: it reads the device (for the verdict, and because WireGuard announces no
change of its own); every third second it asks the peer a question, if nothing was heard; every second second it
looks at the config files; every fifth it compares the fingerprint. Nothing else, but for the kernel's events and
for those who ask at :9999.
"""

from __future__ import annotations

import os
import sys
import time
from select import EPOLLIN

from init_wg import __version__, log
from init_wg.errors import InitWgError
from watchdog import events, facts, metrics, policy
from watchdog.exitcheck import ExitCheck
from watchdog.forwarder import Forwarder
from watchdog.health import DEAD, HEALTHY, UNKNOWN, Health, Verdict
from watchdog.incident import Incidents
from watchdog.policy import CONFIG, DRIFT, PEER, START, VERIFY, Policy, Run
from watchdog.probe import Probe
from watchdog.remembered import Remembered
from watchdog.server import Reply, Server, listen
from watchdog.supervisor import Supervisor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from init_wg.wireguard import Reading
    from watchdog.child import Child, Ended
    from watchdog.facts import Fingerprint
    from watchdog.loop import Loop, Timer
    from watchdog.settings import Settings

#: Seconds between two looks at the device, the config files and the fingerprint.
TICK, CONFIG_EVERY, LOOK_EVERY = 1.0, 2.0, 5.0
#: The fingerprint of ten thousand routes takes longer: it is taken more seldom, so that it stays below 0.1 %.
LOOK_SHARE = 1000.0
#: After an event, seconds until the look: whoever changes one thing is about to change the next.
DEBOUNCE = 0.005
#: A changed file has to stay as it is for so long before it is read.
CONFIG_QUIET = 0.3
LISTEN_AGAIN = 5.0
#: Seconds that an exit check may take; that a run may take beyond the handshakes it waits for.
EXIT_CHECK_TIMEOUT, RUN_TIMEOUT = 45.0, 60.0

JSON = "application/json"


class Keeper:
    """Keeps the tunnel as it should be, and tells everyone who asks how it is."""

    def __init__(self, loop: Loop, settings: Settings, environment: Mapping[str, str]) -> None:
        self._loop = loop
        self._settings = settings
        self._environment = environment
        self._started = time.time()
        now = loop.now()
        self._policy = Policy(now)
        self._health = Health()
        self._kernel = facts.Kernel(settings.interface)
        self._supervisor = Supervisor(loop, environment, self._look_soon)
        self._probe = Probe(loop, settings.interface, self._answered)
        self._forwarder = Forwarder(loop, self._spawn)
        self._events: events.Events | None = None
        self._server: Server | None = None
        self._incidents = Incidents()
        self._wake: Timer | None = None
        self._look_due: Timer | None = None
        self._next_look = self._next_config = now
        self._files = facts.files(settings.config)
        self._servers = facts.servers(settings.config)
        self._reading: Reading | None = None
        self._verdict = Verdict(UNKNOWN, "the setup has not run yet")
        #: Why the setup is not right, "" when it is; what the last failed run said.
        self._setup = "the setup has not run yet"
        self._bad_config = ""
        self._remembered = Remembered()
        self._run_files = 0
        self._run_config = ""
        self._exit_check = ExitCheck(now, settings.verify_interval)
        self._exit_child: Child | None = None
        self._check_child: Child | None = None
        self._up: bool | None = None
        self._page = Reply(503, "503 VPN is not active: the watchdog is starting\n")

    # --- start and end ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Open everything, and begin. What cannot be opened is said, and tried again; repairs matter more."""
        if self._settings.health_probe:
            self._listen()
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
        if self._server:
            self._server.close()

    def reload(self) -> None:
        """SIGHUP: read the configuration again."""
        log.info("asked to read the configuration again")
        self._check_config()

    def reap(self) -> None:
        """SIGCHLD: a child ended."""
        self._supervisor.reap()

    def _listen(self) -> None:
        pages = {
            b"/": self._health_page,
            b"/healthz": self._health_page,
            b"/readyz": self._health_page,
            b"/livez": self._live_page,
            b"/metrics": self._metrics_page,
            b"/status": self._status_page,
        }
        try:
            listener = listen(self._settings.health_port)
        except OSError as error:
            log.error(
                f"port {self._settings.health_port} cannot be listened on ({error.strerror}): "
                f"set HEALTH_PORT to a free one; trying again in {LISTEN_AGAIN:g} s"
            )
            self._loop.call_later(LISTEN_AGAIN, self._listen)
            return
        self._server = Server(self._loop, listener, pages, log.error)

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
            return self._kernel.fingerprint()
        except (OSError, InitWgError) as error:
            self._setup = f"the kernel does not tell its state: {error}"
            return None

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
        self._observe_device(now)
        if now >= self._next_look:
            self._look()
        if now >= self._next_config:
            self._next_config = now + CONFIG_EVERY
            self._watch_config()
        if self._settings.verify_url and self._exit_check.due(now):
            self._check_exit()
        self._go()

    def _observe_device(self, now: float) -> None:
        before = self._reading
        try:
            self._reading = self._kernel.device()
        except (OSError, InitWgError):
            self._reading = None
        if facts.settings_number(before) != facts.settings_number(self._reading):
            self._next_look = now  # WireGuard itself announces nothing
            server = facts.current(self._servers, self._reading)
            if server:
                self._probe.aim(server.resolvers)
        verdict = self._health.look(now, time.time(), facts.carrier(self._reading))
        if self._reading is not None and now >= self._health.ask_at() and self._probe.ask():
            self._health.asked(now)
        if verdict.state == DEAD and self._verdict.state != DEAD:
            log.warning(f"{verdict.reason}: the peer is dead")
            self._fail_over(now, PEER)
        elif verdict.state == HEALTHY:
            self._policy.heard(now)
        self._verdict = verdict

    def _answered(self) -> None:
        self._health.answered()
        if self._verdict.state != HEALTHY:
            self._observe_device(self._loop.now())
            self._publish()

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
        self._incidents.run_begins(run)
        self._run_files = facts.files(self._settings.config)
        # While what is on disk is wrong, repairs use what worked; but another server can only be found on disk.
        alone = run.server is None or len(self._servers) < 2
        self._run_config = self._remembered.path if self._bad_config and alone else ""
        server = os.path.basename(self._run_config) if self._run_config and run.server else run.server
        command = ("init_wg", "up", *(("--server", server) if server else ()))
        timeout = RUN_TIMEOUT + max(1, len(self._servers)) * (self._settings.handshake_timeout + 10)

        def ended(how: Ended) -> None:
            self._ended(run, before, how)

        if self._spawn(command, timeout, ended, quiet=run.why != START, config=self._run_config) is None:
            self._policy.finished(self._loop.now(), -1, None, None)

    def _spawn(
        self,
        command: tuple[str, ...],
        timeout: float,
        ended: Callable[[Ended], None],
        *,
        quiet: bool = False,
        config: str = "",
    ) -> Child | None:
        child = self._supervisor.spawn(command, timeout, ended, quiet=quiet, config=config)
        if child is None:
            self._setup = self._supervisor.error
        return child

    def _ended(self, run: Run, before: Fingerprint | None, ended: Ended) -> None:
        """A run of the setup is over."""
        now = self._loop.now()
        if ended.code == policy.WRONG_CONFIG and self._remembered.path and not self._run_config:
            # The file was replaced by a bad one, and this run was the first to see it.
            self._refuse_config(ended)
            self._policy.finished(now, policy.DONE, None, None)
            self._go()
            return
        sys.stderr.write(ended.errors)
        if self._events:
            for each in self._events.sockets:
                self._events.read(each.fileno())  # what the run itself caused
        after = self._fingerprint()
        changed = before is None or after is None or before != after
        self._policy.finished(now, ended.code, before, after)
        if ended.code == policy.DONE:
            self._setup = ""
            if changed and run.why != DRIFT:
                self._forwarder.renew()  # perhaps another server, with another resolver
            else:
                self._forwarder.ensure()
            began, slowed = now - ended.seconds, self._policy.slowed
            line = self._incidents.repaired(run, now, began, self._server_now, changed=changed, slowed=slowed)
        else:
            self._setup = _sentence(ended)
            line = self._incidents.failed(ended.code)
        if line:
            log.log(*line)
        self._observe_device(now)
        if ended.code == policy.DONE:
            self._remember()
        self._go()

    def _remember(self) -> None:
        """The server that is set up now, if its file is still the one that was read."""
        path = self._settings.config
        if self._run_config or facts.files(path) != self._run_files:
            return
        server = facts.current(self._servers, self._reading)
        if server is not None:
            self._remembered.take(f"{path}/{server.name}.conf" if os.path.isdir(path) else path, self._run_files)

    def _server_now(self) -> str:
        server = facts.current(self._servers, self._kernel_reading())
        return server.name if server else ""

    def _kernel_reading(self) -> Reading | None:
        try:
            return self._kernel.device()
        except (OSError, InitWgError):
            return None

    def _fail_over(self, now: float, why: str) -> None:
        """The next server; with one only, a new handshake with it."""
        names = tuple(server.name for server in self._servers)
        current = facts.current(self._servers, self._reading)
        self._incidents.failovers += 1
        self._policy.demanded(now, Run(why, (), policy.next_server(names, current.name if current else None)))

    # --- configuration ---------------------------------------------------------------------------------------------

    def _watch_config(self) -> None:
        files = facts.files(self._settings.config)
        if files != self._files:
            self._files = files
            self._loop.call_later(CONFIG_QUIET, self._config_changed)

    def _config_changed(self) -> None:
        files = facts.files(self._settings.config)
        if files != self._files:  # still being written
            self._files = files
            self._loop.call_later(CONFIG_QUIET, self._config_changed)
            return
        log.info(f"{self._settings.config} changed")
        self._check_config()

    def _check_config(self) -> None:
        """Look before applying: with a bad file the running tunnel stays as it is."""
        if self._check_child is not None:
            self._loop.call_later(CONFIG_QUIET, self._check_config)
            return
        # In a folder, init_wg itself leaves bad files out; the one in use must not be lost by that.
        path = self._settings.config
        if os.path.isdir(path):
            server = facts.current(self._servers, self._reading)
            path = f"{path}/{server.name}.conf" if server else ""
            if not server or not os.path.exists(path):
                self._apply_config()
                return
        self._check_child = self._spawn(("init_wg", "check", path), RUN_TIMEOUT, self._config_checked)

    def _config_checked(self, ended: Ended) -> None:
        self._check_child = None
        if ended.code == policy.DONE:
            self._apply_config()
            return
        self._refuse_config(ended)
        self._publish()

    def _refuse_config(self, ended: Ended) -> None:
        known, self._bad_config = self._bad_config, _sentence(ended)
        if self._bad_config != known:
            sys.stderr.write(ended.errors)
            log.error("the new configuration is not applied; what is set up stays")

    def _apply_config(self) -> None:
        self._bad_config = ""
        self._servers = facts.servers(self._settings.config)
        self._policy.demanded(self._loop.now(), Run(CONFIG))
        self._go()

    # --- exit verification -----------------------------------------------------------------------------------------

    def _check_exit(self) -> None:
        if self._exit_child is not None or self._verdict.state != HEALTHY or self._setup:
            return
        command = ("watchdog.verify", self._settings.verify_url, self._settings.verify_expect)
        self._exit_child = self._spawn(command, EXIT_CHECK_TIMEOUT, self._exit_checked)

    def _exit_checked(self, ended: Ended) -> None:
        self._exit_child = None
        now = self._loop.now()
        line = self._exit_check.finished(now, ended.last_line(), passed=ended.code == 0)
        if line:
            log.log(*line)
        if self._exit_check.exhausted:
            self._fail_over(now, VERIFY)
        self._go()

    # --- telling ---------------------------------------------------------------------------------------------------

    def status(self) -> tuple[bool, str]:
        """Is the VPN active, and why not."""
        if self._setup:
            return False, self._setup
        if self._reading is None:
            return False, f"{self._settings.interface} is gone and is being made again"
        if self._verdict.state != HEALTHY:
            return False, self._verdict.reason + self._trying()
        if self._exit_check.failed:
            return False, self._exit_check.words
        return True, ""

    def _trying(self) -> str:
        run = self._policy.running
        if run is None or run.server is None or len(self._servers) < 2:
            return ""
        names = [server.name for server in self._servers]
        return f"; trying server {names.index(run.server) + 1} of {len(names)}" if run.server in names else ""

    def _publish(self) -> None:
        up, why = self.status()
        body = "200 VPN is active\n" if up else f"503 VPN is not active: {why}\n"
        if body != self._page.body:
            self._page = Reply(200 if up else 503, body)
        if up != self._up:
            self._up = up
            if up:
                server = facts.current(self._servers, self._reading)
                peer = facts.carrier(self._reading)
                log.info(
                    f"VPN is active: {server.name if server else self._settings.interface}"
                    + (f" at {peer.endpoint}" if peer else "")
                )
            else:
                log.warning(f"VPN is not active: {why}")

    def _health_page(self) -> Reply:
        return self._page

    def _live_page(self) -> Reply:
        if self._supervisor.error:
            return Reply(503, f"503 the watchdog cannot repair: {self._supervisor.error}\n")
        return Reply(200, "200 the watchdog works\n")

    def _metrics_page(self) -> Reply:
        return Reply(200, metrics.render(self._values()), metrics.CONTENT_TYPE)

    def _values(self) -> metrics.Values:
        reading = self._kernel_reading()
        server = facts.current(self._servers, reading)
        try:
            sealed, refused = facts.sealed(), facts.counters("refuse")
            queries: tuple[int, ...] = sum(facts.counters("names")), sum(facts.counters("refuse_name"))
        except OSError:
            sealed, refused, queries = None, (), ()
        return metrics.Values(
            version=__version__,
            python=sys.version.split()[0],
            interface=self._settings.interface,
            implementation={"wireguard": "kernel", "tun": "userspace"}.get(self._kernel.kind, ""),
            server=server.name if server else "",
            up=bool(self._up),
            sealed=sealed,
            refused=refused,
            queries=queries,
            peers=facts.peers(reading),
            runs=self._incidents.runs,
            repairs=self._incidents.repairs,
            repair_seconds=self._incidents.repair_seconds,
            failed_repairs=self._incidents.failed_repairs,
            failovers=self._incidents.failovers,
            verifications=self._exit_check.results,
            connections=len(self._server) if self._server else 0,
            started=self._started,
        )

    def _status_page(self) -> Reply:
        from json import dumps

        values = self._values()
        up, why = self.status()
        shown = {
            "up": up,
            "reason": why,
            "verdict": self._verdict.state,
            "sealed": values.sealed,
            "interface": values.interface,
            "implementation": values.implementation,
            "server": values.server,
            "servers": [server.name for server in self._servers],
            "settled": self._policy.settled and self._policy.idle,
            "repairing": self._policy.running.why if self._policy.running else None,
            "bad_configuration": self._bad_config or None,
            "exit_check": self._exit_check.words or None,
            "repairs": values.repairs,
            "failed_repairs": values.failed_repairs,
            "failovers": values.failovers,
            "refused_packets": dict(zip(("tcp", "other"), values.refused, strict=False)),
            "dns": {
                "mode": self._environment.get("DNS_MODE", "").strip().lower() or "tunnel",
                "resolvers": server.resolvers if (server := facts.current(self._servers, self._reading)) else (),
                "forwarder": self._forwarder.running,
                "queries": dict(zip(("redirected", "refused"), values.queries, strict=False)),
            },
            "peers": [peer._asdict() for peer in values.peers],
            "version": values.version,
        }
        return Reply(200, dumps(shown, indent=2) + "\n", JSON)


def _sentence(ended: Ended) -> str:
    """Why a run failed, without what the log puts around it."""
    line = ended.last_line()
    if line.startswith("{"):
        from json import loads

        try:
            line = str(loads(line)["message"])
        except (ValueError, KeyError):
            line = ""
    line = line.removeprefix("init-wg: ").removeprefix("error: ")
    if ended.late:
        return f"the setup did not end in {ended.seconds:.0f} s" + (f": {line}" if line else "")
    return line or f"the setup ended with status {ended.code} and without a word"
