"""What people read: the reasons, the words of a run that failed, and /status."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests import documents
from watchdog import status
from watchdog.child import Ended
from watchdog.exit_check import ExitCheck
from watchdog.facts import Server
from watchdog.incident import Incidents
from watchdog.peer_health import DOUBTFUL, HEALTHY, UNKNOWN, Verdict
from watchdog.scheduler import DRIFT, PEER, Run
from watchdog.status import Status
from watchdog.traffic import Traffic
from watchdog.web import page
from watchdog.web.metrics import Histogram, PeerMetrics, Served, Values

WELL = Verdict(HEALTHY, "")
SILENT = Verdict(DOUBTFUL, "nothing heard for 6 s from 203.0.113.51:51820")


def test_what_stands_in_the_way_first_is_the_reason() -> None:
    obstacles = {
        "setup": "no permission",
        "unsettled": "something fights",
        "missing": "wg0",
        "verdict": SILENT,
        "diverted": "IPv4 packets do not get in",
        "names": "no forwarder",
        "exit_check": "wrong exit",
    }
    words = {"missing": "wg0 is gone and is being made again", "verdict": f"{SILENT.reason}; trying server 2 of 3"}
    clear: dict[str, Any] = {**dict.fromkeys(obstacles, ""), "verdict": WELL, "contention": ""}
    assert status.reason(remedy="; trying server 2 of 3", **clear) == ""
    for name in reversed(obstacles):
        clear[name] = obstacles[name]
        assert status.reason(remedy="; trying server 2 of 3", **clear) == words.get(name, obstacles[name])


@pytest.mark.parametrize(
    ("run", "servers", "words"),
    [
        (Run(PEER, (), "b"), ("a", "b", "c"), "; trying server 2 of 3"),
        (Run(PEER, (), "gone"), ("a", "b", "c"), ""),
        (Run(PEER, (), "a"), ("a",), ""),
        (Run(DRIFT, ("rules",)), ("a", "b"), ""),
        (None, ("a", "b"), ""),
    ],
    ids=str,
)
def test_another_server_is_mentioned_while_it_is_tried(run: Run | None, servers: tuple[str, ...], words: str) -> None:
    assert status.trying(run, servers) == words


@pytest.mark.parametrize(
    ("errors", "words"),
    [
        ("init-wg: something before\ninit-wg: error: wg0.conf:1: what is this?\n", "wg0.conf:1: what is this?"),
        ('{"time": "now", "level": "error", "message": "wg0.conf:1: what is this?"}\n', "wg0.conf:1: what is this?"),
        ('{"level": "error"}\n', "the setup ended with status 3 and without a word"),
        ("{ not JSON\n", "the setup ended with status 3 and without a word"),
        ("", "the setup ended with status 3 and without a word"),
    ],
)
def test_a_run_that_failed_says_why(errors: str, words: str) -> None:
    assert status.failure(Ended(3, "", errors, 1.0, late=False)) == words


def test_a_run_that_took_too_long_says_that_first() -> None:
    assert status.failure(Ended(-15, "", "", 85.2, late=True)) == "the setup did not end in 85 s"
    late = Ended(-15, "", "init-wg: error: no handshake\n", 85.2, late=True)
    assert status.failure(late) == "the setup did not end in 85 s: no handshake"


VALUES = Values(
    version="0.1.0",
    python="3.11.7",
    interface="wg0",
    implementation="kernel",
    server="a",
    up=True,
    sealed=True,
    refused=(3, 4),
    queries=(5, 6),
    peers=(PeerMetrics("key", "203.0.113.51:51820", ("0.0.0.0/0",), 1_800_000_000.0, 10, 20),),
    runs={"start": 1},
    repairs={"rules": 2},
    repair_seconds=Histogram(),
    failed_repairs=1,
    failovers=2,
    key_contention=True,
    verifications={},
    configuration_refused=False,
    connections=1,
    lost_lines=0,
    started=0.0,
)
SERVERS = tuple(Server(name, frozenset((name,)), ("10.64.0.1",)) for name in "ab")
STATUS = Status(
    reason="",
    verdict=HEALTHY,
    servers=SERVERS,
    server=SERVERS[0],
    settled=True,
    running=None,
    bad_configuration="",
    dns_mode="tunnel",
    forwarder=False,
    incidents=Incidents(),
    exit_check=ExitCheck(0, 300),
    key_contention=True,
    traffic=Traffic(),
    known={},
    served=None,
    now=1000.0,
)


def test_the_keys_that_scripts_know() -> None:
    assert json.loads(status.render(STATUS, VALUES, "VPN is active")) == {
        "mode": "egress",
        "words": "VPN is active",
        "up": True,
        "reason": "",
        "unchanged_seconds": 0.0,
        "verdict": "healthy",
        "sealed": True,
        "interface": "wg0",
        "implementation": "kernel",
        "server": "a",
        "servers": ["a", "b"],
        "settled": True,
        "repairing": None,
        "key_contention": True,
        "bad_configuration": None,
        "exit_check": None,
        "repairs": {"rules": 2},
        "failed_repairs": 1,
        "failovers": 2,
        "refused_packets": {"tcp": 3, "other": 4},
        "dns": {
            "mode": "tunnel",
            "resolvers": ["10.64.0.1"],
            "forwarder": False,
            "queries": {"redirected": 5, "refused": 6},
        },
        "peers": [
            {
                "public_key": "key",
                "endpoint": "203.0.113.51:51820",
                "allowed_ips": ["0.0.0.0/0"],
                "latest_handshake": 1_800_000_000.0,
                "received_bytes": 10,
                "sent_bytes": 20,
                "name": "",
                "addresses": [],
            }
        ],
        "served": None,
        "traffic": {"interval": 10.0, "received": [], "sent": []},
        "last_incident": None,
        "recent": [],
        "version": "0.1.0",
    }


def test_what_happened_lately_is_in_it() -> None:
    incidents = Incidents()
    incidents.turned(900.0, "VPN is active: a at 203.0.113.51:51820")
    incidents.repaired(Run(DRIFT, ("rules",)), 990.5, 990.0, lambda: "a", changed=True, slowed=False)
    shown = json.loads(status.render(STATUS._replace(incidents=incidents), VALUES, ""))
    assert shown["unchanged_seconds"] == 100
    assert shown["recent"] == [
        {"seconds_ago": 100, "words": "VPN is active: a at 203.0.113.51:51820"},
        {"seconds_ago": 9.5, "words": "repaired in 0.50 s: rules"},
    ]
    assert shown["last_incident"] == {
        "seconds_ago": 9.5,
        "why": "drift",
        "changed": ["rules"],
        "changed_by": [],
        "seconds": 0.5,
        "failure": None,
    }


def test_the_page_of_the_fields_tells_all_of_them() -> None:
    """docs/status-page.md, in this order: the words there are all that a program may rely on."""
    incidents = Incidents()
    incidents.turned(900.0, "VPN is active")
    incidents.repaired(Run(DRIFT, ("rules",)), 950.0, 950.0, str, changed=True, slowed=False)
    incidents.failed(Run(DRIFT, ("rules",)), 990.5, 990.0, 3, HOSTILE)
    shown = json.loads(status.render(STATUS._replace(incidents=incidents, served=Served(2, 1, 0)), VALUES, ""))
    assert shown["last_incident"]["failure"] == HOSTILE
    assert documents.named_fields("`/status`") == documents.fields(shown, documents.COUNTS)
    assert documents.unnamed_fields({**shown, "served": None, "peers": [], "new": 1}, "`/status`") == ["new"]
    del shown["dns"]["mode"]
    assert documents.named_fields("`/status`") != documents.fields(shown, documents.COUNTS), "the control"


HOSTILE = """VPN is not active: <img src=x onerror=alert(1)> "&quot;' {nonce}"""


