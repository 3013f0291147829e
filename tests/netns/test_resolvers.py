"""Every DNS address of a file counts: the next one answers when the first does not, with and without DNS_MODE=split."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import dns.exception
import dns.message
import dns.query
import dns.rcode
import pytest

from tests.lab.judge import Judge, for_lab
from tests.lab.lab import CLUSTER_DNS, TUNNEL_DNS, Lab, wait_until
from tests.netns.chaos import Watchdog

NAME, ADDRESS = "www.example.com", "198.51.100.80"
DEAD, REFUSING = "10.64.0.99", "10.64.0.7"
LIVE = TUNNEL_DNS[4]


@contextlib.contextmanager
def lab_with(*resolvers: str, search: tuple[str, ...] = ()) -> Iterator[Lab]:
    with Lab() as lab:
        lab.zone({NAME: [ADDRESS]})
        lab.provider.run(["ip", "address", "add", f"{REFUSING}/32", "dev", "wg0"])  # nobody listens on its port 53
        lab.provider.run(["ip", "route", "add", "blackhole", f"{DEAD}/32"])
        path = lab.config()
        line = f"DNS = {', '.join((*resolvers, *search))}"
        path.write_text("\n".join(line if old.startswith("DNS") else old for old in path.read_text().splitlines()))
        yield lab


def ask(lab: Lab, server: str = CLUSTER_DNS[4], name: str = NAME, timeout: float = 1.0) -> list[str] | None:
    question = dns.message.make_query(name, "A", use_edns=0)
    try:
        with lab.pod.inside():
            answer = dns.query.udp(question, server, timeout=timeout)
    except (OSError, dns.exception.DNSException):
        return None
    return [str(item) for rrset in answer.answer for item in rrset]


@pytest.mark.parametrize("mode", ["tunnel", "split"])
@pytest.mark.parametrize("first", [DEAD, REFUSING])
def test_the_second_answers_when_the_first_does_not(mode: str, first: str) -> None:
    env = {"DNS_MODE": mode}
    with lab_with(first, LIVE) as lab, Judge(lab, for_lab(lab, lookups=[NAME])) as judge:
        lab.init_wg("lockdown", env=env)
        judge.mark()
        lab.init_wg("up", env=env)
        with Watchdog(lab, env=env) as watchdog:
            wait_until(watchdog.active, "green", 20)
            wait_until(lambda: ask(lab) == [ADDRESS], "names resolve", 5)
            for number in range(5):  # and at once, not after the first one's silence
                started = time.monotonic()
                lab.zone({f"n{number}.example.com": [ADDRESS]})
                assert ask(lab, name=f"n{number}.example.com") == [ADDRESS]
                assert time.monotonic() - started < 1
            wait_until(lambda: lab.init_wg("check", env=env, check=False).returncode == 0, "no drift", 10)
            assert watchdog.active()
        assert not judge.verdict().leaked


def forwarder_of(watchdog: Watchdog) -> int:
    """Its process's number, 0 for none."""
    names = {pid: Path(f"/proc/{pid}/comm") for pid in watchdog.children()}
    return next((pid for pid, name in names.items() if name.exists() and name.read_text() == "dnsmasq\n"), 0)


def in_turn(watchdog: Watchdog) -> list[str]:
    """The resolvers that the forwarder queries, the first one first; [] without a forwarder."""
    try:
        words = Path(f"/proc/{forwarder_of(watchdog)}/cmdline").read_text().split("\0")
    except OSError:
        return []
    return [word.removeprefix("--server=") for word in words if word.startswith("--server=") and "/" not in word]


def test_a_resolver_that_falls_silent_later_is_not_waited_for() -> None:
    """Else each name would cost its client's whole time-out, for as long as the watchdog lives."""
    silence = (
        f"table ip silence {{ chain in {{ type filter hook input priority 0; ip daddr {LIVE} udp dport 53 drop; }}; }}"
    )
    with lab_with(LIVE, REFUSING) as lab:
        lab.serve(lab.provider, f"dns:[{REFUSING}]:53")
        with Watchdog(lab) as watchdog:
            watchdog.settle()
            assert in_turn(watchdog) == [LIVE, REFUSING]
            lab.provider.run(["nft", "-f", "-"], stdin=silence)
            wait_until(lambda: in_turn(watchdog) == [REFUSING, LIVE], "another order", 60)
            wait_until(lambda: ask(lab) == [ADDRESS], "names resolve", 15)
            wait_until(watchdog.active, "green", 15)


@pytest.mark.parametrize(("mode", "beside"), [("tunnel", "alone"), ("split", "beside another server")])
def test_the_forwarder_starts_again_while_the_file_on_disk_is_bad(mode: str, beside: str) -> None:
    """As repairs do, from what is set up; not from another server's file."""
    with lab_with(LIVE, DEAD) as lab:
        good = lab.config_path.read_text()
        servers = lab.folder / "several"
        servers.mkdir()
        (servers / "a.conf").write_text(good)
        if beside != "alone":
            (servers / "b.conf").write_text(good.replace(LIVE, REFUSING))
        with Watchdog(lab, env={"DNS_MODE": mode, "WG_CONFIG": str(servers)}) as watchdog:
            watchdog.settle()
            first = wait_until(lambda: forwarder_of(watchdog), "the forwarder")
            (servers / "a.conf").write_text("<html>Please log in</html>\n")
            wait_until(lambda: "the new configuration is not applied" in watchdog.log(), "the complaint", 15)
            os.kill(first, signal.SIGKILL)
            second = wait_until(
                lambda: forwarder_of(watchdog) not in (0, first) and forwarder_of(watchdog), "another", 15
            )
            wait_until(lambda: ask(lab) == [ADDRESS], "names resolve", 15)
            wait_until(watchdog.active, "green", 15)
            assert not [each for each in Path(f"/proc/{second}/fd").iterdir() if "memfd" in str(each.readlink())]
            assert "a.conf:1" in watchdog.ask("/status")


def test_without_the_watchdog_the_first_answers() -> None:
    with lab_with(LIVE, DEAD) as lab:
        lab.init_wg("up")
        assert ask(lab) == [ADDRESS]
        assert lab.init_wg("check").returncode == 0


def test_the_first_is_asked_while_it_answers() -> None:
    """It may know names of which the second denies the existence, and the second is told no name without need."""
    second = "203.0.113.53"
    with lab_with(LIVE, second) as lab:
        lab.init_wg("up")
        with Watchdog(lab) as watchdog:
            wait_until(watchdog.active, "green", 20)
            time.sleep(1.5)
            for number in range(10):
                ask(lab, name=f"n{number}.example.com")
        assert not [line for line in lab.queries(lab.web) if ".example.com" in line]
        assert len([line for line in lab.queries(lab.provider) if ".example.com" in line]) >= 10


def test_a_name_below_a_search_domain_of_the_tunnel_is_the_tunnels() -> None:
    name, env = "wiki.corp.svc.cluster.local", {"DNS_MODE": "split"}
    with lab_with(LIVE, search=("corp.svc.cluster.local",)) as lab:
        lab.zone({name: [ADDRESS], "web.default.svc.cluster.local": ["10.43.0.80"]})
        lab.init_wg("up", env=env)
        with Watchdog(lab, env=env) as watchdog:
            wait_until(watchdog.active, "green", 20)
            assert ask(lab, name=name) == [ADDRESS]
            assert ask(lab, name="web.default.svc.cluster.local") == ["10.43.0.80"]
        assert name in " ".join(lab.queries(lab.provider))
        assert name not in " ".join(lab.queries(lab.service))
