"""Each alert, seen firing and resolving by a real Prometheus that looks at a lab in which its fault is made."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.lab.lab import Lab, wait_until
from tests.lab.served import ServerLab
from tests.monitoring.prometheus import LABELS, MONITORING, Prometheus, faster, rules, running
from tests.netns.chaos import Watchdog
from tests.netns.test_key_contention import Client

#: Seconds for an alert to fire or to resolve: a window of 40 s has to pass.
PATIENCE = 100.0
#: Seconds of a session that nothing shortens: WireGuard renews it after 120, and two rules wait for 300.
RENEWED, OLD = 150.0, 300.0


class Aging(NamedTuple):
    """Two pods whose sessions nobody renews, from the module's beginning on: one's provider is silent, the other is a
    server that its peer has left."""

    lab: Lab
    egress: Prometheus
    served: ServerLab
    server: Prometheus
    since: float


class Watched(NamedTuple):
    lab: Lab
    watchdog: Watchdog
    prometheus: Prometheus
    #: While this file is there, nft fails in the pod.
    broken: Path


@pytest.fixture(scope="module")
def aging() -> Iterator[Aging]:
    with contextlib.ExitStack() as kept:
        lab, served = kept.enter_context(Lab()), kept.enter_context(ServerLab())
        egress = kept.enter_context(Watchdog(lab))
        server = kept.enter_context(Watchdog(served, env=served.server_env))
        egress.settle()
        server.settle()
        served.join(served.roadwarrior, served.client_file("roadwarrior"))
        wait_until(lambda: served.handshakes() and max(served.handshakes().values()), "the peer's handshake")
        text = faster(rules())
        looks = [kept.enter_context(running(each, text)) for each in (lab, served)]
        lab.provider.silence()
        served.leave(served.roadwarrior)
        yield Aging(lab, looks[0], served, looks[1], time.monotonic())


@pytest.fixture(scope="module")
def watched(aging: Aging) -> Iterator[Watched]:
    with Lab() as lab:
        broken, programs = lab.folder / "nft-fails", lab.folder / "programs"
        programs.mkdir()
        wrapper = f'#!/bin/sh\n[ ! -e {broken} ] || exit 1\nexec {shutil.which("nft")} "$@"\n'
        (programs / "nft").write_text(wrapper)
        (programs / "nft").chmod(0o755)
        env = {
            "PATH": f"{programs}:/usr/sbin:/usr/bin:/sbin:/bin",
            "HANDSHAKE_TIMEOUT": "2",
            "VERIFY_URL": f"http://{lab.web.addresses[4]}/",
            "VERIFY_INTERVAL": "1",
        }
        with Watchdog(lab, env=env) as watchdog:
            watchdog.settle()
            with running(lab, faster(rules())) as prometheus:
                yield Watched(lab, watchdog, prometheus, broken)


@contextlib.contextmanager
def wrong_file(on: Watched) -> Iterator[None]:
    text = on.lab.config_path.read_text()
    on.lab.config_path.write_text(text + "Colour = blue\n")
    yield
    on.lab.config_path.write_text(text)


@contextlib.contextmanager
def silence(on: Watched) -> Iterator[None]:
    on.lab.provider.silence()
    yield
    on.lab.provider.speak()


@contextlib.contextmanager
def no_kill_switch(on: Watched) -> Iterator[None]:
    """And none can be loaded."""
    on.broken.touch()
    on.lab.pod.run(["nft", "flush", "ruleset"])
    yield
    on.broken.unlink()


@contextlib.contextmanager
def no_answers(on: Watched) -> Iterator[None]:
    """Of the two tables only the egress gate is left: without the other one's stamp it lets nothing out at all."""
    on.broken.touch()
    on.lab.pod.run(["nft", "delete", "table", "inet", "init_wg"])
    yield
    on.broken.unlink()


@contextlib.contextmanager
def a_rival(on: Watched) -> Iterator[None]:
    """It takes what was repaired away again."""
    for _ in range(8):
        on.watchdog.settle()
        before = on.watchdog.runs()
        on.lab.pod.run(["ip", "rule", "delete", "table", "51820"])
        wait_until(lambda before=before: on.watchdog.runs() > before, "a repair")  # type: ignore[misc]
    yield


@contextlib.contextmanager
def no_exit(on: Watched) -> Iterator[None]:
    """The page that tells the exit's address is gone."""
    chain = "chain in { type filter hook input priority 0; tcp dport 80 reject with tcp reset; }"
    on.lab.web.run(["nft", "-f", "-"], stdin=f"table inet away {{ {chain}; }}\n")
    yield
    on.lab.web.run(["nft", "delete", "table", "inet", "away"])