def test_words_from_far_away_are_text_on_the_page() -> None:
    shown = page.fill('<h1 class="{state}" nonce="{nonce}">{words}</h1>', False, HOSTILE, "n0nce")
    escaped = "VPN is not active: &lt;img src=x onerror=alert(1)&gt; &quot;&amp;quot;' {nonce}"
    assert shown == f'<h1 class="bad" nonce="n0nce">{escaped}</h1>'


def test_what_is_wrong_is_in_it() -> None:
    check = ExitCheck(0, 300)
    check.finished(0, "no answer", passed=False)
    wrong = STATUS._replace(
        reason="there is no tunnel yet",
        verdict=UNKNOWN,
        server=None,
        running=Run(PEER, (), "b"),
        bad_configuration="wg0.conf:1: what is this?",
        exit_check=check,
    )
    shown = json.loads(status.render(wrong, VALUES._replace(sealed=None, refused=(), queries=(), peers=()), ""))
    assert not shown["up"]
    assert shown["reason"] == "there is no tunnel yet"
    assert shown["repairing"] == "peer"
    assert shown["bad_configuration"] == "wg0.conf:1: what is this?"
    assert shown["exit_check"] == "no answer"
    assert shown["sealed"] is None
    assert shown["refused_packets"] == {}
    assert shown["dns"]["resolvers"] == []
