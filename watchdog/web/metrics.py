"""Prometheus' text format 0.0.4 or OpenMetrics 1.0.0 for who asks for it, and the counters behind it. Pure.

Names of peers' metrics are those of github.com/mdlayher/wireguard_exporter, so that its dashboards work.
"""

from __future__ import annotations

from typing import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

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


class Family(NamedTuple):
    """A metric: its samples are pairs of labels and a value. Without samples it is left out."""

    name: str
    kind: str
    text: str
    samples: tuple[tuple[Mapping[str, str] | str, float], ...]  # labels as text: as `labelled` makes it


def render(values: Values, *, open_metrics: bool = False) -> str:
    """The whole page."""
    lines: list[str] = []
    for families in (_state, _work):
        for family in families(values):
            lines += _lines(family, open_metrics)
    lines += histogram("init_wg_repair_seconds", "From noticing a change to its repair.", values.repair_seconds)
    for families in (_traffic, _peers):
        for family in families(values):
            lines += _lines(family, open_metrics)
    if open_metrics:
        lines.append("# EOF")
    return "\n".join(lines) + "\n"


def _lines(family: Family, open_metrics: bool) -> list[str]:
    if not family.samples:
        return []
    called = family.name.removesuffix("_total") if open_metrics else family.name  # OpenMetrics 1.0.0, "Counter"
    samples = [sample(family.name, labels, value) for labels, value in family.samples]
    return [f"# HELP {called} {family.text}", f"# TYPE {called} {family.kind}", *samples]


def _gauge(name: str, text: str, value: float | None) -> Family:
    """One number, unless it is unknown."""
    return Family(name, "gauge", text, () if value is None else (({}, value),))


def _counter(name: str, text: str, value: float) -> Family:
    return Family(name, "counter", text, (({}, value),))


def _counters(name: str, text: str, label: str, counts: Iterable[tuple[str, int]]) -> Family:
    """One number for each value of a label."""
    return Family(name, "counter", text, tuple(({label: value}, count) for value, count in counts))


def _state(values: Values) -> Iterator[Family]:
    """What is there now."""
    build = {"version": values.version, "python": values.python}
    yield Family("init_wg_build_info", "gauge", "Version of init-wg and of Python.", ((build, 1),))
    yield _gauge("init_wg_up", "Whether the VPN is active: what GET / says.", values.up)
    yield _gauge("init_wg_sealed", "Whether the kill-switch is in place.", values.sealed)
    server = {
        "server": values.server,
        "implementation": values.implementation,
        "endpoint": values.peers[0].endpoint if values.peers and not values.served else "",
    }
    yield Family("init_wg_server_info", "gauge", "The server that is set up, and what implements WireGuard.",
                 ((server, 1),))  # fmt: skip
    served = values.served._asdict().items() if values.served else ()
    yield Family("init_wg_peers", "gauge", "Peers of this server: served, seen in the last 3 minutes, out of the list.",
                 tuple(({"state": state}, count) for state, count in served))  # fmt: skip
    yield _gauge("init_wg_configuration_refused", "Whether the configuration on disk is wrong, and so not applied.",
                 values.configuration_refused)  # fmt: skip
    yield _gauge("init_wg_key_contention", "Whether somebody else seems to use the private key.", values.key_contention)
    yield _gauge("process_start_time_seconds", "When the watchdog started, in Unix time.", values.started)


def _work(values: Values) -> Iterator[Family]:
    """What the watchdog has done."""
    yield _counters("init_wg_runs_total", "Runs of the setup by what called for them.", "reason",
                    sorted(values.runs.items()))  # fmt: skip
    yield _counters("init_wg_repairs_total", "Repairs by what had changed.", "reason", sorted(values.repairs.items()))
    yield _counter("init_wg_failed_repairs_total", "Runs of the setup that failed.", values.failed_repairs)
    yield _counter("init_wg_failovers_total", "Dead peers for which another server was tried.", values.failovers)
    yield _counters("init_wg_exit_checks_total", "Exit verifications by their outcome.", "result",
                    sorted(values.verifications.items()))  # fmt: skip


def _traffic(values: Values) -> Iterator[Family]:
    """What passed, and what did not."""
    yield _counters("init_wg_refused_packets_total", "Packets that the kill-switch refused.", "protocol",
                    zip(("tcp", "other"), values.refused, strict=False))  # fmt: skip
    yield _counters("init_wg_dns_queries_total", "DNS queries that the kill-switch redirected or refused.", "result",
                    zip(("redirected", "refused"), values.queries, strict=False))  # fmt: skip
    yield _gauge("init_wg_http_connections", "Open connections to the health endpoint.", values.connections)
    yield _counter("init_wg_log_lost_lines_total", "Lines of the log that nobody read.", values.lost_lines)


def _peers(values: Values) -> Iterator[Family]:
    """The device and each of its peers."""
    device = {"device": values.interface}
    # A server has thousands of samples here: what they have in common is written once.
    keys = [(each, labelled({**device, "public_key": each.public_key})) for each in values.peers]
    yield Family("wireguard_device_info", "gauge", "The WireGuard device.", ((device, 1),) if keys else ())
    yield Family("wireguard_peer_info", "gauge", "A peer and its endpoint.",
                 tuple((f'{labels},endpoint="{escape(peer.endpoint)}"', 1) for peer, labels in keys))  # fmt: skip
    yield Family("init_wg_peer_info", "gauge", "The name and the addresses of a peer of this server.",
                 tuple(({"name": peer.name, "public_key": peer.public_key, "address": ", ".join(peer.addresses)}, 1)
                       for peer in values.peers if peer.name))  # fmt: skip
    yield Family("wireguard_peer_allowed_ips_info", "gauge", "Networks that are routed to a peer.",
                 tuple((f'{labels},allowed_ips="{escape(network)}"', 1)
                       for peer, labels in keys for network in peer.allowed_ips))  # fmt: skip
    yield Family("wireguard_peer_receive_bytes_total", "counter", "Bytes received from a peer.",
                 tuple((labels, peer.received_bytes) for peer, labels in keys))  # fmt: skip
    yield Family("wireguard_peer_transmit_bytes_total", "counter", "Bytes sent to a peer.",
                 tuple((labels, peer.sent_bytes) for peer, labels in keys))  # fmt: skip
    yield Family("wireguard_peer_last_handshake_seconds", "gauge", "Unix time of a peer's last handshake, 0 is never.",
                 tuple((labels, peer.latest_handshake) for peer, labels in keys))  # fmt: skip


def histogram(name: str, text: str, counted: Histogram) -> list[str]:
    """The lines of one histogram."""
    lines = [f"# HELP {name} {text}", f"# TYPE {name} histogram"]
    total = 0
    for bound, count in zip((*BUCKETS, None), counted.counts, strict=True):
        total += count
        lines.append(sample(f"{name}_bucket", {"le": "+Inf" if bound is None else f"{bound:g}"}, total))
    return [*lines, sample(f"{name}_sum", {}, counted.total), sample(f"{name}_count", {}, total)]


def labelled(labels: Mapping[str, str]) -> str:
    """The labels of a sample, as they stand between its braces."""
    return ",".join([f'{key}="{escape(text)}"' for key, text in labels.items()])


def sample(name: str, labels: Mapping[str, str] | str, value: float) -> str:
    """One line."""
    inside = labels if isinstance(labels, str) else labelled(labels)
    number = int(value)
    shown = str(number) if number == value else repr(float(value))
    return f"{name}{{{inside}}} {shown}" if inside else f"{name} {shown}"


def escape(text: str) -> str:
    r"""A label's value: backslash, double quote and line feed are written \\, \" and \n."""
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
