"""The alerts and the metrics, judged by Prometheus' own tools: each alert fires when it has to, and only then."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.monitoring.prometheus import rules
from tests.unit.test_watchdog_metrics import PEER as PEER_OF_A_SERVER
from tests.unit.test_watchdog_metrics import values
from watchdog.web.metrics import Served, render

POD = {"namespace": "default", "pod": "app", "instance": "10.42.1.10:9999"}
#: Seconds between two values of a series; an hour of them.
EVERY, HOUR = 15, 240


def series(name: str, /, **labels: str) -> str:
    inside = ", ".join(f'{key}="{value}"' for key, value in {**POD, **labels}.items())
    return f"{name}{{{inside}}}"


SEEN = series("up", job="default/init-wg")
CONTENTION = series("init_wg_key_contention")
SEALED, UP, REFUSED = (series(f"init_wg_{name}") for name in ("sealed", "up", "configuration_refused"))
REPAIRS = series("init_wg_repairs_total", reason="rules")
OTHER_REPAIRS = series("init_wg_repairs_total", reason="config")
FAILED_REPAIRS = series("init_wg_failed_repairs_total")
PASSED, FAILED = (series("init_wg_exit_checks_total", result=result) for result in ("passed", "failed"))
HANDSHAKE, OTHER_HANDSHAKE = (
    series("wireguard_peer_last_handshake_seconds", device="wg0", public_key=key) for key in "ab"
)
#: A server instead: its peer has a name. Only the egress pod above is asked for a handshake.
SERVER = {"pod": "server", "instance": "10.42.1.11:9999", "public_key": "c"}
PEERS = series("init_wg_peers", pod="server", instance="10.42.1.11:9999", state="active")
PEER = series("init_wg_peer_info", **SERVER, name="phone", address="10.13.13.2")
PEER_HANDSHAKE = series("wireguard_peer_last_handshake_seconds", **SERVER, device="wg0")
#: An hour in which all is well. promtool's time begins at 0, and so do the handshakes; the second peer is never there.
HEALTHY = {
    SEEN: f"1x{HOUR}",
    CONTENTION: f"0x{HOUR}",
    SEALED: f"1x{HOUR}",
    UP: f"1x{HOUR}",
    REFUSED: f"0x{HOUR}",
    REPAIRS: f"0x{HOUR}",
    OTHER_REPAIRS: f"0+1x{HOUR}",
    FAILED_REPAIRS: f"0x{HOUR}",
    PASSED: f"0+1x{HOUR}",
    FAILED: f"0x{HOUR}",
    HANDSHAKE: f"0+{EVERY}x{HOUR}",
    OTHER_HANDSHAKE: f"0x{HOUR}",
    PEERS: f"1x{HOUR}",
    PEER: f"1x{HOUR}",
    PEER_HANDSHAKE: f"0x{HOUR}",
}


class Case(NamedTuple):
    """The series that are not as in HEALTHY, and when, in minutes, the alert has to fire; None: never in the hour."""

    alert: str
    changes: dict[str, str]
    at: int | None


CASES = {
    "unsealed": Case("InitWgUnsealed", {SEALED: f"1x20 0x{HOUR}"}, 7),
    "unsealed for one look": Case("InitWgUnsealed", {SEALED: f"1x20 0 1x{HOUR}"}, None),
    "down": Case("InitWgTunnelDown", {UP: f"1x20 0x{HOUR}"}, 8),
    "a fail-over": Case("InitWgTunnelDown", {UP: f"1x20 0x2 1x{HOUR}"}, None),
    "silent": Case("InitWgWatchdogSilent", {SEEN: f"1x20 0x{HOUR}"}, 8),
    "a look that failed": Case("InitWgWatchdogSilent", {SEEN: f"1x20 0x2 1x{HOUR}"}, None),
    "the provider is away": Case("InitWgHandshakeOld", {HANDSHAKE: f"0+15x20 300x{HOUR}"}, 13),
    "a slow renewal": Case("InitWgHandshakeOld", {HANDSHAKE: f"0+15x20 300x18 570+15x{HOUR}"}, None),
    "a peer went": Case("InitWgPeerGone", {PEER_HANDSHAKE: f"1+15x20 300x{HOUR}"}, 17),
    "a peer rested": Case("InitWgPeerGone", {PEER_HANDSHAKE: f"1+15x20 300x30 750+15x{HOUR}"}, None),
    "a peer never came": Case("InitWgPeerGone", {}, None),
    "a server's peer went": Case("InitWgHandshakeOld", {PEER_HANDSHAKE: f"1+15x20 300x{HOUR}"}, None),
    "fought": Case("InitWgDriftFought", {REPAIRS: f"0x20 0+1x{HOUR}"}, 9),
    "repaired twice": Case("InitWgDriftFought", {REPAIRS: f"0x20 1 2x{HOUR}"}, None),
    "runs fail": Case("InitWgRepairsFail", {FAILED_REPAIRS: f"0x20 0+1x{HOUR}"}, 9),
    "one run fails": Case("InitWgRepairsFail", {FAILED_REPAIRS: f"0x20 1x{HOUR}"}, None),
    "a wrong file": Case("InitWgConfigurationRefused", {REFUSED: f"0x20 1x{HOUR}"}, 8),
    "a wrong file, corrected": Case("InitWgConfigurationRefused", {REFUSED: f"0x20 1x2 0x{HOUR}"}, None),
    "two pods, one key": Case("InitWgKeyContention", {CONTENTION: f"0x20 1x{HOUR}"}, 6),
    "a key of its own": Case("InitWgKeyContention", {}, None),
    "the wrong exit": Case("InitWgExitCheckFailed", {FAILED: f"0x20 0+1x{HOUR}"}, 9),
    "a check that failed once": Case("InitWgExitCheckFailed", {FAILED: f"0x20 1x{HOUR}"}, None),
}


def promtool(*arguments: str | Path, given: str = "") -> str:
    ended = subprocess.run(["promtool", *map(str, arguments)], input=given, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


def checked(
    folder: Path, given: dict[str, str], quiet: dict[str, range], firing: tuple[str, int] | None = None
) -> None:
    """With these series: alerts that must not fire in these minutes, and one that must in that one."""

    def asked(alert: str, minute: int, samples: list[object]) -> dict[str, object]:
        present = f'count(ALERTS{{alertname="{alert}", alertstate="firing"}})'
        return {"expr": present, "eval_time": f"{minute}m", "exp_samples": samples}

    questions = [asked(alert, minute, []) for alert, minutes in quiet.items() for minute in minutes]
    if firing:
        questions.append(asked(*firing, [{"labels": "{}", "value": 1}]))
    series = [{"series": name, "values": shown} for name, shown in given.items()]
    test = {"interval": f"{EVERY}s", "input_series": series, "promql_expr_test": questions}
    (folder / "rules.yaml").write_text(rules())
    (folder / "tests.yaml").write_text(json.dumps({"rule_files": ["rules.yaml"], "tests": [test]}))
    promtool("test", "rules", folder / "tests.yaml")


def test_the_rules_are_right(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(rules())
    said = promtool("check", "rules", tmp_path / "rules.yaml")
    assert f"{len({case.alert for case in CASES.values()})} rules found" in said


def test_the_metrics_are_right() -> None:
    promtool("check", "metrics", given=render(values()))


def test_every_metric_of_a_rule_is_one_of_ours() -> None:
    peer = PEER_OF_A_SERVER._replace(name="phone", addresses=("10.13.13.2",))
    page = render(values(verifications={"failed": 1}, peers=(peer,), served=Served(1, 1, 0)))
    used = set(re.findall(r"(?:init_wg|wireguard)_[a-z_]+", rules()))
    assert used
    assert {name for name in used if f"# TYPE {name} " not in page} == set()


@pytest.mark.parametrize("name", CASES)
def test_an_alert_fires_when_it_has_to_and_only_then(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    firing = None if case.at is None else (case.alert, case.at)
    checked(tmp_path, {**HEALTHY, **case.changes}, {case.alert: range(5 if firing else 60)}, firing)


def test_none_fires_in_a_good_hour(tmp_path: Path) -> None:
    checked(tmp_path, HEALTHY, {case.alert: range(60) for case in CASES.values()})


def test_each_says_what_to_do() -> None:
    for alert in rules().split("- alert: ")[1:]:
        assert "severity: " in alert
        assert "summary: " in alert and "{{ $labels.pod }}" in alert
        assert "description: " in alert
