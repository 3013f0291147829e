"""The words for people: why the VPN is not active, why a run failed, and /status as JSON. Pure."""

from __future__ import annotations

from typing import NamedTuple

from init_wg.model.serving import GOES_ON

from .peer_health import HEALTHY
from .scheduler import REFUSED, WRONG_CONFIG
from .traffic import INTERVAL
from .web import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .child import Ended
    from .exit_check import ExitCheck
    from .facts import Known, Server
    from .incident import Incident, Incidents
    from .peer_health import Verdict
    from .scheduler import Run
    from .traffic import Traffic
    from .web.metrics import Served, Values


class Status(NamedTuple):
    """All that the watchdog knows at one moment; the rest of what the pages say, the kernel knows."""

    reason: str  # why the VPN is not active, "" when it is
    verdict: str
    servers: tuple[Server, ...]
    server: Server | None  # the one that is set up
    settled: bool
    running: Run | None
    bad_configuration: str  # why it is not applied, "" when there is none
    dns_mode: str
    forwarder: bool  # does it run?
    incidents: Incidents
    exit_check: ExitCheck
    key_contention: bool  # does somebody else seem to use the private key?
    traffic: Traffic
    known: Mapping[str, Known]  # the peers of a server by public key
    served: Served | None  # how many there are
    now: float  # seconds of the monotonic clock


def reason(
    *,
    setup: str,
    unsettled: str,
    missing: str,
    verdict: Verdict,
    remedy: str,
    contention: str,
    diverted: str,
    names: str,
    exit_check: str,
) -> str:
    """Why the VPN is not active, "" when it is: what stands in the way first, for the rest may come of it.

    setup: why it is not right; unsettled: why repairs do not last; missing: an interface that is not there; remedy:
    what is being done about the verdict; contention: where it may come from; diverted: which packets do not get into
    the tunnel; names: why nobody answers DNS queries; exit_check: how it failed. Each may be "".
    """
    if setup or unsettled:
        return setup or unsettled
    if missing:
        return f"{missing} is gone and is being made again"
    if verdict.state != HEALTHY:
        return verdict.reason + remedy + contention
    return diverted or names or exit_check


def trying(run: Run | None, servers: tuple[str, ...]) -> str:
    """The remedy for a dead peer, as the end of a sentence; "" when it is nothing to speak of."""
    if run is None or run.server not in servers or len(servers) < 2:
        return ""
    return f"; trying server {servers.index(run.server) + 1} of {len(servers)}"


def goes_on(ended: Ended) -> bool:
    """Did the run fail only for what is new, with everything that was known in place?"""
    return ended.code in (WRONG_CONFIG, REFUSED) and failure(ended).endswith(GOES_ON)


def failure(ended: Ended) -> str:
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


def render(status: Status, values: Values, words: str) -> str:
    """/status: what the metrics say, and what is no number. words: what is said at /."""
    shown = {
        "mode": "server" if status.served else "egress",
        "words": words,
        "up": not status.reason,
        "reason": status.reason,
        "unchanged_seconds": ago(status.now, status.incidents.turned_at or status.now),
        "verdict": status.verdict,
        "sealed": values.sealed,
        "interface": values.interface,
        "implementation": values.implementation,
        "server": values.server,
        "servers": [server.name for server in status.servers],
        "settled": status.settled,
        "repairing": status.running.why if status.running else None,
        "key_contention": status.key_contention,
        "bad_configuration": status.bad_configuration or None,
        "exit_check": status.exit_check.words or None,
        "repairs": values.repairs,
        "failed_repairs": values.failed_repairs,
        "failovers": values.failovers,
        "refused_packets": dict(zip(("tcp", "other"), values.refused, strict=False)),
        "dns": {
            "mode": status.dns_mode,
            "resolvers": status.server.resolvers if status.server else (),
            "forwarder": status.forwarder,
            "queries": dict(zip(("redirected", "refused"), values.queries, strict=False)),
        },
        "peers": [peer._asdict() for peer in values.peers],
        "served": status.served._asdict() if status.served else None,
        "traffic": {"interval": INTERVAL, "received": status.traffic.received, "sent": status.traffic.sent},
        "last_incident": _incident(status.incidents.last, status.now),
        "recent": recent(status.incidents.recent, status.now),
        "version": values.version,
    }
    return jsontext.text(shown) + "\n"


def _incident(last: Incident | None, now: float) -> dict[str, object] | None:
    if last is None:
        return None
    return {
        "seconds_ago": ago(now, last.at),
        "why": last.why,
        "changed": last.changed,
        "changed_by": last.changed_by,
        "seconds": round(last.seconds, 2),
        "failure": last.failure or None,
    }


def recent(events: Sequence[tuple[float, str]], now: float) -> list[dict[str, object]]:
    """The last events, oldest first."""
    return [{"seconds_ago": ago(now, at), "words": words} for at, words in events]


def ago(now: float, at: float) -> float:
    """Seconds, to a tenth."""
    return round(now - at, 1)
