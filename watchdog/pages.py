""":9999 itself: which page is where, and what the kernel says at the moment when one is asked for.

Probes ask for / all the time, so its answer is ready before they do; the other pages are rendered when asked for.
"""

from __future__ import annotations

import sys
import time

from init_wg import __version__, log
from init_wg.errors import InitWgError
from init_wg.kernel import sealed as kill_switch

from . import facts, limits, status
from .scheduler import REASONS
from .web import metrics, page
from .web.clients import MAX_CONNECTIONS
from .web.reply import Reply
from .web.server import Server, listen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from init_wg.config.settings import Settings

    from .loop import Loop
    from .status import Status
    from .web.request import Request

#: Characters of a reason: some hold words of a server far away.
LONGEST_REASON = 400
#: Seconds for which a page that costs much stays as it is: twenty times as long as it took, within these bounds. What
#: it took may have been a wait: for wireguard-go, or for the processor.
FRESH, FRESH_SHARE, OLDEST = 0.1, 20.0, 1.0
#: Seconds until a port that is taken is tried again.
LISTEN_AGAIN = 5.0
_JSON = "application/json"
_IMPLEMENTATIONS = {"wireguard": "kernel", "tun": "userspace"}


class Kept:
    """Pages that cost much, from memory while they are young: so many clients cost hardly more than one."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._fresh: dict[Callable[[], Reply], tuple[float, Reply]] = {}

    def page(self, render: Callable[[], Reply]) -> Reply:
        """The one that this renders."""
        until, reply = self._fresh.get(render, (0.0, None))
        began = self._loop.now()
        if reply is None or began >= until:
            reply = render()
            now = self._loop.now()
            until = now + min(max(FRESH, (now - began) * FRESH_SHARE), OLDEST)
            self._fresh[render] = until, reply
            self._loop.call_at(until + 0.01, self._forget_old)
        return reply

    def _forget_old(self) -> None:
        """A server's pages are megabytes, and the next one to ask may come in 15 s."""
        now = self._loop.now()
        self._fresh = {render: page for render, page in self._fresh.items() if now < page[0]}

    def forget(self) -> None:
        """Render each anew."""
        self._fresh.clear()


class Endpoint:
    """`told` tells what the watchdog knows; `disabled` why it could not repair anything, "" when it could; `repairing`
    whether something runs that needs the processor more than clients do."""

    def __init__(
        self,
        loop: Loop,
        settings: Settings,
        kernel: facts.Kernel,
        told: Callable[[], Status],
        disabled: Callable[[], str],
        repairing: Callable[[], object],
    ) -> None:
        self._loop = loop
        self._settings = settings
        self._kernel = kernel
        self._told = told
        self._disabled = disabled
        self._repairing = repairing
        self.kept = Kept(loop)
        self._started = time.time()
        self._server: Server | None = None
        self._up: bool | None = None
        self._page = Reply(503, "VPN is not active: the watchdog is starting")

    def open(self) -> None:
        """Listen, now or as soon as the port is free; repairs matter more."""
        pages = {
            b"/": self._first_page,
            b"/healthz": lambda _: self._page,
            b"/readyz": lambda _: self._page,
            b"/livez": self._live_page,
            b"/metrics": self._metrics,
            b"/status": lambda _: self.kept.page(self._status_page),
        }
        try:
            listener = listen(self._settings.health_port)
        except OSError as error:
            log.error(
                f"port {self._settings.health_port} cannot be listened on ({error.strerror}): "
                f"set HEALTH_PORT to a free one; trying again in {LISTEN_AGAIN:g} s"
            )
            self._loop.call_later(LISTEN_AGAIN, self.open)
            return
        most = limits.connections(MAX_CONNECTIONS)
        self._server = Server(self._loop, listener, pages, log.error, most, self._repairing)

    def close(self) -> None:
        """Leave the port to others."""
        if self._server:
            self._server.close()

    def publish(self, reason: str, ready: str = "VPN is active", unready: str = "VPN is not active") -> bool:
        """Why it is not ready, "" when it is, from now on; with the words for either. Returns whether it turned."""
        up = not reason
        body = ready if up else f"{unready}: {log.printable(' '.join(reason.split()))[:LONGEST_REASON]}"
        if body != self._page.body:
            self._page = Reply(200 if up else 503, body)
            self.kept.forget()
        before, self._up = self._up, up
        return up != before

    def _first_page(self, request: Request) -> Reply:
        return self.kept.page(self._browser_page) if request.wants(b"text/html") else self._page

    def _browser_page(self) -> Reply:
        return page.for_browser(self._page)

    def _live_page(self, _request: Request) -> Reply:
        disabled = self._disabled()
        if disabled:
            return Reply(503, f"the watchdog cannot repair: {disabled}")
        return Reply(200, "the watchdog works")

    def _metrics(self, request: Request) -> Reply:
        asked = request.wants(b"application/openmetrics-text")
        return self.kept.page(self._open_metrics_page if asked else self._metrics_page)

    def _metrics_page(self) -> Reply:
        return Reply(200, metrics.render(counted(self._values(self._told()))), metrics.CONTENT_TYPE)

    def _open_metrics_page(self) -> Reply:
        return Reply(200, metrics.render(counted(self._values(self._told())), open_metrics=True), metrics.OPEN_METRICS)

    def _status_page(self) -> Reply:
        told = self._told()
        return Reply(200, status.render(told, self._values(told), self._page.body), _JSON)

    def _values(self, told: Status) -> metrics.Values:
        try:
            reading = self._kernel.device()
        except (OSError, InitWgError):
            reading = None
        try:
            sealed, refused = kill_switch.in_place(), facts.counters("refuse")
            queries: tuple[int, ...] = sum(facts.counters("names")), sum(facts.counters("refuse_name"))
        except OSError:
            sealed, refused, queries = None, (), ()
        return metrics.Values(
            version=__version__,
            python=sys.version.split()[0],
            interface=self._settings.interface,
            implementation=_IMPLEMENTATIONS.get(self._kernel.kind, ""),
            server=told.server.name if told.server else "",
            up=bool(self._up),
            sealed=sealed,
            refused=refused,
            queries=queries,
            peers=facts.peers(reading, told.known),
            runs=told.incidents.runs,
            repairs=told.incidents.repairs,
            repair_seconds=told.incidents.repair_seconds,
            failed_repairs=told.incidents.failed_repairs,
            failovers=told.incidents.failovers,
            key_contention=told.key_contention,
            verifications=told.exit_check.results,
            configuration_refused=bool(told.bad_configuration),
            connections=len(self._server) if self._server else 0,
            lost_lines=log.dropped,
            started=self._started,
            served=told.served,
        )


def counted(values: metrics.Values) -> metrics.Values:
    """With a 0 for what has not happened yet: Prometheus' increase() misses the 1 with which a counter begins."""
    checks = values.verifications and {"passed": 0, "failed": 0, **values.verifications}
    runs = {**dict.fromkeys(REASONS, 0), **values.runs}
    repairs = {**dict.fromkeys((*facts.Fingerprint._fields, *REASONS[1:]), 0), **values.repairs}
    return values._replace(runs=runs, repairs=repairs, verifications=checks)