@contextlib.contextmanager
def a_thief(on: Watched) -> Iterator[None]:
    """Another client with the pod's key takes the session, each time that the pod has one."""
    other = Client(on.lab)
    for _ in range(20):
        other.takes_over(on.watchdog)
        wait_until(on.watchdog.active, "the pod has taken it back", 60)
        if on.watchdog.metrics()["init_wg_key_contention"]:
            break
    yield
    other.far.run(["ip", "link", "delete", "wg0"])


Fault = Callable[[Watched], contextlib.AbstractContextManager[None]]
#: Which fault makes which alerts fire.
FAULTS: dict[Fault, set[str]] = {
    wrong_file: {"InitWgConfigurationRefused"},
    a_rival: {"InitWgDriftFought"},
    no_kill_switch: {"InitWgUnsealed"},
    no_answers: {"InitWgWatchdogSilent"},
    no_exit: {"InitWgExitCheckFailed"},
    silence: {"InitWgTunnelDown", "InitWgRepairsFail"},
    a_thief: {"InitWgKeyContention"},
}
#: These come by themselves, in `aging`.
OLD_SESSIONS = {"InitWgHandshakeOld", "InitWgPeerGone"}


def test_every_alert_has_a_fault() -> None:
    assert set(re.findall(r"- alert: (\w+)", rules())) == OLD_SESSIONS.union(*FAULTS.values())


def test_none_fires_while_all_is_well(watched: Watched) -> None:
    """The control: it has looked often enough for every alert."""
    looks = "count_over_time(init_wg_up[1m]) > 15"
    wait_until(lambda: watched.prometheus.query(looks), "fifteen looks", PATIENCE)
    assert watched.prometheus.firing() == set()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_it_fires_and_resolves(watched: Watched, fault: Fault) -> None:
    expected = FAULTS[fault]
    wait_until(lambda: not watched.prometheus.firing(), "that all is well", PATIENCE)
    seen: set[str] = set()
    with fault(watched):
        wait_until(lambda: seen.update(watched.prometheus.firing()) or seen >= expected, f"{expected}", PATIENCE)  # type: ignore[func-returns-value]
    wait_until(lambda: not watched.prometheus.firing() & expected, "that it resolves", PATIENCE + RENEWED)
    wait_until(watched.watchdog.active, "that the VPN is active", PATIENCE)


def test_the_first_repair_counts(watched: Watched) -> None:
    """In increase(), for which a counter that begins with 1 has not grown."""
    watched.watchdog.settle()
    repairs = 'sum(increase(init_wg_repairs_total{reason="addresses"}[5m]))'
    wait_until(lambda: watched.prometheus.query(repairs), "the counter", PATIENCE)
    assert float(watched.prometheus.query(repairs)[0]["value"][1]) == 0
    watched.lab.pod.run(["ip", "address", "flush", "dev", "wg0"])
    wait_until(lambda: float(watched.prometheus.query(repairs)[0]["value"][1]) > 0.9, "one more repair", PATIENCE)


def test_every_query_of_the_dashboard_has_data(watched: Watched) -> None:
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    assert len(queries) > 10
    names = {"$namespace": LABELS["namespace"], "$pod": LABELS["pod"], "$__rate_interval": "1m", "$__range": "1m"}
    for query in queries:
        for name, value in names.items():
            query = query.replace(name, value)
        assert watched.prometheus.query(query), query
    for variable in dashboard["templating"]["list"][1:]:
        metric, label = re.findall(r"label_values\((\w+)(?:{.*})?, (\w+)\)", variable["query"])[0]
        assert all(label in sample["metric"] for sample in watched.prometheus.query(metric))


def test_an_old_session_fires_and_a_new_one_resolves(aging: Aging) -> None:
    pairs = ((aging.egress, "InitWgHandshakeOld"), (aging.server, "InitWgPeerGone"))
    if time.monotonic() < aging.since + OLD - 150:  # the control: a session of this age is no matter yet
        assert not any(alert in prometheus.firing() for prometheus, alert in pairs)
    left = aging.since + OLD - time.monotonic()
    for prometheus, alert in pairs:
        wait_until(lambda p=prometheus, a=alert: a in p.firing(), alert, max(0.0, left) + PATIENCE)  # type: ignore[misc]
    assert "InitWgHandshakeOld" not in aging.server.firing()
    aging.lab.provider.speak()
    aging.served.join(aging.served.roadwarrior, aging.served.client_file("roadwarrior"))
    for prometheus, alert in pairs:
        wait_until(lambda p=prometheus, a=alert: a not in p.firing(), f"{alert} resolves", PATIENCE)  # type: ignore[misc]
