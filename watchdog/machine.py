"""The watchdog of a machine with a VPN: it keeps the one table of `init-wg node`, and tells of it on the loopback only.

On a machine, tables of others change all the time (kube-proxy's, a network plugin's), so only our own and the VPN's
presence are facts here. Whatever else may matter to the table (links, addresses, routes, rules) is one.
"""

from __future__ import annotations

from init_wg import __version__, log
from init_wg.errors import InitWgError
from init_wg.kernel import sealed
from init_wg.kernel.walk import attribute, attribute_list, attributes

from . import facts, limits, status
from .drift import Drift
from .incident import Incidents
from .runs import Runs
from .scheduler import CONFIG, DONE, REASONS, Policy, Run
from .web import jsontext, metrics, page
from .web.clients import MAX_CONNECTIONS
from .web.reply import Reply
from .web.server import Server, listen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from init_wg.config.settings import Settings
    from init_wg.model.wireguard import Reading

    from .child import Ended
    from .loop import Loop, Timer
    from .supervisor import Supervisor
    from .web.request import Request

#: init_wg.node.design's table and that of Mullvad's app, without the memory of those modules.
TABLE, VPN = "init_wg_node", "mullvad"
_INET = 1
#: Seconds between two ticks; until a port that is taken is tried again; that `status` may take.
TICK, LISTEN_AGAIN, TIMEOUT = 1.0, 5.0, 30.0
_STATES = ("absent", "blocked", "connected")
_LONGEST = 400
#: Prometheus' increase() misses the 1 with which a counter begins.
_NONE_YET = dict.fromkeys((*facts.Fingerprint._fields, *REASONS[1:]), 0)


class Kernel(facts.Kernel):
    """Of a machine: no tunnel is ours here."""

    def fingerprint(self) -> facts.Fingerprint:
        """Everything that decides about the table. Raises OSError."""
        return super().fingerprint()._replace(firewall=hash((_rules(TABLE), _rules(VPN))))

    def device(self) -> Reading | None:
        """Another's, if there is one."""
        return None


def _rules(table: str) -> frozenset[bytes] | None:
    """A number of what its rules do, without what they have counted; None where there is no such table."""
    name = attribute(1, table.encode() + b"\0")  # NFTA_TABLE_NAME, NFTA_CHAIN_TABLE, NFTA_RULE_TABLE
    try:
        sealed.ask(sealed.GET_TABLE, _INET, name)
        rules = sealed.ask(sealed.GET_RULE, _INET, name, sealed.DUMP)
    except FileNotFoundError:
        return None
    return frozenset(_deeds(attributes(rule, 4)) for rule in rules if _of(rule, table))


def _of(rule: bytes, table: str) -> bool:
    """Kernels before 5.8 tell the rules of all tables."""
    return attributes(rule, 4).get(1) == table.encode() + b"\0"


def _deeds(rule: dict[int, bytes]) -> bytes:
    """The chain, the handle (another one after each replacement by somebody), and the expressions but for counters."""
    parts = [rule.get(2, b""), rule.get(3, b"")]
    for _, expression in attribute_list(rule.get(4, b"")):
        if attributes(expression).get(1) != b"counter\0":
            parts.append(expression)
    return b"\1".join(parts)


class _Nothing:
    """A machine has one setup, and no names of its own to answer."""

    servers: tuple[facts.Server, ...] = ()

    def run_begins(self, _server: str | None) -> tuple[str | None, str]:
        """The setup reads the environment."""
        return None, ""

    def run_refused(self, _ended: Ended) -> bool:
        """There is no earlier configuration."""
        return False

    def remember(self, _server: str) -> None:
        """There is no file to be kept."""

    def run_worked(self, _run: Run, *, renew: bool) -> None:
        """No forwarder is there to be renewed."""


