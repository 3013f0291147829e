"""Green means that traffic flows: what is broken while every part of the setup looks right turns :9999 red."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.lab.lab import Lab, wait_until
from tests.netns.chaos import Watchdog

FIGHT = "while :; do ip -4 rule del pref 300; ip -6 rule del pref 300; sleep {pause}; done 2>/dev/null"
TABLES = {
    "marks": "type route hook output priority mangle; oifname wg0 meta mark set 51820",
    "drops": "type filter hook output priority 10; oifname wg0 drop",
    "drops after routing": "type filter hook postrouting priority 10; oifname wg0 drop",
    "one family": "type filter hook output priority 10; oifname wg0 ip version 4 drop",
}


@pytest.fixture(scope="module")
def watched() -> Iterator[Watchdog]:
    with Lab() as lab:
        lab.init_wg("lockdown")
        with Watchdog(lab) as watchdog:
            yield watchdog


@pytest.mark.parametrize("pause", [0.2, 1.0])
def test_it_is_red_while_something_undoes_the_repairs(watched: Watchdog, pause: float) -> None:
    watched.settle()
    fight = watched.lab.pod.popen(["sh", "-c", FIGHT.format(pause=pause)], new_session=True)
    try:
        # A run that is undone while it looks says so itself: that it reads back different.
        words = ("keeps undoing", "reads back different")
        wait_until(lambda: any(each in watched.ask() for each in words), f"red: {watched.log()[-1500:]}", 15)
        green = []
        for _ in range(24):
            green.append(watched.active())
            time.sleep(0.25)
        assert sum(green) <= 2, watched.log()[-2000:]
    finally:
        os.killpg(fight.pid, signal.SIGKILL)
        fight.wait()
    wait_until(lambda: watched.active() and watched.lab.flows(0.5), "green again", 30)


@pytest.mark.parametrize("name", TABLES)
def test_it_is_red_while_somebody_elses_table_diverts_the_tunnel(watched: Watchdog, name: str) -> None:
    lab = watched.lab
    watched.settle()
    lab.pod.run(["nft", "-f", "-"], stdin=f"table inet stranger {{\nchain output {{\n{TABLES[name]}\n}}\n}}\n")
    try:
        wait_until(lambda: "do not get into the tunnel" in watched.ask(), "red", 15)
        assert not lab.flows(0.5) or name == "one family"
        if name == "drops":  # long enough for a peer to be given up, which has nothing to do with it
            failovers = watched.metrics()["init_wg_failovers_total"]
            time.sleep(17)
            assert watched.metrics()["init_wg_failovers_total"] == failovers
            assert "do not get into the tunnel" in watched.ask()
    finally:
        lab.pod.run(["nft", "delete", "table", "inet", "stranger"])
    wait_until(watched.active, "green again", 10)
    assert lab.flows()


# --- names that are redirected to a forwarder ------------------------------------------------------------------------


@contextlib.contextmanager
def split(*, resolver: str = "") -> Iterator[Watchdog]:
    with Lab() as lab:
        if resolver:
            lab.pod.run(["mount", "--bind", "/bin/false", resolver])
        lab.init_wg("up", env={"DNS_MODE": "split"})
        with Watchdog(lab, env={"DNS_MODE": "split"}) as watchdog:
            yield watchdog


def resolves(lab: Lab) -> bool:
    return lab.pod.run(["timeout", "2", "getent", "ahosts", "example.org"], check=False).returncode == 0


def test_the_first_name_after_green_resolves_and_a_hung_forwarder_is_red() -> None:
    with split() as watchdog:
        lab = watchdog.lab
        wait_until(watchdog.active, "green", 15)
        assert resolves(lab)
        (forwarder,) = forwarders(lab)
        os.kill(forwarder, signal.SIGSTOP)
        wait_until(lambda: "DNS forwarder" in watchdog.ask(), "red", 5)
        assert not resolves(lab)
        wait_until(watchdog.active, "another one", 15)
        assert resolves(lab)
        assert forwarder not in forwarders(lab)


def test_without_a_forwarder_it_is_never_green() -> None:
    with split(resolver=os.path.realpath(shutil.which("dnsmasq") or "")) as watchdog:
        end = time.monotonic() + 4
        while time.monotonic() < end:
            assert not watchdog.active()
        assert "the DNS forwarder" in watchdog.ask()


def forwarders(lab: Lab) -> list[int]:
    listed = subprocess.run(["ip", "netns", "pids", lab.pod.netns], capture_output=True, text=True, check=True).stdout
    return [int(pid) for pid in listed.split() if "dnsmasq" in comm(pid)]


def comm(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8") as file:
            return file.read()
    except OSError:
        return ""
