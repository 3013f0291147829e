"""All that the watchdog says of itself: the reason at :9999, the log's line when it turns, and the facts of /status."""

from __future__ import annotations

from typing import NamedTuple

from init_wg import log

from . import contention, facts, status
from .pages import Endpoint
from .status import Status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from init_wg.config.settings import Settings

    from .drift import Drift
    from .incident import Incidents
    from .loop import Loop
    from .names import Names
    from .reloader import Reloader
    from .runs import Runs
    from .scheduler import Policy
    from .supervisor import Supervisor
    from .tunnel import Tunnel
    from .verification import Verification


class Parts(NamedTuple):
    """All that know something of the state."""

    supervisor: Supervisor
    policy: Policy
    incidents: Incidents
    drift: Drift
    tunnel: Tunnel
    reloader: Reloader
    names: Names
    runs: Runs
    verification: Verification


class Account:
    """Puts together what the parts know, whenever it may have changed and whenever somebody asks."""

    def __init__(self, loop: Loop, settings: Settings, kernel: facts.Kernel, parts: Parts) -> None:
        self._loop = loop
        self._settings = settings
        self._parts = parts
        self._endpoint = Endpoint(
            loop, settings, kernel, self._status, lambda: parts.supervisor.error, lambda: parts.policy.running
        )

    def open(self) -> None:
        """Serve it, unless that is switched off."""
        if self._settings.health_probe:
            self._endpoint.open()

    def close(self) -> None:
        """Serve it no more."""
        self._endpoint.close()

    def outdated(self) -> None:
        """A run begins or has ended: the pages of before tell another state."""
        self._endpoint.kept.forget()

    def publish(self) -> None:
        """Answer by what is known now; a turn is logged."""
        reason = self._reason()
        if not self._endpoint.publish(reason):
            return
        level, words = ("warning", f"VPN is not active: {reason}") if reason else ("info", self._active())
        self._parts.incidents.turned(self._loop.now(), words)
        log.log(level, words)

    def _active(self) -> str:
        server, peer = self._parts.tunnel.server, facts.carrier(self._parts.tunnel.reading)
        at = f" at {peer.endpoint}" if peer else ""
        return f"VPN is active: {server.name if server else self._settings.interface}{at}"

    def _reason(self) -> str:
        """Why the VPN is not active, "" when it is."""
        parts = self._parts
        return status.reason(
            setup=parts.runs.failure or parts.drift.unknown,
            unsettled=parts.policy.unsettled(self._loop.now()),
            missing=self._settings.interface if parts.tunnel.reading is None else "",
            verdict=parts.tunnel.verdict,
            remedy=status.trying(parts.policy.running, parts.reloader.names),
            contention=f"; {contention.WORDS}" if parts.tunnel.contended else "",
            diverted=parts.tunnel.diverted(),
            names=parts.names.trouble,
            exit_check=parts.verification.trouble,
        )

    def _status(self) -> Status:
        parts = self._parts
        return Status(
            reason=self._reason(),
            verdict=parts.tunnel.verdict.state,
            servers=parts.reloader.servers,
            server=parts.tunnel.server,
            settled=parts.policy.settled and parts.policy.idle,
            running=parts.policy.running,
            bad_configuration=parts.reloader.refused,
            dns_mode=self._settings.dns_mode,
            forwarder=parts.names.running,
            incidents=parts.incidents,
            exit_check=parts.verification.check,
            key_contention=parts.tunnel.contended,
            traffic=parts.tunnel.traffic,
            known={},
            served=None,
            now=self._loop.now(),
        )