class _Pages:
    """What is said at 127.0.0.1:9999 and in the log. port: 0 for none. repairing: is a run under way?"""

    def __init__(self, loop: Loop, port: int, incidents: Incidents, repairing: Callable[[], object]) -> None:
        self._loop = loop
        self._port = port
        self._incidents = incidents
        self._repairing = repairing
        self._server: Server | None = None
        self._told = "{}"  # what `init-wg node status --json` said last
        self._up: bool | None = None
        self._reason = self._words = ""

    def open(self) -> None:
        """Serve it, unless that is switched off; as soon as the port is free."""
        if not self._port:
            return
        pages = dict.fromkeys((b"/", b"/healthz", b"/readyz"), self._first) | {
            b"/livez": lambda _: Reply(200, "the watchdog works"),
            b"/metrics": self._metrics,
            b"/status": self._status,
        }
        try:
            listener = listen(self._port, loopback=True)
        except OSError as error:
            log.error(
                f"127.0.0.1:{self._port} cannot be listened on ({error.strerror}): set HEALTH_PORT to a free one; "
                f"trying again in {LISTEN_AGAIN:g} s"
            )
            self._loop.call_later(LISTEN_AGAIN, self.open)
            return
        most = limits.connections(MAX_CONNECTIONS)
        self._server = Server(self._loop, listener, pages, log.error, most, self._repairing)

    def close(self) -> None:
        """Leave the port to others."""
        if self._server:
            self._server.close()

    def heard(self, ended: Ended) -> None:
        """`init-wg node status --json` has ended."""
        if ended.code == DONE:
            self._told = ended.output.strip()

    def publish(self, reason: str) -> None:
        """Why the table is not as it should be, "" when it is. A turn is logged."""
        before, self._up = self._up, not reason
        self._reason = reason = log.printable(" ".join(reason.split()))[:_LONGEST]
        vpn = self._vpn()
        ready = f"node is ready: VPN {vpn}" if vpn else "node is ready"
        self._words = f"node is not ready: {reason}" if reason else ready
        if before is not self._up:
            self._incidents.turned(self._loop.now(), self._words)
            log.log("info" if self._up else "warning", self._words)

    def _vpn(self) -> str:
        """Its state, by the last look; "" before the first one."""
        return next((state for state in _STATES if f'"vpn": "{state}"' in self._told), "")

    def _first(self, request: Request) -> Reply:
        plain = Reply(200 if self._up else 503, self._words)
        return page.for_browser(plain) if request.wants(b"text/html") else plain

    def _status(self, _request: Request) -> Reply:
        now, known = self._loop.now(), self._incidents
        shown = {
            "mode": "node",
            "words": self._words,
            "up": bool(self._up),
            "reason": self._reason,
            "unchanged_seconds": status.ago(now, known.turned_at or now),
            "repairing": self._repairing() is not None,
            "repairs": known.repairs,
            "failed_repairs": known.failed_repairs,
            "refused_packets": _refused(),
            "recent": status.recent(known.recent, now),
            "version": __version__,
        }
        # What the command said is JSON already, and stays as it is: no parser has to be in memory.
        text = f'{jsontext.text(shown).removesuffix("}").rstrip()},\n  "machine": {self._told}\n}}\n'
        return Reply(200, text, "application/json")

    def _metrics(self, _request: Request) -> Reply:
        vpn = self._vpn()
        lines = [
            *_family("init_wg_node_up", "gauge", "Whether the table is in place."),
            metrics.sample("init_wg_node_up", {}, bool(self._up)),
            *_family("init_wg_node_vpn_state", "gauge", "The VPN's state."),
            *(metrics.sample("init_wg_node_vpn_state", {"state": state}, state == vpn) for state in _STATES),
            *_family("init_wg_node_refused_packets_total", "counter", "Packets that the table refused."),
            metrics.sample("init_wg_node_refused_packets_total", {}, _refused()),
            *_family("init_wg_node_repairs_total", "counter", "Repairs by what had changed."),
            *(
                metrics.sample("init_wg_node_repairs_total", {"reason": reason}, count)
                for reason, count in sorted({**_NONE_YET, **self._incidents.repairs}.items())
            ),
        ]
        return Reply(200, "\n".join(lines) + "\n", metrics.CONTENT_TYPE)


def _refused() -> int:
    """Packets, of pods and for outsiders; 0 where the table is not there to count."""
    try:
        return sum(sum(facts.counters(chain, TABLE)) for chain in ("forward_before", "leaving"))
    except (OSError, InitWgError):
        return 0


class Machine:
    """Keeps the table as it should be."""

    def __init__(self, loop: Loop, settings: Settings, supervisor: Supervisor) -> None:
        self._loop = loop
        self._supervisor = supervisor
        self._policy, incidents = Policy(loop.now()), Incidents()
        self._drift = Drift(loop, Kernel(settings.interface), self._policy, incidents, self._go)
        nothing = _Nothing()
        self._runs = Runs(
            loop, settings, supervisor, self._policy, incidents, self._drift, nothing, nothing, str, self._run_ended
        )
        port = settings.health_port if settings.health_probe else 0
        self._pages = _Pages(loop, port, incidents, lambda: self._policy.running)
        self._wake: Timer | None = None

    def start(self) -> None:
        """Open everything, and begin. A part that cannot be opened is logged, and tried again; repairs matter more."""
        self._pages.open()
        self._drift.open()
        self._tick()

    def stop(self) -> None:
        """The table stays."""
        self._supervisor.stop()
        self._pages.close()

    def reload(self) -> None:
        """SIGHUP."""
        self._policy.demanded(self._loop.now(), Run(CONFIG))
        self._go()

    def _tick(self) -> None:
        now = self._loop.now()
        self._loop.call_at(now + TICK, self._tick)
        self._runs.tick(now)
        self._drift.tick(now)
        self._go()

    def _go(self) -> None:
        """Start what is due, and wake up for what will be."""
        now = self._loop.now()
        run = self._policy.take(now)
        if run is not None:
            self._runs.begin(run)
        at = self._policy.wake_at()
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None
        if at is not None:
            self._wake = self._loop.call_at(max(at, now + 0.01), self._go)
        self._publish()

    def _run_ended(self, worked: bool | None) -> None:
        if worked:
            self._supervisor.spawn(("init_wg", "node", "status", "--json"), TIMEOUT, self._heard)
        self._go()

    def _heard(self, ended: Ended) -> None:
        self._pages.heard(ended)
        self._publish()

    def _publish(self) -> None:
        self._pages.publish(self._runs.failure or self._drift.unknown)


def _family(name: str, kind: str, text: str) -> tuple[str, str]:
    return f"# HELP {name} {text}", f"# TYPE {name} {kind}"
