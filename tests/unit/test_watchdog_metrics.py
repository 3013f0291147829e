"""The metrics page: its format, its names, and values that need escaping."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as classic

from watchdog.web.metrics import BUCKETS, Histogram, PeerMetrics, Served, Values, escape, histogram, render

PEER = PeerMetrics("q" * 43 + "=", "203.0.113.1:51820", ("0.0.0.0/0", "::/0"), 1_800_000_000.5, 10, 20)


def values(**changes: object) -> Values:
    made = Values(
        version="0.1.0",
        python="3.11.7",
        interface="wg0",
        implementation="kernel",
        server="se-got",
        up=True,
        sealed=True,
        refused=(3, 4),
        queries=(5, 6),
        peers=(PEER,),
        runs={"start": 1, "drift": 3},
        repairs={"rules": 2, "firewall": 1},
        repair_seconds=Histogram(),
        failed_repairs=0,
        failovers=1,
        key_contention=False,
        verifications={"passed": 7},
        configuration_refused=False,
        connections=2,
        lost_lines=0,
        started=1_800_000_000.0,
    )
    return made._replace(**changes)  # type: ignore[arg-type]


LINE = re.compile(
    r'(# HELP [a-z_]+ [^\n]+|# TYPE [a-z_]+ (counter|gauge|histogram)|'
    r'[a-z_]+(\{([a-z_]+="([^"\\\n]|\\[\\"n])*",?)+\})? (-?[0-9.e+]+))\Z'
)  # fmt: skip


def test_every_line_is_of_the_format() -> None:
    for line in render(values()).removesuffix("\n").split("\n"):
        assert LINE.match(line), line


def test_names_that_dashboards_know() -> None:
    page = render(values())
    for line in (
        "init_wg_up 1",
        "init_wg_sealed 1",
        'init_wg_repairs_total{reason="rules"} 2',
        'init_wg_refused_packets_total{protocol="tcp"} 3',
        'init_wg_refused_packets_total{protocol="other"} 4',
        'init_wg_dns_queries_total{result="redirected"} 5',
        'init_wg_dns_queries_total{result="refused"} 6',
        'init_wg_server_info{server="se-got",implementation="kernel",endpoint="203.0.113.1:51820"} 1',
        f'wireguard_peer_receive_bytes_total{{device="wg0",public_key="{PEER.public_key}"}} 10',
        f'wireguard_peer_transmit_bytes_total{{device="wg0",public_key="{PEER.public_key}"}} 20',
        f'wireguard_peer_last_handshake_seconds{{device="wg0",public_key="{PEER.public_key}"}} 1800000000.5',
        f'wireguard_peer_allowed_ips_info{{device="wg0",public_key="{PEER.public_key}",allowed_ips="::/0"}} 1',
        'init_wg_build_info{version="0.1.0",python="3.11.7"} 1',
    ):
        assert f"\n{line}\n" in f"\n{page}", line


def test_each_family_is_introduced_once() -> None:
    names = re.findall(r"^# TYPE (\S+)", render(values(peers=(PEER, PEER._replace(public_key="other")))), re.MULTILINE)
    assert len(names) == len(set(names))


def test_a_server_names_its_peers() -> None:
    peer = PEER._replace(name="phone", addresses=("10.13.13.2", "fd13::2"))
    page = render(values(peers=(peer,), served=Served(3, 1, 2)))
    assert f'init_wg_peer_info{{name="phone",public_key="{PEER.public_key}",address="10.13.13.2, fd13::2"}} 1\n' in page
    for state, count in (("active", 3), ("seen", 1), ("inactive", 2)):
        assert f'init_wg_peers{{state="{state}"}} {count}\n' in page
    assert 'endpoint=""' in page.split("init_wg_server_info{")[1].splitlines()[0]
    assert "init_wg_peer" not in render(values())


def test_without_a_tunnel_it_still_renders() -> None:
    page = render(values(peers=(), sealed=None, refused=(), up=False, server="", implementation=""))
    assert "\ninit_wg_up 0\n" in page
    assert "init_wg_sealed" not in page
    assert "wireguard_" not in page


def test_a_histogram_counts_up() -> None:
    counted = Histogram()
    for seconds in (0.01, 0.2, 0.2, 3.0, 1000.0):
        counted.add(seconds)
    lines = [line for line in histogram("x", "y", counted) if not line.startswith("#")]
    counts = [int(line.rsplit(" ", 1)[1]) for line in lines[: len(BUCKETS) + 1]]
    assert counts == sorted(counts)
    assert counts[0] == 1
    assert 'x_bucket{le="0.25"} 3' in lines
    assert 'x_bucket{le="+Inf"} 5' in lines
    assert lines[-1] == "x_count 5"
    assert lines[-2].startswith("x_sum 1003.41")


@given(st.text())
def test_any_label_stays_on_its_line(text: str) -> None:
    escaped = escape(text)
    assert "\n" not in escaped
    unescaped = escaped.replace(r"\\", "\0").replace(r"\"", '"').replace(r"\n", "\n").replace("\0", "\\")
    assert unescaped == text or "\0" in text


def test_openmetrics_is_read_by_prometheus_own_reader() -> None:
    families = {family.name: family for family in openmetrics(render(values(), open_metrics=True))}  # type: ignore[no-untyped-call]
    plain = {family.name: family for family in classic(render(values()))}
    assert families.keys() == plain.keys()
    for name, family in families.items():
        assert family.type == plain[name].type
        assert [each.value for each in family.samples] == [each.value for each in plain[name].samples]
