"""Prometheus' text format 0.0.4 or OpenMetrics 1.0.0 for who asks for it, and the counters behind it. Pure.

Names of peers' metrics are those of github.com/mdlayher/wireguard_exporter, so that its dashboards work.
"""

from __future__ import annotations

from typing import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OPEN_METRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

#: Upper bounds of the repair histogram, in seconds. The goal is 0.25.
BUCKETS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0)


class Histogram:
    """How long things took: counts by upper bound, as Prometheus wants them (cumulative when rendered)."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)
        self.total = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        number = next((n for n, bound in enumerate(BUCKETS) if seconds <= bound), len(BUCKETS))
        self.counts[number] += 1
        self.total += seconds


class PeerMetrics(NamedTuple):
    """One peer. latest_handshake: Unix seconds, 0 is never."""

    public_key: str
    endpoint: str
    allowed_ips: tuple[str, ...]
    latest_handshake: float
    received_bytes: int
    sent_bytes: int
    name: str = ""  # in server mode, as the next one
    addresses: tuple[str, ...] = ()


class Served(NamedTuple):
    """How many peers a server has: on the device; seen in the last 3 minutes; out of the list."""

    active: int
    seen: int
    inactive: int


class Values(NamedTuple):
    """Everything that is exported, at one moment. sealed and refused are None when the kernel does not say."""

    version: str
    python: str
    interface: str
    implementation: str
    server: str
    up: bool
    sealed: bool | None
    refused: tuple[int, ...]
    queries: tuple[int, ...]  # redirected, refused
    peers: tuple[PeerMetrics, ...]
    runs: Mapping[str, int]
    repairs: Mapping[str, int]
    repair_seconds: Histogram
    failed_repairs: int
    failovers: int
    key_contention: bool
    verifications: Mapping[str, int]
    configuration_refused: bool
    connections: int
    lost_lines: int  # of the log
    started: float
    served: Served | None = None  # in server mode


def render(values: Values, *, open_metrics: bool = False) -> str:
    """The whole page."""
    lines: list[str] = []

    def family(name: str, kind: str, text: str, samples: Iterable[tuple[Mapping[str, str], float]]) -> None:
        samples = list(samples)
        if samples:
            called = name.removesuffix("_total") if open_metrics else name  # OpenMetrics 1.0.0, "Counter"
            lines.extend((f"# HELP {called} {text}", f"# TYPE {called} {kind}"))
            lines.extend(sample(name, labels, value) for labels, value in samples)

    device = {"device": values.interface}
    family("init_wg_build_info", "gauge", "Version of init-wg and of Python.",
           [({"version": values.version, "python": values.python}, 1)])  # fmt: skip
    family("init_wg_up", "gauge", "Whether the VPN is active: what GET / says.", [({}, values.up)])
    if values.sealed is not None:
        family("init_wg_sealed", "gauge", "Whether the kill-switch is in place.", [({}, values.sealed)])
    carrier = values.peers[0].endpoint if values.peers and not values.served else ""
    family("init_wg_server_info", "gauge", "The server that is set up, and what implements WireGuard.",
           [({"server": values.server, "implementation": values.implementation, "endpoint": carrier}, 1)])  # fmt: skip
    served = values.served._asdict().items() if values.served else ()
    family("init_wg_peers", "gauge", "Peers of this server: served, seen in the last 3 minutes, out of the list.",
           [({"state": state}, count) for state, count in served])  # fmt: skip
    family("init_wg_runs_total", "counter", "Runs of the setup by what called for them.",
           [({"reason": reason}, count) for reason, count in sorted(values.runs.items())])  # fmt: skip
    family("init_wg_repairs_total", "counter", "Repairs by what had changed.",
           [({"reason": reason}, count) for reason, count in sorted(values.repairs.items())])  # fmt: skip
    family("init_wg_failed_repairs_total", "counter", "Runs of the setup that failed.",
           [({}, values.failed_repairs)])  # fmt: skip
    lines.extend(histogram("init_wg_repair_seconds", "From noticing a change to its repair.",
                           values.repair_seconds))  # fmt: skip
    family("init_wg_failovers_total", "counter", "Dead peers for which another server was tried.",
           [({}, values.failovers)])  # fmt: skip
    family("init_wg_configuration_refused", "gauge", "Whether the configuration on disk is wrong, and so not applied.",
           [({}, values.configuration_refused)])  # fmt: skip
    family("init_wg_key_contention", "gauge", "Whether somebody else seems to use the private key.",
           [({}, values.key_contention)])  # fmt: skip
    family("init_wg_exit_checks_total", "counter", "Exit verifications by their outcome.",
           [({"result": result}, count) for result, count in sorted(values.verifications.items())])  # fmt: skip
    family("init_wg_refused_packets_total", "counter", "Packets that the kill-switch refused.",
           [({"protocol": protocol}, count)
            for protocol, count in zip(("tcp", "other"), values.refused, strict=False)])  # fmt: skip
    family("init_wg_dns_queries_total", "counter", "DNS queries that the kill-switch redirected or refused.",
           [({"result": result}, count)
            for result, count in zip(("redirected", "refused"), values.queries, strict=False)])  # fmt: skip
    family("init_wg_http_connections", "gauge", "Open connections to the health endpoint.",
           [({}, values.connections)])  # fmt: skip
    family("init_wg_log_lost_lines_total", "counter", "Lines of the log that nobody read.", [({}, values.lost_lines)])
    family("process_start_time_seconds", "gauge", "When the watchdog started, in Unix time.",
           [({}, values.started)])  # fmt: skip
    keys = [(each, device | {"public_key": each.public_key}) for each in values.peers]
    family("wireguard_device_info", "gauge", "The WireGuard device.", [(device, 1)] if values.peers else [])
    family("wireguard_peer_info", "gauge", "A peer and its endpoint.",
           [(labels | {"endpoint": peer.endpoint}, 1) for peer, labels in keys])  # fmt: skip
    family("init_wg_peer_info", "gauge", "The name and the addresses of a peer of this server.",
           [({"name": peer.name, "public_key": peer.public_key, "address": ", ".join(peer.addresses)}, 1)
            for peer in values.peers if peer.name])  # fmt: skip
    family("wireguard_peer_allowed_ips_info", "gauge", "Networks that are routed to a peer.",
           [(labels | {"allowed_ips": network}, 1)
            for peer, labels in keys for network in peer.allowed_ips])  # fmt: skip
    family("wireguard_peer_receive_bytes_total", "counter", "Bytes received from a peer.",
           [(labels, peer.received_bytes) for peer, labels in keys])  # fmt: skip
    family("wireguard_peer_transmit_bytes_total", "counter", "Bytes sent to a peer.",
           [(labels, peer.sent_bytes) for peer, labels in keys])  # fmt: skip
    family("wireguard_peer_last_handshake_seconds", "gauge", "Unix time of a peer's last handshake, 0 is never.",
           [(labels, peer.latest_handshake) for peer, labels in keys])  # fmt: skip
    if open_metrics:
        lines.append("# EOF")
    return "\n".join(lines) + "\n"


def histogram(name: str, text: str, counted: Histogram) -> list[str]:
    """The lines of one histogram."""
    lines = [f"# HELP {name} {text}", f"# TYPE {name} histogram"]
    total = 0
    for bound, count in zip((*BUCKETS, None), counted.counts, strict=True):
        total += count
        lines.append(sample(f"{name}_bucket", {"le": "+Inf" if bound is None else f"{bound:g}"}, total))
    return [*lines, sample(f"{name}_sum", {}, counted.total), sample(f"{name}_count", {}, total)]


def sample(name: str, labels: Mapping[str, str], value: float) -> str:
    """One line."""
    inside = ",".join(f'{key}="{escape(text)}"' for key, text in labels.items())
    number = int(value)
    shown = str(number) if number == value else repr(float(value))
    return f"{name}{{{inside}}} {shown}" if inside else f"{name} {shown}"


def escape(text: str) -> str:
    r"""A label's value: backslash, double quote and line feed are written \\, \" and \n."""
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
